"""A metric of one's own, in one file: figures.json, evaluate's table, compare's page and the docs' table have it."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from test_evaluation import clicks, write_folder
from test_figures import held_out

from vta_sam.evaluation import metric_table
from vta_sam.evaluation.comparison.page import write_comparison
from vta_sam.evaluation.evaluate import Request, evaluate
from vta_sam.evaluation.metric import Metric
from vta_sam.evaluation.metric_table import METRICS
from vta_sam.evaluation.metric_table import metric_table as all_rows
from vta_sam.evaluation.metric_table import register_metric
from vta_sam.evaluation.results import figures_table, write_evaluation
from vta_sam.runtime.errors import InputError
from vta_sam.training import figures
from vta_sam.training import figures_stage as run_report

KEY, TITLE = "attack_difference_db", "Attack difference"
DOCS = Path(__file__).resolve().parents[1] / "docs" / "evaluation.md"


@pytest.fixture
def registered(tmp_path, monkeypatch):
    """The example of docs/evaluation.md as a module that the variable names."""
    [source] = re.findall(r"```python\n(# my_metrics.py.*?)```", DOCS.read_text(encoding="utf-8"), re.S)
    (tmp_path / "my_metrics.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(metric_table, "_REGISTERED", {})
    monkeypatch.setenv("VTA_SAM_METRICS", "my_metrics")
    yield
    sys.modules.pop("my_metrics", None)


@pytest.fixture
def folders(tmp_path) -> Path:
    true = {f"c{i}": clicks(i) for i in range(3)}
    write_folder(tmp_path / "true", true)
    write_folder(tmp_path / "ours", {name: 0.5 * sound + 0.01 for name, sound in true.items()})
    return tmp_path


def asked(folders: Path, **settings) -> Request:
    return Request({"ours": folders / "ours"}, folders / "true", backbones=(), set_resamples=20, resamples=100,
                   **settings)


def test_it_stands_in_evaluations_and_on_the_page(registered, folders):
    request = asked(folders)
    evaluation, plan = evaluate(request)
    written = write_evaluation(folders / "out", evaluation)
    content = json.loads(written[0].read_text(encoding="utf-8"))
    [row] = [column for column in content["columns"] if column["key"] == KEY]
    assert row["title"] == TITLE and row["better"] == "low" and row["version"] == 1
    figure = content["systems"]["ours"]["figures"][KEY]
    assert figure["score"]["mean"] >= 0 and figure["control"]["n"] == 3 and figure["score_minus_control"]["n"] == 3
    assert KEY in written[1].read_text(encoding="utf-8").splitlines()[0].split(",")
    shown = io.StringIO()
    Console(file=shown, width=200).print(figures_table(evaluation))
    assert f"{TITLE} ↓ (dB)" in shown.getvalue()
    page = write_comparison(evaluation, plan, request, folders / "page", "Page").read_text(encoding="utf-8")
    assert TITLE in page and "steepest rises of both energy envelopes" in page
    keys = [metric.key for metric in evaluation.metrics if metric.group == "Timing"]
    assert keys[-1] == KEY, "it stands with the others of its group"


def test_it_stands_in_the_figures_of_a_run(registered):
    waves = np.stack([clicks(i, 5.12) for i in range(4)])
    clips = held_out(waves, [np.array([1.0])] * 4)
    found = figures.measure(clips, figures.Sounds(0.5 * waves[:, ::-1], waves, 0.1), seed=0)
    assert set(found["timing"]) == {"envelope_correlation", "onset_f1", KEY} == set(found["ceiling"])
    assert found["timing"][KEY]["score"]["mean"] >= 0 == found["ceiling"][KEY]["score"]["mean"]
    assert found["metrics"][KEY] == {"unit": "dB", "better": "low", "version": 1}
    assert figures.mean_scores(found)[KEY] == found["timing"][KEY]["score"]["mean"]
    rows = run_report.figures_rows(found | {"seconds": {}, "peak_memory_gb": 1})
    assert "attack difference" in [row[0] for row in rows]


def test_it_stands_in_the_table_of_the_documentation(registered, capsys):
    metric_table.main(["--print"])
    assert f"| `{KEY}` | ↓ dB | {TITLE}: " in capsys.readouterr().out
    assert KEY not in metric_table.markdown_table(METRICS)


def test_the_table_of_the_documentation_is_up_to_date():
    """Written by python -m vta_sam.evaluation.metric_table"""
    text = DOCS.read_text(encoding="utf-8")
    assert metric_table.page_with_table(text, METRICS) == text
    with pytest.raises(InputError, match="end of metrics"):
        metric_table.page_with_table("no table", METRICS)


def peak_ratio(true: np.ndarray, generated: np.ndarray) -> float:
    COUNTED.append(1)
    return float(np.abs(generated).max() / np.abs(true).max())


COUNTED: list[int] = []


def test_a_metric_of_waveforms_is_cached_under_its_version(folders, monkeypatch):
    monkeypatch.setattr(metric_table, "_REGISTERED", {})

    def of_version(version: int) -> list[float | None]:
        register_metric(Metric("peak_ratio", "Peak ratio", "none", "clip", version=version, function=peak_ratio,
                               needs=("true.waveform", "generated.waveform")))
        COUNTED.clear()
        clips = evaluate(asked(folders, cache=folders / "cache"))[0].systems["ours"].clips
        return [clip.values["peak_ratio"] for clip in clips.values()]

    first = of_version(1)
    assert len(COUNTED) == 3 and all(0.3 < value < 0.7 for value in first if value is not None) and None not in first
    assert of_version(1) == first and not COUNTED, "measured again"
    assert of_version(2) == first and len(COUNTED) == 3, "a value of another version was used"


@pytest.mark.parametrize(("changed", "said"), [
    ({"needs": ("generated.colour",)}, "needs 'generated.colour'"),
    ({"needs": ("generated.logits",)}, "per_backbone= or backbone="),
    ({"needs": ("generated.waveform",), "control": True}, "needs a waveform"),
    ({"needs": ("true.flow",)}, "needs optical flow"),
    ({"better": "more"}, "better is 'more'"), ({"group": "Time"}, "group is 'Time'"),
    ({"per_backbone": "all"}, "must hold {backbone}"),
])
def test_a_wrong_row_is_refused_in_a_sentence(changed, said):
    with pytest.raises(InputError, match=re.escape(said)):
        Metric(**{"key": "mine", "title": "Mine", "better": "low", "scope": "clip", "needs": ("generated.level",),
                  "function": peak_ratio, **changed})


def test_keys_and_modules_are_checked(monkeypatch):
    monkeypatch.setattr(metric_table, "_REGISTERED", {})
    with pytest.raises(InputError, match="'onset_f1' is there already"):
        register_metric(Metric("onset_f1", "Mine", "low", "clip", needs=("generated.level",), function=peak_ratio))
    with pytest.raises(InputError, match="say function= and needs="):
        register_metric(Metric("mine", "Mine", "low", "clip"))
    monkeypatch.setenv("VTA_SAM_METRICS", "no_such_module_of_metrics")
    with pytest.raises(InputError, match="no_such_module_of_metrics.*PYTHONPATH"):
        all_rows()
