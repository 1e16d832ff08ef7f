"""Pictures of embedded clips with their truth per word: what the trunk learns from and is measured on."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from ..errors import InputError
from ..media.fit import Squeeze
from ..media.video import read_clip
from ..scenes.classes import LOOK_ALIKES, WORDS
from ..scenes.truth import MASK_WIDTH, SceneTruth, read_truth
from .trunk import IMAGE_SIZE

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
    shown = np.floor((np.arange(len(frames)) + 0.5) / fps * truth.fps + 1e-6).astype(int)
    shown = shown.clip(max=len(truth.visible) - 1)
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
