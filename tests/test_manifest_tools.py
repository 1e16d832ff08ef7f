"""data_prep/manifest.py: what people have becomes rows that extraction reads; what doesn't is listed with a reason."""

import csv
import functools
import json
import os
import re
import runpy
import sys
from collections import Counter

import pytest
from conftest import REPOSITORY

from vta_sam.dataset.manifests.folder import folder_draft, path_id, read_vggsound, vggsound_draft
from vta_sam.dataset.manifests.manifest import Row, object_words, read_manifest, write_manifest
from vta_sam.dataset.shards.schema import member_key
from vta_sam.runtime.errors import InputError


def touch(folder, *paths, content="v"):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(f"{content} {path}", encoding="utf-8")
    return folder


@pytest.fixture
def manifest(monkeypatch, capsys):
    """Run the script ⇒ (exit status, what it printed)."""
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["manifest.py", *map(str, arguments)])
        status = 0
        try:
            runpy.run_path(str(REPOSITORY / "data_prep" / "manifest.py"), run_name="__main__")
        except SystemExit as end:
            status = int(end.code or 0)
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return call


def reasons(draft):
    return {entry.id: entry.reason for entry in draft.left_out}


@pytest.mark.parametrize("caption", [
    'she says "hi", twice', "two\nlines", "two\r\nlines", "a lone\rreturn", "ends with a comma,", '"', "犬が吠える, é",
    "a; b", "",
])
def test_what_is_written_is_read_back(tmp_path, caption):
    rows = [Row("a", caption, "x/a b,c.mp4", 1.25, None, ("dog", "racing car"), 'la"bel, x', "val"),
            Row("-b", caption, "_b.webm", 0.1 + 0.2, 10.0)]
    read = read_manifest(write_manifest(tmp_path / "manifest.csv", rows))
    assert read == [rows[0], Row("-b", caption, "_b.webm", pytest.approx(0.3), 10.0)]


VGGSOUND = """\
-abc_DEF-12,30,"female speech, woman speaking",train
_abc_DEF-12,7,dog barking,train
whole000000,120,dog barking,test
short000000,5,playing banjo,train
gone0000000,1,playing banjo,test
twice000000,2,playing banjo,train
twice000000,2,playing banjo,train
split000000,3,dog barking,train
split000000,3,dog barking,test
label000000,3,dog barking,train
label000000,3,cat meowing,train
"""
CLIPS = ("-abc_DEF-12_000030.mp4", "_abc_DEF-12_000007.MKV", "whole000000.webm", "short000000_5.mp4",
         "twice000000_000002.mp4", "split000000_000003.mp4", "label000000_000003.mp4", "notes.txt")


@pytest.fixture
def vggsound(tmp_path):
    (tmp_path / "vggsound.csv").write_text(VGGSOUND, encoding="utf-8")
    return tmp_path / "vggsound.csv", touch(tmp_path / "videos", *CLIPS)


def test_vggsound_clips_are_found_by_their_names(vggsound, tmp_path, manifest):
    status, printed = manifest("vggsound", "--csv", vggsound[0], "--videos", vggsound[1], "--out", tmp_path / "m.csv")
    assert status == 0, printed
    rows = {row.id: row for row in read_manifest(tmp_path / "m.csv")}
    assert rows == {row.id: row for row in (
        Row("-abc_DEF-12_000030", "female speech, woman speaking", "-abc_DEF-12_000030.mp4",
            label="female speech, woman speaking"),
        Row("_abc_DEF-12_000007", "dog barking", "_abc_DEF-12_000007.MKV", label="dog barking"),
        Row("whole000000_000120", "dog barking", "whole000000.webm", 120.0, 10.0, label="dog barking", split="test"),
        Row("short000000_000005", "playing banjo", "short000000_5.mp4", label="playing banjo"),
        Row("twice000000_000002", "playing banjo", "twice000000_000002.mp4", label="playing banjo"),
    )}
    assert "4 clips: named by id and start, taken as the clip itself" in printed
    assert "1 clips: named by the bare id, taken as the whole video" in printed
    with open(tmp_path / "m.left_out.csv", encoding="utf-8", newline="") as file:
        left_out = {entry["id"]: entry for entry in csv.DictReader(file)}
    assert {id: entry["reason"] for id, entry in left_out.items()} == {
        "gone0000000_000001": "no file", "twice000000_000002": "stands in the csv again",
        "split000000_000003": "lines of the csv contradict each other",
        "label000000_000003": "lines of the csv contradict each other"}
    assert left_out["split000000_000003"]["detail"] == "lines 8, 9: 'test' and 'train'"
    assert left_out["twice000000_000002"]["detail"] == "line 7, as in line 6"


