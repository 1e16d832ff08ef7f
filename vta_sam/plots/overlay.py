"""A clip with its grounding drawn over it, as pictures and as an mp4 that every player shows.

Boxes and masks are drawn in the picture, probabilities and sound below it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Sequence

import av
import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..clip import ClipFeatures
from ..media.audio import resample
from ..media.muxing import mux
from ..mel import FFT_SAMPLES, SAMPLE_RATE_HZ
from ..metrics.signal import NATS_PER_DB, RANGE_DB, energy_envelope
from ..runtime.errors import InputError

WIDTH_PX = 640
PICTURE_PX = 360  # the height that a picture may fill
# Okabe and Ito's palette, which the colour-blind can distinguish, on a dark ground: white in place of black
COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2", "#FFFFFF")
SHOWN = 0.3  # boxes and masks are drawn of objects at least this likely
_GROUND, _LANE, _TEXT, _FAINT, _CURSOR = "#15171C", "#23262E", "#F2F2F2", "#9AA0AB", "#FFFFFF"
_TITLE_PX, _LANE_PX, _SOUND_PX, _GAP_PX = 26, 26, 40, 4
_LEFT_PX, _RIGHT_PX = 176, 10  # of the lanes
_NUMBER_PX = 48  # left of them
_SMOOTH = 3  # lanes are drawn that much larger, then scaled down
_TINT = 0.4


@lru_cache(maxsize=4)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def picture_size(height: int, width: int) -> tuple[int, int]:
    """The (height, width) at which a video's picture is shown: as large as fits, its shape kept, even numbers."""
    scale = min(PICTURE_PX / height, WIDTH_PX / width)
    return max(2, 2 * round(scale * height / 2)), max(2, 2 * round(scale * width / 2))


