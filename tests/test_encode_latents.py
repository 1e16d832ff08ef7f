"""Latent shards made beforehand by any number of workers: the same bytes as by one, resumed, and found by training."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from shard_server import serving
from tiny_data import CODEC, SPEC, a_clip, build, stage_context, write_dataset
from together import finish, start

from vta_sam.checkpoints.model_folder import ModelRecipe, save_model
from vta_sam.dataset.shards import latents
from vta_sam.dataset.shards.latents import encode_dataset, is_complete, latents_folder, plan_latents
from vta_sam.dataset.shards.records import write_shard
from vta_sam.dataset.shards.schema import ShardInfo, read_dataset
from vta_sam.dataset.shards.storage import storage_of
from vta_sam.runtime.cluster.preemption import Preemption
from vta_sam.runtime.distributed import Processes
from vta_sam.runtime.errors import InputError
from vta_sam.training import codec_stages

SCRIPT = Path(__file__).resolve().parents[1] / "data_prep" / "encode_latents.py"
KNOWN_CODEC = {**CODEC, "mel_mean": -5.0, "mel_std": 2.0}
SPLITS = ["test", "train", "val"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Bytes are compared, and sums depend on how many threads share them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_dataset(folder, {"train": 7, "val": 2, "test": 1}, shard_records=2, duration_s=1.28)  # 6 shards
    return folder


@pytest.fixture(scope="module")
def info(root):
    return read_dataset(root)


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """A model folder of stage 1, untrained."""
    folder = tmp_path_factory.mktemp("vae")
    save_model(folder, ModelRecipe(clip=SPEC.settings(), codec=KNOWN_CODEC), {"codec": build(KNOWN_CODEC)})
    return folder


@pytest.fixture(scope="module")
def codec(vae):
    return codec_stages.load_codec(vae, SPEC)[0]


@pytest.fixture(scope="module")
def by_training(root, info, codec, tmp_path_factory):
    """The folder that training makes, as {file name: bytes}; its name under ""."""
    copy = shutil.copytree(root, tmp_path_factory.mktemp("training") / "shards")
    folder = codec_stages.encode_latents(stage_context(copy, info), codec)
    assert folder.parent == copy
    return contents(folder)


def contents(folder):
    return {"": folder.name.encode(), **{path.name: path.read_bytes() for path in folder.iterdir()}}


def encode(root, info, codec, out, rank=0, world=1, **more):
    place = storage_of(root, out)
    folder = latents_folder(place, info, codec)
    return encode_dataset(place, info, codec, folder, rank, world, **more), folder


def test_one_process_makes_what_training_makes(root, info, codec, by_training, tmp_path):
    complete, folder = encode(root, info, codec, tmp_path)
    assert complete and contents(folder) == by_training and len(by_training) == 1 + 6 + 1


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_three_workers_make_the_same_bytes(root, info, codec, by_training, tmp_path, order):
    done = []
    for rank in order:
        counted = []
        done.append(encode(root, info, codec, tmp_path, rank, 3, progress=counted.append)[0])
        folder = latents_folder(storage_of(root, tmp_path), info, codec)
        assert len(counted) == 2 and len(list(folder.glob("*.safetensors"))) == 2 * len(done)
        assert is_complete(folder, info, SPLITS) == (folder / latents.INFO_NAME).exists() == done[-1]
    assert done == [False, False, True]
    assert contents(folder) == by_training


def test_more_workers_than_shards(root, info, codec, by_training, tmp_path):
    done = [encode(root, info, codec, tmp_path, rank, 8)[0] for rank in reversed(range(8))]
    assert done == [False] * 7 + [True]
    assert contents(encode(root, info, codec, tmp_path, 7, 8)[1]) == by_training


@pytest.mark.parametrize("at", ["reading", "saving", "measuring"])
def test_a_killed_worker_goes_on(root, info, codec, by_training, tmp_path, monkeypatch, at):
    def stop_at(calls):
        for _ in range(calls - 1):
            yield False
        yield True

    place, name = {"reading": (latents, "read_records"), "saving": (latents.safetensors.numpy, "save"),
                   "measuring": (latents, "read_latents")}[at]
    original, turns = getattr(place, name), stop_at(4)

    def stops(*arguments):
        result = original(*arguments)
        if next(turns):
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch:
        patch.setattr(place, name, stops)
        with pytest.raises(KeyboardInterrupt):
            encode(root, info, codec, tmp_path)
    folder = latents_folder(storage_of(root, tmp_path), info, codec)
    there = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(there) == {"reading": 3, "saving": 3, "measuring": 6}[at] and not is_complete(folder, info, SPLITS)
    assert encode(root, info, codec, tmp_path)[0] and contents(folder) == by_training
    assert all((folder / name).stat().st_mtime_ns == made for name, made in there.items()), "what exists is done"


def test_training_finds_it_complete(root, info, codec, tmp_path, monkeypatch):
    copy = shutil.copytree(root, tmp_path / "shards")
    _, folder = encode(copy, info, codec, None)

    def never(*arguments):
        raise AssertionError("training encoded what was there")

    monkeypatch.setattr(type(codec), "encode_moments", never)
    assert codec_stages.encode_latents(stage_context(copy, info), codec) == folder
    assert latents.read_std(folder) > 0


def one_of_several(root, vae):
    """A process of a job that trains together, as far as the latents."""
    torch.set_num_threads(1)
    processes = Processes.of_environment()
    with processes.connected():
        context = stage_context(Path(root), read_dataset(root), preemption=Preemption(processes))
        made, original = [], latents.write_bytes
        latents.write_bytes = lambda path, *rest, **more: (made.append(path.name), original(path, *rest, **more))
        codec_stages.encode_latents(context, codec_stages.load_codec(Path(vae), SPEC)[0], "cpu")
        print(f"made {len(made)}")


@pytest.mark.slow
def test_every_process_of_a_job_makes_its_share(root, vae, by_training, tmp_path):
    copy = shutil.copytree(root, tmp_path / "shards")
    ended = finish(start(2, copy, vae, work=one_of_several))
    assert [status for status, _ in ended] == [0, 0] and all("made 3" in said for _, said in ended), ended
    assert contents(copy / by_training[""].decode()) == by_training


@pytest.mark.slow
def test_the_process_that_fails_is_named_and_ends_all(root, vae, by_training, tmp_path):
    copy = shutil.copytree(root, tmp_path / "shards")
    (copy / "train-000000.tar").write_bytes(b"no tar")  # the first of the second process
    ended = finish(start(2, copy, vae, work=one_of_several))
    assert [status for status, _ in ended] == [2, 1], ended
    assert "process 1 of 2:" in ended[1][1] and "train-000000.tar" in ended[1][1] and "Error" not in ended[0][1]
    folder = copy / by_training[""].decode()
    assert len(list(folder.glob("*.safetensors"))) == 3 and not (folder / latents.INFO_NAME).exists()


def test_the_codec_works_on_the_stages_device_in_batches(root, info, codec, by_training, tmp_path, monkeypatch):
    copy, moved, sizes = shutil.copytree(root, tmp_path / "shards"), [], []
    encode_batch = type(codec).encode_batch
    monkeypatch.setattr(codec_stages, "stage_device", lambda accelerator: torch.device(accelerator, 1))
    monkeypatch.setattr(type(codec), "to", lambda self, device: moved.append(device))  # no such device is here
    monkeypatch.setattr(type(codec), "encode_batch", lambda self, x: sizes.append(len(x)) or encode_batch(self, x))
    folder = codec_stages.encode_latents(stage_context(copy, info), codec, "cuda")
    assert moved == [torch.device("cuda", 1)] and sorted(sizes) == [1, 1, 2, 2, 2, 2]
    assert contents(folder).keys() == by_training.keys()


def test_a_batch_is_as_clip_by_clip(codec, tmp_path):
    """Clips of three lengths in one shard, of which two fit into a batch."""
    clips = [a_clip(f"{i}", duration_s) for i, duration_s in enumerate((1.28, 2.0, 1.28, 1.28, 2.0, 0.31))]
    shard = ShardInfo("train-000000.tar", write_shard(tmp_path / "train-000000.tar", clips), 0)
    for name, samples in (("single", 0), ("batched", 2 * 20_480)):
        latents._encode_shards([shard], lambda _: clips, codec, tmp_path / name, None, samples)
    single, batched = (latents.read_latents(tmp_path / name, shard) for name in ("single", "batched"))
    assert list(single) == list(batched) and len({moments.shape for moments in single.values()}) == 3
    for key, moments in single.items():
        assert np.allclose(batched[key], moments, rtol=2e-3, atol=2e-3)  # of fp16


def test_training_scales_by_its_own_split(root, info, by_training, tmp_path):
    """A folder of an earlier release has one number, of all splits, and keeps it."""
    measured = json.loads(by_training[latents.INFO_NAME])
    (tmp_path / "latents.json").write_text(json.dumps(measured))
    for name, content in by_training.items():
        if name.endswith(".safetensors") and name.startswith("train"):
            (tmp_path / name).write_bytes(content)
    moments = [m for shard in info.shards("train") for m in latents.read_latents(tmp_path, shard).values()]
    mean, log_variance = np.split(np.stack(moments).astype(np.float64), 2, axis=1)
    std = np.sqrt(mean.var() + np.exp(log_variance).mean())
    vae = ModelRecipe(clip=SPEC.settings(), codec=KNOWN_CODEC)
    assert codec_stages.latent_scale(vae, tmp_path, split="train") == pytest.approx(1 / std, rel=1e-9)
    assert latents.read_std(tmp_path) != latents.read_std(tmp_path, "train") != latents.read_std(tmp_path, "val")
    del measured["std_of_split"]
    (tmp_path / "latents.json").write_text(json.dumps(measured))
    assert codec_stages.latent_scale(vae, tmp_path, split="train") == 1 / measured["std"]


def test_training_reads_a_dataset_by_url_with_latents_here(root, info, codec, by_training, tmp_path):
    with serving(root) as shelf:
        folder = codec_stages.encode_latents(stage_context(storage_of(shelf.url, tmp_path), info), codec)
        assert folder.parent == tmp_path and contents(folder) == by_training
        with pytest.raises(InputError, match="need a local folder to live in"):
            codec_stages.encode_latents(stage_context(storage_of(shelf.url), info), codec)


def test_a_shard_that_is_gone_is_made_and_measured_again(root, info, codec, by_training, tmp_path):
    _, folder = encode(root, info, codec, tmp_path)
    (folder / "train-000001.safetensors").unlink()
    (folder / latents.INFO_NAME).write_text('{"std": 1000.0}')
    assert encode(root, info, codec, tmp_path)[0] and contents(folder) == by_training


def test_shares_may_be_runs_of_shards(root, info, codec, tmp_path):
    shares = [plan_latents(root, info, codec, tmp_path, rank, 4, consecutive=True).mine for rank in range(4)]
    every = [shard for split in info.splits for shard in info.shards(split)]
    assert [shard for share in shares for shard in share] == every
    assert [len(share) for share in shares] == [1, 2, 1, 2]


@pytest.mark.parametrize(("rank", "world"), [(3, 3), (-1, 3), (0, 0)])
def test_a_rank_that_is_none(root, info, codec, tmp_path, rank, world):
    with pytest.raises(InputError, match=f"rank={rank} of world={world}"):
        encode(root, info, codec, tmp_path, rank, world)


@pytest.fixture()
def script(monkeypatch, capsys):
    """Run the command in this process ⇒ exit status, stdout, stderr."""
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        status = 0
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as ended:
            status = ended.code
        return status, *capsys.readouterr()

    return run


def test_the_command(root, info, codec, by_training, vae, tmp_path, script, monkeypatch):
    """One share is told by torchrun's variables, one by the command itself."""
    given = (f"vae={vae}", f"shards={root}", f"out={tmp_path}", "threads=1", "device=cpu")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, told, errors = script(*given)
    assert status == 0 and "(2 of 2)" in told and "other workers' shards are missing still" in told, errors
    status, told, errors = script(*given, "rank=0", "world=2")
    assert status == 0 and "(1 of 2)" in told and "is complete" in told, errors
    assert contents(latents_folder(storage_of(root, tmp_path), info, codec)) == by_training


@pytest.mark.parametrize(("arguments", "words"), [
    (["shards=x"], "vae= is missing"), (["vae=x"], "shards= is missing"),
    (["vae=x", "shards=y"], "y/dataset.json doesn't exist"),
])
def test_what_the_command_lacks(script, arguments, words):
    status, _, errors = script(*arguments)
    assert status == 2 and words in errors and "Traceback" not in errors
