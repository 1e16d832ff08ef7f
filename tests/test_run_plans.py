"""What a training run says it will do, and what it does, through histories of its folder. Stages are played."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_configs import composed
from tiny_data import SPEC, write_dataset

from vta_sam.runtime.cluster.preemption import Preempted
from vta_sam.runtime.errors import InputError
from vta_sam.runtime.work_plan import Deed
from vta_sam.training.data_sources import ShardData
from vta_sam.training.job import STAGES, TrainingJob

ORDER = ("vae", "condition", "diffusion", "figures")
K, A, G, M, T = Deed.KEEP, Deed.MAKE_AGAIN, Deed.GO_ON, Deed.MAKE, Deed.TAKE_BACK
Said = dict[str, Deed]


class Killed(BaseException):
    """As SIGKILL: nothing after it happens."""


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    return composed("+exp=vta_sam", "size=smoke", "data=shards", "data.root=data")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    recipes = {"grounder": {"_target_": "tiny_grounder"}, "encoder": {"_target_": "tiny_encoder"}}
    replace(write_dataset(folder, {"train": 2, "val": 1, "test": 1}, fps=SPEC.fps), recipes=recipes).write(folder)
    return folder


class History:
    """A run's folder, with commands that were given in it. ``ends`` names the stage in whose midst a kill comes."""

    def __init__(self, folder: Path, settings: dict[str, Any], dataset: Path):
        self.folder, self.settings = folder, deepcopy(settings)
        self.dataset = folder / "data"
        shutil.copytree(dataset, self.dataset)
        self.settings |= {"runs": str(folder / "runs"), "threads": None}
        self.settings["data"]["root"] = str(self.dataset)
        self.ends: str | None = None
        self.trained: list[str] = []

    def change(self, **keys: Any) -> None:
        """Settings; of nested ones with __ for the dot."""
        for key, value in keys.items():
            place, *rest = reversed(key.split("__"))
            at = self.settings
            for part in reversed(rest):
                at = at[part]
            at[place] = value

    def job(self, **more: Any) -> TrainingJob:
        return TrainingJob.of(deepcopy(self.settings) | more)

    def run(self, overwrite: bool = False, ends: str | None = None) -> tuple[Said, Said]:
        """⇒ what was said, and what happened, by stage. All of what a plan says is compared with all files."""
        before = self.files()
        plan = self.job(overwrite=overwrite, plan=True)._prepare_plan()
        self.job(overwrite=overwrite, plan=True).run()
        assert self.files() == before, "a plan writes nothing"
        self.ends, self.trained = ends, []
        try:
            self.job(overwrite=overwrite).run()
        except Killed:
            pass
        return {item.name: item.deed for item in plan.items}, self.happened(before)

    def files(self) -> dict[str, str]:
        runs = self.folder / "runs"
        return {str(path.relative_to(runs)): hashlib.sha256(path.read_bytes()).hexdigest()
                for path in sorted(runs.glob("**/*")) if path.is_file()}

    def happened(self, before: dict[str, str]) -> Said:
        """By the files alone."""
        now = self.files()

        def of(files: dict[str, str], stage: str) -> dict[str, str]:
            """Of a stage's folder, but for what names its origin, which may name another place now."""
            start = f"vta_sam-0/{stage}/"
            return {path.removeprefix(start): found for path, found in files.items()
                    if path.startswith(start) and not path.endswith(("config.yaml", "inputs.json"))}

        deeds = {}
        for stage in ORDER:
            was, aside = of(before, stage), of(before, f".replaced-{stage}")
            kept = of(now, stage)
            if stage not in self.trained:
                deeds[stage] = T if aside and kept == aside else K
                if was and not aside:
                    assert kept == was, f"{stage} was to stay as it is"
            elif was.get("begun") == kept.get("begun") and was:
                deeds[stage] = G
            else:
                deeds[stage] = A if "done" in was else M
                if "done" in was and stage == self.ends:
                    assert of(now, f".replaced-{stage}") == was, "the former one is whole until the new one is"
        return deeds


