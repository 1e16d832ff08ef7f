"""Shards by URL: the same batches as from a folder, retries, and names that lead nowhere else."""

import dataclasses
import json
import os
import shutil
import ssl
import subprocess
from itertools import islice

import pytest
import torch
from shard_server import HASTE, breaks_off, cuts, garbles, serving
from tiny_data import COUNTS, SPEC, write_dataset
from weights_server import answers

from vta_sam.dataset.shards.datamodule import ShardDataModule
from vta_sam.dataset.shards.records import read_records, read_shard
from vta_sam.dataset.shards.schema import ShardInfo, read_dataset
from vta_sam.dataset.shards.storage import LocalStorage, RemoteStorage, storage_of, with_cache
from vta_sam.runtime.errors import InputError
from vta_sam.training.data_sources import ShardData

FIRST = ShardInfo("train-000000.tar", 8, 0)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_dataset(folder)
    return folder


@pytest.fixture()
def shelf(root):
    with serving(root) as shelf:
        yield shelf


def remote(shelf, **more):
    return RemoteStorage(shelf.url, retry=HASTE, **more)


def batches(root, n=6, **more):
    data = ShardDataModule(root, SPEC, 4, 0, "vae", **more)
    return [*islice(iter(data.train_dataloader()), n), *data.val_dataloader()]


def assert_same(left, right):
    assert len(left) == len(right) > 0
    for a, b in zip(left, right):
        assert a.keys == b.keys and a.captions == b.captions
        for name in ("seeds", "waveform", "frame_embedding", "probs", "object_embedding", "caption_tokens"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_batches_by_url(root, shelf, workers):
    assert_same(batches(shelf.url, workers=workers), batches(root))
    assert {"dataset.json", "train-000000.tar", "val-000000.tar"} <= set(shelf.asked)


def test_a_shard_is_fetched_once_while_it_is_in_memory(shelf):
    batches(remote(shelf))
    assert sorted(shelf.tars()) == ["train-000000.tar", "train-000001.tar", "train-000002.tar", "val-000000.tar"]


def test_a_file_url_is_a_folder(root):
    place = storage_of(root.as_uri())
    assert place == LocalStorage(root) and read_dataset(root.as_uri()) == read_dataset(root)


def test_other_protocols_go_through_fsspec(root):
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in root.iterdir():
        memory.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    try:
        assert_same(batches("memory://bucket/"), batches(root))
    finally:
        memory.rm("/bucket", recursive=True)


@pytest.mark.parametrize("manner", [answers(503), breaks_off, cuts])
def test_a_server_that_fails_is_asked_again(root, shelf, manner):
    shelf.manners.extend([manner] * (HASTE.attempts - 1))
    found = read_records(remote(shelf), FIRST)
    assert [record.key for record in found] == [record.key for record in read_shard(root / FIRST.name)]
    assert len(shelf.tars()) == HASTE.attempts


@pytest.mark.parametrize(("manner", "words"), [
    (answers(503), "503"), (breaks_off, "not completed|payload"), (cuts, "no whole tar, its end mark is missing"),
])
def test_and_given_up_in_a_sentence(shelf, manner, words):
    shelf.manners.extend([manner] * 10)
    with pytest.raises(InputError, match=rf"{shelf.url}/{FIRST.name} did not come through in 3 attempts, the last: "
                                         rf".*({words}).*give the same command again"):
        read_records(remote(shelf), FIRST)
    assert len(shelf.tars()) == HASTE.attempts


def test_pauses_grow(shelf, monkeypatch):
    pauses = []
    monkeypatch.setattr("vta_sam.dataset.shards.storage.time.sleep", pauses.append)
    shelf.manners.extend([answers(500)] * 10)
    place = RemoteStorage(shelf.url, retry=dataclasses.replace(HASTE, attempts=5, wait_s=1.0))
    with pytest.raises(InputError, match="in 5 attempts"):
        place.open(FIRST.name)
    assert pauses == [1.0, 2.0, 4.0, 8.0]


@pytest.mark.parametrize(("manner", "words"), [
    (answers(404), "doesn't exist; upload it"), (answers(403), "may not be read .*credentials"),
    (answers(410), "can't be read .*address"),
])
def test_what_lasts_is_not_asked_again(shelf, manner, words):
    shelf.manners.extend([manner] * 10)
    with pytest.raises(InputError, match=f"{shelf.url}/{FIRST.name} {words}"):
        read_records(remote(shelf), FIRST)
    assert len(shelf.tars()) == 1


@pytest.fixture
def https(root, tmp_path, monkeypatch):
    """A server of the dataset whose certificate is trusted here."""
    made = subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                           "-keyout", tmp_path / "key", "-out", tmp_path / "certificate", "-days", "2", "-subj",
                           "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"], capture_output=True)
    assert made.returncode == 0, made.stderr
    theirs, ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cafile=tmp_path / "certificate")
    theirs.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", ours)
    with serving(root, theirs) as shelf:
        yield shelf


