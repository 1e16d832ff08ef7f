"""Which number format trains faster here: measured, not assumed."""

from __future__ import annotations

import copy
import json
import time
import warnings
from pathlib import Path
from typing import Literal

import lightning as L
import torch

from ..atomic import write_text
from ..shards.batch import ClipBatch

Precision = Literal["32-true", "bf16-mixed"]
WORTH_IT = 0.9  # bf16 must take less than this share of fp32's time


def training_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def choose_precision(wanted: str, module: L.LightningModule, batch: ClipBatch, folder: Path) -> Precision:
    """"auto", "fp32" or "bf16" ⇒ Lightning's name of it.

    "auto" times a training step in both on this machine's device (bf16 that a CPU emulates is slower than fp32) and
    keeps the answer in the stage's folder, so that a resumed run computes as it did before.
    """
    names: dict[str, Precision] = {"fp32": "32-true", "bf16": "bf16-mixed"}
    if wanted != "auto":
        if wanted not in names:
            raise ValueError(f'precision is "auto", "fp32" or "bf16", got {wanted!r}')
        return names[wanted]
    kept = folder / "precision.json"
    if not kept.exists():
        device = training_device()
        seconds = {name: _seconds_a_step(module, batch, device, name == "bf16") for name in names}
        chosen = "bf16" if seconds["bf16"] < WORTH_IT * seconds["fp32"] else "fp32"
        write_text(kept, json.dumps({"chosen": chosen, "seconds_a_step": seconds, "device": device}) + "\n")
    return names[json.loads(kept.read_text())["chosen"]]


def _seconds_a_step(module: L.LightningModule, batch: ClipBatch, device: str, bf16: bool, repeats: int = 3) -> float:
    """The fastest of a few forward and backward passes, after one to warm up."""
    trial = copy.deepcopy(module).to(device)
    batch = batch.to(device)
    times = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        with warnings.catch_warnings(), torch.autocast(device, torch.bfloat16, enabled=bf16):
            warnings.simplefilter("ignore")  # self.log() says that there is no trainer
            loss = trial.training_step(batch, 0)
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])
