"""The line of progress of a training job, the time that it says is left, and what a stage's seconds went to."""

from __future__ import annotations

import io
import re
import time
from types import SimpleNamespace

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console
from tiny_data import CONDITIONER, stage_context, stage_folder, stage_settings, write_dataset

from vta_sam.dataset.shards.schema import read_dataset
from vta_sam.runtime.progress import JobProgress
from vta_sam.runtime.work_plan import PartTimes, StepPace
from vta_sam.training.callbacks import StepProgress
from vta_sam.training.job import STAGES as TABLE

STAGES = ("vae", "condition", "diffusion", "figures")
ELSEWHERE_S = {"data": 50.0, "vae": 100.0, "condition": 200.0, "diffusion": 400.0, "figures": 100.0}


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        for name in ("monotonic", "perf_counter"):
            monkeypatch.setattr(time, name, lambda: self.now)

    def passes(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    return Clock(monkeypatch)


def a_job(ahead=("data", *STAGES), elsewhere_s=ELSEWHERE_S, **more) -> tuple[JobProgress, io.StringIO]:
    said = io.StringIO()
    return JobProgress(Console(file=said, width=80), STAGES, ahead, elsewhere_s, **more), said


def train(job, clock, stage, step_s, steps=100, until=None, begun=0, validation_s=0.0):
    """Steps of a stage, with a validation after every twentieth ⇒ the phase, ended or not."""
    steps_pace = StepPace(steps, 20, 1000, clips=16)
    with job.phase("steps", steps, steps=steps_pace, begun=begun) as phase:
        for step in range(begun + 1, (until or steps) + 1):
            clock.passes(step_s)
            steps_pace.add(step_s, validation_s if step > begun + 1 and step % 20 == 1 else 0.0, 0.0)
            phase.update(step, "loss 0.2134")
            if step % 20 == 0:
                clock.passes(validation_s)
        if until:
            return phase.line()
    return phase.line()


def test_nothing_is_promised_before_anything_was_timed_here(clock):
    job, _ = a_job()
    assert job.outlook() == "told once the first steps are timed"
    with job.stage("vae"), job.phase("steps", 300, steps=StepPace(300, 50, 50, 16)) as phase:
        assert phase.line() == "vae 1/4 · step 0/300"
        phase.update(2)
        assert phase.line() == "vae 1/4 · step 2/300"


def test_time_left_is_by_this_machines_steps_and_by_the_shares_of_stages(clock):
    """Twice as slow as where the shares were measured."""
    job, _ = a_job(ahead=STAGES)
    with job.stage("vae"):
        assert train(job, clock, "vae", 2.0, until=50) == (
            "vae 1/4 · step 50/100 · 8.0 clips/s · loss 0.2134 · 2 min left, 25 min of the job")
    job.seen_s.clear()
    with job.stage("vae"):
        train(job, clock, "vae", 2.0)
    assert job.seen_s == {"vae": pytest.approx(200)}
    assert job.outlook() == "about 23 min, by what was seen on this machine"  # (200 + 400 + 100) · 2 s
    with job.stage("condition"):  # which is as fast here as there: all in all, 400 s in place of 300
        line = train(job, clock, "condition", 2.0, until=50)
    assert line.endswith("step 50/100 · 8.0 clips/s · loss 0.2134 · 2 min left, 13 min of the job")


def test_validations_count_once_they_were_seen(clock):
    job, _ = a_job(ahead=["vae"])
    with job.stage("vae"):
        assert train(job, clock, "vae", 1.0, until=10, validation_s=30).endswith("2 min left")
    with job.stage("vae"):
        line = train(job, clock, "vae", 1.0, until=41, validation_s=30)
    assert line.endswith("2 min left")  # 59 steps, and validations after the steps 60, 80 and 100: 149 s
    pace = StepPace(100, 20, 10, 16)
    for step in range(1, 42):
        pace.add(1.0, 30.0 * (step in (21, 41)), 2.0 if step % 10 == 1 and step > 1 else 0.0)
    assert pace.seconds(41) == pytest.approx(59 + 3 * 32 + 3 * 2)  # checkpoints of their own after 50, 70 and 90
    assert pace.seconds(0) == pytest.approx(100 + 5 * 32 + 5 * 2)


def test_a_pause_or_a_slow_first_step_does_not_count(clock):
    pace = StepPace(100, 100, 100, 16)
    for step_s in (60.0, 1.0, 1.0, 600.0, 1.0, 1.0):
        pace.add(step_s, 0.0, 0.0)
    assert pace.step_s == 1.0 and pace.seconds(6) == 94


def test_a_stage_without_a_figure_is_left_out_and_said(clock):
    job, _ = a_job(ahead=STAGES, elsewhere_s=ELSEWHERE_S | {"figures": 0.0})
    with job.stage("vae"):
        assert train(job, clock, "vae", 2.0, until=50).endswith("2 min left, 22 min of the job without figures")
    job.seen_s.clear()
    with job.stage("vae"):
        train(job, clock, "vae", 2.0)
    assert job.outlook().startswith("about 20 min, without figures, by")
    job, _ = a_job(ahead=["diffusion", "figures"], elsewhere_s={})
    with job.stage("diffusion"):
        assert train(job, clock, "diffusion", 400.0, until=50).endswith("5.6 h left, then figures")


def test_a_resumed_stage_counts_as_if_it_had_run_here_from_its_start(clock):
    job, _ = a_job(ahead=STAGES)
    with job.stage("vae"):
        train(job, clock, "vae", 2.0, begun=60)
    assert job.seen_s == {"vae": pytest.approx(200)}


def test_what_an_earlier_run_took_here_goes_before_shares(clock):
    job, _ = a_job(ahead=["diffusion", "figures"], seen_s={"vae": 200.0, "diffusion": 500.0})
    assert job.outlook() == "about 11 min, by what was seen on this machine"  # 500 + 100 · 700 / 500
    with job.stage("diffusion"), job.phase("steps", 100, steps=StepPace(100, 20, 20, 16)) as phase:
        clock.passes(200)
        assert phase.line().endswith("step 0/100 · 5 min left, 7 min of the job")
        clock.passes(400)  # more than the other run took: nobody knows
        assert phase.line().endswith("step 0/100")


def test_clips_are_counted_and_what_was_there_before_is_no_measure(clock):
    job, said = a_job()
    lines = []
    with job.stage("data"):
        for name, clip_s in (("render scenes", 1.0), ("extract features", 2.0)):
            with job.phase(name, 60, last=name != "render scenes") as phase:
                phase.update(0)
                for done in range(1, 61):
                    clock.passes(clip_s)
                    phase.update(done)
                    lines += [phase.line()] if done == 30 else []
    assert lines == [
        "data · render scenes 30/60 clips · 1.0 clips/s · 30 s left",
        "data · extract features 30/60 clips · 0.5 clips/s · 60 s left, 49 min of the job"]  # 180 s in place of 50
    assert job.seen_s == {"data": 180.0} and job.ahead == list(STAGES)
    lines = said.getvalue().splitlines()
    assert lines[0] == "data · render scenes 10/60 clips · 1.0 clips/s · 50 s left"
    assert lines[1] == "data · render scenes 60/60 clips · 1.0 clips/s · took 60 s" and len(lines) == 5
    again, said = a_job(ahead=STAGES, seen_s={"vae": 10.0})
    with again.stage("data"):
        with again.phase("render scenes", 60, last=False) as phase:
            assert phase.line() == "data · render scenes 0/60 clips", "they are there: their share is no time"
        with again.phase("extract features", 60) as phase:
            phase.update(60)
    assert again.seen_s == {"vae": 10.0} and said.getvalue() == ""


def test_a_log_gets_a_line_now_and_then(clock):
    job, said = a_job(ahead=STAGES)
    with job.stage("vae"):
        train(job, clock, "vae", 2.0)
    steps = [int(found) for found in re.findall(r"step (\d+)/100", said.getvalue())]
    assert steps == [5, 35, 65, 95, 100]  # after 10 s, then every 60 s, and at the end
    assert max(map(len, said.getvalue().splitlines())) > 80  # which a log doesn't fold
    quiet = JobProgress(Console(file=said, quiet=True))
    before = said.getvalue()
    with quiet.stage("vae"):
        train(quiet, clock, "vae", 2.0)
    assert said.getvalue() == before


@pytest.mark.parametrize(("width", "shown"), [
    (140, "diffusion 3/4 · step 50/100 · 8.0 clips/s · loss 0.2134 · 2 min left, 2 min of the job"),
    (80, "diffusion 3/4 · step 50/100 · loss 0.2134 · 2 min left, 2 min of the job"),
    (60, "diffusion 3/4 · step 50/100 · 2 min left, 2 min of the job"),
    (52, "diffusion 3/4 · step 50/100 · 2 min left, job 2 min"), (24, "diffusion 3/4 · step 50…"),
])
def test_a_terminal_gets_one_line_that_fits(clock, width, shown):
    said = io.StringIO()
    console = Console(file=said, force_terminal=True, width=width, color_system=None, _environ={"TERM": "xterm"})
    job = JobProgress(console, STAGES, ["diffusion", "figures"], ELSEWHERE_S | {"figures": 10.0})
    with job.stage("diffusion"):
        steps = StepPace(100, 1000, 1000, 16)
        with job.phase("steps", 100, steps=steps) as phase:
            for step in range(1, 51):
                clock.passes(2.0)
                steps.add(2.0, 0.0, 0.0)
                phase.update(step, "loss 0.2134")
            phase.bar.refresh()
            pictures = re.split(r"\r|\n", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said.getvalue()))
    assert max(map(cell_len, pictures)) <= width
    assert pictures[-1].strip("━╸╺ ") == shown
    assert ("━" in pictures[-1]) is (width >= 100)


