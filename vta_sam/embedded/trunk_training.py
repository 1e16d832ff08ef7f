"""The trunk's training: pictures that it learns from, its LightningModule, the recipes' optimiser, held-out figures."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import lightning
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge
from sklearn.metrics import average_precision_score, r2_score
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from ..media.picture_reader import Squeeze
from ..media.video import read_clip
from ..runtime.errors import InputError
from .oracle import shown_at
from .timeline import LOOK_ALIKES, WORDS
from .tiny_networks import IMAGE_SIZE, Sight, Trunk
from .truth import MASK_WIDTH, SceneTruth, read_truth

LOOK_ALIKE_WORDS = tuple(LOOK_ALIKES)


@dataclass
class Pictures:
    """N pictures and what is true of them; W = 10 words in the order of ``scenes.classes.WORDS``.

    frames (N, 72, 96, 3) uint8; clip (N,) int64 number of the clip; visible (N, W) bool; pose (N, W) float32 in [0, 1],
    0 where it isn't visible; place (N, W, 3) float32: x and y of the box's centre and the root of its area, as
    fractions; masks (N, W, 24, 4) uint8, packed bits; look_alikes (N, L) bool: visible silent doubles.
    """

    frames: Tensor
    clip: Tensor
    visible: Tensor
    pose: Tensor
    place: Tensor
    masks: Tensor
    look_alikes: Tensor

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, chosen: Tensor) -> "Pictures":
        return Pictures(*(getattr(self, f.name)[chosen] for f in fields(self)))

    def to(self, device: torch.device | str) -> "Pictures":
        return Pictures(*(getattr(self, f.name).to(device) for f in fields(self)))

    def unpacked_masks(self) -> Tensor:
        """⇒ (N, W, 24, 32) float32 of zeros and ones."""
        bits = torch.arange(7, -1, -1, device=self.masks.device)
        return (self.masks[..., None].int() >> bits & 1).flatten(-2).float()

    @classmethod
    def concatenate(cls, parts: Sequence["Pictures"]) -> "Pictures":
        return cls(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(cls)))


def read_pictures(manifest: Path, fps: float, limit: int | None = None) -> Pictures:
    """Decode the clips of a manifest (their truth beside them) at ``fps`` ⇒ all their pictures, clip by clip.

    limit: the first so many clips. InputError: the manifest is missing or names no clip.
    """
    if not manifest.is_file():
        raise InputError(f"{manifest} is missing: it should list embedded clips; run data_prep/synthesize.py")
    with manifest.open(newline="", encoding="utf-8") as lines:
        videos = [manifest.parent / row["path"] for row in csv.DictReader(lines)][:limit]
    if not videos:
        raise InputError(f"{manifest} lists no clip; synthesize some")
    with ThreadPoolExecutor(2) as pool:  # decoding releases the interpreter's lock
        parts = list(pool.map(lambda job: _pictures_of(job[1], job[0], fps), enumerate(videos)))
    return Pictures.concatenate(parts)


def _pictures_of(video: Path, number: int, fps: float) -> Pictures:
    frames = read_clip(video, fps=fps, fits=[Squeeze(*IMAGE_SIZE)], want_audio=False).frames[0]
    return with_truth(frames, read_truth(video), number, fps)


def with_truth(frames: np.ndarray, truth: SceneTruth, number: int, fps: float) -> Pictures:
    """Frames (T, 72, 96, 3) at ``fps`` of a clip from its start, and the clip's truth ⇒ Pictures."""
    shown = shown_at(len(frames), 0.0, fps, truth.fps, len(truth.visible))
    count, words = len(frames), len(WORDS)
    visible, pose = np.zeros((count, words), bool), np.zeros((count, words), np.float32)
    place = np.zeros((count, words, 3), np.float32)
    masks = np.zeros((count, words, *truth.packed_masks.shape[2:]), np.uint8)
    look_alikes = np.zeros((count, len(LOOK_ALIKE_WORDS)), bool)
    for k, thing in enumerate(truth.objects):
        seen = truth.visible[shown, k].astype(bool)
        if thing.word not in WORDS:
            look_alikes[:, LOOK_ALIKE_WORDS.index(thing.word)] |= seen
            continue
        row = WORDS.index(thing.word)
        visible[:, row] |= seen
        pose[:, row] = np.maximum(pose[:, row], truth.pose[shown, k] * seen)
        box = truth.boxes[shown, k].astype(np.float32)
        place[:, row] = np.concatenate([box[:, :2], np.sqrt(box[:, 2:3] * box[:, 3:])], 1)
        masks[:, row] |= truth.packed_masks[shown, k]
    numbers = np.full(count, number)
    return Pictures(*map(torch.from_numpy, (frames, numbers, visible, pose, place, masks, look_alikes)))


