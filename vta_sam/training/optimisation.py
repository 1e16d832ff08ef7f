"""How every stage is optimised: AdamW and its schedule, averaged weights, clipping, attention kernels, the number
format, which is measured, and FSDP2.

FSDP2 is for networks that one GPU can't hold, and experimental: torch's fully_shard shards parameters, gradients and
moments, Lightning's ModelParallelStrategy writes checkpoints, which stay whole files.
"""

from __future__ import annotations

import copy
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MethodType
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..dataset.shards.batch import ClipBatch
from ..diffusion.condition import Condition, Conditioner, Denoiser
from ..diffusion.latent_diffusion import LatentDiffusion
from ..perception.inference import can_compile
from ..runtime.distributed import choose_accelerator
from ..runtime.errors import InputError
from ..runtime.files import write_text
from ..runtime.stage_module import StageModule


@dataclass(frozen=True)
class AdamWithWarmup:
    """AdamW; the rate rises linearly over warmup_steps, then falls on a half cosine to ``final`` of its peak.

    Attributes:
        learning_rate: the peak.
        steps: over which the rate rises and falls.
        warmup_steps: of the rise.
        weight_decay: of matrices; biases, norms and single vectors are not decayed.
        betas: AdamW's.
        final: share of the peak at the end.
        slower: {name prefix of parameters: factor on the rate}; a factor of 0 freezes them.
    """

    learning_rate: float
    steps: int
    warmup_steps: int = 0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    final: float = 0.1
    slower: dict[str, float] = field(default_factory=dict)

    def __call__(self, module: nn.Module) -> dict:
        """The optimiser and schedule, as LightningModule.configure_optimizers returns them."""
        groups = self._groups(module)
        fused = all(parameter.device.type in ("cpu", "cuda") and not isinstance(parameter, DTensor)
                    for group in groups for parameter in group["params"])
        optimiser = torch.optim.AdamW(groups, betas=(self.betas[0], self.betas[1]), fused=fused or None)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, self.factor)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def factor(self, step: int) -> float:
        """The rate at a step, as a share of its peak."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps))
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))

    def _groups(self, module: nn.Module) -> list[dict]:
        """Parameters by (rate, decay): biases, norms and single vectors are not decayed."""
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in module.named_parameters():
            factor = next((f for prefix, f in self.slower.items() if name.startswith(prefix)), 1.0)
            if factor == 0:
                parameter.requires_grad_(False)
            if not parameter.requires_grad:
                continue
            decay = self.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((self.learning_rate * factor, decay), []).append(parameter)
        return [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]


class _AveragedWeights(AveragedModel):
    """torch's, which at every update asks the device whether it is the first: here only until one was made."""

    _begun = False

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        if not self._begun:
            self._begun = bool(self.n_averaged > 0)
        if not self._begun:
            super().update_parameters(model)
            return
        assert self.multi_avg_fn is not None
        self.multi_avg_fn([each.detach() for each in self.module.parameters()],
                          [each.detach() for each in model.parameters()], self.n_averaged)
        for mine, its in zip(self.module.buffers(), model.buffers(), strict=True):
            mine.copy_(its)
        self.n_averaged += 1


class ExponentialMovingAverage(WeightAveraging):
    """An exponential moving average of the weights, which is validated and kept. Buffers are the model's own.

    Args:
        decay: of the average.
        start_step: the optimiser step after which averaging begins, counted from 0.
    """

    def __init__(self, decay: float, start_step: int):
        super().__init__()
        self.decay, self.start_step = decay, start_step

    @property
    def state_key(self) -> str:
        return "EMAWeightAveraging"  # Lightning's class, under whose name checkpoints of older runs keep the state

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":  # the module is moved to the device only after this
            self._average_model = _AveragedWeights(pl_module, trainer.strategy.root_device, use_buffers=False,
                                                   multi_avg_fn=get_ema_multi_avg_fn(self.decay))

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return step_idx is not None and step_idx >= self.start_step


