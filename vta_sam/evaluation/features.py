"""What is kept of a sound once it has been heard: everything that a figure about timing or level needs."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np

from ..metrics.envelope import energy_envelope
from ..metrics.level import Level, measure_level
from ..metrics.onset_scores import FoleyOnsets, foley_onsets
from ..metrics.onsets import detect_onsets
from ..metrics.peaks import at_published_rate, librosa_onsets_s
from .cache import Arrays

FEATURES_VERSION = 1  # to be raised when what is measured changes, so that no cache answers for it


@dataclass(frozen=True)
class SoundFeatures:
    """samples: of the sound at 16 kHz. envelope: at 100 Hz, in nats. onsets_s: by this project's detector;
    librosa_onsets_s: by librosa's defaults; foley: by CondFoleyGen's settings."""

    samples: int
    envelope: np.ndarray
    onsets_s: np.ndarray
    librosa_onsets_s: np.ndarray
    foley: FoleyOnsets
    level: Level

    def arrays(self) -> Arrays:
        """As arrays, for the cache."""
        return {
            "samples": np.array(self.samples), "envelope": self.envelope.astype(np.float32), "onsets_s": self.onsets_s,
            "librosa_onsets_s": self.librosa_onsets_s, "foley_samples": self.foley.samples,
            "foley_heights": self.foley.heights, "foley_confidences": self.foley.confidences,
            "level": np.array(astuple(self.level), np.float64),
        }

    @classmethod
    def of_arrays(cls, arrays: Arrays) -> "SoundFeatures":
        rms, peak, silent_share, silent, clipping = arrays["level"].tolist()
        foley = FoleyOnsets(*(arrays[f"foley_{name}"] for name in ("samples", "heights", "confidences")))
        return cls(int(arrays["samples"]), arrays["envelope"], arrays["onsets_s"], arrays["librosa_onsets_s"], foley,
                   Level(rms, peak, silent_share, bool(silent), clipping))


def sound_features(waveform: np.ndarray) -> SoundFeatures:
    """Mono 16 kHz sound ⇒ its features."""
    at_22050_hz = at_published_rate(waveform)
    return SoundFeatures(
        len(waveform), energy_envelope(waveform).astype(np.float32), detect_onsets(waveform),
        librosa_onsets_s(at_22050_hz), foley_onsets(at_22050_hz), measure_level(waveform),
    )
