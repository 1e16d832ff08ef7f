"""Batches of clips as tensors, which stages train on and conditioners read: crops, padding, augmentation."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...clip import FEATURES, MAX_OBJECTS, ClipFeatures, ClipSpec, Feature, HasFeatures
from ...runtime.randomness import SampleDraws


@dataclass(init=False)
class ClipBatch(HasFeatures):
    """B clips of one ``spec``, padded; masks are True where something is real.

    Args:
        keys: ids of the clips.
        captions: of the clips.
        objects: their words.
        seeds: (B,), on the host; every random draw for a row comes from its own seed.
        frame_mask: (B, T).
        object_mask: (B, K) with K = 8.
        caption_mask: (B, L).
        column_mask: (B, columns): columns that hold sound of the clip.
        spec: of every clip.
        waveform: (B, samples), where loaded.
        moments: (B, 2 · channels, columns, freq), mean and log-variance of the VAE, where loaded.
        draws: what a stage's :data:`Draw` made of the seeds, by name: tensors (B, …), or lists of B numbers, which stay
            on the host; None: nothing yet.
        features: tensors by the names of :data:`~vta_sam.clip.FEATURES`, with (B,) before the row's axes.
    """

    keys: list[str]
    captions: list[str]
    objects: list[list[str]]
    seeds: Tensor
    frame_mask: Tensor
    object_mask: Tensor
    caption_mask: Tensor
    column_mask: Tensor
    spec: ClipSpec
    waveform: Tensor | None = None
    moments: Tensor | None = None
    draws: dict[str, Any] | None = None
    features: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, *args, **kwargs) -> "ClipBatch":
        """The batch on a device, but for the seeds, which the host reads; arguments as of :meth:`torch.Tensor.to`.

        Tensors of pinned memory are sent without waiting for their arrival.
        """
        unblocked = {"non_blocking": True, **kwargs}
        return self._sent(lambda tensor: tensor.to(*args, **unblocked if tensor.is_pinned() else kwargs))

    def pin_memory(self) -> "ClipBatch":
        """The batch in pinned memory, out of which :meth:`to` sends it to a GPU without waiting."""
        return self._sent(lambda tensor: tensor.pin_memory())

    def _sent(self, send: Callable[[Tensor], Tensor]) -> "ClipBatch":
        return self._each(lambda tensor: tensor if tensor is self.seeds else send(tensor), lambda values: values)

    def parted(self) -> tuple["ClipBatch", list[np.ndarray]]:
        """The batch without its numbers, and these, which pickle by value where tensors would go to shared memory."""
        arrays: list[np.ndarray] = []

        def take(tensor: Tensor) -> Tensor:
            arrays.append(tensor.numpy())
            return torch.empty(0)

        return self._each(take, lambda values: values), arrays

    def joined(self, arrays: list[np.ndarray]) -> "ClipBatch":
        """What :meth:`parted` parted."""
        left = iter(arrays)
        return self._each(lambda _: torch.from_numpy(next(left)), lambda values: values)

    def with_draws(self, draw: "Draw | None") -> "ClipBatch":
        """The batch with its draws: those that a loader's worker has made already, or ``draw``'s, on its device."""
        if draw is None or self.draws is not None:
            return self
        device = self.frame_mask.device
        return self.replace(draws={name: value.to(device) if isinstance(value, Tensor) else value
                                   for name, value in draw(self).items()})

    def select(self, rows: Sequence[int]) -> "ClipBatch":
        """The rows named, in that order."""
        return self._each(lambda tensor: tensor[list(rows)], lambda values: [values[row] for row in rows])

    def _each(self, of_tensor: Callable[[Tensor], Tensor], of_list: Callable[[list], list]) -> "ClipBatch":
        changed: dict[str, Any] = {name: of_tensor(tensor) for name, tensor in self.features.items()}
        for name, value in vars(self).items():
            if isinstance(value, (Tensor, list)):
                changed[name] = of_tensor(value) if isinstance(value, Tensor) else of_list(value)
        if self.draws is not None:
            changed["draws"] = {name: of_tensor(value) if isinstance(value, Tensor) else of_list(value)
                                for name, value in self.draws.items()}
        return self.replace(**changed)

    def without_objects(self, rows: Tensor) -> "ClipBatch":
        """The batch without the objects of the rows where ``rows`` (B,) is True: their video alone.

        All features per object are zero there, and no object is real.
        """
        objects = self._blank(rows, lambda axes: "K" in axes)
        return self.replace(object_mask=self.object_mask & ~rows[:, None], **objects)

    def without_frames(self, rows: Tensor) -> "ClipBatch":
        """The batch without the pictures of the rows where ``rows`` (B,) is True: their grounding alone.

        All features per frame that are not of an object are zero there.
        """
        return self.replace(**self._blank(rows, lambda axes: "T" in axes and "K" not in axes))

    def _blank(self, rows: Tensor, which: Callable[[tuple[str | int, ...]], bool]) -> dict[str, Tensor]:
        return {name: tensor * ~rows.view(-1, *[1] * (tensor.ndim - 1)) for name, tensor in self.features.items()
                if which(FEATURES[name].axes)}

    def with_appearance_offset(self, offset: Tensor) -> "ClipBatch":
        """The batch with one vector per clip added to all of its frame embeddings.

        The difference between frames stays. Features common to all frames of a clip are blurred.

        Args:
            offset: (B, Dv), in units of the embeddings' standard deviation over their dimensions.
        """
        spread = self.frame_embedding.std(dim=-1, keepdim=True).mean(dim=1, keepdim=True)
        return self.replace(frame_embedding=self.frame_embedding + spread * offset[:, None])


# The random draws of a stage: a batch ⇒ ClipBatch.draws. A plain function of seeds and shapes, which is pickled and
# called in the loader's workers, so that a step on a GPU waits for none.
Draw = Callable[[ClipBatch], dict[str, Any]]


@dataclass
class ClipWindow:
    """One clip, cut and padded to a ClipSpec, as numpy arrays: a sample of a loader's worker.

    Args:
        features: of the stretch.
        seed: of every random draw for the sample.
        valid_frames: frames before the padding.
        valid_columns: columns before the padding.
        moments: (2 · channels, columns, freq) of the VAE, or None.
    """

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
    """Cut ``spec.duration_s`` out of a record from a column on, padded beyond its end.

    Starts are columns, so that sound, latent and frames are cut at the same instant: frame i of the window is at
    ``(i + 0.5) / fps`` of the window. At a multiple of ``spec.aligned_columns`` a frame of the record is at that time.
    Elsewhere the window's frame lies between two of them: its features are interpolated, so that what happens keeps its
    time and is spread over two frames.

    Args:
        features: of the whole record.
        spec: of the window.
        seed: of the sample.
        start_column: where the window begins in the record.
        moments: (2 · channels, columns, freq) of the whole record, or None.
    """
    start_s, lengths = start_column * spec.column_s, features.lengths
    total_s = features.waveform.shape[0] / spec.sample_rate_hz
    start_frames = start_column * spec.frames_per_column
    valid_frames = max(1, min(spec.frames, lengths["T"] - math.floor(start_frames + Fraction(1, 2))))
    valid_columns = int(np.clip(np.ceil((total_s - start_s) / spec.column_s - 1e-6), 1, spec.columns))
    first_sample = round(start_s * spec.sample_rate_hz)
    cut = features.replace(
        waveform=_fit(features.waveform[first_sample:first_sample + spec.samples], spec.samples),
        start_s=features.start_s + start_s,
        duration_s=spec.duration_s,
        **{name: _along(array, FEATURES[name], "T", lambda frames, pad: _fit(
            _frames_from(frames, start_frames, valid_frames), spec.frames, pad))
           for name, array in features.features.items()},
    )
    if moments is not None:
        cut_moments = moments[:, start_column:start_column + spec.columns]
        moments = np.swapaxes(_fit(np.swapaxes(cut_moments, 0, 1), spec.columns), 0, 1)
    return ClipWindow(cut, seed, valid_frames, valid_columns, moments)


def collate(windows: Sequence[ClipWindow], spec: ClipSpec, unread: Collection[str] = ()) -> ClipBatch:
    """A batch of windows of one spec. Objects are padded to 8, caption tokens to the longest of the batch. A feature
    that any clip lacks is left out; so is the waveform, where ``unread`` names it."""
    records = [w.features for w in windows]
    tokens = [r.lengths["L"] for r in records]
    sizes = {"K": MAX_OBJECTS, "L": max(tokens)}
    moments = [w.moments for w in windows if w.moments is not None]
    return ClipBatch(
        keys=[r.key for r in records],
        captions=[r.caption for r in records],
        objects=[r.objects for r in records],
        seeds=torch.tensor([w.seed for w in windows], dtype=torch.int64),
        frame_mask=_mask([w.valid_frames for w in windows], spec.frames),
        object_mask=_mask([len(r.objects) for r in records], MAX_OBJECTS),
        caption_mask=_mask(tokens, sizes["L"]),
        column_mask=_mask([w.valid_columns for w in windows], spec.columns),
        spec=spec,
        waveform=None if "waveform" in unread else _stack([r.waveform for r in records]),
        moments=_stack(moments) if len(moments) == len(windows) else None,
        features={name: _stack([_padded(r.features[name], row, sizes) for r in records])
                  for name, row in FEATURES.items() if all(name in r.features for r in records)},
    )


def interleave(parts: Sequence[ClipBatch | None], first: int = 0, pinned: bool = False) -> ClipBatch:
    """The batch that :func:`collate` would make of all rows, out of batches that hold every ``len(parts)``-th row each.

    Args:
        parts: None where one has no row in this batch.
        first: the part that row 0 comes from; the next row comes from the next part.
        pinned: the result is made in pinned memory.
    """
    step = len(parts)
    turned = [*parts[first:], *parts[:first]]
    placed = {place: part for place, part in enumerate(turned) if part is not None}
    size = sum(len(part) for part in placed.values())

    def tensor(of: Callable[[ClipBatch], Tensor], pad: float = 0.0) -> Tensor:
        found = {place: of(part) for place, part in placed.items()}
        lengths = [max(sizes) for sizes in zip(*(each.shape[1:] for each in found.values()))]
        dtype = next(iter(found.values())).dtype
        whole = torch.full((size, *lengths), pad, dtype=dtype, pin_memory=pinned)
        for place, each in found.items():
            whole[(slice(place, None, step), *(slice(length) for length in each.shape[1:]))] = each
        return whole

    def rows(of: Callable[[ClipBatch], Any]) -> list:
        whole: list = [None] * size
        for place, part in placed.items():
            whole[place::step] = list(of(part))
        return whole

    def either(of: Callable[[ClipBatch], Any]) -> Any:
        return tensor(of) if isinstance(of(one), Tensor) else rows(of)

    one, everybody = next(iter(placed.values())), list(placed.values())
    optional = {name: tensor(lambda part: getattr(part, name)) for name in ("waveform", "moments")
                if all(getattr(part, name) is not None for part in everybody)}
    draws = None if one.draws is None else {
        name: either(lambda part: (part.draws or {})[name]) for name in one.draws}
    return ClipBatch(
        **{name: rows(lambda part: getattr(part, name)) for name in ("keys", "captions", "objects")},
        **{name: tensor(lambda part: getattr(part, name))
           for name in ("frame_mask", "object_mask", "caption_mask", "column_mask")},
        seeds=torch.tensor(rows(lambda part: part.seeds.tolist()), dtype=torch.int64), spec=one.spec, draws=draws,
        features={name: tensor(lambda part: part.features[name], FEATURES[name].pad) for name in one.features
                  if all(name in part.features for part in everybody)}, **optional)


def _padded(array: np.ndarray, row: Feature, sizes: Mapping[str, int]) -> np.ndarray:
    for axis, size in sizes.items():
        array = _along(array, row, axis, lambda parts, pad: _fit(parts, size, pad))
    return array


def _along(array: np.ndarray, row: Feature, axis: str, change: Callable[[np.ndarray, float], np.ndarray]) -> np.ndarray:
    """The array after ``change(array, row.pad)``, for each of its axes of that letter moved to the front."""
    for position in (i for i, letter in enumerate(row.axes) if letter == axis):
        array = np.moveaxis(change(np.moveaxis(array, position, 0), row.pad), 0, position)
    return array


def _frames_from(array: np.ndarray, start_frames: Fraction, count: int) -> np.ndarray:
    """``count`` rows of (T, …), one frame apart, from ``start_frames`` on, which may lie between two frames ⇒ up to
    (count, …)."""
    first, share = int(start_frames), float(start_frames % 1)
    if not share:
        return array[first:first + count]
    rows, last = np.arange(first, first + count), len(array) - 1
    earlier, later = array[rows.clip(max=last)], array[(rows + 1).clip(max=last)]
    return earlier + share * (later - earlier)


def _fit(array: np.ndarray, length: int, pad: float = 0.0) -> np.ndarray:
    """The array with its first axis cut, or padded, to a length."""
    if array.shape[0] >= length:
        return array[:length]
    return np.concatenate([array, np.full((length - array.shape[0], *array.shape[1:]), pad, array.dtype)])


def _stack(arrays: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(arrays).astype(np.float32))


def _mask(lengths: Sequence[int], size: int) -> Tensor:
    return torch.arange(size)[None, :] < torch.tensor(lengths)[:, None]


@dataclass(frozen=True)
class Augmentation:
    """Hides parts of the condition in training, so that frames and objects are each learnt from.

    A frame's embedding identifies a thing and shows when it acts, so that a model can do without the words: it
    generates the dog of the pictures where the word says canary. The appearance offset leaves the difference between
    frames, which carries the timing, and blurs the appearance, which the words carry better. All 0: nothing is hidden,
    as published.

    Args:
        objects: probability that all objects of a clip are left out, so that the video alone is in distribution.
        frames: probability that the pictures' features are zero, so that the grounding alone is in distribution.
        appearance: strength of a random vector that is added to all frame embeddings of a clip.
    """

    objects: float = 0.1
    frames: float = 0.0
    appearance: float = 0.0

    def draw(self, batch: ClipBatch, purpose: str) -> dict[str, Any]:
        """Each row's draws, made from its own seed under ``purpose`` (the stage): ``hidden`` (B, 2), U[0, 1), which
        decides what is hidden, and unless appearance is 0 ``moved`` (B, Dv), N(0, 1), the offset's direction."""
        draws = SampleDraws(batch.seeds, f"augment {purpose}")
        made = {"hidden": draws.uniform(2)}
        if self.appearance:
            made["moved"] = draws.normal(batch.frame_embedding.shape[-1])
        return made

    def __call__(self, batch: ClipBatch, purpose: str) -> ClipBatch:
        """The batch with parts hidden, by its draws; by :meth:`draw`'s where it has none of these."""
        drawn = batch.draws if batch.draws is not None and "hidden" in batch.draws else None
        if drawn is None:
            drawn = {name: value.to(batch.frame_mask.device) for name, value in self.draw(batch, purpose).items()}
        hidden = drawn["hidden"]
        blank = hidden[:, 0] < self.frames
        if self.appearance:
            batch = batch.with_appearance_offset(self.appearance * drawn["moved"])
        return batch.without_frames(blank).without_objects((hidden[:, 1] < self.objects) & ~blank)
