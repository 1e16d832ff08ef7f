"""Sound files for one video, a folder of videos, or a caption alone: resumable, each with a record, failures listed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..media.audio import write_wav
from ..media.muxing import mux
from ..media.video import probe
from ..metrics.signal import measure_level
from ..plots.clip_pictures import clip_picture
from ..runtime.cli import check_number
from ..runtime.errors import InputError
from ..runtime.files import write_text
from .pipeline import Generated, Pipeline


@dataclass(frozen=True)
class Prompt:
    """Words and seed of a generation; arguments as of :meth:`~.pipeline.Pipeline.generate`."""

    caption: str | None = None
    objects: tuple[str, ...] | None = None
    negative_caption: str | None = None
    negative_objects: tuple[str, ...] | None = None
    seed: int = 0

    def __post_init__(self):
        check_number("seed", self.seed, 0, whole=True)


@dataclass(frozen=True)
class Outputs:
    """Outputs beside ``<name>.mp4`` and ``<name>.json``.

    Args:
        folder: to write to.
        mix: gain of the video's own sound; 0 replaces it.
        wav: also write the sound alone.
        picture: also draw the strip of pictures, the objects and the sound.
        overwrite: generate again where a result exists.
    """

    folder: Path
    mix: float = 0.0
    wav: bool = False
    picture: bool = True
    overwrite: bool = False

    def __post_init__(self):
        check_number("mix", self.mix, 0, 1)


@dataclass
class Outcome:
    """The outcome for one video.

    Args:
        video: the input.
        written: path of the new video.
        skipped: it existed already.
        failure: reason why there is none.
        notes: sentences for the user.
    """

    video: Path
    written: Path | None = None
    skipped: bool = False
    failure: str = ""
    notes: tuple[str, ...] = ()


def generate_videos(pipeline: Pipeline, videos: dict[str, Path], prompt: Prompt, outputs: Outputs,
                    model: dict[str, str], progress: Callable[[Outcome], None] = lambda outcome: None) -> list[Outcome]:
    """Generate for each video in turn ⇒ the outcome of each. A video that can't be used doesn't stop the others.

    Args:
        pipeline: the model.
        videos: {output name: video}.
        prompt: for all of them.
        outputs: to write.
        model: name and hash, for the records.
        progress: called after each video.
    """
    check_folder(outputs.folder)
    outcomes = []
    for name, video in videos.items():
        try:
            outcome = _generate_one(pipeline, name, video, prompt, outputs, model)
        except InputError as error:
            outcome = Outcome(video, failure=str(error))
        except MemoryError:
            outcome = Outcome(video, failure=f"{video} needs more memory than there is")
        outcomes.append(outcome)
        progress(outcome)
    return outcomes


def check_folder(folder: Path) -> None:
    """Raise InputError, before any work, where a folder can't be written to."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out={folder} is a file; name a folder to write to")
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not os.access(existing, os.W_OK):
        raise InputError(f"out={folder} can't be written to; name another folder")


def exit_status(outcomes: Sequence[Outcome]) -> int:
    """0: all done. 1: some failed. 2: all failed."""
    failed = sum(bool(outcome.failure) for outcome in outcomes)
    return 0 if not failed else 2 if failed == len(outcomes) else 1


