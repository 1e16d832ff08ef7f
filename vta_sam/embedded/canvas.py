"""Drawing of sprites: a canvas with a transform, the style of one thing, and the finished sprite."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np

OVERSAMPLE = 4
Point = tuple[float, float]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Style:
    """Colours, texture and proportions of one thing, drawn at random. They don't depend on the thing's class."""

    body: Colour
    second: Colour
    accent: Colour
    light: Colour
    dark: Colour
    outline: Colour
    grain: float  # depth of the texture
    shape: np.ndarray  # (8,) proportions in [-1, 1]

    @classmethod
    def random(cls, rng: np.random.Generator) -> "Style":
        """A style drawn from ``rng``."""
        hue = rng.random()
        body = _colour(hue, rng.uniform(0.15, 0.9), rng.uniform(0.45, 0.95))
        second = _colour(hue + rng.uniform(-0.12, 0.12), rng.uniform(0.1, 0.7), rng.uniform(0.3, 1.0))
        accent = _colour(hue + rng.uniform(0.3, 0.7), rng.uniform(0.6, 1.0), rng.uniform(0.75, 1.0))
        light, dark = int(rng.integers(215, 256)), int(rng.integers(10, 55))
        outline = (dark,) * 3 if rng.random() < 0.75 else (light,) * 3
        grain, shape = rng.uniform(0.1, 0.3), rng.uniform(-1, 1, 8)
        return cls(body, second, accent, (light,) * 3, (dark,) * 3, outline, grain, shape)


def _colour(hue: float, saturation: float, value: float) -> Colour:
    r, g, b = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(255 * r), round(255 * g), round(255 * b)


class Canvas:
    """An RGBA image to draw on. y runs from 0 (top) to 1 (ground), and x from 0 to ``aspect``, at the same scale.

    Args:
        width_px: width of the finished sprite.
        height_px: height of the finished sprite.
    """

    def __init__(self, width_px: int, height_px: int):
        self.scale = height_px * OVERSAMPLE
        self.aspect = width_px / height_px
        self.image = np.zeros((height_px * OVERSAMPLE, width_px * OVERSAMPLE, 4), np.uint8)
        self._matrix = np.eye(3)

    @contextmanager
    def moved(self, dx: float = 0.0, dy: float = 0.0, turn_deg: float = 0.0, about: Point = (0, 0)) -> Iterator[None]:
        """A context in which every shape is turned about a point, then shifted.

        Args:
            dx: shift to the right.
            dy: shift downwards.
            turn_deg: angle in degrees, positive: clockwise on screen.
            about: centre of the turn.
        """
        before, angle = self._matrix, np.deg2rad(turn_deg)
        c, s = np.cos(angle), np.sin(angle)
        ax, ay = about
        step = np.array([[c, -s, ax - c * ax + s * ay + dx], [s, c, ay - s * ax - c * ay + dy], [0, 0, 1]])
        self._matrix = before @ step
        try:
            yield
        finally:
            self._matrix = before

    def _pixels(self, points: Sequence[Point] | np.ndarray) -> np.ndarray:
        xy = np.asarray(points, float)
        return np.round((xy @ self._matrix[:2, :2].T + self._matrix[:2, 2]) * self.scale).astype(np.int32)

    def polygon(self, points: Sequence[Point] | np.ndarray, colour: Colour) -> None:
        """Fill a polygon."""
        cv2.fillPoly(self.image, [self._pixels(points)], (*colour, 255))

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour, turn_deg: float = 0.0) -> None:
        """Fill an ellipse with the radii rx and ry."""
        angle, around = np.deg2rad(turn_deg), np.linspace(0, 2 * np.pi, 28, endpoint=False)
        along, across = rx * np.cos(around), ry * np.sin(around)
        xs = x + along * np.cos(angle) - across * np.sin(angle)
        ys = y + along * np.sin(angle) + across * np.cos(angle)
        self.polygon(np.stack([xs, ys], 1), colour)

    def line(self, points: Sequence[Point] | np.ndarray, width: float, colour: Colour) -> None:
        """Draw a stroke with round ends."""
        thickness = max(1, round(width * self.scale))
        cv2.polylines(self.image, [self._pixels(points)], False, (*colour, 255), thickness)

    def curve(self, start: Point, bend: Point, end: Point, width: float, colour: Colour) -> None:
        """Draw a stroke along a quadratic curve."""
        t = np.linspace(0, 1, 14)[:, None]
        a, b, c = np.array(start), np.array(bend), np.array(end)
        self.line((1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c, width, colour)

    def sprite(self, style: Style, texture: np.ndarray) -> np.ndarray:
        """The drawing with an outline and a texture ⇒ (height_px, width_px, 4) float32, colour premultiplied by alpha.

        Args:
            style: gives the outline's colour and the texture's depth.
            texture: (rows, columns) in [-1, 1], stretched over the canvas.
        """
        drawn = self.image[..., 3]
        around = cv2.dilate(drawn, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))) > drawn
        self.image[around] = (*style.outline, 255)
        size = (self.image.shape[1] // OVERSAMPLE, self.image.shape[0] // OVERSAMPLE)
        small = cv2.resize(self.image, size, interpolation=cv2.INTER_AREA).astype(np.float32)
        small[..., 3] /= 255
        shade = 1 + style.grain * cv2.resize(texture, size, interpolation=cv2.INTER_LINEAR)
        small[..., :3] = np.clip(small[..., :3] * shade[..., None], 0, 255 * small[..., 3:])
        return small


def texture(rng: np.random.Generator) -> np.ndarray:
    """A random texture of grain, stripes or spots ⇒ (24, 24) float32 in [-1, 1]."""
    form, grain = rng.integers(3), rng.uniform(-1, 1, (24, 24))
    if form == 1:
        y, x = np.mgrid[:24, :24]
        angle = rng.uniform(0, np.pi)
        grain = 0.4 * grain + 0.6 * np.sin((x * np.cos(angle) + y * np.sin(angle)) * rng.uniform(0.8, 1.8))
    elif form == 2:
        spots = cv2.GaussianBlur(rng.standard_normal((24, 24)), (0, 0), 1.6)
        grain = 0.4 * grain + 0.6 * np.tanh(spots / spots.std() * 2)
    return grain.astype(np.float32)
