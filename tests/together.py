"""Several processes that train together, as torchrun starts them; and what they run."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from forks import Fork
from models import make_batch
from programs import call
from tiny_data import CODEC, CONDITIONER, stage_context, stage_folder, stage_settings
from tiny_stages import diffusion_parts

from vta_sam.dataset.shards.schema import read_dataset
from vta_sam.generation.pipeline import Pipeline, load
from vta_sam.runtime.cluster.preemption import EXIT_STATUS, Preempted, Preemption
from vta_sam.runtime.distributed import Processes, gathered
from vta_sam.runtime.errors import InputError
from vta_sam.runtime.stage_module import rows_before
from vta_sam.training import callbacks, codec_stages, diffusion_stage
from vta_sam.training import stage as stage_module
from vta_sam.training.job import STAGES
from vta_sam.training.optimisation import choose_precision

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
        # so that two processes sample a clip each of a validation's two
        with preemption.watching(), mock.patch.object(callbacks, "SAMPLED_AT_ONCE", 1):
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


def job(fault: str, *arguments: str) -> None:
    """The train program. fault: "", or "RANK:stop", "RANK:refuse": what happens to a process in its first batch of
    sounds."""
    rank, _, kind = fault.partition(":")
    generate = Pipeline.generate_batch

    def faulty(*args, **kwargs):
        if kind == "refuse":
            raise InputError("the second batch can't be generated")
        os.kill(os.getpid(), signal.SIGTERM)
        return generate(*args, **kwargs)

    if rank == os.environ["RANK"]:
        Pipeline.generate_batch = faulty  # type: ignore[method-assign]
    done = call("experiments/train.py", *arguments, cwd=TESTS.parent)
    print(done.stdout, done.stderr)
    sys.exit(done.returncode)


def sampled(model: Path, processes: Processes) -> tuple[dict[str, float], list[list[str]]]:
    """A validation's figures of five clips, sampled two at once, and the keys of the batches that this process sampled.
    """
    pipeline, batches, logged = load(model), list[list[str]](), dict[str, float]()
    generate = pipeline.generate_batch

    def counted(batch, *args, **kwargs):
        batches.append(batch.keys)
        return generate(batch, *args, **kwargs)

    pipeline.generate_batch = counted  # type: ignore[method-assign]
    batch = make_batch(*"abcde")
    noise = np.random.default_rng(0).normal(0, 0.1, (5, batch.spec.samples)).astype(np.float32)
    reference = callbacks.Reference(batch, noise, [np.array([0.2, 0.7])] * 5)
    samples = callbacks.ValidationSamples(lambda module: pipeline, reference, steps=2, seed=0,
                                          preemption=Preemption(processes))
    module = SimpleNamespace(log_dict=lambda values, **_: logged.update(values))
    trainer = SimpleNamespace(sanity_checking=False, is_global_zero=processes.first, loggers=[], global_step=0)
    with mock.patch.object(callbacks, "SAMPLED_AT_ONCE", 2):
        samples.on_validation_epoch_end(trainer, module)  # type: ignore[arg-type]
    return logged, batches


def validate(model: str, out: str) -> None:
    """Each process writes what it logged and sampled to ``out``/<rank>.json."""
    processes = Processes.of_environment()
    with processes.connected():
        found = sampled(Path(model), processes)
    (Path(out) / f"{processes.rank}.json").write_text(json.dumps(found))


def before(out: str) -> None:
    """Each process writes the rows before its own to ``out``/<rank>.json: six numbers, parted as clips are."""
    processes = Processes.of_environment()
    with processes.connected():
        mine = torch.arange(6).reshape(3, 2)[:, processes.rank]
        found = rows_before(mine).tolist(), rows_before(mine[:, None].float().expand(-1, 2)).tolist()
    (Path(out) / f"{processes.rank}.json").write_text(json.dumps(found))
