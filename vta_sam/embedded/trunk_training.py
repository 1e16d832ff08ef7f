"""The trunk's training: its data, its LightningModule, the optimiser of both recipes, and its held-out figures."""

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
from .timeline import LOOK_ALIKES, WORDS
from .tiny_networks import IMAGE_SIZE, Trunk, TrunkOutput
from .truth import MASK_WIDTH, SceneTruth, pictures_on_screen, read_truth

LOOK_ALIKE_WORDS = tuple(LOOK_ALIKES)


@dataclass
class Pictures:
    """N pictures and their truth, for W = 10 words in the order of :data:`~.timeline.WORDS`.

    Attributes:
        frames: (N, 72, 96, 3) uint8.
        clip: (N,) int64, number of the clip.
        visible: (N, W) bool.
        pose: (N, W) float32 in [0, 1], 0 where the thing isn't visible.
        place: (N, W, 3) float32, x and y of the box's centre and the root of its area, as fractions.
        masks: (N, W, 24, 4) uint8, packed bits.
        look_alikes: (N, L) bool, visible look-alikes.
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
        """The masks ⇒ (N, W, 24, 32) float32 of zeros and ones."""
        bits = torch.arange(7, -1, -1, device=self.masks.device)
        return (self.masks[..., None].int() >> bits & 1).flatten(-2).float()

    @classmethod
    def concatenate(cls, parts: Sequence["Pictures"]) -> "Pictures":
        return cls(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(cls)))


def read_pictures(manifest: Path, fps: float, limit: int | None = None) -> Pictures:
    """All pictures of a manifest's clips, clip by clip.

    Args:
        manifest: csv of embedded clips, whose truth lies beside them.
        fps: pictures a second.
        limit: number of the first clips that are read; None: all.

    Raises:
        InputError: the manifest is missing, or names no clip.
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
    """The frames of a clip from its start on, with the clip's truth.

    Args:
        frames: (T, 72, 96, 3) uint8.
        truth: of the clip.
        number: of the clip.
        fps: frame rate of the frames.
    """
    shown = pictures_on_screen(len(frames), 0.0, fps, truth.fps, len(truth.visible))
    count, words = len(frames), len(WORDS)
    visible, pose = np.zeros((count, words), bool), np.zeros((count, words), np.float32)
    place = np.zeros((count, words, 3), np.float32)
    masks = np.zeros((count, words, *truth.packed_masks.shape[2:]), np.uint8)
    look_alikes = np.zeros((count, len(LOOK_ALIKE_WORDS)), bool)
    for k, thing in enumerate(truth.objects):
        visible_here = truth.visible[shown, k].astype(bool)
        if thing.word not in WORDS:
            look_alikes[:, LOOK_ALIKE_WORDS.index(thing.word)] |= visible_here
            continue
        row = WORDS.index(thing.word)
        visible[:, row] |= visible_here
        pose[:, row] = np.maximum(pose[:, row], truth.pose[shown, k] * visible_here)
        box = truth.boxes[shown, k].astype(np.float32)
        place[:, row] = np.concatenate([box[:, :2], np.sqrt(box[:, 2:3] * box[:, 3:])], 1)
        masks[:, row] |= truth.packed_masks[shown, k]
    numbers = np.full(count, number)
    return Pictures(*map(torch.from_numpy, (frames, numbers, visible, pose, place, masks, look_alikes)))


class PictureBatches(IterableDataset):
    """Random batches of augmented pictures and their truth. Every epoch has an order of its own.

    Args:
        pictures: the data.
        size: pictures in a batch.
        steps: number of batches.
        seed: of order and augmentation.
    """

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
    """A batch, augmented ⇒ pictures (B, 3, 72, 96) float in about [-1, 1], and their truth.

    Half of the pictures are mirrored. Light, contrast, the gain of each colour and noise vary. Colours are swapped in
    three of ten. Shapes, places and poses stay as they are otherwise.
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
    """Masks (…, 32) of zeros and ones ⇒ (…, 4) uint8, first cell in the highest bit, as numpy packs them."""
    bits = 1 << torch.arange(7, -1, -1, device=masks.device)
    return (masks.reshape(*masks.shape[:-1], MASK_WIDTH // 8, 8).int() * bits).sum(-1).to(torch.uint8)


def one_cycle(parameters: Iterable[nn.Parameter], lr: float, steps: int) -> dict:
    """AdamW and its schedule ⇒ the dict that Lightning takes.

    The learning rate rises to ``lr`` in a tenth of ``steps``, and falls along a cosine. Weight decay is 0.01, and 0 for
    biases and scales.
    """
    trained = list(parameters)
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.01},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=lr,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, steps, pct_start=0.1)
    return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Readout(nn.Module):
    """Linear maps from a picture's embedding to targets of training. They are not part of the shipped weights."""

    def __init__(self, embedding_dim: int, words: int) -> None:
        super().__init__()
        self.visible = nn.Linear(embedding_dim, words)
        self.pose = nn.Linear(embedding_dim, words)
        self.place = nn.Linear(embedding_dim, 3 * words)
        self.look_alikes = nn.Linear(embedding_dim, len(LOOK_ALIKE_WORDS))


