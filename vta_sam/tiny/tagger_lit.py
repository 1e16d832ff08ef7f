"""How the tagger is trained, and its held-out figures."""

from __future__ import annotations

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor

from .optimise import one_cycle
from .sounds import mels_of, vocoded
from .tagger import Tagger


class TaggerTraining(lightning.LightningModule):
    """Cross-entropy with a little label smoothing, so that the vectors of a class stay apart without running away.

    Args:
        tagger: the network.
        rate: highest learning rate.
        steps: optimiser steps of the whole run.
        label_smoothing: share of belief spread over all classes.
    """

    def __init__(self, tagger: Tagger, rate: float, steps: int, label_smoothing: float) -> None:
        super().__init__()
        self.tagger, self.rate, self.steps, self.label_smoothing = tagger, rate, steps, label_smoothing

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        mels, classes = batch
        logits = self.tagger.classify(F.relu(self.tagger.embed_mel(mels)))
        loss = F.cross_entropy(logits, classes, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self):
        return one_cycle(self.parameters(), self.rate, self.steps)


@torch.inference_mode()
def tagger_figures(tagger: Tagger, waveforms: Tensor, classes: Tensor, vocode: int) -> dict:
    """Top-1 on sounds (N, samples) of single things and their classes (N,) ⇒ figures by name.

    top1: as they are. top1_vocoded, top1_smeared: the first ``vocode`` of them through Griffin-Lim, and blurred by 4
    frames × 2 bins before it. confused: "truth → answer" and how often, as they are.
    """
    answers = torch.cat([tagger.logits(part) for part in waveforms.split(32)]).argmax(1)
    mels = mels_of(waveforms[:vocode])
    figures: dict = {"sounds": len(waveforms), "top1": _share(answers == classes), "vocoded_sounds": len(mels)}
    for name, smear in (("top1_vocoded", False), ("top1_smeared", True)):
        vectors = tagger.embed_mel(vocoded(mels, smear))
        figures[name] = _share(tagger.classify(F.relu(vectors)).argmax(1) == classes[:vocode])
    figures["top1_by_word"] = {
        word: _share(answers[classes == row] == row)
        for row, word in enumerate(tagger.classes) if (classes == row).any()
    }
    confused: dict[str, int] = {}
    for truth, answer in zip(classes.tolist(), answers.tolist()):
        if truth != answer:
            pair = f"{tagger.classes[truth]} → {tagger.classes[answer]}"
            confused[pair] = confused.get(pair, 0) + 1
    return figures | {"confused": confused}


def _share(right: Tensor) -> float:
    return round(float(right.float().mean()), 4)
