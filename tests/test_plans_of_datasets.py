"""The plan against the deed: extraction and latents, in histories as in test_plans.py; and processes that meet in one
folder, which part the work or are told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from forks import Fork
from test_extract import BrightnessEncoder, BrightnessGrounder, write_manifest
from test_plans import Split, as_said, quietly, state
from tiny_data import CODEC, build, write_dataset
from tiny_data import SPEC as CODEC_SPEC

from vta_sam.dataset.extraction.extract import Extraction
from vta_sam.dataset.shards.latents import encode_dataset, latents_folder, plan_latents
from vta_sam.dataset.shards.schema import read_dataset
from vta_sam.dataset.shards.storage import storage_of
from vta_sam.embedded.world import make_world, plan_world
from vta_sam.runtime.errors import InputError
from vta_sam.runtime.files import alone_in, claimed, claimed_in_turn, exclusive, sweep_claims
from vta_sam.runtime.work_plan import Deed, Item


@pytest.fixture(scope="module")
def videos(make_video, tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for i in range(6):
        make_video(folder / f"v{i}.mp4", duration_s=0.2, sound=np.random.default_rng(i).uniform(-0.3, 0.3, 3_200))
    return folder


class Shards:
    """Six clips in three shards, one of which fails."""

    def __init__(self, folder: Path, videos: Path) -> None:
        self.videos, self.out = folder / "videos", folder / "out"
        shutil.copytree(videos, self.videos)
        self.out.mkdir()
        self.manifest = write_manifest(folder / "m.csv", [{"id": f"v{i}", "caption": "a dog"} for i in range(6)])
        (self.videos / "v3.mp4").rename(self.videos / "later")

    def run(self, stop: int | None = None, **settings) -> dict:
        asked = Extraction(self.manifest, self.videos, self.out, BrightnessGrounder(), BrightnessEncoder(),
                           **{"fps": 12.5, "shard_size": 2, "workers": 1, **settings})
        planned = quietly(self.out, asked.planned)

        def progress(done, clips, failed):
            if done == stop:
                raise KeyboardInterrupt

        if stop is not None:
            with pytest.raises(KeyboardInterrupt):
                asked.run(planned, progress)
            return {}

        def files_of(item: Item) -> list[str]:
            stem = item.name.removesuffix(".tar")
            more = [f"{stem}.failed.jsonl", f"{item.name}.before"] if item.name.endswith(".tar") else []
            return [item.name, *more]

        return as_said(self.out, planned.plan, lambda: asked.run(planned), files_of)


def extract_finished(of: Shards) -> dict:
    of.run()
    return of.run()


def extract_half(of: Shards) -> dict:
    of.run(stop=3)
    return of.run()


def extract_again(of: Shards) -> dict:
    of.run()
    (of.videos / "later").rename(of.videos / "v3.mp4")
    return of.run(retry_failed=True)


def extract_again_cut_short(of: Shards) -> dict:
    of.run()
    (of.videos / "later").rename(of.videos / "v3.mp4")
    of.run(retry_failed=True, stop=5)
    return of.run()


def extract_moved(of: Shards) -> dict:
    of.run(stop=3)
    of.videos = of.videos.rename(of.videos.with_name("elsewhere"))
    return of.run()


@pytest.mark.parametrize("history, said", [
    (extract_finished, {Deed.KEEP: 4}), (extract_half, {Deed.KEEP: 1, Deed.MAKE: 3}),
    (extract_again, {Deed.KEEP: 2, Deed.MAKE_AGAIN: 2}),
    (extract_again_cut_short, {Deed.KEEP: 2, Deed.MAKE: 1, Deed.GO_ON: 1}),
    (extract_moved, {Deed.KEEP: 1, Deed.MAKE: 3}),
], ids=lambda value: getattr(value, "__name__", ""))
def test_extraction(history, said, tmp_path, videos):
    assert history(Shards(tmp_path, videos)) == said


def test_another_release_leaves_a_finished_dataset_as_it_is(tmp_path, videos, monkeypatch):
    """dataset.json names the code's version, and with it its fingerprint would change."""
    of = Shards(tmp_path, videos)
    of.run()
    before = state(of.out)
    monkeypatch.setattr("vta_sam.dataset.extraction.extract.__version__", "99")
    assert of.run() == {Deed.KEEP: 4} and state(of.out) == before


@pytest.fixture(scope="module")
def codec():
    return build({**CODEC, "mel_mean": -5.0, "mel_std": 2.0})


def test_latents(tmp_path, codec):
    info = write_dataset(tmp_path / "shards", {"train": 3, "val": 1}, shard_records=1, duration_s=CODEC_SPEC.column_s)

    def run(root: Path, rank: int = 0, world: int = 1) -> dict:
        place = storage_of(root, tmp_path / "latents")
        out = latents_folder(place, read_dataset(root), codec)
        out.mkdir(parents=True, exist_ok=True)
        planned = quietly(out, lambda: plan_latents(place, info, codec, out, rank, world))
        if rank == 0 and world == 2:  # its latents.json comes with the last share
            planned.plan.items.pop()
        return as_said(out, planned.plan, lambda: encode_dataset(place, info, codec, out, rank, world, planned=planned),
                       lambda item: [item.name])

    assert run(tmp_path / "shards", 0, 2) == {Deed.MAKE: 2}
    shutil.copytree(tmp_path / "shards", tmp_path / "moved")
    assert run(tmp_path / "moved") == {Deed.MAKE: 3, Deed.KEEP: 2} and run(tmp_path / "shards") == {Deed.KEEP: 5}
    out = next((tmp_path / "latents").iterdir())
    (out / "train-000000.safetensors").unlink()
    assert run(tmp_path / "shards") == {Deed.MAKE: 1, Deed.MAKE_AGAIN: 1, Deed.KEEP: 3}
    content = json.loads((out / "latents.json").read_text())
    assert content["dataset"] == info.fingerprint
    (out / "latents.json").write_text(json.dumps({**content, "dataset": "another"}))
    with pytest.raises(InputError, match="holds latents of another dataset"):
        run(tmp_path / "shards")
    del content["dataset"]  # as of an earlier release
    (out / "latents.json").write_text(json.dumps(content))
    assert run(tmp_path / "shards") == {Deed.KEEP: 5}


