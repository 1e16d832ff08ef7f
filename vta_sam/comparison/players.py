"""What a cell plays: a file that browsers can play, made of a system's sound and the clip's pictures."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..atomic import atomic_path
from ..errors import InputError
from ..evaluation.files import SoundFile
from ..media.audio import write_wav
from ..media.container import open_media, picture_stream, sound_stream
from ..media.muxing import mux, picture_duration_s
from ..mel import SAMPLE_RATE_HZ

# what every browser of today plays: container as FFmpeg names it ⇒ (suffix, codecs of pictures, codecs of sound)
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
    """kind: "video" or "audio"; name: of its file; notes: what was done to it, in words."""

    kind: str
    name: str
    notes: list[str] = field(default_factory=list)


def make_player(sound: SoundFile, waveform: np.ndarray, pictures: Path | None, folder: Path, stem: str) -> Player:
    """Write ``stem`` and a suffix into a folder.

    A file with pictures that browsers can play is copied. Other sound, waveform (samples,) at 16 kHz, is put under its
    own video or ``pictures``; where browsers can play neither, it stays without. InputError: nothing can be written.
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


def without_folders(error: InputError, *paths: Path) -> str:
    """An error's words with file names in place of paths: a page may be published, and folders are private."""
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
