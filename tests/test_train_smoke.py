"""The whole job at its smallest size, by the commands a user types: train, kill, resume, generate, measure."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import call
from safetensors.torch import load_file
from tiny_data import write_dataset

from vta_sam.media.audio import read_wav
from vta_sam.study.overfit import Matrix

ROOT = Path(__file__).resolve().parents[1]


def train(folder: Path, *more: str) -> list[str]:
    return ["experiments/train.py", "+exp=vta_sam", "size=smoke", f"runs={folder}/runs", f"data.root={folder}/world",
            "embedded_clips={train: 8, val: 2, test: 4}", "validation.clips=2", "figures.clips=4",
            "++vocoder.iterations=4", *more]


def finish(command: list[str]) -> str:
    done = call(*command, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A smoke run that was killed in stage 3 and started again ⇒ the folder of runs and world."""
    folder = tmp_path_factory.mktemp("smoke")
    run = folder / "runs" / "vta_sam-0"
    process = subprocess.Popen([sys.executable, *train(folder)], cwd=ROOT, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 500
    while not (run / "diffusion" / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "stage 3 never wrote a checkpoint"
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (run / "figures.json").exists()
    said = finish(train(folder))
    assert "vae: done before" in said and "condition: done before" in said
    return folder


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_figures(finished):
    run = finished / "runs" / "vta_sam-0"
    figures = json.loads((run / "figures.json").read_text())
    assert figures["clips"] == 4
    for name in ("envelope_correlation", "onset_f1"):
        assert set(figures["timing"][name]) == {"score", "control", "score_minus_control"}
        assert figures["ceiling"][name]["score"]["n"] == 4
    assert 0 < figures["vae"]["mel_error_share"]
    assert figures["parameters"]["denoiser"] > 100_000
    videos = sorted((run / "figures" / "samples").glob("*.mp4"))
    assert len(videos) == 2 and all(v.with_suffix(".png").exists() for v in videos)
    assert (run / "figures" / "attention.png").exists() and (run / "figures" / "curve.png").exists()


@pytest.mark.slow
def test_the_same_command_again_trains_nothing(finished):
    checkpoint = finished / "runs" / "vta_sam-0" / "diffusion" / "checkpoints" / "last.ckpt"
    before = checkpoint.stat().st_mtime_ns
    said = finish(train(finished))
    assert "diffusion: done before" in said and "envelope correlation" in said
    assert checkpoint.stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_changed_config_stops_with_the_difference(finished):
    done = call(*train(finished, "fit.vae.learning_rate=0.5"), cwd=ROOT)
    assert done.returncode == 2
    assert "learning_rate: 0.5" in done.stderr and "overwrite=true" in done.stderr


@pytest.mark.slow
def test_what_was_trained_generates_and_measures(finished):
    model = finished / "runs" / "vta_sam-0" / "diffusion" / "model"
    video = next((finished / "world" / "videos" / "test").glob("*.mp4"))
    finish(["experiments/generate.py", f"model={model}", f"video={video}", f"out={finished}/out",
            "wav=true", "steps=2"])
    sound, rate_hz = read_wav(finished / "out" / f"{video.stem}.wav")
    assert rate_hz == 16_000 and abs(len(sound) / rate_hz - 5.12) < 0.05
    finish(train(finished, "name=measured", "stages=[figures]", f"model={model}"))
    again = json.loads((finished / "runs" / "vta_sam-0-measured" / "figures.json").read_text())
    first = json.loads((finished / "runs" / "vta_sam-0" / "figures.json").read_text())
    assert again["timing"] == first["timing"]


@pytest.mark.slow
def test_a_finished_run_is_trained_further_as_if_it_had_been_longer(finished):
    """The smoke job's 12 steps and 12 more, beside 24 at once."""
    run, more = finished / "runs" / "vta_sam-0", ("fit.diffusion.fit.steps=24", "+fit.diffusion.schedule_steps=12")
    before = (run / "figures.json").read_text()
    said = finish(train(finished, *more, "plan=true"))
    assert "diffusion  train further:" in said and "steps 12 → 24" in said and "figures    make again:" in said
    finish(train(finished, *more))
    assert (run / "figures.json").read_text() != before
    finish(train(finished, *more, "name=long", "stages=[diffusion]", f"vae={run}/vae/model",
                 f"condition={run}/condition/model"))
    longer, at_once = (folder / "diffusion" / "model" for folder in (run, run.with_name("vta_sam-0-long")))
    for part in ("denoiser", "conditioner"):
        left, right = (load_file(folder / f"{part}.safetensors") for folder in (longer, at_once))
        assert left and all(torch.equal(left[name], right[name]) for name in right)


@pytest.mark.slow
def test_stages_of_size_base_train_here_and_go_on_as_if_they_had_not_stopped(tmp_path):
    """The published VAE and condition encoder, on clips of 1.28 s. The UNet's stage takes 14 GB: it is not tried."""
    recipes = {"grounder": {"_target_": "tiny_grounder"}, "encoder": {"_target_": "tiny_encoder"}}
    info = write_dataset(tmp_path / "shards", {"train": 4, "val": 1, "test": 1}, fps=8, duration_s=1.28)
    replace(info, recipes=recipes).write(tmp_path / "shards")

    def train_base(name: str, steps: int) -> Path:
        numbers = [f"++fit.{stage}.{key}" for stage in ("vae", "condition") for key in (
            "batch_size=1", "workers=0", "schedule_steps=3",
            f"fit={{steps: {steps}, validate_every: 1, checkpoint_every: 1, ema_decay: 0.5, ema_start: 0, "
            "precision: fp32, accelerator: cpu}")]
        finish(["experiments/train.py", "+exp=vta_sam", "size=base", "data=shards", f"data.root={tmp_path}/shards",
                "stages=[vae,condition]", "clip.duration_s=1.28", "threads=1", "vocoder=griffin_lim",
                f"runs={tmp_path}/runs", f"name={name}", *numbers])
        return tmp_path / "runs" / f"vta_sam-0-{name}"

    at_once, stopped = train_base("whole", 3), train_base("stopped", 2)
    assert train_base("stopped", 3) == stopped
    for part in ("vae/model/codec", "condition/model/condition_encoder"):
        left, right = (load_file(run / f"{part}.safetensors") for run in (stopped, at_once))
        assert left and all(torch.equal(left[name], right[name]) for name in right), part


def test_pairing_matrix_tells_the_right_pairing_from_chance():
    right = Matrix(["a", "b", "c", "d"], np.eye(4) * 0.8 + 0.1)
    assert right.p == pytest.approx(1 / 24) and right.diagonal == pytest.approx(0.9)
    assert right.others == pytest.approx(0.1)
    blind = Matrix(["a", "b", "c", "d"], np.full((4, 4), 0.3))
    assert blind.p == 1.0
