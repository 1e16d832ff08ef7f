"""Parameters, gradients and moments parted among processes (FSDP2): for networks that one GPU can't hold. Experimental.

torch's fully_shard does the work, Lightning's ModelParallelStrategy the checkpoints, which stay whole files.
"""

from __future__ import annotations

from functools import cache
from types import MethodType
from typing import Any

import lightning as L
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from ..diffusion.condition import Condition, Conditioner
from ..diffusion.latent_diffusion import LatentDiffusion
from ..runtime.errors import InputError

# gathered and let go one by one, while the one after is on its way
_BLOCKS = (BasicTransformerBlock, ResnetBlock2D)


def to_be_sharded(module: L.LightningModule) -> None:
    """Have Lightning part the parameters of stage 3's module among the processes when the fit begins.

    Raises InputError for another stage's module, whose networks are small, and for a conditioner that guides sampling:
    that reads its parameters where nothing gathers them.
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
    _let_gradients_find_conditions()
    assert module.device_mesh is not None, "the strategy has set it by now"
    mesh = module.device_mesh["data_parallel"]
    for block in (part for part in module.unet.modules() if isinstance(part, _BLOCKS)):
        fully_shard(block, mesh=mesh)
    fully_shard(module.unet, mesh=mesh)
    fully_shard(module.conditioner, mesh=mesh)
    register_fsdp_forward_method(module.conditioner, "null")


@cache
def _let_gradients_find_conditions() -> None:
    """What gathers a network's parameters for the backward pass hangs on the tensors that its forward pass returns, and
    finds them in containers that torch knows."""
    torch.export.register_dataclass(Condition)


@torch.no_grad()
def fill_whole(module: nn.Module, state: dict[str, Any]) -> None:
    """Load whole tensors into a sharded module, then put whole parameters in place of its shards, in every process.
    It can be saved from then on, and no longer be trained or used."""
    set_model_state_dict(module, state, options=StateDictOptions(full_state_dict=True))
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if isinstance(parameter, DTensor):
                setattr(part, name, nn.Parameter(parameter.full_tensor(), requires_grad=parameter.requires_grad))


def total_norm(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Of all together, a plain scalar; some may be shards."""
    norm = nn.utils.get_total_norm(tensors)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
