"""How a picture is brought to the size that a model wants: a small class per rule, as its authors prepared pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol


class Fit(Protocol):
    """A rule from the size of an upright picture to what is read of it. Frozen and hashable: readers convert a picture
    once per rule, whoever asks for it. Its repr names it where an extraction's config is compared.

    interpolation: FFmpeg's name of the scaler; all of them average over what they shrink.
    """

    interpolation: ClassVar[str]

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of an upright picture ⇒ the (height, width) it is scaled to."""
        ...

    def kept(self, height: int, width: int) -> tuple[int, int]:
        """The scaled (height, width) ⇒ the (height, width) cut out of its middle."""
        ...


@dataclass(frozen=True)
class Squeeze:
    """Exactly this size, whatever the shape before: fractions of the picture stay fractions of it."""

    height: int
    width: int
    interpolation: ClassVar[str] = "AREA"

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        return self.height, self.width

    def kept(self, height: int, width: int) -> tuple[int, int]:
        return height, width


@dataclass(frozen=True)
class Within:
    """No larger than ``short_side`` × ``long_side`` pixels, shape kept. Smaller pictures are left as they are: what has
    to grow grows on the device of the model, so that it needn't travel there."""

    short_side: int
    long_side: int
    interpolation: ClassVar[str] = "BILINEAR"

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        scale = min(1.0, self.short_side / min(height, width), self.long_side / max(height, width))
        return max(1, round(scale * height)), max(1, round(scale * width))

    def kept(self, height: int, width: int) -> tuple[int, int]:
        return height, width


@dataclass(frozen=True)
class CentreCrop:
    """The short side becomes ``side`` pixels, and the square in the middle is kept: how CLIP sees pictures."""

    side: int
    interpolation: ClassVar[str] = "BICUBIC"

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        # the longer side is cut down to a whole pixel, as in CLIP's own transform
        if height <= width:
            return self.side, self.side * width // height
        return self.side * height // width, self.side

    def kept(self, height: int, width: int) -> tuple[int, int]:
        return self.side, self.side
