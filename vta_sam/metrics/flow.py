"""Motion between frames: the mean magnitude of dense optical flow, whose peaks AV-Align uses."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from ..media.container import open_media
from ..media.picture_reader import PictureReader, quarter_turns
from ..runtime.errors import InputError

FULL = "full"
# variant ⇒ the height in pixels that frames are brought to before; None: their own. A faster one is another figure.
VARIANTS: dict[str, int | None] = {FULL: None, "fast": 120}
LONGEST_S = 600.0
MOST_FPS = 240.0  # a stream of more pictures than that for LONGEST_S claims a wrong rate
MOST_PIXELS = 4096 * 2304  # of a picture whose flow is computed, which takes some hundred bytes a pixel


@dataclass(frozen=True)
class FlowTrajectory:
    """magnitudes (frames,) float64: mean length of the flow from frame i − 1 to i, in pixels of the video's own size;
    [0] repeats [1], as published. fps: frames a second, as the container claims. variant: at what size."""

    magnitudes: np.ndarray
    fps: float
    variant: str = FULL


def flow_magnitudes(grey_frames: Iterable[np.ndarray]) -> np.ndarray:
    """Grey frames (H, W) uint8 in order ⇒ (frames,) mean Farneback flow in pixels. Holds two frames at a time.

    Parameters of TempoTokens ``av_align.py``: pyramid 0.5, 3 levels, window 15, 3 iterations, polynomial 5, 1.2.
    InputError: fewer than two frames.
    """
    found: list[float] = []
    previous = None
    for frame in grey_frames:
        if previous is not None:
            # the stub requires an initial flow, which is not read without its flag
            flow = cv2.calcOpticalFlowFarneback(previous, frame, None, 0.5, 3, 15, 3, 5, 1.2, 0)  # type: ignore
            magnitude, _ = cv2.cartToPolar(flow[..., 0], flow[..., 1])
            found.append(float(np.mean(magnitude)))
        previous = frame
    if not found:
        raise InputError("optical flow needs at least two frames")
    return np.array([found[0], *found])


def measure_flow(path: str | os.PathLike, variant: str = FULL, longest_s: float = LONGEST_S) -> FlowTrajectory:
    """A video's flow at its own frame rate. variant: a name of VARIANTS. InputError: it can't be read, has fewer than
    two pictures, claims no frame rate, or lasts longer than longest_s."""
    if variant not in VARIANTS:
        raise InputError(f"{variant!r} is no variant of optical flow; there are {', '.join(VARIANTS)}")
    height = VARIANTS[variant]
    with open_media(path) as container:
        reader = PictureReader(path, container, 0.0)
        if not reader.video.average_rate:
            raise InputError(f"{path} claims no frame rate, which times of motion are counted by; convert it first")
        fps, scale = float(reader.video.average_rate), 1.0

        def grey() -> Iterator[np.ndarray]:
            nonlocal scale
            size = None
            for number, (time_s, _, picture) in enumerate(reader):
                if time_s > longest_s or number > longest_s * MOST_FPS:
                    raise InputError(f"{path} lasts longer than {longest_s:g} s, or has more than {MOST_FPS:g} "
                                     "pictures a second; cut it first")
                size = size or (picture.width, picture.height)  # a stream may change its size midway
                stored = picture.to_ndarray(width=size[0], height=size[1], format="bgr24")
                frame = cv2.cvtColor(np.ascontiguousarray(np.rot90(stored, quarter_turns(picture))),
                                     cv2.COLOR_BGR2GRAY)
                if height is not None and height < frame.shape[0]:
                    scale = frame.shape[0] / height
                    frame = cv2.resize(frame, (max(16, round(frame.shape[1] / scale)), height),
                                       interpolation=cv2.INTER_AREA)
                if frame.size > MOST_PIXELS:
                    raise InputError(f"{path}: flow of pictures of {frame.shape[1]}x{frame.shape[0]} pixels takes too "
                                     "much memory; scale the video down, or measure with flow=fast")
                yield frame

        try:
            magnitudes = flow_magnitudes(grey())
        except cv2.error as error:
            raise InputError(f"{path}: optical flow can't be computed ({str(error).strip()[:120]})") from error
        except InputError as error:
            raise error if str(path) in str(error) else InputError(f"{path}: {error}") from error
    return FlowTrajectory(magnitudes * scale, fps, variant)
