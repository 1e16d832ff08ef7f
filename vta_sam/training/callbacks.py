"""Callbacks of training: checkpoints and their writer, progress, and generated samples."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.profilers import Profiler
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from ..dataset.shards.batch import ClipBatch
from ..generation.pipeline import Pipeline
from ..media.audio import resample
from ..mel import SAMPLE_RATE_HZ
from ..metrics.intervals import bootstrap_interval
from ..metrics.onsets import detect_onsets, onset_f1
from ..metrics.signal import envelope_correlation
from ..plots.clip_pictures import spectrogram_image, timeline_image
from ..runtime.cluster.preemption import REQUEUE, Preempted, Preemption
from ..runtime.distributed import Processes
from ..runtime.files import atomic_path
from ..runtime.progress import JobProgress, Phase
from ..runtime.randomness import seed_of
from ..runtime.work_plan import PartTimes, StepPace


_TO_GO_ON = ("optimizer_states", "current_model_state")  # three quarters of a checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints beside their place and renames them, so that a kill leaves the old one or the new one.

    Lightning's own writes to the system's temporary folder and moves, which copies where that is another disk.
    """

    def save_checkpoint(self, checkpoint: Mapping[str, Any], path, storage_options: Any = None) -> None:
        try:
            with atomic_path(path, sync=True) as temporary, open(temporary, "wb") as file:
                torch.save(checkpoint, file)  # by Python's file, whose errors say what the system said
        except Exception as error:
            fault: BaseException | None = error
            while fault is not None and not isinstance(fault, OSError):
                fault = fault.__context__  # torch ends its archive although it can't, which is a second error
            if fault is None:
                raise
            raise OSError(fault.errno, fault.strerror, os.fspath(path)) from error

    def load_checkpoint(self, path, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        return load_mapped(path)


class CheckpointWriter(AtomicCheckpointIO):
    """Writes checkpoints while steps go on.

    The state is copied to host memory, from a GPU into pinned buffers, which are kept for the next checkpoint. A thread
    writes the copy. One copy is on its way at a time: the next checkpoint waits for it. Whatever waits for the thread
    raises its error. Lightning's AsyncCheckpointIO would copy on the GPU, and hold any number of copies.

    ``best`` holds the weights that are kept, and nothing that only going on needs. It is copied and written together
    with the checkpoint that is saved after it, first: a kill never leaves a last checkpoint that knows of a better step
    than ``best`` is of.

    Args:
        best: path of the checkpoint of the kept weights.
        aside: False, or where memory for the copy is lacking: steps wait until a checkpoint is written.
    """

    def __init__(self, best: Path, aside: bool = True):
        self.best, self.aside = os.path.realpath(best), aside
        self._kept: dict[str, Mapping[str, Any]] = {}
        self._stager: DefaultStager | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None

    def save_checkpoint(self, checkpoint: Mapping[str, Any], path, storage_options: Any = None) -> None:
        if os.path.realpath(path) == self.best:
            self._kept = {self.best: {key: part for key, part in checkpoint.items() if key not in _TO_GO_ON}}
            return
        due, self._kept = {**self._kept, os.fspath(path): checkpoint}, {}
        self.finish()
        if not self.aside:
            self._write(due)
            return
        if self._stager is None or self._thread is None:
            gpu = torch.cuda.is_available()
            self._stager, self._thread = DefaultStager(StagingOptions(gpu, False, False, gpu)), ThreadPoolExecutor(1)
        try:
            copied = cast(dict[str, dict[str, Any]], self._stager.stage(due))  # not a future
        except RuntimeError as error:  # as allocators and CUDA say it
            self.teardown()
            self.aside = False
            warnings.warn(f"the host has no memory for a copy of the state ({str(error).splitlines()[0][:200]}), so "
                          "steps wait for checkpoints, as by checkpoint_aside=false")
            self._write(due)
            return
        self._writing = self._thread.submit(self._write, copied)

    def _write(self, due: Mapping[str, Mapping[str, Any]]) -> None:
        for path, checkpoint in due.items():
            super().save_checkpoint(checkpoint, path)

    def finish(self) -> None:
        """Wait until the last checkpoint is written. Raises the error of writing it, once."""
        writing = self._writing
        if writing is not None:
            wait([writing])  # what interrupts this leaves it to be waited for
            self._writing = None
            writing.result()

    def check(self) -> None:
        """Raise the error of writing the last checkpoint, where it is known by now."""
        if self._writing is not None and self._writing.done():
            self.finish()

    def teardown(self) -> None:
        """The trainer's end, also by an exception: waits, raises as :meth:`finish`, and gives the buffers back."""
        try:
            self.finish()
        finally:
            if self._stager is not None and self._thread is not None:
                self._thread.shutdown()
                self._stager.close()
            self._kept, self._stager, self._thread = {}, None, None


def load_mapped(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint, tensors and numbers alone. A tensor stays in the file until it is read: what isn't
    used takes no memory, and processes on one machine share what is."""
    return torch.load(path, map_location="cpu", mmap=True, weights_only=True)


class LastCheckpoint(Checkpoint):
    """Writes ``path`` every so many optimiser steps, after each validation, and when the job is asked to stop.

    At a step with a validation it writes after the validation, and it stands last in the trainer's list of callbacks.
    The checkpoint then holds the best figure so far, by which a resumed run goes on choosing.

    Args:
        path: of the checkpoint.
        every_steps: optimiser steps between checkpoints.
        validate_every_steps: optimiser steps between validations.
        preemption: a request to stop. Preempted is raised once the checkpoint is written.
        writer: of the trainer's checkpoints.
    """

    def __init__(self, path: Path, every_steps: int, validate_every_steps: int, preemption: Preemption,
                 writer: CheckpointWriter):
        self.path, self.every_steps, self.validate_every_steps = path, every_steps, validate_every_steps
        self.preemption, self.writer = preemption, writer
        self._ended_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._ended_step = trainer.global_step
        if self.preemption.watched:
            self.preemption.install_handlers()  # again: the trainer has installed its own by now

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs, batch, batch_idx) -> None:
        step = trainer.global_step
        if step == self._ended_step:  # with accumulated gradients a step lasts several batches
            return
        self._ended_step = step
        self.writer.check()
        if step % self.validate_every_steps:
            self._save(trainer, due=step % self.every_steps == 0)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._save(trainer, due=True)

    def _save(self, trainer: L.Trainer, due: bool) -> None:
        asked = self.preemption.asked()
        if due or asked:
            trainer.save_checkpoint(self.path)
        if asked:
            self._finish(trainer)
            raise Preempted(asked == REQUEUE)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._finish(trainer)

    def _finish(self, trainer: L.Trainer) -> None:
        """Wait in all processes for what the first one writes: none may end the job or read it before."""
        self.writer.finish()
        trainer.strategy.barrier("checkpoints are written")


# Figures of validation that are printed
SHOWN = (
    "val/loss", "val/mse", "val/energy_correlation", "val/retrieval", "val/envelope_correlation", "val/onset_f1",
)


LOSS_EVERY = 10  # steps: to read a loss the host waits for the device


class TimesOfParts(Profiler):
    """Tells a stage's account of time when Lightning reads a batch and when it writes a checkpoint.

    Args:
        times: the account.
    """

    PARTS = {"[_TrainingEpochLoop].train_dataloader_next": "reading", "save_checkpoint": "checkpoints"}

    def __init__(self, times: PartTimes):
        super().__init__()
        self.times = times

    def start(self, action_name: str) -> None:
        if part := self.PARTS.get(action_name):
            self.times.begin(part)

    def stop(self, action_name: str) -> None:
        if action_name in self.PARTS:
            self.times.end()


class StepProgress(L.Callback):
    """Shows the steps of a stage, with the loss of every tenth, and keeps account of what their time goes to.

    Stands before the callbacks that write checkpoints, so that a validation has ended for it when they do.

    Args:
        job: the progress of the whole job.
        pace: of the stage's steps.
    """

    def __init__(self, job: JobProgress, pace: StepPace):
        self.job, self.pace = job, pace
        self._open, self._step, self._loss = ExitStack(), -1, ""
        self._phase: Phase | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step
        self._phase = self._open.enter_context(
            self.job.phase("steps", self.pace.steps, steps=self.pace, begun=self._step))
        self._before = self.job.times.seconds()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if not self._phase or trainer.global_step == self._step:  # a step may last several batches
            return
        self._step = trainer.global_step
        now = self.job.times.seconds()
        steps, reading, *other = (now.get(part, 0.0) - self._before.get(part, 0.0)
                                  for part in ("steps", "reading", "validation", "checkpoints"))
        self._before = now
        self.pace.add(steps + reading, *other)
        note = None
        if trainer.is_global_zero and (self._step % LOSS_EVERY == 0 or not self._phase.note):
            loss = trainer.callback_metrics.get("train/loss")
            note = f"loss {loss:.4f}" if loss is not None else ""
        self._phase.update(self._step, note)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.job.times.begin("validation")
        if self._phase:
            self._loss, self._phase.note = self._phase.note, "validating"

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.job.times.end()
        if self._phase:
            self._phase.note = self._loss
        if self._phase and not trainer.sanity_checking:
            shown = [f"{k} {float(v):.3f}" for k, v in trainer.callback_metrics.items() if k in SHOWN]
            self.job.console.print(f"  {self.job.name}, step {trainer.global_step}: {', '.join(shown)}",
                                   soft_wrap=not self.job.console.is_terminal)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if self._phase:  # Lightning leaves teardown out, and the cursor would stay hidden
            self._open.__exit__(type(exception), exception, exception.__traceback__)
            self._phase = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._open.close()
        self._phase = None


@dataclass
class Reference:
    """Clips to generate for, their true sound (B, samples) at 16 kHz, and the true onsets of each in seconds."""

    batch: ClipBatch
    waveforms: np.ndarray
    onsets_s: Sequence[np.ndarray]


def in_batches(count: int, batch_size: int) -> list[range]:
    """The rows of ``count`` clips, in batches."""
    return [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]


def _means(scores: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
    """Of every clip's scores by name: their means, with 95 % intervals; of defined ones alone."""
    figures: dict[str, float] = {}
    for name in scores[0]:
        interval = bootstrap_interval([score[name] for score in scores])
        if interval.n:
            figures[name] = interval.mean
        if interval.n > 1:
            figures |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
    return figures


SAMPLED_AT_ONCE = 16  # clips; another number rounds otherwise


class ValidationSamples(L.Callback):
    """Generates sound for the same clips at every validation, and logs how well it is timed.

    Stands before the averaging callback in the trainer's list, so that it samples from the averaged weights.

    Args:
        make: (module in training) ⇒ Pipeline.
        reference: the clips.
        steps: of sampling.
        seed: of sampling.
        media: how many clips' sound and pictures go to loggers that take them.
        preemption: knows the processes that train together, each of which samples its share of the batches. None: this
            one has all.
    """

    def __init__(self, make: Callable[[Any], Pipeline], reference: Reference, steps: int, seed: int,
                 media: int = 4, preemption: Preemption | None = None):
        self.make, self.reference, self.steps, self.media = make, reference, steps, media
        self.seeds = [seed_of(seed, key) for key in reference.batch.keys]
        self.preemption = preemption or Preemption(Processes())

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        pipeline, waveforms, scores = self.make(pl_module), list[np.ndarray](), list[dict[str, float | None]]()
        rounds = self.preemption.parted(in_batches(len(self.seeds), SAMPLED_AT_ONCE),
                                        lambda rows: self._sampled(pipeline, rows), ends=False)
        for media, found in (part for parts in rounds for part in parts):
            waveforms += media
            scores += found
        # one number in all processes, by which each of them chooses a checkpoint
        pl_module.log_dict(self.preemption.processes.on_first_rank(lambda: _means(scores)), batch_size=1)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                self._log_media(logger, waveforms, trainer.global_step)

    def _sampled(self, pipeline: Pipeline, rows: range) -> tuple[list[np.ndarray], list[dict[str, float | None]]]:
        """Of a batch of the clips: the sounds for loggers, and every clip's scores."""
        batch = self.reference.batch.select(rows)
        waveforms = pipeline.generate_batch(batch, [self.seeds[row] for row in rows], steps=self.steps).numpy()
        scores: list[dict[str, float | None]] = []
        for row, waveform in zip(rows, waveforms):
            sound = resample(waveform, batch.spec.sample_rate_hz, SAMPLE_RATE_HZ)
            scores.append({
                "val/envelope_correlation": envelope_correlation(sound, self.reference.waveforms[row]),
                "val/onset_f1": onset_f1(self.reference.onsets_s[row], detect_onsets(sound))})
        return [waveform for row, waveform in zip(rows, waveforms) if row < self.media], scores

    def _log_media(self, logger, waveforms: Sequence[np.ndarray], step: int) -> None:
        batch = self.reference.batch
        rate_hz = batch.spec.sample_rate_hz
        for i, waveform in enumerate(waveforms):
            key, objects = batch.keys[i], batch.objects[i]
            probs = batch.probs[i, batch.frame_mask[i], : len(objects)].cpu().numpy()
            spectrogram = spectrogram_image(waveform, rate_hz)
            timeline = timeline_image(objects, probs, len(waveform) / rate_hz)
            if isinstance(logger, TensorBoardLogger):
                board = logger.experiment
                board.add_audio(f"samples/{key}", waveform[None], step, rate_hz)
                board.add_image(f"spectrogram/{key}", spectrogram, step, dataformats="HWC")
                board.add_image(f"objects/{key}", timeline, step, dataformats="HWC")
            elif isinstance(logger, WandbLogger):
                import wandb

                logger.experiment.log({
                    f"samples/{key}": wandb.Audio(waveform, rate_hz), f"spectrogram/{key}": wandb.Image(spectrogram),
                    f"objects/{key}": wandb.Image(timeline), "trainer/global_step": step,
                })
