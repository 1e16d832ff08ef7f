"""The media of a page's cells: files that browsers play, and drawings on one axis of time.

Spectrograms and posters are files, timelines and marks SVG.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from ...media.audio import write_wav
from ...media.container import open_media, picture_stream, sound_stream
from ...media.muxing import mux, picture_duration_s
from ...media.picture_reader import Within
from ...media.video import read_clip
from ...mel import FRAME_RATE_HZ, MAX_HZ, MIN_HZ, N_MELS, SAMPLE_RATE_HZ
from ...plots.clip_pictures import SHOWN_DB
from ...runtime.errors import InputError
from ...runtime.files import atomic_path
from ..pairing import SoundFile

COLUMNS = 512  # the most pixels that a spectrogram is wide; it is shown no wider than that
_LEVELS = 48  # steps of 1.25 dB, which keep the file small
_POSTER = Within(180, 320)
_POSTER_QUALITY = 60
_MOST_TICKS = 6
_MARKED_HZ = (500, 2000)


@dataclass(frozen=True)
class Lane:
    """When one object is visible: the outline of an SVG area, 1000 wide, 100 high. mean, most: of its probability."""

    name: str
    path: str
    mean: float
    most: float


def write_spectrogram(path: Path, mel_db: np.ndarray, top_db: float, duration_s: float) -> None:
    """Log-mel in dB (frames, 64) ⇒ a PNG of [0, duration_s], its colours the 60 dB below top_db, black after its end.

    A column shows the loudest of the frames that are centred in it, so that no impulse is lost.
    """
    width = max(1, min(COLUMNS, math.ceil(duration_s * FRAME_RATE_HZ)))
    column = (np.arange(len(mel_db)) / FRAME_RATE_HZ / duration_s * width).astype(int)
    drawn = np.full((width, N_MELS), -np.inf)
    inside = column < width
    np.maximum.at(drawn, column[inside], mel_db[inside])
    level = np.clip(np.rint((drawn - top_db + SHOWN_DB) / SHOWN_DB * (_LEVELS - 1)), 0, _LEVELS - 1)
    picture = Image.fromarray(np.ascontiguousarray(level.T[::-1].astype(np.uint8)), mode="P")
    colours = matplotlib.colormaps["magma"](np.linspace(0, 1, _LEVELS), bytes=True)[:, :3]
    picture.putpalette(colours.tobytes())
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG", optimize=True)


def write_poster(path: Path, video: Path, time_s: float) -> None:
    """The picture of a video at a time ⇒ a small JPEG. InputError: it has none there."""
    frames = read_clip(video, start_s=time_s, duration_s=0.1, fps=10, fits=[_POSTER], want_audio=False).frames[0]
    if not len(frames):
        raise InputError(f"{video} has no picture at {time_s:.2f} s")
    with atomic_path(path) as temporary:
        Image.fromarray(frames[0]).save(temporary, format="JPEG", quality=_POSTER_QUALITY, optimize=True)


def lanes(timeline: tuple[list[str], np.ndarray, float] | None, duration_s: float) -> list[Lane]:
    """Object probabilities on an axis of [0, duration_s] ⇒ a lane per object; frame i holds for [i, i + 1) / fps."""
    if timeline is None or not len(timeline[1]):
        return []
    objects, probs, length_s = timeline
    edges = np.arange(len(probs) + 1) / len(probs) * length_s / duration_s * 1000
    found = []
    for k, name in enumerate(objects):
        values = np.clip(probs[:, k], 0.0, 1.0)
        steps = "".join(f"V{100 - 100 * value:.0f}H{edge:.1f}" for value, edge in zip(values, edges[1:]))
        found.append(Lane(name, f"M0 100{steps}V100Z", float(values.mean()), float(values.max())))
    return found


def percents(times_s: np.ndarray | list[float], duration_s: float) -> list[str]:
    """Times ⇒ places on an axis of [0, duration_s] in per cent, without times outside."""
    return [f"{100 * time / duration_s:.2f}" for time in times_s if 0 <= time <= duration_s]


def ticks(duration_s: float) -> list[tuple[str, str]]:
    """[(per cent, label in seconds)]: round steps, few enough for a small cell."""
    step = next(step for power in range(-2, 7) for step in (10.0 ** power, 2 * 10.0 ** power, 5 * 10.0 ** power)
                if duration_s / step < _MOST_TICKS)
    return [(f"{100 * i * step / duration_s:.2f}", f"{i * step:g}") for i in range(int(duration_s / step + 1e-6) + 1)]


def frequency_marks() -> list[tuple[str, str]]:
    """[(per cent from the top, label)] of a few frequencies on the axis of mel bins."""
    from ...runtime.librosa_import import librosa

    low, high = librosa.hz_to_mel(MIN_HZ), librosa.hz_to_mel(MAX_HZ)
    places = [(librosa.hz_to_mel(hz) - low) / (high - low) * (N_MELS + 1) - 0.5 for hz in _MARKED_HZ]
    return [(f"{100 - 100 * place / N_MELS:.1f}", f"{hz / 1000:g} kHz") for place, hz in zip(places, _MARKED_HZ)]


# formats that all current browsers play: container as FFmpeg names it ⇒ (suffix, codecs of pictures, codecs of sound)
_FAMILIES = {
    "mp4": (".mp4", {"h264"}, {"aac", "mp3"}),
    "webm": (".webm", {"vp8", "vp9", "av1"}, {"opus", "vorbis"}),
}
_PIXELS = {"yuv420p", "yuvj420p"}
_SOUNDS = {".wav": {"pcm_s16le", "pcm_s24le", "pcm_f32le", "pcm_u8"}, ".flac": {"flac"}, ".mp3": {"mp3"},
           ".m4a": {"aac"}, ".ogg": {"vorbis", "opus"}, ".opus": {"opus"}}
_CUT_S = 0.1  # sound beyond the pictures' end that is worth a word


@dataclass
class Player:
    """A cell's media file. kind: "video" or "audio"; name: of the file; notes: how it differs from the source."""

    kind: str
    name: str
    notes: list[str] = field(default_factory=list)


