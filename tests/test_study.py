"""Studies: every row is a valid job of its own folder, what is done is kept, and the page says what the records say."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from programs import call
from test_configs import composed

from vta_sam.checkpoints.model_folder import ModelRecipe
from vta_sam.evaluation.evaluate import Request
from vta_sam.runtime.errors import InputError
from vta_sam.runtime.files import claimed
from vta_sam.runtime.work_plan import Deed
from vta_sam.study import record as recording
from vta_sam.study import sweep as running
from vta_sam.study.record import KEYS, PER_CLIP, Record, Study, read_record, study_of
from vta_sam.study.results_page import NOT_RUN, between, load_records, load_studies, results_page, score
from vta_sam.training import codec_stages
from vta_sam.training import job as jobs
from vta_sam.training.job import TrainingJob

ROOT = Path(__file__).resolve().parents[1]
STUDIES = load_studies()


@cache
def composed_once(*overrides: str) -> TrainingJob:
    return TrainingJob.of(composed(*overrides))


def job_of(overrides: list[str], monkeypatch) -> TrainingJob:
    """The job that a command line describes, checked as it is before anything runs."""
    monkeypatch.setattr(jobs, "read_recipe", lambda folder: None)  # folders that other rows will have written
    job = composed_once(*overrides)
    vae = ModelRecipe(clip=job.spec.settings(), codec=job.networks["codec"])
    monkeypatch.setattr(codec_stages, "read_recipe", lambda folder: vae)
    if job.model is None:
        job._check_settings()
    return job


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_every_row_is_a_valid_job_in_a_folder_of_its_own(study, monkeypatch):
    folders = {job_of(study.shared_command()[2:], monkeypatch).folder}
    assert folders == {study.shared_folder}
    every = [(row, seed) for row, seed in study.order() if seed == study.seeds[0] or row == study.rows[0]]
    assert len({study.folder(row, seed) for row, seed in study.order()}) == len(study.order())
    for row, seed in every:  # other rows of other seeds differ from these in the number alone
        job = job_of(study.command(row, seed)[2:], monkeypatch)
        assert job.folder == study.folder(row, seed) not in folders
        assert job.exp == row.exp and tuple(job.stages) == row.stages
        folders.add(job.folder)
        if "diffusion" in row.stages:
            assert job.given["vae"] == str(study.shared_folder / "vae" / "model")
            common = job.fit["diffusion"]["fit"]["steps"]
            assert f"fit.diffusion.fit.steps={common}" in study.common, "equal steps"
        if job.model:
            assert Path(job.model).parts[-2:] == ("diffusion", "model")
            assert "{" not in job.model


def test_the_comparison_differs_in_what_the_unet_listens_to_alone(monkeypatch):
    study = STUDIES[0]
    told = []
    for row in study.rows:
        job = job_of(study.command(row, 0)[2:], monkeypatch)
        told.append((job.data, job.clip, job.networks, job.objective, job.dropout, job.fit["diffusion"], job.sampler,
                     job.vocoder, job.given["vae"]))
    assert all(settings == told[0] for settings in told)


def test_every_seed_takes_the_same_vae(monkeypatch):
    both, second = a_study(), a_study(seeds=[1])
    assert both.shared_folder == second.shared_folder and both.shared_command() == second.shared_command()
    assert second.command(second.rows[0], 1)[-1] == f"vae={both.shared_folder}/vae/model"


def test_seeds_come_one_after_the_other_and_only_picks():
    study = STUDIES[0]
    order = study.order()
    assert [seed for _, seed in order] == sorted(seed for _, seed in order)
    assert {row.table for row, _ in study.order(["vta_sam"])} == {"unpretrained", "pretrained"}
    assert len(study.order(["unpretrained/tango"])) == len(study.seeds)
    with pytest.raises(InputError, match="only= names 'tanga'"):
        study.order(["tanga"])


def a_study(**more) -> Study:
    return study_of({"name": "s", "title": "A study", "runs": "runs/s", "seeds": [0, 1], "common": ["size=smoke"],
                     "shared": {"exp": "vta_sam", "seed": 0, "stages": ["vae"]},
                     "tables": {"t": {"title": "Rows", "defaults": {"stages": ["diffusion"]},
                                      "rows": {"one": {"exp": "tango", "sees": "words"},
                                               "two": {"exp": "vta_ldm", "aligned": True}}}},
                     "differences": [{"table": "t", "first": "two", "second": "one", "question": "why"}], **more})


def a_record(row: str, seed: int, shift: float, **more) -> Record:
    values = {key: {f"c{i}": None if key == "sound_class" and i % 2 else 0.5 + shift + 0.01 * (i % 5)
                    for i in range(20)} for key in PER_CLIP}
    interval = {"mean": 0.52 + shift, "low": 0.5 + shift, "high": 0.55 + shift, "n": 20, "undefined": 0}
    figures = {key: {"score": interval, "control": {**interval, "mean": 0.1, "low": 0.05, "high": 0.15}}
               for key in KEYS}
    return Record("s", "t", row, seed, figures, values, {"unet": 10_000_000, "conditioner": 500_000},
                  {"diffusion": 300.0, "figures": 80.0}, 0.25, **more)


def test_a_study_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    trained: list[str] = []

    def train(command, what):
        trained.append(what)
        if what == "t/one, seed 1" and trained.count(what) == 1:
            raise KeyboardInterrupt

    def measure(row, seed, folder, told, cache, ceiling, beside):
        return a_record(row.name, seed, 0.0, told=told)

    monkeypatch.setattr(running, "_train", train)
    monkeypatch.setattr(running, "measure_row", measure)
    study, said = a_study(runs=str(tmp_path / "runs")), []
    with pytest.raises(KeyboardInterrupt):
        running.run_study(study, tmp_path / "records", [], None, said.append)
    assert len(list((tmp_path / "records").glob("*.json"))) == 2
    assert running.run_study(study, tmp_path / "records", [], None, said.append) == 2
    assert trained[-2:] == ["t/one, seed 1", "t/two, seed 1"]
    before = len(trained)
    assert running.run_study(study, tmp_path / "records", [], None, said.append) == 0 and len(trained) == before


def test_a_row_that_another_process_is_at_is_left_to_it(tmp_path, monkeypatch):
    trained: list[str] = []
    monkeypatch.setattr(running, "_train", lambda command, what: trained.append(what))
    monkeypatch.setattr(running, "measure_row", lambda row, seed, *_, **__: a_record(row.name, seed, 0.0))
    study, said, records = a_study(runs=str(tmp_path / "runs"), seeds=[0]), [], tmp_path / "records"
    first = study.order()[0][0].record_name(0)
    page = tmp_path / "records.md"
    assert running.plan_study(study, records, [], page).counts() == {Deed.MAKE: 4}
    with claimed(records / first):
        assert running.run_study(study, records, [], None, said.append) == 1
    assert "t/one, seed 0: another process is at it" in said and trained[1:] == ["t/two, seed 0"]
    assert running.plan_study(study, records, [], page).counts() == {Deed.MAKE: 3, Deed.KEEP: 1}
    assert running.run_study(study, records, [], None, said.append) == 1 and trained[-1] == "t/one, seed 0"
    (study.shared_folder / "vae").mkdir(parents=True)
    (study.shared_folder / "vae" / "done").touch()
    assert running.plan_study(study, records, [], page).counts() == {Deed.MAKE: 1, Deed.KEEP: 2}
    assert sorted(path.name for path in records.iterdir()) == sorted(row.record_name(0) for row, _ in study.order())


def side_by_side(tmp_path, monkeypatch, program, **more) -> tuple[Study, list[str]]:
    """A study two rows at a time, whose program writes a row's record, says how it was called, or fails."""
    (tmp_path / "program.py").write_text(program)
    monkeypatch.setattr(running, "_train", lambda command, what: None)
    study, said = a_study(runs=str(tmp_path / "runs"), **more), []
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path)]
    assert running.run_side_by_side(study, tmp_path / "records", [], 2, command, said.append) == len(study.order())
    return study, said


