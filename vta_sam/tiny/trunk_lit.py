"""How the trunk is trained: losses on heat, presence, and on what must be readable from the picture's vector."""

from __future__ import annotations

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .optimise import one_cycle
from .pictures import LOOK_ALIKE_WORDS, Pictures
from .trunk import Sight, Trunk


class Readout(nn.Module):
    """Linear maps from a picture's vector to what it must tell; used in training alone, and not shipped."""

    def __init__(self, embedding_dim: int, words: int) -> None:
        super().__init__()
        self.visible = nn.Linear(embedding_dim, words)
        self.pose = nn.Linear(embedding_dim, words)
        self.place = nn.Linear(embedding_dim, 3 * words)
        self.look_alikes = nn.Linear(embedding_dim, len(LOOK_ALIKE_WORDS))


class TrunkTraining(lightning.LightningModule):
    """Trains a trunk on single pictures; it hears nothing and knows no time.

    Args:
        trunk: the network.
        words: how many words it knows.
        rate: highest learning rate of AdamW, reached after a tenth of the steps and left along a cosine.
        steps: optimiser steps of the whole run.
        loss_weights: weight per loss; the keys are those of :meth:`losses`.
    """

    def __init__(self, trunk: Trunk, words: int, rate: float, steps: int, loss_weights: dict[str, float]) -> None:
        super().__init__()
        self.trunk, self.rate, self.steps, self.loss_weights = trunk, rate, steps, dict(loss_weights)
        self.readout = Readout(trunk.embedding_dim, words)
        self.acting = nn.Linear(trunk.part.in_features, 1)

    def training_step(self, batch: tuple[Tensor, Pictures], index: int) -> Tensor:
        x, truth = batch
        losses = self.losses(self.trunk.see(x.contiguous(memory_format=torch.channels_last)), truth)
        self.log_dict({f"train/{name}": loss.detach() for name, loss in losses.items()})
        return torch.stack([self.loss_weights[name] * loss for name, loss in losses.items()]).sum()

    def losses(self, sight: Sight, truth: Pictures) -> dict[str, Tensor]:
        """What the trunk saw against what is true ⇒ losses by name."""
        visible, masks = truth.visible.float(), truth.unpacked_masks()
        heat, embedding = sight.heat.float(), sight.embedding.float()
        told_place = self.readout.place(embedding).float().reshape(truth.place.shape)
        return {
            "heat": F.binary_cross_entropy_with_logits(heat, masks, pos_weight=heat.new_tensor(3.0)),
            "overlap": _dice_loss(heat, masks, truth.visible),
            "presence": F.binary_cross_entropy_with_logits(sight.presence.float(), visible),
            "acting": _where(truth.visible, _cross_entropy(self.acting(sight.hidden)[..., 0], truth.pose)),
            "told_presence": _cross_entropy(self.readout.visible(embedding), visible).mean(),
            "told_pose": _cross_entropy(self.readout.pose(embedding), truth.pose).mean(),
            "told_place": _where(truth.visible, F.smooth_l1_loss(told_place, truth.place, reduction="none", beta=0.05)
                                 .mean(-1)),
            "told_look_alikes": _cross_entropy(self.readout.look_alikes(embedding), truth.look_alikes.float()).mean(),
        }

    def configure_optimizers(self):
        return one_cycle(self.parameters(), self.rate, self.steps)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")


def _where(mask: Tensor, loss: Tensor) -> Tensor:
    """Mean of a loss over the places that count; zero when there are none."""
    return (loss * mask).sum() / mask.sum().clamp_min(1)


def _dice_loss(logits: Tensor, masks: Tensor, visible: Tensor) -> Tensor:
    """1 - Dice of each visible thing's heat (Milletari et al., 2016), in which small things count as much as large."""
    heat = logits.sigmoid()
    shared = 2 * (heat * masks).sum((2, 3)) + 1
    return _where(visible, 1 - shared / (heat.sum((2, 3)) + masks.sum((2, 3)) + 1))
