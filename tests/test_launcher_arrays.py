"""Programs as SLURM jobs: work that is parted among the tasks of an array."""

from __future__ import annotations

import pytest
from played_slurm import array_of

from vta_sam.dataset.manifests.manifest import read_manifest, slices
from vta_sam.runtime.work_plan import share_of


@pytest.mark.parametrize("shards_per_job", [1, 3, 100])
def test_each_shard_is_extracted_by_one_task(shards_per_job, manifest, dry_run, cluster):
    told = ("videos=videos", "manifest=clips.csv", "out=out", "shard_size=4")
    script = dry_run("data_prep/extract.py", *told, f"launcher.shards_per_job={shards_per_job}")
    parts = slices(read_manifest(manifest), 4)
    done = []
    for task in cluster.overrides(script):
        assert tuple(task[:-3]) == told
        share = dict(word.split("=") for word in task[-3:])
        assert share["consecutive"] == "true"
        mine = [parts[i] for i in share_of(len(parts), int(share["rank"]), int(share["world"]), consecutive=True)]
        assert 0 < len(mine) <= shards_per_job and mine == parts[parts.index(mine[0]):][:len(mine)], "a range"
        done += [part.name for part in mine]
    assert done == [part.name for part in parts] and len(parts) == 12


def test_extraction_in_one_job_parts_itself(manifest, dry_run, cluster):
    script = dry_run("data_prep/extract.py", "videos=v", "manifest=clips.csv", "out=out", "launcher.tasks_per_node=8")
    assert array_of(script) == 0 and cluster.words(script)[2:] == ["videos=v", "manifest=clips.csv", "out=out"]


def test_encoding_of_latents_is_parted(dry_run, cluster, dataset):
    script = dry_run("data_prep/encode_latents.py", "vae=model", "shards=data", "launcher.shards_per_job=2")
    assert [task[-3:] for task in cluster.overrides(script)] == [
        [f"rank={i}", "world=3", "consecutive=true"] for i in range(3)]


def test_generation_of_a_dataset_is_parted(dry_run, cluster, dataset):
    script = dry_run("experiments/generate.py", "shards=data", "out=out", "launcher.shards_per_job=2")
    assert [task[-3:] for task in cluster.overrides(script)] == [
        [f"rank={i}", "world=3", "consecutive=true"] for i in range(3)]


@pytest.mark.parametrize(("arguments", "words"), [
    (["out=out"], "videos= is missing"), (["videos=v", "out=o", "manifest=none.csv"], "none.csv doesn't exist"),
    (["videos=v", "out=o", "rank=1"], "rank=1"), (["videos=v", "out=o", "consecutive=true"], "gets its share"),
    (["videos=v", "out=o", "launcher.nodes=2"], "one process a job"),
])
def test_a_share_that_cannot_be_told_is_a_sentence(arguments, words, manifest, refused):
    launcher = ("launcher=slurm", "launcher.shards_per_job=4")
    assert words in refused("data_prep/extract.py", "manifest=clips.csv", *arguments, *launcher)


@pytest.mark.parametrize(("script", "arguments"), [
    ("data_prep/extract.py", ["videos=v", "manifest=clips.csv", "out=out", "fps=8,12.5"]),
    ("data_prep/extract.py", ["videos=v", "manifest=clips.csv", "out=out", "fps=8,12.5", "launcher.shards_per_job=4"]),
    ("data_prep/extract.py", ["videos=v", "manifest=clips.csv", "out=out", "fps=8,12.5", "rank=0", "world=2"]),
    ("data_prep/encode_latents.py", ["vae=model", "shards=data", "threads=1,2"]),
    ("data_prep/check.py", ["shards=data", "shown=0.2,0.3"]),
    ("experiments/generate.py", ["shards=data", "out=out", "steps=10,25"]),
    ("experiments/generate.py", ["shards=data", "out=out", "seed=0,1", "launcher.shards_per_job=2"]),
])
def test_two_tasks_that_would_write_to_one_folder_are_refused(script, arguments, manifest, dataset, refused):
    assert "would write to one place" in refused(script, *arguments, "launcher=slurm")


@pytest.mark.parametrize(("script", "arguments"), [
    ("data_prep/extract.py", ["videos=v", "manifest=clips.csv", "out=out"]),
    ("data_prep/encode_latents.py", ["vae=model", "shards=data"]),
    ("experiments/generate.py", ["shards=data", "out=out"]),
])
def test_two_shares_of_one_folder_are_no_two_writers(script, arguments, manifest, dataset, dry_run, cluster):
    found = cluster.overrides(dry_run(script, *arguments, "rank=0,1", "world=2"))
    assert [words[-2:] for words in found] == [["rank=0", "world=2"], ["rank=1", "world=2"]]