@pytest.fixture
def history(tmp_path, settings, dataset, monkeypatch) -> Iterator[History]:
    played = History(tmp_path, settings, dataset)

    def train(stage):
        def work(job, context):
            folder = stage.folder(job)
            played.trained.append(stage.name)
            if not (folder.path / "begun").exists():
                (folder.path / "begun").write_text(f"{len(list(tmp_path.glob('**/begun')))} {played.trained} "
                                                   f"{job.stage_folder(stage.name).identity}")
            if played.ends == stage.name:
                raise Killed
            folder.last_checkpoint.parent.mkdir(exist_ok=True)
            folder.last_checkpoint.touch()
            folder.model.mkdir(exist_ok=True)
            (folder.model / "model.yaml").write_text((folder.path / "begun").read_text())
        return work

    for name in ORDER:
        monkeypatch.setattr(type(STAGES[name]), "train", lambda self, job, context: train(self)(job, context))
        monkeypatch.setattr(type(STAGES[name]), "report", lambda self, job, context: None)
    monkeypatch.setattr(TrainingJob, "_check", lambda self: None)
    monkeypatch.setattr(ShardData, "prepare", lambda self, *_: Path(self.root))
    return played


def all_of(*deeds: Deed) -> Said:
    return dict(zip(ORDER, deeds))


def both(said_and_done: tuple[Said, Said], *deeds: Deed) -> None:
    said, done = said_and_done
    stop = ORDER[len(done) - 1] if done else None
    assert said == all_of(*deeds), "said"
    assert all(done[stage] == (G if deed is Deed.TRAIN_ON else deed) for stage, deed in said.items()
               if stage in done), (stop, "done", done)


CHANGES: dict[str, tuple[dict[str, Any], tuple[Deed, ...]]] = {
    "the VAE's rate": ({"fit__vae__learning_rate": 0.5}, (A, K, A, A)),
    "the condition's rate": ({"fit__condition__learning_rate": 0.5}, (K, A, A, A)),
    "the diffusion's steps": ({"fit__diffusion__fit__steps": 40}, (K, K, A, A)),
    "the sampler": ({"sampler__steps": 7}, (K, K, A, A)),
    "the figures' clips": ({"figures__clips": 3}, (K, K, K, A)),
    "the conditioner's dropout": ({"dropout": 0.3}, (K, A, A, A)),
    "the clip's rate": ({"seed": 0, "clip__duration_s": 2.56}, (A, A, A, A)),
    "nothing": ({}, (K, K, K, K)),
    "numbers of processes": ({"fit__vae__workers": 3}, (K, K, K, K)),
    "the folder of the videos": ({"data__videos": "videos"}, (K, K, K, K)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_overwrite_makes_again_what_changed_and_what_was_built_on_it(history, change):
    changes, expected = CHANGES[change]
    both(history.run(), M, M, M, M)
    history.change(**changes)
    if A in expected:
        with pytest.raises(InputError, match="made with another config"):
            history.run()
    both(history.run(overwrite=True), *expected)
    both(history.run(), K, K, K, K)
    assert not list(history.folder.glob("**/.replaced-*"))


@pytest.mark.slow
@pytest.mark.parametrize("ends", ORDER)
def test_a_kill_while_a_stage_is_made_again_loses_nothing(history, ends):
    both(history.run(), M, M, M, M)
    history.change(fit__vae__learning_rate=0.5)
    said, _ = history.run(overwrite=True, ends=ends)
    assert said == all_of(A, K, A, A)
    if ends == "condition":
        return  # it was not trained, so that no kill came
    gone_on = {"vae": (G, K, A, A), "diffusion": (K, K, G, A), "figures": (K, K, K, G)}[ends]
    both(history.run(overwrite=True), *gone_on)
    both(history.run(), K, K, K, K)


def test_a_stage_that_was_put_aside_is_taken_back(history):
    history.run()
    first = (history.folder / "runs/vta_sam-0/vae/model/model.yaml").read_text()
    before = history.settings["fit"]["vae"]["learning_rate"]
    history.change(fit__vae__learning_rate=0.5)
    history.run(overwrite=True, ends="vae")
    history.change(fit__vae__learning_rate=before)
    with pytest.raises(InputError, match="take back the finished one that was put aside"):
        history.run()
    both(history.run(overwrite=True), T, K, K, K)
    assert (history.folder / "runs/vta_sam-0/vae/model/model.yaml").read_text() == first
    both(history.run(), K, K, K, K)


def test_what_a_kill_left_of_a_replaced_stage_is_never_taken_back(history):
    """finish() has marked the new one as done, and was killed while it removed the old one."""
    history.run()
    before = history.settings["fit"]["vae"]["learning_rate"]
    run = history.folder / "runs/vta_sam-0"
    shutil.copytree(run / "vae", run / ".replaced-vae")
    shutil.rmtree(run / ".replaced-vae" / "model")
    history.change(fit__vae__learning_rate=0.5)
    shutil.copytree(run / ".replaced-vae", history.folder / "half")
    history.run(overwrite=True)
    shutil.copytree(history.folder / "half", run / ".replaced-vae")
    history.change(fit__vae__learning_rate=before)
    said, done = history.run(overwrite=True)
    assert said == all_of(A, K, A, A) and (run / "vae/model/model.yaml").is_file()
    assert not (run / ".replaced-vae").exists()


@pytest.mark.parametrize("ends", ORDER)
def test_a_killed_run_goes_on_where_it_was(history, ends):
    history.run(ends=ends)
    place = ORDER.index(ends)
    both(history.run(overwrite=True), *[K] * place, G, *[M] * (3 - place))


def test_what_was_begun_with_other_settings_is_thrown_away_by_name(history):
    history.run(ends="diffusion")
    history.change(fit__diffusion__learning_rate=0.5)
    with pytest.raises(InputError, match="overwrite=true to throw away what was begun"):
        history.run()
    both(history.run(overwrite=True), K, K, M, M)


def test_data_are_known_by_their_content(history):
    history.run()
    moved = history.folder / "moved"
    history.dataset.rename(moved)
    history.change(data__root=str(moved), data__latents=str(history.folder / "latents"))
    both(history.run(), K, K, K, K)
    for path in moved.glob("dataset.json"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"manifest_hash": "another"}))
    with pytest.raises(InputError, match=r"dataset: '?\w{12}"):
        history.run()
    both(history.run(overwrite=True), A, A, A, A)


