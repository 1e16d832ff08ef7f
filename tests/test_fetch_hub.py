"""Released files that lie on the Hugging Face hub come by its own library: mirrors, cache, tokens and offline work."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest
from weights_server import DATA, HASTE, REPOSITORY, Shelf, breaks_off, fetch, lying

from vta_sam.checkpoints.registry import ENTRIES, HubFile, ReleasedFile
from vta_sam.runtime.errors import InputError

HUB = HubFile("lab/net", "c" * 40, "sub/model.bin")


@pytest.fixture
def hub(shelf, monkeypatch, tmp_path) -> Shelf:
    monkeypatch.setenv("HF_ENDPOINT", shelf.address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_ETAG_TIMEOUT", 2)
    return shelf


def released(shelf: Shelf, **changes: object) -> ReleasedFile:
    return shelf.file(url=HUB.url, hub=HUB, **changes)


def test_it_is_asked_of_the_mirror_and_leaves_nothing_beside(tmp_path, hub):
    assert fetch(released(hub), tmp_path) is True
    assert (tmp_path / "net/model.bin").read_bytes() == DATA and lying(tmp_path) == {"net/model.bin"}
    assert hub.asked[0]["path"] == f"/lab/net/resolve/{'c' * 40}/sub/model.bin"
    asked = len(hub.asked)
    assert fetch(released(hub), tmp_path) is False and len(hub.asked) == asked


def test_a_token_goes_along(tmp_path, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_mine")
    fetch(released(hub), tmp_path)
    assert hub.asked[0]["authorization"] == "Bearer hf_of_mine"


def test_what_the_hubs_cache_holds_is_not_fetched_unless_it_is_wrong(tmp_path, hub):
    cached = tmp_path / "cache/models--lab--net/snapshots" / ("c" * 40) / "sub/model.bin"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(DATA)
    assert fetch(released(hub), tmp_path) and hub.asked == []
    assert (tmp_path / "net/model.bin").read_bytes() == DATA and cached.read_bytes() == DATA

    cached.write_bytes(DATA[:-1])
    assert fetch(released(hub, path="other.bin"), tmp_path / "second")
    assert (tmp_path / "second/other.bin").read_bytes() == DATA


def test_what_came_is_kept_for_the_next_run(tmp_path, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 50_000)
    hub.manners += [breaks_off(150_000)]
    with pytest.raises(InputError, match=r"1 times in a row .*; 1\d{5} bytes of it are kept"):
        fetch(released(hub), tmp_path, retry=dataclasses.replace(HASTE, attempts=1))
    assert not (tmp_path / "net/model.bin").exists()
    fetch(released(hub), tmp_path)
    assert (tmp_path / "net/model.bin").read_bytes() == DATA and lying(tmp_path) == {"net/model.bin"}
    assert "Range" in hub.asked[-1], "the second run began at the first byte"


@pytest.mark.parametrize("code, headers, words", [
    (401, {"X_Error_Code": "GatedRepo"}, "is gated; accept its terms at https://huggingface.co/lab/net and set HF_TO"),
    (401, {"X_Error_Code": "RepoNotFound"}, "lab/net is gone, or wants a token in HF_TOKEN"),
    (404, {"X_Error_Code": "EntryNotFound"}, "answered 404"),
    (404, {"X_Error_Code": "RevisionNotFound"}, "answered 404"),
    (200, {}, "answered by something that is not the hub"),
    (429, {"X_Repo_Commit": "c" * 40}, "3 times in a row .answered 429"),
])
def test_what_the_hub_refuses_is_a_sentence(tmp_path, hub, code, headers, words):
    hub.heads += [(code, headers)] * 5
    with pytest.raises(InputError, match=words) as caught:
        fetch(released(hub), tmp_path)
    assert HUB.url in str(caught.value) and lying(tmp_path) == set()


def test_another_file_than_released_is_deleted(tmp_path, hub):
    hub.data = DATA[::-1]
    with pytest.raises(InputError, match="its sha256 is .*; it was deleted"):
        fetch(released(hub), tmp_path)
    assert lying(tmp_path) == set()


@pytest.mark.parametrize("variables, words", [
    ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set, and the hub's cache doesn't hold it"),
    ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "127.0.0.1 can't be reached"),
])
def test_offline_the_sentence_says_what_to_put_where(tmp_path, variables, words):
    """The library reads its variables when it is imported, hence a process of its own."""
    script = (f"import sys, time; sys.path[:0] = [{str(REPOSITORY)!r}]\n"
              "time.sleep = lambda seconds: None\n"  # the library waits 23 s between its attempts
              "from pathlib import Path\n"
              "from vta_sam.checkpoints.download import fetch_file\nfrom vta_sam.checkpoints.registry import ENTRIES\n"
              "fetch_file(ENTRIES['bert-base-uncased'].files[0], Path('weights'))")
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=100,
                          env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "no_proxy": "127.0.0.1", **variables})
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and words in last, done.stderr
    assert ENTRIES["bert-base-uncased"].files[0].url in last and str(tmp_path / "weights/bert-base-uncased") in last