def test_whether_files_are_cut_can_be_said(vggsound):
    yes = {row.id: row for row in vggsound_draft(*vggsound, cut="yes").rows}
    assert yes["whole000000_000120"].start_s == 0 and yes["whole000000_000120"].duration_s is None
    no = {row.id: row for row in vggsound_draft(*vggsound, cut="no").rows}
    assert {(row.start_s, row.duration_s) for row in no.values()} == {(s, 10.0) for s in (30.0, 7.0, 120.0, 5.0, 2.0)}


@pytest.mark.parametrize("text, message", [
    ("a,1,dog\n", "line 1: 3 cells"), ("a,1,dog,train\nb,x,dog,train\n", "line 2: the start is 'x'"),
    ("a,1.5,dog,train\n", "line 1: the start is '1.5'"), ("youtube_id,start,label,split\n", "no header"),
    ("a/b,1,dog,train\n", "'a/b' is no id"), ("", "no rows"), ('a,1,"dog,train\n', "after line 0: no row of a CSV"),
    (b"a,1,dog,train\nb,1,caf\xe9,train\n", "line 2: not UTF-8"),
])
def test_another_csv_is_refused_by_its_line(tmp_path, text, message):
    path = tmp_path / "vggsound.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message):
        read_vggsound(path)


def test_twenty_thousand_clips_without_a_look_at_any(tmp_path, monkeypatch):
    folder = tmp_path / "videos"
    folder.mkdir()
    ids = [f"{number:011d}" for number in range(20_000)]
    for id in ids:
        os.close(os.open(folder / f"{id}_000001.mp4", os.O_CREAT))
    lines = "".join(f"{id},1,label {number % 300},{'train' if number % 10 else 'test'}\n"
                    for number, id in enumerate([*ids, "f" * 11]))
    (tmp_path / "vggsound.csv").write_text(lines)
    calls = Counter()

    def counted(name):
        real = getattr(os, name)

        @functools.wraps(real)
        def call(*arguments, **more):
            calls[name] += 1
            return real(*arguments, **more)

        return call

    for name in ("stat", "lstat", "scandir", "open"):
        monkeypatch.setattr(os, name, counted(name))
    draft = vggsound_draft(tmp_path / "vggsound.csv", folder, val=500)
    assert calls["scandir"] == 1 and calls["stat"] + calls["lstat"] + calls["open"] < 10
    assert Counter(row.split for row in draft.rows) == {"train": 17_500, "val": 500, "test": 2_000}
    assert [entry.id for entry in draft.left_out] == ["f" * 11 + "_000001"]


def val_videos(draft, split="val"):
    return {row.path for row in draft.rows if row.split == split}


def test_validation_clips_are_chosen_by_their_id_alone(tmp_path):
    names = [f"clip{number}" for number in range(200)]
    few = touch(tmp_path / "few", *(f"{name}.mp4" for name in names[:190]))
    all_ = touch(tmp_path / "all", *(f"{name}.mp4" for name in names))
    chosen = val_videos(folder_draft(few, val=20))
    assert len(chosen) == 20 and chosen == val_videos(folder_draft(few, val=20, test=30))
    assert chosen <= val_videos(folder_draft(few, val=40))
    assert len(chosen & val_videos(folder_draft(all_, val=20))) >= 15  # ten more clips push out ten at most, here fewer
    assert not chosen & val_videos(folder_draft(few, val=20, test=30), "test")
    with pytest.raises(InputError, match="--val 190: the split train has 190 clips"):
        folder_draft(few, val=190)