class TrunkTraining(lightning.LightningModule):
    """Trains a trunk on single pictures, without sound and without their order in time.

    Args:
        trunk: the network.
        words: number of words in its table.
        lr: highest learning rate of AdamW, see :func:`one_cycle`.
        steps: optimiser steps of the whole run.
        loss_weights: weight of each loss of :meth:`losses`, by name.
    """

    def __init__(self, trunk: Trunk, words: int, lr: float, steps: int, loss_weights: dict[str, float]) -> None:
        super().__init__()
        self.trunk, self.lr, self.steps, self.loss_weights = trunk, lr, steps, dict(loss_weights)
        self.readout = Readout(trunk.embedding_dim, words)
        self.acting = nn.Linear(trunk.part.in_features, 1)

    def training_step(self, batch: tuple[Tensor, Pictures], index: int) -> Tensor:
        x, truth = batch
        output = self.trunk.forward_normalised(x.contiguous(memory_format=torch.channels_last))
        losses = self.losses(output, truth)
        self.log_dict({f"train/{name}": loss.detach() for name, loss in losses.items()})
        return torch.stack([self.loss_weights[name] * loss for name, loss in losses.items()]).sum()

    def losses(self, output: TrunkOutput, truth: Pictures) -> dict[str, Tensor]:
        """The trunk's output against the truth ⇒ losses (scalars) by name."""
        visible, masks = truth.visible.float(), truth.unpacked_masks()
        heat, embedding = output.heat.float(), output.embedding.float()
        place = self.readout.place(embedding).float().reshape(truth.place.shape)
        return {
            "heat": F.binary_cross_entropy_with_logits(heat, masks, pos_weight=heat.new_tensor(3.0)),
            "overlap": _dice_loss(heat, masks, truth.visible),
            "presence": F.binary_cross_entropy_with_logits(output.presence.float(), visible),
            "acting": _where(truth.visible, _cross_entropy(self.acting(output.hidden)[..., 0], truth.pose)),
            "told_presence": _cross_entropy(self.readout.visible(embedding), visible).mean(),
            "told_pose": _cross_entropy(self.readout.pose(embedding), truth.pose).mean(),
            "told_place": _where(truth.visible, F.smooth_l1_loss(place, truth.place, reduction="none", beta=0.05)
                                 .mean(-1)),
            "told_look_alikes": _cross_entropy(self.readout.look_alikes(embedding), truth.look_alikes.float()).mean(),
        }

    def configure_optimizers(self):
        return one_cycle(self.parameters(), self.lr, self.steps)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")


def _where(mask: Tensor, loss: Tensor) -> Tensor:
    """Mean of a loss where the mask is true; zero where it is true nowhere."""
    return (loss * mask).sum() / mask.sum().clamp_min(1)


def _dice_loss(logits: Tensor, masks: Tensor, visible: Tensor) -> Tensor:
    """Mean of 1 - Dice over the visible things (Milletari et al., 2016), so that size is no weight."""
    heat = logits.sigmoid()
    shared = 2 * (heat * masks).sum((2, 3)) + 1
    return _where(visible, 1 - shared / (heat.sum((2, 3)) + masks.sum((2, 3)) + 1))


CALIBRATION_BINS = 10
PROBE_FOLDS = 5
PROBE_PENALTY = 10.0  # of the ridge


