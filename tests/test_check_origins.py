"""data_prep/check.py: datasets at URLs, what made a dataset, and datasets that mix two extractions."""

import dataclasses
import json
import shutil

import fsspec
import numpy as np
import pytest
from programs import call
from shard_server import serving
from tiny_data import a_clip, write_dataset

from vta_sam.dataset.extraction.check import (
    check_dataset, differing_datasets, made_by, origin_lines, plan_check, report_folders
)
from vta_sam.dataset.extraction.dataset_statistics import DatasetStatistics
from vta_sam.dataset.extraction.shard_folder import hash_of
from vta_sam.dataset.shards.records import read_shard, write_shard
from vta_sam.dataset.shards.schema import read_dataset
from vta_sam.runtime.errors import InputError

FIRST = "train-000000.tar"


@pytest.fixture
def dataset(tmp_path):
    write_dataset(tmp_path / "shards", {"train": 4, "val": 2}, shard_records=2)
    return tmp_path / "shards"


@pytest.fixture
def check(tmp_path):
    """Run the script ⇒ (exit status, what it printed)."""
    def run(*arguments):
        done = call("data_prep/check.py", *arguments, cwd=tmp_path)
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    return run


def test_a_dataset_at_a_url_is_checked_as_a_folder_is(dataset, check, tmp_path):
    statistics, faults = check_dataset(dataset)
    with serving(dataset) as shelf:
        found = check_dataset(shelf.url)
        assert (found[0].to_dict(), found[1]) == (statistics.to_dict(), faults) and faults == []
        status, printed = check(f"shards={shelf.url}")
        assert status == 0 and f"{shelf.url}: 6 clips" in printed, printed
    assert sorted(path.name for path in (tmp_path / "check").iterdir()) == [
        "faults.jsonl", "statistics.json", "statistics.png"]


def test_faults_of_a_dataset_at_a_url_are_found(dataset):
    write_shard(dataset / FIRST, [dataclasses.replace(clip, start_s=-1.0) for clip in read_shard(dataset / FIRST)][:1])
    memory = fsspec.filesystem("memory")
    for path in dataset.glob("*.*"):
        memory.pipe_file(f"/checked/{path.name}", path.read_bytes())
    memory.rm("/checked/val-000000.tar")
    try:
        statistics, faults = check_dataset("memory://checked")
        told = [(fault.shard, fault.key, fault.what) for fault in faults]
    finally:
        memory.rm("/checked", recursive=True)
    assert told[0] == (FIRST, "train-0", "start_s is -1.0, expected seconds >= 0")
    assert told[1] == (FIRST, "", "it holds 1 records, dataset.json says 2")
    assert told[2][0] == "val-000000.tar" and "memory://checked/val-000000.tar doesn't exist" in told[2][2]
    assert statistics.clips == 3


def test_how_often_a_noun_was_asked_for_and_seen():
    found = {}
    for seen in (0.2, 0.5):
        statistics = DatasetStatistics(seen)
        for peak in (0.1, 0.3, 0.9):
            clip = a_clip("k", words=("dog",))
            clip.probs = np.full_like(clip.probs, 0.05)
            clip.probs[3] = peak
            statistics.add("train", clip)
        word = statistics.to_dict()["words"]["dog"]
        found[seen] = word["clips"], word["seen_clips"], word["missing_clips"]
        assert statistics.to_dict()["missing_objects"]["seen_above"] == seen
    assert found == {0.2: (3, 2, 1), 0.5: (3, 1, 2)}


def test_what_made_a_dataset_is_said(dataset):
    info = dataclasses.replace(read_dataset(dataset), nouns={"tagger": "x", "rules": 3}, features={"flow": "flow-1"},
                               settings={"encoder": {"template": "a {}"}, "flow": {"gain": 2}})
    said = made_by(info)
    assert said["dataset"]["format_version"] == 2 and said["nouns"] == {"tagger": "x", "rules": 3}
    assert said["encoder"] == {"fingerprint": "encoder of a test", "template": "a {}"}
    assert said["flow"] == {"fingerprint": "flow-1", "gain": 2}
    assert "nouns: tagger x, rules 3" in origin_lines(info)
    earlier = dataclasses.replace(info, format_version=1, settings={}, nouns={})
    assert origin_lines(earlier)[-1].startswith("dataset.json is of format 1, and doesn't say the recipes")


SAID = {"nouns": {"tagger": "x", "rules": 1}, "settings": {"encoder": {"template": "{}", "precision": "fp16"}}}


