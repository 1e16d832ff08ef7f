"""Fetching released weights: resumed, checked, and named only when whole and right."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from weights_server import (
    DATA, HASTE, OTHER, Handler, Shelf, answers, breaks_off, fetch, hangs, ignores_range, lying, serve
)

from vta_sam.checkpoints.download import Part
from vta_sam.checkpoints.registry import ReleasedFile
from vta_sam.runtime.errors import InputError


def test_a_file_comes_whole_and_only_then_has_its_name(tmp_path, shelf):
    seen = []

    def progress(done, total):
        assert lying(tmp_path) <= {"net/.model.bin.part", "net/.model.bin.part.json", "net/.model.bin.lock"}
        seen.append((done, total))

    assert fetch(shelf.file(), tmp_path, progress=progress) is True
    assert (tmp_path / "net/model.bin").read_bytes() == DATA
    assert lying(tmp_path) == {"net/model.bin"}
    assert seen == sorted(seen) and seen[-1] == (len(DATA), len(DATA))
    assert fetch(shelf.file(), tmp_path) is False and fetch(shelf.file(), tmp_path, again=True) is False
    assert shelf.ranges() == [None], "what is there and right was fetched again"


def test_a_broken_line_is_taken_up_where_it_broke(tmp_path, shelf):
    shelf.manners += [breaks_off(150_000), breaks_off(100_000)]
    said = []
    fetch(shelf.file(), tmp_path, say=said.append)
    assert (tmp_path / "net/model.bin").read_bytes() == DATA
    first, second, third = shelf.ranges()
    assert first is None and "If-Range" not in shelf.asked[0]
    begins = [int(words[len("bytes="):-1]) for words in (second, third)]
    assert 150_000 - 65_536 <= begins[0] <= 150_000 < begins[1] <= 250_000
    assert [headers["If-Range"] for headers in shelf.asked[1:]] == ['"first"'] * 2
    assert said == ["model.bin: the line broke; going on in 0.01 s", "model.bin: the line broke; going on in 0.02 s"]


def test_what_came_is_kept_for_the_next_run(tmp_path, shelf):
    shelf.manners += [breaks_off(150_000)]
    with pytest.raises(InputError, match="1 times in a row .the line broke.; 1[3-5]\\d{4} bytes of it are kept"):
        fetch(shelf.file(), tmp_path, retry=dataclasses.replace(HASTE, attempts=1))
    kept = (tmp_path / "net/.model.bin.part").read_bytes()
    assert len(kept) >= 150_000 - 65_536 and DATA.startswith(kept)
    fetch(shelf.file(), tmp_path)
    assert shelf.ranges() == [None, f"bytes={len(kept)}-"]
    assert (tmp_path / "net/model.bin").read_bytes() == DATA and lying(tmp_path) == {"net/model.bin"}


def test_attempts_are_bounded(tmp_path, shelf):
    shelf.manners += [answers(503)] * 10
    with pytest.raises(InputError, match="3 times in a row .answered 503 Service Unavailable"):
        fetch(shelf.file(), tmp_path)
    assert len(shelf.asked) == 3


def test_a_hanging_server_is_left_and_asked_again(tmp_path, shelf):
    shelf.manners += [hangs]
    said = []
    fetch(shelf.file(), tmp_path, say=said.append)
    assert len(said) == 1 and "nothing came for too long" in said[0]
    assert (tmp_path / "net/model.bin").read_bytes() == DATA
    assert re.fullmatch(r"bytes=1[3-9]\d{4}-|bytes=200000-", shelf.ranges()[1])


def stop_midway(shelf: Shelf, folder: Path, file: ReleasedFile) -> int:
    """⇒ bytes kept."""
    shelf.manners.append(breaks_off(150_000))
    with pytest.raises(InputError, match="the line broke"):
        fetch(file, folder, retry=dataclasses.replace(HASTE, attempts=1))
    return Part.beside(folder / file.path).size


@pytest.mark.parametrize("manner", [
    serve, lambda handler, shelf: serve(handler, shelf, heeds_if_range=False),
], ids=["heeds If-Range", "doesn't"])
def test_another_version_is_never_joined_to_the_first(tmp_path, shelf, manner):
    file = shelf.file(sha256=None)  # no checksum would notice
    stop_midway(shelf, tmp_path, file)
    shelf.data, shelf.etag = OTHER, '"second"'
    shelf.manners.append(manner)
    fetch(file, tmp_path)
    assert (tmp_path / "net/model.bin").read_bytes() == OTHER
    assert shelf.asked[1]["If-Range"] == '"first"'


def test_a_part_of_unknown_version_or_address_is_not_joined(tmp_path, shelf):
    kept = stop_midway(shelf, tmp_path, shelf.file())
    fetch(shelf.file(url=f"{shelf.address}/moved.bin"), tmp_path)
    assert kept and shelf.ranges() == [None, None]

    shelf.asked.clear()
    shelf.etag = ""
    nameless = shelf.file(path="nameless.bin", sha256=None)
    stop_midway(shelf, tmp_path, nameless)
    fetch(nameless, tmp_path)
    assert shelf.ranges() == [None, None]


def test_a_server_that_ignores_ranges_starts_again(tmp_path, shelf):
    stop_midway(shelf, tmp_path, shelf.file())
    shelf.manners.append(ignores_range)
    fetch(shelf.file(), tmp_path)
    assert (tmp_path / "net/model.bin").read_bytes() == DATA


@pytest.mark.parametrize("stretch", ["bytes 0-399999/400000", "bytes 7-399999/400000", "nonsense", ""])
def test_a_stretch_that_was_not_asked_for_is_not_joined(tmp_path, shelf, stretch):
    stop_midway(shelf, tmp_path, shelf.file())
    shelf.manners.append(answers(206, Content_Range=stretch, ETag=shelf.etag))
    fetch(shelf.file(), tmp_path)
    assert (tmp_path / "net/model.bin").read_bytes() == DATA
    assert shelf.ranges()[-1] is None


def test_a_wrong_file_is_deleted_and_said(tmp_path, shelf):
    shelf.data = OTHER
    with pytest.raises(InputError) as refused:
        fetch(shelf.file(), tmp_path)
    assert hashlib.sha256(DATA).hexdigest() in str(refused.value)
    assert hashlib.sha256(OTHER).hexdigest() in str(refused.value)
    assert lying(tmp_path) == set()


def sends_without_end(handler: Handler, shelf: Shelf) -> None:
    handler.begin(200)
    try:
        for _ in range(200):  # 80 MB
            handler.wfile.write(shelf.data)
        shelf.heard_out = True
    except OSError:
        pass  # the other side has heard enough


@pytest.mark.parametrize(("manner", "words"), [
    (lambda handler, shelf: handler.begin(200, Content_Length=10**12), "offers 1000000000000 bytes.*has 400000"),
    (answers(200), "offers 5 bytes.*has 400000"),
    (sends_without_end, "more than the 400000 bytes"),
    (answers(200, Content_Type="text/html; charset=utf-8"), "a web page in place of the file"),
    (answers(200, Content_Encoding="gzip"), "packed \\(gzip\\)"),
    (answers(404), "answered 404 Not Found"),
    (answers(403), "answered 403 Forbidden"),
], ids=["too long", "too short", "endless", "page", "packed", "absent", "forbidden"])
def test_what_cannot_become_the_file_is_refused_at_once(tmp_path, shelf, manner, words):
    shelf.manners += [manner] * 5
    with pytest.raises(InputError, match=words) as refused:
        fetch(shelf.file(), tmp_path)
    assert f"put it at {tmp_path}/net/model.bin" in str(refused.value)
    assert lying(tmp_path) == set() and len(shelf.asked) == 1 and not shelf.heard_out


def test_a_page_of_a_login_does_not_cost_what_has_come(tmp_path, shelf):
    kept = stop_midway(shelf, tmp_path, shelf.file())
    shelf.manners.append(answers(200, Content_Type="text/html"))
    with pytest.raises(InputError, match="web page"):
        fetch(shelf.file(), tmp_path)
    fetch(shelf.file(), tmp_path)
    assert shelf.ranges()[-1] == f"bytes={kept}-"


def test_unknown_size_and_checksum(tmp_path, shelf):
    file = shelf.file(size_bytes=None, sha256=None)
    shelf.manners += [sends_without_end]
    with pytest.raises(InputError, match="doesn't say how long"):
        fetch(file, tmp_path)
    fetch(file, tmp_path)
    assert (tmp_path / "net/model.bin").read_bytes() == DATA
    assert fetch(file, tmp_path) is False
    shelf.data = OTHER
    assert fetch(file, tmp_path, again=True) is True, "nobody can tell, so again means again"
    assert (tmp_path / "net/model.bin").read_bytes() == OTHER


def test_redirects_are_followed_but_not_away_from_https(tmp_path, shelf):
    there = answers(302, Location=f"{shelf.address}/elsewhere.bin")
    shelf.manners += [there, breaks_off(150_000), there]
    fetch(shelf.file(), tmp_path)
    assert (tmp_path / "net/model.bin").read_bytes() == DATA
    assert shelf.ranges()[3] == shelf.ranges()[2] != shelf.ranges()[1] is None, "the range is lost on the way"
    shelf.manners += [answers(302, Location="http://example.org/model.bin")]
    with pytest.raises(InputError, match="leads to http://example.org/model.bin, which is not https"):
        fetch(shelf.file(path="b.bin"), tmp_path)
    with pytest.raises(InputError, match="not https"):
        fetch(shelf.file(path="b.bin", url="http://example.org/b.bin"), tmp_path)


def test_a_wrong_file_that_lies_there_is_replaced_only_on_demand(tmp_path, shelf):
    path = tmp_path / "net" / "model.bin"
    path.parent.mkdir()
    path.write_bytes(OTHER)
    with pytest.raises(InputError, match="is not what was released: its sha256 is .*--again"):
        fetch(shelf.file(), tmp_path)
    assert path.read_bytes() == OTHER and shelf.asked == []
    shelf.manners.append(answers(404))
    with pytest.raises(InputError, match="404"):
        fetch(shelf.file(), tmp_path, again=True)
    assert path.read_bytes() == OTHER, "the old file is gone before the new one has come"
    fetch(shelf.file(), tmp_path, again=True)
    assert path.read_bytes() == DATA


def test_a_folder_that_can_only_be_read_will_do_for_what_lies_there(tmp_path, shelf, monkeypatch):
    fetch(shelf.file(), tmp_path)

    def forbidden(*arguments, **options):
        raise PermissionError(13, "Permission denied", "lock")

    monkeypatch.setattr("os.open", forbidden)
    assert fetch(shelf.file(), tmp_path) is False
    with pytest.raises(InputError, match="lock can't be read or written .Permission denied.; --folder"):
        fetch(shelf.file(path="net/other.bin"), tmp_path)


def assert_offline_sentence(error: InputError, file: ReleasedFile, folder: Path) -> None:
    assert "can't be reached" in str(error) and f"fetch {file.url} " in str(error)
    assert str(error).endswith(f"put it at {folder.resolve()}/{file.path}")


def test_without_a_network_a_sentence_says_what_to_put_where(tmp_path, shelf, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and doesn't listen
        nowhere = shelf.file(url=f"http://127.0.0.1:{nobody.getsockname()[1]}/model.bin")
        with pytest.raises(InputError, match="Connection refused") as refused:
            fetch(nowhere, Path("weights"))
    assert_offline_sentence(refused.value, nowhere, tmp_path / "weights")

    nameless = shelf.file(url="https://weights.invalid/model.bin")
    with pytest.raises(InputError, match="weights.invalid can't be reached") as refused:
        fetch(nameless, Path("weights"))
    assert_offline_sentence(refused.value, nameless, tmp_path / "weights")

    monkeypatch.setenv("HTTPS_PROXY", shelf.address)
    with pytest.raises(InputError, match="403 Forbidden by the proxy") as refused:
        fetch(nameless, Path("weights"))
    assert_offline_sentence(refused.value, nameless, tmp_path / "weights")


def test_a_full_disk_is_a_sentence(tmp_path, shelf, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
        with pytest.raises(InputError, match=f"the disk of {tmp_path}/net is full: model.bin takes 400 kB"):
            fetch(shelf.file(), tmp_path)
    if Path("/dev/full").exists():
        with monkeypatch.context() as patch:
            patch.setattr(Part, "begin", lambda self, url, version: open("/dev/full", "wb", buffering=0))
            with pytest.raises(InputError, match="is full"):
                fetch(shelf.file(), tmp_path)
    fetch(shelf.file(), tmp_path)
    assert (tmp_path / "net/model.bin").read_bytes() == DATA


def test_a_folder_that_is_a_file_is_a_sentence(tmp_path, shelf):
    (tmp_path / "net").write_text("not a folder")
    with pytest.raises(InputError, match="net can't be read or written"):
        fetch(shelf.file(), tmp_path)


FETCHER = """
import sys
from vta_sam.checkpoints.download import fetch_file
from vta_sam.checkpoints.registry import ReleasedFile
from pathlib import Path
path, url, size, sha256, folder = sys.argv[1:]
print(fetch_file(ReleasedFile(path, url, int(size), sha256), Path(folder), say=lambda words: print(words, flush=True)))
"""


def start_fetcher(file: ReleasedFile, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FETCHER, file.path, file.url, str(file.size_bytes), str(file.sha256), str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_at_once_fetch_once(tmp_path, shelf):
    begun, go_on = threading.Event(), threading.Event()

    def holds(handler, shelf):
        begun.set()
        go_on.wait(30)
        serve(handler, shelf)

    shelf.manners.append(holds)
    first = start_fetcher(shelf.file(), tmp_path)
    assert begun.wait(30), "the first process asked for nothing"
    second = start_fetcher(shelf.file(), tmp_path)
    assert second.stdout is not None and "another process is fetching it" in second.stdout.readline()
    go_on.set()
    told = [process.communicate(timeout=30) for process in (first, second)]
    assert [out.strip() for out, _ in told] == ["True", "False"], told
    assert len(shelf.asked) == 1
    assert (tmp_path / "net/model.bin").read_bytes() == DATA and lying(tmp_path) == {"net/model.bin"}


def test_a_kill_leaves_no_lock_and_loses_nothing(tmp_path, shelf):
    def hangs_long(handler, shelf):
        handler.begin(200, Content_Length=len(shelf.data), ETag=shelf.etag)
        handler.wfile.write(shelf.data[:300_000])
        handler.wfile.flush()
        threading.Event().wait(30)

    shelf.manners.append(hangs_long)
    process = start_fetcher(shelf.file(), tmp_path)
    part = Part.beside(tmp_path / "net/model.bin")
    for _ in range(600):
        if part.size >= 200_000:
            break
        threading.Event().wait(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    kept = part.size
    assert kept >= 200_000, "nothing had come before the kill"
    fetch(shelf.file(), tmp_path)
    assert shelf.ranges() == [None, f"bytes={kept}-"]
    assert (tmp_path / "net/model.bin").read_bytes() == DATA and lying(tmp_path) == {"net/model.bin"}


# the command
