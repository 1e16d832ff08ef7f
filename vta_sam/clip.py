"""The time base of a clip, and the record of one clip that runs through the whole project."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from .runtime.errors import InputError

MAX_OBJECTS = 8


@dataclass(frozen=True)
class FrameClock:
    """When frames are: frame i is the picture on screen at ``(i + 0.5) / fps``. No other code stretches an index.

    Args:
        fps: frames a second.

    Raises:
        InputError: fps is not positive.
    """

    fps: float

    def __post_init__(self):
        if not self.fps > 0:
            raise InputError(f"fps={self.fps}: expected frames a second, more than 0")

    def times_s(self, frames: int) -> np.ndarray:
        """Centres of the first ``frames`` frames, in seconds ⇒ (frames,)."""
        return (np.arange(frames) + 0.5) / self.fps

    def frames_of(self, duration_s: float) -> int:
        """Frames of a stretch: all i with ``(i + 0.5) / fps`` inside it, and at least one."""
        return max(1, int(np.floor(duration_s * self.fps + 0.5)))


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
        if isinstance(self.mel, Mapping):  # as a config or a model.yaml says it
            object.__setattr__(self, "mel", MelSpec(**self.mel))
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
        return (np.arange(self.columns if n is None else n) + 0.5) * self.column_s

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


@dataclass
class ClipFeatures:
    """All that training knows about one clip. Arrays are numpy, in the shapes below (T frames, K objects).

    waveform (samples,) float32 in [-1, 1], mono; frame_embedding (T, Dv); probs (T, K) in [0, 1]; boxes (T, K, 4)
    cx cy w h in [0, 1]; areas (T, K) mask area / frame area; object_embedding (K, De); caption_tokens (L, Dc);
    mask_embedding (T, K, 256), optional: SAM's image embedding pooled over each object's mask.
    """

    key: str
    caption: str
    objects: list[str]
    fps: float
    waveform: np.ndarray
    frame_embedding: np.ndarray
    probs: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    object_embedding: np.ndarray
    caption_tokens: np.ndarray
    sample_rate_hz: int = 16_000
    label: str = ""
    source: str = ""
    start_s: float = 0.0
    duration_s: float = 0.0
    mask_embedding: np.ndarray | None = field(default=None)

    ARRAYS = ("frame_embedding", "probs", "boxes", "areas", "object_embedding", "caption_tokens", "mask_embedding")

    def validate(self) -> "ClipFeatures":
        """Check every shape against every other; raise InputError with the key, what was expected, what was found."""
        frames, objects = self.frame_embedding.shape[0], len(self.objects)
        if objects > MAX_OBJECTS:
            raise InputError(f"clip {self.key!r}: {objects} objects, at most {MAX_OBJECTS} are allowed")
        expected = {"probs": (frames, objects), "boxes": (frames, objects, 4), "areas": (frames, objects)}
        for name, shape in expected.items():
            found = getattr(self, name).shape
            if found != shape:
                raise InputError(f"clip {self.key!r}: {name} has shape {found}, expected {shape}")
        if self.object_embedding.ndim != 2 or self.object_embedding.shape[0] != objects:
            raise InputError(
                f"clip {self.key!r}: object_embedding has shape {self.object_embedding.shape}, expected ({objects}, De)"
            )
        if self.waveform.ndim != 1 or self.waveform.size == 0:
            raise InputError(f"clip {self.key!r}: waveform has shape {self.waveform.shape}, expected (samples,)")
        for name in self.ARRAYS:
            array = getattr(self, name)
            if array is not None and not np.isfinite(array).all():
                raise InputError(f"clip {self.key!r}: {name} holds NaN or infinity")
        return self
