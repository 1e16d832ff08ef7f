"""Base classes of extractors, which turn the pictures and words of a clip into features.

There are three kinds: a grounder (probability and box of each object), an encoder (a vector per picture, word and
token), and any number of further features per frame. An extractor of one's own takes a subclass, a yaml that names it,
and ``vta_sam.trust`` (docs/extraction.md).
"""

from __future__ import annotations

import difflib
import inspect
import json
import os
import warnings
from abc import ABC, ABCMeta, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..checkpoints.model_folder import refuse_foreign
from ..checkpoints.parts import EXECUTION, TARGET, short_name
from ..media.picture_reader import Fit, Squeeze
from ..runtime.errors import InputError

_TOO_NEAR = 0.8  # of two names, by difflib: "setting" and "settings" have 0.93, "words" and "known_words" 0.63


@dataclass
class Grounding:
    """A grounder's result for T frames and K objects (K = 0 is legal), float32 arrays.

    Attributes:
        probs: (T, K) in [0, 1], probability that object k is visible in frame t.
        boxes: (T, K, 4) cx cy w h as fractions of the picture.
        areas: (T, K) mask area as a fraction of the picture.
        mask_embedding: (T, K, 256), or None.
    """

    probs: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    mask_embedding: np.ndarray | None = None

    @classmethod
    def empty(cls, frames: int) -> "Grounding":
        """The grounding without objects ⇒ arrays with K = 0."""
        return cls.zeros(frames, 0)

    @classmethod
    def zeros(cls, frames: int, objects: int) -> "Grounding":
        """The grounding in which no object is visible ⇒ zeros."""
        zeros = np.zeros((frames, objects), np.float32)
        return cls(zeros, np.zeros((frames, objects, 4), np.float32), zeros.copy())

    @classmethod
    def concatenate(cls, parts: list["Grounding"]) -> "Grounding":
        """Groundings of consecutive chunks of frames, of the same objects ⇒ one."""
        embeddings = [p.mask_embedding for p in parts if p.mask_embedding is not None]
        return cls(
            np.concatenate([p.probs for p in parts]),
            np.concatenate([p.boxes for p in parts]),
            np.concatenate([p.areas for p in parts]),
            np.concatenate(embeddings) if embeddings else None,
        )

    def between(self, looked_at: Sequence[int], frames: int) -> "Grounding":
        """The grounding of all of a clip's frames, from that of some of them, by linear interpolation.

        Args:
            looked_at: the frames that this is of, ascending, the first and the last among them.
            frames: of the clip.
        """
        if len(looked_at) == frames:
            return self
        after = np.searchsorted(looked_at, np.arange(frames))
        before = np.maximum(after - 1, 0)
        known = np.asarray(looked_at)
        share = ((np.arange(frames) - known[before]) / np.maximum(known[after] - known[before], 1)).astype(np.float32)

        def filled(values: np.ndarray) -> np.ndarray:
            weights = share.reshape(-1, *[1] * (values.ndim - 1))
            return values[before] * (1 - weights) + values[after] * weights

        embedding = None if self.mask_embedding is None else filled(self.mask_embedding)
        return Grounding(filled(self.probs), filled(self.boxes), filled(self.areas), embedding)


def areas_inside(boxes: np.ndarray) -> np.ndarray:
    """Boxes (T, K, 4) ⇒ the share of the picture (T, K) that each covers, without parts beyond its edges."""
    first = np.clip(boxes[..., :2] - boxes[..., 2:] / 2, 0.0, 1.0)
    end = np.clip(boxes[..., :2] + boxes[..., 2:] / 2, 0.0, 1.0)
    return np.prod(end - first, axis=-1).astype(np.float32)


class _Checked(ABCMeta):
    """Metaclass of extractors: it checks each new one for lacking members, and stores its constructor's arguments."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if lacking := sorted(getattr(cls, "__abstractmethods__", ())):
            raise InputError(f"the extractor {cls.__name__} has no {' and no '.join(lacking)}; {_HOW}")
        extractor = super().__call__(*args, **kwargs)
        extractor._check()
        extractor._arguments = _arguments(cls, args, kwargs)
        return extractor

    @property
    def __signature__(cls) -> inspect.Signature:
        """The constructor's signature, which __call__ would hide from editors and from help()."""
        signature = inspect.signature(getattr(cls, "__init__"))  # mypy refuses cls.__init__ of a metaclass's class
        return signature.replace(parameters=list(signature.parameters.values())[1:])


_HOW = "vta_sam/perception/base.py lists the members of an extractor"


