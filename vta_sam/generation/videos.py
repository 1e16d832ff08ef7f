"""Sound files for one video, a folder of videos, or a caption alone: resumable, each with a record, failures listed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__
from ..media.audio import write_wav
from ..media.guarded import Media, guarding
from ..metrics.signal import measure_level
from ..plots.clip_pictures import clip_picture
from ..runtime.errors import EndOfRun, InputError
from ..runtime.files import (
    atomic_path, claimed, claimed_in_turn, printable, reason_of, sweep_claims, write_fault, writing_to
)
from ..runtime.work_plan import Deed
from .inputs import ResultFiles, finished_before, read_record, source_of
from .pipeline import Generated, Pipeline
from .planning import (
    LONGEST_WAIT_S, CaptionPlan, Outputs, Prompt, VideosPlan, VideoTask, judge, plan_caption, plan_videos
)


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
                    model: dict[str, str], progress: Callable[[Outcome], None] = lambda outcome: None,
                    planned: VideosPlan | None = None, media: Media | None = None) -> list[Outcome]:
    """Generate for each video in turn ⇒ the outcome of each. A video that can't be used doesn't stop the others.

    Processes that write to one folder share the work: a video that another one is at comes last here, and is kept
    once that one has finished it.

    Args:
        pipeline: the model.
        videos: {output name: video}.
        prompt: for all of them.
        outputs: to write.
        model: name and hash, for the records.
        progress: called after each video.
        planned: by :func:`plan_videos`, with the same arguments; None: it is planned here.
        media: reads and writes the videos; None: a child process with the usual limits.

    Raises:
        EndOfRun: nothing more can be written to the folder, or the model's weights hold NaN.
    """
    with guarding(media) as reading:
        planned = planned or plan_videos(videos, prompt, outputs, model, pipeline.sampler, reading)
        sweep_claims(outputs.folder)
        work = _Work(pipeline, prompt, outputs, model, planned.settings, reading)
        return list(_outcomes(work, planned.tasks, progress))


def _outcomes(work: _Work, tasks: Sequence[VideoTask], progress: Callable[[Outcome], None]) -> Iterator[Outcome]:
    """The outcome of each task, in order."""
    outcomes: dict[str, Outcome] = {}
    left = list(tasks)
    for wait_s in (0.0, LONGEST_WAIT_S):
        if left and wait_s:
            warnings.warn(f"another process is at {', '.join(task.item.name for task in left)}; waiting for it")
        elsewhere = []
        for task in left:
            try:
                outcome = work.do(task, wait_s)
            except Exception as error:
                outcome = Outcome(task.video, failure=reason_of(error, task.video))
            if outcome is None:
                elsewhere.append(task)
                continue
            outcomes[task.name] = outcome
            progress(outcome)
        left = elsewhere
    for task in left:
        outcomes[task.name] = Outcome(task.video, failure=(
            f"{task.item.name}: another process has been at it for {LONGEST_WAIT_S / 60:.0f} minutes; see whether "
            "that one goes on, and give the same command again"))
        progress(outcomes[task.name])
    return (outcomes[task.name] for task in tasks)


def exit_status(outcomes: Sequence[Outcome]) -> int:
    """0: all done. 1: some failed. 2: all failed."""
    failed = sum(bool(outcome.failure) for outcome in outcomes)
    return 0 if not failed else 2 if failed == len(outcomes) else 1


@dataclass
class _Work:
    """What all videos of a run share: arguments of :func:`generate_videos`, and the settings in their records."""

    pipeline: Pipeline
    prompt: Prompt
    outputs: Outputs
    model: dict[str, str]
    settings: dict[str, Any]
    media: Media

    def do(self, task: VideoTask, wait_s: float) -> Outcome | None:
        """Do what was planned ⇒ None where another process is at it for longer than ``wait_s``."""
        folder = self.outputs.folder
        files, notes = ResultFiles(folder, task.name), []
        if task.item.deed is Deed.LEAVE_OUT:
            raise InputError(task.item.detail)
        if task.item.deed is Deed.KEEP and not files.new(".json").exists():
            return self._kept(task)
        with ExitStack() as until_done:
            with writing_to(folder):
                if not until_done.enter_context(claimed(files.record, wait_s)):
                    return None
                files.settle()
            if (read_record(files.record) or {}) != (task.former or {}):
                task = judge(task.name, task.video, self.settings, replace(self.outputs, overwrite=False), self.media)
                if task.item.deed is Deed.LEAVE_OUT:
                    raise InputError(task.item.detail)
                notes.append(f"another process has written {files.name}.json since the plan was made")
            if task.item.deed is Deed.KEEP:
                return self._kept(task, notes)
            return self._generate(task.video, files, [*notes, *task.notes])

    def _kept(self, task: VideoTask, notes: Sequence[str] = ()) -> Outcome:
        failure = str((task.former or {}).get("failed", "")) if self.outputs.picture else ""
        return Outcome(task.video, self.outputs.folder / task.finished, skipped=True, failure=failure,
                       notes=tuple(notes))

    def _generate(self, video: Path, files: ResultFiles, notes: list[str]) -> Outcome:
        source = source_of(video)
        generated = self.pipeline.generate(video, **asdict(self.prompt), media=self.media)
        require_finite(self.pipeline, generated.waveform)
        generated.notes += notes
        mix = self.outputs.mix
        own = self.media.probe(video) if mix else None
        if own is not None and own.audio_codec is None:
            mix = 0.0
            generated.notes.append("the video has no sound of its own to mix in")
        elif own is not None and own.choice_of_sound and self.outputs.kept.sound is None:
            generated.notes.append(own.choice_of_sound)
        with writing_to(self.outputs.folder), files.replaced():
            written, failure = self._write(generated, video, files, mix)
            failed = {"failed": failure} if failure else {}
            files.commit({"asked": {**self.settings, "video": video.name}, "written": written.name, **failed,
                          "source": source, **describe(generated, self.pipeline), "model": self.model})
        return Outcome(video, written, failure=failure, notes=tuple(generated.notes))

    def _write(self, generated: Generated, video: Path, files: ResultFiles, mix: float) -> tuple[Path, str]:
        """Write the new video and what stands beside it, to their hidden places ⇒ the video's own place, and why there
        is no picture. What stood beside a former result is made anew too."""
        rate_hz, failure = self.pipeline.spec.sample_rate_hz, ""
        former = read_record(files.record) is not None
        had = {suffix: former and files.path(suffix).exists() for suffix in (".wav", ".png")}
        if self.outputs.wav or had[".wav"]:
            write_wav(files.new(".wav"), generated.waveform, rate_hz)
        if self.outputs.picture or had[".png"]:
            try:
                with atomic_path(files.new(".png")) as temporary:
                    _draw(generated, temporary)
            except Exception as error:  # of any kind that a drawing library may raise
                if write_fault(error, self.outputs.folder):
                    raise
                failure = printable(f"{video}: its sound is there, but no picture could be drawn ({error})")
        new = files.new(".mp4")
        try:
            written = self.media.mux(video, generated.waveform, rate_hz, new, mix, self.outputs.kept)
        except InputError as error:
            raise InputError(str(error).replace(str(new), str(files.path(".mp4")))) from error
        return files.path(written.suffix), failure


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


def describe(generated: Generated, pipeline: Pipeline) -> dict[str, Any]:
    """The record of a generated sound: words, level, silence, clipping, versions."""
    features, rate_hz = generated.features, pipeline.spec.sample_rate_hz
    visible = features.probs.mean(axis=0).round(4).tolist()
    return {
        "objects": features.objects, "mean_probability": dict(zip(features.objects, visible)),
        "dropped_words": generated.dropped, "notes": generated.notes,
        "duration_s": features.duration_s, "samples": len(generated.waveform),
        "sample_rate_hz": rate_hz, "level": asdict(measure_level(generated.waveform, rate_hz)),
        "precision": pipeline.precision, "code_version": __version__,
    }


def _draw(generated: Generated, path: Path) -> None:
    features = generated.features
    title = printable(features.caption or features.source)
    clip_picture(path, generated.strip, features.objects, features.probs, generated.waveform,
                 sample_rate_hz=features.sample_rate_hz, duration_s=features.duration_s, title=title)


def generate_caption(pipeline: Pipeline, prompt: Prompt, folder: Path, model: dict[str, str], overwrite: bool,
                     planned: CaptionPlan | None = None) -> Path:
    """Generate for a caption alone ⇒ path of ``<caption>-<seed>.wav``, with a .json of the settings beside it.

    Where words and single spaces are not all of the caption, or it is longer than 60 characters, a hash of it stands
    behind the words, so that each caption has a file of its own.

    Args:
        pipeline: a model that reads nothing else.
        prompt: caption, negative caption and seed.
        folder: to write to.
        model: name and hash, for the record.
        overwrite: generate again where the file exists, whatever it was made with.
        planned: by :func:`plan_caption`, with the same arguments; None: it is planned here.

    Raises:
        InputError: the file exists, made with other settings; the model reads pictures; the sound can't be made or
            written; another process has been at it for half an hour.
    """
    planned = planned or plan_caption(prompt, folder, model, overwrite, pipeline.sampler)
    item = planned.plan.items[0]
    files = ResultFiles(folder, item.name.removesuffix(".wav"))
    before, path = read_record(files.record), files.path(".wav")
    if item.deed is Deed.KEEP and not files.new(".json").exists():
        return path
    try:
        with ExitStack() as until_done:
            with writing_to(folder):
                until_done.enter_context(claimed_in_turn(files.record, lambda: warnings.warn(
                    f"another process is at {path}; waiting for it"), LONGEST_WAIT_S))
                files.settle()
            if read_record(files.record) != before and finished_before(files.record, planned.settings):
                warnings.warn(f"another process has made {path} meanwhile")
                return path
            if item.deed is Deed.KEEP:
                return path
            waveform = pipeline.generate_from_caption(prompt.caption or "", prompt.negative_caption, prompt.seed)
            require_finite(pipeline, waveform)
            rate_hz = pipeline.spec.sample_rate_hz
            with writing_to(folder), files.replaced():
                write_wav(files.new(".wav"), waveform, rate_hz)
                files.commit({"asked": planned.settings, "written": path.name,
                              "level": asdict(measure_level(waveform, rate_hz)), "model": model,
                              "code_version": __version__})
    except Exception as error:
        raise InputError(reason_of(error, "the caption")) from error
    return path
