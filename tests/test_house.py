"""The house around the code: what is packaged, what may be loaded, and what no tracked file may say."""

from __future__ import annotations

import ast
import configparser
import importlib
import json
import multiprocessing
import re
import subprocess
import sys
from fnmatch import fnmatch
from functools import partial
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from forks import PRELOAD
from programs import call

import vta_sam

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = ("vta_sam", "data_prep", "experiments", "benchmarks")
MAX_WEIGHTS_BYTES = 3_000_000
# modules whose loading runs what a file says
PICKLING = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
MACHINE_PATH = re.compile(r"(?<![\w.$~}\]/-])/(?:work|root|tmp|mnt|home/\w+|Users/\w+)/\w|[A-Z]:\\Users")


def tracked_files() -> list[Path]:
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs git and the repository, to know which files belong to it")
    return [path for name in listed.decode().split("\0") if name and (path := REPOSITORY / name).is_file()]


def unsafe_loads(source: str) -> list[str]:
    """Python source ⇒ "line: what", for each way in it to load a file that could run code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            names = []
        found += [f"{node.lineno}: imports {name}" for name in names if name.split(".")[0] in PICKLING]
        if isinstance(node, ast.Call):
            found += [f"{node.lineno}: {fault}" for fault in call_faults(node)]
    return found


def call_faults(call: ast.Call) -> list[str]:
    name = ast.unparse(call.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    faults = []
    if given.get("allow_pickle", "False") != "False":
        faults.append(f"{name} with allow_pickle={given['allow_pickle']}")
    loads_tensors = name == "torch.load" or name.endswith(".load_from_checkpoint") or "ckpt_path" in given
    if loads_tensors and given.get("weights_only") != "True":
        faults.append(f"{name} without weights_only=True")
    if given.get("weights_only", "True") != "True":
        faults.append(f"{name} with weights_only={given['weights_only']}")
    if name in ("yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all"):
        faults.append(f"{name} instead of yaml.safe_load")
    return faults


@pytest.mark.parametrize("sin", [
    "import pickle", "from pickle import loads", "import joblib as j", "np.load(path, allow_pickle=True)",
    "torch.load(path)", "torch.load(path, weights_only=False)", "torch.load(path, weights_only=flag)",
    "trainer.fit(module, ckpt_path=path)", "Module.load_from_checkpoint(path)", "yaml.load(text, Loader=Loader)",
])
def test_the_scan_sees(sin):
    assert unsafe_loads(f"def f(x):\n    if x:\n        {sin}\n"), sin


@pytest.mark.parametrize("virtue", [
    "torch.load(path, weights_only=True)", "np.load(path)", "np.load(path, allow_pickle=False)", "yaml.safe_load(text)",
    "trainer.fit(module, ckpt_path=path, weights_only=True)", "import json", "pickles = 3",
])
def test_the_scan_lets_pass(virtue):
    assert unsafe_loads(virtue) == []


def test_nothing_that_is_loaded_can_run_code():
    files = [path for folder in SOURCES for path in sorted((REPOSITORY / folder).rglob("*.py"))]
    assert len(files) > 50, "the scan looks in the wrong place"
    faults = {str(path.relative_to(REPOSITORY)): found for path in files
              if (found := unsafe_loads(path.read_text(encoding="utf-8")))}
    assert faults == {}


def test_metadata_of_the_package():
    installed = metadata.metadata("vta-sam")
    assert installed["Version"] == vta_sam.__version__
    assert installed["Requires-Python"] == ">=3.11"
    license_text = (REPOSITORY / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in license_text and "END OF TERMS AND CONDITIONS" in license_text
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == vta_sam.__version__
    assert citation["license"] == setup()["metadata"]["license"] == "Apache-2.0"


def setup() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg")
    return config


def test_what_is_imported_is_declared():
    """A package that another one happens to bring may be gone with that one's next release."""
    listed = setup()["options"]["install_requires"] + setup()["options.extras_require"]["ray"]
    declared = {re.split(r"[<>=\[]", line)[0].lower().replace("_", "-")
                for line in listed.splitlines() if line and not line.startswith("#")}
    homes = metadata.packages_distributions()
    found = set()
    for path in (REPOSITORY / "vta_sam").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                found.add(node.module.split(".")[0])
    foreign = found - set(sys.stdlib_module_names) - {"vta_sam", "__future__"}
    lacking = {name for name in foreign if name in homes and not declared & {home.lower().replace("_", "-")
                                                                             for home in homes[name]}}
    assert lacking == set() and len(foreign) > 20


