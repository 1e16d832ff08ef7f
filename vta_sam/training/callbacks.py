"""Callbacks of training: clipping, averaged weights, checkpoints, progress, and generated samples."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.profilers import Profiler
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

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
from ..runtime.progress import JobProgress, Phase
from ..runtime.randomness import seed_of
from ..runtime.work_plan import PartTimes, StepPace
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


class _AveragedWeights(AveragedModel):
    """torch's, which at every update asks the device whether it is the first: here only until one was made."""

    _begun = False

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        if not self._begun:
            self._begun = bool(self.n_averaged > 0)
        if not self._begun:
            super().update_parameters(model)
            return
        assert self.multi_avg_fn is not None
        self.multi_avg_fn([each.detach() for each in self.module.parameters()],
                          [each.detach() for each in model.parameters()], self.n_averaged)
        for mine, its in zip(self.module.buffers(), model.buffers(), strict=True):
            mine.copy_(its)
        self.n_averaged += 1


class ExponentialMovingAverage(WeightAveraging):
    """An exponential moving average of the weights, which is validated and kept. Buffers are the model's own.

    Args:
        decay: of the average.
        start_step: the optimiser step after which averaging begins, counted from 0.
    """

    def __init__(self, decay: float, start_step: int):
        super().__init__()
        self.decay, self.start_step = decay, start_step

    @property
    def state_key(self) -> str:
        return "EMAWeightAveraging"  # Lightning's class, under whose name checkpoints of older runs keep the state

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":  # the module is moved to the device only after this
            self._average_model = _AveragedWeights(pl_module, trainer.strategy.root_device, use_buffers=False,
                                                   multi_avg_fn=get_ema_multi_avg_fn(self.decay))

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return step_idx is not None and step_idx >= self.start_step


class LastCheckpoint(Checkpoint):
    """Writes ``path`` every so many optimiser steps, after each validation, and when the job is asked to stop.

    At a step with a validation it writes after the validation, and it stands last in the trainer's list of callbacks.
    The checkpoint then holds the best figure so far, by which a resumed run goes on choosing.

    Args:
        path: of the checkpoint.
        every_steps: optimiser steps between checkpoints.
        validate_every_steps: optimiser steps between validations.
        preemption: a request to stop. Preempted is raised once the checkpoint is written.
    """

    def __init__(self, path: Path, every_steps: int, validate_every_steps: int, preemption: Preemption):
        self.path, self.every_steps, self.validate_every_steps = path, every_steps, validate_every_steps
        self.preemption = preemption
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
            raise Preempted(asked == REQUEUE)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints beside their place and renames them, so that a kill leaves the old one or the new one.

    Lightning's own writes to the system's temporary folder and moves, which copies where that is another disk.
    """

    def save_checkpoint(self, checkpoint: Mapping[str, Any], path, storage_options: Any = None) -> None:
        with atomic_path(path, sync=True) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(self, path, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        return load_mapped(path)


def load_mapped(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint, tensors and numbers alone. A tensor stays in the file until it is read: what isn't
    used takes no memory, and processes on one machine share what is."""
    return torch.load(path, map_location="cpu", mmap=True, weights_only=True)


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