def test_a_given_vae_is_known_by_its_content(history):
    history.run()
    shutil.copytree(history.folder / "runs/vta_sam-0/vae/model", history.folder / "one")
    shutil.copytree(history.folder / "one", history.folder / "copy")
    history.change(stages=["condition", "diffusion", "figures"], name="given", vae=str(history.folder / "one"))
    job = history.job()
    assert {item.name: item.deed for item in job._prepare_plan().items} == dict.fromkeys(ORDER[1:], M)
    job.run()
    history.change(vae=str(history.folder / "copy"))
    assert {item.deed for item in history.job()._prepare_plan().items} == {K}
    (history.folder / "copy" / "model.yaml").write_text("another")
    with pytest.raises(InputError, match="vae: "):
        history.job()._prepare_plan()


def test_a_run_from_before_identities_were_kept_is_known_by_its_paths(history):
    history.run()
    for path in history.folder.glob("runs/*/*/inputs.json"):
        path.unlink()
    both(history.run(), K, K, K, K)
    for path in history.folder.glob("runs/*/*/inputs.json"):
        path.unlink()
    history.dataset.rename(history.folder / "moved")
    history.change(data__root=str(history.folder / "moved"))
    with pytest.raises(InputError, match="moved"):
        history.run()


def test_all_stages_that_differ_are_said_at_once(history):
    history.run()
    history.change(fit__vae__learning_rate=0.5, figures__clips=3)
    with pytest.raises(InputError) as refused:
        history.run()
    assert str(refused.value).count("made with another config") == 3  # the diffusion was built on the VAE


def test_a_longer_stage_that_would_have_had_other_rates_is_refused_with_the_way_to_train_on(history):
    history.run()
    history.change(fit__diffusion__fit__steps=40)
    with pytest.raises(InputError, match=r"add \+fit\.diffusion\.schedule_steps=12; or .*init=.*/diffusion/model"):
        history.run()
    (history.folder / "runs/vta_sam-0/diffusion/checkpoints/last.ckpt").unlink()
    history.change(fit__diffusion__schedule_steps=12)
    with pytest.raises(InputError, match=r"takes its last state, and .*diffusion/checkpoints/last\.ckpt is gone"):
        history.run()


