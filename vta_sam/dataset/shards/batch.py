"""Several clips as tensors: what every stage and every conditioner is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...clip import MAX_OBJECTS, ClipFeatures, ClipSpec
from ...runtime.randomness import SampleDraws

# MERGED-DOC """What training hides from the condition, so that each half of [v ; s] learns its part."""


@dataclass
class ClipBatch:
    """B clips of one :class:`ClipSpec`, padded; masks are True where something is real.

    frame_embedding (B, T, Dv), frame_mask (B, T); probs and areas (B, T, K), object_embedding (B, K, De), object_mask
    (B, K) with K = 8; caption_tokens (B, L, Dc), caption_mask (B, L); column_mask (B, columns): columns that hold sound
    of the clip. Where loaded: waveform (B, samples); moments (B, 2 · 8, columns, freq): mean and log-variance of the
    VAE; mask_embedding (B, T, K, 256), mask-pooled SAM embeddings. seeds (B,): every random draw for a row comes from
    its own seed.
    """

    keys: list[str]
    captions: list[str]
    objects: list[list[str]]
    seeds: Tensor
    frame_embedding: Tensor
    frame_mask: Tensor
    probs: Tensor
    areas: Tensor
    object_embedding: Tensor
    object_mask: Tensor
    caption_tokens: Tensor
    caption_mask: Tensor
    column_mask: Tensor
    waveform: Tensor | None = None
    moments: Tensor | None = None
    mask_embedding: Tensor | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, *args, **kwargs) -> "ClipBatch":
        """Move tensors to a device, as :meth:`torch.Tensor.to`."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        values |= {k: v.to(*args, **kwargs) for k, v in values.items() if isinstance(v, Tensor)}
        return ClipBatch(**values)

    def select(self, rows: Sequence[int]) -> "ClipBatch":
        """The rows named, in that order."""
        picked: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                picked[f.name] = value[list(rows)]
            else:
                picked[f.name] = None if value is None else [value[row] for row in rows]
        return ClipBatch(**picked)

    def without_objects(self, rows: Tensor) -> "ClipBatch":
        """Forget every object of the rows where ``rows`` (B,) is True: the video alone."""
        keep = ~rows
        return replace(
            self,
            probs=self.probs * keep[:, None, None],
            object_mask=self.object_mask & keep[:, None],
            object_embedding=self.object_embedding * keep[:, None, None],
        )

    def without_frames(self, rows: Tensor) -> "ClipBatch":
        """Blank the frame embeddings of the rows where ``rows`` (B,) is True: the grounding alone."""
        return replace(self, frame_embedding=self.frame_embedding * ~rows[:, None, None])

    def with_appearance_offset(self, offset: Tensor) -> "ClipBatch":
        """Add one vector per clip to all of its frame embeddings, in units of their spread over the dimensions.

        offset (B, Dv). What changes from frame to frame stays readable; what the pictures look like throughout doesn't.
        """
        spread = self.frame_embedding.std(dim=-1, keepdim=True).mean(dim=1, keepdim=True)
        return replace(self, frame_embedding=self.frame_embedding + spread * offset[:, None])


@dataclass
class ClipWindow:
    """One clip cut and padded to a ClipSpec, as numpy arrays: what a loader's worker hands over."""

    features: ClipFeatures
    seed: int
    valid_frames: int
    valid_columns: int
    moments: np.ndarray | None = None


def window_of(
    features: ClipFeatures,
    spec: ClipSpec,
    seed: int,
    start_column: int = 0,
    moments: np.ndarray | None = None,
) -> ClipWindow:
    """Cut ``spec.duration_s`` out of a record from a column on, padding with zeros beyond its end.

    Starts are columns, so that sound, latent and frames are cut at the same instant.
    """
    start_s = start_column * spec.column_s
    total_s = features.waveform.shape[0] / spec.sample_rate_hz
    first_frame = int(np.floor(start_s * spec.fps + 0.5))
    valid_frames = max(1, min(spec.frames, features.frame_embedding.shape[0] - first_frame))
    valid_columns = int(np.clip(np.ceil((total_s - start_s) / spec.column_s - 1e-6), 1, spec.columns))
    first_sample = round(start_s * spec.sample_rate_hz)
    cut = replace(
        features,
        waveform=_fit(features.waveform[first_sample:first_sample + spec.samples], spec.samples),
        frame_embedding=_fit(features.frame_embedding[first_frame:first_frame + valid_frames], spec.frames),
        probs=_fit(features.probs[first_frame:first_frame + valid_frames], spec.frames),
        boxes=_fit(features.boxes[first_frame:first_frame + valid_frames], spec.frames),
        areas=_fit(features.areas[first_frame:first_frame + valid_frames], spec.frames),
        mask_embedding=None if features.mask_embedding is None else _fit(
            features.mask_embedding[first_frame:first_frame + valid_frames], spec.frames),
        start_s=features.start_s + start_s,
        duration_s=spec.duration_s,
    )
    if moments is not None:
        cut_moments = moments[:, start_column:start_column + spec.columns]
        moments = np.swapaxes(_fit(np.swapaxes(cut_moments, 0, 1), spec.columns), 0, 1)
    return ClipWindow(cut, seed, valid_frames, valid_columns, moments)