def test_clips_of_one_video_stay_in_one_split(tmp_path):
    lines = "".join(f"{video:011d},{start},dog,train\n" for video in range(30) for start in (0, 10, 20))
    (tmp_path / "vggsound.csv").write_text(lines)
    touch(tmp_path / "videos", *(f"{video:011d}.mp4" for video in range(30)))
    rows = vggsound_draft(tmp_path / "vggsound.csv", tmp_path / "videos", val=10).rows
    splits = {}
    for row in rows:
        splits.setdefault(row.path, set()).add(row.split)
    assert all(len(found) == 1 for found in splits.values())
    assert Counter(row.split for row in rows) == {"train": 81, "val": 9}  # three whole videos


def test_a_folder_per_class(tmp_path, manifest):
    """AVSync15's form."""
    touch(tmp_path / "videos", "train/dog_barking/a.mp4", "train/dog_barking/b.mp4", "test/playing-violin/a.mp4",
          "train/loose.mp4", "loose.mp4", "train/dog_barking/.hidden.mp4", "train/dog_barking/readme.txt")
    status, printed = manifest("folder", "--videos", tmp_path / "videos", "--out", tmp_path / "m.csv", "--recursive",
                               "--caption-from", "folder")
    assert status == 0, printed
    assert sorted(read_manifest(tmp_path / "m.csv"), key=lambda row: row.id) == [
        Row("test__playing-violin__a", "playing violin", "test/playing-violin/a.mp4", label="playing-violin",
            split="test"),
        Row("train__dog_barking__a", "dog barking", "train/dog_barking/a.mp4", label="dog_barking"),
        Row("train__dog_barking__b", "dog barking", "train/dog_barking/b.mp4", label="dog_barking")]
    listed = (tmp_path / "m.left_out.csv").read_text(encoding="utf-8")
    assert "train/loose.mp4,no caption in the folder’s name" in listed and "\nloose.mp4," in listed
    flat = folder_draft(touch(tmp_path / "flat", "dog_barking_03.mp4", "004.mp4"), caption_from="name", split="dev")
    assert [(row.caption, row.split) for row in flat.rows] == [("dog barking", "dev")]
    assert list(reasons(flat)) == ["004.mp4"]


def test_ids_are_unique_and_plain():
    names = ["a.mp4", "b/a.mp4", "b a.mp4", "b-a.mp4", "b.a.mp4", "犬.mp4", "猫.mp4", "-x_.mp4", "50%/a.mp4", "50$/a.mp4",
             "x" * 200 + "/1.mp4", "x" * 200 + "/2.mp4"]
    ids = [path_id(name) for name in names]
    assert len(set(ids)) == len(names) and ids[:2] == ["a", "b__a"] and ids[7] == "-x_"
    assert all(re.fullmatch("[A-Za-z0-9_-]{1,120}", id) and member_key(id) == id for id in ids)


def test_what_is_no_clip_is_listed(tmp_path):
    folder = touch(tmp_path / "videos", "a.mp4", "a.webm", "inside.mp4", " space.mp4", "deep/x.mp4")
    (folder / "empty.mp4").touch()
    (folder / "copy.mp4").write_bytes((folder / "inside.mp4").read_bytes())
    (folder / "z_same_size.mp4").write_bytes((folder / "inside.mp4").read_bytes()[::-1])
    touch(tmp_path, "outside.mp4")
    (folder / "linked.mp4").symlink_to(folder / "a.mp4")
    (folder / "escapes.mp4").symlink_to(tmp_path / "outside.mp4")
    (folder / "dangling.mp4").symlink_to(folder / "nothing.mp4")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    os.close(os.open(os.fsencode(folder) + b"/\xff.mp4", os.O_CREAT | os.O_WRONLY))
    os.truncate(os.fsencode(folder) + b"/\xff.mp4", 3)
    draft = folder_draft(folder, recursive=True)
    assert reasons(draft) == {
        "empty.mp4": "an empty file", "escapes.mp4": "a link that leaves the folder", "dangling.mp4": "no file",
        " space.mp4": "a name that a manifest can't hold", "\udcff.mp4": "a name that a manifest can't hold",
        "a": "another has the same id"}
    assert [row.path for row in draft.rows] == ["a.mp4", "copy.mp4", "deep/x.mp4", "inside.mp4", "linked.mp4",
                                                "z_same_size.mp4"]
    once = folder_draft(folder, recursive=True, same_content=True)
    assert [row.path for row in once.rows] == ["a.mp4", "copy.mp4", "deep/x.mp4", "z_same_size.mp4"]
    assert reasons(once)["inside.mp4"] == reasons(once)["linked.mp4"] == "the same bytes as another"
    list_path = once.write(tmp_path / "m.csv")
    assert [row.path for row in read_manifest(tmp_path / "m.csv")] == [row.path for row in once.rows]
    assert "\\udcff.mp4" in list_path.read_text(encoding="utf-8")


