"""What the diffusion model listens to: the contract of every compared system (one conditioner each)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..dataset.shards.batch import ClipBatch

LogLikelihood = Callable[[Tensor, Tensor], Tensor]  # noisy latent (B, C, columns, freq), timestep (B,) ⇒ log p (B,)


@dataclass
class Condition:
    """tokens (B, L, D) and mask (B, L), True = real: the keys and values of the UNet's cross-attention.

    column_map (B, C, columns), optional: channels laid beside the latent, column by column. image_tokens (B, M, D),
    optional: a second stream, read by attention of its own. control (B, 1, steps), optional: a track over the clip's
    time, from -1 to 1, that a control branch reads.
    """

    tokens: Tensor
    mask: Tensor
    column_map: Tensor | None = None
    image_tokens: Tensor | None = None
    control: Tensor | None = None

    def _merge(self, other: "Condition", merge: Callable[[Tensor, Tensor], Tensor]) -> "Condition":
        merged: dict[str, Any] = {}
        for field in fields(self):
            mine, its = getattr(self, field.name), getattr(other, field.name)
            assert (mine is None) == (its is None), "two conditions of one conditioner have the same parts"
            merged[field.name] = None if mine is None else merge(mine, its)
        return Condition(**merged)

    def where(self, rows: Tensor, other: "Condition") -> "Condition":
        """Rows (B,) that are True come from ``other``."""
        return self._merge(other, lambda mine, its: torch.where(rows.view(-1, *[1] * (mine.ndim - 1)), its, mine))

    def followed_by(self, other: "Condition") -> "Condition":
        """Two batches as one, this one's rows first. The shorter one's tokens are padded with masked zeros: captions
        have as many as they please."""
        length = max(self.tokens.shape[1], other.tokens.shape[1])
        return self.padded(length)._merge(other.padded(length), lambda mine, its: torch.cat([mine, its]))

    def padded(self, length: int) -> "Condition":
        """The same with at least ``length`` tokens."""
        missing = max(0, length - self.tokens.shape[1])
        return replace(self, tokens=nn.functional.pad(self.tokens, (0, 0, 0, missing)),
                       mask=nn.functional.pad(self.mask, (0, missing)))


@dataclass(frozen=True)
class Pretrained:
    """A part of a conditioner that a stage of its own trains before stage 3.

    attribute: where the part is in the conditioner; part: its name in the stage's model folder; rate: factor on its
    learning rate in stage 3 (0: it stays as it is); required: stage 3 makes no sense without it.
    """

    attribute: str
    part: str
    rate: float = 0.0
    required: bool = True


class Conditioner(nn.Module, ABC):
    """A batch of clip features ⇒ a Condition.

    token_dim: D, the UNet's cross-attention width. map_channels: C of the column map, 0 where there is none.
    pretrained: {stage: part} that stages before the diffusion train. A subclass implements :meth:`forward` and
    :meth:`null`; training and sampling use :meth:`null` alike.
    """

    token_dim: int
    map_channels: int = 0
    pretrained: dict[str, Pretrained] = {}

    @abstractmethod
    def forward(self, batch: ClipBatch) -> Condition:
        """What the clips say."""

    @abstractmethod
    def null(self, batch: ClipBatch) -> Condition:
        """Nothing said, in the shapes of :meth:`forward`: what dropout trains and guidance leads away from."""

    def adapt(self, unet: Any) -> None:
        """Change a new UNet to what this conditioner needs, before weights are loaded: attention processors, a control
        branch. What is added starts at zero, so that the UNet computes what it did before."""

    def guide(self, batch: ClipBatch) -> tuple[LogLikelihood, float] | None:
        """A log-likelihood of noisy latents that sampling climbs, and by how much; None: no such guidance."""
        return None

    def with_dropout(self, batch: ClipBatch, rows: Tensor) -> Condition:
        """Rows (B,) that are True get the null."""
        return self(batch).where(rows, self.null(batch))