def collate(windows: Sequence[ClipWindow], spec: ClipSpec) -> ClipBatch:
    """Windows of one spec ⇒ a batch; objects are padded to 8, caption tokens to the longest."""
    records = [w.features for w in windows]
    longest = max(r.caption_tokens.shape[0] for r in records)
    moments = [w.moments for w in windows if w.moments is not None]
    masks = [r.mask_embedding for r in records if r.mask_embedding is not None]
    return ClipBatch(
        keys=[r.key for r in records],
        captions=[r.caption for r in records],
        objects=[r.objects for r in records],
        seeds=torch.tensor([w.seed for w in windows], dtype=torch.int64),
        frame_embedding=_stack([r.frame_embedding for r in records]),
        frame_mask=_mask([w.valid_frames for w in windows], spec.frames),
        probs=_stack([_fit(r.probs.T, MAX_OBJECTS).T for r in records]),
        areas=_stack([_fit(r.areas.T, MAX_OBJECTS).T for r in records]),
        object_embedding=_stack([_fit(r.object_embedding, MAX_OBJECTS) for r in records]),
        object_mask=_mask([len(r.objects) for r in records], MAX_OBJECTS),
        caption_tokens=_stack([_fit(r.caption_tokens, longest) for r in records]),
        caption_mask=_mask([r.caption_tokens.shape[0] for r in records], longest),
        column_mask=_mask([w.valid_columns for w in windows], spec.columns),
        waveform=_stack([r.waveform for r in records]),
        moments=_stack(moments) if len(moments) == len(windows) else None,
        mask_embedding=_stack([np.swapaxes(_fit(np.swapaxes(m, 0, 1), MAX_OBJECTS), 0, 1) for m in masks])
        if len(masks) == len(windows) else None,
    )


def _fit(array: np.ndarray, length: int) -> np.ndarray:
    """Cut or zero-pad the first axis."""
    if array.shape[0] >= length:
        return array[:length]
    return np.concatenate([array, np.zeros((length - array.shape[0], *array.shape[1:]), array.dtype)])


def _stack(arrays: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(arrays).astype(np.float32))


def _mask(lengths: Sequence[int], size: int) -> Tensor:
    return torch.arange(size)[None, :] < torch.tensor(lengths)[:, None]


@dataclass(frozen=True)
class Augmentation:
    """objects: probability that all objects of a clip are forgotten, so that the video alone is in distribution.
    frames: probability that its frame embeddings are blank, so that the grounding alone is. appearance: strength of a
    random vector added to all frame embeddings of a clip.

    Where one embedding shows what a thing is and when it acts, nothing makes a model read the words: it hears a dog in
    the pictures and keeps hearing it when the word says canary. The offset leaves the pictures' changes, which carry
    the timing, and blurs the appearance, which the words carry better. All 0: nothing is hidden, as published.
    """

    objects: float = 0.1
    frames: float = 0.0
    appearance: float = 0.0

    def __call__(self, batch: ClipBatch, purpose: str) -> ClipBatch:
        """Each row's draws belong to its own seed, under ``purpose`` (the stage)."""
        draws, device = SampleDraws(batch.seeds, f"augment {purpose}"), batch.probs.device
        uniform = draws.uniform(2).to(device)
        offset = draws.normal(batch.frame_embedding.shape[-1]).to(device)
        blank = uniform[:, 0] < self.frames
        batch = batch.with_appearance_offset(self.appearance * offset).without_frames(blank)
        return batch.without_objects((uniform[:, 1] < self.objects) & ~blank)
