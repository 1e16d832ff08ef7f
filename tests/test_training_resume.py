"""A stage that is stopped and started again ends where it would have ended: the same losses, the same weights."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from forks import Fork
from safetensors.torch import load_file
from tiny_data import (
    CODEC, CONDITIONER, ENCODER, SPEC, UNET, build, stage_context, stage_folder, stage_settings, write_dataset
)

from vta_sam.conditioners.vta_sam_pretraining import ConditionPretraining
from vta_sam.dataset.shards.batch import Augmentation
from vta_sam.dataset.shards.schema import read_dataset
from vta_sam.runtime.errors import InputError
from vta_sam.training import codec_stages, diffusion_stage
from vta_sam.training import stage as stage_module
from vta_sam.training.callbacks import ExponentialMovingAverage, StepProgress
from vta_sam.training.fit import fit, read_checkpoint
from vta_sam.training.stage import StageSettings
from vta_sam.training.stages import STAGES as TABLE
from vta_sam.vae.mel_vae import MelVAE

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


def run_stage(stage, root, out, vae=None, settings=None, **recorder):
    """Train one tiny stage in ``out`` ⇒ what was recorded."""
    record = Recorder(**recorder)
    original = stage_module.fit
    stage_module.fit = lambda *args: original(*args[:7], callbacks=[*args[7], record], preemption=args[8])
    context, folder = stage_context(root, read_dataset(root)), stage_folder(Path(out))
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


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_dataset(folder)
    return folder


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    """Every stage, uninterrupted ⇒ {stage: (folder, record)}."""
    folder, done = tmp_path_factory.mktemp("whole"), {}
    for stage in STAGES:
        done[stage] = folder / stage, run_stage(stage, root, folder / stage, vae=folder / "vae" / "model")
    return done


def test_stage_3_gets_no_waveform(whole):
    assert {stage: record.waveforms for stage, (_, record) in whole.items()} == {
        "vae": {True}, "condition": {True}, "diffusion": {False}}


def weights(folder):
    return {path.name: load_file(path) for path in (Path(folder) / "model").glob("*.safetensors")}


def assert_same_weights(left, right):
    left, right = weights(left), weights(right)
    assert set(left) == set(right) and left
    for part in left:
        for name in left[part]:
            assert torch.equal(left[part][name], right[part][name]), f"{part}: {name}"


@pytest.mark.slow
@pytest.mark.parametrize("stage, stop_at, validating, checkpoint", [
    ("vae", 3, False, 2), ("condition", 4, True, 2), ("diffusion", 8, True, 6),
])
def test_a_stopped_stage_goes_on_exactly(stage, stop_at, validating, checkpoint, root, whole, tmp_path):
    folder, expected = whole[stage]
    assert sorted(expected.losses) == list(range(1, STEPS + 1)) and sorted(expected.validations) == [4, 8]
    vae = whole["vae"][0] / "model"
    with pytest.raises(Stopped):
        run_stage(stage, root, tmp_path / stage, vae, stop_at=stop_at, validating=validating)
    assert not (tmp_path / stage / "model").exists()
    resumed = run_stage(stage, root, tmp_path / stage, vae)
    for name in ("losses", "validations"):
        left = {step: found for step, found in getattr(expected, name).items() if step > checkpoint}
        assert getattr(resumed, name) == left
    assert_same_weights(tmp_path / stage, folder)


@pytest.mark.parametrize("before, after", [((4, 1), (1, 4)), ((1, 4), (4, 1))])
def test_another_number_of_batches_a_step_validates_and_steps_as_before(before, after, root, tmp_path):
    """Four clips a step, as one batch or as four: what another number of processes makes of a stage's settings."""
    whole, begun, resumed = (stage_settings(STEPS, size, accumulate=count) for size, count in (after, before, after))
    expected = run_stage("vae", root, tmp_path / "whole", settings=whole)
    with pytest.raises(Stopped):
        run_stage("vae", root, tmp_path / "stopped", settings=begun, stop_at=3)  # goes on from 2, no multiple of four
    record = run_stage("vae", root, tmp_path / "stopped", settings=resumed)
    assert sorted(record.validations) == sorted(expected.validations) == [4, 8]
    for step in range(3, STEPS + 1):  # of its last batch
        loss, keys = record.losses[step]
        assert keys == expected.losses[step][1] and loss == pytest.approx(expected.losses[step][0], abs=1e-4)
    for step, figures in record.validations.items():
        assert figures == pytest.approx(expected.validations[step], abs=1e-4)
    assert torch.load(tmp_path / "stopped" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["condition", "diffusion"])
