"""What happens beside a training step: a progress bar, and generated samples at every validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..metrics.envelope import envelope_correlation
from ..metrics.onsets import detect_onsets, onset_f1
from ..metrics.statistics import bootstrap_interval
from ..pipeline import Pipeline
from ..randomness import seed_of
from ..report.pictures import spectrogram_image, timeline_image
from ..shards.batch import ClipBatch


class StepProgress(L.Callback):
    """One line a stage: steps done of all, loss, time left."""

    def __init__(self, label: str, steps: int):
        self.label, self.steps = label, steps
        self._progress: Progress | None = None

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
        if self._progress:
            loss = trainer.callback_metrics.get("train/loss")
            note = f"loss {loss:.4f}" if loss is not None else ""
            self._progress.update(self._task, completed=trainer.global_step, note=note)

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


SHOWN = (
    "val/loss", "val/mse", "val/energy_correlation", "val/retrieval", "val/envelope_correlation", "val/onset_f1",
)


@dataclass
class Reference:
    """Clips to generate for, their true sound (B, samples), and the true onsets of each in seconds."""

    batch: ClipBatch
    waveforms: np.ndarray
    onsets_s: Sequence[np.ndarray]


class ValidationSamples(L.Callback):
    """Generate sound for the same clips at every validation, and log how well it is timed.

    Stands before the averaging callback in the trainer's list, so that it hears the averaged weights. Args: make, the
    module being trained ⇒ Pipeline; reference; steps and seed of sampling; media, how many clips' sound and pictures
    go to loggers that take them.
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
        waveforms = torch.cat(parts).numpy()
        correlations = [envelope_correlation(w, t) for w, t in zip(waveforms, self.reference.waveforms)]
        scores = [onset_f1(t, detect_onsets(w)) for w, t in zip(waveforms, self.reference.onsets_s)]
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
        for i, waveform in enumerate(waveforms):
            key, objects = batch.keys[i], batch.objects[i]
            probs = batch.probs[i, batch.frame_mask[i], : len(objects)].cpu().numpy()
            spectrogram = spectrogram_image(waveform)
            timeline = timeline_image(objects, probs, len(waveform) / 16_000)
            if isinstance(logger, TensorBoardLogger):
                board = logger.experiment
                board.add_audio(f"samples/{key}", waveform[None], step, 16_000)
                board.add_image(f"spectrogram/{key}", spectrogram, step, dataformats="HWC")
                board.add_image(f"objects/{key}", timeline, step, dataformats="HWC")
            elif isinstance(logger, WandbLogger):
                import wandb

                logger.experiment.log({
                    f"samples/{key}": wandb.Audio(waveform, 16_000), f"spectrogram/{key}": wandb.Image(spectrogram),
                    f"objects/{key}": wandb.Image(timeline), "trainer/global_step": step,
                })
