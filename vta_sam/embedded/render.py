"""A scene ⇒ its pictures, backdrops included, and exact arrays of the position of each thing in them; and the mp4 of
them."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path

import av
import cv2
import numpy as np
from av.codec.context import Flags as CodecFlags

from . import sprites
from .canvas import Canvas, Style, texture
from .scene_sounds import SAMPLE_RATE_HZ
from .timeline import FPS, FRAMES, HEIGHT_PX, MARGIN_PX, WIDTH_PX, Scene, Thing, frame_times_s
from .truth import MASK_HEIGHT, MASK_WIDTH, SceneObject, SceneTruth

HEIGHT, WIDTH = HEIGHT_PX + 2 * MARGIN_PX, WIDTH_PX + 2 * MARGIN_PX
X264_OPTIONS = {"preset": "veryfast", "crf": "18", "x264-params": "keyint=50:scenecut=0"}
# without noise substitution and with the quicker search the silence before a sound stays 48 dB and more below it
AAC_OPTIONS = {"aac_coder": "fast", "aac_pns": "0"}
AAC_BIT_RATE = 96_000  # the most that one channel at 16 kHz may have


def draw_backdrop(seed: int) -> np.ndarray:
    """A random backdrop ⇒ (106, 138, 3) uint8 RGB: the picture with a margin for the camera's shake."""
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
    """A colour (RGB) of less saturation than the things in front."""
    colour = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.05, 0.45), rng.uniform(0.25, 0.9))
    return tuple(255 * c for c in colour)


def _clutter(picture: np.ndarray, horizon: int, rng: np.random.Generator) -> None:
    """Draw hills, houses, trees or frames on a wall behind everything, in place."""
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
    """Draw plain, tiled, planked or grassy ground below the horizon, in place."""
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


POSE_LEVELS = 8
LEAST_VISIBLE = 0.25  # share of a thing's own area that has to be in view for the thing to count as visible

DRAWINGS = {
    "racing car": sprites.racing_car, "van": sprites.van,
    "popcorn": sprites.popcorn, "flowerpot": sprites.flowerpot,
    "pigeon": sprites.pigeon, "parrot": sprites.parrot,
    "dog": sprites.dog, "cat": sprites.cat,
    "canary": sprites.canary, "hummingbird": sprites.hummingbird,
    "badminton": sprites.badminton, "umbrella": sprites.umbrella,
    "chicken": sprites.chicken, "duck": sprites.duck,
    "harpsichord": sprites.harpsichord, "table": sprites.table,
    "clarinet": sprites.clarinet, "saxophone": sprites.saxophone,
    "ferret": sprites.ferret, "squirrel": sprites.squirrel,
}


def sprite_sheet(thing: Thing) -> list[np.ndarray]:
    """One sprite per pose level, from rest to full sounding ⇒ 8 × (height_px, width_px, 4), colour premultiplied."""
    rng = np.random.default_rng([thing.seed, 2])
    style, grain = Style.random(rng), texture(rng)
    levels = []
    for level in range(POSE_LEVELS):
        canvas = Canvas(thing.width_px, thing.height_px)
        DRAWINGS[thing.word](canvas, level / (POSE_LEVELS - 1), style)
        sprite = canvas.sprite(style, grain)
        levels.append(np.ascontiguousarray(sprite[:, ::-1]) if thing.mirrored else sprite)
    return levels


def render(scene: Scene) -> tuple[np.ndarray, SceneTruth]:
    """A scene ⇒ its pictures (128, 96, 128, 3) uint8 RGB, and their truth."""
    things, times = scene.things, frame_times_s()
    pictures = _camera(draw_backdrop(scene.backdrop_seed), scene.camera_px)
    poses = np.stack([t.pose_at(times) for t in things], 1)
    centres = np.stack([t.centres_px(times) for t in things], 1) + scene.camera_px[:, None]
    shape = (FRAMES, len(things))
    inside, boxes = np.zeros(shape, np.float16), np.zeros((*shape, 4), np.float16)
    masks = np.zeros((*shape, MASK_HEIGHT, MASK_WIDTH), np.uint8)
    sheets = [sprite_sheet(t) for t in things]
    alphas = np.zeros((len(things), HEIGHT_PX, WIDTH_PX), np.float32)
    for frame in range(FRAMES):
        areas = np.zeros(len(things))
        drawn: list[int] = []
        for k in reversed(range(len(things))):  # the caption's first thing is drawn last, so nothing hides it
            if np.isnan(centres[frame, k, 0]):
                continue
            sprite = sheets[k][round(poses[frame, k] * (POSE_LEVELS - 1))]
            window = _blend(pictures[frame], sprite, centres[frame, k], alphas[k])
            for other in drawn:
                alphas[other] *= 1 - alphas[k]
            drawn.append(k)
            areas[k] = sprite[..., 3].sum()
            boxes[frame, k] = _box(alphas[k], window)
        for k in drawn:
            inside[frame, k] = min(alphas[k].sum() / areas[k], 1.0)
            coarse = cv2.resize(alphas[k], (MASK_WIDTH, MASK_HEIGHT), interpolation=cv2.INTER_AREA)
            masks[frame, k] = coarse > 0.5
            alphas[k] = 0
    truth = SceneTruth(
        id=scene.id, version=scene.version, seed=scene.seed, split=scene.split, index=scene.index, fps=FPS,
        duration_s=FRAMES / FPS, caption=scene.caption,
        objects=[SceneObject(t.word, t.named, tuple(t.events)) for t in things],
        visible=(inside >= LEAST_VISIBLE).astype(np.uint8), inside=inside, boxes=boxes,
        pose=np.where(np.isnan(centres[..., 0]), 0, poses).astype(np.float16),
        sounding=np.stack([t.sounding() for t in things], 1).astype(np.uint8),
        packed_masks=np.packbits(masks, axis=-1),
    )
    return pictures, truth