class Extractor(ABC, metaclass=_Checked):
    """Base of grounders, encoders and extractors of further features.

    A subclass states ``kind``, ``fingerprint`` and ``fit``; the other members have defaults. An extractor that lacks a
    member, or has one with a misspelt name, raises InputError when it is made.

    Attributes:
        kind: one word, the first of the fingerprint.
        fingerprint: ``kind-…``, the name and hash of the weights. It is stored in dataset.json, and compared when a
            trained model is used on a video.
        fit: resizing of pictures to the extractor's input.
        settings: further settings that change a record, as JSON values, such as a template for words. An extraction
            that was begun with other settings is refused.
        execution: names of the constructor's arguments (and of settings) for device, speed and number format. A
            dataset's recipe leaves them out, since another machine chooses its own.
        whole_clips: True: ``for_clip`` returns another extractor for each clip, which takes all of a clip's frames in
            one call.
        batch_frames: frames that are best in one call, of several clips where they have the same size; None: the
            frames of a clip come by themselves, as many as are there.
    """

    kind: ClassVar[str]
    fingerprint: str
    fit: Fit
    settings: Mapping[str, Any] = {}
    execution: ClassVar[tuple[str, ...]] = EXECUTION
    whole_clips: ClassVar[bool] = False
    batch_frames: int | None = None
    _arguments: dict[str, Any] | None = None

    def for_clip(self, video: str | os.PathLike, start_s: float, fps: float) -> Any:
        """The extractor of one clip, which may remember the clip's earlier frames.

        Args:
            video: file of the clip.
            start_s: start of the clip in the file, in seconds.
            fps: frame rate of the frames that the extractor will get.
        """
        return self

    @property
    def recipe(self) -> dict[str, Any] | None:
        """{"_target_": name, argument: value} of an extractor with the same results, without ``execution``.

        None where an argument is no JSON value.
        """
        if self._arguments is None:
            return None
        return {TARGET: short_name(type(self))} | {
            name: value for name, value in self._arguments.items() if name not in self.execution}

    def _check(self) -> None:
        name = type(self).__name__
        stated = ("kind", "fingerprint", "fit", *self._stated())
        if lacking := [member for member in stated if not hasattr(self, member)]:
            raise InputError(f"the extractor {name} has no {' and no '.join(lacking)}; {_HOW}")
        if not self.fingerprint.startswith(f"{self.kind}-"):
            raise InputError(f"the extractor {name} has the fingerprint {self.fingerprint!r}, expected {self.kind}-…: "
                             "its first word is its kind")
        known = {member for base in type(self).__mro__ if base.__module__ == __name__
                 for member in (*vars(base), *vars(base).get("__annotations__", ()))}
        own = {member for base in type(self).__mro__ if base.__module__ != __name__ for member in vars(base)}
        for member in sorted((own | set(vars(self))) - known):
            near = difflib.get_close_matches(member, [k for k in known if not k.startswith("_")], 1, _TOO_NEAR)
            if near and not member.startswith("_"):
                raise InputError(f"the extractor {name} has the member {member!r}, which is never read; did you mean "
                                 f"{near[0]!r}? Else begin its name with an underscore")

    @classmethod
    def _stated(cls) -> tuple[str, ...]:
        """Names of further attributes that an extractor has to have."""
        return ()


class Grounder(Extractor):
    """Frames and object words ⇒ :class:`Grounding`.

    Its ``fit`` keeps the whole picture, so that boxes as fractions hold for the original.

    Attributes:
        known_words: a closed vocabulary; () where any word is taken.
        finds_objects: False: the grounder finds nothing, so that naming objects is of no use.
        draws_masks: True: the grounder has ``masks``.
        every: only every such frame of a clip is looked at, and its last. In between, values are interpolated.
    """

    known_words: Sequence[str] = ()
    finds_objects: ClassVar[bool] = True
    draws_masks: ClassVar[bool] = False
    every: int = 1

    def _look_at(self, every: int) -> None:
        """Set ``every``, in a constructor. Where it isn't 1, it changes records, and is one of the ``settings``."""
        if every < 1:
            raise InputError(f"every is {every}, expected a whole number from 1: every such frame is looked at")
        self.every = every
        if every != 1:
            self.settings = {**self.settings, "every": every}

    def check_words(self, objects: Sequence[str]) -> None:
        """Raise InputError where these objects can't be looked for together, as by a limit of tokens.

        Called before a video is read. Whatever isn't overridden takes any words.
        """

    @abstractmethod
    def ground(self, frames: np.ndarray, objects: list[str]) -> Grounding:
        """Probability, box and area of each object in each frame. Called chunk by chunk, unless ``whole_clips``.

        Args:
            frames: (T, H, W, 3) uint8 RGB, as ``fit`` makes them.
            objects: up to 8 words.
        """

    def launch(self, requests: Sequence[tuple[np.ndarray, list[str]]]) -> Callable[[], list[Grounding]]:
        """Begin to ground frames of several clips ⇒ a function that waits for the Grounding of each.

        A grounder on a device computes them in one batch, and returns before the device is done. One that doesn't
        override this computes them here, one after the other.

        Args:
            requests: frames and objects of :meth:`ground`; all frames have the same size, ``batch_frames`` at most.
        """
        found = [self.ground(frames, objects) for frames, objects in requests]
        return lambda: found

    def masks(self, frames: np.ndarray, objects: list[str]) -> np.ndarray:
        """Masks (T, K, h, w) bool, of the arguments of :meth:`ground`. Raises InputError unless ``draws_masks``."""
        raise InputError(f"the grounder {self.fingerprint} draws no masks; choose another, or masks=false")