@pytest.mark.parametrize("ends", [None, "diffusion", "figures"])
def test_a_finished_stage_goes_on_to_more_steps_and_figures_are_made_again(history, ends):
    history.run()
    history.change(fit__diffusion__schedule_steps=12)  # as it was, in words
    both(history.run(), K, K, K, K)
    history.change(fit__diffusion__fit__steps=40)
    said, done = history.run(ends=ends)
    assert said == all_of(K, K, Deed.TRAIN_ON, A) and done["diffusion"] == G  # from where it ended
    if ends:
        both(history.run(), *{"diffusion": (K, K, G, A), "figures": (K, K, K, G)}[ends])
    both(history.run(), K, K, K, K)
    history.change(fit__diffusion__fit__steps=50)
    assert history.run()[0] == all_of(K, K, Deed.TRAIN_ON, A)


def test_what_an_early_run_measured_is_measured_again_when_the_model_is_trained_further(history):
    history.run()
    for path in history.folder.glob("runs/*/*/inputs.json"):
        path.unlink()
    history.change(fit__diffusion__schedule_steps=12, fit__diffusion__fit__steps=40)
    assert history.run()[0] == all_of(K, K, Deed.TRAIN_ON, A)
    both(history.run(), K, K, K, K)


def test_training_is_not_thrown_away_because_an_earlier_stage_is_longer_now(history):
    history.run()
    history.change(fit__vae__schedule_steps=12, fit__vae__fit__steps=40)
    with pytest.raises(InputError, match="vae: "):
        history.run()
    both(history.run(overwrite=True), Deed.TRAIN_ON, K, A, A)


@pytest.mark.parametrize("changes, sentence", [
    ({"fit__vae__streams": 4, "fit__vae__workers": 3}, "fit.vae: streams=4 is not a multiple of 1 processes × 3"),
    ({"fit__vae__batch_size": 0}, "fit.vae: 0 clips a step"),
])
def test_shares_are_compared_before_any_worker_starts(history, monkeypatch, changes, sentence):
    monkeypatch.setattr(TrainingJob, "_check", TrainingJob._check_settings)
    history.change(**changes)
    with pytest.raises(InputError, match=sentence):
        history.run()
    assert not history.files()


def expected(history: History, **more: Any) -> str:
    return dict(history.job(plan=True, **more)._prepare_plan().facts)["expected"]


def test_a_plan_promises_no_time_that_another_machine_took(history, monkeypatch):
    unknown = "told once the first steps are timed"
    assert expected(history) == unknown  # though conf/size has seconds of every stage
    history.run()
    assert expected(history) == "nothing is left to be made"
    run = history.folder / "runs" / "vta_sam-0"
    told = json.loads((run / "seconds_parts.json").read_text())
    for stage, whole_s in zip(ORDER, (100.0, 60.0, 500.0, 40.0)):
        assert told[stage]["whole_s"] is None  # a played stage counts nothing
        told[stage]["whole_s"] = whole_s
    (run / "seconds_parts.json").write_text(json.dumps(told))
    assert expected(history, name="again") == "about 12 min, by what was seen on this machine"
    history.change(fit__diffusion__fit__steps=40, name="longer")  # of which no stage here tells but by shares
    assert expected(history) == "about 5 min, by what was seen on this machine"  # 200 s · (1 + 10 / 25)
    monkeypatch.setattr("vta_sam.training.job.processor_name", lambda: "another one")
    assert expected(history) == unknown
    monkeypatch.undo()
    (run / "seconds_parts.json").write_text("{")
    assert expected(history) == unknown


def test_time_until_a_request_to_stop_counts_and_that_of_a_failure_does_not(history, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def ends(error: BaseException):
        now[0] += 30.0
        raise error

    job, run = history.job(), history.folder / "runs" / "vta_sam-0"
    for error in (Preempted(requeue=False), InputError("a step is not finite")):
        with pytest.raises(type(error)):
            job.timed("vae", lambda: ends(error))
    assert json.loads((run / "seconds.json").read_text())["vae"] == 30
    with pytest.raises(KeyboardInterrupt):
        job.timed("vae", lambda: ends(KeyboardInterrupt()))
    told = json.loads((run / "seconds_parts.json").read_text())["vae"]
    assert told["parts"] == {"start-up": 60} and told["expected_s"] == 5
    history.run()
    assert json.loads((run / "seconds.json").read_text())["vae"] == 0, "a stage that is made counts from its start"
