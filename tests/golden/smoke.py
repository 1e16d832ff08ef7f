"""What the smoke job prints into its logs and figures: one process and two, and the other systems beside it."""

from __future__ import annotations

import csv
import hashlib
import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
from golden.played import Job, platform_line, play_beside
from safetensors.numpy import load_file

NAME = "smoke.txt"
# section ⇒ folder of its run
RUNS = {"vta_sam, 1 process": "vta_sam-0", "vta_sam, 2 processes": "vta_sam-0-two",
        "vta_sam_aligned": "vta_sam_aligned-0", "foleycrafter": "foleycrafter-0", "diff_foley": "diff_foley-0"}
# Weights are averaged over the last few steps, and rates are high, so that a dozen steps change what is validated and
# kept; the vocoder, of whose 32 iterations four are done, is recorded in full by sounds.txt.
_RATES = {"vae": 4e-3, "condition": 3e-3, "contrastive": 1e-3, "classifier": 1e-3, "onsets": 3e-3, "diffusion": 3e-3}
SHORT = ("size=smoke", "threads=1", "runs=runs", "data.root=world", "data.workers=1",
         "embedded_clips={train: 12, val: 4, test: 4}", "validation.clips=2",
         "figures={clips: 4, batch_size: 4, samples: 0, expected_s: 0}", "++vocoder.iterations=4",
         "fit.vae.fit.steps=20", "fit.vae.fit.validate_every=10",
         *(f"fit.{stage}.{key}" for stage, rate in _RATES.items()
           for key in (f"learning_rate={rate}", "fit.ema_decay=0.5", "fit.checkpoint_every=6")))
_VAE, _CONDITION = "vae=runs/vta_sam-0/vae/model", "condition=runs/vta_sam-0/condition/model"
# of figures.json: what differs from run to run and from machine to machine
_OF_A_RUN = ("seconds", "peak_memory_gb", "model", "code_version", "torch", "device")
_OF_ITS_READER = ("metrics",)  # units and directions, no figures; test_figures.py looks at them


def play_all(folder: Path) -> None:
    """Every run, in two processes that each take half of the systems, and then both of the job that two train."""
    def train(exp: str, *more: str, environ: dict[str, str] | None = None, after: str | None = None) -> Job:
        return Job("experiments/train.py", [f"+exp={exp}", *SHORT, *more], str(folder), environ or {}, after)

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    two = [train("vta_sam", "name=two", environ={
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)]
    # two train together at the end: the second would keep silent afterwards, as Lightning has it
    losses = ("fit.diffusion.fit.steps=10", "fit.diffusion.fit.validate_every=10", _VAE)
    play_beside([
        [train("vta_sam"), train("vta_sam_aligned", "stages=[diffusion]", _CONDITION, *losses), two[0]],
        [train("foleycrafter", "stages=[onsets,diffusion]", *losses, after="runs/vta_sam-0/vae/done"),
         train("diff_foley", "stages=[contrastive,classifier,diffusion]", *losses), two[1]],
    ])


def record(folder: Path) -> str:
    """``folder`` of :func:`play_all` ⇒ the text."""
    lines = [f"platform: {platform_line()}"]
    for name, run in RUNS.items():
        lines += ["", f"[{name}]", *_lines(folder / "runs" / run)]
    return "\n".join(lines) + "\n"


def tolerance(line: str) -> tuple[float, float] | None:
    """Of another platform. A value of fp32 is rounded by 6e-8, a sum over a layer by some 1e-6; Adam divides by the
    gradient's size, so that a step can double that, and does so in a dozen steps. Measured with another rounding of
    everything: losses differ by up to 0.0017, correlations by up to 0.003, a level by 0.01 dB. What is counted (onsets,
    classes, the right one of a batch) jumps."""
    counts = ("onset_f1", "sound_class", "swap", "retrieval", "accuracy", "silent")
    if "sha256" in line or any(word in line for word in counts):
        return None
    if "dbfs" in line:
        return 0.0, 0.2
    return (0.0, 0.02) if line.startswith("figures") or "envelope_correlation" in line else (5e-3, 5e-4)


def _lines(run: Path) -> list[str]:
    """In the order in which stages were trained."""
    stages = sorted((path.parent for path in run.glob("*/logs")), key=lambda path: (path / "done").stat().st_mtime_ns)
    lines = [line for stage in stages if stage.name != "figures" for line in _stage_lines(stage)]
    if not (run / "figures.json").exists():
        return lines
    sounds = sorted(run.glob("figures/generated/*.wav"))
    return lines + figures_lines(run / "figures.json") + [
        f"figures, {path.name}, sha256: {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in sounds]


def figures_lines(path: Path) -> list[str]:
    """A figures.json, or measured.json, without what differs from run to run."""
    figures = json.loads(path.read_text())
    return [f"figures, {name}: {value}" for name, value in
            _flat({key: value for key, value in figures.items() if key not in _OF_A_RUN + _OF_ITS_READER})]


def _stage_lines(stage: Path) -> list[str]:
    """Losses as logged, and the weights of the stage's model folder."""
    lines = []
    for path in sorted(stage.glob("logs/*/metrics.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                lines += [f"{stage.name}, step {int(row['step']) + 1}, {name}: {value}" for name, value in
                          sorted(row.items()) if value and name not in ("step", "epoch")]
    return lines + [f"{stage.name}, {line}" for line in weights_lines(stage / "model")]


def weights_lines(model: Path) -> list[str]:
    """All tensors of a model folder, whatever they are called: their number, their norm, and a hash of their bytes."""
    tensors = [value for path in model.glob("*.safetensors") for value in load_file(path).values()]
    parts = sorted(hashlib.sha256(f"{x.dtype} {x.shape}".encode() + x.tobytes()).hexdigest() for x in tensors)
    norm = np.sqrt(sum(np.square(x, dtype=np.float64).sum() for x in tensors))
    return [f"weights, tensors: {len(tensors)}", f"weights, norm: {norm:.8g}",
            f"weights, sha256: {hashlib.sha256(''.join(parts).encode()).hexdigest()}"]


def _flat(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """An interval on one line: mean, its bounds, and the numbers of clips with and without a value."""
    if not isinstance(value, dict):
        return [(path, value)]
    if "mean" in value:
        return [(path, " ".join(str(item) for item in value.values()))]
    return [found for key, item in value.items() for found in _flat(item, f"{path}.{key}" if path else key)]