def _camera(backdrop: np.ndarray, shift_px: np.ndarray) -> np.ndarray:
    """Cut the moving picture out of a backdrop that is MARGIN_PX larger on every side ⇒ (128, 96, 128, 3) uint8."""
    corners = MARGIN_PX - np.round(shift_px).astype(int)
    return np.stack([backdrop[top:top + HEIGHT_PX, left:left + WIDTH_PX] for left, top in corners])


def _blend(picture: np.ndarray, sprite: np.ndarray, centre: np.ndarray, alpha: np.ndarray) -> tuple[int, int, int, int]:
    """Lay a sprite over a picture, in place, and write its coverage into alpha ⇒ its window x0, y0, x1, y1."""
    height, width = sprite.shape[:2]
    left, top = round(float(centre[0]) - width / 2), round(float(centre[1]) - height / 2)
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + width, WIDTH_PX), min(top + height, HEIGHT_PX)
    if x0 >= x1 or y0 >= y1:
        return 0, 0, 0, 0
    part = sprite[y0 - top:y1 - top, x0 - left:x1 - left]
    under = picture[y0:y1, x0:x1]
    picture[y0:y1, x0:x1] = (under * (1 - part[..., 3:]) + part[..., :3] + 0.5).astype(np.uint8)
    alpha[y0:y1, x0:x1] = part[..., 3]
    return x0, y0, x1, y1


def _box(alpha: np.ndarray, window: tuple[int, int, int, int]) -> tuple[float, float, float, float]:
    """Box of the opaque part of a window ⇒ cx cy w h as fractions of the picture, zeros where nothing is opaque."""
    x0, y0, x1, y1 = window
    solid = alpha[y0:y1, x0:x1] > 0.5
    columns, rows = np.flatnonzero(solid.any(0)), np.flatnonzero(solid.any(1))
    if not len(columns):
        return 0.0, 0.0, 0.0, 0.0
    left, right, top, bottom = x0 + columns[0], x0 + columns[-1] + 1, y0 + rows[0], y0 + rows[-1] + 1
    return ((left + right) / 2 / WIDTH_PX, (top + bottom) / 2 / HEIGHT_PX,
            (right - left) / WIDTH_PX, (bottom - top) / HEIGHT_PX)


def encode(path: Path, pictures: Iterable[np.ndarray], sound: np.ndarray, fps: float = FPS) -> None:
    """Write an mp4 of h264 and aac, always with the same bytes.

    One thread encodes, and the container holds no date and no encoder's name. The aac encoder's delay of 1024 samples
    is written as an edit list. FFmpeg and PyAV honour it, so that sample 0 is read as sample 0.

    Args:
        path: of the mp4.
        pictures: (T, H, W, 3) uint8, or T pictures one by one; their sides are even.
        sound: (samples,) mono at 16 kHz.
        fps: of the pictures.
    """
    left = iter(pictures)
    first = next(left)
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        video = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=X264_OPTIONS)
        video.height, video.width, video.pix_fmt = *first.shape[:2], "yuv420p"
        video.codec_context.thread_count = 1
        video.codec_context.flags |= CodecFlags.bitexact.value
        audio = container.add_stream("aac", rate=SAMPLE_RATE_HZ, layout="mono", options=AAC_OPTIONS)
        audio.bit_rate = AAC_BIT_RATE
        audio.codec_context.flags |= CodecFlags.bitexact.value
        samples = iter(_audio_frames(sound, 1024))
        for number, picture in enumerate(chain([first], left)):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            due = round((number + 1) / fps * SAMPLE_RATE_HZ) // 1024 - round(number / fps * SAMPLE_RATE_HZ) // 1024
            for frame in islice(samples, due):
                container.mux(audio.encode(frame))
        for frame in samples:
            container.mux(audio.encode(frame))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))


def _audio_frames(sound: np.ndarray, size: int) -> Iterator[av.AudioFrame]:
    for start in range(0, len(sound), size):
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[None, start:start + size]), "fltp", "mono")
        frame.sample_rate, frame.pts = SAMPLE_RATE_HZ, start
        yield frame