@pytest.mark.skipif(shutil.which("openssl") is None, reason="a certificate is made by openssl")
@pytest.mark.parametrize("cached", [False, True])
def test_redirects_are_followed_but_not_away_from_https(root, shelf, https, tmp_path, cached):
    place = with_cache(remote(https), tmp_path / "cache", 1.0, "") if cached else remote(https)
    right = [record.key for record in read_shard(root / FIRST.name)]
    https.manners.append(answers(302, Location=f"{https.url}/{FIRST.name}"))
    assert [record.key for record in read_records(place, FIRST)] == right
    place.evict(FIRST.name)
    https.asked.clear()
    https.manners.append(answers(307, Location=f"{shelf.url}/{FIRST.name}"))
    with pytest.raises(InputError, match=f"{https.url}/{FIRST.name} leads to {shelf.url}/{FIRST.name}, which is not "
                                         "https, and was not followed"):
        read_records(place, FIRST)
    assert len(https.asked) == 1 and not shelf.asked, "it isn't asked again, nor elsewhere"
    for read in (lambda: remote(https).read_text(FIRST.name), lambda: remote(https).read(FIRST.name, 512, 512)):
        https.manners.append(answers(302, Location=f"{shelf.url}/dataset.json"))
        with pytest.raises(InputError, match=f"leads to {shelf.url}/dataset.json, which is not https"):
            read()
    assert not shelf.asked
    shelf.manners.append(answers(302, Location=f"{https.url}/{FIRST.name}"))
    assert [record.key for record in read_records(remote(shelf), FIRST)] == right, "towards https it is"


def test_damage_within_a_whole_tar_is_an_error_that_names_the_url(shelf):
    shelf.manners.append(garbles)
    with pytest.raises(InputError, match=f"{shelf.url}/{FIRST.name}: clip 'train-0': its flac member can't be read"):
        read_records(remote(shelf), FIRST)


def test_a_server_that_is_not_there():
    place = RemoteStorage("http://127.0.0.1:9/data", retry=HASTE)
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:9/data/dataset\.json did not come through in 3"):
        read_dataset(place)


@pytest.mark.parametrize(("url", "words"), [
    ("s3://bucket/data", r"pip install s3fs"), ("sftp://host/data", r"pip install 'fsspec\[sftp\]'"),
    ("nonsense://data", "Protocol not known: nonsense"), ("pipe://touch x", "Protocol not known: pipe"),
    ("https://host/data?signature=1", "has a \\? or # in it"),
])
def test_a_url_that_cannot_be_read(url, words):
    package = {"s3": "s3fs", "sftp": "paramiko"}.get(url.partition(":")[0])
    if package:
        try:
            __import__(package)
        except ImportError:
            pass
        else:
            pytest.skip(f"{package} is installed")
    with pytest.raises(InputError, match=words):
        read_dataset(url)


HOSTILE = ["pipe:touch x", "touch x |", "../x.tar", "..", "/etc/passwd", "http://127.0.0.1:1/x.tar", "file:x.tar",
           "folder/x.tar", "folder\\x.tar", "C:x.tar", "", "-rf", ".hidden", "x.tar?y", "x.tar#y", "x%2Fy", "x\0y", 7,
           ["x"]]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("by_url", [False, True])
def test_hostile_names_are_refused_and_run_nothing(root, tmp_path, monkeypatch, name, by_url):
    def never(*arguments, **more):
        raise AssertionError(f"something was run: {arguments}")

    for place in ("subprocess.Popen", "os.system", "os.popen"):
        monkeypatch.setattr(place, never)
    folder, outside = tmp_path / "shards", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    monkeypatch.chdir(outside)
    (tmp_path / "x.tar").write_bytes((root / FIRST.name).read_bytes())
    content = json.loads((root / "dataset.json").read_text())
    content["splits"] = {"train": [{"name": name, "records": 8, "failed": 0}]}
    (folder / "dataset.json").write_text(json.dumps(content))
    with serving(folder) as shelf:
        with pytest.raises(InputError, match="names the shard .* which is no plain file name, and was not opened"):
            batches(shelf.url if by_url else folder)
        assert shelf.asked == (["dataset.json"] if by_url else [])
    assert os.listdir(outside) == []


def test_a_folder_whose_name_looks_like_a_command_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="pipe:touch x/dataset.json doesn't exist"):
        read_dataset("pipe:touch x")
    assert os.listdir(tmp_path) == []


def test_a_source_by_url_says_where_its_latents_go(shelf, tmp_path):
    source = ShardData(shelf.url)
    assert source.describe() == f"{shelf.url}: 4 test, {COUNTS['train']} train, 4 val clips at 12.5 fps"
    with pytest.raises(InputError, match=f"{shelf.url} need a local folder to live in; name one with data.latents="):
        storage_of(shelf.url).latents_parent
    assert storage_of(shelf.url, tmp_path).latents_parent == tmp_path
