"""Contracts of the denoiser and of the conditioner, and the Condition that passes from the latter to the former.

Each compared system is one conditioner.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..dataset.shards.batch import ClipBatch
from ..runtime.errors import InputError
from ..vae.codec import Codec

LogLikelihood = Callable[[Tensor, Tensor], Tensor]  # noisy latent (B, C, columns, freq), times (B,) ⇒ log p (B,)


@dataclass
class Condition:
    """Input of a denoiser beside the noisy latent.

    Attributes:
        tokens: (B, L, D), keys and values of the denoiser's cross-attention.
        mask: (B, L), True = real.
        column_map: (B, C, columns) or None; channels laid beside the latent, column by column.
        image_tokens: (B, M, D) or None; a second stream, read by attention of its own.
        control: (B, 1, steps) or None; a track over the clip's time, from -1 to 1, that a control branch reads.
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
        """The same, but for the rows that are True in ``rows`` (B,), which come from ``other``."""
        return self._merge(other, lambda mine, its: torch.where(rows.view(-1, *[1] * (mine.ndim - 1)), its, mine))

    def concat(self, other: "Condition") -> "Condition":
        """Two batches as one, this one's rows first. The shorter one's tokens are padded with masked zeros, since
        captions have as many tokens as they please."""
        length = max(self.tokens.shape[1], other.tokens.shape[1])
        return self.padded(length)._merge(other.padded(length), lambda mine, its: torch.cat([mine, its]))

    def padded(self, length: int) -> "Condition":
        """The same with at least ``length`` tokens."""
        missing = max(0, length - self.tokens.shape[1])
        return replace(self, tokens=nn.functional.pad(self.tokens, (0, 0, 0, missing)),
                       mask=nn.functional.pad(self.mask, (0, missing)))


class Denoiser(nn.Module, ABC):
    """Noisy latent, times, condition ⇒ the prediction of the objective's target.

    A subclass has :meth:`forward` and the attributes; its constructor takes ``spec`` (the ClipSpec), and
    ``map_channels`` where it reads a column map. The other methods have defaults for a plain network.

    Attributes:
        latent_channels: C of the latent.
        token_dim: D, width of the tokens that it reads.
        map_channels: channels of the column map that it reads; 0: it reads none.
        latent_freq: frequency rows of the latent that it is built for; None: it takes any.
    """

    latent_channels: int
    token_dim: int
    map_channels: int = 0
    latent_freq: int | None = None

    @abstractmethod
    def forward(self, latent: Tensor, times: Tensor, condition: Condition) -> Tensor:
        """One prediction for each row ⇒ (B, C, columns, freq).

        Args:
            latent: noisy, (B, C, columns, freq).
            times: (B,), integers or floats from 0 (clean) to 1000 (noise); see :mod:`.objective`.
            condition: of B rows.
        """

    def use_plain_cross_attention(self) -> None:
        """Take times out of cross-attention, for tokens that have none. Nothing to do where there are none."""

    def set_token_times(self, times_s: Tensor) -> None:
        """Tell cross-attention when tokens are, where they are not one for each frame. Nothing to do where it has no
        times.

        Args:
            times_s: (L,), in seconds.
        """

    def blocks(self) -> list[nn.Module]:
        """Submodules that sharded training gathers one at a time, in the order of their use; []: all at once."""
        return []

    def checkpoint_blocks(self) -> None:
        """Have the backward pass compute activations of the blocks again, which takes time and saves memory."""
        raise InputError(f"gradient_checkpointing: {type(self).__name__} can't do without its activations")

    def compile_blocks(self) -> None:
        """Have torch compile the repeated blocks, each kind once, when they are first used."""
        raise InputError(f"compile: {type(self).__name__} has no repeated blocks")

    def weights_of(self, source: "Denoiser") -> tuple[dict[str, Tensor], dict[str, str]]:
        """The weights of another denoiser, fitted to this one: those of layers that read channels beside the latent are
        resized.

        Returns:
            {name: weight}; {name: how its size changed}.
        """
        return source.state_dict(), {}


@dataclass(frozen=True)
class Pretrained:
    """A part of a conditioner that a stage of its own trains before stage 3.

    Attributes:
        attribute: where the part is in the conditioner.
        part: its name in the stage's model folder.
        rate: factor on its learning rate in stage 3; 0: it stays as it is.
        required: stage 3 makes no sense without it.
    """

    attribute: str
    part: str
    rate: float = 0.0
    required: bool = True