@pytest.mark.parametrize("change, words", [
    ({}, None), ({"code_version": "9"}, None), ({"nouns": {}}, None), ({"settings": {}, "format_version": 1}, None),
    ({"settings": {"encoder": {"template": "{}", "precision": "fp32"}}}, None),
    ({"nouns": {"tagger": "x", "rules": 2}}, "nouns.rules is 2, in ONE it is 1"),
    ({"settings": {}}, "encoder.template is None, in ONE it is '{}'"),
    ({"settings": {"encoder": {"template": "a {}"}}}, "encoder.template is 'a {}', in ONE it is '{}'"),
    ({"fps": 8.0}, "records.fps is 8.0, in ONE it is 12.5"), ({"grounder": "g-2"}, "grounder.fingerprint is 'g-2'"),
    ({"features": {"flow": "flow-1"}}, "flow.fingerprint is 'flow-1', in ONE it is None"),
])
def test_datasets_that_mix_rules_are_told_apart(dataset, tmp_path, change, words):
    shutil.copytree(dataset, other := tmp_path / "other")
    info = dataclasses.replace(read_dataset(dataset), **SAID)
    info.write(dataset)
    dataclasses.replace(info, **change).write(other)
    found = differing_datasets([dataset, other])
    assert found == [] if words is None else [difference.partition(": ")[2][:len(words.replace("ONE", str(dataset)))]
                                              for difference in found] == [words.replace("ONE", str(dataset))]
    assert differing_datasets([dataset]) == []


def test_settings_that_dataset_json_does_not_say_are_read_where_the_folders_have_them(dataset, tmp_path):
    shutil.copytree(dataset, other := tmp_path / "other")
    for folder, sound in ((dataset, None), (other, "ger")):
        (folder / "extraction.json").write_text(json.dumps({"config": {"hwaccel": None, "fits": [], "sound": sound}}))
    assert differing_datasets([dataset, other]) == [f"{other}: config.sound is 'ger', in {dataset} it is None"]
    (other / "extraction.json").write_text("{")
    assert differing_datasets([dataset, other]) == []


def test_a_folder_that_mixes_two_extractions_is_found(dataset):
    config = {"fps": 12.5, "noun_rules": 2}
    dataclasses.replace(read_dataset(dataset), config_hash=hash_of(config)).write(dataset)
    (dataset / "extraction.json").write_text(json.dumps({"manifest_hash": "0", "config": config}))
    assert check_dataset(dataset)[1] == []
    (dataset / "extraction.json").write_text(json.dumps({"manifest_hash": "0", "config": {**config, "fps": 8.0}}))
    masked = [clip.replace(mask_embedding=np.zeros((*clip.probs.shape, 256), np.float32))
              for clip in read_shard(dataset / FIRST)]
    write_shard(dataset / FIRST, masked)
    first, second = check_dataset(dataset)[1]
    assert "of another extraction than extraction.json" in first.what
    assert "different optional features (mask_embedding in 2; none in 4)" in second.what


def test_a_clip_without_objects_needs_no_masks(dataset):
    def masked(clip):
        if clip.key == "train-0":
            return clip.replace(objects=[], probs=clip.probs[:, :0], boxes=clip.boxes[:, :0], areas=clip.areas[:, :0],
                                object_embedding=clip.object_embedding[:0])
        return clip.replace(mask_embedding=np.zeros((*clip.probs.shape, 256), np.float32))

    for path in dataset.glob("*.tar"):
        write_shard(path, list(map(masked, read_shard(path))))
    assert check_dataset(dataset)[1] == []


def test_reports_of_several_datasets_have_a_folder_each(tmp_path):
    places = {place: str(out) for place, out in report_folders(["a/x", "s3://b/x/", "c"], None).items()}
    assert places == {"a/x": "check/0-x", "s3://b/x/": "check/1-x", "c": "check/c"}
    assert {str(out) for out in report_folders(["a", "s3://b"], tmp_path).values()} == {
        f"{tmp_path}/a", f"{tmp_path}/b"}
    assert [str(report_folders([place], None)[place]) for place in ("a", "s3://b/c")] == ["a/check", "check"]
    with pytest.raises(InputError, match="names a dataset twice"):
        report_folders(["a", "a"], None)


@pytest.mark.slow
def test_the_script_compares_several_datasets(dataset, check, tmp_path):
    shutil.copytree(dataset, other := tmp_path / "other")
    status, printed = check(f"shards=[{dataset},{other}]", "out=reports")
    assert status == 0 and printed.count("6 clips (4 train, 2 val)") == 2, printed
    assert (tmp_path / "reports/other/statistics.json").exists() and not (other / "check").exists()
    dataclasses.replace(read_dataset(other), encoder="encoder-2").write(other)
    status, printed = check(f"shards=[{dataset},{other}]", "out=reports", "seen=0.5")
    assert status == 2 and "these datasets are not alike" in printed and "encoder.fingerprint is 'encoder-2'" in printed
    for arguments, words in ((("overlay=1", f"videos={tmp_path}"), "films are drawn of one dataset"),
                             (("plan=true",), "check of")):
        status, printed = check(f"shards=[{dataset},{other}]", *arguments)
        assert words in printed and status == (0 if words == "check of" else 2)


def test_a_plan_of_a_check_of_a_url(dataset, tmp_path):
    with serving(dataset) as shelf:
        plan = plan_check(shelf.url, tmp_path / "out")
    assert f"check of {shelf.url}, of 6 clips" in str(plan.title) and len(plan.items) == 3
