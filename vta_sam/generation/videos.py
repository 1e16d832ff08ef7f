"""Sound under one video or a folder of them: a file each, resumable, failures listed."""

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
from .inputs import check_sampling
from .pipeline import Generated, Pipeline

# MERGED-DOC """A sound for a caption alone, by a model that reads nothing else: a wav and its record."""


@dataclass(frozen=True)
class Prompt:
    """What to say of a video, as for :meth:`~.pipeline.Pipeline.generate`. objects None: the caption's nouns."""

    caption: str | None = None
    objects: tuple[str, ...] | None = None
    negative_caption: str | None = None
    negative_objects: tuple[str, ...] | None = None
    seed: int = 0
    guidance: float | None = None
    steps: int | None = None

    def __post_init__(self):
        check_number("seed", self.seed, 0, whole=True)
        check_sampling(self.guidance, self.steps)


@dataclass(frozen=True)
class Outputs:
    """What to write beside ``<name>.mp4`` and ``<name>.json``. mix: gain of the video's own sound, 0 replaces it.
    overwrite: make again what is there."""

    folder: Path
    mix: float = 0.0
    wav: bool = False
    picture: bool = True
    overwrite: bool = False

    def __post_init__(self):
        check_number("mix", self.mix, 0, 1)


@dataclass
class Outcome:
    """One video's end: written (the new video's path), skipped (it was there), or failed with a reason."""

    video: Path
    written: Path | None = None
    skipped: bool = False
    failure: str = ""
    notes: tuple[str, ...] = ()


def generate_videos(pipeline: Pipeline, videos: dict[str, Path], prompt: Prompt, outputs: Outputs,
                    model: dict[str, str], tell: Callable[[Outcome], None] = lambda outcome: None) -> list[Outcome]:
    """Every video in turn; one that can't be used is listed, and the others go on. tell: called after each."""
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
        tell(outcome)
    return outcomes


def check_folder(folder: Path) -> None:
    """Refuse, before any work, an output folder that can't be one."""
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
    asked = {**_settings(pipeline, prompt), "mix": outputs.mix, "model_hash": model["hash"], "video": video.name}
    if not outputs.overwrite and (finished := finished_before(record, asked)):
        return Outcome(video, outputs.folder / finished, skipped=True)
    generated = pipeline.generate(video, **asdict(prompt))
    mix = outputs.mix
    if mix and probe(video).audio_codec is None:
        mix = 0.0
        generated.notes.append("the video has no sound of its own to mix in")
    record.unlink(missing_ok=True)  # while files change, nothing may say that they are finished
    written = mux(video, generated.waveform, pipeline.spec.sample_rate_hz, target, mix)
    if outputs.wav:
        write_wav(outputs.folder / f"{name}.wav", generated.waveform, pipeline.spec.sample_rate_hz)
    if outputs.picture:
        _draw(generated, outputs.folder / f"{name}.png")
    content = {"asked": asked, "written": written.name, **describe(generated, pipeline), "model": model}
    write_text(record, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return Outcome(video, written, notes=tuple(generated.notes))


def _settings(pipeline: Pipeline, prompt: Prompt) -> dict[str, Any]:
    sampler = pipeline.sampler_for(prompt.guidance, prompt.steps)
    lists = {key: None if words is None else list(words)
             for key, words in (("objects", prompt.objects), ("negative_objects", prompt.negative_objects))}
    return {**asdict(prompt), **lists, "guidance": sampler.guidance, "steps": sampler.steps, "solver": sampler.solver}


def finished_before(record: Path, asked: dict[str, Any]) -> str | None:
    """The finished file that a record names, or None. Raises InputError when it was made by other settings."""
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        before, written = content["asked"], content["written"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not (record.parent / str(written)).is_file():
        return None
    changed = [key for key in asked if before.get(key) != asked[key]]
    if changed:
        was = ", ".join(f"{key}={before.get(key)}" for key in changed)
        raise InputError(f"{record.parent / written} was made with {was}; name another folder with out=, or give "
                         "overwrite=true")
    return str(written)


def describe(generated: Generated, pipeline: Pipeline) -> dict[str, Any]:
    """What a record says of a generated sound: words, level, silence, clipping, versions."""
    features = generated.features
    visible = features.probs.mean(axis=0).round(4).tolist()
    return {
        "objects": features.objects, "mean_probability": dict(zip(features.objects, visible)),
        "dropped_words": generated.dropped, "notes": generated.notes,
        "duration_s": features.duration_s, "samples": len(generated.waveform),
        "sample_rate_hz": pipeline.spec.sample_rate_hz, "level": asdict(measure_level(generated.waveform)),
        "code_version": __version__,
    }


def _draw(generated: Generated, path: Path) -> None:
    features = generated.features
    title = features.caption or features.source
    clip_picture(path, generated.strip, features.objects, features.probs, generated.waveform,
                 duration_s=features.duration_s, title=title)


_LONGEST_NAME = 60  # characters of the caption in a file's name


def generate_caption(pipeline: Pipeline, prompt: Prompt, folder: Path, model: dict[str, str], overwrite: bool) -> Path:
    """⇒ ``<caption>-<seed>.wav`` in ``folder``, with a .json of what was asked beside it. What is there, made by the
    same settings, is kept unless ``overwrite``.

    Raises InputError where it was made by other settings, or the model looks at pictures.
    """
    check_folder(folder)
    words = re.sub(r"\W+", "-", (prompt.caption or "").lower()).strip("-")[:_LONGEST_NAME] or "caption"
    path = folder / f"{words}-{prompt.seed}.wav"
    sampler = pipeline.sampler_for(prompt.guidance, prompt.steps)
    asked = {"caption": prompt.caption, "negative_caption": prompt.negative_caption, "seed": prompt.seed,
             "guidance": sampler.guidance, "steps": sampler.steps, "solver": sampler.solver,
             "model_hash": model["hash"]}
    if not overwrite and finished_before(path.with_suffix(".json"), asked):
        return path
    waveform = pipeline.generate_from_caption(prompt.caption or "", prompt.negative_caption, prompt.seed,
                                              prompt.guidance, prompt.steps)
    record = {"asked": asked, "written": path.name, "level": asdict(measure_level(waveform)), "model": model,
              "code_version": __version__}
    path.with_suffix(".json").unlink(missing_ok=True)  # while the sound changes, nothing may say that it is finished
    write_wav(path, waveform, pipeline.spec.sample_rate_hz)
    write_text(path.with_suffix(".json"), json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return path
