"""A new sound under what strangers send: each file is written so that it reads back, or refused in a sentence. Children
do it, so that a file that crashes FFmpeg, hangs it or takes its memory is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from damaged_videos import FAILS, GOOD, write_corpus

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits a child's memory")
LIMIT_S, MEMORY_MB = 20, 2048
# reads names, and answers for each how planning, measuring and muxing ended
CHILD = """
import json, resource, signal, sys
from pathlib import Path
import av
import numpy as np
from vta_sam.media.muxing import mux, picture_duration_s, plan_mux
from vta_sam.media.video import probe
from vta_sam.runtime.errors import InputError

folder, target = Path(sys.argv[1]), Path(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[4]) << 20,) * 2)
av.logging.set_level(av.logging.PANIC)

def ended(work):
    try:
        return ["done", str(work())]
    except (InputError, MemoryError) as error:
        return [type(error).__name__, str(error)]
    except BaseException as error:
        return ["another error", f"{type(error).__name__}: {error}"]

def written(path):
    path = mux(path, np.zeros(16_000, np.float32), 16_000, target)
    found = probe(path)
    assert found.width and found.audio_codec == "aac", "it reads back"
    return path.name

for line in sys.stdin:
    path = folder / json.loads(line)
    print(json.dumps(["begins", path.name]), flush=True)
    signal.setitimer(signal.ITIMER_REAL, float(sys.argv[3]))
    ends = [ended(lambda: work(path)) for work in (lambda path: plan_mux(path, target), picture_duration_s, written)]
    signal.setitimer(signal.ITIMER_REAL, 0)
    left = sorted(each.name for each in target.parent.iterdir())
    for each in target.parent.iterdir():
        each.unlink()
    print(json.dumps(["ended", ends, left]), flush=True)
"""


def muxed(folder: Path, names: list[str], out: Path) -> dict[str, Any]:
    """What came of each file ⇒ by name, its ends and what was left in the folder of results; the status of a child that
    ended at it."""
    command = [sys.executable, "-c", CHILD, str(folder), str(out / "a.mp4"), str(LIMIT_S), str(MEMORY_MB)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    found: dict[str, Any] = {}
    while len(found) < len(names):
        todo = names[len(found):]
        with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, text=True) as child:
            assert child.stdin is not None and child.stdout is not None
            lines = "".join(f"{json.dumps(name)}\n" for name in todo)
            giving = threading.Thread(target=_give, args=(child.stdin, lines))
            giving.start()
            answers = [json.loads(line) for line in child.stdout]
            giving.join()
        done = [answer[1:] for answer in answers if answer[0] == "ended"]
        found.update(zip(todo, done))
        if len(done) < len(todo):
            assert len(answers) > 2 * len(done), "the child ended before it began"
            found[todo[len(done)]] = child.returncode
            for path in out.iterdir():
                path.unlink()
    return found


def _give(pipe: Any, lines: str) -> None:
    try:
        pipe.write(lines)
        pipe.close()
    except BrokenPipeError:
        pass


@pytest.mark.slow
def test_more_than_a_thousand_damaged_videos_get_a_sound_or_a_reason(tmp_path):
    cases = write_corpus(tmp_path / "videos", everything=True)
    out = tmp_path / "out"
    out.mkdir()
    found = muxed(tmp_path / "videos", [case.path for case in cases], out)
    assert list(found) == [case.path for case in cases] and len(cases) >= 1200
    ended = [name for name, ends in found.items() if isinstance(ends, int)]
    assert not ended, "a child crashed or hung at these"
    counts = {"done": 0, "InputError": 0, "MemoryError": 0}
    for case in cases:
        ends, left = found[case.path]
        assert all(kind in counts for kind, _ in ends), (case, ends)
        plan, duration, mux = ends
        counts[mux[0]] += 1
        assert left == ([mux[1]] if mux[0] == "done" else []), (case, left)
        assert case.pictures != GOOD or plan[0] == duration[0] == mux[0] == "done", (case, ends)
        assert case.pictures != FAILS or mux[0] != "done", case
        for kind, text in ends:
            if kind == "InputError":
                assert str(tmp_path / "videos" / case.path) in text and "partial" not in text, text
                assert "\n" not in text.replace(case.path, ""), text
    # FFmpeg asks for what a header claims: tables of 2³² entries, say
    assert counts["done"] >= 700 and counts["InputError"] >= 300 and counts["MemoryError"] <= 40, counts


def test_a_child_that_ends_at_a_file_names_it(tmp_path, monkeypatch):
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / name).write_bytes(b"text")
    out = tmp_path / "out"
    out.mkdir()
    crash = "    if path.name == 'b.mp4':\n        import os\n        os.abort()\n    print(json.dumps([\"ended\""
    monkeypatch.setitem(globals(), "CHILD", CHILD.replace("    print(json.dumps([\"ended\"", crash))
    found = muxed(tmp_path, ["a.mp4", "b.mp4", "c.mp4"], out)
    assert found["b.mp4"] == -6 and [found[name][0][2][0] for name in ("a.mp4", "c.mp4")] == ["InputError"] * 2
