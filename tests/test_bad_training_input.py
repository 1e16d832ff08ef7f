"""What training says when it is given what it can't use: a sentence that names the file, and no traceback."""

import dataclasses
import re
import shutil
from types import SimpleNamespace

import pytest
import yaml
from tiny_data import (
    CODEC, CONDITIONER, ENCODER, SPEC, build, stage_context, stage_folder, stage_settings, write_dataset
)

from vta_sam.checkpoints.model_folder import ModelRecipe, save_model
from vta_sam.clip import ClipSpec
from vta_sam.conditioners.vta_sam_pretraining import ConditionPretraining
from vta_sam.dataset.shards.datamodule import ShardDataModule
from vta_sam.dataset.shards.schema import read_dataset
from vta_sam.dataset.shards.storage import storage_of
from vta_sam.runtime.errors import InputError
from vta_sam.training import codec_stages, diffusion_stage
from vta_sam.training.data_sources import ShardData
from vta_sam.training.job import STAGES

KNOWN_CODEC = {**CODEC, "mel_mean": -5.0, "mel_std": 2.0}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pristine") / "shards"
    write_dataset(folder)
    return folder


@pytest.fixture()
def root(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "shards")


@pytest.fixture()
def vae(tmp_path):
    """A model folder of stage 1, untrained."""
    folder = tmp_path / "vae"
    recipe = ModelRecipe(clip=SPEC.settings(), codec=KNOWN_CODEC)
    save_model(folder, recipe, {"codec": build(KNOWN_CODEC)})
    return folder


def train(root, tmp_path, stage="condition", spec=SPEC, **parts):
    from tiny_stages import diffusion_parts

    context, settings = stage_context(root, read_dataset(root), spec=spec), stage_settings(2)
    folder = stage_folder(tmp_path / "run")
    if stage == "vae":
        codec_stages.train_vae(context, folder, settings, parts.get("codec", KNOWN_CODEC))
    elif stage == "condition":
        STAGES["condition"].train_part(context, folder, settings, CONDITIONER, {})
    else:
        diffusion_stage.train_diffusion(context, folder, settings, diffusion_parts(**parts))


def test_shards_of_another_frame_rate(root, tmp_path):
    with pytest.raises(InputError, match=f"{root}: fps is 12.5, expected 8.*Extract again"):
        train(root, tmp_path, spec=ClipSpec(5.12, 8, 16))


def test_shards_of_another_dimension(root):
    with pytest.raises(InputError, match=f"{root}: frame_dim is 6, expected 768"):
        ShardDataModule(root, SPEC, 2, 0, "condition", expect={"frame_dim": 768})


def test_a_missing_dataset(tmp_path):
    with pytest.raises(InputError, match=r"nowhere/dataset\.json doesn't exist"):
        ShardDataModule(tmp_path / "nowhere", SPEC, 2, 0, "vae")
    with pytest.raises(InputError, match=r"nowhere/dataset\.json doesn't exist"):
        ShardData(str(tmp_path / "nowhere")).describe()


def test_extractors_of_another_kind_than_made_the_shards(root):
    made_by = {"grounder": "grounded_sam-swint_ogc-0123-800px", "encoder": "tiny-trunk-1-0"}
    dataclasses.replace(read_dataset(root), **made_by).write(root)
    tiny, clip = {"_target_": "tiny_encoder"}, {"_target_": "clip"}
    grounder = {"_target_": "tiny_grounder"}
    real = {"_target_": "grounded_sam"}
    with pytest.raises(InputError, match=f"{root} was made by the grounder grounded_sam-.*, while grounder=tiny is"):
        ShardData(str(root)).prepare(SPEC, grounder, tiny, None)
    with pytest.raises(InputError, match="the encoder tiny-trunk-1-0, while encoder=clip is configured"):
        ShardData(str(root)).prepare(SPEC, real, clip, None)
    assert ShardData(str(root)).prepare(SPEC, real, tiny, None) == storage_of(root)


@pytest.mark.parametrize("change, words", [
    ({"encoder": "e-2"}, "encoder is 'e-2', expected 'encoder of a test'"), ({"fps": 8.0}, "fps is 8.0, expected 12.5"),
    ({"settings": {"encoder": {"template": "{}"}}}, "encoder.template is '{}', in training it was None"),
])
def test_a_model_is_not_measured_on_features_that_it_was_not_trained_on(root, monkeypatch, change, words):
    info = read_dataset(root)
    model = SimpleNamespace(trained_on=info.trained_on, spec=SPEC)
    monkeypatch.setattr("vta_sam.training.figures_stage.load", lambda *_, **__: model)
    context = stage_context(root, dataclasses.replace(info, **change))
    with pytest.raises(InputError, match=f"{root}: {re.escape(words)}"):
        STAGES["figures"]._prepared(SimpleNamespace(model="x"), context)


def test_a_missing_shard(root):
    (root / "train-000001.tar").unlink()
    with pytest.raises(InputError, match=r"dataset\.json names the shard 'train-000001\.tar', which is not in"):
        read_dataset(root)