def trunk_figures(trunk: Trunk, pictures: Pictures) -> dict:
    """Held-out figures by name, numbers and dicts of numbers by word.

    presence_ap: average precision over all pairs of a picture and a word.
    presence_ap_beside_look_alike: the same over the pairs whose picture shows the word's look-alike.
    presence_calibration_error: mean of |predicted - true share| over ten bins of probability, weighted by size.
    mask_iou: mean intersection over union of the mask (heat above one half) and the true mask on 24 × 32 cells, over
    visible things.
    pose_r2, acting_ap: linear probes of the picture's embedding, fitted on other clips than they are measured on. R² of
    the pose where the word is visible, and average precision of "pose > 0.5" over all pictures. A word is in a few
    dozen clips, few for 64 dimensions, so both are lower bounds.

    Args:
        trunk: the network.
        pictures: held-out ones.
    """
    probs, iou, vectors = _predict(trunk, pictures)
    visible = pictures.visible.numpy()
    look_alikes = pictures.look_alikes.numpy()
    beside_look_alike = np.zeros_like(visible)
    for column, word in enumerate(LOOK_ALIKE_WORDS):
        beside_look_alike[:, WORDS.index(LOOK_ALIKES[word])] = look_alikes[:, column]
    pose = _probe_pose(vectors, pictures)
    shown = [row for row in range(len(WORDS)) if visible[:, row].any()]
    return {
        "pictures": len(pictures),
        "clips": int(pictures.clip.unique().numel()),
        "pictures_with_look_alike": round(float(look_alikes.any(1).mean()), 4),
        "presence_ap": _rounded(average_precision_score(visible.ravel(), probs.ravel())),
        "presence_ap_beside_look_alike": _rounded(
            average_precision_score(visible[beside_look_alike], probs[beside_look_alike])),
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
def _predict(trunk: Trunk, pictures: Pictures) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The trunk's probabilities (N, W), IoU (N, W) with NaN where nothing is visible, and embeddings (N, Dv)."""
    probs, overlaps, vectors = [], [], []
    for start in range(0, len(pictures), 64):
        part = pictures[torch.arange(start, min(start + 64, len(pictures)))]
        output = trunk(part.frames)
        masks, predicted = part.unpacked_masks().bool(), output.heat > 0
        union = (masks | predicted).sum((2, 3))
        overlap = (masks & predicted).sum((2, 3)) / union.clamp_min(1)
        overlap[~part.visible | (masks.sum((2, 3)) == 0)] = torch.nan
        probs.append(output.presence.sigmoid())
        overlaps.append(overlap)
        vectors.append(output.embedding)
    return torch.cat(probs).numpy(), torch.cat(overlaps).numpy(), torch.cat(vectors).numpy()


def calibration_error(probs: np.ndarray, truth: np.ndarray) -> float:
    """Expected calibration error (Guo et al., 2017) of probabilities against truth, both of any one shape."""
    probs, truth = probs.ravel(), truth.ravel().astype(float)
    bins = np.minimum((probs * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    sizes = np.bincount(bins, minlength=CALIBRATION_BINS)
    gaps = np.abs(np.bincount(bins, probs - truth, minlength=CALIBRATION_BINS))
    return float(gaps.sum() / sizes.sum())


def _probe_pose(vectors: np.ndarray, pictures: Pictures) -> dict[str, dict[str, float]]:
    """{"r2": {word: figure}, "ap": {word: figure}} of linear probes, cross-validated over clips."""
    fold = pictures.clip.numpy() % PROBE_FOLDS
    visible, pose = pictures.visible.numpy(), pictures.pose.numpy()
    r2, ap = {}, {}
    for row, word in enumerate(WORDS):
        acting = pose[:, row] > 0.5
        if min(acting[fold != held].sum() for held in range(PROBE_FOLDS)) < 2:
            continue  # too few clips of this word to say anything
        predicted, score = np.zeros(len(vectors)), np.zeros(len(vectors))
        for held in range(PROBE_FOLDS):
            fit = fold != held
            with_thing = fit & visible[:, row]
            probe = Ridge(PROBE_PENALTY).fit(vectors[with_thing], pose[with_thing, row])
            predicted[~fit] = probe.predict(vectors[~fit])
            score[~fit] = Ridge(PROBE_PENALTY).fit(vectors[fit], acting[fit]).predict(vectors[~fit])
        r2[word] = _rounded(r2_score(pose[visible[:, row], row], predicted[visible[:, row]]))
        ap[word] = _rounded(average_precision_score(acting, score))
    return {"r2": r2, "ap": ap}


def _rounded(x: float | np.floating) -> float:
    return round(float(x), 4)
