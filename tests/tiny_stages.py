"""Tiny stages that are trained, stopped and trained again, and what they leave."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import lightning as L
import torch
from safetensors.torch import load_file
from tiny_data import CODEC, CONDITIONER, ENCODER, SPEC, UNET, build, stage_context, stage_folder, stage_settings

from vta_sam.conditioners.vta_sam_pretraining import ConditionPretraining
from vta_sam.dataset.shards.batch import Augmentation
from vta_sam.dataset.shards.schema import read_dataset
from vta_sam.training import codec_stages, diffusion_stage
from vta_sam.training import stage as stage_module
from vta_sam.training.fit import fit
from vta_sam.training.job import STAGES as TABLE

STAGES = ("vae", "condition", "diffusion")
AUGMENT = {"objects": 0.3, "frames": 0.3, "appearance": 1.0}
STEPS = 8  # validated at 4 and 8, checkpoints at 2, 4, 6 and 8


class Stopped(Exception):
    """What a machine's end looks like from inside: nothing of ours gets to tidy up."""


class Recorder(L.Callback):
    """Notes every step's loss and every validation's figures; stops the fit at the end of a step, before anything is
    saved there, or within a validation."""

    def __init__(self, stop_at=None, validating=False, kill=False):
        self.losses, self.validations, self.waveforms = {}, {}, set()
        self.stop_at, self.validating, self.kill = stop_at, validating, kill

    def stop(self, trainer, validating):
        if (trainer.global_step, validating) == (self.stop_at, self.validating):
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise Stopped

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses[trainer.global_step] = outputs["loss"].item(), tuple(batch.keys)
        self.waveforms.add(batch.waveform is not None)
        self.stop(trainer, validating=False)

    def on_validation_start(self, trainer, pl_module):
        self.stop(trainer, validating=True)

    def on_validation_end(self, trainer, pl_module):
        figures = {k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        self.validations[trainer.global_step] = figures


def run_stage(stage, root, out, vae=None, settings=None, acts=(), preemption=None, **recorder):
    """Train one tiny stage in ``out`` ⇒ what was recorded. acts: further callbacks."""
    record = Recorder(**recorder)
    original = stage_module.fit
    stage_module.fit = lambda *args: original(*args[:7], callbacks=[*args[7], record, *acts], preemption=args[8])
    asked = {"preemption": preemption} if preemption else {}
    context, folder = stage_context(root, read_dataset(root), **asked), stage_folder(Path(out))
    settings = settings or stage_settings(STEPS)
    try:
        if stage == "vae":
            codec_stages.train_vae(context, folder, settings, CODEC)
        elif stage == "condition":
            TABLE["condition"].train_part(context, folder, settings, CONDITIONER, AUGMENT)
        else:
            diffusion_stage.train_diffusion(context, folder, settings, diffusion_parts(vae))
    finally:
        stage_module.fit = original
    return record


def diffusion_parts(vae, condition=None, init=None, **more):
    return diffusion_stage.DiffusionParts(**{
        "denoiser": UNET, "conditioner": CONDITIONER, "objective": {"_target_": "v_prediction"},
        "dropout": 0.3, "augment": AUGMENT, "freeze": False,
        "starts": diffusion_stage.TrainedFolders(vae, {"condition": condition} if condition else {}, init),
        "sampler": {"_target_": "diffusion_sampler", "steps": 2},
        "vocoder": {"_target_": "griffin_lim", "iterations": 1, "inversion_steps": 1},
        "validation": {"clips": 2, "steps": 2}, "grounder": {}, "encoder": {}, **more})


def weights(folder):
    return {path.name: load_file(path) for path in (Path(folder) / "model").glob("*.safetensors")}


def assert_same_weights(left, right):
    left, right = weights(left), weights(right)
    assert set(left) == set(right) and left
    for part in left:
        for name in left[part]:
            assert torch.equal(left[part][name], right[part][name]), f"{part}: {name}"


def assert_same(left, right, place=""):
    """Of two contents of checkpoints, or parts of them."""
    assert type(left) is type(right), place
    if isinstance(left, dict):
        assert list(left) == list(right), place
        for key in left:
            assert_same(left[key], right[key], f"{place}/{key}")
    elif isinstance(left, (list, tuple)):
        assert_same(dict(enumerate(left)), dict(enumerate(right)), place)
    else:
        assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right, place


class Figure(Recorder):
    """Logs a figure of its own at each validation: the steps' scores are given."""

    def __init__(self, scores, **recorder):
        super().__init__(**recorder)
        self.scores = scores

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("val/figure", self.scores[trainer.global_step])


def pretraining(settings, encoder=None):
    return ConditionPretraining((encoder or build(ENCODER)).train(), settings.weights, Augmentation(),
                                settings.optimise(), SPEC.mel)


def fit_with_scores(root, path, scores, **recorder):
    """Eight steps of stage 2, kept by ``scores`` ⇒ (module, folder)."""
    context, settings, folder = stage_context(root, read_dataset(root)), stage_settings(STEPS), stage_folder(path)
    with context.seeded("condition"):
        module = pretraining(settings)
    fit(module, context.datamodule("condition", settings), folder, settings.fit, "a test", ("val/figure", "max"),
        callbacks=[Figure(scores, **recorder)])
    return module, folder