def test_rows_side_by_side_are_told_apart_and_share_the_cores(tmp_path, monkeypatch):
    program = """
import os, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
with open(folder / "calls", "a") as file:
    file.write(f"{time.time()} {os.environ['OMP_NUM_THREADS']} {' '.join(sys.argv[2:])}\\n")
time.sleep(0.5)
print("what the row says")
"""
    monkeypatch.setattr(running, "usable_cores", lambda: 8)
    study, said = side_by_side(tmp_path, monkeypatch, program)
    calls = [line.split(" ", 2) for line in (tmp_path / "calls").read_text().splitlines()]
    assert sorted(told for _, _, told in calls) == sorted(
        f"only=[t/{row}] seeds=[{seed}] jobs=1 beside=1" for row in ("one", "two") for seed in (0, 1))
    assert {threads for _, threads, _ in calls} == {"4"}
    assert float(calls[1][0]) - float(calls[0][0]) < 0.5, "two at a time"
    assert float(calls[2][0]) - float(calls[0][0]) >= 0.5, "not three"
    assert "what the row says" in (tmp_path / "runs" / "logs" / "t-one-0.log").read_text()


def test_a_row_waits_for_the_row_whose_model_it_samples(tmp_path, monkeypatch):
    program = """
import sys, time
from pathlib import Path
folder = Path(sys.argv[1])
with open(folder / "calls", "a") as file:
    file.write(f"begin {sys.argv[2]}\\n")
time.sleep(0.3)
with open(folder / "calls", "a") as file:
    file.write(f"end {sys.argv[2]}\\n")
"""
    rows = {"one": {"exp": "tango"}, "two": {"exp": "tango", "stages": ["figures"], "overrides": ["model={t/one}"]}}
    tables = {"t": {"title": "Rows", "defaults": {"stages": ["diffusion"]}, "rows": rows}}
    side_by_side(tmp_path, monkeypatch, program, tables=tables, seeds=[0], differences=[])
    assert (tmp_path / "calls").read_text().split("\n")[:-1] == [
        "begin only=[t/one]", "end only=[t/one]", "begin only=[t/two]", "end only=[t/two]"]


