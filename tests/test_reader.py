"""Records read one by one: what is kept in memory, what is left out, and what is read ahead."""

import dataclasses
import gc
import io
import pickle
import shutil
import threading
from itertools import count, islice
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
import torch
from shard_server import HASTE, damaged, serving
from tiny_data import SPEC, a_clip, write_dataset

from vta_sam.dataset.shards import datamodule, reader
from vta_sam.dataset.shards.datamodule import ShardDataModule
from vta_sam.dataset.shards.latents import write_latents
from vta_sam.dataset.shards.reader import OpenShard, ShardReader, read_ahead
from vta_sam.dataset.shards.records import read_records, read_shard, write_shard
from vta_sam.dataset.shards.schema import read_dataset
from vta_sam.dataset.shards.storage import LocalStorage, RemoteStorage, with_cache
from vta_sam.runtime.errors import InputError

CLIPS = 32


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """The same clips in shards of 4 and of 16."""
    folders = {}
    for records in (4, 16):
        folders[records] = tmp_path_factory.mktemp(f"of-{records}")
        write_dataset(folders[records], {"train": CLIPS, "val": 2}, shard_records=records)
    return folders


@pytest.fixture
def in_memory(roots):
    """The same at a URL."""
    memory = fsspec.filesystem("memory")
    for records, folder in roots.items():
        for path in folder.glob("*.*"):
            memory.pipe_file(f"/of-{records}/{path.name}", path.read_bytes())
    yield lambda records: f"memory://of-{records}"
    for records in roots:
        memory.rm(f"/of-{records}", recursive=True)


class Encoder:
    def encode_moments(self, waveform):
        return np.resize(waveform, (16, SPEC.columns, 4))


def data_of(root, **more):
    return ShardDataModule(root, SPEC, 4, 0, "diffusion", streams=8, **more)


def batches(data, n=8):
    return list(islice(iter(data.train_dataloader()), n))


def bytes_kept(thing):
    """Of arrays, and of bytes of 1 kB and more, that can be reached from an object."""
    seen, left, total = set(), [thing], 0
    while left:
        one = left.pop()
        if id(one) in seen or isinstance(one, type) or callable(one) or type(one).__name__ == "module":
            continue
        seen.add(id(one))
        if isinstance(one, np.ndarray):
            total += one.nbytes
        elif isinstance(one, bytes):
            total += len(one) if len(one) > 1000 else 0
        elif isinstance(one, io.BytesIO):
            total += one.getbuffer().nbytes
        else:
            left.extend(gc.get_referents(one))
    return total


def after_an_epoch(reader):
    return [reader.record(shard, index)[0].key for shard, size in enumerate(reader.counts) for index in range(size)]


@pytest.mark.parametrize("records", [4, 16])
def test_of_a_folder_nothing_is_kept(roots, records):
    """Whatever a shard holds, and however many of them are open."""
    root = roots[records]
    mine = ShardReader(root, read_dataset(root).shards("train"), 64)
    assert len(after_an_epoch(mine)) == CLIPS and len(mine._open) == CLIPS // records
    assert bytes_kept(mine) == mine.kept_bytes == 0


def test_a_record_at_other_rates_than_the_dataset_s_is_refused(roots, tmp_path):
    """As of two extractions that went into one folder. Its frames would stand at wrong times."""
    shutil.copytree(roots[4], tmp_path / "mixed")
    mixed = sorted((tmp_path / "mixed").glob("train-*.tar"))[1]
    clips = [dataclasses.replace(clip, fps=8.0) for clip in read_shard(mixed)]
    write_shard(mixed, clips)
    info = read_dataset(tmp_path / "mixed")
    words = f"{mixed.name}: clip 'train-.' has 8 frames and 16000 samples a second, dataset.json says 12.5 and 16000"
    mine = ShardDataModule(tmp_path / "mixed", SPEC, 2, 0, "vae").reader("train")
    for read in (lambda: mine.record(1, 0), lambda: pickle.loads(pickle.dumps(mine)).record(1, 0),
                 lambda: read_records(tmp_path / "mixed", info.shards("train")[1], info.rates),
                 lambda: batches(ShardDataModule(tmp_path / "mixed", SPEC, CLIPS, 0, "vae"), 1)):
        with pytest.raises(InputError, match=words):
            read()
    assert mine.record(0, 0)[0].fps == 12.5


@pytest.mark.parametrize("records", [4, 16])
@pytest.mark.parametrize("share", [0.0, 0.3, 2.0])
def test_of_a_url_as_much_is_kept_as_may_be(roots, in_memory, records, share):
    whole = sum(path.stat().st_size for path in roots[records].glob("train-*.tar"))
    url, limit = in_memory(records), int(share * whole)
    mine = ShardReader(url, read_dataset(url).shards("train"), 64, cached_bytes=limit)
    assert after_an_epoch(mine) == [f"train-{i}" for i in range(CLIPS)]
    assert mine.kept_bytes == bytes_kept(mine) <= limit and (mine.kept_bytes == whole) == (share > 1)


