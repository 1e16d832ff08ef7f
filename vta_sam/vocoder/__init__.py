"""Log-mel ⇒ waveform."""

from .base import Vocoder
from .griffin_lim import GriffinLim
from .hifigan import HiFiGAN

__all__ = ["GriffinLim", "HiFiGAN", "Vocoder"]
