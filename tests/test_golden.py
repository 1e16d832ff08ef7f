"""The program does what it did: configs, shards, losses, figures and sounds are as tests/golden has them, and what
version 0.1.0 wrote (tests/data) is read, finished and heard as it was then.

Where processor and libraries are those that the record was made with, text and bytes have to be the same; elsewhere
numbers have to be near, and a warning and the test's name say so. How near was chosen from runs of the recorded program
with another rounding of everything (SSE instructions in place of AVX2 and FMA); see the functions ``tolerance``.
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import yaml
from golden import compare, configs, nouns, smoke, world
from golden.compare import far, platform_of, read_record, section, sections, text_difference
from golden.played import platform_line

from vta_sam.perception import captions

RECORDS = {name: read_record(name) for name in (smoke.NAME, world.SHARDS, world.SOUNDS)}
EXACTLY, NEARLY = "exactly", "within tolerances"
HOW = {name: EXACTLY if platform_of(record) == platform_line() else NEARLY for name, record in RECORDS.items()}


def each_section(name: str):
    """The sections of a record, each with how it is compared here."""
    return pytest.mark.parametrize(("part", "how"), [(part, HOW[name]) for part in sections(RECORDS[name])])


def assert_as_recorded(name: str, now: str, part: str, how: str, tolerance: compare.Tolerance) -> None:
    assert sections(now) == sections(RECORDS[name])
    before, after = section(RECORDS[name], part), section(now, part)
    assert before
    if how == EXACTLY:
        assert not text_difference(before, after), "on the platform of the record, so the same text is expected"
    else:
        warnings.warn(f"{name} was recorded on another platform; compared within tolerances", stacklevel=2)
        assert not far(before, after, tolerance), "on another platform than the record's"


# ---------------------------------------------------------------------- configs

@pytest.fixture(scope="module")
def composed() -> dict[str, str]:
    return configs.composed()


def test_the_record_has_every_experiment(composed):
    assert set(composed) == set(configs.recorded()) and len(composed) > 10


@pytest.mark.parametrize("name", sorted(configs.recorded()))
def test_a_config_is_composed_as_it_was(composed, name):
    difference = text_difference(configs.recorded()[name].splitlines(), composed[name].splitlines())
    assert not difference, "if it should change: python tests/golden/record.py configs"


def test_a_class_has_one_name_however_it_is_written():
    dotted = {"_target_": "vta_sam.grounding.grounded_sam.GroundedSAM", "of": [{"_target_": "diffusers.AutoencoderKL"}]}
    short = {"_target_": "grounded_sam", "of": [{"_target_": "autoencoder_kl"}]}
    expected = {"_target_": "GroundedSAM", "of": [{"_target_": "AutoencoderKL"}]}
    assert configs.canonical(dotted) == configs.canonical(short) == expected


# ---------------------------------------------------------------------- nouns

def test_captions_have_the_nouns_of_this_version_of_the_rules():
    assert len(nouns.read()[1]) > 500 and nouns.faults(nouns.now()) == []


def test_a_changed_rule_asks_for_another_version_and_then_for_another_record(monkeypatch, tmp_path):
    monkeypatch.setattr(nouns, "PATH", Path(shutil.copy(nouns.PATH, tmp_path)))
    recorded = nouns.PATH.read_text(encoding="utf-8")
    monkeypatch.setattr(captions, "_NO_THING", captions._NO_THING | {"dog"})
    changed = nouns.now()
    first, *rest = nouns.faults(changed)
    assert "raise NOUN_RULES_VERSION" in first and any("'a dog barks'" in fault for fault in rest)
    with pytest.raises(SystemExit, match="raise NOUN_RULES_VERSION"):
        nouns.write()
    assert nouns.PATH.read_text(encoding="utf-8") == recorded
    monkeypatch.setattr(captions, "NOUN_RULES_VERSION", captions.NOUN_RULES_VERSION + 1)
    assert "record anew" in nouns.faults(changed)[0]
    nouns.write()
    assert nouns.faults(nouns.now()) == [] and nouns.read()[0] == captions.NOUN_RULES_VERSION


# ---------------------------------------------------------------------- comparing

def test_a_difference_is_seen():
    record = "platform: here\n\n[a]\nloss: 1.0\nsha256: abc\nfigure: 0.5 4\n\n[b]\nloss: 2.0\n"
    assert platform_of(record) == "here" and sections(record) == ["a", "b"]
    assert section(record, "b") == ["loss: 2.0"] and len(section(record, "a")) == 3
    with pytest.raises(KeyError, match="no section"):
        section(record, "c")

    def told(line):
        return None if line == "sha256" else (1e-3, 0.0)

    before = section(record, "a")
    assert far(before, ["loss: 1.0005", "sha256: def", "figure: 0.5 4"], told) == [] == far(before, before, told)
    assert text_difference(before, before) == "" != text_difference(before, ["loss: 1.0000001", *before[1:]])
    for changed in (["loss: 1.002", *before[1:]], before[1:], [*before, "new: 1"], [*before[:2], "figure: 0.5 5"],
                    [*before[:2], "figure: 0.5"], ["loss: nan", *before[1:]], ["loss: None", *before[1:]]):
        assert len(far(before, changed, told)) == 1, changed


# ---------------------------------------------------------------------- shards and sounds

@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Of the small world ⇒ (its folder, what the record says of it)."""
    folder = tmp_path_factory.mktemp("small")
    world.make_world(folder)
    return folder, world.shards_record(folder)