def _generate_one(pipeline: Pipeline, name: str, video: Path, prompt: Prompt, outputs: Outputs,
                  model: dict[str, str]) -> Outcome:
    target, record = outputs.folder / f"{name}.mp4", outputs.folder / f"{name}.json"
    for path in (target, target.with_suffix(".mkv")):
        if path.exists() and video.exists() and path.samefile(video):
            raise InputError(f"{video} would be overwritten by its own result; name another folder with out=")
    settings = {**_settings(pipeline, prompt), "mix": outputs.mix, "model_hash": model["hash"], "video": video.name}
    if not outputs.overwrite and (finished := finished_before(record, settings)):
        return Outcome(video, outputs.folder / finished, skipped=True)
    generated = pipeline.generate(video, **asdict(prompt))
    mix = outputs.mix
    if mix and probe(video).audio_codec is None:
        mix = 0.0
        generated.notes.append("the video has no sound of its own to mix in")
    record.unlink(missing_ok=True)  # the record marks the files as finished, which they are not while they change
    written = mux(video, generated.waveform, pipeline.spec.sample_rate_hz, target, mix)
    if outputs.wav:
        write_wav(outputs.folder / f"{name}.wav", generated.waveform, pipeline.spec.sample_rate_hz)
    if outputs.picture:
        _draw(generated, outputs.folder / f"{name}.png")
    content = {"asked": settings, "written": written.name, **describe(generated, pipeline), "model": model}
    write_text(record, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return Outcome(video, written, notes=tuple(generated.notes))


def _settings(pipeline: Pipeline, prompt: Prompt) -> dict[str, Any]:
    lists = {key: None if words is None else list(words)
             for key, words in (("objects", prompt.objects), ("negative_objects", prompt.negative_objects))}
    return {**asdict(prompt), **lists, **pipeline.sampler.recorded()}


def finished_before(record: Path, settings: dict[str, Any]) -> str | None:
    """Name of the finished file that a record names, or None.

    Raises:
        InputError: the file was made with other settings.
    """
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        before, written = dict(content["asked"]), content["written"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not (record.parent / str(written)).is_file():
        return None
    former = changed_settings(before, settings)
    if former:
        raise InputError(f"{record.parent / written} was made with {former}; name another folder with out=, or give "
                         "overwrite=true")
    return str(written)


def changed_settings(before: dict[str, Any], settings: dict[str, Any]) -> str:
    """Settings of a record that differ from the present ones, as "key=former value, …"; "" where none does."""
    keys = [key for key in {**settings, **before} if before.get(key) != settings.get(key)]
    return ", ".join(f"{key}={before.get(key)}" for key in keys)


def describe(generated: Generated, pipeline: Pipeline) -> dict[str, Any]:
    """The record of a generated sound: words, level, silence, clipping, versions."""
    features, rate_hz = generated.features, pipeline.spec.sample_rate_hz
    visible = features.probs.mean(axis=0).round(4).tolist()
    return {
        "objects": features.objects, "mean_probability": dict(zip(features.objects, visible)),
        "dropped_words": generated.dropped, "notes": generated.notes,
        "duration_s": features.duration_s, "samples": len(generated.waveform),
        "sample_rate_hz": rate_hz, "level": asdict(measure_level(generated.waveform, rate_hz)),
        "code_version": __version__,
    }


def _draw(generated: Generated, path: Path) -> None:
    features = generated.features
    title = features.caption or features.source
    clip_picture(path, generated.strip, features.objects, features.probs, generated.waveform,
                 sample_rate_hz=features.sample_rate_hz, duration_s=features.duration_s, title=title)


_LONGEST_NAME = 60  # characters of the caption in a file's name


def generate_caption(pipeline: Pipeline, prompt: Prompt, folder: Path, model: dict[str, str], overwrite: bool) -> Path:
    """Generate for a caption alone ⇒ path of ``<caption>-<seed>.wav``, with a .json of the settings beside it.

    Args:
        pipeline: a model that reads nothing else.
        prompt: caption, negative caption and seed.
        folder: to write to.
        model: name and hash, for the record.
        overwrite: generate again where the file exists, made with the same settings.

    Raises:
        InputError: the file exists, made with other settings; or the model reads pictures.
    """
    check_folder(folder)
    words = re.sub(r"\W+", "-", (prompt.caption or "").lower()).strip("-")[:_LONGEST_NAME] or "caption"
    path = folder / f"{words}-{prompt.seed}.wav"
    settings = {"caption": prompt.caption, "negative_caption": prompt.negative_caption, "seed": prompt.seed,
                **pipeline.sampler.recorded(), "model_hash": model["hash"]}
    if not overwrite and finished_before(path.with_suffix(".json"), settings):
        return path
    waveform = pipeline.generate_from_caption(prompt.caption or "", prompt.negative_caption, prompt.seed)
    rate_hz = pipeline.spec.sample_rate_hz
    record = {"asked": settings, "written": path.name, "level": asdict(measure_level(waveform, rate_hz)),
              "model": model, "code_version": __version__}
    path.with_suffix(".json").unlink(missing_ok=True)  # it marks the sound as finished
    write_wav(path, waveform, rate_hz)
    write_text(path.with_suffix(".json"), json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return path
