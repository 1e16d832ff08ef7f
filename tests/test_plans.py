"""The plan against the deed: what generation says before it begins is what happens to the files, in histories of
finished, half, changed, moved and shared work. Planning itself writes nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from models import SPEC, make_features, make_model_folder, make_seeing_model
from programs import call
from test_generate_failures import MODEL, Played
from test_listening_make import write_systems
from tiny_data import CODEC, build, write_dataset
from tiny_data import SPEC as CODEC_SPEC

from vta_sam.checkpoints.model_folder import ModelRecipe, save_model
from vta_sam.dataset.shards.records import read_shard, write_shard
from vta_sam.dataset.shards.schema import DatasetInfo, ShardInfo, member_key
from vta_sam.generation.inputs import videos_in
from vta_sam.generation.planning import Outputs, Prompt, SplitRequest, plan_caption, plan_videos
from vta_sam.generation.split import generate_split, plan_split
from vta_sam.generation.videos import generate_caption, generate_videos
from vta_sam.media.guarded import Media
from vta_sam.runtime.errors import InputError
from vta_sam.runtime.files import claimed
from vta_sam.runtime.work_plan import Deed, Item, Plan

Planned = TypeVar("Planned")
State = dict[str, tuple[int, str]]
BESIDE = {"generation.json", "extraction.json", ".extraction.lock"}  # that hold what a folder is


def state(folder: Path) -> State:
    """{file: (inode, hash)}: a file that was written again has another inode, even with the same bytes."""
    return {path.name: (path.stat().st_ino, hashlib.sha256(path.read_bytes()).hexdigest())
            for path in folder.glob("*") if path.is_file()}


def quietly(folder: Path, plan: Callable[[], Planned]) -> Planned:
    """What was planned. AssertionError where planning wrote something."""
    def everything() -> dict[str, float]:
        return {str(path): path.stat().st_mtime_ns for path in (folder, *folder.parent.rglob("*"))}

    before = everything()
    planned = plan()
    assert everything() == before
    return planned


def as_said(folder: Path, plan: Plan, act: Callable[[], object], files_of: Callable[[Item], list[str]]) -> dict:
    """Do what was planned and hold it against the files ⇒ {deed: number of items}.

    files_of: the files of an item, the first of which has to be there once it is made.
    """
    before = state(folder)
    act()
    after = state(folder)
    assert not [name for name in os.listdir(folder) if name.startswith(".") and name not in BESIDE]
    touched = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    named: set[str] = set()
    for item in plan.items:
        files = files_of(item)
        if item.deed in (Deed.KEEP, Deed.LEAVE_OUT):
            assert not touched & set(files), (item, touched)
            continue
        assert files[0] in touched and files[0] in after, (item, touched)
        if item.deed is Deed.MAKE:
            assert not set(files) & set(before), item
        if item.deed in (Deed.MAKE_AGAIN, Deed.REPLACE):
            assert set(files) & set(before), item
        named |= set(files)
    assert touched <= named | BESIDE, touched - named
    return plan.counts()


# ---------------------------------------------------------------------- videos and captions

@pytest.fixture(scope="module")
def clip(tmp_path_factory, make_video):
    return make_video(tmp_path_factory.mktemp("clip") / "in.mp4", duration_s=0.2, size=(16, 16))


class Videos:
    """A folder of three videos and one of results."""

    def __init__(self, folder: Path, clip: Path) -> None:
        self.videos, self.out, self.clip = folder / "videos", folder / "out", clip
        self.videos.mkdir()
        self.out.mkdir()
        for name in "abc":
            shutil.copy(clip, self.videos / f"{name}.mp4")

    def run(self, only: str | None = None, seed: int = 0, videos: Path | None = None, pipeline: Played | None = None,
            **options) -> dict:
        pipeline = pipeline or Played()
        found = {name: path for name, path in videos_in(videos or self.videos, self.out).items()
                 if only is None or name in only}
        outputs = Outputs(self.out, **{"picture": False, "wav": True, **options})
        planned = quietly(self.out, lambda: plan_videos(found, Prompt(seed=seed), outputs, MODEL, pipeline.sampler,
                                                        Media()))
        kept = {item.name for item in planned.plan.of(Deed.KEEP)}

        def act():
            outcomes = generate_videos(pipeline, found, Prompt(seed=seed), outputs, MODEL, planned=planned,
                                       media=Media())
            assert {outcome.written.name for outcome in outcomes if outcome.skipped} == kept
            assert sum(bool(outcome.failure) for outcome in outcomes) == len(planned.plan.of(Deed.LEAVE_OUT))

        return as_said(self.out, planned.plan, act, lambda item: [
            f"{item.name.removesuffix('.mp4')}{suffix}" for suffix in (".mp4", ".json", ".wav", ".mkv", ".png")])


def finished(of: Videos) -> dict:
    of.run()
    return of.run()


def half(of: Videos) -> dict:
    of.run(only="b")
    return of.run()


def changed_settings(of: Videos) -> dict:
    of.run(only="ab")
    return of.run(seed=1)


def moved(of: Videos) -> dict:
    of.run()
    of.videos.rename(of.videos.with_name("elsewhere"))
    return of.run(videos=of.videos.with_name("elsewhere"))


def overwrite(of: Videos) -> dict:
    of.run(only="ac")
    return of.run(overwrite=True, seed=1)


def cut_again(of: Videos) -> dict:
    of.run()
    video = (of.videos / "b.mp4").read_bytes()
    (of.videos / "b.mp4").write_bytes(video + b"\0" * 8)
    return of.run()


def added(of: Videos) -> dict:
    of.run()
    shutil.copy(of.clip, of.videos / "d.mp4")
    return of.run()


def without_records(of: Videos) -> dict:
    of.run()
    (of.out / "a.json").unlink()
    return of.run()


def broken_video(of: Videos) -> dict:
    of.run(only="a")
    (of.videos / f"{'x' * 251}.mp4").write_bytes(b"no video")
    return of.run()


@pytest.mark.parametrize("history, said", [
    (finished, {Deed.KEEP: 3}), (half, {Deed.KEEP: 1, Deed.MAKE: 2}),
    (changed_settings, {Deed.MAKE: 1, Deed.LEAVE_OUT: 2}), (moved, {Deed.KEEP: 3}),
    (overwrite, {Deed.MAKE: 1, Deed.MAKE_AGAIN: 2}), (cut_again, {Deed.KEEP: 2, Deed.MAKE_AGAIN: 1}),
    (added, {Deed.KEEP: 3, Deed.MAKE: 1}), (without_records, {Deed.KEEP: 2, Deed.MAKE_AGAIN: 1}),
    (broken_video, {Deed.KEEP: 1, Deed.MAKE: 2, Deed.LEAVE_OUT: 1}),
], ids=lambda value: getattr(value, "__name__", ""))
def test_videos(history, said, tmp_path, clip):
    assert history(Videos(tmp_path, clip)) == said


def test_another_process_is_at_a_video_or_has_finished_it(tmp_path, clip, monkeypatch):
    """One is held by another process while the plan is done, and one that was planned is there by its turn."""
    of = Videos(tmp_path, clip)
    videos, outputs = videos_in(of.videos, of.out), Outputs(of.out, picture=False)
    planned = plan_videos(videos, Prompt(), outputs, MODEL, Played.sampler, Media())
    of.run(only="b", wav=False)
    before = state(of.out)
    monkeypatch.setattr("vta_sam.generation.videos.LONGEST_WAIT_S", 0.1)
    pipeline = Played()
    with claimed(of.out / "a.json"), pytest.warns(UserWarning, match="another process is at a.mp4; waiting for it"):
        outcomes = generate_videos(pipeline, videos, Prompt(), outputs, MODEL, planned=planned, media=Media())
    assert pipeline.asked == ["c"] and [bool(outcome.failure) for outcome in outcomes] == [True, False, False]
    assert "another process has been at it" in outcomes[0].failure and outcomes[1].skipped
    assert "another process has written b.json" in outcomes[1].notes[0]
    assert {name: state(of.out)[name] for name in before} == before


def test_captions(tmp_path):
    def run(caption: str, overwrite: bool = False, seed: int = 0) -> dict:
        planned = plan_caption(Prompt(caption, seed=seed), tmp_path, MODEL, overwrite, Played.sampler)
        return as_said(tmp_path, planned.plan, lambda: generate_caption(
            Played(), Prompt(caption, seed=seed), tmp_path, MODEL, overwrite, planned),
            lambda item: [item.name, item.name.replace(".wav", ".json")])

    assert run("a dog") == run("dog!") == {Deed.MAKE: 1}
    assert run("a dog") == {Deed.KEEP: 1} and run("a dog", overwrite=True) == {Deed.MAKE_AGAIN: 1}


# ---------------------------------------------------------------------- a dataset's split

class Split:
    """Five clips in two shards, and a folder of their sounds."""

    def __init__(self, folder: Path) -> None:
        self.shards, self.out = folder / "shards", folder / "out"
        self.shards.mkdir()
        self.out.mkdir()
        self.write({"a": "a", "b": "b", "c": "c"}, {"d": "d", "e": "e"})

    def write(self, *shards: dict[str, str], config: str = "config") -> None:
        """shards: {key: what the clip holds}."""
        infos = []
        for number, clips in enumerate(shards):
            path = self.shards / f"test-{number:06d}.tar"
            features = [make_features(content) for content in clips.values()]
            for clip, key in zip(features, clips):
                clip.key = key
            infos.append(ShardInfo(path.name, write_shard(path, features), 0))
        DatasetInfo("played", "played", SPEC.fps, 16_000, 12, 10, 6, config, "manifest", "0",
                    {"test": infos}).write(self.shards)

    def run(self, pipeline: Played | None = None, **request) -> dict:
        asked, pipeline = SplitRequest(self.shards, "test", self.out, **request), pipeline or Played()
        planned = quietly(self.out, lambda: plan_split(asked, MODEL, pipeline.sampler, SPEC, {}))

        def files_of(item: Item) -> list[str]:
            stem = item.name.removesuffix(".wav")
            if item.name.endswith(".wav"):
                return [item.name, f"{stem}.json"]
            mine = [task.index for task in planned.tasks if task.shard.name == item.name]
            keys = [clip.key for clip in read_shard(self.shards / item.name)]
            return [f"{member_key(keys[i])}-0{suffix}" for i in mine for suffix in (".wav", ".json")]

        def act():
            outcome = generate_split(pipeline, asked, MODEL, planned=planned)
            assert outcome.there == len(planned.plan.of(Deed.KEEP)) and not outcome.failures
            assert outcome.made == len(planned.tasks) - outcome.there

        return as_said(self.out, planned.plan, act, files_of)


def split_finished(of: Split) -> dict:
    of.run()
    return of.run()


def split_half(of: Split) -> dict:
    of.run(rank=1, world=2)
    return of.run(batch_size=2)


def split_shared(of: Split) -> dict:
    of.run(rank=1, world=2)
    return of.run(rank=0, world=2)


def split_in_runs(of: Split) -> dict:
    """The first of two runs of clips has clips of the first shard alone."""
    of.run(rank=0, world=2, consecutive=True)
    assert sorted(path.stem for path in of.out.glob("*.wav")) == ["a-0", "b-0"]
    return of.run(rank=1, world=2, consecutive=True)


def split_moved(of: Split) -> dict:
    of.run()
    of.shards = of.shards.rename(of.shards.with_name("elsewhere"))
    return of.run()


def split_grown(of: Split) -> dict:
    """As after failed clips were tried again, with one clip extracted from another video."""
    of.run()
    of.write({"a": "a", "b": "another", "c": "c"}, {"d": "d", "e": "e", "f": "f"})
    return of.run()


def split_of_before(of: Split) -> dict:
    """Records of an earlier release know neither the dataset's fingerprint nor their clip."""
    of.run()
    for path in of.out.glob("*.json"):
        content = json.loads(path.read_text())
        content.pop("clip", None)
        content.get("settings", {}).pop("dataset", None)
        path.write_text(json.dumps(content))
    return of.run()


