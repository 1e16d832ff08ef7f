"""The table of released weights, what loaders ask of it, and the script."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import PurePosixPath

import pytest
from weights_server import DATA, OTHER, REPOSITORY, SCRIPT, fetch

from vta_sam.checkpoints import registry
from vta_sam.checkpoints.registry import require
from vta_sam.runtime.errors import InputError


def test_the_table_is_well_formed():
    files = [file for entry in registry.ENTRIES.values() for file in entry.files]
    assert len({file.path for file in files}) == len(files) == len({file.url for file in files})
    for file in files:
        path = PurePosixPath(file.path)
        assert not path.is_absolute() and ".." not in path.parts and "\\" not in file.path
        assert file.url.startswith("https://") and file.url.endswith(path.name)
        assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
        assert file.size_bytes is None or file.size_bytes > 0
    digests = [file.sha256 for file in files if file.sha256]
    assert len(set(digests)) == len(digests), "a checksum was copied to another file"


def test_names_and_places():
    for name, entry in registry.ENTRIES.items():
        assert entry.name == name and entry.files and entry.licence and entry.purpose
        assert entry.source.startswith("https://")
        if len(entry.files) > 1:  # a loader is given one folder that holds all of them
            assert all(PurePosixPath(file.path).is_relative_to(entry.place) for file in entry.files)
            others = [file.path for other in registry.ENTRIES.values() if other is not entry for file in other.files]
            assert not any(PurePosixPath(path).is_relative_to(entry.place) for path in others)
    assert not set(registry.GROUPS) & set(registry.ENTRIES)
    assert all(name in registry.ENTRIES for members in registry.GROUPS.values() for name in members)


def test_groups_and_names_are_entries_each_once():
    names = [entry.name for entry in registry.find_entries(["sam_vit_h", "grounded_sam", "sam_vit_h"])]
    assert names == ["sam_vit_h", "groundingdino_swint_ogc", "bert-base-uncased"]
    assert registry.find_entries([]) == list(registry.ENTRIES.values())
    with pytest.raises(InputError, match="'sam_vit_x'.*sam_vit_h.*extraction"):
        registry.find_entries(["sam_vit_x"])


def test_every_page_and_figure_of_the_documentation_is_of_the_table():
    text = (REPOSITORY / "docs" / "weights.md").read_text(encoding="utf-8")
    for entry in registry.ENTRIES.values():
        [row] = [line for line in text.splitlines() if line.startswith(f"| `{entry.name}`")]
        assert registry.readable(entry.size_bytes) in row and entry.licence in row and entry.source in row
    for name, members in registry.GROUPS.items():
        [row] = [line for line in text.splitlines() if line.startswith(f"| `{name}`")]
        assert re.findall("`(.*?)`", row)[1:] == list(members)


# where they lie

def test_missing_weights_are_asked_for_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.delenv("VTA_SAM_WEIGHTS", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as refused:
        require("groundingdino_swint_ogc")
    words = str(refused.value)
    assert words.startswith("Grounding DINO Swin-T is asked for, but weights/groundingdino_swint_ogc.pth is missing")
    assert "`python data_prep/weights.py fetch groundingdino_swint_ogc`" in words and "(694 MB)" in words
    with pytest.raises(InputError, match=re.escape("--folder 'of mine'`")):
        require("sam_vit_b", "of mine")
    with pytest.raises(InputError, match="'sam'"):
        require("sam")


def test_the_variable_names_the_folder_and_an_argument_wins(tmp_path, monkeypatch, small):
    monkeypatch.setenv("VTA_SAM_WEIGHTS", str(tmp_path / "shared"))
    for folder in ("shared", "mine"):
        fetch(small.file(), tmp_path / folder)
    assert require("one") == tmp_path / "shared" / "net" / "model.bin"
    assert require("one", tmp_path / "mine") == tmp_path / "mine" / "net" / "model.bin"


def test_several_files_are_a_folder_and_all_are_needed(tmp_path, small, caplog):
    (tmp_path / "pair").mkdir()
    (tmp_path / "pair" / "a.json").write_bytes(b"{}\n\n")
    with pytest.raises(InputError, match="pair/b.bin is missing.*size unknown"):
        require("pair", tmp_path)
    (tmp_path / "pair" / "b.bin").write_bytes(b"any length")
    assert require("pair", tmp_path) == tmp_path / "pair"
    (tmp_path / "pair" / "a.json").write_bytes(b"{}")
    assert caplog.text == ""
    assert require("pair", tmp_path) == tmp_path / "pair", "weights that were trained on are no fault"
    assert re.search("a.json holds 2 bytes, but The pair as released has 4; .*pair .*--again", caplog.text)


# fetching


def command(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    """The script in this process ⇒ exit status, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "100")
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    told = capsys.readouterr()
    return code, told.out, told.err