class GradientClipping(L.Callback):
    """Clips the norm of the gradient, and ends the fit where a loss or the norm is NaN or infinite.

    The optimiser doesn't take such a step, so that the weights and the last checkpoint stay good. Every process writes
    the keys of its own batches to ``folder``/nonfinite-<rank>.json.

    Args:
        max_norm: of the gradient of all parameters together, or, of a module that has ``sides`` (modules with losses of
            their own, as a vocoder and its discriminators), of each side's; 0: gradients are not clipped.
        folder: of the stage.
    """

    def __init__(self, max_norm: float, folder: Path):
        self.max_norm, self.folder = max_norm, folder
        self._keys: list[str] = []
        self._losses: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int,
                             ) -> None:
        self._keys += batch.keys

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: torch.Tensor) -> None:
        self._losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        """DDP has averaged the processes' gradients by now, so that all processes see a norm that one of them spoiled.
        """
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        sides = [list(side.parameters()) for side in getattr(pl_module, "sides", ())] or [trained]
        totals = [get_total_norm([parameter.grad for parameter in side if parameter.grad is not None])
                  for side in sides]
        norms = torch.stack([total.full_tensor() if isinstance(total, DTensor) else total for total in totals])
        keys, losses = self._keys, torch.stack(self._losses)
        self._keys, self._losses = [], []  # of accumulated batches, all of the step's
        if torch.isfinite(torch.cat([losses, norms.to(losses)])).all():  # one wait for the device
            if self.max_norm > 0:
                for side, total in zip(sides, totals):
                    clip_grads_with_norm_(side, self.max_norm, total)
            return
        path, norm = self.folder / f"nonfinite-{trainer.global_rank}.json", float(torch.linalg.vector_norm(norms))
        noted = {"step": trainer.global_step, "losses": [str(loss) for loss in losses.tolist()],
                 "gradient_norm": str(norm), "clips": keys}
        write_text(path, json.dumps(noted, indent=1) + "\n")
        raise InputError(
            f"step {trainer.global_step}: the loss is {float(losses.mean()):g}, the gradient's norm {norm:g}; "
            f"the step was not taken, its clips stand in {path}. Look at those clips, or lower learning_rate; the same "
            "command goes on from the last checkpoint")


_KNOWN_PACKAGES = ("vta_sam", "torch", "diffusers", "transformers")


def may_leave_out(module: nn.Module) -> bool:
    """Whether a training step may leave trainable parameters without a gradient, as far as is known. DDP then has to
    look for them in every step.

    It isn't known of networks of one's own. Of this project's networks all parameters take part, but for parts of a
    conditioner that stages of their own train, and that are not frozen though they have no rate in stage 3.
    """
    if any(type(part).__module__.partition(".")[0] not in _KNOWN_PACKAGES for part in module.modules()):
        return True
    conditioner = getattr(module, "conditioner", None)
    parts = conditioner.pretrained.values() if isinstance(conditioner, Conditioner) else ()
    still = [getattr(conditioner, part.attribute) for part in parts if part.rate == 0]
    return any(parameter.requires_grad for part in still if part is not None for parameter in part.parameters())


@contextmanager
def attention_kernels(device: str) -> Iterator[None]:
    """Inside, scaled_dot_product_attention uses the kernel with which training on "cuda" or "cpu" is fastest.

    On a CPU the fused kernel saves memory that a few hundred tokens don't need, and its backward pass is slower than
    plain products of matrices (``benchmarks/step.py`` times both). The plain form sums bf16 in fp32.
    """
    with sdpa_kernel(SDPBackend.MATH) if device == "cpu" else nullcontext():
        yield


def prepare_blocks(module: L.LightningModule, checkpointed: bool, compiled: bool, device: torch.device) -> None:
    """Have the blocks of a stage's network checkpointed or compiled.

    Args:
        module: of the stage.
        checkpointed: of stage diffusion, see :meth:`.Denoiser.checkpoint_blocks`.
        compiled: see :meth:`.Denoiser.compile_blocks` and :meth:`.StageModule.repeated_blocks`; where nothing can be
            compiled here, a warning says why.
        device: of the training.

    Raises:
        InputError: the network has no such blocks.
    """
    denoiser = getattr(module, "denoiser", None)
    blocks = module.repeated_blocks() if isinstance(module, StageModule) else []
    if checkpointed:
        if not isinstance(denoiser, Denoiser):
            raise InputError("gradient_checkpointing is for stage diffusion; leave it out of the others")
        denoiser.checkpoint_blocks()
    if not compiled:
        return
    if not (blocks or isinstance(denoiser, Denoiser)):
        raise InputError("compile is for stages vae, condition and diffusion; leave it out of the others")
    if not can_compile(device):
        return
    if isinstance(denoiser, Denoiser):
        denoiser.compile_blocks()
    for block in blocks:
        block.compile()


Precision = Literal["32-true", "bf16-mixed"]
WORTH_IT = 0.9  # bf16 must take less than this share of fp32's time