@pytest.fixture(scope="module")
def sounds(small) -> str:
    return world.sounds_record(small[0])


@each_section(world.SHARDS)
def test_the_embedded_world_and_its_shards_are_the_same(small, part, how):
    assert_as_recorded(world.SHARDS, small[1], part, how, world.tolerance_of_shards)


@each_section(world.SOUNDS)
def test_a_model_of_the_first_format_sounds_as_it_did(sounds, part, how):
    assert_as_recorded(world.SOUNDS, sounds, part, how, world.tolerance_of_sounds)


# ---------------------------------------------------------------------- what version 0.1.0 wrote

def test_what_is_kept_names_classes_by_their_old_dotted_paths():
    for path in (*world.KEPT.glob("*_of_format_1/model.yaml"), *world.RUN.glob("*/config.yaml")):
        assert "_target_: vta_sam." in path.read_text(), path
    assert all(yaml.safe_load((folder / "model.yaml").read_text())["format_version"] == 1
               for folder in world.MODELS.values())


@pytest.fixture
def workplace(small, tmp_path):
    """A folder with the small world in it, and nothing else."""
    shutil.copytree(small[0] / "world", tmp_path / "world")
    return tmp_path


def test_a_finished_run_of_the_first_format_is_left_as_it_is(workplace):
    run = world.lay_out_run(workplace, "vae", "condition", "diffusion", "figures")
    before = {path: path.read_bytes() for path in run.glob("*/model/*.safetensors")}
    said = world.train_kept(workplace)
    assert all(f"{stage}: done before" in said for stage in ("vae", "condition", "diffusion"))
    assert len(before) == 5 and all(path.read_bytes() == content for path, content in before.items())
    figures, measured = (json.loads(path.read_text()) for path in (run / "figures.json", world.RUN / "figures" /
                                                                   "measured.json"))
    assert {key: figures[key] for key in measured} == measured and figures["parameters"]["codec"] > 50_000


def test_a_dataset_of_the_first_format_generates_the_same_sounds(small, sounds, workplace):
    world.describe_as_format_1(workplace)
    said = world.generate_split(workplace, "out")
    assert "dataset.json is of format 1, and doesn't say the recipes" in said
    made = {path.name: path.read_bytes() for path in (workplace / "out").glob("*.wav")}
    assert made == {path.name: path.read_bytes() for path in (small[0] / "sounds" / "split").glob("*.wav")} and made


def test_another_config_than_a_run_of_the_first_format_had_is_refused_by_its_difference_alone(workplace):
    world.lay_out_run(workplace, "vae", "condition", "diffusion", "figures")
    with pytest.raises(RuntimeError, match=r"(?s)ended with 2.*was made with another config") as refusal:
        world.train_kept(workplace, "fit.vae.learning_rate=0.5")
    assert "learning_rate: 0.5" in str(refusal.value) and "_target_" not in str(refusal.value)


@pytest.mark.slow
def test_an_unfinished_run_of_the_first_format_goes_on_to_the_same_model_and_figures(workplace):
    run = world.lay_out_run(workplace, "vae", "condition")
    world.describe_as_format_1(workplace)
    (run / "figures" / "measured.json").unlink()
    world.encode_as_format_1(workplace)
    with pytest.warns(UserWarning, match="world/shards: dataset.json is of format 1, and doesn't say the recipes"):
        said = world.train_kept(workplace)
    assert "vae: done before" in said and "condition: done before" in said and "diffusion: done" not in said
    kept, now = (smoke.weights_lines(model) + smoke.figures_lines(measured) for model, measured in (
        (world.MODELS["diffusion"], world.RUN / "figures" / "measured.json"),
        (run / "diffusion" / "model", run / "figures" / "measured.json")))
    # within the tolerance on every platform: the average of weights, by torch's own function now, rounds otherwise
    assert not far(kept, now, smoke.tolerance)


# ---------------------------------------------------------------------- training

@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> str:
    """Every smoke job, once ⇒ what the record says of them."""
    folder = tmp_path_factory.mktemp("smoke")
    smoke.play_all(folder)
    return smoke.record(folder)


@pytest.mark.slow
@each_section(smoke.NAME)
def test_the_smoke_job_logs_and_measures_what_it_did(trained, part, how):
    assert_as_recorded(smoke.NAME, trained, part, how, smoke.tolerance)