class Encoder(Extractor):
    """Pictures and text ⇒ embeddings: one per picture, per object word, and per token of the caption. float32 arrays.

    Attributes:
        frame_dim: Dv, length of a picture's embedding.
        object_dim: De, length of a word's embedding.
        caption_dim: Dc, length of a token's embedding.
    """

    frame_dim: int
    object_dim: int
    caption_dim: int

    @classmethod
    def _stated(cls) -> tuple[str, ...]:
        return "frame_dim", "object_dim", "caption_dim"

    def check_words(self, objects: Sequence[str]) -> None:
        """Raise InputError where one of these objects can't be embedded, as :meth:`Grounder.check_words`."""

    @abstractmethod
    def encode_frames(self, frames: np.ndarray) -> np.ndarray:
        """Frames (T, H, W, 3) uint8 RGB as ``fit`` makes them ⇒ (T, frame_dim).

        Called chunk by chunk, unless ``whole_clips``.
        """

    def launch(self, frames: np.ndarray) -> Callable[[], np.ndarray]:
        """Begin to encode frames, of several clips ⇒ a function that waits for the vectors of :meth:`encode_frames`.

        Args:
            frames: ``batch_frames`` at most.
        """
        found = self.encode_frames(frames)
        return lambda: found

    def prepare_texts(self, objects: Sequence[str], captions: Sequence[str]) -> None:
        """Told of the words and captions of many clips before they are encoded one by one, to encode them together.

        Whatever isn't overridden does nothing. Texts that can't be encoded are left to the clip's own call.
        """

    @abstractmethod
    def encode_objects(self, objects: list[str]) -> np.ndarray:
        """K words ⇒ (K, object_dim); K = 0 ⇒ (0, object_dim)."""

    @abstractmethod
    def encode_caption(self, caption: str) -> np.ndarray:
        """A caption ⇒ (L, caption_dim) token states, L ≥ 1."""


class FrameExtractor(Extractor):
    """Frames ⇒ one further feature per frame, such as optical flow.

    Attributes:
        name: of the feature's row in :data:`vta_sam.clip.FEATURES`, and of the feature in a record.
        dim: length of the last axis, where the row leaves it open. A conditioner's config gets it by ``from_data``.
        context_frames: earlier frames of the clip that the feature of a frame depends on; 1 for optical flow.
    """

    name: ClassVar[str]
    dim: int | None = None
    context_frames: int = 0

    @classmethod
    def _stated(cls) -> tuple[str, ...]:
        return ("name",)

    @abstractmethod
    def extract(self, frames: np.ndarray) -> np.ndarray:
        """Frames (T, H, W, 3) uint8 RGB as ``fit`` makes them ⇒ (T, …) float32.

        Called chunk by chunk, unless ``whole_clips``. From the second chunk on, the first ``context_frames`` are the
        last of the chunk before, and the caller drops their rows; a clip's first chunk has no such frames.
        """


class NoGrounder(Grounder):
    """A grounder that finds nothing: all probabilities, boxes and areas are zero.

    It serves models that read pictures alone, or the caption alone. Objects named by a user are left out with a notice.
    """

    kind = "none"
    fingerprint = "none-0"
    fit = Squeeze(8, 8)  # the smallest pictures, since they are not read
    finds_objects = False

    def ground(self, frames: np.ndarray, objects: list[str]) -> Grounding:
        """A Grounding of zeros."""
        return Grounding.zeros(len(frames), len(objects))


def _arguments(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """The constructor's arguments by name, defaults included; None where one is no JSON value."""
    bound = inspect.signature(cls).bind(*args, **kwargs)
    bound.apply_defaults()
    found: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL and value:
            return None
        if kind is not inspect.Parameter.VAR_POSITIONAL:
            found |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
    try:
        return json.loads(json.dumps(found, default=lambda value: os.fspath(value)))
    except (TypeError, ValueError):
        return None


def warn_of_cut(caption: str, tokens: int, limit: int) -> None:
    """Warn where a text encoder reads the beginning of a caption alone.

    Args:
        caption: the text.
        tokens: that it has.
        limit: that the encoder reads at most.
    """
    if tokens > limit:
        warnings.warn(f"the caption '{caption[:40]}…' has {tokens} tokens, of which the text encoder reads the first "
                      f"{limit}", stacklevel=3)


def require_known(recipe: Any, where: str) -> dict[str, Any]:
    """A recipe out of a dataset.json, checked without an import of its class.

    Args:
        recipe: as read from the file.
        where: file and key, for messages.

    Raises:
        InputError: it is no recipe, or names a class that is neither this project's nor trusted.
    """
    if not isinstance(recipe, dict) or not isinstance(recipe.get(TARGET), str):
        raise InputError(f"{where} is {recipe!r}, expected {{{TARGET}: name, …}}; extract again")
    try:
        refuse_foreign(recipe, where)
    except InputError as error:
        raise InputError(f"{error}. If you trust it, name it on the command line as in extraction (grounder=…, "
                         "encoder=…)") from error
    return recipe