@dataclass
class Overlay:
    """Draws the frames of one clip. size: (height, width) of the pictures that ``frame`` is given."""

    clip: ClipFeatures
    size: tuple[int, int]
    shown: float = SHOWN

    def frame(self, picture: np.ndarray, t: int, masks: np.ndarray | None = None) -> np.ndarray:
        """Picture (h, w, 3) uint8 RGB of frame t, and of its masks (K, h', w') bool, if any ⇒ (H, W, 3) uint8 RGB."""
        drawn = self._panel.copy()
        drawn.paste(self._annotated(picture, t, masks), (self._picture_left, 0))
        self._now(ImageDraw.Draw(drawn), t)
        return np.asarray(drawn)

    @property
    def _picture_left(self) -> int:
        return (WIDTH_PX - self.size[1]) // 2

    @property
    def _lanes(self) -> list[tuple[int, int]]:
        """Top and bottom of each lane in pixels: one per object, the last for the sound."""
        heights = [_LANE_PX] * len(self.clip.objects) + [_SOUND_PX]
        tops = self.size[0] + _TITLE_PX + np.cumsum([0, *(height + _GAP_PX for height in heights)])
        return [(int(top), int(top) + height) for top, height in zip(tops, heights)]

    @cached_property
    def _panel(self) -> Image.Image:
        """All that doesn't change from frame to frame."""
        height = self._lanes[-1][1] + 2 * _GAP_PX
        panel = Image.new("RGB", (WIDTH_PX, height + height % 2), _GROUND)
        draw = ImageDraw.Draw(panel)
        title = self.clip.caption or self.clip.label or self.clip.key
        title = title if self.clip.objects else f"(no objects named) {title}"
        draw.text((10, self.size[0] + 5), _fitting(title, WIDTH_PX - 20, 14), fill=_TEXT, font=_font(14))
        *lanes, sound = self._lanes
        for k, (top, bottom) in enumerate(lanes):
            colour, width = COLOURS[k % len(COLOURS)], _LEFT_PX - _NUMBER_PX - 16
            draw.text((10, (top + bottom) // 2), _fitting(self.clip.objects[k], width, 15), fill=colour, font=_font(15),
                      anchor="lm")
            self._draw_curve(panel, (top, bottom), self.clip.probs[:, k], colour, steps=True)
            y = bottom - round(self.shown * (bottom - top))
            for x in range(_LEFT_PX, WIDTH_PX - _RIGHT_PX, 8):
                draw.line((x, y, x + 3, y), fill=_FAINT)
        draw.text((10, sum(sound) // 2), "sound", fill=_TEXT, font=_font(15), anchor="lm")
        self._draw_curve(panel, sound, self._loudness, _FAINT)
        return panel

    @cached_property
    def _loudness(self) -> np.ndarray:
        """The sound's energy envelope at 100 Hz, 60 dB below its maximum ⇒ 0, the maximum ⇒ 1; silence is 0."""
        waveform = resample(self.clip.waveform, self.clip.sample_rate_hz, SAMPLE_RATE_HZ)
        envelope = energy_envelope(np.pad(waveform, (0, max(0, FFT_SAMPLES - len(waveform)))))
        below = (envelope - envelope.max()) / (RANGE_DB * NATS_PER_DB)
        return np.clip(1 + below, 0, 1) if np.ptp(envelope) > 0 else np.zeros_like(envelope)

    def _draw_curve(self, panel: Image.Image, lane: tuple[int, int], values: np.ndarray, colour: str,
                    steps: bool = False) -> None:
        """Values (n,) in [0, 1] over the clip's time as a filled curve; steps: each holds for its stretch of time."""
        top, bottom = lane
        width, height = (WIDTH_PX - _LEFT_PX - _RIGHT_PX) * _SMOOTH, (bottom - top) * _SMOOTH
        drawing = Image.new("RGB", (width, height), _LANE)
        columns = np.arange(width)
        if steps:
            level = values[np.minimum(columns * len(values) // width, len(values) - 1)]
        else:
            level = np.interp(columns, np.linspace(0, width - 1, len(values)), values)
        y = (height - _SMOOTH) * (1 - np.clip(level, 0, 1))
        outline = list(zip(columns.tolist(), y.tolist()))
        draw = ImageDraw.Draw(drawing)
        draw.polygon([(0, height), *outline, (width, height)], fill=_mixed(colour, _LANE, 0.45))
        draw.line(outline, fill=colour, width=2 * _SMOOTH)
        panel.paste(drawing.resize((width // _SMOOTH, height // _SMOOTH), Image.Resampling.LANCZOS), (_LEFT_PX, top))

    def _now(self, draw: ImageDraw.ImageDraw, t: int) -> None:
        """The cursor over the lanes, and each object's probability at frame t."""
        lanes = self._lanes
        x = round(_LEFT_PX + (t + 0.5) / len(self.clip.probs) * (WIDTH_PX - _LEFT_PX - _RIGHT_PX))
        draw.line((x, lanes[0][0], x, lanes[-1][1]), fill=_CURSOR, width=2)
        for k, (top, bottom) in enumerate(lanes[:-1]):
            p = float(self.clip.probs[t, k])
            fill = _TEXT if p >= self.shown else _FAINT
            draw.text((_LEFT_PX - 8, (top + bottom) // 2), f"{p:.2f}", fill=fill, font=_font(15), anchor="rm")

    def _annotated(self, picture: np.ndarray, t: int, masks: np.ndarray | None) -> Image.Image:
        """The picture with masks, boxes and their tags."""
        likely = [k for k in range(len(self.clip.objects)) if self.clip.probs[t, k] >= self.shown]
        if masks is not None:
            picture = _tinted(picture, masks, likely)
        annotated = Image.fromarray(np.ascontiguousarray(picture))
        draw = ImageDraw.Draw(annotated, "RGBA")
        boxes = {k: _corners(self.clip.boxes[t, k], self.size) for k in likely if self.clip.boxes[t, k, 2:].all()}
        for number, (k, box) in enumerate(boxes.items()):
            same = sum(_alike(box, other) for other in list(boxes.values())[:number])
            left, top, right, bottom = box
            inner = (left + 4 * same, top + 4 * same, right - 4 * same, bottom - 4 * same)
            if inner[0] < inner[2] and inner[1] < inner[3]:  # a box that another would cover goes inside it
                draw.rectangle(inner, outline="#000000A0", width=4)
                draw.rectangle(inner, outline=COLOURS[k % len(COLOURS)], width=2)
        taken: list[tuple[int, int, int, int]] = []
        for k, box in boxes.items():
            text = f"{self.clip.objects[k]} {self.clip.probs[t, k]:.2f} · area {100 * self.clip.areas[t, k]:.0f} %"
            text = _fitting(text, self.size[1] - 14, 14)
            tag = _free_place(box, (round(_font(14).getlength(text)) + 10, 25), self.size, taken)
            taken.append(tag)
            _draw_tag(draw, tag, text, float(self.clip.probs[t, k]), COLOURS[k % len(COLOURS)])
        return annotated


def _draw_tag(draw: ImageDraw.ImageDraw, tag: tuple[int, int, int, int], text: str, p: float, colour: str) -> None:
    """Text on a dark ground above a bar that is full at p = 1."""
    left, top, right, bottom = tag
    draw.rectangle(tag, fill="#000000C0")
    draw.text((left + 5, top + 2), text, fill=_TEXT, font=_font(14))
    draw.rectangle((left, bottom - 4, right, bottom), fill="#606060")
    draw.rectangle((left, bottom - 4, left + round(p * (right - left)), bottom), fill=colour)


def _free_place(box: tuple[int, int, int, int], tag: tuple[int, int], size: tuple[int, int],
                taken: Sequence[tuple[int, int, int, int]]) -> tuple[int, int, int, int]:
    """Where a tag (width, height) of a box goes: above it, inside its top, below it, inside its bottom, else the
    nearest place further down or up that no other tag takes, and above it where there is none."""
    left, top, right, bottom = box
    width, height = tag
    places = [top - height, top, bottom, bottom - height]
    places += sorted(range(0, size[0] - height + 1, 5), key=lambda y: abs(y - top))
    for x in (left, right - width):
        x = max(0, min(x, size[1] - width - 1))
        for y in places:
            place = (x, y, x + width, y + height)
            if 0 <= y <= size[0] - height and not any(_overlap(place, other) for other in taken):
                return place
    x, y = max(0, min(left, size[1] - width - 1)), max(0, min(top - height, size[0] - height))
    return x, y, x + width, y + height


def _overlap(one: Sequence[int], other: Sequence[int]) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]


def _alike(one: Sequence[int], other: Sequence[int]) -> bool:
    return max(abs(a - b) for a, b in zip(one, other)) < 4


def _corners(box: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """cx cy w h as fractions ⇒ left, top, right, bottom in pixels inside the picture."""
    cx, cy, w, h = (float(value) for value in box)
    left, right = (round(np.clip(x, 0, 1) * (size[1] - 1)) for x in (cx - w / 2, cx + w / 2))
    top, bottom = (round(np.clip(y, 0, 1) * (size[0] - 1)) for y in (cy - h / 2, cy + h / 2))
    return left, top, right, bottom


def _tinted(picture: np.ndarray, masks: np.ndarray, likely: Sequence[int]) -> np.ndarray:
    """⇒ the picture with the masks of these objects as translucent colours."""
    tinted = picture.astype(np.float32)
    for k in likely:
        alpha = cv2.resize(masks[k].astype(np.float32), picture.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        colour = np.array(_rgb(COLOURS[k % len(COLOURS)]), np.float32)
        tinted += _TINT * alpha[..., None] * (colour - tinted)
    return tinted.round().astype(np.uint8)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _mixed(colour: str, ground: str, share: float) -> tuple[int, int, int]:
    red, green, blue = (round(share * a + (1 - share) * b) for a, b in zip(_rgb(colour), _rgb(ground)))
    return red, green, blue


def _fitting(text: str, width: int, size: int) -> str:
    """One line of text, its end left out where it would be wider than ``width`` pixels."""
    text = " ".join(text.split())[:300]
    if _font(size).getlength(text) <= width:
        return text
    while text and _font(size).getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


_X264_OPTIONS = {"preset": "veryfast", "crf": "20"}  # drawn letters stay sharp


def write_film(path: str | os.PathLike, pictures: Iterable[np.ndarray], fps: float, waveform: np.ndarray,
               sample_rate_hz: int) -> Path:
    """Pictures (H, W, 3) uint8 RGB of one even size, and mono sound (samples,), cut or padded to their length ⇒ the
    path written: h264 in yuv420p, AAC. It takes the memory of one picture. Atomic. InputError: no picture, or an odd
    size.
    """
    with tempfile.TemporaryDirectory() as scratch:
        silent = Path(scratch) / "pictures.mp4"
        with av.open(str(silent), "w", options={"fflags": "+bitexact"}) as container:
            video = None
            for picture in pictures:
                if video is None:
                    height, width = picture.shape[:2]
                    if height % 2 or width % 2:
                        raise InputError(f"{path}: pictures of {width}x{height} pixels; yuv420p needs even numbers")
                    video = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001),
                                                 options=_X264_OPTIONS)
                    video.width, video.height, video.pix_fmt = width, height, "yuv420p"
                container.mux(video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
            if video is None:
                raise InputError(f"{path}: there is no picture to show")
            container.mux(video.encode(None))
        return mux(silent, waveform, sample_rate_hz, path)
