"""The tagger that judges the class of a sound and gives the vectors of Fréchet distances in the embedded world."""

from ..tiny.tagger import SHIPPED_TAGGER, Tagger, load_tagger

__all__ = ["SHIPPED_TAGGER", "Tagger", "load_tagger"]