@pytest.mark.parametrize("form", ["{}_000030", "{}_30", "{}_30000_40000"])
@pytest.mark.parametrize("folder", ["", "dog barking/", "train/犬/"])
def test_clips_of_vggsound_as_other_tools_name_them(tmp_path, form, folder):
    names = [form.format(id) for id in ("-abc_DEF-12", "_abc_DEF-12", "__000030_30")]
    touch(tmp_path / "videos", *(f"{folder}{name}.mp4" for name in names), "copies/of/them/" + names[0] + ".mp4")
    table = tmp_path / "vggsound.csv"
    for mark in ",;\t":
        lines = (mark.join((id, "30", '"dog, barking"' if mark == "," else "dog, barking", "train"))
                 for id in ("-abc_DEF-12", "_abc_DEF-12", "__000030_30", "gone0000000"))
        table.write_bytes("\n".join(lines).encode("utf-8" if mark == "," else "utf-16"))
        draft = vggsound_draft(table, tmp_path / "videos")
        assert [(row.path, row.start_s, row.duration_s) for row in draft.rows] == [
            (f"{folder}{name}.mp4", 0.0, None) for name in names]
        assert "a file there is" not in draft.left_out[0].detail


def test_where_few_files_are_found_one_of_them_is_named(tmp_path):
    lines = [f"{id},30,dog,train" for id in ("-abc_DEF-12", "whole000000", "x")]
    (tmp_path / "vggsound.csv").write_text("\n".join(lines))
    videos = touch(tmp_path / "other", "video-abc_DEF-12.mp4", "whole000000.mp4")
    os.close(os.open(os.fsencode(videos) + b"/\xff.mp4", os.O_CREAT))
    draft = vggsound_draft(tmp_path / "vggsound.csv", videos)
    assert [row.path for row in draft.rows] == ["whole000000.mp4"]
    assert "_30000_40000 nor -abc_DEF-12 in" in draft.left_out[0].detail
    assert draft.left_out[0].detail.endswith("; a file there is video-abc_DEF-12.mp4")
    (videos / "whole000000.mp4").unlink()
    with pytest.raises(InputError, match="no clip is left.*no file.*a file there is video-abc_DEF-12.mp4"):
        vggsound_draft(tmp_path / "vggsound.csv", videos).write(tmp_path / "m.csv")
    touch(tmp_path / "videos2", "dog.mp4")
    (tmp_path / "captions.csv").write_text("file,caption\n/data/dog.mp4,a dog\n")
    with pytest.raises(InputError, match="no file /data/dog.mp4; a file there is dog.mp4"):
        folder_draft(tmp_path / "videos2", tmp_path / "captions.csv").write(tmp_path / "m.csv")


@pytest.mark.parametrize("cell, objects", [
    ("dog; cat", ("dog", "cat")), ("dog, cat", ("dog", "cat")), ("dog|cat", ("dog", "cat")), ("dog", ("dog",)),
    ('["dog", "cat"]', ("dog", "cat")), ('["a, b", "c;d"]', ("a, b", "c;d")), ("a, b;c", ("a, b", "c")),
    ("a, b;", ("a, b",)), ("", ()), ("[]", ()), ("[dog", ("[dog",)),
])
def test_names_of_objects_are_parted(tmp_path, cell, objects):
    assert object_words("here", cell) == objects
    with open(tmp_path / "m.csv", "w", newline="") as file:
        csv.writer(file).writerows([["id", "caption", "objects"], ["a", "x", cell]])
    row, = read_manifest(tmp_path / "m.csv")
    assert row.objects == objects
    if not any(";" in word for word in objects):
        assert read_manifest(write_manifest(tmp_path / "again.csv", [row])) == [row]


