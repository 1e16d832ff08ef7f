"""The convolutional blocks of both tiny networks."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

M = TypeVar("M", bound=nn.Module)


class Conv(nn.Module):
    """3×3 convolution and batch normalisation; :func:`fold` melts the second into the first for inference.

    (B, channels_in, h, w) ⇒ (B, channels_out, ⌈h / stride⌉, ⌈w / stride⌉); stride one number or (height, width).
    """

    def __init__(
        self, channels_in: int, channels_out: int, stride: int | tuple[int, int] = 1, folded: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=folded)
        self.norm: nn.Module = nn.Identity() if folded else nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Residual(nn.Module):
    """x + conv(relu(conv(x))), then relu (He et al., 2016)."""

    def __init__(self, channels: int, folded: bool) -> None:
        super().__init__()
        self.first, self.second = Conv(channels, channels, 1, folded), Conv(channels, channels, 1, folded)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.second(F.relu_(self.first(x))).add_(x))


def fold(network: M) -> M:
    """A copy of a network for inference, the batch normalisations of its :class:`Conv` melted into the convolutions."""
    folded = copy.deepcopy(network).eval()
    for module in folded.modules():
        if isinstance(module, Conv) and isinstance(module.norm, nn.BatchNorm2d):
            module.conv, module.norm = fuse_conv_bn_eval(module.conv, module.norm), nn.Identity()
    return folded