def test_weights_come_with_the_package_and_are_small():
    folder = REPOSITORY / "vta_sam" / "embedded" / "weights"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".safetensors" for path in files)
    patterns = setup()["options.package_data"]["vta_sam"].split()
    for path in files:
        name = path.relative_to(REPOSITORY / "vta_sam").as_posix()
        assert path.stat().st_size < MAX_WEIGHTS_BYTES, name
        assert path.suffix in (".safetensors", ".yaml"), f"{name}: tensors and words only"
        assert any(fnmatch(name, pattern) for pattern in patterns), f"{name} is not in setup.cfg's package_data"


def test_every_package_is_found():
    """A folder without __init__.py would be missing from an installation that is not editable."""
    folders = {path.parent for path in (REPOSITORY / "vta_sam").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_scan_for_machine_paths_sees():
    paths = ('"/tmp/x"', "cd /mnt/disk", f"cd /{'work'}/x", "/home/me/data", "=/root/a")
    assert all(MACHINE_PATH.search(text) for text in paths)
    assert not any(MACHINE_PATH.search(text) for text in ("a/tmp/x", "$SCRATCH/tmp/x", "https://host/root/x", "/tmpfs"))


def test_no_tracked_file_names_a_place_on_one_machine():
    found = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # weights and pictures
        if path == Path(__file__):
            continue  # holds the examples above
        found += [f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()[:80]}"
                  for number, line in enumerate(text.splitlines(), 1) if MACHINE_PATH.search(line)]
    assert found == []


def test_no_tracked_file_is_data():
    """Data, runs and what is generated stay out of the repository."""
    kinds = (".mp4", ".mkv", ".ckpt", ".pt", ".pth", ".tar")
    large = [str(path.relative_to(REPOSITORY)) for path in tracked_files()
             if path.stat().st_size > MAX_WEIGHTS_BYTES or path.suffix in kinds]
    assert large == []