@pytest.mark.parametrize("fall", [STEPS, STEPS // 2])
def test_a_finished_stage_goes_on_to_more_steps_as_if_it_had_been_longer(stage, fall, root, whole, tmp_path):
    """The rate falls over all steps, or has come to its end before the further ones."""
    vae, short = whole["vae"][0] / "model", stage_settings(STEPS // 2, validate_every=4)
    long = replace(stage_settings(STEPS), schedule_steps=fall)
    (folder, expected) = whole[stage] if fall == STEPS else (
        tmp_path / "whole", run_stage(stage, root, tmp_path / "whole", vae, settings=long))
    begun = run_stage(stage, root, tmp_path / "longer", vae, settings=replace(short, schedule_steps=fall))
    assert sorted(begun.losses) == [1, 2, 3, 4] and (tmp_path / "longer" / "model" / "model.yaml").exists()
    record = run_stage(stage, root, tmp_path / "longer", vae, settings=long)
    assert begun.losses | record.losses == expected.losses and sorted(record.losses) == [5, 6, 7, 8]
    assert begun.validations | record.validations == expected.validations
    assert_same_weights(tmp_path / "longer", folder)
    for name in ("last", "best"):
        left, right = (torch.load(place / "checkpoints" / f"{name}.ckpt", weights_only=True)
                       for place in (tmp_path / "longer", folder))
        assert left["global_step"] == right["global_step"]
        for kind in ("state_dict", "current_model_state"):
            assert all(torch.equal(left[kind][key], value) for key, value in right[kind].items())


def test_a_run_is_its_seed(root, whole, tmp_path):
    folder, expected = whole["condition"]
    again = run_stage("condition", root, tmp_path / "again")
    assert again.losses == expected.losses and again.validations == expected.validations
    assert_same_weights(tmp_path / "again", folder)


@pytest.mark.parametrize("stage", STAGES)
def test_checkpoints_hold_tensors_and_numbers_only(stage, whole):
    folder, _ = whole[stage]
    for name in ("last", "best"):
        content = torch.load(folder / "checkpoints" / f"{name}.ckpt", map_location="cpu", weights_only=True)
        assert content["global_step"] in (4, 8) and content["state_dict"] and content["current_model_state"]
        # under the name that checkpoints of version 0.1.0 have it by
        assert content["callbacks"]["EMAWeightAveraging"] == {"latest_update_step": content["global_step"]}
    assert content["ShardDataModule"] == {"samples": 2 * content["global_step"]}


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


@pytest.mark.parametrize("stop_at, validating", [(5, False), (8, True)])
def test_the_best_so_far_is_remembered(root, tmp_path, stop_at, validating):
    """Step 4 was better than step 8 will be: also for a run that goes on from there."""
    scores = {4: 0.9, 8: 0.1}
    with pytest.raises(Stopped):
        fit_with_scores(root, tmp_path, scores, stop_at=stop_at, validating=validating)
    module, folder = fit_with_scores(root, tmp_path, scores)
    best = torch.load(folder.best_checkpoint, weights_only=True)
    assert best["global_step"] == 4
    assert all(torch.equal(value, best["state_dict"][name]) for name, value in module.state_dict().items())
    assert torch.load(folder.last_checkpoint, weights_only=True)["global_step"] == 8


def test_what_is_kept_is_the_average(root, tmp_path):
    _, folder = fit_with_scores(root, tmp_path, {4: 0.1, 8: 0.9})
    content = torch.load(folder.best_checkpoint, weights_only=True)
    assert content["global_step"] == 8
    name = "encoder.project.weight"
    assert not torch.equal(content["state_dict"][name], content["current_model_state"][name])


class Counting(L.LightningModule):
    """A weight, and a buffer of whole numbers as conditioners have it."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.register_buffer("picked", torch.arange(82))


def averaging(device, **settings):
    """An average of a module, as a trainer on ``device`` sets it up ⇒ (the callback, the module)."""
    average, module = ExponentialMovingAverage(**settings), Counting()
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))
    average.setup(trainer, module, "fit")
    return average, module


def test_the_average_lies_where_the_model_will_be():
    average, module = averaging("meta", decay=0.9, start_step=0)
    assert next(average._average_model.parameters()).device.type == "meta" and module.weight.device.type == "cpu"


def test_the_average_is_of_weights_and_leaves_whole_numbers_whole():
    average, module = averaging("cpu", decay=0.9999, start_step=2)
    assert [average.should_update(step_idx=step) for step in range(4)] == [False, False, True, True]
    assert not average.should_update(epoch_idx=5)
    for value in range(4):
        module.weight.data.fill_(float(value))
        average._average_model.update_parameters(module)
    expected = 0.0  # the first update takes the weights as they are
    for value in range(1, 4):
        expected = 0.9999 * expected + 1e-4 * value
    assert average._average_model.module.weight.tolist() == pytest.approx([expected] * 3, rel=1e-5)
    assert torch.equal(average._average_model.module.picked, torch.arange(82))


def test_the_average_asks_the_device_only_until_it_has_begun(monkeypatch):
    average, module = averaging("cpu", decay=0.5, start_step=0)
    asked = []
    gt, eq = torch.Tensor.__gt__, torch.Tensor.__eq__
    monkeypatch.setattr(torch.Tensor, "__gt__", lambda *pair: asked.append(pair) or gt(*pair))
    monkeypatch.setattr(torch.Tensor, "__eq__", lambda *pair: asked.append(pair) or eq(*pair))
    counts = []
    for value in range(4):
        module.weight.data.fill_(float(value))
        average._average_model.update_parameters(module)
        counts.append(len(asked))
    assert counts[0] > 0 and counts[1] == counts[2] == counts[3]
    assert average._average_model.module.weight.tolist() == [2.125] * 3 and average._average_model.n_averaged == 4
    again, other = averaging("cpu", decay=0.5, start_step=0)
    again._average_model.load_state_dict(average._average_model.state_dict())  # as a resumed run does
    other.weight.data.fill_(4.0)
    again._average_model.update_parameters(other)
    assert again._average_model.module.weight.tolist() == [3.0625] * 3


def test_the_progress_line_reads_every_tenth_loss(monkeypatch):
    class Metrics(dict):
        def get(self, name):
            read.append(trainer.global_step)
            return torch.tensor(1.5)

    read: list[int] = []
    trainer = SimpleNamespace(is_global_zero=True, global_step=0, callback_metrics=Metrics())
    progress = StepProgress("vae", 30)
    progress.on_train_start(trainer, None)
    try:
        for batch in range(60):  # two to a step
            trainer.global_step = (batch + 1) // 2
            progress.on_train_batch_end(trainer, None, None, None, batch)
            if trainer.global_step == 25:
                assert progress._progress.tasks[0].completed == 25
                assert progress._progress.tasks[0].fields["note"] == "loss 1.5000"
        assert read == [0, 10, 20, 30]
    finally:
        progress.teardown(trainer, None, "fit")


def test_ctrl_c_is_passed_on(root, tmp_path):
    """Lightning would end the program; entry scripts want to say a word."""
    class Interrupt(L.Callback):
        def on_train_batch_end(self, trainer, *args):
            raise KeyboardInterrupt

    context, settings, folder = stage_context(root, read_dataset(root)), stage_settings(STEPS), stage_folder(tmp_path)
    module = pretraining(settings)
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(module, context.datamodule("condition", settings), folder, settings.fit, "a test", ("val/loss", "min"),
                callbacks=[Interrupt()])
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_damaged_or_foreign_checkpoint_is_refused_in_words(root, whole, tmp_path):
    settings = stage_settings(STEPS)
    module = pretraining(settings)
    good = whole["condition"][0] / "checkpoints" / "last.ckpt"
    assert read_checkpoint(good, module)["global_step"] == STEPS
    other = build({**ENCODER, "width": 32})
    wider = pretraining(settings, other)
    for model in (wider, MelVAE(build(CODEC | {"mel_mean": 0.0, "mel_std": 1.0}), {}, settings.optimise())):
        with pytest.raises(InputError, match=r"last\.ckpt is a checkpoint of another model: \d+ of its parameters"):
            read_checkpoint(good, model)
    content = good.read_bytes()
    for damaged in (content[:-1000], content[:5000], b"", b"no checkpoint"):
        path = tmp_path / "last.ckpt"
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"last\.ckpt can't be read as a checkpoint .*delete it"):
            read_checkpoint(path, module)


def test_a_checkpoint_with_code_in_it_is_refused(whole, tmp_path):
    import pickle

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    path = tmp_path / "last.ckpt"
    path.write_bytes(pickle.dumps(Bomb(), protocol=2))
    torch.save({"state_dict": Bomb()}, tmp_path / "new.ckpt")
    module = torch.nn.Linear(1, 1)
    for name in ("last.ckpt", "new.ckpt"):
        with pytest.raises(InputError, match=f"{name} can't be read as a checkpoint"):
            read_checkpoint(tmp_path / name, module)
    assert not (tmp_path / "ran").exists()


def test_going_on_from_another_models_checkpoint_is_refused(root, whole, tmp_path):
    folder = stage_folder(tmp_path / "vae")
    folder.last_checkpoint.parent.mkdir()
    folder.last_checkpoint.write_bytes((whole["condition"][0] / "checkpoints" / "last.ckpt").read_bytes())
    with pytest.raises(InputError, match="checkpoint of another model"):
        run_stage("vae", root, tmp_path / "vae")


@pytest.mark.slow
def test_pretraining_starts_stage_3_and_goes_slower(root, whole, tmp_path):
    context, settings = stage_context(root, read_dataset(root)), stage_settings(2)
    vae, condition = whole["vae"][0] / "model", whole["condition"][0] / "model"
    pretrained = load_file(condition / "condition_encoder.safetensors")
    moved = {}
    for rate in (0.1, 0.0):
        parts = diffusion_parts(vae, condition=condition, freeze=not rate)
        diffusion_stage.train_diffusion(context, stage_folder(tmp_path / str(rate)), settings, parts)
        trained = load_file(tmp_path / str(rate) / "model" / "conditioner.safetensors")
        moved[rate] = max((trained[f"encoder.{k}"] - v).abs().max().item() for k, v in pretrained.items())
    # Adam moves a weight by at most about its rate a step: 1e-3 · 0.1 · 2 steps
    assert 0 < moved[0.1] < 2.5e-4 and moved[0.0] == 0


def test_stage_3_starts_from_init(root, whole, tmp_path):
    context = stage_context(root, read_dataset(root), seed=5)
    parts = diffusion_parts(whole["vae"][0] / "model", init=whole["diffusion"][0] / "model")
    frozen = StageSettings.of({"fit": {"steps": 1, "validate_every": 1, "checkpoint_every": 1,
                                       "precision": "fp32", "accelerator": "cpu"},
                               "batch_size": 2, "learning_rate": 0.0, "warmup_steps": 0})
    diffusion_stage.train_diffusion(context, stage_folder(tmp_path), frozen, parts)
    started, init = weights(tmp_path), weights(whole["diffusion"][0])
    for part in ("denoiser.safetensors", "conditioner.safetensors"):
        assert all(torch.equal(started[part][name], init[part][name]) for name in init[part])


@pytest.mark.parametrize("change, words", [
    (dict(validate_every=9), "validate_every=9 with steps=8"), (dict(validate_every=0), "validate_every=0"),
    (dict(ema_start=8), "ema_start=8 with steps=8"),
])
def test_settings_that_would_keep_nothing_trained_are_refused(change, words):
    with pytest.raises(InputError, match=words):
        stage_settings(STEPS, **change)


def run_and_die(stage, root, folder, vae, stop_at):
    run_stage(stage, root, folder, vae, stop_at=stop_at, kill=True)


@pytest.mark.slow
@pytest.mark.parametrize("stage, stop_at", [("condition", 7), ("diffusion", 5)])
def test_a_killed_process_goes_on_exactly(stage, stop_at, root, whole, tmp_path):
    """SIGKILL, as a machine does it when memory runs out."""
    vae = whole["vae"][0] / "model"
    killed = Fork(run_and_die, stage, root, tmp_path / stage, vae, stop_at)
    assert killed.wait() == -signal.SIGKILL, killed.read()
    killed.close()
    assert (tmp_path / stage / "checkpoints" / "last.ckpt").exists()
    resumed = run_stage(stage, root, tmp_path / stage, vae)
    folder, expected = whole[stage]
    assert resumed.losses
    for step, (loss, keys) in resumed.losses.items():
        assert keys == expected.losses[step][1] and loss == pytest.approx(expected.losses[step][0], abs=1e-6)
    left, right = weights(tmp_path / stage), weights(folder)
    for part in right:
        assert all(torch.allclose(left[part][name], right[part][name], atol=1e-6) for name in right[part])
