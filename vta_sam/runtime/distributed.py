"""The processes of one job: which of them this is, what the first does alone, what all agree on."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import InputError

# MERGED-DOC """Where a model computes."""


T = TypeVar("T")
_STEP_LIMIT = timedelta(minutes=30)  # of a collective within a step: a process that is gone is noticed by then
_WORK_LIMIT = timedelta(days=2)  # what the first does alone may take as long as encoding a dataset


@dataclass(frozen=True)
class Processes:
    """rank of world; local_rank of the local_world processes on this machine. One process: the defaults."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @classmethod
    def of_environment(cls, environ: Mapping[str, str] = os.environ) -> "Processes":
        """As torchrun's variables say, or srun's; one process where there are neither. InputError where srun has put
        unequal numbers of tasks on its machines."""
        if "RANK" in environ and "WORLD_SIZE" in environ:
            world = int(environ["WORLD_SIZE"])
            return cls(int(environ["RANK"]), world, int(environ.get("LOCAL_RANK", environ["RANK"])),
                       int(environ.get("LOCAL_WORLD_SIZE", world)))
        if int(environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
            return cls(int(environ["SLURM_PROCID"]), int(environ["SLURM_STEP_NUM_TASKS"]),
                       int(environ["SLURM_LOCALID"]), _tasks_a_node(environ["SLURM_STEP_TASKS_PER_NODE"]))
        return cls()

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    @property
    def machines(self) -> int:
        return self.world // self.local_world

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Inside, the processes of the job can talk to each other: NCCL between GPUs, gloo between processors."""
        if self.world == 1:
            yield
            return
        os.environ |= self._torch_variables()
        if torch.cuda.is_available():
            torch.cuda.set_device(self.local_rank)
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_STEP_LIMIT)
        global _patient
        _patient = dist.new_group(backend="gloo", timeout=_WORK_LIMIT)
        yield
        _patient = None
        dist.destroy_process_group()  # not after an error: it would wait for processes that are gone

    def alone(self, work: Callable[[], T]) -> T:
        """The first process does ``work`` while the others wait ⇒ its result, for all. What it refuses ends them too.

        The result travels by pickle from one process of this job to the others; it never lies in a file.
        """
        if self.world == 1:
            return work()
        outcome: list[Any] = [None]
        refused: InputError | None = None
        if self.first:
            try:
                outcome = [(work(), False)]
            except InputError as error:
                refused, outcome = error, [(None, True)]
        dist.broadcast_object_list(outcome, src=0, group=_patient)
        if refused is not None:
            raise refused
        result, failed = outcome[0]
        if failed:
            raise SystemExit(2)  # the first process says why
        return result

    def highest(self, value: int) -> int:
        """⇒ the largest of all processes' values."""
        if self.world == 1:
            return value
        found = torch.tensor([value])
        dist.all_reduce(found, dist.ReduceOp.MAX, group=_patient)
        return int(found)

    def _torch_variables(self) -> dict[str, str]:
        """What torch and Lightning read. Under srun the first machine of the step's list is where they meet."""
        told: dict[str, object] = {"RANK": self.rank, "WORLD_SIZE": self.world, "LOCAL_RANK": self.local_rank,
                                   "LOCAL_WORLD_SIZE": self.local_world, "GROUP_RANK": self.rank // self.local_world}
        if "MASTER_ADDR" not in os.environ:
            from lightning.fabric.plugins.environments import SLURMEnvironment

            slurm = SLURMEnvironment(auto_requeue=False)
            told |= {"MASTER_ADDR": "127.0.0.1" if self.machines == 1 else
                     slurm.resolve_root_node_address(os.environ["SLURM_STEP_NODELIST"]), "MASTER_PORT": slurm.main_port}
        return {name: str(value) for name, value in told.items()}


_patient: Any = None  # the group of processes for waiting long, while connected


def gathered(x: Tensor) -> Tensor:
    """(B, …) of each process ⇒ (world · B, …) of all, through which gradients flow; in training alone: validation shows
    every process the same clips.

    A loss that compares a batch's clips with each other, computed by every process on what all have, has the gradient
    of one process with the whole batch: gathering sums what the processes' losses say of a row, DDP takes the mean.
    """
    if not (dist.is_initialized() and torch.is_grad_enabled()):
        return x
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(x.contiguous()))


def _tasks_a_node(text: str) -> int:
    """SLURM's "2(x3)" ⇒ 2."""
    counts = {int(re.sub(r"\(x\d+\)", "", part)) for part in text.split(",")}
    if len(counts) > 1:
        raise InputError(f"srun has put unequal numbers of tasks on its machines ({text}); ask for --ntasks-per-node")
    return counts.pop()


def choose_device(name: str, threads: int | None = None) -> torch.device:
    """A name of torch's, or "auto" ⇒ a device that is there. threads: torch's processor threads, if given.

    "auto" is a GPU where there is one; of several, each process that torchrun or SLURM started on a machine takes its
    own.
    """
    if threads is not None:
        torch.set_num_threads(int(threads))
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        local = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
        return torch.device("cuda", local % torch.cuda.device_count())
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device={name} is not a device; expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device={name} is not here ({torch.cuda.device_count()} GPUs found); say device=cpu")
    return device


_FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_format(name: str, device: torch.device) -> str:
    """"fp32", "bf16" or "fp16" for a network that only looks. "auto" is fp16 on a GPU, since features are stored as
    fp16 anyway, and fp32 on a processor."""
    if name == "auto":
        return "fp16" if device.type == "cuda" else "fp32"
    if name not in _FORMATS:
        raise InputError(f"precision={name} is not known; it is auto, {', '.join(_FORMATS)}")
    return name


def mixed_precision(number_format: str, device: torch.device) -> torch.autocast:
    """What :func:`choose_format` says ⇒ the context to compute in."""
    return torch.autocast(device.type, dtype=_FORMATS[number_format] if number_format != "fp32" else None,
                          enabled=number_format != "fp32")