class Conditioner(nn.Module, ABC):
    """A batch of clip features ⇒ a Condition.

    A subclass implements :meth:`forward` and :meth:`null`; training and sampling use :meth:`null` alike.

    Attributes:
        token_dim: D, width of the tokens; the denoiser's.
        map_channels: C of the column map; 0: there is none.
        denoiser_kind: the kind of denoiser that :meth:`adapt` can change, where it can't change any.
        pretrained: {stage: part} that stages before the diffusion train.
    """

    token_dim: int
    map_channels: int = 0
    denoiser_kind: type[Denoiser] = Denoiser  # type: ignore[type-abstract]
    pretrained: dict[str, Pretrained] = {}

    @abstractmethod
    def forward(self, batch: ClipBatch) -> Condition:
        """The condition of each clip."""

    @abstractmethod
    def null(self, batch: ClipBatch) -> Condition:
        """The unconditional condition, in the shapes of :meth:`forward`: dropout trains it, guidance leads away from
        it."""

    def adapt(self, denoiser: Denoiser) -> None:
        """Change a new denoiser to what this conditioner needs, before weights are loaded: attention processors, a
        control branch. Additions start at zero, so that the denoiser's output doesn't change.

        Args:
            denoiser: of :attr:`denoiser_kind`, as :func:`connect` has checked.
        """

    @classmethod
    def is_guided(cls, recipe: dict[str, Any]) -> bool:
        """Does :meth:`guide` of a conditioner of this recipe return a likelihood? Asked before training, since not
        every objective can be guided so."""
        return cls.guide is not Conditioner.guide

    def guide(self, batch: ClipBatch) -> tuple[LogLikelihood, float] | None:
        """A log-likelihood of noisy latents whose gradient guides sampling, and its scale; None: no such guidance."""
        return None

    def with_dropout(self, batch: ClipBatch, rows: Tensor) -> Condition:
        """The condition of each clip; the null where ``rows`` (B,) is True."""
        return self(batch).where(rows, self.null(batch))


def require_kind(denoiser: type, conditioner: type) -> None:
    """Refuse a class of denoisers that a class of conditioners can't adapt.

    Raises:
        InputError: it is none of the conditioner's ``denoiser_kind``.
    """
    kind = getattr(conditioner, "denoiser_kind", Denoiser)
    if kind is not Denoiser and not issubclass(denoiser, kind):
        raise InputError(f"the conditioner {conditioner.__name__} adds layers of its own to a {kind.__name__}, and the "
                         f"denoiser is a {denoiser.__name__}; take another conditioner, or leave denoiser= out, "
                         "for the UNet of the size")


def require_latent(denoiser: Denoiser, codec: Codec, where: str = "the VAE") -> None:
    """Refuse a denoiser of other latents than the codec's.

    Args:
        denoiser: to train or to sample with.
        codec: of its latents.
        where: the codec is, for the message.

    Raises:
        InputError: channels differ, or frequency rows where the denoiser is built for a number of them.
    """
    name = type(denoiser).__name__
    if denoiser.latent_channels != codec.latent_channels:
        raise InputError(f"the denoiser {name} takes latents of {denoiser.latent_channels} channels, {where} makes "
                         f"{codec.latent_channels}; give the denoiser latent_channels={codec.latent_channels} (a UNet: "
                         f"config.out_channels={codec.latent_channels}), or take another VAE")
    if denoiser.latent_freq not in (None, codec.latent_freq):
        raise InputError(f"the denoiser {name} is built for latents of {denoiser.latent_freq} frequency rows, {where} "
                         f"makes {codec.latent_freq}; give the denoiser latent_freq={codec.latent_freq} (the size's "
                         f"UNet: networks.unet.config.sample_size=[columns,{codec.latent_freq}]), or take another VAE")


def require_tokens(denoiser: Denoiser, conditioner: str, token_dim: int, map_channels: int) -> None:
    """Refuse a conditioner of other tokens or another column map than the denoiser reads.

    Args:
        denoiser: that reads them.
        conditioner: name of its class.
        token_dim: width of its tokens.
        map_channels: of its column map.

    Raises:
        InputError: one of the two differs.
    """
    name = type(denoiser).__name__
    if denoiser.token_dim != token_dim:
        raise InputError(f"the denoiser {name} reads tokens of width {denoiser.token_dim}, the conditioner "
                         f"{conditioner} makes tokens of width {token_dim}; let both take networks.token_dim")
    if denoiser.map_channels != map_channels:
        raise InputError(f"the denoiser {name} reads {denoiser.map_channels} channels beside the latent, the "
                         f"conditioner {conditioner} makes {map_channels}; give conditioner.map_channels="
                         f"{denoiser.map_channels}, or a denoiser that takes map_channels")


def connect(denoiser: Denoiser, conditioner: Conditioner) -> None:
    """Check that the two fit, and let the conditioner adapt the denoiser.

    Raises:
        InputError: they differ in the width of tokens or the channels of the column map, or the conditioner adapts
            another kind of denoiser.
    """
    require_kind(type(denoiser), type(conditioner))
    require_tokens(denoiser, type(conditioner).__name__, conditioner.token_dim, conditioner.map_channels)
    conditioner.adapt(denoiser)
