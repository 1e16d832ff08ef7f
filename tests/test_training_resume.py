"""A stage that is stopped and started again ends where it would have ended: the same losses, the same weights."""

import signal
from dataclasses import replace

import pytest
import torch
from forks import Fork
from safetensors.torch import load_file
from tiny_data import stage_context, stage_folder, stage_settings, write_dataset
from tiny_stages import (
    STAGES, STEPS, Stopped, assert_same, assert_same_weights, diffusion_parts, run_stage, weights
)

from vta_sam.dataset.shards.schema import read_dataset
from vta_sam.training import diffusion_stage
from vta_sam.training.stage import StageSettings


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
@pytest.mark.parametrize("stage, fall", [
    ("vae", STEPS), ("condition", STEPS), ("condition", STEPS // 2), ("diffusion", STEPS), ("diffusion", STEPS // 2),
])
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
        for part in ("callbacks", "loops"):  # name the folder; the numbers of batches are of the trainer's own
            left.pop(part), right.pop(part)
        assert_same(left, right)


def test_a_run_is_its_seed(root, whole, tmp_path):
    folder, expected = whole["condition"]
    again = run_stage("condition", root, tmp_path / "again")
    assert again.losses == expected.losses and again.validations == expected.validations
    assert_same_weights(tmp_path / "again", folder)


@pytest.mark.parametrize("stage", STAGES)
def test_checkpoints_hold_tensors_and_numbers_only(stage, whole):
    folder, _ = whole[stage]
    for name in ("best", "last"):
        content = torch.load(folder / "checkpoints" / f"{name}.ckpt", map_location="cpu", weights_only=True)
        assert content["global_step"] in (4, 8) and content["state_dict"]
        # the moments and the weights that are averaged are for going on
        assert [part in content for part in ("optimizer_states", "current_model_state")] == [name == "last"] * 2
        # under the name that checkpoints of version 0.1.0 have it by
        assert content["callbacks"]["EMAWeightAveraging"] == {"latest_update_step": content["global_step"]}
    assert content["ShardDataModule"] == {"samples": 2 * content["global_step"]}


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
