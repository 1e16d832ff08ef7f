"""Write the golden record anew: what this program composes, renders, extracts, trains and generates.

    python tests/golden/record.py                    # or `make golden`; some minutes
    python tests/golden/record.py configs            # a part alone: configs, nouns, world (shards and sounds), smoke
    PYTHONPATH=OTHER python tests/golden/record.py    # what another checkout does, such as one before a change

A change that should change nothing leaves every file as it was. One that changes something shows in `git diff` what.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parent)]

from golden import configs, nouns, smoke, world  # noqa: E402  the path leads to them
from golden.played import CHECKOUT  # noqa: E402


def record_world() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        world.make_world(Path(temporary))
        write(world.SHARDS, world.shards_record(Path(temporary)))
        write(world.SOUNDS, world.sounds_record(Path(temporary)))


def record_smoke() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        smoke.play_all(Path(temporary))
        write(smoke.NAME, smoke.record(Path(temporary)))


PARTS = {"configs": configs.write, "nouns": nouns.write, "world": record_world, "smoke": record_smoke}


def write(name: str, text: str) -> None:
    (FOLDER / name).write_text(text, encoding="utf-8")


def main(wanted: list[str]) -> None:
    unknown = [name for name in wanted if name not in PARTS]
    if unknown:
        sys.exit(f"{unknown[0]} is no part of the record; its parts are {', '.join(PARTS)}")
    for name in wanted or PARTS:
        print(f"{name}: what {CHECKOUT} does, into {FOLDER}", flush=True)
        PARTS[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
