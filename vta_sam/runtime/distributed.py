"""The one owner of rank, world and "my GPU": what torchrun, srun and masked GPUs say, and collectives of a job.

No other module reads RANK, WORLD_SIZE, LOCAL_RANK or SLURM's variables of ranks.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from . import usable_cores
from .errors import InputError

T = TypeVar("T")
_STEP_LIMIT = timedelta(minutes=30)  # of a collective within a step: a process that is gone is noticed by then
_WORK_LIMIT = timedelta(days=2)  # work of the first process alone may take as long as encoding a dataset
_SILENT_S = 10.0  # before a process other than the first says that it waits: usually all are there by then


@dataclass(frozen=True)
class Processes:
    """rank of world; local_rank of the local_world processes on this machine. One process: the defaults."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @classmethod
    def of_environment(cls, environ: Mapping[str, str] = os.environ) -> "Processes":
        """This process among the processes that torchrun or srun started; one process without either.

        A batch script or a shell of ``salloc`` is one process, whatever the allocation: SLURM_NTASKS counts its tasks,
        SLURM_STEP_NUM_TASKS the tasks of srun's step.

        Raises:
            InputError: srun has put unequal numbers of tasks on its machines, or a variable holds no rank.
        """
        rank, world, local_rank = _ranks(environ)
        if _starter(environ) is _TORCHRUN:
            return cls(rank, world, local_rank, _count(environ, "LOCAL_WORLD_SIZE", low=1, default=world))
        text = environ["SLURM_STEP_TASKS_PER_NODE"] if world > 1 else "1"
        if len(counts := _task_counts(text)) > 1:
            raise InputError(f"unequal numbers of tasks on srun's machines ({text}); ask for --ntasks-per-node")
        return cls(rank, world, local_rank, counts.pop())

    def placed(self, gpus: int) -> "Processes":
        """The same processes as torch has to count them, so that ``local_rank`` is the number of this process's GPU.

        Where srun masks GPUs (``--gpus-per-task=1``), each process has its own GPU alone, as number 0. It then
        counts as alone on its machine.

        Args:
            gpus: visible to this process; 0 on a machine without.

        Raises:
            InputError: several processes see several GPUs, but too few for one each.
        """
        if gpus == 0 or gpus >= self.local_world:
            return self
        if gpus == 1:
            return replace(self, local_rank=0, local_world=1)
        raise InputError(f"{self.local_world} processes on this machine see {gpus} GPUs; start one process a GPU "
                         f"(launcher.tasks_per_node={gpus}, torchrun --nproc-per-node {gpus}), or give each its own "
                         "by srun --gpus-per-task=1")

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    @property
    def machines(self) -> int:
        return self.world // self.local_world

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Inside, the processes of the job can talk to each other: NCCL between GPUs, gloo between processors.

        Raises:
            InputError: the others don't come within the time limit.
        """
        if self.world == 1:
            yield
            return
        os.environ |= self._torch_variables()
        if torch.cuda.is_available():
            torch.cuda.set_device(self.placed(visible_gpus()).local_rank)
        self._meet()
        global _long_wait_group
        _long_wait_group = dist.new_group(backend="gloo", timeout=_WORK_LIMIT)
        yield
        _long_wait_group = None
        dist.destroy_process_group()  # not after an error: it would wait for processes that are gone

    def _meet(self) -> None:
        """Wait until all processes of the job are there, and say so: one that was left alone would wait in silence."""
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        others = f"{self.world - 1} other process{'es' if self.world > 2 else ''}"
        says = functools.partial(print, file=sys.stderr, flush=True)
        waiting = f"process {self.rank} of {self.world}: waiting for the others at {place}"
        late = threading.Timer(_SILENT_S, says, [waiting])
        late.daemon = True
        if self.first:
            says(f"waiting for {others} at {place}")
        else:
            late.start()
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_STEP_LIMIT)
        except (dist.DistNetworkError, dist.DistStoreError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise InputError(
                f"process {self.rank} of {self.world} did not meet the {others} at {place} ({reason}; the limit is "
                f"{_STEP_LIMIT.total_seconds() / 60:.0f} minutes); see whether all were started, or unset RANK and "
                "WORLD_SIZE to train with one process") from None
        finally:
            late.cancel()

    def on_first_rank(self, work: Callable[[], T]) -> T:
        """The first process does ``work`` while the others wait ⇒ its result, in all. Its InputError ends all.

        The result is pickled from one process of this job to the others, and never stored in a file.
        """
        if self.world == 1:
            return work()
        outcome: list[Any] = [None]
        refused: InputError | None = None
        if self.first:
            global _alone
            _alone = True
            try:
                outcome = [(work(), False)]
            except InputError as error:
                refused, outcome = error, [(None, True)]
            finally:
                _alone = False
        dist.broadcast_object_list(outcome, src=0, group=_long_wait_group)
        if refused is not None:
            raise refused
        result, failed = outcome[0]
        if failed:
            raise SystemExit(2)  # the first process says why
        return result

    def on_all_ranks(self, work: Callable[[], object]) -> None:
        """Every process does its own ``work``, and waits for the others. An InputError of one ends all, and says whose
        it is."""
        refused: InputError | None = None
        try:
            work()
        except InputError as error:
            refused = error if self.world == 1 else type(error)(f"process {self.rank} of {self.world}: {error}")
        failed = self.highest(int(refused is not None))
        if refused is not None:
            raise refused
        if failed:
            raise SystemExit(2)  # the one that failed says why

    def gathered_by_first(self, value: T) -> list[T]:
        """The values of all processes, in their order, in the first; [] in the others. Pickled, and never stored."""
        values: list[Any] | None = [value] if self.first else None
        if self.world > 1:
            values = [None] * self.world if self.first else None
            dist.gather_object(value, values, group=_long_wait_group)
        return values or []

    def highest(self, value: int) -> int:
        """⇒ the largest of all processes' values."""
        if self.world == 1:
            return value
        largest = torch.tensor([value])
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=_long_wait_group)
        return int(largest)

    def _torch_variables(self) -> dict[str, str]:
        """The environment variables of torch and Lightning. Under srun the master is the step's first machine."""
        here = self.placed(visible_gpus())
        values: dict[str, object] = {"RANK": self.rank, "WORLD_SIZE": self.world, "LOCAL_RANK": here.local_rank,
                                     "LOCAL_WORLD_SIZE": here.local_world, "GROUP_RANK": self.rank // here.local_world}
        if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
            from lightning.fabric.plugins.environments import SLURMEnvironment

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it advises srun to whoever has it installed
                slurm = SLURMEnvironment(auto_requeue=False)
            if self.machines > 1 and not ({"MASTER_ADDR", "SLURM_STEP_NODELIST"} & set(os.environ)):
                raise InputError(f"{self.world} processes on {self.machines} machines, and MASTER_ADDR doesn't say "
                                 "where the first one is; torchrun and srun say it")
            values["MASTER_ADDR"] = os.environ.get("MASTER_ADDR") or (
                "127.0.0.1" if self.machines == 1 else
                slurm.resolve_root_node_address(os.environ["SLURM_STEP_NODELIST"]))
            values["MASTER_PORT"] = os.environ.get("MASTER_PORT") or slurm.main_port
        return {name: str(value) for name, value in values.items()}


_long_wait_group: Any = None  # process group with the time limit of _WORK_LIMIT, while connected
_alone = False  # whether the first process works while the others wait


def gathered(x: Tensor) -> Tensor:
    """(B, …) of each process ⇒ (world · B, …) of all, differentiable. In validation x is returned as it is, since
    every process has the same clips there.

    For losses that compare a batch's clips. Every process computes the loss on the whole batch. The gather's backward
    pass sums the processes' gradients of a row, and DDP averages: it is one process's gradient of the whole batch.
    """
    if _alone or not (dist.is_initialized() and torch.is_grad_enabled()):
        return x
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(x.contiguous()))


