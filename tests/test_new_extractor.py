"""A grounder, an encoder and a further feature of one's own: one file and one yaml each, and nothing in the project.

They extract, training learns from the dataset which they were, and the finished model reads a video with them.
"""

import importlib
import json
import runpy
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, write_video
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from test_extract import write_manifest

from vta_sam import clip as clip_module
from vta_sam.checkpoints import parts
from vta_sam.checkpoints.parts import differences, differing_settings, essence
from vta_sam.checkpoints.model_folder import read_content
from vta_sam.dataset.shards.records import read_shard
from vta_sam.dataset.shards.schema import read_dataset
from vta_sam.generation.pipeline import load
from vta_sam.media.picture_reader import Squeeze
from vta_sam.perception.base import Encoder, FrameExtractor, Grounder, Grounding, NoGrounder
from vta_sam.perception.features import Extractors, build_features
from vta_sam.runtime.cli import plain_values
from vta_sam.runtime.errors import InputError
from vta_sam.runtime.typed_text import TypedText
from vta_sam.settings import ExtractSettings
from vta_sam.training.data_sources import ShardData
from vta_sam.training.job import TrainingJob

SOURCE = '''
import numpy as np
import vta_sam
from vta_sam.clip import Feature, register_feature
from vta_sam.media.picture_reader import Squeeze
from vta_sam.perception.base import Encoder, FrameExtractor, Grounder, Grounding

class MyGrounder(Grounder):
    kind, fingerprint, fit = "mine", "mine-grounder-1", Squeeze(12, 16)

    def ground(self, frames, objects):
        grounding = Grounding.zeros(len(frames), len(objects))
        grounding.probs += frames.mean((1, 2, 3))[:, None] / 255
        return grounding

class MyEncoder(Encoder):
    kind, fingerprint, fit = "mine", "mine-encoder-1", Squeeze(24, 32)
    frame_dim, object_dim, caption_dim = 3, 2, 2

    def __init__(self, gain=1.0, device="auto"):
        self.gain, self.settings = gain, {"gain": gain}

    def encode_frames(self, frames):
        return self.gain * frames.mean((1, 2), dtype=np.float32) / 255

    def encode_objects(self, objects):
        return np.array([[len(word), 1] for word in objects], np.float32).reshape(-1, 2)

    def encode_caption(self, caption):
        return self.encode_objects(caption.split() or [""])

class Brightest(FrameExtractor):
    kind, fingerprint, fit, name, dim = "brightest", "brightest-1", Squeeze(8, 8), "brightest", 3

    def extract(self, frames):
        return frames.max((1, 2)).astype(np.float32)

register_feature("brightest", Feature(("T", "colours"), meaning="largest value of each colour", optional=True))
for name in ("MyGrounder", "MyEncoder", "Brightest"):
    vta_sam.trust(f"mine.{name}", name={"Brightest": "brightest"}.get(name, "my_" + name[2:].lower()))
'''
YAMLS = {"grounder/mine.yaml": "_target_: mine.MyGrounder\n",
         "encoder/mine.yaml": "_target_: mine.MyEncoder\ngain: 2.0\ndevice: auto\n",
         "features/brightest.yaml": "brightest: {_target_: mine.Brightest}\n"}


ONE_STEP = "fit={steps: 1, validate_every: 1, checkpoint_every: 1, ema_start: 0, precision: fp32}"


@contextmanager
def program_with_own(folder):
    """As in a process of its own, of which ``folder`` is on Python's path."""
    features, trusted = dict(clip_module.FEATURES), dict(parts._TRUSTED)
    parts._TRUSTED.clear()
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))
    sys.modules.pop("mine", None)
    for table, before in ((clip_module.FEATURES, features), (parts._TRUSTED, trusted)):
        table.clear()
        table.update(before)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with the module, its yamls, two videos, and the shards that the script made of them."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "mine.py").write_text(SOURCE)
    for name, text in YAMLS.items():
        (folder / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "conf" / name).write_text(text)
    (folder / "videos").mkdir()
    for i in range(2):
        sound = np.random.default_rng(i).uniform(-0.3, 0.3, round(5.12 * 16_000))
        write_video(folder / "videos" / f"{i}.mp4", duration_s=5.12, sound=sound)
    write_manifest(folder / "m.csv", [{"id": f"{split}-{i}", "caption": "a dog barks", "path": f"{i}.mp4",
                                       "split": split} for i in range(2) for split in ("train", "val")])
    settings = ["grounder=mine", "encoder=mine", "+features=brightest", f"videos={folder}/videos",
                f"manifest={folder}/m.csv", f"out={folder}/shards", "workers=1"]
    with program_with_own(folder):
        extract = runpy.run_path(str(REPOSITORY / "data_prep" / "extract.py"))["main"]
        extract.__wrapped__(ExtractSettings.of(plain_values(composed("extract", folder, *settings), TypedText(()))))
    return folder


