"""Alignment scores: AA-Align between generated and true onsets, AV-Align between onsets and peaks of optical flow, and
event scores, of which an event has a class and a time.

AA-Align and AV-Align are given as published, and with a one-to-one matching within a window that doesn't depend on the
frame rate.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from ..media.container import open_media
from ..media.picture_reader import Orientation, PictureReader
from ..runtime.errors import InputError
from .onsets import WINDOW_S, ascending, detect_onsets, matched_iou, matched_pairs


def aa_align_published(true_s: np.ndarray, generated_s: np.ndarray) -> float | None:
    """STA-V2A ``EvalTools/aa_align.py``: I / (G + R − I), where I counts generated onsets that have *some* true onset
    within 0.1 s (strictly), G true and R generated ones.

    Not one to one: five generated onsets around one true one score 5.0, one around five 0.2, so stuttering is rewarded
    and the two sides differ. None where neither side has an onset: the published code divides by zero. InputError: NaN
    or infinity among the times.
    """
    true, generated = ascending(true_s)[None], ascending(generated_s)[:, None]
    if not true.size and not generated.size:
        return None
    near = (true - WINDOW_S < generated) & (generated < true + WINDOW_S)  # as published, to the last bit
    hits = int(near.any(axis=1).sum())
    # not zero: a hit needs a true onset, and there are no more hits than generated ones
    return hits / (true.size + generated.size - hits)


def aa_align_matched(true_s: np.ndarray, generated_s: np.ndarray) -> float | None:
    """The same with a one-to-one matching within ±0.1 s: an intersection over union in [0, 1], equal both ways. None
    where neither side has an onset: there is nothing to be right or wrong about."""
    return matched_iou(true_s, generated_s, WINDOW_S)


FULL = "full"  # optical flow at the video's own size
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
        reformatter = VideoReformatter()  # of all pictures: one of each would have threads of its own

        def grey() -> Iterator[np.ndarray]:
            nonlocal scale
            size = None
            for number, (time_s, _, picture) in enumerate(reader):
                if time_s > longest_s or number > longest_s * MOST_FPS:
                    raise InputError(f"{path} lasts longer than {longest_s:g} s, or has more than {MOST_FPS:g} "
                                     "pictures a second; cut it first")
                size = size or (picture.width, picture.height)  # a stream may change its size midway
                stored = reformatter.reformat(picture, *size, "bgr24", threads=1).to_ndarray()
                frame = cv2.cvtColor(np.ascontiguousarray(Orientation.of(picture).upright(stored)),
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


LEAST_PX = 0.1  # a peak of motion has at least so many pixels a frame


def flow_peaks_s(flow: FlowTrajectory) -> np.ndarray:
    """Strict local maxima of at least 0.1 px of a flow trajectory ⇒ their times i / fps in seconds.

    TempoTokens ``av_align.py``. The first value repeats the second frame's, so that neither can be a peak.
    """
    m = flow.magnitudes
    inner = np.arange(1, len(m) - 1)
    peaks = (m[inner] > m[inner - 1]) & (m[inner] > m[inner + 1]) & (m[inner] >= LEAST_PX)
    return inner[peaks] / flow.fps


def av_align_published(audio_s: np.ndarray, video_s: np.ndarray, fps: float) -> float | None:
    """TempoTokens ``av_align.py``: I / (A + V − I), I counting audio peaks that find a video peak within ±1/fps
    (strictly) that no earlier one took. None where there is no peak at all (the published code divides by zero).

    The window follows the frame rate: ±250 ms at 4 fps, ±40 ms at 25 fps; scores at different rates don't compare.
    """
    if not len(audio_s) and not len(video_s):
        return None
    left = list(ascending(video_s))
    hits = 0
    for peak in ascending(audio_s):
        for place, other in enumerate(left):
            if other - 1 / fps < peak < other + 1 / fps:
                hits += 1
                del left[place]
                break
    return hits / (len(audio_s) + len(video_s) - hits)


def av_align_sta_published(audio_s: np.ndarray, video_s: np.ndarray, fps: float) -> float | None:
    """STA-V2A's copy of AV-Align, in which a video peak may match any number of audio peaks. It is no intersection
    over union, and can exceed 1. None where there is no peak at all."""
    audio, video = ascending(audio_s)[:, None], ascending(video_s)[None]
    if not audio.size and not video.size:
        return None
    hits = int(((video - 1 / fps < audio) & (audio < video + 1 / fps)).any(axis=1).sum())
    return hits / (audio.size + video.size - hits)


def av_align_matched(audio_s: np.ndarray, video_s: np.ndarray) -> float | None:
    """Maximum one-to-one matching within ±0.1 s, whatever the frame rate: intersection over union in [0, 1]; None where
    there is no peak at all."""
    return matched_iou(audio_s, video_s, WINDOW_S)


LEAST_TAG_LOGIT = -1.4  # of a class that an onset counts for: a probability of 0.2


def tagged_onsets(waveform: np.ndarray, logits: np.ndarray, segment_s: float) -> np.ndarray:
    """Mono 16 kHz sound and logits (segments, C) of tags ⇒ events (E, 2): each detected onset, once for every class
    that is tagged in its segment or the next. Tags alone are as coarse as a segment."""
    tagged = [(onset_s, logits[min(int(onset_s / segment_s), len(logits) - 1):][:2].max(axis=0) >= LEAST_TAG_LOGIT)
              for onset_s in detect_onsets(waveform)]
    return np.array([(at, n) for at, classes in tagged for n in np.flatnonzero(classes)], np.float32).reshape(-1, 2)


FINE_WINDOW_S = 0.05


@dataclass(frozen=True)
class ObjectOnsets:
    """The true events of one object.

    Args:
        word: its class of sound; of a thing that only resembles another, that one's.
        asked: whether the caption names it.
        onsets_s: (n,) times at which it begins to sound.
    """

    word: str
    asked: bool
    onsets_s: np.ndarray


@dataclass(frozen=True)
class EventScores:
    """Scores of events, each a class and a time, against the true events of a clip.

    Args:
        f1: of a one-to-one matching within each class and ±0.1 s; None where neither side has an event.
        f1_50ms: the same within ±0.05 s.
        asked: share of the true events that are matched within ±0.1 s.
        unasked: share of the generated events whose class the caption doesn't name.
        unnamed: 1 where an object that is in view without being named sounds, else 0; None where there is none, or
            where a named object has the same sound.
    """

    f1: float | None
    f1_50ms: float | None
    asked: float | None
    unasked: float | None
    unnamed: float | None


def event_scores(objects: Sequence[ObjectOnsets], generated: np.ndarray, classes: Sequence[str]) -> EventScores | None:
    """⇒ the scores of generated events against true ones; None where an object sounds that is none of the classes.

    Args:
        objects: of the clip.
        generated: (E, 2) onsets in seconds, numbers of classes.
        classes: names of the classes.
    """
    if any(len(thing.onsets_s) and thing.word not in classes for thing in objects):
        return None
    true = np.array([(onset_s, classes.index(thing.word)) for thing in objects for onset_s in thing.onsets_s]
                    ).reshape(-1, 2)
    asked = {thing.word for thing in objects if thing.asked}
    made = [classes[int(number)] for number in generated[:, 1]]
    unnamed = {thing.word for thing in objects if not thing.asked} - asked
    return EventScores(
        event_f1(true, generated, WINDOW_S), event_f1(true, generated, FINE_WINDOW_S),
        matched_events(true, generated, WINDOW_S) / len(true) if len(true) else None,
        float(np.mean([word not in asked for word in made])) if made else None,
        float(any(word in made for word in unnamed)) if unnamed else None,
    )


def event_f1(true: np.ndarray, generated: np.ndarray, window_s: float = WINDOW_S) -> float | None:
    """Events (E, 2), onsets in seconds and numbers of classes, of a true and a generated sound ⇒ F1 of a one-to-one
    matching within each class and ±window_s; None where neither side has an event."""
    if not len(true) and not len(generated):
        return None
    return 2 * matched_events(true, generated, window_s) / (len(true) + len(generated))


def matched_events(true: np.ndarray, generated: np.ndarray, window_s: float) -> int:
    """Events (E, 2) of two sounds ⇒ the number of pairs in a maximum one-to-one matching within each class."""
    return sum(matched_pairs(true[true[:, 1] == number, 0], generated[generated[:, 1] == number, 0], window_s)
               for number in np.unique(true[:, 1]))
