"""Parts by their names: short ones, dotted ones of today and of before, and those of one's own."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from models import make_model_folder, make_recipe
from omegaconf import OmegaConf
from test_configs import composed
from test_own_conditioner import SOURCE
from tiny_data import SPEC

import vta_sam
from vta_sam.checkpoints import parts
from vta_sam.checkpoints.model_folder import model_card, read_content, read_recipe, save_model
from vta_sam.clip import MelSpec
from vta_sam.generation.build import build_part
from vta_sam.runtime.cluster.launch import SCHEDULERS
from vta_sam.runtime.errors import InputError
from vta_sam.training.data_sources import embedded_shards
from vta_sam.training.job import TrainingJob
from vta_sam.training.run_folder import StageFolder

# What model folders named before there were short names: module of vta_sam, class. Without the package, so that whoever
# renames a module everywhere leaves these as they stand in files.
FORMER = """
vae.codec MelCodec                                   diffusion.unet LatentUNet
conditioners.vta_sam VTASAMConditioner               conditioners.vta_ldm VTALDMConditioner
conditioners.vta_ldm FrameProjection                 conditioners.tango TangoConditioner
conditioners.diff_foley.conditioner DiffFoleyConditioner
conditioners.diff_foley.contrastive AlignedFrameEncoder
conditioners.foleycrafter.conditioner FoleyCrafterConditioner
conditioners.foleycrafter.onsets OnsetPredictor
condition.encoder TemporalSemanticEncoder            diffusion.sampler Sampler
vocoder GriffinLim                                   vocoder HiFiGAN
grounding.tiny TinyGrounder                          grounding.oracle OracleGrounder
grounding.grounded_sam GroundedSAM                   grounding.none NoGrounder
encoders.tiny TinyEncoder                            encoders.oracle OracleEncoder
encoders.clip CLIPEncoder                            encoders.t5 T5Encoder
""".split()
IN_MODELS = [".".join(("vta_sam", module, name)) for module, name in zip(FORMER[::2], FORMER[1::2])]
OLD_NAMES = {short: path for path, short in parts.FORMER_PATHS.items()} | {
    parts.FORMER_PATHS[path]: path for path in IN_MODELS} | {"autoencoder_kl": "diffusers.AutoencoderKL"}


def as_before(recipe):
    """A recipe as files said it before there were short names."""
    if isinstance(recipe, dict):
        return {key: OLD_NAMES.get(value, value) if key == "_target_" else as_before(value)
                for key, value in recipe.items()}
    return [as_before(value) for value in recipe] if isinstance(recipe, list) else recipe


@pytest.fixture(autouse=True)
def nothing_of_ones_own_is_known(monkeypatch):
    monkeypatch.setattr(parts, "_TRUSTED", {})


@pytest.fixture()
def mine(tmp_path, monkeypatch):
    """A module of one's own on Python's path; called with what its source says besides a conditioner."""
    def write(more=""):
        (tmp_path / "mine.py").write_text(SOURCE + more)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "mine", raising=False)
        return "mine.MotionConditioner"

    yield write
    sys.modules.pop("mine", None)


def job_of(*overrides, **changed):
    settings = {**composed("+exp=vta_sam", "size=smoke", *overrides), **changed}
    return TrainingJob.of(settings)


# ------------------------------------------------------------------ names


@pytest.mark.parametrize("name", parts.PARTS)
def test_a_short_name_is_that_of_one_part(name):
    found = parts.class_of(name)
    assert parts.short_name(name) == parts.short_name(parts.PARTS[name]) == parts.short_name(found) == name
    assert found.__name__ == parts.class_name(name) and parts.class_of(parts.PARTS[name]) is found
    assert parts.is_loadable(name) == (name in parts.MODEL_PARTS)
    assert list(parts.PARTS.values()).count(parts.PARTS[name]) == 1


@pytest.mark.parametrize("path", sorted({*IN_MODELS, *parts.FORMER_PATHS}))
def test_a_path_of_before_names_the_same_class(path):
    short = parts.FORMER_PATHS[path]
    assert parts.short_name(path) == short and parts.class_of(path) is parts.class_of(short)
    assert parts.class_of(path).__name__ == path.rpartition(".")[2]
    assert parts.is_loadable(path) == (short in parts.MODEL_PARTS)
    assert parts.is_loadable(path) or path not in IN_MODELS


def test_every_part_of_the_configs_has_a_short_name():
    for path in sorted((Path(__file__).parents[1] / "conf").rglob("*.yaml")):
        for line in path.read_text().splitlines():
            _, colon, target = line.partition("#")[0].partition("_target_:")
            name = target.strip(" {}")
            assert not colon or name in parts.PARTS | SCHEDULERS or not name.startswith("vta_sam."), (path, name)


@pytest.mark.parametrize(("name", "words"), [
    ("grounded_sm", r"'grounded_sm' names no part \(did you mean grounded_sam\?\); the parts are aligned_frame_enc"),
    ("qqqq", "'qqqq' names no part; the parts are .* its dotted path"),
    ("nowhere.Thing", "nowhere.Thing can't be imported .*nowhere.*Python's path"),
    ("vta_sam.checkpoints.parts.Nothing", "vta_sam.checkpoints.parts.Nothing can't be imported .*Nothing"),
])
def test_an_unknown_name_is_refused_in_a_sentence(name, words):
    with pytest.raises(InputError, match=words):
        parts.class_of(name)


def test_no_torch_and_no_config_library_are_needed_for_names():
    code = ("import sys, vta_sam.checkpoints.parts as p; p.short_name('clip'); "
            "assert not {'torch', 'hydra'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True)


# ------------------------------------------------------------------ building


def test_recipes_are_built_by_either_name_and_of_either_kind():
    recipe = {"_target_": "diffusion_sampler", "steps": 3, "guidance": "${number}"}
    whole = OmegaConf.create({"sampler": recipe, "number": 2.5})
    for found in (parts.build({**recipe, "guidance": 2.5}), parts.build(whole.sampler),
                  parts.build({"_target_": parts.PARTS["diffusion_sampler"], "steps": 3}, guidance=2.5)):
        assert type(found) is parts.class_of("diffusion_sampler") and (found.steps, found.guidance) == (3, 2.5)
    assert parts.build(None) is None
    later = parts.build({"_target_": "embedded_data", "root": "here"}, _partial_=True)
    assert type(later(counts={"train": 1}).counts) is dict
    data = parts.build(OmegaConf.create({"_target_": "embedded_data", "root": "here", "counts": {"train": 1}}))
    assert type(data.counts) is dict, "containers are plain ones"


def test_what_is_nested_is_built_and_what_is_foreign_too():
    whole = parts.build({"_target_": "collections.OrderedDict", "inner": [{"_target_": "griffin_lim"}], "count": 2})
    assert type(whole["inner"][0]) is parts.class_of("griffin_lim") and whole["count"] == 2


# ------------------------------------------------------------------ model folders


def test_a_model_folder_says_short_names_and_one_of_before_is_read(tmp_path):
    folder = make_model_folder(tmp_path)
    text = (folder / "model.yaml").read_text()
    assert "_target_: mel_codec" in text and "vta_sam." not in text and "diffusers." not in text
    old = as_before(read_content(folder))
    (folder / "model.yaml").write_text(yaml.safe_dump({"format_version": 1, **old}, sort_keys=False))
    assert "vta_sam." in (folder / "model.yaml").read_text()
    recipe = read_recipe(folder)
    assert recipe == make_recipe() and type(build_part(recipe, "codec", folder)) is parts.class_of("mel_codec")
    save_model(folder, recipe, {})
    assert (folder / "model.yaml").read_text() == text
    for content in (old, read_content(folder)):
        assert "# VTASAM, trained" in model_card({**content, "about": {}})


@pytest.mark.parametrize("name", [*parts.CONFIG_PARTS, *parts.CONFIG_PARTS.values(), "mel_code", "mine.Codec"])
def test_a_model_folder_may_not_name_other_parts(tmp_path, name):
    folder = make_model_folder(tmp_path)
    text = (folder / "model.yaml").read_text()
    (folder / "model.yaml").write_text(text.replace("_target_: griffin_lim", f"_target_: {name}"))
    with pytest.raises(InputError, match=rf"vocoder names the class '{name}', which is none of this project's"):
        read_recipe(folder)


# ------------------------------------------------------------------ runs


@pytest.mark.parametrize("stage", ["vae", "condition", "diffusion", "figures"])
def test_a_run_that_was_begun_with_dotted_paths_goes_on(tmp_path, stage):
    job = job_of(f"runs={tmp_path}")
    folder = job.stage_folder(stage)
    folder.path.mkdir(parents=True)
    before = as_before(folder.config)
    assert before != folder.config
    (folder.path / "config.yaml").write_text(yaml.safe_dump(before, sort_keys=True, allow_unicode=True))
    folder.claim(overwrite=False)
    assert yaml.safe_load((folder.path / "config.yaml").read_text()) == folder.config, "and has short names from now on"
    changed = {**before, "seed": 7}
    with pytest.raises(InputError, match="made with another config") as caught:
        StageFolder(folder.path, changed).claim(overwrite=False)
    assert "+seed: 7" in str(caught.value) and "_target_" not in str(caught.value), "only what differs"


def test_dotted_paths_on_the_command_line_are_the_same_job(tmp_path):
    told = job_of(f"runs={tmp_path}")
    settings = as_before({key: getattr(told, key) for key in TrainingJob.__dataclass_fields__})
    assert settings["sampler"]["_target_"] == OLD_NAMES["diffusion_sampler"]
    again = TrainingJob(**settings)
    for stage in told.stages:
        assert again.stage_folder(stage) == told.stage_folder(stage)


# ------------------------------------------------------------------ classes of one's own


@pytest.mark.parametrize(("key", "recipe", "words"), [
    ("conditioner", {"_target_": "mine.MotionConditioner", "token_dim": 32, "frame_dim": "from_data"},
     r"conditioner names the class mine\.MotionConditioner.*vta_sam\.trust\('mine\.MotionConditioner'\)"),
    ("sampler", {"_target_": "collections.OrderedDict"}, r"sampler names the class collections\.OrderedDict"),
    ("vocoder", {"_target_": "griffin_lim", "inner": [{"_target_": "collections.OrderedDict"}]},
     r"vocoder\.inner\[0\] names the class collections\.OrderedDict"),
    ("grounder", {"_target_": "shard_data"}, "grounder names the class shard_data"),
    ("encoder", {"_target_": "tiny_encodr"}, r"encoder\._target_: 'tiny_encodr' names no part .*tiny_encoder"),
    ("encoder", {"_target_": "nowhere.Encoder"}, r"encoder\._target_: nowhere\.Encoder can't be imported"),
    ("objective", {"_target_": "v_prediction", "_recursive_": False}, "objective has the key '_recursive_'"),
    ("objective", {"_target_": 3}, "objective.*'3' names no part"),
])
def test_what_could_not_be_loaded_is_refused_before_any_work(tmp_path, mine, monkeypatch, key, recipe, words):
    mine()
    monkeypatch.chdir(tmp_path)
    job = job_of("runs=runs", **{key: recipe})
    monkeypatch.setattr(type(job.source), "prepare", lambda *_: pytest.fail("data were made first"))
    with pytest.raises(InputError, match=words):
        job.run()
    assert [path.name for path in (tmp_path / "runs" / "vta_sam-0").iterdir()] == [".lock"]


def test_a_stage_is_held_to_what_it_writes_alone(mine):
    recipe = {"_target_": mine(), "token_dim": 32, "frame_dim": "from_data"}
    job_of("stages=[vae]", conditioner=recipe)._check_settings()


@pytest.mark.parametrize("trust", ["vta_sam.trust", "vta_sam.checkpoints.model_folder.trust"])
def test_a_module_trusts_its_own_class(mine, trust):
    target = mine(f"\nimport vta_sam, vta_sam.checkpoints.model_folder\n{trust}('mine.MotionConditioner')\n")
    recipe = {"_target_": target, "token_dim": 32, "frame_dim": "from_data"}
    job = job_of("stages=[vae,diffusion]", conditioner=recipe)
    job._check_settings()
    assert job.conditioner == recipe and parts.canonical(recipe) == recipe


def test_a_class_of_ones_own_may_have_a_short_name(tmp_path, mine):
    vta_sam.trust(mine(), name="motion")
    folder = make_model_folder(tmp_path)
    recipe = make_recipe(conditioner={"_target_": "mine.MotionConditioner", "token_dim": 16, "frame_dim": 6})
    save_model(folder, recipe, {})
    assert "_target_: motion" in (folder / "model.yaml").read_text()
    found = read_recipe(folder)
    assert type(build_part(found, "conditioner", folder)) is parts.class_of("mine.MotionConditioner")
    assert parts.short_name(parts.class_of("motion")) == "motion"
    vta_sam.trust("mine.MotionConditioner", name="motion")  # a module that is imported again
    for name, words in (("clip", "already the name of .*CLIPEncoder"), ("motion", "already the name of mine.Motion"),
                        ("a b", "no plain word")):
        with pytest.raises(InputError, match=words):
            vta_sam.trust("mine.Other", name=name)


# ------------------------------------------------------------------ extractors


def test_the_kind_of_an_extractor_is_the_first_word_of_its_fingerprint(tmp_path, mine):
    kinds = {"tiny_grounder": "tiny", "oracle_grounder": "oracle", "no_grounder": "none", "tiny_encoder": "tiny",
             "oracle_encoder": "oracle", "grounded_sam": "grounded_sam", "clip": "clip", "t5": "t5"}
    for name, kind in kinds.items():
        assert parts.kind_of({"_target_": name}) == kind
    for name in list(kinds)[:5]:  # the others need released weights
        assert parts.build({"_target_": name}).fingerprint.startswith(f"{kinds[name]}-")
    pair = {"_target_": OLD_NAMES["tiny_grounder"]}, {"_target_": "tiny_encoder"}
    names = {embedded_shards(tmp_path, *pair, spec, features).name for spec, features in (
        (SPEC, ()), (replace(SPEC, mel=MelSpec(44_100, 2048, 441, 128, 0.0, 22_050.0)), ("flow",)))}
    assert names == {"shards-tiny-tiny-12.5fps", "shards-tiny-tiny-12.5fps-44100hz-flow"}
    assert parts.kind_of({"_target_": mine()}) == "mine", "that of a class that states none is its module"
