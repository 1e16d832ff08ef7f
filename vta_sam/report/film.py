"""Drawn pictures and a sound ⇒ an mp4 that every player shows."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ..errors import InputError
from ..media.muxing import mux

_X264_OPTIONS = {"preset": "veryfast", "crf": "20"}  # drawn letters stay sharp


def write_film(path: str | os.PathLike, pictures: Iterable[np.ndarray], fps: float, waveform: np.ndarray,
               sample_rate_hz: int) -> Path:
    """Pictures (H, W, 3) uint8 RGB of one even size, and mono sound (samples,), cut or padded to their length ⇒ the
    path written: h264 in yuv420p, AAC. Memory is that of one picture. Atomic. InputError: no picture, or an odd size.
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
