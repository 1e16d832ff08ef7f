"""Files that are whole or absent whatever their names are, and the sentences on disks that are full or closed."""

import errno
import os
from pathlib import Path

import pytest

from vta_sam.checkpoints.model_folder import write_model
from vta_sam.runtime.errors import EndOfRun, InputError
from vta_sam.runtime.files import (
    atomic_path, exclusive, printable, require_name, temporary_beside, write_fault, write_text, writing_to
)


@pytest.mark.parametrize("stem", ["a", "x" * 251, "犬" * 83 + "xx", "🐶" * 62 + "xxx", "caf\udce9", "a.b"])
def test_a_temporary_name_does_not_depend_on_its_targets_length(tmp_path, stem):
    target = tmp_path / f"{stem}.mp4"
    write_text(target, "old")
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        name = temporary.name
        assert len(name) == 29 and name.startswith(".") and name.endswith(".partial.mp4") and name.isascii()
        assert [temporary] == list(tmp_path.glob(".*.partial*")) and target.read_text() == "old"
    assert target.read_text() == "new" and os.listdir(tmp_path) == [target.name]
    with pytest.raises(KeyError), atomic_path(target) as temporary:
        raise KeyError
    assert os.listdir(tmp_path) == [target.name]


def test_temporary_names_of_other_kinds(tmp_path):
    assert temporary_beside(tmp_path / "model").name.endswith(".partial")
    assert len(temporary_beside(tmp_path / ("a." + "x" * 250)).name) == 25, "no suffix that an encoder would know"
    assert temporary_beside(tmp_path / "a") != temporary_beside(tmp_path / "a")


def test_a_model_folder_and_a_lock_with_long_names(tmp_path, monkeypatch):
    monkeypatch.setattr("vta_sam.checkpoints.model_folder.save_model", lambda folder, *_: (folder / "x").touch())
    write_model(tmp_path / ("m" * 255), None, {})
    assert os.listdir(tmp_path) == ["m" * 255] and (tmp_path / ("m" * 255) / "x").exists()
    for name in ("犬" * 85, "short"):
        with exclusive(tmp_path / name):
            pass
    locks = [path.name for path in tmp_path.glob(".*")]
    assert len(locks) == 2 and ".short.lock" in locks and all(len(name) < 80 for name in locks)


def test_names_that_no_file_can_have(tmp_path):
    require_name(tmp_path / "not" / "there" / ("犬" * 85))
    for name in ("犬" * 85 + "x", "x" * 256, "\udce9" * 256):
        with pytest.raises(InputError, match="256 bytes in UTF-8, at most 255"):
            require_name(tmp_path / name)
    assert printable("caf\udce9") == r"caf\udce9" and printable(Path("é/犬")) == "é/犬"


def test_disks_that_are_full_or_closed(tmp_path, monkeypatch):
    full, closed, denied = (OSError(code, os.strerror(code), str(tmp_path / "x" / "a"))
                            for code in (errno.ENOSPC, errno.EROFS, errno.EACCES))
    assert write_fault(full, Path("o")).startswith("no space left for out=o; make room")
    assert write_fault(full).startswith(f"no space left for {tmp_path}/x/a;")
    told = "runs=o can't be written to (Read-only file system); name another folder"
    assert write_fault(closed, Path("o"), "runs") == told
    assert write_fault(denied, tmp_path) is None, "a file that can't be read is one item's fault"
    assert write_fault(OSError(errno.EIO, "?"), tmp_path) is None and write_fault(ValueError(), tmp_path) is None
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "can't be written to (Permission denied)" in write_fault(denied, tmp_path / "new")
    wrapped = InputError("can't be copied")
    wrapped.__cause__ = full
    with pytest.raises(EndOfRun, match="no space left for out="), writing_to(tmp_path):
        raise wrapped
    with pytest.raises(InputError, match="^odd$"), writing_to(tmp_path):
        raise InputError("odd")
