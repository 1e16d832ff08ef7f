"""What people type: settings that are wrong are refused in a sentence before torch is imported and before anything is
written, and texts and paths arrive as they were typed."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from vta_sam import settings as schemas
from vta_sam.clip import MAX_OBJECTS
from vta_sam.runtime.cli import plain_values, print_help
from vta_sam.runtime.cluster.launch import Program, launch
from vta_sam.runtime.errors import InputError
from vta_sam.runtime.typed_settings import Settings
from vta_sam.runtime.typed_text import TypedText, _parted, quoted
from vta_sam.settings import tools

ROOT = Path(__file__).resolve().parents[1]
# program ⇒ its class, its config, and a command line that is right but for what a row adds
PROGRAMS: dict[str, tuple[type[Settings], str, tuple[str, ...]]] = {
    "experiments/generate.py": (schemas.GenerateSettings, "generate", ("video=in.mp4",)),
    "experiments/evaluate.py": (schemas.EvaluateSettings, "evaluate", ("generated=a", "reference=b")),
    "experiments/compare.py": (schemas.CompareSettings, "compare", ("systems=a",)),
    "experiments/meters.py": (schemas.MetersSettings, "meters", ()),
    "experiments/study.py": (schemas.StudySettings, "study", ()),
    "experiments/train_tiny.py": (schemas.TrainTinySettings, "train_tiny", ()),
    "experiments/train.py": (schemas.TrainSettings, "train", ("+exp=vta_sam", "size=smoke")),
    "data_prep/extract.py": (schemas.ExtractSettings, "extract", ("videos=a", "out=b")),
    "data_prep/encode_latents.py": (schemas.EncodeSettings, "encode_latents", ("vae=a", "shards=b")),
    "data_prep/check.py": (schemas.CheckSettings, "check", ("shards=a",)),
    "data_prep/synthesize.py": (schemas.SynthesizeSettings, "synthesize", ()),
}
# one process plays all command lines; what imports torch ends there and then
DRIVER = """
import contextlib, io, json, os, runpy, sys
class Trap:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise SystemExit("torch was imported")
sys.meta_path.insert(0, Trap())
root, rows = sys.argv[1], json.loads(sys.stdin.read())
sys.path[:0] = [root]
answers = []
for script, arguments in rows:
    sys.argv = [os.path.join(root, script), *arguments]
    said, status = io.StringIO(), 0
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            status = end.code
        except BaseException as error:
            status = repr(error)
    from hydra.core.global_hydra import GlobalHydra
    GlobalHydra.instance().clear()
    answers.append([status, said.getvalue()])
