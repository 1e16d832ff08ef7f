"""Sound files for one video, a folder of videos, or a caption alone: resumable, each with a record, failures listed."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__
from ..media.audio import write_wav
from ..media.muxing import mux
from ..media.video import probe
from ..metrics.signal import measure_level
from ..plots.clip_pictures import clip_picture
from ..runtime.cli import check_number
from ..runtime.errors import EndOfRun, InputError
from ..runtime.files import atomic_path, printable, require_name, write_bytes, write_fault, writing_to
from .inputs import RESULT_SUFFIXES, is_recut, read_record, source_of
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
        failure: reason why there is none, or not all of it.
        notes: sentences for the user.
    """

    video: Path
    written: Path | None = None
    skipped: bool = False
    failure: str = ""
    notes: tuple[str, ...] = ()

    @property
    def lines(self) -> list[str]:
        """What is printed once it is done; the failure itself stands in the list of them."""
        end = "failed" if self.failure else f"{self.written}{' was there' if self.skipped else ''}"
        return [*(printable(f"note: {self.video}: {note}") for note in self.notes), printable(f"{self.video}: {end}")]


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

    Raises:
        EndOfRun: nothing more can be written to the folder, or the model's weights hold NaN.
    """
    check_folder(outputs.folder)
    outcomes = []
    for name, video in videos.items():
        try:
            outcome = _generate_one(pipeline, name, video, prompt, outputs, model)
        except Exception as error:
            outcome = Outcome(video, failure=reason_of(error, video))
        outcomes.append(outcome)
        progress(outcome)
    return outcomes


def reason_of(error: Exception, item: object) -> str:
    """The sentence on an error that is one item's alone; any other error is raised again.

    Args:
        error: just caught.
        item: a video, or the name of a clip.
    """
    if isinstance(error, EndOfRun):
        raise error
    if isinstance(error, InputError):
        return printable(error)
    out_of_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
    if out_of_memory:
        return printable(f"{item} needs more memory than there is")
    if isinstance(error, (OSError, UnicodeError)):
        return printable(f"{item}: {error}")
    raise error


def check_folder(folder: Path) -> None:
    """Raise InputError, before any work, where a folder can't be written to."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out={folder} is a file; name a folder to write to")
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"out={folder} can't be written to; name another folder")


def exit_status(outcomes: Sequence[Outcome]) -> int:
    """0: all done. 1: some failed. 2: all failed."""
    failed = sum(bool(outcome.failure) for outcome in outcomes)
    return 0 if not failed else 2 if failed == len(outcomes) else 1


def _generate_one(pipeline: Pipeline, name: str, video: Path, prompt: Prompt, outputs: Outputs,
                  model: dict[str, str]) -> Outcome:
    target, record = outputs.folder / f"{name}.mp4", outputs.folder / f"{name}.json"
    for suffix in RESULT_SUFFIXES:
        require_name(target.with_suffix(suffix))
    for path in (target, target.with_suffix(".mkv")):
        if path.exists() and video.exists() and path.samefile(video):
            raise InputError(f"{video} would be overwritten by its own result; name another folder with out=")
    settings = {**_settings(pipeline, prompt), "mix": outputs.mix, "model_hash": model["hash"], "video": video.name}
    former, source, notes = read_record(record) or {}, source_of(video), []
    if not outputs.overwrite and (finished := finished_before(record, settings)):
        if not is_recut(former, video):
            failure = str(former.get("failed", "")) if outputs.picture else ""
            return Outcome(video, outputs.folder / finished, skipped=True, failure=failure)
        notes.append(f"the video is another than the one that {finished} was made of, so it is made anew")
    generated = pipeline.generate(video, **asdict(prompt))
    require_finite(pipeline, generated.waveform)
    generated.notes += notes
    mix = outputs.mix
    if mix and probe(video).audio_codec is None:
        mix = 0.0
        generated.notes.append("the video has no sound of its own to mix in")
    with writing_to(outputs.folder):
        written, failure = _write_result(generated, pipeline, video, target, mix, outputs, settings)
        failed = {"failed": failure} if failure else {}
        write_record(record, {"asked": settings, "written": written.name, **failed,
                              "source": source, **describe(generated, pipeline), "model": model})
        before = former.get("written")
        if before in (target.name, target.with_suffix(".mkv").name) and before != written.name:
            (outputs.folder / before).unlink(missing_ok=True)  # of a video in another codec
    return Outcome(video, written, failure=failure, notes=tuple(generated.notes))


def _write_result(generated: Generated, pipeline: Pipeline, video: Path, target: Path, mix: float, outputs: Outputs,
                  settings: dict[str, Any]) -> tuple[Path, str]:
    """Write the new video and what stands beside it ⇒ its path, and why there is no picture. No file of a former result
    is replaced before all of the new one is there."""
    record, rate_hz, failure = target.with_suffix(".json"), pipeline.spec.sample_rate_hz, ""
    former = record.read_bytes() if record.exists() else None
    had = {suffix: former is not None and target.with_suffix(suffix).exists() for suffix in (".wav", ".png")}
    with ExitStack() as whole:
        if outputs.wav or had[".wav"]:
            write_wav(whole.enter_context(atomic_path(target.with_suffix(".wav"))), generated.waveform, rate_hz)
        if outputs.picture or had[".png"]:
            try:
                with ExitStack() as drawn:
                    _draw(generated, drawn.enter_context(atomic_path(target.with_suffix(".png"))))
                    whole.enter_context(drawn.pop_all())
            except Exception as error:  # of any kind that a drawing library may raise
                if write_fault(error, outputs.folder):
                    raise
                failure = printable(f"{video}: its sound is there, but no picture could be drawn ({error})")
        # until the record is written, this one says what is unfinished, and that it is no input
        unfinished = [target.name, target.with_suffix(".mkv").name]
        write_record(record, {"asked": settings, "written": None, "unfinished": unfinished})
        try:
            written = mux(video, generated.waveform, rate_hz, target, mix)
        except BaseException:
            if former is None:
                record.unlink(missing_ok=True)
            else:
                write_bytes(record, former)
            raise
    return written, failure


