"""Several processes that train together, as torchrun starts them; and what they run."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import lightning as L
import torch
import torch.distributed as dist
from forks import Fork
from tiny_data import CODEC, CONDITIONER, stage_context, stage_folder, stage_settings
from tiny_stages import diffusion_parts

from vta_sam.dataset.shards.schema import read_dataset
from vta_sam.runtime.distributed import Processes, gathered
from vta_sam.training import codec_stages, diffusion_stage
from vta_sam.training import stage as stage_module
from vta_sam.training.optimisation import choose_precision
from vta_sam.training.preemption import EXIT_STATUS, Preempted, Preemption
from vta_sam.training.stages import STAGES

TESTS = Path(__file__).parent
STEPS, CLIPS_A_STEP = 6, 4


def start(world: int, *arguments: object, work: Callable[..., object] | None = None) -> list[Fork]:
    """``world`` processes of a function; None: of this file's :func:`main`."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
               "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [Fork(work or main, *map(str, arguments), environ={**environ, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                 folder=TESTS.parent) for rank in range(world)]


def finish(processes: list[Fork], timeout_s: float = 240) -> list[tuple[int, str]]:
    """⇒ (exit status, what it printed) of each."""
    try:
        return [(process.wait(timeout_s), process.read()) for process in processes]
    finally:
        for process in processes:
            process.close()


class Losses(L.Callback):
    """The loss of every step, mean over processes, and whose clips it was. act: called with the step at its end."""

    def __init__(self, act=lambda step: None):
        self.found: dict[int, tuple[float, list[str]]] = {}
        self.act = act

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        loss, keys = outputs["loss"].detach().clone(), list(batch.keys)
        if trainer.world_size > 1:
            dist.all_reduce(loss)
            everyone = [[] for _ in range(trainer.world_size)]
            dist.all_gather_object(everyone, keys)
            keys = sorted(key for part in everyone for key in part)
        self.found[trainer.global_step] = loss.item() / trainer.world_size, sorted(keys)
        self.act(trainer.global_step)


def train(stage: str, root: Path, out: Path, vae: Path | None = None, act=lambda step: None,
          processes: Processes = Processes(), **settings) -> dict[int, tuple[float, list[str]]]:
    """One tiny stage in ``out`` ⇒ losses by step. A process asked to stop ends with EXIT_STATUS."""
    losses, original, preemption = Losses(act), stage_module.fit, Preemption(processes)
    stage_module.fit = lambda *args: original(*args[:7], callbacks=[*args[7], losses], preemption=args[8])
    context = stage_context(root, read_dataset(root), preemption=preemption)
    folder = processes.on_first_rank(lambda: stage_folder(out))
    told = stage_settings(STEPS, CLIPS_A_STEP // settings.get("accumulate", 1), **settings)
    try:
        with preemption.watching():
            if stage == "vae":
                codec_stages.train_vae(context, folder, told, CODEC)
            elif stage == "condition":
                STAGES["condition"].train_part(context, folder, told, CONDITIONER, {})
            else:
                diffusion_stage.train_diffusion(context, folder, told, diffusion_parts(vae))
    finally:
        stage_module.fit = original
    return losses.found


class Gathering(L.LightningModule):
    """Its loss compares the clips of all processes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def training_step(self, batch, batch_idx):
        return gathered(batch * self.weight).square().mean()


def choose(out: str) -> None:
    """The first process times steps for all; each writes what was chosen to ``out``."""
    processes = Processes.of_environment()
    with processes.connected():
        chosen = processes.on_first_rank(
            lambda: choose_precision("auto", Gathering(), lambda: torch.ones(2, 3), Path(out)))
        (Path(out) / str(processes.rank)).write_text(chosen)


def main(root: str, out: str, vae: str, wanted: str, act: str = "", strategy: str = "ddp", accumulate: str = "1",
         ) -> None:
    """wanted: stages, comma-separated, each to a folder of its name under ``out``; losses to ``out``/losses.json.
    act: "RANK:STEP:SIGNAL" sends a process a signal at the end of a step. strategy, accumulate: see FitSettings."""
    processes = Processes.of_environment()
    rank, step, number = (int(part) for part in act.split(":")) if act else (-1, -1, 0)

    def at(now: int) -> None:
        if (processes.rank, now) == (rank, step):
            os.kill(os.getpid(), number)

    try:
        with processes.connected():
            found = {stage: train(stage, Path(root), Path(out) / stage, Path(vae), at, processes, strategy=strategy,
                                  accumulate=int(accumulate))
                     for stage in wanted.split(",")}
    except Preempted as asked:
        print(f"stopped, requeue {asked.requeue}", flush=True)
        os._exit(EXIT_STATUS)
    if processes.first:
        (Path(out) / "losses.json").write_text(json.dumps(found))