print(json.dumps(answers))
"""

# (program, arguments, words of the answer)
TYPED = [
    ("experiments/generate.py", ["videos=in.mp4"], "there is no setting videos; is video meant?"),
    ("experiments/generate.py", ["prompt=a dog", "video=in.mp4"], "there is no setting prompt"),
    ("experiments/generate.py", ["--video", "in.mp4"], "settings are given as video=VALUE"),
    ("experiments/generate.py", ["video"], "expected KEY=VALUE"),
    ("experiments/generate.py", ["+bogus=1", "video=in.mp4"], "there is no setting bogus"),
    ("experiments/generate.py", ["video=https://example.org/a.mp4"], "download it first"),
    ("experiments/generate.py", ["model=M/model.yaml", "video=in.mp4"], "name its folder"),
    ("experiments/generate.py", ["caption=a dog", "shards=x"], "go with video="),
    ("experiments/generate.py", ["video=a.mp4", "shards=x"], "name what to generate for"),
    ("experiments/generate.py", [], "name what to generate for"),
    ("experiments/generate.py", ["video=in.mp4", "objects=a,b,c,d,e,f,g,h,i"], "9 are named, at most 8"),
    ("experiments/generate.py", ["video=in.mp4", "rank=1"], "give both"),
    ("experiments/generate.py", ["video=in.mp4", "rank=4", "world=4"], "ranks go from 0 to world - 1"),
    ("experiments/generate.py", ["video=in.mp4", "seed=99999999999999999999", "steps=0", "mix=2", "guidance=abc"],
     "mix=2: expected a number from 0 to 1; seed=99999999999999999999"),
    ("experiments/evaluate.py", ["reference=x"], "generated= is missing"),
    ("experiments/evaluate.py", ["generated=x"], "reference= is missing"),
    ("experiments/evaluate.py", ["generated=a", "reference=b", "metrics=[fad]"], "expected one of standard, all"),
    ("experiments/evaluate.py", ["generated=[a", "reference=b"], "{name: path, …}"),
    ("experiments/compare.py", [], "systems= is missing"),
    ("experiments/train_tiny.py", ["model=trunck"], "expected one of trunk, tagger"),
    ("experiments/train.py", ["+exp=vta_sam", "sizee=base"], "is size meant?"),
    ("experiments/train.py", ["+exp=vta_sam", "seed=abc"], "seed=abc: expected a whole number"),
    ("experiments/train.py", ["+exp=vta_sam", "overwrite=nope"], "expected true or false"),
    ("experiments/generate.py", ["video=in.mp4", "seed=inf", "mix=nan"], "mix=nan: expected a number from 0 to 1; s"),
    ("experiments/generate.py", ["video=in.mp4", "out=null", "wav=null"], "out=None: expected one text; wav=None"),
    ("data_prep/extract.py", ["out=x"], "videos= is missing"),
    ("data_prep/extract.py", ["videos=x"], "out= is missing"),
    ("data_prep/extract.py", ["videos=a", "out=b", "fps=8fps", "workers=auto", "limit_s=abc", "memory_mb=10"],
     "fps=8fps: expected a number from 0.01 to 1000; workers=auto"),
    ("data_prep/encode_latents.py", [], "vae= is missing; it names the model folder of a VAE; shards= is missing"),
    ("data_prep/check.py", [], "shards= is missing"),
    ("data_prep/check.py", ["shards=a", "overlay=2"], "videos= is missing"),
    ("data_prep/check.py", ["shards=a", "overlay=2", "videos=/nowhere"], "videos=/nowhere is no folder"),
    ("data_prep/check.py", ["shards=a", "masks=yes"], "masks=true needs a grounder"),
    ("experiments/train.py", ["+exp=vta_sam", "fit.vae.batch=4", "conditioner.encoder.widht=8", "fit.vae.batch_size=0"],
     "there is no setting conditioner.encoder.widht; is width meant?; fit.vae.batch_size=0: expected a whole number"),
    ("experiments/train.py", ["+exp=vta_sam", "grounder.sam=vit_h"], "no setting grounder.sam; TinyGrounder takes wei"),
    ("experiments/train.py", ["+exp=vta_sam", "size=huge"], "Could not find 'size/huge'"),
    ("experiments/train.py", ["+exp=vta_sam", "data=shards"], "data.root= is missing"),
    ("experiments/train.py", ["+exp=overfit"], "overfit.captions= is missing; overfit.videos= is missing"),
    ("experiments/train.py", ["+exp=vta_sam", "--multirun", "seed=0,1", "sampler.steps=4,x"], "sampler.steps=x: expe"),
    ("experiments/train.py", ["--help=fitt"], "is fit meant?"),
    ("experiments/overfit.py", ["+exp=overfit", "overfit.videos=a", "overfit.captions=b", "overfit.learned_s=0"],
     "overfit.learned_s=0: expected a number above 0"),
    ("experiments/study.py", ["study.seeds=[one]"], "study.seeds.0=one: expected a whole number of at least 0"),
    ("experiments/train_tiny.py", ["trunk.steps=many"], "trunk.steps=many: expected a whole number"),
    ("data_prep/extract.py", ["videos=a", "out=b", "grounder=grounded_sam", "grounder.short_side=x"],
     "grounder.short_side=x: expected a whole number"),
    ("data_prep/extract.py", ["videos=a", "out=b", "encoder.template=x"], "encoder.template; TinyEncoder takes weight"),
    # programs with verbs and options
    ("data_prep/manifest.py", [], "name what to do: vggsound, folder"),
    ("data_prep/manifest.py", ["foldr"], "invalid choice: 'foldr'"),
    ("data_prep/manifest.py", ["folder", "--val", "-1", "--cut", "maybe"],
     "--videos is missing: the folder of the videos; --out is missing: the manifest to write; --val -1: expected a "
     "whole number of at least 0; --cut maybe: expected one of auto, yes, no"),
    ("data_prep/manifest.py", ["folder", "--videos", "a", "--out", "b", "--captions", "c", "--caption-from", "name"],
     "--captions and --caption-from exclude each other"),
    ("data_prep/manifest.py", ["folder", "--videos", "a", "--out", "b", "--vidoes", "c"], "is --videos meant"),
    ("data_prep/manifest.py", ["vggsound", "--videos", "a", "--out", "b"], "--csv is missing: as published"),
    ("data_prep/manifest.py", ["folder", "--videos", "https://a.org/b", "--out", "b"], "addresses are not read"),
    ("data_prep/weights.py", ["fetch"], "NAME is missing: names and groups"),
    ("data_prep/weights.py", ["random", "extraction"], "--folder is missing"),
    ("data_prep/weights.py", ["import", "a"], "OUT is missing"),
    ("data_prep/weights.py", ["import", "a", "b", "--set", "c"], "--set c: expected KEY=NAME"),
    ("experiments/listening_test.py", ["make", "--raters", "0", "--clips", "x", "--seed", "-1"],
     "--raters 0: expected a whole number of at least 1; --seed -1"),
    ("experiments/listening_test.py", ["analyse", "--most-reversed", "2"], "--most-reversed 2: expected a number from"),
    ("experiments/sweep.py", ["agents", "--count", "0"], "SWEEP_ID is missing"),
    ("experiments/sweep.py", ["collect", "a", "b"], "b: expected no further word"),
]


# what Hydra itself refuses, in its own words and by the project's status
COMPOSED = [("experiments/train.py", ["size=huge"], "huge"), ("experiments/train.py", ["+exp=vta_samm"], "vta_samm"),
            ("experiments/train.py", ["fit.vae.batch=4"], "batch")]


def wrong_values() -> list[tuple[str, list[str], list[str]]]:
    """Every switch and every number of every program, of another type and out of range: on one command line all of a
    program's settings that such a value is wrong for ⇒ (program, arguments, words that the answer has)."""
    rows = []
    for script, (settings, _, right) in PROGRAMS.items():
        types = {key: words for key, words, _, _ in settings.help_rows()}
        numbers = [key for key, words in types.items() if words.startswith(("whole number", "number"))]
        wholes = [key for key in numbers if types[key].startswith("whole")]
        switches = [key for key, words in types.items() if words == "true or false"]
        least = {key: types[key].rpartition("at least ")[2].rpartition("from ")[2].partition(" to ")[0]
                 for key in numbers}
        bounded = {key: words for key, words in least.items() if words.replace(".", "").isdigit()}
        kinds = [dict(zip((*numbers, *switches), itertools.cycle(values))) for values in (("abc", "8fps"), ("[1]",))]
        kinds += [{key: "true" for key in numbers} | {key: "2" for key in switches}, {key: "1.5" for key in wholes},
                  {key: str(float(words) - 1) for key, words in bounded.items()}]
        for wrong in filter(None, kinds):
            given = [word for word in right if word.partition("=")[0] not in wrong]
            rows.append((script, [*given, *(f"{key}={value}" for key, value in wrong.items())],
                         [f"{key}=" for key in wrong]))
    return rows


