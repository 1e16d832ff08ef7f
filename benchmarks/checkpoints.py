"""Seconds that training stands still for a checkpoint: with steps that wait for the disk, and with steps that go on.

    python benchmarks/checkpoints.py --parameters 100

A module of so many parameters, its average and AdamW's moments, as a validation saves them: the best checkpoint and the
last one. One run times three ways: both whole, written one after the other, as versions up to 0.1.0 did; the best one
without what only going on needs; and a copy that a thread writes. The disk is that of --folder.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _report import Report, median, parser

from vta_sam.runtime.cli import run
from vta_sam.training.callbacks import AtomicCheckpointIO, CheckpointWriter

WIDTH = 1024
Save = Callable[[dict[str, Any]], None]


def state_of(millions: float, device: torch.device) -> tuple[dict[str, Any], Callable[[], None]]:
    """A checkpoint as Lightning makes it, of a module that has taken a step, and the function that takes one more."""
    layers = max(1, round(millions * 1e6 / WIDTH ** 2))
    module = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers))).to(device)
    average, optimiser = copy.deepcopy(module), torch.optim.AdamW(module.parameters())

    def step() -> None:
        loss = module(torch.ones(8, WIDTH, device=device)).square().mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    step()
    return {"global_step": 1, "state_dict": average.state_dict(), "current_model_state": module.state_dict(),
            "optimizer_states": [optimiser.state_dict()]}, step


def timed(save: Save, content: dict[str, Any], step: Callable[[], None], finish: Callable[[], None],
          ) -> dict[str, float]:
    """Seconds for which ``save`` keeps steps from going on, of the step after it, and of the writing after that."""
    found = {}
    for name, work in (("stopped_s", lambda: save(content)), ("step_s", step), ("still_writing_s", finish)):
        start = time.perf_counter()
        work()
        found[name] = round(time.perf_counter() - start, 2)
    return found


@run
def main() -> None:
    args = _parser().parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    content, step = state_of(args.parameters, device)
    folder = Path(tempfile.mkdtemp(prefix="checkpoints-", dir=args.folder))
    best, last = folder / "best.ckpt", folder / "last.ckpt"
    rows = []
    try:
        for name, writer in (("both whole, steps wait", AtomicCheckpointIO()),
                             ("best weights and last, steps wait", CheckpointWriter(best, aside=False)),
                             ("the same, aside", CheckpointWriter(best))):
            def save(content: dict[str, Any], writer: AtomicCheckpointIO = writer) -> None:
                for path in (best, last):
                    writer.save_checkpoint(content, path)

            finish = writer.finish if isinstance(writer, CheckpointWriter) else lambda: None
            for turn in range(args.repeat):
                rows.append({"form": name, "checkpoint": turn + 1, **timed(save, content, step, finish),
                             "gb": round((best.stat().st_size + last.stat().st_size) / 1e9, 2)})
            writer.teardown()
    finally:
        shutil.rmtree(folder)
    before, after = (median([row["stopped_s"] for row in rows if row["form"] == name])
                     for name in (rows[0]["form"], rows[-1]["form"]))
    Report(f"A checkpoint of {args.parameters:g} M parameters after a validation, {device.type}", rows,
           {"stopped_before_over_after": round(before / max(after, 1e-3), 1)}).show(args.json)


def _parser():
    made = parser(__doc__.splitlines()[0])
    made.add_argument("--parameters", type=float, default=100, help="millions")
    made.add_argument("--repeat", type=int, default=3, help="checkpoints of each form; the first copy takes its memory")
    made.add_argument("--folder", type=Path, default=None, help="on the disk that is measured")
    return made


if __name__ == "__main__":
    main()
