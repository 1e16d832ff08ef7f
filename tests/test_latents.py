"""Latent shards: written once, resumed, matched to their shards; and the number that latents are scaled by."""

from itertools import islice

import numpy as np
import pytest
import torch
from tiny_data import CODEC, SPEC, a_clip, build, write_dataset

from vta_sam.dataset.shards.datamodule import ShardDataModule
from vta_sam.dataset.shards.latents import is_complete, read_latents, read_std, weights_hash, write_latents
from vta_sam.dataset.shards.records import read_shard
from vta_sam.dataset.shards.schema import ShardInfo
from vta_sam.runtime.errors import InputError


@pytest.fixture(scope="module")
def codec():
    return build({**CODEC, "mel_mean": -5.0, "mel_std": 2.0})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    return folder, write_dataset(folder, {"train": 6, "val": 2}, shard_records=4)


@pytest.fixture()
def written(dataset, codec, tmp_path):
    root, info = dataset
    shards = [shard for split in info.splits for shard in info.shards(split)]
    std = write_latents(shards, lambda s: read_shard(root / s.name), codec, tmp_path / "latents")
    return tmp_path / "latents", shards, std


def test_round_trip(written, codec, dataset):
    folder, shards, _ = written
    root, info = dataset
    assert is_complete(folder, info, ["train", "val"])
    for shard in shards:
        moments = read_latents(folder, shard)
        records = list(read_shard(root / shard.name))
        assert list(sorted(moments)) == sorted(r.key for r in records)
        for record in records:
            expected = codec.encode_moments(record.waveform)
            assert moments[record.key].shape == expected.shape == (16, SPEC.columns, 4)
            assert np.allclose(moments[record.key], expected, rtol=1e-3, atol=1e-3)


def test_std_is_that_of_posterior_samples(written):
    folder, shards, std = written
    moments = [m for shard in shards for m in read_latents(folder, shard).values()]
    mean, log_variance = np.split(np.stack(moments).astype(np.float64), 2, axis=1)
    draws = [mean + np.exp(log_variance / 2) * np.random.default_rng(i).normal(size=mean.shape) for i in range(20)]
    assert std == pytest.approx(np.std(draws), rel=0.02)
    assert std == pytest.approx(np.sqrt(mean.var() + np.exp(log_variance).mean()), rel=1e-6)
    assert read_std(folder) == std


def test_std_by_hand(tmp_path):
    class Known:
        def encode_moments(self, waveform):
            """Means 1 and 3 (variance 1), log-variance ln 3 everywhere: √(1 + 3) = 2."""
            return np.stack([np.array([[1.0, 3.0]]), np.full((1, 2), np.log(3.0))])

    clips = [a_clip("x"), a_clip("y")]
    std = write_latents([ShardInfo("a.tar", 2, 0)], lambda s: iter(clips), Known(), tmp_path / "known")
    assert std == pytest.approx(2.0, rel=1e-3)


def test_what_exists_is_not_encoded_again(written, dataset):
    folder, shards, std = written
    root, _ = dataset
    (folder / "val-000000.safetensors").unlink()
    read, counted = [], []

    def records_of(shard):
        read.append(shard.name)
        return read_shard(root / shard.name)

    class Encoder:
        def encode_moments(self, waveform):
            return np.zeros((16, SPEC.columns, 4), np.float32)

    write_latents(shards, records_of, Encoder(), folder, counted.append)
    assert read == ["val-000000.tar"] and sum(counted) == 8
    assert not any(m.any() for m in read_latents(folder, shards[-1]).values())
    assert read_std(folder) != std


def test_a_stopped_writer_is_not_complete(dataset, codec, tmp_path):
    root, info = dataset
    shards = info.shards("train") + info.shards("val")

    def stops(shard):
        for i, record in enumerate(read_shard(root / shard.name)):
            if shard.name == "train-000001.tar" and i == 1:
                raise KeyboardInterrupt
            yield record

    folder = tmp_path / "latents"
    with pytest.raises(KeyboardInterrupt):
        write_latents(shards, stops, codec, folder)
    assert [p.name for p in folder.iterdir()] == ["train-000000.safetensors"]
    assert not is_complete(folder, info, ["train", "val"])
    write_latents(shards, lambda s: read_shard(root / s.name), codec, folder)
    assert is_complete(folder, info, ["train", "val"])


def test_latents_that_do_not_match_are_refused(written, dataset):
    folder, shards, _ = written
    with pytest.raises(InputError, match=r"train-000000\.safetensors holds 4 records, train-000000\.tar holds 5"):
        read_latents(folder, ShardInfo("train-000000.tar", 5, 0))
    path = folder / "train-000000.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"train-000000\.safetensors can't be read .*delete the folder"):
        read_latents(folder, shards[0])
    path.unlink()
    with pytest.raises(InputError, match="can't be read"):
        read_latents(folder, shards[0])
    (folder / "latents.json").write_text("{")
    with pytest.raises(InputError, match=r"latents\.json can't be read"):
        read_std(folder)


def test_a_latent_of_another_clip_is_refused(written, dataset):
    folder, _, _ = written
    root, _ = dataset
    first, second = folder / "train-000000.safetensors", folder / "other.safetensors"
    from safetensors.numpy import load_file, save_file

    renamed = {f"other-{key}": value for key, value in load_file(first).items()}
    save_file(renamed, second)
    second.replace(first)
    data = ShardDataModule(root, SPEC, 2, 0, "diffusion", latents=folder)
    with pytest.raises(InputError, match=r"has no latent of clip 'train-\d'"):
        list(islice(iter(data.train_dataloader()), 3))


def test_batches_carry_moments(written, dataset):
    folder, shards, _ = written
    root, _ = dataset
    known = {k: v for shard in shards for k, v in read_latents(folder, shard).items()}
    data = ShardDataModule(root, SPEC, 3, 0, "diffusion", latents=folder)
    for batch in islice(iter(data.train_dataloader()), 2):
        assert batch.moments.shape == (3, 16, SPEC.columns, 4)
        assert all(np.array_equal(batch.moments[i], known[key]) for i, key in enumerate(batch.keys))


def test_the_hash_changes_with_any_weight(codec):
    state = {k: v.clone() for k, v in codec.state_dict().items()}
    first = weights_hash(state)
    assert weights_hash(dict(reversed(state.items()))) == first and len(first) == 12
    name = sorted(state)[-1]
    state[name].view(-1)[-1] += 1e-4
    assert weights_hash(state) != first
    with torch.no_grad():
        assert weights_hash({name: state[name]}) != weights_hash({"another": state[name]})