@pytest.mark.parametrize("name, content", [
    ("t.csv", "file;caption;objects\nx/a.mp4;a dog, barking;dog, cat\n"),
    ("t.csv", "file\tcaption\tobjects\nx/a.mp4\ta dog, barking\tdog|cat\n"),
    ("t.tsv", "file,caption,objects\nx/a.mp4,\"a dog, barking\",dog;cat\n"),
    ("t.csv", "File Name,CAPTION,Objects\nx\\a.mp4,\"a dog, barking\",\"[\"\"dog\"\", \"\"cat\"\"]\"\n"),
    ("t.jsonl", '{"File": "x/a.mp4", "Caption": "a dog, barking", "objects": ["dog", "cat"]}\n\n'),
    ("t.ndjson", '{"file": "x/a.mp4", "caption": "a dog, barking", "objects": "dog;cat"}'),
    ("t.json", '{"file": "x/a.mp4", "caption": "a dog, barking", "objects": "dog;cat"}\r\n'),
    ("t.json", '[\n{"file": "x/a.mp4", "caption": "a dog, barking", "objects": ["dog", "cat"]}]'),
])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_tables_as_people_have_them(tmp_path, name, content, encoding):
    touch(tmp_path / "videos", "x/a.mp4")
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / name).write_bytes((mark + content).encode(encoding))
    draft = folder_draft(tmp_path / "videos", tmp_path / name, recursive=True)
    assert draft.rows == [Row("x__a", "a dog, barking", "x/a.mp4", objects=("dog", "cat"))]


@pytest.mark.parametrize("content, message", [
    ('{"file": "a.mp4", "caption": "x"}\n{"file": \n', "line 2: no JSON"), ("[1, 2]", "holds no list of objects"),
    ('{"file": "a.mp4", "caption": "x"}\n[]\n', "line 2: no object"), ('[\n{"file": }]', "line 2: no JSON"),
])
def test_other_json_is_refused_by_its_line(tmp_path, content, message):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(InputError, match=message):
        folder_draft(touch(tmp_path / "videos", "a.mp4"), tmp_path / "t.json")


CAPTION = 'a dog says "wau, wau"\nand runs'


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json"])
@pytest.mark.parametrize("name", ["deep/a b.mp4", "deep\\a b.mp4", "a b.mp4", "a b", "deep/a b", "./deep/a b.mp4"])
def test_captions_find_their_videos(tmp_path, suffix, name):
    touch(tmp_path / "videos", "deep/a b.mp4", "deep/uncaptioned.mp4", "x/twin.mp4", "y/twin.mp4")
    table = tmp_path / f"captions{suffix}"
    entries = [{"file": name, "caption": CAPTION, "label": "dog", "objects": "dog; man", "split": "valid", "by": "me"},
               {"file": "gone.mp4", "caption": "x"}, {"file": "a b", "caption": "a second caption"},
               {"file": "twin", "caption": "which?"}, {"file": "x/twin.mp4", "caption": "this one", "split": ""}]
    if suffix == ".json":
        table.write_text(json.dumps(entries), encoding="utf-8")
    else:  # as a spreadsheet on Windows saves it
        with open(table, "w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, list(entries[0]), delimiter="\t" if suffix == ".tsv" else ",",
                                    lineterminator="\r\n")
            writer.writeheader()
            writer.writerows(entries)
    draft = folder_draft(tmp_path / "videos", table, recursive=True)
    draft.write(tmp_path / "m.csv")
    assert read_manifest(tmp_path / "m.csv") == [
        Row(path_id("deep/a b.mp4"), CAPTION, "deep/a b.mp4", objects=("dog", "man"), label="dog", split="val"),
        Row("x__twin", "this one", "x/twin.mp4")]
    assert reasons(draft) == {
        "gone.mp4": "a caption without a video", path_id("deep/a b.mp4"): "another caption of the same clip",
        "twin": "a name that fits several videos", "deep/uncaptioned.mp4": "a video that no caption names",
        "y/twin.mp4": "a video that no caption names"}


