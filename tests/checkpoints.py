"""The tiny checkpoints in the released layouts, from the reference material, and copies of them to do harm to."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def released(shared_dir) -> Path:
    """The folder of the tiny checkpoints."""
    return shared_dir / "golden" / "checkpoints"


def writable_copy(folder: Path, to: Path) -> Path:
    """Copy a folder whose files may be read-only ⇒ ``to``, which may be changed."""
    shutil.copytree(folder, to, copy_function=shutil.copyfile)
    for place in (to, *(path for path in to.rglob("*") if path.is_dir())):
        place.chmod(0o755)
    return to