def test_a_row_that_fails_beside_another_names_its_log(tmp_path, monkeypatch):
    program = "import sys; print('why'); sys.exit(3 if 'only=[t/one]' in sys.argv else 0)"
    with pytest.raises(InputError, match=r"t/one, seed 0 ended with status 3; .*t-one-0.log says why"):
        side_by_side(tmp_path, monkeypatch, program)
    assert (tmp_path / "runs" / "logs" / "t-one-0.log").read_text() == "why\n"


def test_a_model_whose_run_was_elsewhere_is_trained_before_what_is_sampled_from_it(tmp_path, monkeypatch):
    trained: list[str] = []
    monkeypatch.setattr(running, "_train", lambda command, what: trained.append(what))
    monkeypatch.setattr(running, "measure_row", lambda row, seed, *rest, **more: a_record(row.name, seed, 0.0))
    rows = {"one": {"exp": "tango"}, "two": {"exp": "tango", "stages": ["figures"], "overrides": ["model={t/one}"]}}
    study = a_study(runs=str(tmp_path / "runs"), seeds=[0], differences=[],
                    tables={"t": {"title": "Rows", "defaults": {"stages": ["diffusion"]}, "rows": rows}})
    a_record("one", 0, 0.0).write(tmp_path / "records" / "s-t-one-0.json")
    assert running.run_study(study, tmp_path / "records", [], None, lambda line: None) == 1
    assert trained == ["the VAE that all rows share", "t/one, seed 0", "t/two, seed 0"]


def test_times_of_rows_that_shared_the_machine_are_not_shown(tmp_path):
    study = a_study()
    beside = a_record("one", 0, 0.0, made_by={"beside": 1})
    page = results_page([study], {("s", "t", "one"): [beside]})
    assert "| 10.50 M | not measured | not measured |" in page
    page = results_page([study], {("s", "t", "one"): [beside, a_record("one", 1, 0.0)]})
    assert "| 10.50 M | 5.0 | 0.25 |" in page


def test_a_row_that_fails_stops_the_study_with_a_sentence(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda command: SimpleNamespace(returncode=2))
    with pytest.raises(InputError, match="t/one, seed 0: training ended with status 2"):
        running._train(["train"], "t/one, seed 0")


def test_the_page_says_what_the_records_say(tmp_path):
    study = a_study()
    empty = results_page([study], {})
    assert empty.count(NOT_RUN) >= 2 * 4 and "0.5" not in empty.split("## A study")[1]
    for seed in (0, 1):
        a_record("one", seed, 0.0).write(tmp_path / f"one-{seed}.json")
    a_record("two", 0, 0.2).write(tmp_path / "two-0.json")
    page = results_page([study], load_records(tmp_path))
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert any(line.startswith("| one | 0, 1 | 0.520 [") for line in table)
    assert any(line.startswith("| two | 0 | 0.720 [0.700, 0.750]") for line in table)
    assert "| 0 | +0.200 [+0.200, +0.200] |" in page and "**" not in page, "bold from one seed"
    assert "10.50 M | 5.0 | 0.25" in page and "FAD (embedded tagger) ↓ † |" in page
    assert "0.520 [0.251, 0.778]" in next(line for line in table if line.startswith("| one |")), "a share: Wilson's"
    assert any("control" in line and "0.100 [0.050, 0.150]" in line for line in table)


