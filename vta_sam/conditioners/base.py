"""What the diffusion model listens to: the contract of every compared system (one conditioner each)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..shards.batch import ClipBatch


@dataclass
class Condition:
    """tokens (B, L, D) and mask (B, L), True = real: the keys and values of the UNet's cross-attention.

    column_map (B, C, columns), optional: channels laid beside the latent, column by column.
    """

    tokens: Tensor
    mask: Tensor
    column_map: Tensor | None = None

    def where(self, rows: Tensor, other: "Condition") -> "Condition":
        """Rows (B,) that are True come from ``other``."""
        column_map = self.column_map
        if column_map is not None:
            assert other.column_map is not None, "two conditions of one conditioner have the same parts"
            column_map = torch.where(rows[:, None, None], other.column_map, column_map)
        return replace(
            self,
            tokens=torch.where(rows[:, None, None], other.tokens, self.tokens),
            mask=torch.where(rows[:, None], other.mask, self.mask),
            column_map=column_map,
        )


class Conditioner(nn.Module, ABC):
    """A batch of clip features ⇒ a Condition.

    token_dim: D, the UNet's cross-attention width. map_channels: C of the column map, 0 where there is none. A
    subclass implements :meth:`forward` and :meth:`null`; training and sampling use :meth:`null` alike.
    """

    token_dim: int
    map_channels: int = 0

    @abstractmethod
    def forward(self, batch: ClipBatch) -> Condition:
        """What the clips say."""

    @abstractmethod
    def null(self, batch: ClipBatch) -> Condition:
        """Nothing said, in the shapes of :meth:`forward`: what dropout trains and guidance leads away from."""

    def with_dropout(self, batch: ClipBatch, rows: Tensor) -> Condition:
        """Rows (B,) that are True get the null."""
        return self(batch).where(rows, self.null(batch))