@pytest.mark.parametrize("history, said", [
    (split_finished, {Deed.KEEP: 5}), (split_half, {Deed.KEEP: 2, Deed.MAKE: 3}),
    (split_shared, {Deed.MAKE: 3}), (split_in_runs, {Deed.MAKE: 3}), (split_moved, {Deed.KEEP: 5}),
    (split_grown, {Deed.KEEP: 4, Deed.MAKE: 1, Deed.MAKE_AGAIN: 1}), (split_of_before, {Deed.KEEP: 5}),
], ids=lambda value: getattr(value, "__name__", ""))
def test_splits(history, said, tmp_path):
    assert history(Split(tmp_path)) == said


def test_another_dataset_under_the_same_path_is_refused(tmp_path):
    of = Split(tmp_path)
    of.run()
    before = state(of.out)
    of.write({"a": "a", "b": "b", "c": "c"}, {"d": "d", "e": "e"}, config="another")
    with pytest.raises(InputError, match="holds sounds for another dataset than"):
        of.run()
    assert state(of.out) == before


# ---------------------------------------------------------------------- plan=true, as users say it

@pytest.fixture(scope="module")
def inputs(tmp_path_factory, clip):
    folder = tmp_path_factory.mktemp("inputs")
    for name in ("seeing", "model", "split", "clips", "vae"):
        (folder / name).mkdir()
    make_seeing_model(folder / "seeing")
    make_model_folder(folder / "model")
    Split(folder / "split")
    shutil.copy(clip, folder / "clips" / "v0.mp4")
    (folder / "clips" / "manifest.csv").write_text("id,caption\nv0,a dog\n")
    write_systems(folder / "systems", ("gt", "alpha"), clips=1)
    write_dataset(folder / "data", {"train": 2}, shard_records=1, duration_s=CODEC_SPEC.column_s)
    known = {**CODEC, "mel_mean": -5.0, "mel_std": 2.0}
    save_model(folder / "vae", ModelRecipe(clip=CODEC_SPEC.settings(), codec=known), {"codec": build(known)})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("script, arguments, said", [
    ("experiments/generate.py", "model=seeing/model video=clips out=o", "v0.mp4 make"),
    ("experiments/generate.py", "model=model/model shards=split/shards out=o rank=0 world=2",
     "share worker 0 of 2, as rank= and world= say"),
    ("experiments/generate.py", "model=model/model caption=x out=o", "x-0.wav make"),
    ("experiments/generate.py", "model=tango caption=x out=o", "tango: 10 files are fetched, and it is imported"),
    ("data_prep/extract.py", "videos=clips out=o grounder=tiny encoder=tiny", "train-000000.tar make: 1 clip"),
    ("data_prep/encode_latents.py", "vae=vae shards=data out=o", "train-000001.safetensors make: 1 clip"),
    ("data_prep/check.py", "shards=data out=o overlay=1 videos=clips", "overlays/train-0.mp4 make"),
    ("data_prep/synthesize.py", "train=2 val=0 test=1 out=o", "manifest.csv make: of 3 clips"),
    ("experiments/evaluate.py", "generated=systems/alpha reference=systems/gt out=o", "measures 1 clip"),
    ("experiments/compare.py", "systems=systems out=o", "page/ make: a page"),
    ("experiments/study.py", "study=smoke records=o", "the VAE that all rows share"),
    ("experiments/train.py", "+exp=vta_sam size=smoke runs=o data.root=d", "diffusion make: 12 steps"),
    ("experiments/overfit.py", "+exp=overfit size=smoke runs=o overfit.videos=clips overfit.captions=c.csv",
     "shards/ make"),
    ("experiments/train_tiny.py", "trunk.scenes=o trunk.out=o/x.safetensors", "o/train-1 make: 800 of 800 clips"),
])
def test_plan_true_says_what_would_be_done_and_writes_nothing(script, arguments, said, inputs, monkeypatch):
    def never(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("vta_sam.generation.pipeline.load", never)
    monkeypatch.setenv("VTA_SAM_WEIGHTS", str(inputs / "weights"))
    before = {path: path.stat().st_mtime_ns for path in (inputs, *inputs.rglob("*"))}
    ended = call(script, *arguments.split(), "plan=true", cwd=inputs)
    words = " ".join((ended.stdout + ended.stderr).split())
    assert ended.returncode == 0 and said in words and "Traceback" not in words, ended.stderr
    assert "writes to o" in words or "model=tango" in arguments
    assert {path: path.stat().st_mtime_ns for path in (inputs, *inputs.rglob("*"))} == before