@pytest.mark.parametrize("stage", ["vae", "condition"])
def test_a_shard_that_is_cut_short(root, tmp_path, stage):
    for shard in root.glob("train-*.tar"):
        shard.write_bytes(shard.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"train-00000\d\.tar is cut short or is no tar"):
        train(root, tmp_path, stage)


def test_a_shard_with_fewer_records_than_written(root, tmp_path):
    for shard in root.glob("train-*.tar"):
        shutil.copy(root / "val-000000.tar", shard)
    info = read_dataset(root)
    shards = [dataclasses.replace(s, records=7) for s in info.shards("train")]
    dataclasses.replace(info, splits={**info.splits, "train": shards}).write(root)
    with pytest.raises(InputError, match=r"train-00000\d\.tar holds 4 records, dataset\.json says 7"):
        train(root, tmp_path)


def test_a_split_in_which_no_clip_could_be_read(root, tmp_path):
    info = read_dataset(root)
    empty = [dataclasses.replace(s, records=0, failed=s.records) for s in info.shards("train")]
    dataclasses.replace(info, splits={**info.splits, "train": empty}).write(root)
    with pytest.raises(InputError, match="nothing to train on"):
        train(root, tmp_path)


def test_a_damaged_validation_split_is_found_before_the_first_step(root, tmp_path, monkeypatch):
    shard = root / "val-000000.tar"
    shard.write_bytes(shard.read_bytes()[:5000])

    def never(*args):
        raise AssertionError("a step was trained before the validation clips were read")

    monkeypatch.setattr(ConditionPretraining, "training_step", never)
    with pytest.raises(InputError, match=r"val-000000\.tar is cut short"):
        train(root, tmp_path)


def test_a_codec_of_another_stride(root, tmp_path):
    with pytest.raises(InputError, match="VAE has a stride of 8 mel frames, clip.latent_stride_frames is 16"):
        train(root, tmp_path, "vae", codec={**KNOWN_CODEC, "patch": 4, "network": {
            **CODEC["network"], "in_channels": 16, "out_channels": 16}})


# ------------------------------------------------------------------ model folders in place of stages


def test_a_vae_that_is_not_there(root, tmp_path):
    with pytest.raises(InputError, match="nowhere is no model folder: it has no model.yaml"):
        train(root, tmp_path, "diffusion", vae=tmp_path / "nowhere")


def test_a_model_folder_without_a_vae(root, tmp_path):
    folder = tmp_path / "encoder"
    save_model(folder, ModelRecipe(clip=SPEC.settings(), condition_encoder=ENCODER),
               {"condition_encoder": build(ENCODER)})
    with pytest.raises(InputError, match="encoder holds no VAE"):
        train(root, tmp_path, "diffusion", vae=folder)


def test_a_vae_of_another_stride(root, tmp_path, vae):
    with pytest.raises(InputError, match=f"VAE in {vae} has a stride of 16 mel frames, .* is 8"):
        train(root, tmp_path, "diffusion", spec=ClipSpec(5.12, 12.5, 8), vae=vae)


def test_a_foreign_vae(root, tmp_path, vae):
    content = yaml.safe_load((vae / "model.yaml").read_text())
    content["codec"]["network"]["_target_"] = "subprocess.check_output"
    (vae / "model.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=r"vae/model\.yaml\.codec\.network names the class 'subprocess.check_output'"):
        train(root, tmp_path, "diffusion", vae=vae)


def test_a_vae_whose_arguments_do_not_fit(root, tmp_path, vae):
    content = yaml.safe_load((vae / "model.yaml").read_text())
    content["codec"]["surprise"] = 1
    (vae / "model.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=r"vae/model\.yaml describes a codec that can't be built: .*surprise"):
        train(root, tmp_path, "diffusion", vae=vae)


@pytest.mark.parametrize("damage, words", [
    (lambda path: path.unlink(), r"codec\.safetensors is missing"),
    (lambda path: path.write_bytes(path.read_bytes()[:-9]), r"codec\.safetensors can't be read"),
])
def test_a_vae_with_damaged_weights(root, tmp_path, vae, damage, words):
    damage(vae / "codec.safetensors")
    with pytest.raises(InputError, match=words):
        train(root, tmp_path, "diffusion", vae=vae)


@pytest.mark.parametrize("encoder, words", [
    ({**ENCODER, "width": 32}, r"condition_encoder\.safetensors doesn't fit"),
    ({**ENCODER, "frame_dim": 9}, r"condition_encoder\.safetensors doesn't fit"),
])
def test_a_pretrained_encoder_of_other_sizes(root, tmp_path, vae, encoder, words):
    folder = tmp_path / "encoder"
    save_model(folder, ModelRecipe(clip=SPEC.settings(), condition_encoder=encoder),
               {"condition_encoder": build(encoder)})
    with pytest.raises(InputError, match=words):
        train(root, tmp_path, "diffusion", vae=vae, condition=folder)


def test_a_start_that_has_no_unet(root, tmp_path, vae):
    with pytest.raises(InputError, match="vae has no denoiser"):
        train(root, tmp_path, "diffusion", vae=vae, init=vae)