def training_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def stage_device(accelerator: str) -> torch.device:
    """The device of a stage's ``fit.accelerator``; of several GPUs, the one that this process has taken. Raises
    InputError where it is not here."""
    kind = choose_accelerator(accelerator)
    return torch.device(kind if kind != "gpu" else "cuda" if torch.cuda.is_available() else "mps")


def choose_precision(wanted: str, module: L.LightningModule, batch: Callable[[], ClipBatch], folder: Path) -> Precision:
    """Lightning's name of a number format.

    Args:
        wanted: "fp32", "bf16", or "auto", which times a training step in both on this machine's device (bf16 that a CPU
            emulates is slower than fp32; a loss that is finite in fp32 alone decides for it).
        module: whose step is timed, on a copy.
        batch: reads the batch that is timed; not called where nothing is.
        folder: the stage's; the answer of "auto" is kept there, so that a resumed run computes as it did before.

    Raises:
        ValueError: another name.
    """
    names: dict[str, Precision] = {"fp32": "32-true", "bf16": "bf16-mixed"}
    if wanted != "auto":
        if wanted not in names:
            raise ValueError(f'precision is "auto", "fp32" or "bf16", got {wanted!r}')
        return names[wanted]
    kept = folder / "precision.json"
    if not kept.exists():
        device = training_device()
        read = batch()
        seconds = {name: _seconds_a_step(module, read, device, name == "bf16") for name in names}
        chosen = "bf16" if seconds["bf16"] < WORTH_IT * seconds["fp32"] else "fp32"
        told = {name: spent if math.isfinite(spent) else None for name, spent in seconds.items()}
        write_text(kept, json.dumps({"chosen": chosen, "seconds_a_step": told, "device": device}) + "\n")
    return names[json.loads(kept.read_text())["chosen"]]


def _seconds_a_step(module: L.LightningModule, batch: ClipBatch, device: str, bf16: bool, repeats: int = 3) -> float:
    """The fastest of a few forward and backward passes, after one to warm up; infinity where a loss is not finite."""
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
        times.append(time.perf_counter() - start if loss.isfinite() else math.inf)
    return max(times) if math.inf in times else min(times[1:])


def to_be_sharded(module: L.LightningModule) -> None:
    """Have Lightning shard the parameters of the diffusion stage's module over the processes when the fit begins.

    Args:
        module: changed in place.

    Raises:
        InputError: it is another stage's module, whose networks are small; or its conditioner guides sampling, and so
            reads its parameters where nothing gathers them.
    """
    if not isinstance(module, LatentDiffusion):
        raise InputError("strategy=fsdp2 is for stage diffusion; the other stages' networks are small: leave theirs "
                         "at ddp")
    if type(module.conditioner).guide is not Conditioner.guide:
        raise InputError(f"strategy=fsdp2 can't be used with {type(module.conditioner).__name__}, which guides "
                         "sampling by its own network; use strategy=ddp")
    # on this module alone: the averaging callback calls the hook of a class that has one, outside of any strategy
    module.configure_model = MethodType(_shard, module)  # type: ignore[method-assign]


def _shard(module: LatentDiffusion) -> None:
    _register_condition()
    assert module.device_mesh is not None, "the strategy has set it by now"
    mesh = module.device_mesh["data_parallel"]
    for block in module.denoiser.blocks():  # gathered and let go one by one, while the one after is on its way
        fully_shard(block, mesh=mesh)
    fully_shard(module.denoiser, mesh=mesh)
    fully_shard(module.conditioner, mesh=mesh)
    register_fsdp_forward_method(module.conditioner, "null")


@cache
def _register_condition() -> None:
    """Make Condition a container whose tensors torch finds. FSDP2 puts a hook on each tensor that a forward pass
    returns; the hook gathers the network's parameters for the backward pass."""
    torch.export.register_dataclass(Condition)


@torch.no_grad()
def fill_whole(module: nn.Module, state: dict[str, Any]) -> None:
    """Load whole tensors into a sharded module, then put whole parameters in place of its shards, in every process. The
    module can then be saved, and no longer be trained or used.

    Args:
        module: changed in place.
        state: its whole state dict.
    """
    set_model_state_dict(module, state, options=StateDictOptions(full_state_dict=True))
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if isinstance(parameter, DTensor):
                setattr(part, name, nn.Parameter(parameter.full_tensor(), requires_grad=parameter.requires_grad))