def test_seeds_are_meaned_per_clip_and_compared_where_both_have_them():
    one = [a_record("one", 0, 0.0), a_record("one", 1, 0.4)]
    two = [a_record("two", 1, 0.5)]
    assert score(one, "envelope_correlation").mean == pytest.approx(0.52 + 0.2)
    assert score(one, "sound_class").n == 10
    assert between(one, two, "onset_f1").mean == pytest.approx(-0.1)  # seed 1 alone
    with pytest.raises(InputError, match="without a seed in common"):
        between([a_record("one", 0, 0.0)], two, "onset_f1")


def test_intervals_take_in_seeds_and_shares_are_no_certainty():
    """Two runs that differ, all clips alike: drawn over clips alone the interval had no width."""
    records = {("s", "t", row): [a_record(row, seed, shift + 0.1 * seed * slope) for seed in (0, 1)]
               for row, shift, slope in (("one", -0.2, 1), ("two", 0.0, 3))}
    one, two = records.values()
    found = score(one, "onset_f1")
    assert found.seeds == 2 and found.low < 0.33 < 0.41 < found.high and found.mean == pytest.approx(0.37)
    difference = between(two, one, "onset_f1")
    assert (difference.low, difference.high) == pytest.approx((0.2, 0.4)) and difference.beyond_zero
    assert "| 0, 1 | **+0.300 [+0.200, +0.400]** |" in results_page([a_study()], records)
    for record in one + two:
        record.values["sound_class"] = {f"c{i}": 1.0 if i < 59 else None for i in range(128)}
    for group in (one, one[:1]):
        sure = score(group, "sound_class")
        assert (sure.mean, sure.n, sure.undefined) == (1, 59, 69)
        assert (sure.low, sure.high) == pytest.approx((0.9389, 1), abs=1e-4)
    alike = between(one, two, "sound_class")
    assert alike.mean == 0 and (alike.low, alike.high) == pytest.approx((-0.032, 0.032), abs=1e-3)


def test_a_damaged_record_is_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"format": 1, "study": "s"}))
    with pytest.raises(InputError, match="is no record of a study's row"):
        read_record(path)


def test_the_committed_page_is_what_the_committed_records_give():
    page = ROOT / "docs" / "results.md"
    assert page.read_text(encoding="utf-8") == results_page(STUDIES, load_records(ROOT / "docs" / "results"))


# as small as a study can be
FEW = ("embedded_clips={train: 8, val: 2, test: 4}", "validation.clips=2",
       "figures={clips: 4, batch_size: 4, samples: 0, expected_s: 0}", "++vocoder.iterations=4",
       *(f"fit.{stage}.fit.{key}=4" for stage in ("vae", "contrastive", "classifier", "diffusion")
         for key in ("steps", "validate_every")))


@pytest.mark.slow
def test_a_study_from_scenes_to_its_page(tmp_path, monkeypatch):
    """Two rows at the smallest size by the command that a user types; then the same again, which finds them done.

    The training jobs that it starts run in this process, which has their imports, and so does what is measured.
    """
    monkeypatch.setattr(recording, "Request", lambda *given, **named: Request(*given, **{**named, "workers": 0}))
    trained = []

    def here(command: list[str]) -> subprocess.CompletedProcess[str]:
        trained.append(command)
        study_own = copy.deepcopy(Singleton.get_state())  # Hydra's, which the job replaces
        GlobalHydra.instance().clear()
        try:
            return call(Path(command[1]).resolve().relative_to(ROOT), *command[2:], cwd=ROOT)
        finally:
            Singleton.set_state(study_own)

    monkeypatch.setattr("vta_sam.study.sweep.subprocess", SimpleNamespace(run=here))

    def study(*more: str) -> str:
        common = ("size=smoke", f"data.root={tmp_path}/world", *FEW)
        told = ("study=smoke", f"study.runs={tmp_path}/runs", f"study.common={json.dumps(common)}",
                f"records={tmp_path}/results", f"cache={tmp_path}/cache", *more)
        done = call("experiments/study.py", *told, cwd=ROOT)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    study("only=[tango]")
    assert len(trained) == 2 and all(command[0] == sys.executable for command in trained), "the VAE, and the row"
    first = tmp_path / "results" / "smoke-unpretrained-tango-0.json"
    made = first.stat().st_mtime_ns
    study()
    assert first.stat().st_mtime_ns == made
    records = load_records(tmp_path / "results")
    other = records["smoke", "unpretrained", "diff_foley"][0]
    assert set(other.controls) == {"another_clip", "untrained"} and other.sampling_s
    assert {"contrastive", "classifier", "diffusion"} <= set(other.seconds)
    assert set(other.values["envelope_correlation"]) == {f"test-{i:06d}" for i in range(4)}
    assert "ceiling" in records["smoke", "unpretrained", "tango"][0].figures["envelope_correlation"]
    assert "every row has its record" in study()