class _Starter(NamedTuple):
    """What starts several processes, and the variables in which it tells each of them who it is."""

    name: str
    rank: str
    world: str
    local_rank: str


_TORCHRUN = _Starter("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK")
_SRUN = _Starter("SLURM", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")


def _starter(environ: Mapping[str, str]) -> _Starter | None:
    """Who started this process as one of several; None: nobody.

    RANK or WORLD_SIZE alone is left over from another program. SLURM_NTASKS counts an allocation's tasks: without a
    step (SLURM_STEP_NUM_TASKS) this is the one process of a batch script or a shell.
    """
    if environ.get("RANK") and environ.get("WORLD_SIZE"):
        return _TORCHRUN
    return _SRUN if _count(environ, _SRUN.world, low=1, default=1) > 1 else None


def _count(environ: Mapping[str, str], name: str, low: int = 0, default: int | None = None) -> int:
    """The whole number in a variable; ``default`` where it is not set or empty."""
    text = environ.get(name) or ("" if default is None else str(default))
    if not text.isdecimal() or int(text) < low:
        found = f"{name}={text}" if text else f"{name} is not set"
        raise InputError(f"{found}: expected a whole number, at least {low}; torchrun and srun set such variables, "
                         "unset them all where neither started this process")
    return int(text)


def _ranks(environ: Mapping[str, str]) -> tuple[int, int, int]:
    """(rank, world, rank on this machine) by torchrun's variables, else by srun's; (0, 1, 0) without either."""
    starter = _starter(environ)
    if starter is None:
        return 0, 1, 0
    rank, world = _count(environ, starter.rank), _count(environ, starter.world, low=1)
    if rank >= world:
        raise InputError(f"{starter.rank}={rank} of {starter.world}={world}: ranks go from 0 to {world - 1}; unset "
                         f"both where {starter.name} did not start this process")
    return rank, world, _count(environ, starter.local_rank, default=rank if starter is _TORCHRUN else None)


def share_of_work(rank: int | None, world: int | None, environ: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """(rank, world) of a process that does its share of work by itself: shards ``rank``, ``rank + world``, …

    Args:
        rank: of this process, as a setting says; None: as torchrun or srun started it.
        world: number of processes that part the work, likewise.

    Raises:
        InputError: one of the two is given without the other, or rank is not in [0, world).
    """
    if rank is None and world is None:
        return _ranks(environ)[:2]
    if rank is None or world is None:
        raise InputError(f"rank={rank} world={world}: give both, or neither where torchrun or srun starts the program")
    if not (isinstance(rank, int) and isinstance(world, int) and 0 <= rank < world):
        raise InputError(f"rank={rank} of world={world}: ranks go from 0 to world - 1")
    return rank, world


def share_of_plan(rank: int | None, world: int | None, environ: Mapping[str, str] = os.environ) -> str:
    """The row ``share`` of a :class:`~.work_plan.Plan`: this process's share and who says so; "" where it does all."""
    mine, parts = share_of_work(rank, world, environ)
    if parts == 1:
        return ""
    if rank is not None or (starter := _starter(environ)) is None:
        return f"worker {mine} of {parts}, as rank= and world= say"
    return (f"worker {mine} of {parts}, as {starter.name} says ({starter.rank}, {starter.world}); rank= and world= "
            "override")


def own_cores(environ: Mapping[str, str] = os.environ) -> int:
    """This process's part, at least 1, of the cores that torchrun's or srun's processes on this machine may use."""
    starter, each = _starter(environ), _count(environ, "SLURM_CPUS_PER_TASK", low=1, default=usable_cores())
    sharing = _count(environ, "LOCAL_WORLD_SIZE", low=1, default=_ranks(environ)[1]) if starter is _TORCHRUN else 1
    if starter is _SRUN and not environ.get("SLURM_CPUS_PER_TASK"):
        sharing = max(_task_counts(environ.get("SLURM_STEP_TASKS_PER_NODE", "1")))
    return max(1, min(usable_cores(), each) // sharing)


def visible_gpus() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _task_counts(text: str) -> set[int]:
    """SLURM's "2(x3),1" ⇒ {2, 1}: numbers of tasks on its machines."""
    return {int(re.sub(r"\(x\d+\)", "", part)) for part in text.split(",")}


def device_kinds() -> dict[str, int]:
    """{kind: how many there are} of the devices that torch can compute on here; "cpu" always is one of them."""
    found = {"cpu": 1, "cuda": visible_gpus(), "mps": int(torch.backends.mps.is_available()),
             "xpu": torch.xpu.device_count() if torch.xpu.is_available() else 0}
    return {kind: count for kind, count in found.items() if count}


def devices_here() -> str:
    """The names of the devices of this machine, for users: "cpu, cuda:0, cuda:1"."""
    return ", ".join(kind if kind in ("cpu", "mps") else f"{kind}:{i}"
                     for kind, count in device_kinds().items() for i in range(count))


def choose_device(name: str | torch.device, threads: int | None = None) -> torch.device:
    """A device that is there.

    Args:
        name: of torch's devices, or "auto": a GPU where there is one; of several GPUs, each process that torchrun or
            srun started on a machine takes its own. On a Mac "auto" is the processor.
        threads: torch's processor threads; None: torch's choice.

    Raises:
        InputError: the name is no device, or that device is not here.
    """
    if threads is not None:
        torch.set_num_threads(int(threads))
    kinds = device_kinds()
    if name == "auto":
        if "cuda" in kinds:
            return torch.device("cuda", _ranks(os.environ)[2] % kinds["cuda"])
        if "mps" in kinds:
            # some operators are missing there, which shows in the midst of the work
            warnings.warn("device=auto is the processor here; device=mps is this Mac's GPU, on which this project is "
                          "not tested")
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise InputError(f"device={name} is not a device; expected auto or one of those here: {devices_here()}"
                         ) from None
    if (device.index or 0) >= kinds.get(device.type, 0):
        amd = " (AMD's GPUs are called cuda, in a torch that is built for them)" if device.type == "hip" else ""
        raise InputError(f"device={name} is not here{amd}; there is {devices_here()}")
    return device


def choose_accelerator(name: str) -> str:
    """Lightning's name of a kind of device that is there.

    Args:
        name: auto (as :func:`choose_device` reads it, not as Lightning does), cpu, gpu, cuda or mps.

    Raises:
        InputError: there is no such kind of device here.
    """
    if name == "auto":
        return choose_device(name).type
    kinds = device_kinds()
    if name not in kinds and not (name == "gpu" and {"cuda", "mps"} & set(kinds)):
        raise InputError(f"accelerator={name} is not here; there is {devices_here()}")
    return name


FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_format(name: str, device: torch.device) -> str:
    """"fp32", "bf16" or "fp16" for a network in inference. "auto" is fp16 on a GPU, since features are stored as
    fp16 anyway, and fp32 on a processor."""
    if name == "auto":
        return "fp16" if device.type == "cuda" else "fp32"
    if name not in FORMATS:
        raise InputError(f"precision={name} is not known; it is auto, {', '.join(FORMATS)}")
    return name


def mixed_precision(number_format: str, device: torch.device) -> torch.autocast:
    """A number format of :func:`choose_format` ⇒ the context to compute in."""
    return torch.autocast(device.type, dtype=FORMATS[number_format] if number_format != "fp32" else None,
                          enabled=number_format != "fp32")
