"""Backgrounds: sky or wall, ground, and things that stand about and never sound."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np

from .timeline import HEIGHT_PX, MARGIN_PX, WIDTH_PX

HEIGHT, WIDTH = HEIGHT_PX + 2 * MARGIN_PX, WIDTH_PX + 2 * MARGIN_PX


def draw_backdrop(seed: int) -> np.ndarray:
    """⇒ (106, 138, 3) uint8 RGB: the picture with a margin for the camera to shake in."""
    rng = np.random.default_rng([seed, 3])
    top, bottom, ground = (np.array(_muted(rng)) for _ in range(3))
    fade = np.linspace(0, 1, HEIGHT)[:, None, None]
    picture = np.broadcast_to((1 - fade) * top + fade * bottom, (HEIGHT, WIDTH, 3)).copy()
    horizon = int(rng.uniform(0.35, 0.9) * HEIGHT)
    _clutter(picture, horizon, rng)
    _ground(picture, horizon, ground, rng)
    fine = rng.standard_normal((HEIGHT, WIDTH, 1)) * rng.uniform(1, 6)
    coarse = cv2.resize(rng.standard_normal((10, 13)), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return np.clip(picture + fine + coarse[..., None] * rng.uniform(2, 12), 0, 255).astype(np.uint8)


def _muted(rng: np.random.Generator) -> tuple[float, ...]:
    """A colour with less saturation than the things in front have."""
    colour = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.05, 0.45), rng.uniform(0.25, 0.9))
    return tuple(255 * c for c in colour)


def _clutter(picture: np.ndarray, horizon: int, rng: np.random.Generator) -> None:
    """Hills, houses, trees or frames on a wall, behind everything."""
    for _ in range(int(rng.integers(0, 6))):
        colour = _muted(rng)
        x, size, form = int(rng.integers(WIDTH)), int(rng.integers(8, 34)), rng.integers(4)
        if form == 0:
            cv2.ellipse(picture, (x, horizon), (size * 2, size), 0, 0, 360, colour, -1)
        elif form == 1:
            cv2.rectangle(picture, (x, horizon - size), (x + size, horizon), colour, -1)
            cv2.rectangle(picture, (x + size // 4, horizon - size // 2), (x + size // 2, horizon), _muted(rng), -1)
        elif form == 2:
            cv2.line(picture, (x, horizon), (x, horizon - size), tuple(0.6 * c for c in colour), 3)
            cv2.circle(picture, (x, horizon - size), size // 2, colour, -1)
        else:
            y = int(rng.integers(HEIGHT // 2))
            cv2.rectangle(picture, (x, y), (x + size, y + size * 2 // 3), colour, int(rng.choice((-1, 2))))


def _ground(picture: np.ndarray, horizon: int, colour: np.ndarray, rng: np.random.Generator) -> None:
    """Plain, tiled, planked or grassy."""
    y, x = np.mgrid[horizon:HEIGHT, :WIDTH]
    form, period = rng.integers(4), rng.uniform(6, 16)
    if form == 0:
        pattern = np.zeros(y.shape)
    elif form == 1:
        pattern = ((x // period + y // (period / 2)) % 2) - 0.5
    elif form == 2:
        pattern = 0.5 * np.sin(2 * np.pi * y / period)
    else:
        pattern = rng.standard_normal(y.shape) * 0.5
    picture[horizon:] = colour + pattern[..., None] * rng.uniform(10, 40)
