"""Callbacks of training: clipping, checkpoints and their writer, progress, and generated samples."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ..dataset.shards.batch import ClipBatch
from ..generation.pipeline import Pipeline
from ..media.audio import resample
from ..mel import SAMPLE_RATE_HZ
from ..metrics.intervals import bootstrap_interval
from ..metrics.onsets import detect_onsets, onset_f1
from ..metrics.signal import envelope_correlation
from ..plots.clip_pictures import spectrogram_image, timeline_image
from ..runtime.errors import InputError
from ..runtime.files import atomic_path, write_text
from ..runtime.randomness import seed_of
from .preemption import REQUEUE, Preempted, Preemption


class GradientClipping(L.Callback):
    """Clips the norm of the gradient, and ends the fit where a loss or the norm is NaN or infinite.

    The optimiser doesn't take such a step, so that the weights and the last checkpoint stay good. Every process writes
    the keys of its own batches to ``folder``/nonfinite-<rank>.json.

    Args:
        max_norm: of the gradient of all parameters together; 0: gradients are not clipped.
        folder: of the stage.
    """

    def __init__(self, max_norm: float, folder: Path):
        self.max_norm, self.folder = max_norm, folder
        self._keys: list[str] = []
        self._losses: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int,
                             ) -> None:
        self._keys += batch.keys

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: torch.Tensor) -> None:
        self._losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        """DDP has averaged the processes' gradients by now, so that all processes see a norm that one of them spoiled.
        """
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        total = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        norm = total.full_tensor() if isinstance(total, DTensor) else total
        keys, losses = self._keys, torch.stack(self._losses)
        self._keys, self._losses = [], []  # of accumulated batches, all of the step's
        if torch.isfinite(torch.cat([losses, norm.reshape(1).to(losses)])).all():  # one wait for the device
            if self.max_norm > 0:
                clip_grads_with_norm_(parameters, self.max_norm, total)
            return
        path = self.folder / f"nonfinite-{trainer.global_rank}.json"
        noted = {"step": trainer.global_step, "losses": [str(loss) for loss in losses.tolist()],
                 "gradient_norm": str(float(norm)), "clips": keys}
        write_text(path, json.dumps(noted, indent=1) + "\n")
        raise InputError(
            f"step {trainer.global_step}: the loss is {float(losses.mean()):g}, the gradient's norm {float(norm):g}; "
            f"the step was not taken, its clips stand in {path}. Look at those clips, or lower learning_rate; the same "
            "command goes on from the last checkpoint")


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


class StepProgress(L.Callback):
    """One line a stage: steps done of all, loss of every tenth, time left.

    Args:
        label: the stage.
        steps: of the whole stage.
    """

    def __init__(self, label: str, steps: int):
        self.label, self.steps = label, steps
        self._progress: Progress | None = None
        self._note, self._shown_step = "", -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} steps"),
            TextColumn("{task.fields[note]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )
        self._progress.start()
        self._task = self._progress.add_task(self.label, total=self.steps, completed=trainer.global_step, note="")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if not self._progress or trainer.global_step == self._shown_step:  # a step may last several batches
            return
        self._shown_step = trainer.global_step
        if self._shown_step % LOSS_EVERY == 0 or not self._note:
            loss = trainer.callback_metrics.get("train/loss")
            self._note = f"loss {loss:.4f}" if loss is not None else ""
        self._progress.update(self._task, completed=trainer.global_step, note=self._note)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._progress and not trainer.sanity_checking:
            shown = [f"{k} {float(v):.3f}" for k, v in trainer.callback_metrics.items() if k in SHOWN]
            self._progress.console.print(f"  {self.label}, step {trainer.global_step}: {', '.join(shown)}")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")  # which Lightning leaves out; the cursor would stay hidden

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._progress:
            self._progress.stop()
            self._progress = None


@dataclass
class Reference:
    """Clips to generate for, their true sound (B, samples) at 16 kHz, and the true onsets of each in seconds."""

    batch: ClipBatch
    waveforms: np.ndarray
    onsets_s: Sequence[np.ndarray]


class ValidationSamples(L.Callback):
    """Generates sound for the same clips at every validation, and logs how well it is timed.

    Stands before the averaging callback in the trainer's list, so that it samples from the averaged weights.

    Args:
        make: (module in training) ⇒ Pipeline.
        reference: the clips.
        steps: of sampling.
        seed: of sampling.
        media: how many clips' sound and pictures go to loggers that take them.
    """

    def __init__(self, make: Callable[[Any], Pipeline], reference: Reference, steps: int, seed: int,
                 media: int = 4):
        self.make, self.reference, self.steps, self.media = make, reference, steps, media
        self.seeds = [seed_of(seed, key) for key in reference.batch.keys]

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        pipeline, parts = self.make(pl_module), []
        for start in range(0, len(self.seeds), 16):
            rows = range(start, min(start + 16, len(self.seeds)))
            parts.append(pipeline.generate_batch(
                self.reference.batch.select(rows), [self.seeds[r] for r in rows], steps=self.steps
            ))
        waveforms, rate_hz = torch.cat(parts).numpy(), self.reference.batch.spec.sample_rate_hz
        sounds = [resample(waveform, rate_hz, SAMPLE_RATE_HZ) for waveform in waveforms]
        correlations = [envelope_correlation(w, t) for w, t in zip(sounds, self.reference.waveforms)]
        scores = [onset_f1(t, detect_onsets(w)) for w, t in zip(sounds, self.reference.onsets_s)]
        figures: dict[str, Sequence[float | None]] = {
            "val/envelope_correlation": correlations, "val/onset_f1": scores}
        for name, values in figures.items():
            interval = bootstrap_interval(values)
            if interval.n:
                logged = {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
                pl_module.log_dict(logged, batch_size=1, sync_dist=True)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                self._log_media(logger, waveforms[: self.media], trainer.global_step)

    def _log_media(self, logger, waveforms: np.ndarray, step: int) -> None:
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