def composed(program, folder, *settings):
    """The config of a program whose command line names the folder's yamls."""
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        return compose(program, overrides=[f"hydra.searchpath=[file://{folder}/conf]", *settings])


def job_of(folder: Path, *overrides: str) -> TrainingJob:
    small = ["size=smoke", "data=shards", f"data.root={folder}/shards", f"runs={folder}/runs", "threads=1",
             "stages=[vae,diffusion]", "validation={clips: 1, steps: 1}",
             "networks.codec.network.block_out_channels=[8,8,8]", "networks.condition.width=16",
             "networks.unet.config.block_out_channels=[16,16,16]", "networks.unet.config.norm_num_groups=8",
             "networks.unet.config.cross_attention_dim=16", "networks.unet.coordinate_channels=4",
             *(f"fit.{stage}.{key}" for stage in ("vae", "diffusion") for key in ("batch_size=2", ONE_STEP))]
    config = composed("train", folder, "+exp=vta_sam", *small, *overrides)
    return TrainingJob.of({**OmegaConf.to_container(config, resolve=True), "logger": []})


# ------------------------------------------------------------------ the whole way


def test_the_dataset_says_what_made_it(workplace):
    info = read_dataset(workplace / "shards")
    assert info.recipes == {"grounder": {"_target_": "my_grounder"}, "encoder": {"_target_": "my_encoder", "gain": 2.0},
                            "features": {"brightest": {"_target_": "brightest"}}}
    assert info.settings == {"encoder": {"gain": 2.0}} and info.features == {"brightest": "brightest-1"}
    assert (info.grounder, info.encoder, info.dimensions["brightest_dim"]) == ("mine-grounder-1", "mine-encoder-1", 3)
    config = json.loads((workplace / "shards" / "extraction.json").read_text())["config"]
    assert config["features"]["brightest"] == {"fingerprint": "brightest-1", "settings": {}, "fit": repr(Squeeze(8, 8))}


@pytest.fixture(scope="module")
def model(workplace):
    """The model folder of a job that names no extractor, and does not know theirs at first."""
    with program_with_own(workplace):
        with pytest.raises(InputError, match=r"recipes\.grounder names the class 'my_grounder'.*name it on the comm"):
            job_of(workplace).run()
        importlib.import_module("mine")
        with pytest.MonkeyPatch.context() as patch:  # librosa takes longer to import than all else here
            for user in ("callbacks", "data_sources"):
                patch.setattr(f"vta_sam.training.{user}.detect_onsets", lambda _: np.array([1.0]))
            return job_of(workplace).run() / "diffusion" / "model"


def test_a_model_folder_names_what_made_the_data(model):
    content = read_content(model)
    assert content["grounder"] == {"_target_": "my_grounder"}
    assert content["encoder"] == {"_target_": "my_encoder", "gain": 2.0}
    assert content["features"]["further"] == {
        "brightest": {"fingerprint": "brightest-1", "recipe": {"_target_": "brightest"}}}


def test_a_model_reads_a_video_as_extraction_did(workplace, model):
    with program_with_own(workplace):
        importlib.import_module("mine")
        generated = load(model).generate(workplace / "videos" / "0.mp4", "a dog barks", steps=1)
        [record] = [r for r in read_shard(workplace / "shards" / "train-000000.tar") if r.key == "train-0"]
        for name in ("frame_embedding", "probs", "brightest"):
            assert np.allclose(getattr(generated.features, name), getattr(record, name), atol=2e-3, rtol=2e-3), name
        assert record.brightest.shape == (64, 3) and record.brightest.any()