def benchmark(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return call(f"benchmarks/{name}.py", *arguments, cwd=REPOSITORY)


@pytest.mark.parametrize(("minutes", "peak_gb", "status"), [(19, 5.9, 0), (21, 5.9, 1), (19, 6.1, 1)])
def test_the_main_job_is_held_to_its_limits(tmp_path, minutes, peak_gb, status):
    (tmp_path / "seconds.json").write_text(json.dumps({"data": 60, "diffusion": 60 * (minutes - 1)}))
    (tmp_path / "figures.json").write_text(json.dumps({"peak_memory_gb": peak_gb, "timing": {}}))
    told = benchmark("main_job", "--run", str(tmp_path), "--json")
    assert told.returncode == status, told.stderr
    result = json.loads(told.stdout)
    assert result["within_limits"] is (status == 0)
    assert result["rows"][-1] == {"stage": "all", "minutes": minutes, "share": "100%", "seconds": 60 * minutes}
    assert result["machine"]["cores"] >= 1


def test_two_main_jobs_are_compared_and_drawn(tmp_path):
    """The second run is of an earlier version, which told no parts, and had a stage fewer."""
    (tmp_path / "now").mkdir()
    (tmp_path / "before").mkdir()
    for run, seconds in (("now", {"vae": 100.0, "diffusion": 300.0}), ("before", {"vae": 400.0})):
        (tmp_path / run / "seconds.json").write_text(json.dumps(seconds))
        (tmp_path / run / "figures.json").write_text(json.dumps({"peak_memory_gb": 4, "timing": {}}))
    parts = {"vae": {"steps": 90.0, "validation": 10.0}, "diffusion": {"steps": 300.0}}
    (tmp_path / "now" / "seconds_parts.json").write_text(json.dumps({
        stage: {"parts": found, "machine": "a processor", "expected_s": 50} for stage, found in parts.items()}))
    picture = tmp_path / "stages.svg"
    compared = "main_job", "--run", str(tmp_path / "now"), "--beside", str(tmp_path / "before"), "--picture"
    told = benchmark(*compared, str(picture), "--json")
    assert told.returncode == 0, told.stderr
    rows = {row["stage"]: row for row in json.loads(told.stdout)["rows"]}
    assert list(rows) == ["vae", "  steps", "  validation", "diffusion", "all"]
    assert rows["vae"] == {"stage": "vae", "minutes": 1.67, "share": "25%", "seconds": 100, "expected_s": 50,
                           "beside_s": 400, "ratio": 0.25}
    assert rows["all"]["expected_s"] == 100 and (rows["all"]["beside_s"], rows["all"]["ratio"]) == (400, 0.25)
    assert "ratio" not in rows["diffusion"] and "ratio" not in rows["  steps"]
    drawn = picture.read_text(encoding="utf-8")
    assert drawn.startswith("<?xml") and all(f"<!-- {text} -->" in drawn for text in (
        "vae", "diffusion", str(tmp_path / "now"), str(tmp_path / "before"), " 400 s", " 300 s", "seconds"))
    again = benchmark(*compared, str(tmp_path / "stages.pdf"))
    assert again.returncode == 2 and "give it one of these suffixes" in again.stderr


def test_an_unfinished_main_job_is_said_so(tmp_path):
    told = benchmark("main_job", "--run", str(tmp_path))
    assert told.returncode == 2 and "seconds.json doesn't exist" in told.stderr and "Traceback" not in told.stderr


@pytest.fixture
def gpu_page(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return importlib.import_module("gpu_page")


def test_the_page_about_speed_is_made_of_its_records(gpu_page):
    text = gpu_page.PAGE.read_text(encoding="utf-8")
    assert gpu_page.page(text) == text and len(gpu_page.records()) >= 1


@pytest.mark.slow
def test_the_measurement_of_a_gpu_runs_on_a_processor(tmp_path, gpu_page):
    """Narrow, so that it can't rot where there is no GPU; but for the compiler."""
    told = benchmark("gpu", "--narrow", "--sizes", "base", "--seconds", "600", "--record", str(tmp_path))
    assert told.returncode == 0, told.stderr
    record, = gpu_page.records(tmp_path)
    assert {row["form"] for row in record["training"]} == {"bf16", "fp32", "VTA-LDM's loop as published"}
    assert {row["stage"] for row in record["training"]} == {"vae", "condition", "diffusion"}
    assert all(record[table] for table in ("evaluation", "sampling", "loading", "extraction"))
    assert all(min(row["frames_per_s"], row["alone_per_s"], row["hours"], row["stored_gb"]) > 0
               for row in record["extraction"])
    assert record["left_out"] == []
    assert any(line.startswith("| base | diffusion | 2 |") for line in gpu_page.page_of(record))


@pytest.mark.slow
def test_a_step_of_every_stage_is_timed():
    told = benchmark("step", "--size", "smoke", "--repeat", "1", "--json")
    assert told.returncode == 0, told.stderr
    rows = json.loads(told.stdout)["rows"]
    assert [row["stage"] for row in rows] == ["vae", "condition", "diffusion"]
    for row in rows:
        assert row["clips"] == 4 and row["parameters"] > 100_000
        assert row["bf16_over_fp32"] == pytest.approx(row["bf16_s"] / row["fp32_s"], abs=0.01)


@pytest.mark.slow
def test_the_cost_of_a_step_on_a_gpu_is_counted():
    told = benchmark("memory", "--size", "smoke", "--exp", "foleycrafter", "--stages", "onsets", "--batch", "2",
                     "--json")
    assert told.returncode == 0, told.stderr
    [row] = json.loads(told.stdout)["rows"]
    assert row["clips"] == 2 and row["parameters"] > 10_000 and row["moved_gb"] > 0
    assert (row["waits_of_a_micro_batch"], row["waits_of_a_step"]) == (0, 1)


@pytest.mark.slow
def test_how_busy_extraction_keeps_a_gpu_is_timed():
    told = benchmark("busy", "--clips", "3", "--duration", "1", "--detector-ms", "2", "--json")
    assert told.returncode == 0, told.stderr
    former, now = json.loads(told.stdout)["rows"]
    computed_s = 3 * 8 * (2 + 0.7) / 1000
    for row in (former, now):
        assert row["gpu_busy"] == pytest.approx(computed_s / row["s"], rel=0.1) and row["clips_per_s"] > 0


@pytest.mark.slow
def test_what_a_checkpoint_costs_training_is_timed(tmp_path):
    told = benchmark("checkpoints", "--parameters", "1", "--repeat", "1", "--folder", str(tmp_path), "--json")
    assert told.returncode == 0, told.stderr
    whole, apart, aside = json.loads(told.stdout)["rows"]
    assert whole["gb"] > apart["gb"] == aside["gb"] > 0 and aside["stopped_s"] >= 0
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_processes_that_train_together_are_timed(monkeypatch):
    import torch.multiprocessing

    multiprocessing.set_forkserver_preload(PRELOAD)  # two interpreters less import torch
    monkeypatch.setattr(torch.multiprocessing, "spawn",
                        partial(torch.multiprocessing.start_processes, start_method="forkserver"))
    told = benchmark("processes", "--size", "smoke", "--worlds", "2", "--repeat", "1", "--json")
    assert told.returncode == 0, told.stderr
    [two] = json.loads(told.stdout)["rows"]
    assert two["processes"] == 2 and two["clips"] == 4 and two["times_first"] == 1 and two["gradient_mb"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("reads", ["latents", "all"])
def test_loading_is_measured(reads):
    told = benchmark("loading", "--reads", reads, "--workers", "1", "2", "--clips", "8", "--disk-shard-clips", "3",
                     "--streams", "2", "--mb-s", "100", "--shard-clips", "1", "3", "--memory-workers", "1", "--json")
    assert told.returncode == 0, told.stderr
    report = json.loads(told.stdout)
    assert [row["loaders"] for row in report["rows"]] == [1, 2] and all(row["of_one"] > 0 for row in report["rows"])
    assert [(row["shard_clips"], row["loaders"]) for row in report["more_rows"]] == [(1, 1), (3, 1)]
    assert all(row["own_mb"] > 0 for row in report["more_rows"]) and 300 < report["clip_kb"] < 600


@pytest.mark.slow
def test_scaling_is_computed_from_what_is_measured():
    def told(*more: str) -> dict:
        done = benchmark("scaling", "--size", "smoke", "--gpus", "1", "16", "--shard-clips", "4", "--json", *more)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    slow, hungry = told("--step-s", "100"), told("--step-s", "1e-6", "--storage-gb-s", "1e-6")
    assert [row["efficiency"] for row in slow["rows"]] == ["100%", "100%"]
    assert [row["clips_per_s"] for row in slow["rows"]] == [0.1, 1.3] and slow["rows"][1]["limit"] == "computing"
    assert hungry["rows"][1]["limit"] == "storage" and hungry["tflop_a_clip"] > 0
    seconds = 16 * 8 * hungry["clip_kb"] * 1e3 / 1e3
    assert hungry["rows"][1]["step_s"] == pytest.approx(seconds, rel=0.01)


@pytest.mark.slow
def test_the_parts_of_a_generation_add_up(tmp_path, make_video):
    from models import make_seeing_model

    video = make_video(tmp_path / "clip.mp4", duration_s=2.0)
    told = benchmark("generate", "--model", str(make_seeing_model(tmp_path)), "--video", str(video), "--repeat", "1",
                     "--device", "cpu", "--json")
    assert told.returncode == 0, told.stderr
    result = json.loads(told.stdout)
    spent = {row["part"]: row["s"] for row in result["rows"] if "share" in row}
    assert set(spent) == {"features", "sampling", "decode", "vocode", "mux", "all"}
    assert all(value > 0 for value in spent.values())
    assert sum(spent.values()) == pytest.approx(2 * spent["all"], abs=0.01)
    assert result["video_s"] == 2.0


@pytest.mark.slow
def test_faster_flow_is_compared_with_the_published_score(tmp_path, make_video):
    import numpy as np

    sound = np.zeros(32_000)
    sound[8000:8400] = sound[20_000:20_400] = 0.5
    video = make_video(tmp_path / "clip.mp4", size=(320, 240), fps=10, duration_s=2.0, sound=sound)
    told = benchmark("av_align", str(video), "--heights", "60", "--json")
    assert told.returncode == 0, told.stderr
    rows = {row["flow"]: row for row in json.loads(told.stdout)["rows"]}
    assert set(rows) == {"full", "fast", "60"} and rows["full"]["worst_deviation"] == 0
    assert all(row["speed_up"] > 0 for row in rows.values())


@pytest.mark.slow
def test_evaluation_is_timed(monkeypatch):
    """Each run in this process, which has its imports."""
    monkeypatch.setattr(subprocess, "run", lambda command, **how: benchmark("evaluate", *command[2:]))
    told = benchmark("evaluate", "--clips", "4", "--seconds", "2", "--workers", "0", "--json")
    assert told.returncode == 0, told.stderr
    rows = json.loads(told.stdout)["rows"]
    assert [(row["clips"], row["run"]) for row in rows] == [(4, "first"), (4, "cached")]
    assert all(row["s"] > 0 and row["own_peak_mb"] >= row["imports_mb"] for row in rows)


@pytest.mark.slow
def test_rendering_is_timed():
    told = benchmark("render", "--clips", "2", "--workers", "1", "--json")
    assert told.returncode == 0, told.stderr
    [row] = json.loads(told.stdout)["rows"]
    seconds = 1 / row["rendering_clips_per_s"] + 1 / row["extraction_clips_per_s"]
    assert row["both_s_per_clip"] == pytest.approx(seconds, rel=0.05)
