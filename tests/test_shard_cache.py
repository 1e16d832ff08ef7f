"""The cache of fetched shards: whole files only, bounded, shared by processes, healed when damaged."""

import dataclasses
import multiprocessing
import os
import time

import pytest
from shard_server import HASTE, breaks_off, cuts, damaged, garbles, serving
from test_remote import assert_same, batches
from tiny_data import write_dataset

from vta_sam.dataset.shards.records import read_records
from vta_sam.dataset.shards.schema import ShardInfo
from vta_sam.dataset.shards.storage import LocalStorage, RemoteStorage, storage_of, with_cache
from vta_sam.runtime.errors import InputError
from vta_sam.training.data_sources import ShardData

NAMES = [f"train-{i:06d}.tar" for i in range(4)]
SHARDS = [ShardInfo(name, 2, 0) for name in NAMES]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_dataset(folder, {"train": 8, "val": 2}, shard_records=2)
    return folder


@pytest.fixture()
def shelf(root):
    with serving(root) as shelf:
        yield shelf


def cached(shelf, folder, limit_gb=1.0):
    return with_cache(RemoteStorage(shelf.url, retry=HASTE), folder, limit_gb, "a dataset")


def kept(folder):
    """Names of all files but the empty ones that were locked."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.name for path in files if not (path.suffix == ".lock" and not path.stat().st_size))


def size_of(root, *names):
    return sum((root / name).stat().st_size for name in names)


def keys(place, shard):
    return [record.key for record in read_records(place, shard)]


def test_a_cached_dataset_is_fetched_once(root, shelf, tmp_path):
    for _ in range(2):
        assert_same(batches(cached(shelf, tmp_path)), batches(root))
    assert sorted(shelf.tars()) == [*NAMES, "val-000000.tar"]
    assert kept(tmp_path) == [*NAMES, "val-000000.tar"], "no part stays behind"
    [copy] = tmp_path.glob("*/train-000002.tar")
    assert copy.read_bytes() == (root / copy.name).read_bytes()


@pytest.mark.parametrize("manner", [breaks_off, cuts])
def test_what_is_not_whole_does_not_land(root, shelf, tmp_path, manner):
    shelf.manners.extend([manner] * HASTE.attempts)
    with pytest.raises(InputError, match=f"{shelf.url}/{NAMES[0]} did not come through in 3 attempts"):
        read_records(cached(shelf, tmp_path), SHARDS[0])
    assert kept(tmp_path) == []
    assert keys(cached(shelf, tmp_path), SHARDS[0]) == ["train-0", "train-1"] and kept(tmp_path) == NAMES[:1]


def test_a_missing_shard_is_said_to_be_missing_and_not_the_cache(shelf, tmp_path):
    with pytest.raises(InputError, match=f"^{shelf.url}/train-9.tar doesn't exist"):
        read_records(cached(shelf, tmp_path), ShardInfo("train-9.tar", 2, 0))
    assert kept(tmp_path) == []


def test_the_least_recently_used_goes_first(root, shelf, tmp_path):
    place = cached(shelf, tmp_path, (size_of(root, *NAMES) - 1) / 1e9)
    for i in (0, 1, 2, 0):  # 1 is now the one that wasn't used for longest
        read_records(place, SHARDS[i])
        time.sleep(0.005)
    read_records(place, SHARDS[3])
    assert kept(tmp_path) == [NAMES[0], NAMES[2], NAMES[3]]
    assert shelf.tars() == NAMES
    read_records(place, SHARDS[1])
    assert kept(tmp_path) == [NAMES[0], NAMES[1], NAMES[3]]


def test_another_version_of_the_dataset_is_not_taken_for_it_and_shares_the_bound(root, shelf, tmp_path):
    limit_gb = (size_of(root, *NAMES[:2]) + 512) / 1e9
    old = with_cache(RemoteStorage(shelf.url, retry=HASTE), tmp_path, limit_gb, "of before")
    new = with_cache(RemoteStorage(shelf.url, retry=HASTE), tmp_path, limit_gb, "of today")
    for place in (old, new, new):
        read_records(place, SHARDS[0])
    assert shelf.tars() == [NAMES[0]] * 2 and kept(tmp_path) == [NAMES[0]] * 2
    read_records(new, SHARDS[1])
    assert [path.parent.name for path in tmp_path.glob("*/*.tar")] == [f"dataset-{new.cache.dataset}"] * 2


def test_nothing_else_in_the_folder_is_removed(root, shelf, tmp_path):
    (tmp_path / "mine").mkdir()
    for other in (tmp_path / "mine" / "thesis.tar", tmp_path / "thesis.tar"):
        other.write_bytes(bytes(10_000))
    place = cached(shelf, tmp_path, max(size_of(root, name) for name in NAMES) / 1e9)
    for shard in SHARDS:
        read_records(place, shard)
    assert kept(tmp_path) == ["thesis.tar", "thesis.tar", NAMES[3]]


def test_what_a_kill_left_behind_goes(shelf, tmp_path):
    place = cached(shelf, tmp_path)
    read_records(place, SHARDS[0])
    [folder] = tmp_path.glob("dataset-*")
    old, young = folder / ".train-000001.0123abcd.partial.tar", folder / ".train-000002.0123abcd.partial.tar"
    for part in (old, young):
        part.write_bytes(b"part")
    os.utime(old, (time.time() - 7200,) * 2)
    read_records(place, SHARDS[3])
    assert not old.exists() and young.exists(), "another process may be writing the young one"


@pytest.mark.parametrize("damage", [damaged, lambda data: data[:len(data) // 1024 * 512], lambda data: b"",
                                    lambda data: bytes(len(data))])
def test_a_damaged_copy_is_fetched_again(root, shelf, tmp_path, damage):
    place = cached(shelf, tmp_path)
    read_records(place, SHARDS[0])
    [copy] = tmp_path.glob(f"*/{NAMES[0]}")
    copy.write_bytes(damage(copy.read_bytes()))
    assert keys(place, SHARDS[0]) == ["train-0", "train-1"]
    assert copy.read_bytes() == (root / NAMES[0]).read_bytes() and shelf.tars() == [NAMES[0]] * 2


def test_but_only_once(shelf, tmp_path):
    shelf.manners.extend([garbles] * 10)
    with pytest.raises(InputError, match=f"{shelf.url}/{NAMES[0]}: clip 'train-0': its flac member can't be read"):
        read_records(cached(shelf, tmp_path), SHARDS[0])
    assert len(shelf.tars()) == 2


def test_a_shard_that_does_not_fit_is_refused(root, shelf, tmp_path):
    with pytest.raises(InputError, match=f"{NAMES[0]} has .* GB, more than all of the cache.*raise data.cache_gb"):
        read_records(cached(shelf, tmp_path, (size_of(root, NAMES[0]) - 1) / 1e9), SHARDS[0])
    assert kept(tmp_path) == []
    with pytest.raises(InputError, match="data.cache_gb=0 is not more than 0"):
        cached(shelf, tmp_path, 0)


def test_a_folder_that_is_none_is_named(shelf, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="the cache .*/file can't be used"):
        read_records(cached(shelf, tmp_path / "file"), SHARDS[0])


def _read_all(place, rounds, found):
    found.put([key for _ in range(rounds) for shard in SHARDS for key in keys(place, shard)])


@pytest.mark.parametrize(("room", "fetched"), [(4, 4), (2, None)])
def test_two_processes_share_it(root, shelf, tmp_path, room, fetched):
    """With room for all, each file comes once. Without, each process still reads what it asked for while the other
    removes files, and the bound holds."""
    limit = size_of(root, *NAMES[:room]) + 512
    context = multiprocessing.get_context("fork")
    found = context.Queue()
    processes = [context.Process(target=_read_all, args=(cached(shelf, tmp_path, limit / 1e9), 5, found))
                 for _ in range(2)]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes) and found.qsize() < 2:
        assert sum(map(_size_of_what_is_there, tmp_path.glob("*/[!.]*"))) <= limit
        time.sleep(0.002)
    assert [found.get(timeout=10) for _ in processes] == [[f"train-{i}" for i in range(8)] * 5] * 2
    for process in processes:
        process.join()
    assert fetched is None or len(shelf.tars()) == fetched
    assert set(kept(tmp_path)) <= set(NAMES) and sum(map(lambda n: size_of(root, n), kept(tmp_path))) <= limit


def _size_of_what_is_there(path):
    """0 of a file that the other process has removed since it was listed."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def test_the_config_keys_make_the_place(tmp_path):
    root = tmp_path / "shards"
    info = dataclasses.replace(write_dataset(root, {"train": 1}), grounder="tiny-1", encoder="clip-2")
    info.write(root)
    extractors = {"_target_": "tiny_grounder"}, {"_target_": "clip"}
    keys = {"latents": f"{tmp_path}/latents", "cache": f"{tmp_path}/cache", "cache_gb": 2.5}
    with serving(root) as shelf:
        place = ShardData(shelf.url, **keys).prepare(None, *extractors, None)
        bare = storage_of(shelf.url, tmp_path / "latents")
        assert place == with_cache(bare, tmp_path / "cache", 2.5, info.fingerprint)
        assert place.cache.limit_bytes == 2_500_000_000 and place.latents_parent == tmp_path / "latents"
        other = dataclasses.replace(info, code_version="another")
        other.write(root)
        assert ShardData(shelf.url, **keys).prepare(None, *extractors, None).cache.dataset != place.cache.dataset
    local = ShardData(str(root), **keys).prepare(None, *extractors, None)
    assert local == LocalStorage(root, tmp_path / "latents"), "a folder is read where it lies"
