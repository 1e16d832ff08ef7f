"""The time base of a clip, and the record of one clip that runs through the whole project."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from fractions import Fraction
from typing import Any, Self

import numpy as np

from .runtime.errors import InputError

MAX_OBJECTS = 8
_ROUNDING_FRAMES = 1e-6  # differences of less are rounding
_LARGEST_DENOMINATOR = 1_000_000  # of a frame rate as a fraction


@dataclass(frozen=True)
class FrameClock:
    """Times of frames: frame i is the picture on screen at ``(i + 0.5) / fps``, and stands for ``[i, i + 1) / fps``.

    No other module divides by fps or stretches an index over a duration.

    Args:
        fps: frames a second.

    Raises:
        InputError: fps is not positive.
    """

    fps: float

    def __post_init__(self):
        if not self.fps > 0:
            raise InputError(f"fps={self.fps}: expected frames a second, more than 0")

    @property
    def period_s(self) -> float:
        """Seconds from one frame to the next."""
        return 1 / self.fps

    def time_s(self, frame: Any) -> Any:
        """Centre of a frame, in seconds. An array or a tensor of indices ⇒ one of times."""
        return (frame + 0.5) / self.fps

    def times_s(self, frames: int) -> np.ndarray:
        """Centres of the first ``frames`` frames, in seconds ⇒ (frames,)."""
        return self.time_s(np.arange(frames))

    def frame_at(self, time_s: Any) -> Any:
        """The frame that stands for a time: i with ``i / fps <= time_s < (i + 1) / fps``, up to rounding. A number, an
        array or a tensor ⇒ the same kind, whole numbers as floats."""
        return (time_s * self.fps + _ROUNDING_FRAMES) // 1

    def shares(self, frames: int, steps: int, step_s: float) -> np.ndarray:
        """How much of each frame's time falls into each step ``[j, j + 1) * step_s`` ⇒ (frames, steps); every row sums
        to 1. Of a frame that reaches beyond the last step the part before its end counts.

        Args:
            frames: how many frames, from the first.
            steps: how many steps, from time 0, such as mel frames.
            step_s: seconds of a step.
        """
        begin, end = np.arange(frames)[:, None] / self.fps, np.arange(1, frames + 1)[:, None] / self.fps
        step_begin, step_end = np.arange(steps) * step_s, np.arange(1, steps + 1) * step_s
        common_s = np.minimum(end, step_end) - np.maximum(begin, step_begin)
        common_s = np.where(common_s > _ROUNDING_FRAMES * self.period_s, common_s, 0.0)
        return common_s / common_s.sum(axis=1, keepdims=True)

    def frames_of(self, duration_s: float) -> int:
        """Frames of a stretch: all i with ``(i + 0.5) / fps`` inside it, and at least one."""
        return max(1, int(np.floor(duration_s * self.fps + 0.5)))


def step_times_s(step: Any, step_s: float) -> Any:
    """Centre of a step ``[j, j + 1) * step_s``, in seconds. An array or a tensor of indices ⇒ one of times."""
    return (step + 0.5) * step_s


@dataclass(frozen=True)
class MelSpec:
    """A log-mel front end: rates and sizes. The defaults are AudioLDM's (Liu et al. 2023).

    Args:
        sample_rate_hz: of the waveform.
        fft_samples: length of the FFT and of the Hann window.
        hop_samples: samples from one mel frame to the next.
        n_mels: bins of the slaney filterbank.
        min_hz: lower edge of the filterbank.
        max_hz: upper edge of the filterbank.
    """

    sample_rate_hz: int = 16_000
    fft_samples: int = 1024
    hop_samples: int = 160
    n_mels: int = 64
    min_hz: float = 0.0
    max_hz: float = 8000.0

    def __post_init__(self):
        if min(self.sample_rate_hz, self.fft_samples, self.hop_samples, self.n_mels) <= 0:
            raise InputError(f"a mel front end needs positive rates and sizes, got {self}")
        if not 0 <= self.min_hz < self.max_hz <= self.sample_rate_hz / 2:
            raise InputError(f"mel.min_hz={self.min_hz} and mel.max_hz={self.max_hz}: expected 0 <= min_hz < max_hz <= "
                             f"{self.sample_rate_hz / 2:g}, half of mel.sample_rate_hz")

    @property
    def frame_rate_hz(self) -> float:
        return self.sample_rate_hz / self.hop_samples


@dataclass(frozen=True)
class ClipSpec:
    """Rates and durations of a clip, and every length that follows from them. No other file does this arithmetic.

    Frame i is the picture on screen at ``(i + 0.5) / fps``. A *column* is one step of the latent's time axis; column j
    spans ``[j, j + 1) * column_s``.
    """

    duration_s: float
    fps: float
    latent_stride_frames: int  # mel frames per column: the VAE's stride in time
    mel: MelSpec = MelSpec()

    def __post_init__(self):
        if not isinstance(self.mel, MelSpec):  # as a config or a model.yaml says it; null: the default
            object.__setattr__(self, "mel", MelSpec(**(self.mel or {})))
        if self.duration_s <= 0 or self.fps <= 0:
            raise InputError(f"a clip needs duration_s > 0 and fps > 0, got {self.duration_s} s at {self.fps} fps")
        mel_frames = self.duration_s * self.sample_rate_hz / self.hop_samples
        if abs(mel_frames - round(mel_frames)) > 1e-6 or round(mel_frames) % self.latent_stride_frames:
            raise InputError(
                f"duration_s={self.duration_s} is {mel_frames:g} mel frames, which is not a multiple of the VAE's "
                f"stride of {self.latent_stride_frames}; change clip.duration_s"
            )

    @property
    def clock(self) -> FrameClock:
        return FrameClock(self.fps)

    @property
    def sample_rate_hz(self) -> int:
        return self.mel.sample_rate_hz

    @property
    def hop_samples(self) -> int:
        return self.mel.hop_samples

    @property
    def n_mels(self) -> int:
        return self.mel.n_mels

    def settings(self) -> dict[str, Any]:
        """The values that rebuild the spec, ``ClipSpec(**settings)``, as model.yaml keeps them. A mel front end is
        named where it is not the default one."""
        settings: dict[str, Any] = {"duration_s": self.duration_s, "fps": self.fps,
                                    "latent_stride_frames": self.latent_stride_frames}
        return settings if self.mel == MelSpec() else settings | {"mel": asdict(self.mel)}

    @property
    def frames(self) -> int:
        """Pictures in a clip: all i with (i + 0.5) / fps inside it."""
        return int(np.floor(self.duration_s * self.fps + 0.5))

    @property
    def samples(self) -> int:
        return self.mel_frames * self.hop_samples

    @property
    def mel_frames(self) -> int:
        return round(self.duration_s * self.sample_rate_hz / self.hop_samples)

    @property
    def mel_rate_hz(self) -> float:
        return self.sample_rate_hz / self.hop_samples

    @property
    def columns(self) -> int:
        return self.mel_frames // self.latent_stride_frames

    @property
    def column_s(self) -> float:
        return self.latent_stride_frames * self.hop_samples / self.sample_rate_hz

    def frame_times_s(self, n: int | None = None) -> np.ndarray:
        """Centres of n frames (default: of a clip), in seconds ⇒ (n,)."""
        return self.clock.times_s(self.frames if n is None else n)

    def column_times_s(self, n: int | None = None) -> np.ndarray:
        """Centres of n columns (default: of a clip), in seconds ⇒ (n,)."""
        return step_times_s(np.arange(self.columns if n is None else n), self.column_s)

    @property
    def frames_per_column(self) -> Fraction:
        """Exactly, with fps as the decimal or NTSC fraction that it was written as (29.97, 30000 / 1001)."""
        fps = Fraction(self.fps).limit_denominator(_LARGEST_DENOMINATOR)
        return fps * Fraction(self.latent_stride_frames * self.hop_samples, self.sample_rate_hz)

    @property
    def mel_frames_per_frame(self) -> Fraction:
        """Exactly, as :attr:`frames_per_column`."""
        return self.latent_stride_frames / self.frames_per_column

    @property
    def aligned_columns(self) -> int:
        """Columns from one moment at which a frame and a column begin together to the next: 25 at 8 frames a second and
        40 ms a column, 2500 at 29.97."""
        return self.frames_per_column.denominator

    @property
    def start_step_columns(self) -> int:
        """Windows of long videos and crops of training begin at multiples of this many columns.

        :attr:`aligned_columns`, so that every frame keeps its own features and its time. Where that is longer than
        three quarters of a clip no grid of starts would serve: 1, and :func:`.dataset.shards.batch.window_of`
        interpolates the features to the times of the window's frames.
        """
        aligned = self.aligned_columns
        return aligned if aligned <= self.columns - self.columns // 4 else 1

    def interpolation(self, frames: int | None = None, columns: int | None = None) -> np.ndarray:
        """Linear interpolation from frame centres to column centres ⇒ (columns, frames); every row sums to 1.

        Where a column holds several frames (fps · column_s > 1), each frame's weight is a triangle as wide as the
        coarser of the two grids, so that no frame falls between two columns.
        """
        frame_times, column_times = self.frame_times_s(frames), self.column_times_s(columns)
        width = max(1.0 / self.fps, self.column_s)
        # beyond the first and last frame the nearest one holds
        inside = np.clip(column_times, frame_times[0], frame_times[-1])
        weights = np.maximum(0.0, 1.0 - np.abs(inside[:, None] - frame_times[None, :]) / width)
        return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)

    def column_of(self, time_s: float) -> int:
        return int(np.floor(time_s / self.column_s + 1e-9))

    def samples_of(self, duration_s: float) -> int:
        """Samples in a stretch of any length."""
        return round(duration_s * self.sample_rate_hz)

    def frames_of(self, duration_s: float) -> int:
        """Frames in a stretch of any length, by the rule of :attr:`frames`."""
        return self.clock.frames_of(duration_s)


@dataclass(frozen=True)
class Feature:
    """One array of a clip: a row of :data:`FEATURES`.

    Args:
        axes: in order. "T" frames, "K" objects, "L" tokens of the caption, an int a fixed length; any other letters, a
            length that all clips of a dataset share. The same letter is the same length everywhere in a clip.
        optional: a clip may lack it. It is None then, and in a batch in which any clip lacks it.
        pad: value beyond the last frame, object or token of a clip.
        limits: lowest and highest value, where the meaning has such.
        dim: the last axis' length is known by this name (see :meth:`dim_key`); "": by "<name>_dim".
        meaning: one line for people.
    """

    axes: tuple[str | int, ...]
    optional: bool = False
    pad: float = 0.0
    limits: tuple[float, float] | None = None
    dim: str = ""
    meaning: str = ""

    def dim_key(self, name: str) -> str:
        """The name of its last axis' length in dataset.json and in a conditioner's config."""
        return self.dim or f"{name}_dim"


# Records, shards, crops, batches and checks all follow from this table; no other code lists the features of a clip.
FEATURES: dict[str, Feature] = {
    "frame_embedding": Feature(("T", "Dv"), dim="frame_dim", meaning="embedding of each frame by the video encoder"),
    "probs": Feature(("T", "K"), limits=(0.0, 1.0), meaning="probability that object k is visible in frame t"),
    "boxes": Feature(("T", "K", 4), limits=(0.0, 1.0), meaning="cx cy w h as fractions of the picture"),
    "areas": Feature(("T", "K"), limits=(0.0, 1.0), meaning="area of the object's mask as a fraction of the picture"),
    "object_embedding": Feature(("K", "De"), dim="object_dim", meaning="embedding of each object's word"),
    "caption_tokens": Feature(("L", "Dc"), dim="caption_dim", meaning="states of the caption's tokens"),
    "mask_embedding": Feature(("T", "K", 256), optional=True,
                              meaning="SAM's image embedding, averaged over each object's mask"),
}


def register_feature(name: str, feature: Feature) -> None:
    """Add a row to :data:`FEATURES`, for a feature of one's own. A second time with the same row changes nothing.

    Args:
        name: by which it is stored, and read: ``clip.<name>`` (T, …) and ``batch.<name>`` (B, T, …).
        feature: its row.

    Raises:
        InputError: the name is taken by something else, or is none; or the axes are none.
    """
    if FEATURES.get(name) == feature:
        return
    taken = [str(FEATURES[name])] if name in FEATURES else [
        f"a member of {kind.__name__}" for kind in HasFeatures.__subclasses__()
        if name in kind.__annotations__ or hasattr(kind, name)]
    if taken or not name.isidentifier() or name.startswith("_"):
        raise InputError(f"feature {name!r}: {f'the name is taken by {taken[0]}' if taken else 'no name'}; choose "
                         "another, of letters, digits and _")
    if not feature.axes or not all(axis if isinstance(axis, str) else axis > 0 for axis in feature.axes):
        raise InputError(f"feature {name!r}: axes={feature.axes}; expected letters, and lengths of at least 1")
    FEATURES[name] = feature


class HasFeatures:
    """A dataclass with ``features``, arrays by the names of :data:`FEATURES`.

    Each is given, read, set and replaced like a field: ``ClipFeatures(…, flow=array)``, ``clip.flow``,
    ``clip.replace(flow=array)``. An optional one that is missing is None.
    """

    features: dict[str, Any]

    def __init__(self, **values: Any) -> None:
        named = {name: values.pop(name) for name in FEATURES if name in values}
        found = {**values.pop("features", {}), **named}
        self.features = {name: array for name, array in found.items() if array is not None}
        own = [f for f in fields(self) if f.name != "features"]  # type: ignore[arg-type]
        lacking = [f.name for f in own if f.name not in values and f.default is MISSING]
        unknown = set(values) - {f.name for f in own}
        if lacking or unknown:
            raise TypeError(f"{type(self).__name__} needs {lacking or 'nothing more'} and does not know "
                            f"{sorted(unknown) or 'nothing'} of what it was given")
        for f in own:
            setattr(self, f.name, values.get(f.name, f.default))

    def replace(self, **changes: Any) -> Self:
        """A copy with other fields or features, as of :func:`dataclasses.replace`."""
        return replace(self, **changes)  # type: ignore[type-var]

    def __getattr__(self, name: str) -> Any:
        features = self.__dict__.get("features", {})  # while it is being unpickled it has none
        if name in features or (name in FEATURES and FEATURES[name].optional):
            return features.get(name)
        raise AttributeError(f"{type(self).__name__} has no {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in FEATURES:  # in a dict of its own, which no copy shares
            name, value = "features", {n: a for n, a in {**self.features, name: value}.items() if a is not None}
        object.__setattr__(self, name, value)


@dataclass(init=False)
class ClipFeatures(HasFeatures):
    """All features of one clip.

    Args:
        key, caption: the clip's id, and its words, which may be "".
        objects: K words, at most 8; dropped: number of the caption's nouns beyond them.
        fps: frames a second.
        waveform: (samples,) float32 in [-1, 1], mono.
        sample_rate_hz: of the waveform.
        label: the class of the sound, where the data has one.
        source: path of the video, relative to the folder of the videos.
        start_s, duration_s: the clip's stretch of the video.
        features: numpy arrays by the names of :data:`FEATURES`; each may also be given by its name.
    """

    key: str
    caption: str
    objects: list[str]
    fps: float
    waveform: np.ndarray
    sample_rate_hz: int = 16_000
    label: str = ""
    source: str = ""
    start_s: float = 0.0
    duration_s: float = 0.0
    dropped: int = 0
    features: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def lengths(self) -> dict[str, int]:
        """The length of each axis that has letters. K is the number of objects; else the first feature counts."""
        sizes = [pair for name, row in FEATURES.items() if name in self.features
                 for pair in zip(row.axes, self.features[name].shape)]
        return {axis: size for axis, size in reversed(sizes) if isinstance(axis, str)} | {"K": len(self.objects)}

    def validate(self) -> "ClipFeatures":
        """The clip itself. Raises InputError where a feature is missing, shapes disagree with each other or with
        :data:`FEATURES`, or an array holds NaN or infinity."""
        if len(self.objects) > MAX_OBJECTS:
            raise InputError(f"clip {self.key!r}: {len(self.objects)} objects, at most {MAX_OBJECTS} are allowed")
        lengths = self.lengths
        for name, row in FEATURES.items():
            array, expected = self.features.get(name), tuple(lengths.get(str(axis), axis) for axis in row.axes)
            if array is None and not row.optional:
                raise InputError(f"clip {self.key!r}: it has no {name}; extract it again")
            if array is not None and array.shape != expected:
                raise InputError(f"clip {self.key!r}: {name} has shape {array.shape}, expected "
                                 f"({', '.join(map(str, expected))})")
        if self.waveform.ndim != 1 or self.waveform.size == 0:
            raise InputError(f"clip {self.key!r}: waveform has shape {self.waveform.shape}, expected (samples,)")
        for name, array in self.features.items():
            if not np.isfinite(array).all():
                raise InputError(f"clip {self.key!r}: {name} holds NaN or infinity")
        return self
