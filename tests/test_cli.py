"""How entry scripts speak: to users in sentences, to programmers with a traceback; and what they say that they will
write."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
from programs import call

import vta_sam
from vta_sam.checkpoints.registry import find_entry
from vta_sam.runtime.cli import run
from vta_sam.runtime.errors import InputError

OURS = str(Path(vta_sam.__file__).parent / "features.py")


def test_what_the_project_warns_of_is_said_without_a_line_of_code():
    usual = warnings.formatwarning

    @run
    def main() -> list[str]:
        said = [("an unknown word", UserWarning, OURS, 3), ("an old name", FutureWarning, OURS, 3),
                ("theirs", UserWarning, "/elsewhere/x.py", 3)]
        return [warnings.formatwarning(*words, None) for words in said]

    ours, old, theirs = main()
    assert ours == "warning: an unknown word\n"
    assert "features.py:3" in old and "/elsewhere/x.py:3" in theirs
    assert warnings.formatwarning is usual


@pytest.mark.parametrize("error, status", [(InputError("x.mp4 is empty"), 2), (KeyboardInterrupt(), 130)])
def test_what_a_user_can_mend_is_a_sentence_and_a_status(error, status, capsys):
    @run
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == status
    assert capsys.readouterr().err == ("error: x.mp4 is empty\n" if status == 2 else "interrupted\n")


def test_a_fault_of_the_program_keeps_its_traceback():
    @run
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main()


def plan_of(folder: Path, script: str, *arguments: object) -> str:
    """What a program says with --plan, in one line; it writes nothing."""
    before = sorted(folder.rglob("*"))
    ended = call(script, *arguments, "--plan", cwd=folder)
    assert ended.returncode == 0, ended.stderr
    assert sorted(folder.rglob("*")) == before
    return " ".join(ended.stdout.split())


def test_the_plan_of_a_manifest_is_what_is_written(tmp_path):
    (tmp_path / "videos").mkdir()
    for name in ("a.mp4", "b.mp4", "c.mp4", "d.mp4"):
        (tmp_path / "videos" / name).write_bytes(name.encode())
    (tmp_path / "videos" / "empty.mp4").touch()
    arguments = ("data_prep/manifest.py", "folder", "--videos", "videos", "--out", "m/clips.csv", "--val", 1)
    said = plan_of(tmp_path, *arguments)
    assert "clips.csv make: 3 train, 1 val clips" in said and "clips.left_out.csv make: 1 clips without a row" in said
    assert call(*arguments, cwd=tmp_path).returncode == 0
    assert {path.name for path in (tmp_path / "m").iterdir()} == {"clips.csv", "clips.left_out.csv"}
    assert len((tmp_path / "m" / "clips.csv").read_text().splitlines()) == 5
    assert "clips.csv replace" in plan_of(tmp_path, *arguments, "--overwrite")
    refused = call(*arguments, "--plan", cwd=tmp_path)
    assert refused.returncode == 2 and "is there already" in refused.stderr


def test_the_plan_of_released_weights_tells_them_by_their_sizes(tmp_path):
    weights = tmp_path / "w"
    weights.mkdir()
    right, wrong = find_entry("sam_vit_b").files[0], find_entry("sam_vit_l").files[0]
    with open(weights / right.path, "wb") as stream:
        stream.truncate(right.size_bytes)  # a hole in the file: no disk is used
    (weights / wrong.path).write_bytes(b"a web page")
    names = ("sam_vit_b", "sam_vit_l", "sam_vit_h")
    said = plan_of(tmp_path, "data_prep/weights.py", "fetch", *names, "--folder", weights)
    assert f"{right.path} keep" in said and f"{wrong.path} keep: wrong: 10 bytes" in said
    assert "make: 2.6 GB" in said and "about 2.6 GB" in said
    said = plan_of(tmp_path, "data_prep/weights.py", "fetch", *names, "--folder", weights, "--again")
    assert f"{wrong.path} make again" in said and "about 3.8 GB" in said
    said = plan_of(tmp_path, "data_prep/weights.py", "random", "extraction", "--folder", "r")
    assert "bert-base-uncased make" in said


def test_the_plans_of_an_import_and_of_a_table(tmp_path):
    (tmp_path / "a.ckpt").touch()
    assert "model make: of a.ckpt" in plan_of(tmp_path, "data_prep/weights.py", "import", "a.ckpt", "model")
    for wrong, words in ((("a.ckpt", "."), "exists; remove it"), (("none.ckpt", "model"), "doesn't exist")):
        refused = call("data_prep/weights.py", "import", *wrong, "--plan", cwd=tmp_path)
        assert refused.returncode == 2 and words in refused.stderr
    run_folder = tmp_path / "runs" / "vta_sam-0"
    run_folder.mkdir(parents=True)
    assert "holds no finished run" in call("experiments/sweep.py", "collect", "runs", "--plan", cwd=tmp_path).stderr
    said = plan_of(tmp_path, "experiments/listening_test.py", "analyse", "--test", "t", "--answers", "s", "--out", "r")
    assert "results.json make" in said and "writes to r" in said
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "scores.csv").write_text(json.dumps({}))
    said = plan_of(tmp_path, "experiments/listening_test.py", "analyse", "--test", "t", "--answers", "s", "--out", "r")
    assert "results.json make scores.csv replace" in said


def test_the_plan_of_a_listening_test_counts_its_stimuli(tmp_path):
    for system in ("gt", "ours", "theirs"):
        (tmp_path / "clips" / system).mkdir(parents=True)
        for clip in range(3):
            soundfile.write(tmp_path / "clips" / system / f"{clip}.wav", np.zeros(16_000), 16_000)
    said = plan_of(tmp_path, "experiments/listening_test.py", "make", "--systems", "clips", "--out", "test", "--raters",
                   4, "--clips", 2)
    assert "the page, 10 stimuli of 2 clips, for 4 raters" in said and "of 2 systems: ours, theirs" in said