def test_a_server_without_ranges_serves_too(roots):
    with serving(roots[4]) as shelf:
        place = RemoteStorage(shelf.url, retry=HASTE)
        mine = ShardReader(place, read_dataset(place).shards("train")[:1], 64, cached_bytes=0)
        assert after_an_epoch(mine) == [f"train-{i}" for i in range(4)] and mine.kept_bytes == 0


@pytest.mark.parametrize("cached_gb", [0.0, 1e-3, 8.0])
def test_decoded_records_are_kept_where_all_fit_in(roots, monkeypatch, cached_gb):
    """Two epochs decode each once; else as often as they come. A megabyte holds a part of them."""
    decoded, once = [], reader.decoded_record
    monkeypatch.setattr(reader, "decoded_record", lambda where, key, *more: decoded.append(key) or once(
        where, key, *more))
    data = data_of(roots[4], cached_gb=cached_gb)
    assert len(batches(data, 2 * CLIPS // 4)) == 16
    assert len(decoded) == (CLIPS if cached_gb == 8 else 2 * CLIPS)


def frozen(batch):
    return {"frozen": [gc.get_freeze_count()] * len(batch)}


def test_a_loader_process_copies_no_object_of_its_parent_to_collect_it(roots):
    data = data_of(roots[4], workers=1)
    data.draw = frozen
    assert min(batches(data, 1)[0].draws["frozen"]) > gc.get_freeze_count() + 1000


@pytest.mark.filterwarnings("ignore:This DataLoader will create 8 worker processes")
@pytest.mark.parametrize("workers, world, nodes, shares", [(0, 1, 1, 1), (2, 1, 1, 2), (8, 4, 2, 16)])
def test_the_loaders_of_a_node_share_its_memory(roots, monkeypatch, workers, world, nodes, shares):
    made = []
    monkeypatch.setattr(datamodule, "ShardReader", lambda *told, **more: made.append(told) or ShardReader(
        *told, **more))
    data = data_of(roots[4], workers=workers, cached_gb=4.0)
    data.trainer = SimpleNamespace(global_rank=0, world_size=world, num_nodes=nodes)
    data.train_dataloader()
    assert made[0][-1] == 4_000_000_000 // shares


def test_files_beyond_a_bound_are_closed(roots, monkeypatch):
    monkeypatch.setattr(reader, "_OPEN_FILES", 2)
    mine = ShardReader(roots[4], read_dataset(roots[4]).shards("train"), 64)
    for _ in range(2):
        assert after_an_epoch(mine) == [f"train-{i}" for i in range(CLIPS)]
    assert len(mine._open) == 8 and sum(shard.is_open for shard in mine._opened()) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_waveform_that_nobody_reads_is_not_decoded(tmp_path, monkeypatch, workers):
    """Crops are where they were, and so are seeds, draws and moments."""
    info = write_dataset(tmp_path, {"train": 8, "val": 2}, shard_records=4, duration_s=6.4)
    shards = [shard for split in info.splits.values() for shard in split]
    latents = tmp_path / "latents"
    write_latents(shards, lambda shard: read_records(tmp_path, shard), Encoder(), latents)
    whole = data_of(tmp_path, latents=latents)
    expected = [*batches(whole), *whole.val_dataloader()]
    data = data_of(tmp_path, latents=latents, workers=workers)
    data.unread = {"waveform"}
    with monkeypatch.context() as planted:
        planted.setattr("soundfile.SoundFile", lambda *_, **__: pytest.fail("it was decoded"))
        found = [*batches(data), *data.val_dataloader()]
    for one, other in zip(found, expected, strict=True):
        assert one.waveform is None and other.waveform is not None and one.keys == other.keys
        for name in ("seeds", "moments", "frame_embedding", "frame_mask", "column_mask", "probs", "caption_tokens"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert np.any(data.reader("val").record(0, 0)[0].waveform) and next(data.batches("val")).waveform is not None


def test_a_record_without_its_waveform_is_read_in_part(roots, monkeypatch):
    read, once = [], reader.stretch
    monkeypatch.setattr(reader, "stretch", lambda file, start, size: read.append(size) or once(file, start, size))
    shard = OpenShard(roots[4], read_dataset(roots[4]).shards("train")[0])
    _, whole = shard.record(1)
    everything = sum(read)
    _, part = shard.record(1, {"waveform"})
    assert part["flac"] == whole["flac"][:42] and {**part, "flac": b""} == {**whole, "flac": b""}
    assert sum(read) - everything < everything - len(whole["flac"]) + 1024


def test_a_damaged_copy_in_a_cache_is_fetched_again_when_its_record_comes(roots, tmp_path):
    with serving(roots[4]) as shelf:
        place = with_cache(RemoteStorage(shelf.url, retry=HASTE), tmp_path, 1.0, "a dataset")
        read_records(place, read_dataset(place).shards("train")[0])
        [copy] = tmp_path.glob("*/train-000000.tar")
        copy.write_bytes(damaged(copy.read_bytes()))
        mine = ShardReader(place, read_dataset(place).shards("train"), 64)
        assert [mine.record(0, index)[0].key for index in range(4)] == [f"train-{i}" for i in range(4)]
        assert shelf.tars() == ["train-000000.tar"] * 2


# ------------------------------------------------------------------ reading ahead

def test_reads_overlap_and_come_in_order():
    """Three reads meet, which one thread after the other would never do."""
    together = threading.Barrier(3)

    def read(place):
        together.wait(timeout=30)
        return -place

    assert list(islice(read_ahead(count(), read, 5, 3), 9)) == [(n, -n) for n in range(9)]
    assert list(read_ahead(range(7), lambda n: -n, 5, 3)) == list(read_ahead(range(7), lambda n: -n, 5, 0))


def test_no_more_is_read_ahead_than_was_said():
    read = []
    coming = read_ahead(count(), lambda place: read.append(place), 4, 2)
    for n in range(3):
        next(coming)
        assert max(read, default=0) <= n + 4
    coming.close()


def test_an_error_comes_where_its_place_would_and_threads_end():
    def read(place):
        if place == 3:
            raise InputError("the third")
        return place

    came = []
    with pytest.raises(InputError, match="^the third$"):
        came.extend(place for place, _ in read_ahead(count(), read, 8, 2))
    coming = read_ahead(count(), lambda place: place, 8, 2)
    next(coming)
    ours = [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]
    coming.close()
    for thread in ours:
        thread.join(timeout=30)
    assert ours and not any(thread.is_alive() for thread in ours)


class Broken(LocalStorage):
    """A folder out of which one shard can't be read."""

    def open(self, name):
        if name == "train-000003.tar":
            raise OSError("the disk is gone")
        return super().open(name)


@pytest.mark.parametrize("spoil", ["cut", "gone", "count"])
def test_an_error_of_a_thread_is_the_sentence_of_today(tmp_path, spoil):
    """And the samples before it come as they do without threads."""
    write_dataset(tmp_path, {"train": CLIPS, "val": 2}, shard_records=4)
    path = tmp_path / "train-000003.tar"
    if spoil == "cut":
        path.write_bytes(path.read_bytes()[:3000])
    elif spoil == "count":
        path.write_bytes((tmp_path / "val-000000.tar").read_bytes())
    place = Broken(tmp_path) if spoil == "gone" else LocalStorage(tmp_path)
    with pytest.raises(InputError) as sentence:
        read_records(place, read_dataset(tmp_path).shards("train")[3])
    seen = {}
    for threads in (0, 4):
        samples = data_of(place).train_dataloader().parts.dataset
        seen[threads] = []
        with pytest.raises(InputError) as caught:
            seen[threads].extend(window.features.key for window in samples._windows(0, 1, threads))
        assert str(caught.value) == str(sentence.value)
    assert seen[0] == seen[4]


def test_an_error_of_a_thread_comes_out_of_a_loader_process(tmp_path):
    write_dataset(tmp_path, {"train": CLIPS, "val": 2}, shard_records=4)
    (tmp_path / "train-000003.tar").write_bytes(b"")
    with pytest.raises(InputError, match=r"train-000003\.tar is cut short or is no tar"):
        batches(data_of(tmp_path, workers=2))


def test_moments_stay_as_they_are_stored(roots, tmp_path):
    info = read_dataset(roots[16])
    write_latents(info.shards("train"), lambda shard: read_records(roots[16], shard), Encoder(), tmp_path)
    record, moments = ShardReader(roots[16], info.shards("train"), 64, tmp_path).record(1, 3)
    assert moments.dtype == np.float16 and record.key == a_clip("train-19").key
    assert np.array_equal(moments, Encoder().encode_moments(record.waveform).astype(np.float16))


def test_a_reader_that_was_used_goes_to_a_spawned_process(roots):
    """Its open files and locks stay."""
    samples = data_of(roots[4]).train_dataloader().parts.dataset
    expected = [window.features.key for window in islice(samples._windows(0, 1, 2), 20)]
    assert samples.reader._open
    again = pickle.loads(pickle.dumps(samples))
    assert not again.reader._open
    assert [window.features.key for window in islice(again._windows(0, 1, 0), 20)] == expected