def test_audiocaps_columns(tmp_path):
    touch(tmp_path / "videos", "-0abc_000010.mp4", "whole.mkv")
    (tmp_path / "val.csv").write_text(
        "audiocap_id,youtube_id,start_time,caption\n1,-0abc,10,A dog barks\n2,-0abc,10,\"Dogs, barking\"\n"
        "3,whole,30,Rain\n4,whole,90,Thunder\n5,gone,0,Nothing\n", encoding="utf-8")
    draft = folder_draft(tmp_path / "videos", tmp_path / "val.csv", split="val")
    assert draft.rows == [Row("-0abc_000010", "A dog barks", "-0abc_000010.mp4", split="val"),
                          Row("whole_000030", "Rain", "whole.mkv", 30.0, 10.0, split="val"),
                          Row("whole_000090", "Thunder", "whole.mkv", 90.0, 10.0, split="val")]
    assert reasons(draft) == {"-0abc_000010": "another caption of the same clip",
                              "gone_000000": "a caption without a video"}


@pytest.mark.parametrize("content, message", [
    (b"file,text\na.mp4,x\n", "has the columns file, text; it needs caption"),
    (b"file,caption\na.mp4,a, b\n", "line 2: 3 cells, the header has 2"),
    (b"file,caption\na.mp4,ok\n\nb.mp4,caf\xe9\n", "line 4: not UTF-8"),
    ("file,caption\na.mp4,ok\n".encode("utf-16")[:-1], "line 1: not UTF-8"),
    (b'file,caption,objects\na.mp4,x,"[1, 2]"\n', "line 2: the objects are '.1, 2.'; expected names parted by ;"),
    (b'file,caption,objects\na.mp4,x,"[dog, cat]"\n', "line 2: the objects are '.dog, cat.'"),
    (b'file,caption\na.mp4,"a dog\n', "after line 1: no row of a CSV"),
    (b"file,caption\n,x\n", "line 2: it doesn't say which video"),
    (b"file,caption,split\na.mp4,x,a/b\n", "line 2: the split 'a/b'"),
    (b"file,caption,caption\na.mp4,x,y\n", "names a column twice"),
    (b"file,caption,objects\na.mp4,x,a;b;c;d;e;f;g;h;i\n", "line 2: 9 objects"),
    (b"youtube_id,start_time,caption\na,soon,y\n", "line 2: the start is 'soon'"),
    (b"file,caption\n", "no rows"), (None, "doesn't exist"),
])
def test_another_table_of_captions_is_refused_by_its_line(tmp_path, content, message):
    touch(tmp_path / "videos", "a.mp4")
    if content is not None:
        (tmp_path / "captions.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        folder_draft(tmp_path / "videos", tmp_path / "captions.csv")


def test_the_script_answers_mistakes_with_a_sentence(tmp_path, manifest):
    touch(tmp_path / "videos", "a.mp4")
    ours = ("--videos", tmp_path / "videos", "--out", tmp_path / "m.csv")
    (tmp_path / "none").mkdir()
    for arguments, told in [
        (("folder", "--videos", tmp_path / "nowhere", "--out", tmp_path / "m.csv"), "can't be listed"),
        (("folder", "--videos", tmp_path / "none", "--out", tmp_path / "m.csv"), "holds no video file"),
        (("folder", *ours, "--caption-from", "folder"), "no clip is left"),
        (("folder", *ours, "--split", "a/b"), "--split 'a/b'"), (("folder", *ours, "--val", "-1"), "--val -1"),
        (("vggsound", *ours, "--csv", tmp_path / "no.csv"), "no.csv doesn't exist"),
    ]:
        status, printed = manifest(*arguments)
        assert status == 2 and printed.startswith("error: ") and told in printed, printed
    assert not (tmp_path / "m.csv").exists()
    assert manifest("folder", *ours)[0] == 0
    kept = (tmp_path / "m.csv").read_bytes()
    status, printed = manifest("folder", *ours)
    assert status == 2 and "--overwrite" in printed and (tmp_path / "m.csv").read_bytes() == kept
    assert manifest("folder", *ours, "--overwrite", "--split", "test")[0] == 0
    assert [row.split for row in read_manifest(tmp_path / "m.csv")] == ["test"]