class PictureBatches(IterableDataset):
    """``steps`` random batches of ``size`` augmented pictures and their truth: every picture once, in a new order each
    time through. A function of the seed alone."""

    def __init__(self, pictures: Pictures, size: int, steps: int, seed: int) -> None:
        self.pictures, self.size, self.steps, self.seed = pictures, size, steps, seed

    def __iter__(self) -> Iterator[tuple[Tensor, Pictures]]:
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.empty(0, dtype=torch.long)
        for _ in range(self.steps):
            while len(order) < self.size:
                order = torch.cat([order, torch.randperm(len(self.pictures), generator=generator)])
            chosen, order = order[: self.size], order[self.size :]
            yield augment(self.pictures[chosen], generator)


def augment(pictures: Pictures, generator: torch.Generator) -> tuple[Tensor, Pictures]:
    """Batch ⇒ pictures (B, 3, 72, 96) float in about [-1, 1], and their truth.

    Half of them are mirrored; light, contrast, the gain of each colour and noise vary; colours are swapped in three of
    ten. No shape, place or pose is changed otherwise.
    """
    count = len(pictures)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    x = pictures.frames.permute(0, 3, 1, 2).float() / 127.5 - 1
    swapped = x[:, torch.randperm(3, generator=generator)]
    x = torch.where(uniform(0, 1, 1, 1, 1) < 0.3, swapped, x)
    x = x * uniform(0.75, 1.25, 1, 1, 1) * uniform(0.85, 1.15, 3, 1, 1) + uniform(-0.2, 0.2, 1, 1, 1)
    x = x + uniform(0, 0.05, 1, 1, 1) * torch.randn(x.shape, generator=generator)

    mirrored = torch.rand(count, generator=generator) < 0.5
    x = torch.where(mirrored[:, None, None, None], x.flip(3), x).clamp(-1.5, 1.5)
    masks = pictures.unpacked_masks()
    masks = torch.where(mirrored[:, None, None, None], masks.flip(3), masks)
    place = pictures.place.clone()
    place[mirrored, :, 0] = 1 - place[mirrored, :, 0]
    truth = Pictures(pictures.frames, pictures.clip, pictures.visible, pictures.pose, place, pack(masks),
                     pictures.look_alikes)
    return x, truth


def pack(masks: Tensor) -> Tensor:
    """(…, 32) of zeros and ones ⇒ (…, 4) uint8, first cell in the highest bit, as numpy packs them."""
    bits = 1 << torch.arange(7, -1, -1, device=masks.device)
    return (masks.reshape(*masks.shape[:-1], MASK_WIDTH // 8, 8).int() * bits).sum(-1).to(torch.uint8)


def one_cycle(parameters: Iterable[nn.Parameter], rate: float, steps: int) -> dict:
    """AdamW whose rate rises to ``rate`` in a tenth of ``steps`` and falls along a cosine, as Lightning wants it.

    Weights decay by 0.01; biases, scales and other single numbers don't.
    """
    trained = list(parameters)
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.01},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=rate,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps, pct_start=0.1)
    return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


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


CALIBRATION_BINS = 10
PROBE_FOLDS = 5
PROBE_PENALTY = 10.0  # of the ridge


