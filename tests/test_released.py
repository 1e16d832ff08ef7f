"""Released weights: the table, where they lie, and fetching them over a line that may do anything."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
import re
import runpy
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Callable, Iterator

import pytest

from vta_sam.errors import InputError
from vta_sam.released import registry
from vta_sam.released.fetch import Patience, fetch_file
from vta_sam.released.part import Part
from vta_sam.released.registry import Entry, ReleasedFile, require

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPT = REPOSITORY / "data_prep" / "weights.py"
HASTE = Patience(connect_s=5.0, read_s=0.5, attempts=3, wait_s=0.01)
DATA = random.Random(0).randbytes(400_000)
OTHER = random.Random(1).randbytes(400_000)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        shelf = self.server.shelf
        shelf.asked.append(dict(self.headers))
        manner = shelf.manners.popleft() if shelf.manners else serve
        manner(self, shelf)

    def do_CONNECT(self):
        self.send_error(403, "Forbidden by the proxy")

    def begin(self, code: int, **headers: object) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def log_message(self, *arguments):
        pass


class Shelf:
    """A server of one file; ``manners`` are how it answers the next requests, after them it behaves."""

    def __init__(self, server: ThreadingHTTPServer):
        self.data, self.etag = DATA, '"first"'
        self.asked: list[dict[str, str]] = []
        self.heard_out = False
        self.manners: deque[Callable[[Handler, Shelf], None]] = deque()
        self.address = f"http://127.0.0.1:{server.server_address[1]}"

    def file(self, **changes: object) -> ReleasedFile:
        right = ReleasedFile("net/model.bin", f"{self.address}/model.bin", len(DATA), hashlib.sha256(DATA).hexdigest())
        return dataclasses.replace(right, **changes)

    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for headers in self.asked]


def serve(handler: Handler, shelf: Shelf, broken_after: int | None = None, heeds_if_range: bool = True) -> None:
    """As a good server does; or it breaks off after so many bytes of the body."""
    begin = int(handler.headers.get("Range", "bytes=0-")[6:-1])
    if heeds_if_range and handler.headers.get("If-Range", shelf.etag) != shelf.etag:
        begin = 0
    body, size = shelf.data[begin:], len(shelf.data)
    if begin:
        handler.begin(206, Content_Length=len(body), ETag=shelf.etag, Content_Range=f"bytes {begin}-{size - 1}/{size}")
    else:
        handler.begin(200, Content_Length=size, ETag=shelf.etag)
    handler.wfile.write(body[:broken_after])


def breaks_off(after: int) -> Callable[[Handler, Shelf], None]:
    return lambda handler, shelf: serve(handler, shelf, broken_after=after)


def ignores_range(handler: Handler, shelf: Shelf) -> None:
    handler.begin(200, Content_Length=len(shelf.data), ETag=shelf.etag)
    handler.wfile.write(shelf.data)


def hangs(handler: Handler, shelf: Shelf) -> None:
    handler.begin(200, Content_Length=len(shelf.data), ETag=shelf.etag)
    handler.wfile.write(shelf.data[:200_000])
    handler.wfile.flush()
    threading.Event().wait(3)


def answers(code: int, **headers: object) -> Callable[[Handler, Shelf], None]:
    def manner(handler: Handler, shelf: Shelf) -> None:
        handler.begin(code, **{"Content_Length": 5, **headers})
        handler.wfile.write(b"sorry")

    return manner


@pytest.fixture
def shelf(monkeypatch) -> Iterator[Shelf]:
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.shelf = Shelf(server)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server.shelf
    server.shutdown()
    server.server_close()


def fetch(file: ReleasedFile, folder: Path, **options) -> bool:
    return fetch_file(file, folder, patience=options.pop("patience", HASTE), **options)


def lying(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# the table

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

@pytest.fixture
def small(monkeypatch, shelf) -> Shelf:
    """A table of two small entries: one file, and a folder of two."""
    two = (ReleasedFile("pair/a.json", f"{shelf.address}/a.json", 4), ReleasedFile("pair/b.bin", f"{shelf.address}/b"))
    entries = (Entry("one", "The one", "tests", "MIT", "https://example.org/one", (shelf.file(),)),
               Entry("pair", "The pair", "tests", "MIT", "https://example.org/pair", two))
    monkeypatch.setattr(registry, "ENTRIES", {entry.name: entry for entry in entries})
    monkeypatch.setattr(registry, "GROUPS", {"both": ("one", "pair")})
    return shelf


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
        fetch(shelf.file(), tmp_path, patience=dataclasses.replace(HASTE, attempts=1))
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
        fetch(file, folder, patience=dataclasses.replace(HASTE, attempts=1))
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
from vta_sam.released.fetch import fetch_file
from vta_sam.released.registry import ReleasedFile
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
    assert told.returncode == 0 and "vta_sam.released.registry" in told.stderr
    assert not re.search(r"\b(torch|numpy|lightning|transformers)\b", told.stderr)


def test_random_weights_have_the_released_layout(tmp_path):
    """Every file of an entry that the table names is there but what no loader reads; a second call writes nothing."""
    from vta_sam.released.random_weights import write_random

    for name in ("bert-base-uncased", "clip-vit-large-patch14"):
        place = write_random(name, tmp_path, narrow=True)
        assert place == registry.require(name, tmp_path)
        before = {path: path.stat().st_mtime_ns for path in place.iterdir()}
        write_random(name, tmp_path, narrow=True)
        assert before == {path: path.stat().st_mtime_ns for path in place.iterdir()}
    with pytest.raises(InputError, match="no released weights are called 'nobody'"):
        write_random("nobody", tmp_path)