def test_seconds_of_parts_sum_up_to_the_whole(clock):
    times = PartTimes()
    clock.passes(1)
    with times.part("latents"):
        clock.passes(2)
    clock.passes(4)
    with pytest.raises(KeyboardInterrupt), times.part("steps", last=True):
        clock.passes(8)
        times.begin("reading")
        clock.passes(16)
        times.end()
        times.begin("validation")
        clock.passes(32)
        raise KeyboardInterrupt  # nothing ends the validation
    clock.passes(64)
    found = times.seconds()
    assert found == {"start-up": 5, "latents": 2, "steps": 8, "reading": 16, "validation": 32, "finish": 64}
    assert sum(found.values()) == clock.now - times.began


def test_the_line_reads_every_tenth_loss():
    class Metrics(dict):
        def get(self, name):
            read.append(trainer.global_step)
            return torch.tensor(1.5)

    read: list[int] = []
    trainer = SimpleNamespace(is_global_zero=True, global_step=0, callback_metrics=Metrics(), sanity_checking=False)
    job, _ = a_job()
    progress = StepProgress(job, StepPace(30, 100, 100, 16))
    progress.on_train_start(trainer, None)
    for batch in range(60):  # two to a step
        trainer.global_step = (batch + 1) // 2
        progress.on_train_batch_end(trainer, None, None, None, batch)
        if trainer.global_step == 25:
            assert progress._phase.done == 25 and progress._phase.note == "loss 1.5000"
    notes = []
    for hook in (progress.on_validation_start, progress.on_validation_end):
        hook(trainer, None)
        notes.append(progress._phase.note)
    assert notes == ["validating", "loss 1.5000"]
    progress.on_train_end(trainer, None)
    assert read == [1, 10, 20, 30]


def test_a_fit_accounts_for_every_second(tmp_path):
    """In the parts that Lightning tells of; on the stage's line, which also a failing fit ends."""
    write_dataset(tmp_path / "shards")
    job, said = a_job(ahead=["condition"])
    context = stage_context(tmp_path / "shards", read_dataset(tmp_path / "shards"), of_job=job)
    with job.stage("condition") as times:
        TABLE["condition"].train_part(context, stage_folder(tmp_path / "condition"), stage_settings(8), CONDITIONER, {})
    found = times.seconds()
    assert set(found) == {"start-up", "steps", "reading", "validation", "checkpoints", "finish"}
    assert min(found.values()) > 0 and sum(found.values()) == pytest.approx(times._since - times.began)
    assert "condition 2/4 · step 8/8 · " in said.getvalue() and "took" in said.getvalue()
    assert 0 < job.seen_s["condition"] <= sum(found.values())