def trunk_figures(trunk: Trunk, pictures: Pictures) -> dict:
    """Figures by name, plain numbers and dicts of them by word.

    presence_ap: average precision over all (picture, word) pairs, for all ten words asked of every picture.
    presence_ap_beside_look_alike: the same over the pairs in whose picture the word's look-alike stands.
    presence_calibration_error: mean of |predicted - true share| over ten bins of probability, weighted by size.
    mask_iou: mean intersection over union of the mask (heat above one half) and the true one on 24 × 32 cells, over
    visible things. pose_r2, acting_ap: linear probes of the picture's vector, each clip told by a probe that was fitted
    on other clips: R² of the pose where the word is visible, average precision of "pose > 0.5" over all pictures. The
    few dozen clips that hold a word are few for 64 dimensions, so these are lower bounds.
    """
    probs, iou, vectors = _look(trunk, pictures)
    visible = pictures.visible.numpy()
    doubles = pictures.look_alikes.numpy()
    doubled = np.zeros_like(visible)
    for column, word in enumerate(LOOK_ALIKE_WORDS):
        doubled[:, WORDS.index(LOOK_ALIKES[word])] = doubles[:, column]
    pose = _probe_pose(vectors, pictures)
    shown = [row for row in range(len(WORDS)) if visible[:, row].any()]
    return {
        "pictures": len(pictures),
        "clips": int(pictures.clip.unique().numel()),
        "pictures_with_look_alike": round(float(doubles.any(1).mean()), 4),
        "presence_ap": _rounded(average_precision_score(visible.ravel(), probs.ravel())),
        "presence_ap_beside_look_alike": _rounded(average_precision_score(visible[doubled], probs[doubled])),
        "presence_calibration_error": _rounded(calibration_error(probs, visible)),
        "mask_iou": _rounded(np.nanmean(iou)),
        "pose_r2": _rounded(np.mean(list(pose["r2"].values()))),
        "acting_ap": _rounded(np.mean(list(pose["ap"].values()))),
        "presence_ap_by_word": {
            WORDS[r]: _rounded(average_precision_score(visible[:, r], probs[:, r])) for r in shown
        },
        "mask_iou_by_word": {WORDS[r]: _rounded(np.nanmean(iou[:, r])) for r in shown},
        "pose_r2_by_word": pose["r2"],
        "acting_ap_by_word": pose["ap"],
    }


@torch.inference_mode()
def _look(trunk: Trunk, pictures: Pictures) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """⇒ probs (N, W), IoU (N, W) with NaN where nothing is visible, vectors (N, Dv)."""
    probs, overlaps, vectors = [], [], []
    for start in range(0, len(pictures), 64):
        part = pictures[torch.arange(start, min(start + 64, len(pictures)))]
        sight = trunk(part.frames)
        masks, found = part.unpacked_masks().bool(), sight.heat > 0
        union = (masks | found).sum((2, 3))
        overlap = (masks & found).sum((2, 3)) / union.clamp_min(1)
        overlap[~part.visible | (masks.sum((2, 3)) == 0)] = torch.nan
        probs.append(sight.presence.sigmoid())
        overlaps.append(overlap)
        vectors.append(sight.embedding)
    return torch.cat(probs).numpy(), torch.cat(overlaps).numpy(), torch.cat(vectors).numpy()


def calibration_error(probs: np.ndarray, truth: np.ndarray) -> float:
    """Expected calibration error (Guo et al., 2017) of probabilities against truth, both of any one shape."""
    probs, truth = probs.ravel(), truth.ravel().astype(float)
    bins = np.minimum((probs * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    sizes = np.bincount(bins, minlength=CALIBRATION_BINS)
    gaps = np.abs(np.bincount(bins, probs - truth, minlength=CALIBRATION_BINS))
    return float(gaps.sum() / sizes.sum())


def _probe_pose(vectors: np.ndarray, pictures: Pictures) -> dict[str, dict[str, float]]:
    fold = pictures.clip.numpy() % PROBE_FOLDS
    visible, pose = pictures.visible.numpy(), pictures.pose.numpy()
    r2, ap = {}, {}
    for row, word in enumerate(WORDS):
        acting = pose[:, row] > 0.5
        if min(acting[fold != held].sum() for held in range(PROBE_FOLDS)) < 2:
            continue  # too few clips of this word to say anything
        told, score = np.zeros(len(vectors)), np.zeros(len(vectors))
        for held in range(PROBE_FOLDS):
            fit, there = fold != held, visible[:, row]
            line = Ridge(PROBE_PENALTY).fit(vectors[fit & there], pose[fit & there, row])
            told[~fit] = line.predict(vectors[~fit])
            score[~fit] = Ridge(PROBE_PENALTY).fit(vectors[fit], acting[fit]).predict(vectors[~fit])
        r2[word] = _rounded(r2_score(pose[visible[:, row], row], told[visible[:, row]]))
        ap[word] = _rounded(average_precision_score(acting, score))
    return {"r2": r2, "ap": ap}


def _rounded(x: float | np.floating) -> float:
    return round(float(x), 4)