def require_finite(pipeline: Pipeline, waveform: np.ndarray) -> None:
    """Raise InputError unless the sound is finite; EndOfRun where weights are not, so that no other sound will be."""
    if np.isfinite(waveform).all():
        return
    names = ("conditioner", "denoiser", "codec", "vocoder")
    broken = [name for name in names if isinstance(part := getattr(pipeline, name), torch.nn.Module) and
              not all(bool(weights.isfinite().all()) for weights in part.parameters())]
    if broken:
        raise EndOfRun(f"the model's sound holds NaN, and so do the weights of its {' and '.join(broken)}; take "
                       "another model, or fetch or train this one again")
    raise InputError("the model's sound holds NaN, though its weights are finite; give less guidance=, or device=cpu")


def write_record(path: Path, content: dict[str, Any]) -> None:
    """Write the json beside a result, atomically. Bytes of names that are no UTF-8 are escaped, and come back."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def _settings(pipeline: Pipeline, prompt: Prompt) -> dict[str, Any]:
    lists = {key: None if words is None else list(words)
             for key, words in (("objects", prompt.objects), ("negative_objects", prompt.negative_objects))}
    return {**asdict(prompt), **lists, **pipeline.sampler.recorded()}


def finished_before(record: Path, settings: dict[str, Any]) -> str | None:
    """Name of the finished file that a record names, or None.

    Raises:
        InputError: the file was made with other settings.
    """
    content = read_record(record) or {}
    written = content.get("written")
    if not isinstance(written, str) or not (record.parent / written).is_file():
        return None
    former = changed_settings(content["asked"], settings)
    if former:
        raise InputError(f"{record.parent / written} was made with {former}; name another folder with out=, or give "
                         "overwrite=true")
    return written


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
    title = printable(features.caption or features.source)
    clip_picture(path, generated.strip, features.objects, features.probs, generated.waveform,
                 sample_rate_hz=features.sample_rate_hz, duration_s=features.duration_s, title=title)


_LONGEST_WORDS = 60  # characters of the caption in a file's name
_LONGEST_CUT = 160  # bytes of them where a hash stands behind them


def generate_caption(pipeline: Pipeline, prompt: Prompt, folder: Path, model: dict[str, str], overwrite: bool) -> Path:
    """Generate for a caption alone ⇒ path of ``<caption>-<seed>.wav``, with a .json of the settings beside it.

    Where words and single spaces are not all of the caption, or it is longer than 60 characters, a hash of it stands
    behind the words, so that each caption has a file of its own.

    Args:
        pipeline: a model that reads nothing else.
        prompt: caption, negative caption and seed.
        folder: to write to.
        model: name and hash, for the record.
        overwrite: generate again where the file exists, made with the same settings.

    Raises:
        InputError: the file exists, made with other settings; the model reads pictures; the sound can't be made or
            written.
    """
    check_folder(folder)
    caption = prompt.caption or ""
    settings = {"caption": prompt.caption, "negative_caption": prompt.negative_caption, "seed": prompt.seed,
                **pipeline.sampler.recorded(), "model_hash": model["hash"]}
    try:
        path = folder / f"{_caption_name(caption, prompt.seed, folder)}.wav"
        record = path.with_suffix(".json")
        require_name(record)
        if not overwrite and finished_before(record, settings):
            return path
        waveform = pipeline.generate_from_caption(caption, prompt.negative_caption, prompt.seed)
        require_finite(pipeline, waveform)
        rate_hz = pipeline.spec.sample_rate_hz
        content = {"asked": settings, "written": path.name, "level": asdict(measure_level(waveform, rate_hz)),
                   "model": model, "code_version": __version__}
        with writing_to(folder):
            with atomic_path(path) as temporary:
                write_wav(temporary, waveform, rate_hz)
                record.unlink(missing_ok=True)  # it marks the sound as finished
            write_record(record, content)
    except Exception as error:
        raise InputError(reason_of(error, "the caption")) from error
    return path


def _caption_name(caption: str, seed: int, folder: Path) -> str:
    """The name of a caption's files: of a file that it has already, or of its own."""
    words = re.sub(r"\W+", "-", caption.lower()).strip("-")
    former = f"{words[:_LONGEST_WORDS] or 'caption'}-{seed}"
    cut = words[:_LONGEST_WORDS].encode("utf-8")[:_LONGEST_CUT].decode("utf-8", "ignore").strip("-") or "caption"
    digest = hashlib.sha256(caption.encode("utf-8", "surrogatepass")).hexdigest()
    own = [f"{cut}-{digest[:digits]}-{seed}" for digits in (8, 16)]
    if words and words.replace("-", " ") == caption and len(words) <= _LONGEST_WORDS:
        own.insert(0, former)
    records = {name: read_record(folder / f"{name}.json") for name in (former, *own)}
    of_caption = [name for name, record in records.items() if record and "video" not in record["asked"] and
                  record["asked"].get("caption") == caption]
    free = [name for name in own if records[name] is None]
    return (of_caption + free + own[-1:])[0]