def answered(rows: list[tuple[str, list[str]]], folder: Path) -> list[tuple[object, str]]:
    """(status, stderr) of each command line; none of them may write anything."""
    ended = subprocess.run([sys.executable, "-c", DRIVER, str(ROOT)], cwd=folder, text=True, capture_output=True,
                           input=json.dumps(rows), timeout=600)
    assert ended.returncode == 0, ended.stderr
    assert not list(folder.rglob("*")), "something was written"
    return json.loads(ended.stdout)


def assert_refused(line: str, status: object, said: str) -> None:
    assert status == 2, f"{line}: {status} {said}"
    assert said.startswith("error: ") and len(said.strip().splitlines()) == 1 and "Traceback" not in said, (line, said)


def test_a_wrong_command_line_is_a_sentence_before_torch_and_before_anything_is_written(tmp_path):
    rows = [*TYPED, *COMPOSED]
    for row, (status, said) in zip(rows, answered([row[:2] for row in rows], tmp_path)):
        script, arguments, words = row
        assert_refused(f"{script} {arguments}", status, said)
        assert words in said, f"{script} {arguments}: {said}"


@pytest.mark.slow
def test_all_wrong_settings_of_a_command_line_are_said_at_once(tmp_path):
    rows = wrong_values()
    assert sum(len(words) for _, _, words in rows) >= 250
    for (script, arguments, words), (status, said) in zip(rows, answered([row[:2] for row in rows], tmp_path)):
        assert_refused(f"{script} {arguments}", status, said)
        assert [word for word in words if word not in said] == [], f"{script} {arguments}: {said}"


