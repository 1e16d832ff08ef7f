"""The schema of settings is one source: blocks have the fields of the dataclasses that read them, parts those of their
constructors, and every config, every page and every JSON schema agrees with it."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from vta_sam import settings as schemas
from vta_sam.checkpoints.parts import PARTS, class_of
from vta_sam.clip import ClipSpec, MelSpec
from vta_sam.dataset.shards.batch import Augmentation
from vta_sam.runtime.cli import plain_values
from vta_sam.runtime.cluster.launch import SCHEDULERS
from vta_sam.runtime.errors import InputError
from vta_sam.runtime.typed_settings import Settings
from vta_sam.settings import blocks, pages, tools
from vta_sam.settings.signatures import signature_of
from vta_sam.study.record import study_of
from vta_sam.study.sweep import read_sweep
from vta_sam.training.fit import FitSettings
from vta_sam.training.job import STAGES
from vta_sam.training.stage import StageSettings

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
WRITER = runpy.run_path(str(CONF / "schema" / "write.py"))  # the command that writes page and schemas
YAMLS = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml"))
EXPERIMENTS = [path.stem for path in sorted((CONF / "exp").glob("*.yaml"))]
CLIPS = ["overfit.videos=a", "overfit.captions=b"]  # that +exp=overfit has to be given


@pytest.fixture(scope="module", autouse=True)
def hydra():
    before = HydraConfig.instance().cfg
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield
    HydraConfig.instance().cfg = before


def values_of(*arguments: str, name: str = "train", schema: type[Settings] = schemas.TrainSettings) -> dict[str, Any]:
    """A composed config, with its values resolved."""
    typed = schema.typed_text()
    config = compose(name, typed.taken(arguments), return_hydra_config=True)
    HydraConfig.instance().set_config(config)  # for ${hydra:…} in a run's name
    with open_dict(config):
        del config["hydra"]
    return plain_values(config, typed)


# ---------------------------------------------------------------------- the same as what reads it

@pytest.mark.parametrize("block, reader", [
    (blocks.MelBlock, MelSpec), (blocks.ClipBlock, ClipSpec), (blocks.FitBlock, FitSettings),
    (blocks.StageBlock, StageSettings), (blocks.AugmentBlock, Augmentation)])
def test_a_block_has_the_fields_and_defaults_of_the_dataclass_that_reads_it(block, reader):
    fields = {field.name: field for field in dataclasses.fields(reader)}
    assert set(block.model_fields) == set(fields)
    for name, field in block.model_fields.items():
        factory = fields[name].default_factory
        default = fields[name].default if factory is dataclasses.MISSING else factory()
        assert field.is_required() == (default is dataclasses.MISSING), name
        if not field.is_required() and name != "mel":  # null is what a config says for the default front end
            assert field.default == default, name
        assert field.description, name


@pytest.mark.parametrize("part", PARTS)
def test_a_signature_that_is_read_is_the_constructors(part):
    told, real = signature_of(PARTS[part]), inspect.signature(class_of(part)).parameters
    assert told is not None
    if part == "no_grounder":  # has no constructor, whose signature Python shows as (*args, **kwargs)
        assert not told.types
        return
    assert set(told.types) == {name for name, argument in real.items() if argument.kind is not argument.VAR_KEYWORD}
    assert set(told.required) == {name for name, argument in real.items() if argument.default is argument.empty
                                  and argument.kind is not argument.VAR_KEYWORD}
    for name, default in told.defaults.items():
        if isinstance(default, (bool, int, float, str)):
            assert real[name].default == default, name


def test_names_that_stand_twice_are_the_same():
    """Where a module can't import the other one, since that one is heavy."""
    assert set(blocks.STAGES) == set(STAGES)
    assert pages.SCHEDULERS == SCHEDULERS


# ---------------------------------------------------------------------- configs