def make_player(sound: SoundFile, waveform: np.ndarray, pictures: Path | None, folder: Path, stem: str) -> Player:
    """Write a media file that browsers play, ``stem`` and a suffix, into a folder.

    A file with pictures that browsers play is copied. Other sound is put under its own video or ``pictures``; where
    browsers play neither, it stays without pictures.

    Args:
        sound: the system's file.
        waveform: (samples,) of it, 16 kHz.
        pictures: a video of the clip, or None.
        folder: to write into.
        stem: of the file's name.

    Raises:
        InputError: nothing can be written.
    """
    suffix = _film_suffix(sound.path) if sound.video == sound.path else None
    if suffix:
        _copy(sound.path, folder / f"{stem}{suffix}")
        return Player("video", f"{stem}{suffix}")
    notes: list[str] = []
    for video in dict.fromkeys(path for path in (sound.video, pictures) if path is not None):
        try:
            _require_copyable(video)
            target = mux(video, waveform, SAMPLE_RATE_HZ, folder / f"{stem}.mp4")
            return Player("video", target.name, _cut(waveform, target))
        except InputError as error:
            notes.append(f"sound only: {without_folders(error, video)}")
    suffix = sound.path.suffix.lower()
    if _sound_codec(sound.path) in _SOUNDS.get(suffix, ()):
        _copy(sound.path, folder / f"{stem}{suffix}")
    else:
        suffix = ".wav"
        write_wav(folder / f"{stem}{suffix}", waveform, SAMPLE_RATE_HZ)
    return Player("audio", f"{stem}{suffix}", notes[-1:])


def without_folders(error: InputError | str, *paths: Path) -> str:
    """⇒ an error's words with file names in place of paths: a published page shows no folders."""
    words = str(error)
    for path in paths:
        words = words.replace(str(path), path.name)
    return words


def _film_suffix(path: Path) -> str | None:
    """The suffix under which browsers play this file with pictures and sound, or None."""
    with open_media(path) as container:
        pictures, sound = picture_stream(container), sound_stream(container)
        names = container.format.name.split(",")
        family = next((name for name in _FAMILIES if name in names), None)
        if pictures is None or sound is None or family is None or pictures.codec_context.pix_fmt not in _PIXELS:
            return None
        suffix, films, sounds = _FAMILIES[family]
        if family == "webm" and path.suffix.lower() != suffix:
            return None  # FFmpeg has one name for webm and Matroska, which Safari and Firefox don't play
        fits = _codec(pictures) in films and _codec(sound) in sounds
        return suffix if fits else None


def _require_copyable(path: Path) -> None:
    with open_media(path) as container:
        stream = picture_stream(container)
        if stream is None:
            raise InputError(f"{path} has no pictures")
        kind = f"{_codec(stream)} {stream.codec_context.pix_fmt or ''}".strip()
        if _codec(stream) not in _FAMILIES["mp4"][1] or stream.codec_context.pix_fmt not in _PIXELS:
            raise InputError(f"browsers don't play the pictures of {path} ({kind}); h264 yuv420p is expected")


def _sound_codec(path: Path) -> str | None:
    with open_media(path) as container:
        stream = sound_stream(container)
        return None if stream is None else _codec(stream)


def _codec(stream) -> str:
    return stream.codec_context.codec.canonical_name


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def _cut(waveform: np.ndarray, video: Path) -> list[str]:
    beyond_s = len(waveform) / SAMPLE_RATE_HZ - picture_duration_s(video)
    return [f"its last {beyond_s:.1f} s are not played, since the pictures end before"] if beyond_s > _CUT_S else []
