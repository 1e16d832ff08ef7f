"""The structure of the package: imports run one way, and no file is too long to be one thought."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from structure import REPOSITORY, circles, imported, modules, room_of, structure  # noqa: E402

# A module imports from its own room and from rooms before it; README's map shows them in this order.
ROOMS = ("runtime clip mel checkpoints settings media metrics plots perception dataset vae vocoder embedded diffusion "
         "conditioners importers generation evaluation training study").split()


@pytest.fixture(scope="module")
def counted():
    return structure()


def test_imports_run_one_way():
    known = modules(REPOSITORY)
    wrong = [f"{name} imports {other}" for name, path in known.items() if name != "vta_sam"
             for other in imported(name, path, known)
             if ROOMS.index(room_of(other)) > ROOMS.index(room_of(name)) and room_of(name) not in ("runtime",)]
    wrong += [f"{name} imports {other}" for name, path in known.items() if room_of(name) == "runtime"
              for other in imported(name, path, known) if room_of(other) != "runtime"]
    assert wrong == []


def test_there_are_no_circles(counted):
    assert counted["circles_of_rooms"] == [] and counted["circles_of_files"] == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == [["b", "c"]], "the search finds one"


def test_files_and_functions_stay_one_thought(counted):
    assert counted["files"] <= 170 and counted["median_lines"] >= 110
    assert counted["longest_file"][1] <= 400, counted["longest_file"]
    assert counted["longest_function"][1] <= 60, counted["longest_function"]


def test_a_file_name_says_which_file_it_is(counted):
    """A name that occurs twice makes finding a file by its name a lottery."""
    assert not counted["names_twice"]


def test_the_readme_shows_the_rooms_in_order():
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"^    vta_sam/(\w+)(?:/|\.py) ", text.partition("## Where things are")[2], re.M)
    assert shown == ROOMS