def test_other_settings_than_in_training_are_refused(workplace, model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    text = (folder / "model.yaml").read_text()
    (folder / "model.yaml").write_text(text.replace("gain: 2.0", "gain: 1.0", 1))
    with program_with_own(workplace):
        importlib.import_module("mine")
        with pytest.raises(InputError, match=r"encoder\.gain is 1\.0, in training it was 2\.0; mend model.yaml"):
            load(folder).generate(workplace / "videos" / "0.mp4", "a dog barks", steps=1)


def test_extractors_may_be_named_and_have_to_be_those_of_the_data(workplace, model):
    with program_with_own(workplace):
        job = job_of(workplace, "grounder=mine", "encoder=mine", "encoder.device=cpu")
        job.grounder, job.encoder = job.source.recipes(job.grounder, job.encoder)
        job.stage_folder("diffusion").claim(overwrite=False)  # the run that named none
        with pytest.raises(InputError, match=r"other extractors than are named \(encoder: gain is 3\.0, not 2\.0\)"):
            job_of(workplace, "encoder=mine", "encoder.gain=3.0").run()
        with pytest.raises(InputError, match=r"\(grounder: it is tiny_grounder, not my_grounder\)"):
            job_of(workplace, "grounder=tiny").run()


def test_owlv2_and_siglip_go_the_same_way(workplace, random_weights, tmp_path, monkeypatch):
    """Released layouts, of random numbers: extraction, training that names no extractor, and a look at a video."""
    for name in ("owlv2-base-patch16-ensemble", "siglip2-base-patch16-224"):
        (tmp_path / name).symlink_to(random_weights(name) / name)
    monkeypatch.setenv("VTA_SAM_WEIGHTS", str(tmp_path))
    (tmp_path / "videos").symlink_to(workplace / "videos")
    extract = runpy.run_path(str(REPOSITORY / "data_prep" / "extract.py"))["main"]
    settings = ["grounder=owlv2", "encoder=siglip", f"videos={workplace}/videos", f"manifest={workplace}/m.csv",
                f"out={tmp_path}/shards", "workers=1"]
    extract.__wrapped__(ExtractSettings.of(plain_values(composed("extract", workplace, *settings), TypedText(()))))
    info = read_dataset(tmp_path / "shards")
    assert info.recipes["grounder"] == {"_target_": "owlv2", "name": "owlv2-base-patch16-ensemble",
                                        "template": "a photo of a {}"}
    assert info.settings["encoder"] == {"template": "this is a photo of {}.", "precision": "fp32"}
    monkeypatch.setattr("vta_sam.training.callbacks.detect_onsets", lambda _: np.array([1.0]))
    model = job_of(tmp_path, f"data.videos={workplace}/videos").run() / "diffusion" / "model"
    assert read_content(model)["encoder"]["_target_"] == "siglip"
    generated = load(model).generate(workplace / "videos" / "0.mp4", "a dog barks", steps=1)
    [record] = [r for r in read_shard(tmp_path / "shards" / "train-000000.tar") if r.key == "train-0"]
    assert record.objects == ["dog"] and 0 < record.probs.min() and record.areas.max() <= 1
    for name in ("frame_embedding", "probs", "boxes", "object_embedding", "caption_tokens"):
        assert np.allclose(getattr(generated.features, name), getattr(record, name), atol=4e-3, rtol=2e-3), name


# ------------------------------------------------------------------ what an extractor has


class Still(Encoder):
    """An encoder as small as can be; subclasses below lack or misspell something."""

    kind, fingerprint, fit = "still", "still-1", Squeeze(8, 8)
    frame_dim = object_dim = caption_dim = 1

    def encode_frames(self, frames):
        return np.zeros((len(frames), 1), np.float32)

    def encode_objects(self, objects):
        return np.zeros((len(objects), 1), np.float32)

    def encode_caption(self, caption):
        return np.zeros((1, 1), np.float32)


class Deaf(Encoder):
    kind, fingerprint, fit = "deaf", "deaf-1", Squeeze(8, 8)
    encode_frames = encode_objects = Still.encode_frames


class Nameless(Still):
    fingerprint = "another-1"


class Misspelt(Still):
    setting = {"template": "{}"}


class MisspeltLater(Still):
    def __init__(self):
        self.whole_clip = True


class Sizeless(Grounder):
    kind, fingerprint = "sizeless", "sizeless-1"

    def ground(self, frames, objects):
        return Grounding.empty(len(frames))


@pytest.mark.parametrize(("kind", "words"), [
    (Deaf, "Deaf has no encode_caption; .*base.py"), (Sizeless, "Sizeless has no fit; "),
    (Nameless, "fingerprint 'another-1', expected still-…"), (Misspelt, "'setting', .*did you mean 'settings'"),
    (MisspeltLater, "'whole_clip', .*did you mean 'whole_clips'"),
])
def test_one_that_is_not_whole_is_refused_in_a_sentence(kind, words):
    with pytest.raises(InputError, match=words):
        kind()


def test_members_have_defaults():
    still = Still()
    assert (still.settings, still.whole_clips, still.for_clip("x", start_s=0.0, fps=1.0)) == ({}, False, still)
    nobody = NoGrounder()
    assert (nobody.finds_objects, nobody.known_words) == (False, ())
    assert not nobody.ground(np.zeros((2, 8, 8, 3)), ["a"]).probs.any()
    with pytest.raises(InputError, match="none-0 draws no masks"):
        nobody.masks(np.zeros((2, 8, 8, 3)), ["a"])
    assert not Extractors(nobody, Still(), features=()).finds_objects


def test_what_is_no_extractor_is_refused(monkeypatch):
    class Flow(FrameExtractor):
        kind, fingerprint, fit, name = "flow", "flow-1", Squeeze(8, 8), "flow"

        def extract(self, frames):
            return frames

    with pytest.raises(InputError, match="encoder is a NoGrounder, expected a Encoder"):
        Extractors(NoGrounder(), NoGrounder())
    with pytest.raises(InputError, match="'flow' has no row in the table of features"):
        Extractors(NoGrounder(), Still(), features=[Flow()])
    with pytest.raises(InputError, match="features.flow names NoGrounder, which is no extractor"):
        build_features({"flow": {"_target_": "no_grounder"}})


# ------------------------------------------------------------------ recipes


def test_recipes_are_compared_by_what_changes_features():
    whole = {"_target_": "grounded_sam", "detector": "swint_ogc", "sam": None, "weights": "here", "short_side": 800.0,
             "device": "cuda:1", "precision": "bf16", "batch_frames": 2, "sam_batch_frames": 1}
    assert essence(whole) == {"_target_": "grounded_sam"} and not differences({"_target_": "grounded_sam"}, whole)
    assert differences({**whole, "sam": "vit_b"}, whole) == ["sam is 'vit_b', not None"]
    clip = {"_target_": "clip", "normalise": True}
    assert differences({**clip, "template": "{}"}, {**clip, "normalise": False}) == [
        "normalise is True, not False", "template is '{}', not 'a photo of a {}'"]
    assert differences(clip, {"_target_": "t5", "folder": "x"}) == ["it is clip, not t5"]
    assert essence({"_target_": "nowhere.Encoder", "device": "cpu"}) == {"_target_": "nowhere.Encoder", "device": "cpu"}


def test_settings_are_compared_without_the_number_format():
    trained = {"encoder": {"template": "{}", "precision": "fp16"}}
    assert not differing_settings(trained, {"encoder": {"template": "{}", "precision": "fp32"}, "grounder": {}})
    assert differing_settings(trained, {"encoder": {"precision": "fp16"}}) == [
        "encoder.template is None, in training it was '{}'"]


def test_models_without_objects_need_no_grounder(tmp_path):
    grounder = parts.build(composed("extract", tmp_path, "grounder=none").grounder)
    assert isinstance(grounder, NoGrounder) and grounder.recipe == {"_target_": "no_grounder"}


def test_the_embedded_world_wants_names_and_a_dataset_of_before_has_none(workplace, tmp_path):
    with pytest.raises(InputError, match="name grounder= and encoder="):
        source = parts.build({"_target_": "embedded_data", "root": "x", "counts": {}})
        source.recipes(None, {"_target_": "tiny_encoder"})
    content = json.loads((workplace / "shards" / "dataset.json").read_text())
    content = {name: value for name, value in content.items()
               if name not in ("recipes", "settings", "nouns", "features", "dims")} | {"format_version": 1}
    shutil.copytree(workplace / "shards", tmp_path / "old")
    (tmp_path / "old" / "dataset.json").write_text(json.dumps({**content, "grounder": "tiny-1", "encoder": "clip-1"}))
    old = ShardData(str(tmp_path / "old"))
    with pytest.raises(InputError, match="made by the encoder clip-1, while encoder=tiny is configured; name those"):
        old.recipes(None, None)
    assert old.recipes(None, {"_target_": "clip"}) == ({"_target_": "tiny_grounder"}, {"_target_": "clip"})
    for wrong, words in (("x", "'recipes' is 'x'"), ({"encoder": {"name": "x"}}, r"recipes\.encoder is .*expected")):
        (tmp_path / "old" / "dataset.json").write_text(json.dumps({**content, "recipes": wrong, "grounder": "tiny-1"}))
        with pytest.raises(InputError, match=words):
            old.recipes(None, None)