# ---------------------------------------------------------------------- two processes in one folder

def test_a_shard_that_another_process_is_at_is_left_to_it(tmp_path, videos):
    of = Shards(tmp_path, videos)
    asked = Extraction(of.manifest, of.videos, of.out, BrightnessGrounder(), BrightnessEncoder(), 12.5, 2, 1)
    planned, told = asked.planned(), []
    with claimed(of.out / "train-000001.tar"), pytest.warns(UserWarning) as warned:
        info = asked.run(planned, lambda *counts: told.append(counts))
    said = [str(warning.message) for warning in warned]
    assert "another process is at train-000001.tar" in said[0] and "1 shards" in said[1] and len(said) == 2
    assert told[-1][:2] == (4, 6) and len(info.splits["train"]) == 2 and not (of.out / "dataset.json").exists()
    before = state(of.out)
    again = asked.run(planned)  # by the plan of before: two shards are there since
    after = state(of.out)
    assert again == read_dataset(of.out) and {name: after[name] for name in before} == before


def test_latents_that_another_process_is_at_are_waited_for(tmp_path, codec, monkeypatch):
    info = write_dataset(tmp_path / "shards", {"train": 2}, shard_records=1, duration_s=CODEC_SPEC.column_s)
    out = tmp_path / "latents"
    monkeypatch.setattr("vta_sam.dataset.shards.latents._LONGEST_WAIT_S", 0.1)
    said = "another process is at train-000000"
    with claimed(out / "train-000000.safetensors"), pytest.warns(UserWarning, match=said):
        with pytest.raises(InputError, match="another process has been at it for 0 minutes"):
            encode_dataset(tmp_path / "shards", info, codec, out)
    assert [path.name for path in out.iterdir()] == ["train-000001.safetensors"]
    assert encode_dataset(tmp_path / "shards", info, codec, out)


def test_sounds_that_another_process_is_at_come_last(tmp_path, monkeypatch):
    of = Split(tmp_path)
    monkeypatch.setattr("vta_sam.generation.split.LONGEST_WAIT_S", 0.1)
    with claimed(of.out / "b-0.json"), pytest.warns(UserWarning, match="another process is making 1 of the sounds"):
        with pytest.raises(AssertionError):  # the plan says that all are made here
            of.run()
    assert sorted(path.stem for path in of.out.glob("*.wav")) == ["a-0", "c-0", "d-0", "e-0"]
    assert of.run() == {Deed.KEEP: 4, Deed.MAKE: 1}


def test_clips_of_a_world_that_another_process_renders(tmp_path, monkeypatch):
    monkeypatch.setattr("vta_sam.embedded.world._LONGEST_WAIT_S", 0.1)
    out = tmp_path / "world"
    planned = plan_world(out, {"train": 2}, 0)
    with claimed(out / "train" / "train-000000.mp4"), pytest.warns(UserWarning, match="is making 1 of the clips"):
        assert list(make_world(planned)) == ["train-000000.mp4"]
    assert not (out / "manifest.csv").exists() and (out / "train" / "train-000001.mp4").exists()
    assert make_world(plan_world(out, {"train": 2}, 0)) == {} and (out / "manifest.csv").exists()
    assert not list(out.rglob(".*"))


def test_two_reports_in_one_folder(tmp_path):
    with alone_in(tmp_path / "out"):
        with pytest.raises(InputError, match="another process is writing to out=.*name another folder"):
            with alone_in(tmp_path / "out"):
                pass
    assert not (tmp_path / "out").exists(), "nothing was written to it"


def hold(path: Path) -> None:
    import time

    with claimed(path):
        print("held", flush=True)
        time.sleep(600)


@pytest.mark.slow
def test_a_claim_goes_with_a_killed_process(tmp_path):
    process = Fork(hold, tmp_path / "a")
    try:
        while "held" not in process.read():
            assert process.poll() is None, process.read()
        with claimed(tmp_path / "a") as mine:
            assert not mine
    finally:
        process.close()
    assert list(tmp_path.iterdir()) == [tmp_path / ".a.claim"]
    with claimed(tmp_path / "a") as mine:
        assert mine
    assert not list(tmp_path.iterdir())
    (tmp_path / ".b.claim").touch()  # of another one, which nobody makes any more
    with claimed(tmp_path / "c"):
        sweep_claims(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [".c.claim"]


def test_waiting_is_said_and_ends_in_words(tmp_path):
    said = []
    with claimed(tmp_path / "a"), pytest.raises(InputError, match="another process has been at it for"):
        with claimed_in_turn(tmp_path / "a", lambda: said.append("waiting"), 0.1):
            pass
    with exclusive(tmp_path / "b"), pytest.raises(InputError, match="at it for 0.1 s"):
        with exclusive(tmp_path / "b", lambda: said.append("waiting"), 0.1):
            pass
    assert said == ["waiting"] * 2