COMMANDS = [
    *([f"+exp={exp}", *(CLIPS if exp == "overfit" else [])] for exp in EXPERIMENTS),
    *(["+exp=vta_sam_aligned", f"size={path.stem}"] for path in YAMLS if path.parts[0] == "size"),
    *(["+exp=vta_sam", f"+{path.parent}={path.stem}"] for path in YAMLS if path.parts[0] in ("ablation", "strategy")),
    *(["+exp=vta_sam", f"{path.parent}={path.stem}", *(["data.root=x"] if path.stem == "shards" else [])]
      for path in YAMLS if path.parts[0] in ("data", "conditioner", "objective", "sampler", "vocoder", "logger",
                                             "grounder", "encoder")),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_config_passes_and_reaches_the_job_as_it_was(command):
    """What a run's folder keeps must not change by being checked."""
    values = values_of(*command)
    plain = schemas.TrainSettings.of(values).plain()
    assert {key: plain[key] for key in values} == values
    assert json.dumps({key: plain[key] for key in values}) == json.dumps(values), "1 and 1.0 are two texts"
    assert all(plain[key] is None for key in set(plain) - set(values))


@pytest.mark.slow
@pytest.mark.parametrize("study", [path.stem for path in (CONF / "study").glob("*.yaml")])
def test_every_row_of_a_study_passes(study):
    found = schemas.StudySettings.of(values_of(f"study={study}", name="study", schema=schemas.StudySettings))
    assert found.study is not None
    content = yaml.safe_load((CONF / "study" / f"{study}.yaml").read_text(encoding="utf-8"))
    assert study_of(found.study.plain()) == study_of(content)
    rows = study_of(content)
    for command in [rows.shared_command()[2:], *(rows.command(row, rows.seeds[0])[2:] for row in rows.rows)]:
        schemas.TrainSettings.of(values_of(*command))


@pytest.mark.parametrize("sweep", [path.stem for path in (CONF / "sweep").glob("*.yaml")])
def test_every_value_of_a_sweep_passes(sweep):
    found = read_sweep(sweep)
    longest = max(map(len, found.parameters.values()))
    columns = {key: [values[min(i, len(values) - 1)] for i in range(longest)]
               for key, values in found.parameters.items()}
    for i in range(longest):
        one = dataclasses.replace(found, parameters={key: [values[i]] for key, values in columns.items()})
        schemas.TrainSettings.of(values_of(*one.combinations()[0]))


# (arguments, words of the answer)
WRONG = [
    (["fit.vae.batch_size=0"], "fit.vae.batch_size=0: expected a whole number of at least 1"),
    (["fit.vae.fit.precision=fp8"], "expected one of auto, fp32, bf16"),
    (["fit.vae.fit.steps=24"], "fit.vae.fit.validate_every=250 with steps=24"),
    (["fit.vae.weights.l1=much"], "fit.vae.weights.l1=much: expected a number"),
    (["clip.duration_s=5.1"], "not a multiple of the VAE's stride"),
    (["clip.mel={n_mels: 64, max_hz: 9000}"], "expected 0 <= min_hz < max_hz <= 8000"),
    (["augment.frames=2"], "augment.frames=2: expected a number from 0 to 1"),
    (["+augment.frame=0.1"], "there is no setting augment.frame; is frames meant?"),
    (["figures.clips=0", "validation.steps=x"], "validation.steps=x: expected a whole number of at least 1; figures"),
    (["conditioner.encoder.width=wide"], "conditioner.encoder.width=wide: expected a whole number"),
    (["+conditioner.encoder.widht=8"], "there is no setting conditioner.encoder.widht; is width meant?"),
    (["conditioner.positions=maybe"], "expected true or false"),
    (["conditioner._target_=vta_samm"], "did you mean vta_sam?"),
    (["~conditioner.token_dim"], "conditioner.token_dim= is missing; VTASAMConditioner needs it"),
    (["objective.weighting=w"], "objective.weighting=w: expected one of v, epsilon"),
    (["sampler.steps=1.5"], "sampler.steps=1.5: expected a whole number of at least 1"),
    (["++sampler.overlap=1"], "sampler.overlap=1: expected a number of at least 0 and below 1"),
    (["+grounder.sam=vit_h"], "there is no setting grounder.sam; TinyGrounder takes weights"),
    (["networks.unet.config.block_out_channels=wide"], "expected a list of whole numbers"),
    (["+networks.unet.config.blocks=1"], "there is no setting networks.unet.config.blocks"),
    (["+networks.condtion.width=3"], "there is no setting networks.condtion; is networks.condition meant?"),
    (["stages=[difusion,figures]"], "there is no stage difusion; is diffusion meant?"),
    (["+valdation.clips=3"], "there is no setting valdation; is validation meant?"),
    (["data.workers=two"], "data.workers=two: expected a whole number"),
    (["embedded_clips.train=-1"], "embedded_clips.train=-1: expected a whole number of at least 0"),
    (["++vocoder.iterations=many"], "vocoder.iterations=many: expected a whole number"),
]


@pytest.mark.parametrize("arguments, words", WRONG, ids=[" ".join(row[0]) for row in WRONG])
def test_a_wrong_nested_setting_is_a_sentence_with_its_key(arguments, words):
    with pytest.raises(InputError) as refused:
        schemas.TrainSettings.of(values_of("+exp=vta_sam", *arguments))
    assert words in str(refused.value)


def test_all_nested_faults_are_said_at_once():
    told = [row for row in WRONG if row[0][0] in ("fit.vae.batch_size=0", "sampler.steps=1.5", "augment.frames=2",
                                                  "stages=[difusion,figures]", "objective.weighting=w")]
    with pytest.raises(InputError) as refused:
        schemas.TrainSettings.of(values_of("+exp=vta_sam", *(row[0][0] for row in told)))
    assert [words for _, words in told if words not in str(refused.value)] == []


def test_switches_and_whole_numbers_reach_the_job_by_their_meaning():
    plain = schemas.TrainSettings.of(values_of("+exp=vta_sam", "conditioner.positions=no", "fit.vae.batch_size=16.0",
                                               "stages=vae")).plain()
    assert plain["conditioner"]["positions"] is False and plain["stages"] == ["vae"]
    assert plain["fit"]["vae"]["batch_size"] == 16 and isinstance(plain["fit"]["vae"]["batch_size"], int)


# ---------------------------------------------------------------------- parts of one's own

OWN = '''
raise SystemExit("a check must not import it")
from typing import Annotated, Literal
from pydantic import BaseModel, Field
from vta_sam.conditioners.tango import TangoConditioner
Shape = Literal["round", "square"]
class Base:
    def __init__(self, width: Annotated[int, Field(ge=1, le=8)], shape: "Shape" = "round", **others): ...
class Derived(Base): ...
class Tango(TangoConditioner): ...
class Schemed:
    class Settings(BaseModel):
        rate: float = Field(default=0.5, gt=0, lt=1)
        name: str
    def __init__(self, **settings): ...
def made(size: int | None = None, width: int = None): ...
'''


def test_a_class_of_ones_own_brings_its_schema_without_being_imported(tmp_path, monkeypatch):
    (tmp_path / "mine_of_ones_own.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))

    def refused(**recipe: Any) -> str:
        target = f"mine_of_ones_own.{recipe.pop('of')}"
        try:
            schemas.ExtractSettings.of({"videos": "a", "out": "b", "encoder": {"_target_": target, **recipe}})
        except InputError as error:
            return str(error)
        return ""

    assert "encoder.width=9: expected a whole number from 1 to 8" in refused(of="Base", width=9)
    assert refused(of="Base", width=3, anything=1) == ""  # **others
    assert "encoder.width= is missing; Derived needs it" in refused(of="Derived")
    assert "expected one of round, square" in refused(of="Derived", width=1, shape="flat")
    assert "is caption_dim meant?" in refused(of="Tango", caption_dimm=1, spec=0, token_dim=1, caption_dim=2)
    assert "encoder.rate=1.5: expected a number above 0 and below 1" in refused(of="Schemed", rate=1.5, name="a")
    assert "encoder.name= is missing" in refused(of="Schemed") and refused(of="Schemed", name="a") == ""
    assert "expected a whole number" in refused(of="made", size="big")
    assert refused(of="made", size=None, width=None) == ""
    assert refused(of="nothing", a=1) == "", "what can't be read is left to its constructor"
    assert "mine_of_ones_own" not in sys.modules


# ---------------------------------------------------------------------- JSON schemas and the page

def faults(schema: Any, value: Any, root: dict[str, Any], place: str = "") -> list[str]:
    """Where a value breaks a JSON schema: of the draft 7 the words that this project's schemas use."""
    if "$ref" in schema:
        name, _, inside = schema["$ref"].partition("#/definitions/")
        if name:
            return faults(SCHEMAS[name.removesuffix(".json")], value, SCHEMAS[name.removesuffix(".json")], place)
        return faults(root["definitions"][inside], value, root, place)
    found = [fault for item in schema.get("allOf", ()) for fault in faults(item, value, root, place)]
    if "anyOf" in schema and all(faults(item, value, root, place) for item in schema["anyOf"]):
        found.append(f"{place}: none of anyOf")
    if "if" in schema and not faults(schema["if"], value, root):
        found += faults(schema["then"], value, root, place)
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool,
             "null": type(None)}
    wanted = schema.get("type", [])
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if wanted and not any(isinstance(value, kinds[kind]) and (kind == "boolean" or not isinstance(value, bool))
                          for kind in wanted):
        return [*found, f"{place}: is no {wanted}"]
    if "enum" in schema and value not in schema["enum"] or "const" in schema and value != schema["const"]:
        found.append(f"{place}: is none of the choices")
    if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
        found.append(f"{place}: doesn't match")
    if isinstance(value, (int, float)) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        found.append(f"{place}: is out of range")
    if isinstance(value, list):
        found += [fault for i, item in enumerate(value)
                  for fault in faults(schema.get("items", {}), item, root, f"{place}[{i}]")]
    if isinstance(value, dict):
        found += [f"{place}.{key}: is missing" for key in schema.get("required", ()) if key not in value]
        others = schema.get("additionalProperties", True)
        for key, item in value.items():
            below = schema.get("properties", {}).get(key, others)
            found += [f"{place}.{key}: is unknown"] if below is False else \
                [] if below is True else faults(below, item, root, f"{place}.{key}")
    return found


SCHEMAS: dict[str, dict[str, Any]] = {path.stem: json.loads(path.read_text(encoding="utf-8"))
                                      for path in sorted((CONF / "schema").glob("*.json"))}


@pytest.mark.parametrize("path", YAMLS, ids=str)
def test_a_yaml_names_its_schema_and_keeps_it(path):
    text = (CONF / path).read_text(encoding="utf-8")
    name = WRITER["schema_name"](path)
    line = f"# yaml-language-server: $schema={'../' * (len(path.parts) - 1)}schema/{name}.json"
    assert line in text.splitlines()[:2]
    assert faults(SCHEMAS[name], yaml.safe_load(text), SCHEMAS[name]) == []


@pytest.mark.parametrize("name, wrong", [
    ("train", {"seed": -1}), ("train", {"clip": {"fpss": 8}}), ("train", {"fit": {"vae": {"batch_size": 0}}}),
    ("train", {"conditioner": {"_target_": "vta_sam", "token_dimm": 1}}), ("train", {"overwrite": "perhaps"}),
    ("conditioner", {"_target_": "vta_sam", "encoder": {"width": "wide"}}), ("generate", {"vidoe": "a.mp4"}),
    ("evaluation", {"metrics": "some"}), ("sweep", {"method": "guess"}), ("launcher", {"_target_": "slurm", "gpu": 1}),
    ("studies", {"tables": {"a": {"title": "x", "rows": {"b": {"stage": []}}}}}), ("extract", {"fps": 0})])
def test_a_schema_finds_what_is_wrong(name, wrong):
    assert faults(SCHEMAS[name], wrong, SCHEMAS[name])


def test_the_files_on_disk_are_what_the_command_writes():
    written = dict(WRITER["files"]())
    assert {path for path in written if path.suffix == ".json"} == set((CONF / "schema").glob("*.json"))
    changed = [str(path) for path, text in written.items() if path.read_text(encoding="utf-8") != text]
    assert changed == [], "make schemas"


def test_every_setting_stands_in_the_page():
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    for script, (schema, _) in WRITER["PROGRAMS"].items():
        part = page.partition(f"## {script}\n")[2].partition("\n## ")[0]
        missing = [name for name in schema.model_fields if f"`{name}`" not in part and f"`{name}." not in part]
        assert missing in ([], ["study"]), script
    for verbs in (tools.MANIFEST, tools.WEIGHTS, tools.LISTENING_TEST, tools.SWEEP):
        for options in verbs.values():
            assert all(f"`{name}` |" in page for name, *_ in options.help_rows())