@pytest.mark.parametrize("word, value", [("yes", True), ("No", False), ("on", True), ("OFF", False), ("1", True),
                                         ("0", False), ("true", True), ("False", False)])
def test_a_switch_is_taken_by_its_meaning(word, value):
    """Any text used to count as yes, so that overwrite=no threw finished work away."""
    assert schemas.TrainSettings.of({"overwrite": word}).overwrite is value
    assert schemas.GenerateSettings.of({"video": "a.mp4", "picture": int(value)}).picture is value


def test_one_name_is_a_list_of_one():
    assert schemas.TrainSettings.of({"stages": "vae"}).plain()["stages"] == ["vae"]
    assert schemas.GenerateSettings.of({"video": "a", "objects": "dog; racing car"}).objects == ("dog", "racing car")
    assert schemas.GenerateSettings.of({"video": "a", "objects": "[dog, no]"}).objects == ("dog", "no")
    assert schemas.GenerateSettings.of({"video": "a", "objects": "[]"}).objects == ()
    assert schemas.MAX_WORDS == MAX_OBJECTS


def composed(config_name: str, arguments: list[str], typed: TypedText) -> dict:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return plain_values(compose(config_name, typed.taken(arguments)), typed)


@pytest.mark.parametrize("script", PROGRAMS)
def test_the_config_and_the_schema_have_the_same_settings_and_defaults(script):
    settings, config_name, given = PROGRAMS[script]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose(config_name, [word for word in given if word.startswith("+")])
    values = OmegaConf.to_container(config, resolve=False)
    values.pop("launcher", None)
    if settings.model_config["extra"] == "forbid":
        assert set(values) == set(settings.model_fields)
    for name, field in settings.model_fields.items():
        if values.get(name) is None or isinstance(values[name], dict) or "${" in str(values[name]):
            continue  # groups, and what another setting gives
        if name in ("logger", "embedded_expected_s"):
            continue  # a group that is a list; a number of the size
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        assert values[name] == default, name
        assert field.description, f"{name} has no meaning"


LETTERS = "abcß'\"\\${}[](),=#~ ;:|&<>*?!%@+-_.1\n\t漢字é🐶"


def random_texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    awkward = ["${5}", "${oc.env:HOME}", "[applause] a crowd", "'Tis", '"Sit", he says', "a=b", "1_000", "null ", "-x",
               "{a: b}", "\\", "a\\'", "été/視頻 (1)", "x,y", "#", "~x", "a\nb"]
    return awkward + ["".join(draw.choices(LETTERS, k=draw.randint(1, 30))) for _ in range(count - len(awkward))]


@pytest.mark.slow
@pytest.mark.parametrize("script", PROGRAMS)
def test_texts_and_paths_arrive_as_typed(script):
    """Hundreds of them, as many to a command line as a program has texts, on a dozen command lines at most."""
    settings, config_name, given = PROGRAMS[script]
    keys = [key for key in settings.text_keys() if not key.startswith(("grounder.", "encoder.", "overfit."))]
    if not keys:
        return
    texts = random_texts(60, 1)[:12 * len(keys)]
    first = [word for word in given if word.partition("=")[0] not in keys]
    more = ["data=shards", "data.root=x"] if config_name == "train" else []
    for begin in range(0, len(texts), len(keys)):
        told = dict(zip(keys, texts[begin:begin + len(keys)]))
        values = composed(config_name, [*first, *more, *(f"{k}={v}" for k, v in told.items())],
                          TypedText(settings.text_keys(), interpolated=()))
        assert {key: nested(values, key) for key in told} == told


@pytest.mark.parametrize("script", PROGRAMS)
def test_of_a_thousand_texts_hydras_grammar_reads_none(script):
    """Each stands as one plain word in what Hydra reads, and is itself again behind it."""
    settings, _, _ = PROGRAMS[script]
    for text in random_texts(1000, 3):
        typed = settings.typed_text()
        for key in set(settings.text_keys()) - set(settings.INTERPOLATED):
            [taken] = typed.taken([f"{key}={text}"])
            assert re.fullmatch(rf"{re.escape(key)}=[a-z0-9]+", taken), taken
            assert typed.put_back(taken) == f"{key}={text}"


def nested(values: dict, key: str):
    for part in key.split("."):
        values = values[part]
    return values