def states(listed: str) -> dict[str, str]:
    words = re.findall(r"^ *(one|pair) .*\b(present|missing|wrong)\b", listed, re.MULTILINE)
    return dict(words)


def test_list_fetch_and_check(tmp_path, monkeypatch, capsys, small):
    where = ("--folder", tmp_path)
    assert command(monkeypatch, capsys, "check", *where)[:2] == (0, f"nothing to check in {tmp_path}\n")
    code, out, _ = command(monkeypatch, capsys, "list", *where)
    assert code == 0 and states(out) == {"one": "missing", "pair": "missing"}
    assert "400 kB" in out and "example.org/one" in out and "both = one + pair" in out

    code, out, err = command(monkeypatch, capsys, "fetch", "one", *where)
    assert (code, err) == (0, "") and f"{tmp_path}/net/model.bin is there" in out
    (tmp_path / "pair").mkdir()
    (tmp_path / "pair" / "a.json").write_bytes(b"{}\n\n")
    (tmp_path / "pair" / "b.bin").write_bytes(b"12345")
    assert states(command(monkeypatch, capsys, "list", *where)[1]) == {"one": "present", "pair": "present"}
    code, out, _ = command(monkeypatch, capsys, "check", *where)
    assert code == 0 and f"{tmp_path}/net/model.bin: right" in out
    assert "a.json: no checksum is publicly known; size 4 bytes, as released" in out
    assert "b.bin: no checksum is publicly known; size 5 bytes, and the size isn't known either" in out

    (tmp_path / "net/model.bin").write_bytes(OTHER)
    (tmp_path / "pair" / "a.json").write_bytes(b"{}")
    assert states(command(monkeypatch, capsys, "list", *where)[1]) == {"one": "present", "pair": "wrong"}
    code, out, _ = command(monkeypatch, capsys, "check", *where)
    assert code == 1 and "model.bin: wrong, its sha256 is" in out and "a.json: wrong, it holds 2 bytes, but 4" in out

    code, _, err = command(monkeypatch, capsys, "fetch", "both", *where)
    assert code == 2 and err.startswith("error: ") and "--again" in err
    assert command(monkeypatch, capsys, "fetch", "one", "--again", *where)[0] == 0
    assert (tmp_path / "net/model.bin").read_bytes() == DATA
    (tmp_path / "net/model.bin").unlink()
    assert command(monkeypatch, capsys, "check", "one", *where)[:2] == (1, f"{tmp_path}/net/model.bin: missing\n")


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True,
                          timeout=60, env={**os.environ, **environment})


@pytest.mark.slow
def test_the_script_by_itself(tmp_path, shelf):
    (tmp_path / "sam_vit_b_01ec64.pth").write_bytes(b"not weights")
    listed = run("list", VTA_SAM_WEIGHTS=str(tmp_path), COLUMNS="80")
    assert listed.returncode == 0, listed.stderr
    assert all(name in listed.stdout for name in registry.ENTRIES)
    assert re.search(r"sam_vit_b .*wrong", listed.stdout) and re.search(r"sam_vit_l .*missing", listed.stdout)
    assert all(len(line) <= 80 for line in listed.stdout.splitlines())
    refused = run("fetch", "sam_vit_l", "--folder", tmp_path, HTTPS_PROXY=shelf.address)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    url = registry.ENTRIES["sam_vit_l"].files[0].url
    assert f"{url} and put it at {tmp_path}/sam_vit_l_0b3195.pth" in refused.stderr
    unknown = run("fetch", "sam")
    assert unknown.returncode == 2 and "'sam'" in unknown.stderr
    checked = run("check", "--folder", tmp_path)
    assert checked.returncode == 1 and "holds 11 bytes, but 375042383 were released" in checked.stdout


def test_listing_imports_no_torch():
    told = subprocess.run([sys.executable, "-X", "importtime", str(SCRIPT), "list"], capture_output=True, text=True,
                          timeout=60)
    assert told.returncode == 0 and "vta_sam.checkpoints.registry" in told.stderr
    assert not re.search(r"\b(torch|numpy|lightning|transformers)\b", told.stderr)


def test_random_weights_have_the_released_layout(tmp_path):
    """Every file of an entry that the table names is there but what no loader reads; a second call writes nothing."""
    from vta_sam.importers.random_weights import write_random

    for name in ("bert-base-uncased", "clip-vit-large-patch14"):
        place = write_random(name, tmp_path, narrow=True)
        assert place == registry.require(name, tmp_path)
        before = {path: path.stat().st_mtime_ns for path in place.iterdir()}
        write_random(name, tmp_path, narrow=True)
        assert before == {path: path.stat().st_mtime_ns for path in place.iterdir()}
    with pytest.raises(InputError, match="no released weights are called 'nobody'"):
        write_random("nobody", tmp_path)
