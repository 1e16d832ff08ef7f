"""Which file belongs to which clip, and what is said of those that belong to none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vta_sam.evaluation.pairing import find_sounds, find_systems, make_plan, read_ids, read_words
from vta_sam.evaluation.evaluate import named_folders
from vta_sam.media.audio import write_wav
from vta_sam.runtime.errors import InputError


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")
    return folder


def test_ids_are_file_names(tmp_path):
    found = find_sounds(touch(tmp_path, "b.wav", "a.mp4", "notes.txt", ".hidden.wav", "c.FLAC"))
    assert list(found) == ["a", "b", "c"]
    assert found["a"][0].video == tmp_path / "a.mp4" == found["a"][0].path
    assert found["b"][0].video is None


def test_a_sound_file_is_read_and_the_video_of_its_name_shown(tmp_path):
    [file] = find_sounds(touch(tmp_path, "a.mp4", "a.wav", "a.mp3"))["a"]
    assert (file.path.name, file.video.name) == ("a.wav", "a.mp4")


def test_names_with_dots_and_dashes_are_whole_ids(tmp_path):
    assert list(find_sounds(touch(tmp_path, "x.y-1.wav", "x.y.wav"))) == ["x.y", "x.y-1"]


def test_records_of_generated_sounds_say_key_and_sample(tmp_path):
    for sample in (1, 0):
        write_wav(tmp_path / f"a%2Fb-{sample}.wav", np.zeros(100), 16_000)
        (tmp_path / f"a%2Fb-{sample}.json").write_text(json.dumps({"key": "a/b", "sample": sample}))
    [(clip_id, samples)] = find_sounds(tmp_path).items()
    assert clip_id == "a/b" and [file.sample for file in samples] == [0, 1]
    assert [file.path.name for file in samples] == ["a%2Fb-0.wav", "a%2Fb-1.wav"]


@pytest.mark.parametrize("record", ["[1]", "{", '{"key": 3, "sample": 0}', '{"key": "z", "sample": "0"}',
                                    '{"key": "z", "sample": 7}', '{"key": "z"}'])
def test_other_json_beside_a_sound_says_nothing(tmp_path, record):
    touch(tmp_path, "a-0.wav")
    (tmp_path / "a-0.json").write_text(record)
    assert list(find_sounds(tmp_path)) == ["a-0"]


def test_a_table_names_ids(tmp_path):
    touch(tmp_path, "001.wav", "002.wav")
    (tmp_path / "ids.csv").write_text("file,id\n001.wav,dog\n002.wav,cat\n")
    assert {k: v[0].path.name for k, v in find_sounds(tmp_path).items()} == {"cat": "002.wav", "dog": "001.wav"}
    (tmp_path / "ids.csv").write_text("file,id\n001.wav,dog\n")
    with pytest.raises(InputError, match="no id for 002.wav"):
        find_sounds(tmp_path)


@pytest.mark.parametrize(("table", "said"), [
    ("file,id\n../001.wav,a\n", "no file of this folder"),
    ("file,id\n001.wav,a\n001.wav,b\n", "twice"),
    ("file,name\n001.wav,a\n", "no column id"),
    ("file,id\n001.wav,\n", "line 2: id is empty"),
])
def test_tables_that_do_not_fit(tmp_path, table, said):
    touch(tmp_path / "in", "001.wav")
    touch(tmp_path, "001.wav")
    (tmp_path / "in" / "ids.csv").write_text(table)
    with pytest.raises(InputError, match=said):
        find_sounds(tmp_path / "in")


def test_folders_without_sound(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        find_sounds(tmp_path / "none")
    with pytest.raises(InputError, match="is a file"):
        find_sounds(touch(tmp_path, "a.wav") / "a.wav")
    with pytest.raises(InputError, match="no sound or video"):
        find_sounds(touch(tmp_path / "empty", "a.txt"))
    with pytest.raises(InputError, match="one folder per system"):
        find_systems(tmp_path)


def test_systems_are_folders_with_sounds(tmp_path):
    touch(tmp_path / "b", "1.wav")
    touch(tmp_path / "a", "1.mp4")
    touch(tmp_path / "page", "index.html")
    assert find_systems(tmp_path) == {"a": tmp_path / "a", "b": tmp_path / "b"}


def test_words_and_ids_come_from_tables(tmp_path):
    path = tmp_path / "captions.csv"
    path.write_text("id,split,caption,objects\na,test,a dog,dog; cat\nb,train,,\n")
    words = read_words(path)
    assert (words["a"].caption, words["a"].objects, words["b"].objects) == ("a dog", ("dog", "cat"), ())
    assert read_words(tmp_path / "none.csv") == {}
    assert (read_ids(path), read_ids(path, "test")) == (["a", "b"], ["a"])
    with pytest.raises(InputError, match="no id of split 'val'"):
        read_ids(path, "val")


@pytest.fixture
def folders(tmp_path):
    touch(tmp_path / "true", "a.mp4", "b.mp4", "c.mp4")
    touch(tmp_path / "ours", "a.wav", "b.wav", "c.wav")
    return tmp_path


def test_a_plan_pairs_by_id(folders):
    plan = make_plan({"ours": folders / "ours"}, folders / "true")
    assert plan.clips == ["a", "b", "c"] == list(plan.sounds["ours"])
    assert plan.videos["b"] == folders / "true" / "b.mp4"
    assert make_plan({"ours": folders / "ours"}, folders / "true", ids=["c", "a"]).clips == ["a", "c"]


def test_pictures_may_lie_elsewhere(folders):
    touch(folders / "pictures", "a.mp4", "z.mp4")
    plan = make_plan({"ours": folders / "ours"}, folders / "true", folders / "pictures")
    assert plan.videos == {"a": folders / "pictures" / "a.mp4"}


def test_files_without_partner_are_errors_unless_skipped(folders):
    touch(folders / "ours", "d.wav")
    with pytest.raises(InputError, match="ours: 1 files.*d.wav.*skip_bad=true"):
        make_plan({"ours": folders / "ours"}, folders / "true")
    (folders / "ours" / "a.wav").unlink()
    plan = make_plan({"ours": folders / "ours"}, folders / "true", skip_bad=True)
    assert (plan.unmatched, plan.absent) == ({"ours": ["d.wav"]}, {"ours": ["a"]})
    (folders / "ours" / "d.wav").unlink()
    with pytest.raises(InputError, match="no sound for 1 clips: a"):
        make_plan({"ours": folders / "ours"}, folders / "true")


def test_nothing_in_common_is_an_error_even_if_skipped(folders):
    touch(folders / "other", "x.wav")
    with pytest.raises(InputError, match="there the ids are a, b, c, here x"):
        make_plan({"other": folders / "other"}, folders / "true", skip_bad=True)


def test_one_true_sound_a_clip(folders):
    (folders / "true" / "ids.csv").write_text("file,id\na.mp4,a\nb.mp4,a\nc.mp4,c\n")
    with pytest.raises(InputError, match="2 files for clip 'a'.*one true sound"):
        make_plan({"ours": folders / "ours"}, folders / "true")


def test_ids_that_are_not_there(folders):
    with pytest.raises(InputError, match="no clip y, z, which the list of ids names"):
        make_plan({"ours": folders / "ours"}, folders / "true", ids=["z", "a", "y"])


def test_systems_are_named_by_their_folders():
    assert named_folders("runs/x") == {"x": Path("runs/x")}
    names = named_folders(["runs/a/test", "runs/b/test"])
    assert list(names) == ["a/test", "b/test"]
    assert named_folders({"ours": "x"}) == {"ours": Path("x")}
    with pytest.raises(InputError, match="different"):
        named_folders(["runs/a", "runs/a"])