@pytest.mark.slow
def test_a_script_for_slurm_carries_them_byte_for_byte(tmp_path, monkeypatch, capsys):
    """The script is run by bash, where srun prints its words."""
    monkeypatch.chdir(tmp_path)
    srun = tmp_path / "srun"
    srun.write_text("#!/bin/bash\nprintf '%s\\0' \"$@\"\n")
    srun.chmod(0o755)
    program = Program(ROOT / "experiments" / "generate.py", "generate", settings=schemas.GenerateSettings)
    texts = random_texts(40, 2)
    for begin in range(0, len(texts), 2):
        caption, video = texts[begin:begin + 2]
        launch(program, [f"video={video}", f"caption={caption}", "launcher=slurm", "launcher.dry_run=true",
                         "launcher.gpus=null"])
        script = capsys.readouterr().out
        ran = subprocess.run(["bash"], input=script.encode(), capture_output=True,
                             env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "1"})
        words = ran.stdout.decode().split("\0")
        assert f"caption={caption}" in words and f"video={video}" in words, (ran.stderr, script)


@pytest.mark.parametrize("values", [["a dog, barking", "it's", "a b"], ["x\\", "y'\\'", '"'], ["plain", "null"]])
def test_a_sweep_over_texts_is_parted_where_it_was_joined(values):
    assert _parted(",".join(map(quoted, values))) == values


def test_no_variable_of_the_environment_reaches_a_record(monkeypatch):
    monkeypatch.setenv("SECRET", "key")
    typed = TypedText(schemas.GenerateSettings.text_keys())
    values = composed("generate", ["caption=${oc.env:SECRET}", "video=a"], typed)
    assert values["caption"] == "${oc.env:SECRET}"


def test_a_path_of_ones_home():
    assert schemas.GenerateSettings.of({"video": "~/a.mp4"}).video == Path.home() / "a.mp4"
    assert schemas.GenerateSettings.of({"video": "~a.mp4"}).video == Path("~a.mp4")
    with pytest.raises(InputError, match="no NUL"):
        schemas.GenerateSettings.of({"video": "a\0b"})


@pytest.mark.parametrize("script", PROGRAMS)
def test_help_has_every_setting_and_no_torch(script):
    settings, config_name, _ = PROGRAMS[script]
    code = ("import sys, runpy; sys.modules['torch'] = None; sys.path[:0] = [sys.argv[1]]; "
            "path = sys.argv[2]; sys.argv = [path, '--help']; runpy.run_path(path, run_name='__main__')")
    ended = subprocess.run([sys.executable, "-c", code, str(ROOT), str(ROOT / script)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    for key, _, _, _ in settings.help_rows():
        assert any(line.startswith((f"{key} ", f"{key}.")) for line in ended.stdout.splitlines()), key


def test_help_of_a_block_and_of_a_group(capsys):
    """Keys with their defaults at the size that stands, and what a part takes with the meaning that conf/ gives it."""
    def said(topic: str) -> str:
        print_help(schemas.TrainSettings, ROOT / "experiments" / "train.py", "train", topic)
        return " ".join(capsys.readouterr().out.split())

    assert "fit.vae.batch_size whole number of at least 1 16 clips a batch" in said("fit.vae")
    assert "fit.<stage>.learning_rate number of at least 0 of the size= AdamW's" in said("fit")
    conditioner = said("conditioner")
    assert "conditioner=vta_sam_aligned: Ours: VTA-SAM's tokens" in conditioner
    assert "conditioner.encoder.threshold number 0.0 probabilities below count as 0" in conditioner
    assert "+ablation/fps=fps2" in said("ablation") and "launcher.partition" in said("launcher")
    assert "clip.mel.n_mels" in said("all") and "fit.<stage>.fit.steps" in said("all")


TOOLS = ["data_prep/manifest.py", "data_prep/weights.py", "experiments/listening_test.py", "experiments/sweep.py"]


@pytest.mark.slow
@pytest.mark.parametrize("script", TOOLS)
def test_help_of_a_verb_has_every_option(script):
    verbs = {"manifest": tools.MANIFEST, "weights": tools.WEIGHTS, "listening_test": tools.LISTENING_TEST,
             "sweep": tools.SWEEP}[Path(script).stem]
    for verb, options in verbs.items():
        ended = subprocess.run([sys.executable, ROOT / script, verb, "--help"], capture_output=True, text=True)
        assert ended.returncode == 0 and ended.stderr == ""
        assert [name for name, *_ in options.help_rows() if name not in ended.stdout] == [], verb
