"""Which file a result is: by its own input alone, found again, never an input itself, and never another's."""

import hashlib
import json
import os
import random
import unicodedata
from pathlib import Path

import pytest

from vta_sam.generation.inputs import is_recut, is_result, read_record, source_of, videos_in, write_record
from vta_sam.generation.planning import _caption_name
from vta_sam.runtime.errors import InputError


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(name)
    return folder


def finish(out: Path, name: str, video: Path, **more) -> None:
    """The files of a finished result."""
    touch(out, f"{name}.mp4")
    write_record(out / f"{name}.json", {"asked": {"video": video.name}, "written": f"{name}.mp4", **more})


def names_in(folder: Path, out: Path | None = None) -> dict[str, str]:
    return {video.name: name for name, video in videos_in(folder, out).items()}


def test_no_two_videos_of_a_folder_share_a_name(tmp_path):
    folder = touch(tmp_path / "f", "a.mp4", "a.mov", "a-mp4.webm", "b.MP4", "B.mkv", "c.mp4", "notes.txt", ".d.mp4")
    assert names_in(folder) == {"a.mp4": "a-mp4", "a.mov": "a-mov", "a-mp4.webm": "a-mp4-webm", "b.MP4": "b-MP4",
                                "B.mkv": "B-mkv", "c.mp4": "c"}
    folder = touch(tmp_path / "g", "x.MP4", "x.mp4", "y.mp4", "y.mov", "y-mp4.mkv", "y-mp4-mkv.avi")
    names = names_in(folder)
    assert names["x.mp4"] == f"x-mp4-{hashlib.sha256(b'x.mp4').hexdigest()[:8]}", "x-MP4 is the same on some disks"
    assert len({name.casefold() for name in names.values()}) == 6
    accents = [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")]
    folder = touch(tmp_path / "h", *(f"{accent}.mp4" for accent in accents))
    assert len({unicodedata.normalize("NFC", name) for name in names_in(folder).values()}) == 2


def test_names_of_any_letters_differ(tmp_path):
    draw = random.Random(0)
    letters = "aAß-é\u0301犬🐶. _%'"
    suffixes = (".mp4", ".MP4", ".mov", ".webm")
    for trial in range(20):
        stems = {"".join(draw.choices(letters, k=draw.randint(1, 3))).lstrip(".") or "x" for _ in range(12)}
        folder = touch(tmp_path / f"{trial}", *(stem + draw.choice(suffixes) for stem in stems for _ in range(2)))
        videos = list(folder.iterdir())
        names = names_in(folder)
        keys = {unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()) for name in names.values()}
        assert len(keys) == len(names) == len([video for video in videos if video.suffix])


def test_a_name_stays_when_videos_are_added(tmp_path):
    folder, out = touch(tmp_path / "f", "a.mp4", "b.mov"), tmp_path / "out"
    for name, video in videos_in(folder, out).items():
        finish(out, name, video)
    touch(folder, "a.mov", "b-mov.mp4", "B.mp4")
    assert names_in(folder, out) == {"a.mp4": "a", "b.mov": "b", "a.mov": "a-mov", "b-mov.mp4": "b-mov",
                                     "B.mp4": "B-mp4"}
    finish(out, "c-mov", folder / "c.mov")  # as by a version that saw c.mp4 beside it
    touch(folder, "c.mov")
    assert names_in(folder, out)["c.mov"] == "c-mov"
    assert videos_in(folder / "c.mov", out) == {"c-mov": folder / "c.mov"}


def test_a_name_that_something_else_has_is_not_taken(tmp_path):
    folder, out = touch(tmp_path / "f", "a.mp4", "b.mp4", "c.mp4"), touch(tmp_path / "out")
    finish(out, "a", Path("a.mov"))
    (out / "b.json").write_text('{"title": "notes of the user"}')
    assert names_in(folder, out) == {"a.mp4": "a-mp4", "b.mp4": "b-mp4", "c.mp4": "c"}
    other = touch(tmp_path / "g", "c.mp4")
    (other / "c.mp4").write_text("another video of this name")
    finish(out, "c", folder / "c.mp4", source=source_of(folder / "c.mp4"))
    assert names_in(folder, out)["c.mp4"] == "c" and names_in(other, out) == {"c.mp4": "c-mp4"}
    moved = touch(tmp_path / "moved", "c.mp4")
    assert names_in(moved, out) == {"c.mp4": "c"}


def test_a_result_is_no_input(tmp_path):
    folder = touch(tmp_path / "f", "in.mov", "a.mov", "a-mov.mp4", "a.mkv", "d.webm", "d.png")
    names = names_in(folder, folder)
    assert names.pop("a.mov").startswith("a-mov-"), "the user's a-mov.mp4 would be overwritten"
    # what would be written onto itself is refused when it is its turn
    assert names == {"in.mov": "in", "a-mov.mp4": "a-mov", "a.mkv": "a", "d.webm": "d-webm"}
    finish(folder, "in", folder / "in.mov")
    touch(folder, "half.mov", "half.mp4")
    write_record(folder / "half.json", {"asked": {"video": "half.mov"}, "written": None,
                                        "unfinished": ["half.mp4", "half.mkv"]})
    assert is_result(folder / "in.mp4") and is_result(folder / "half.mp4") and not is_result(folder / "in.mov")
    again = names_in(folder, folder)
    assert "in.mp4" not in again and "half.mp4" not in again and again["in.mov"] == "in" and again["half.mov"] == "half"
    results = tmp_path / "results"
    finish(results, "x", Path("x.mov"))
    with pytest.raises(InputError, match="its 1 video files are results of generation"):
        videos_in(results)
    assert list(videos_in(results / "x.mp4")) == ["x"], "named by itself it is an input"


def test_names_that_are_no_utf8(tmp_path):
    folder = touch(tmp_path / "f", "ok.mp4")
    for name in (b"caf\xe9.mp4", b"caf%E9.mov"):
        (folder / os.fsdecode(name)).write_bytes(b"")
    assert sorted(videos_in(folder)) == ["caf%E9-mov", "caf%E9-mp4", "ok"]
    video = folder / os.fsdecode(b"caf\xe9.mp4")
    finish(tmp_path / "out", "caf%E9", video)
    assert json.loads((tmp_path / "out" / "caf%E9.json").read_text(encoding="utf-8"))["asked"]["video"] == video.name
    assert names_in(folder, tmp_path / "out")[video.name] == "caf%E9"
    with pytest.raises(InputError, match=r"gone\\udcff doesn't exist"):
        videos_in(tmp_path / "gone\udcff")
    with pytest.raises(InputError, match="can't be read"):
        videos_in(tmp_path / ("x" * 300))


def test_a_changed_video_is_known_by_its_content(tmp_path):
    video = tmp_path / "in.mp4"
    for size in (10, 6 << 20):
        video.write_bytes(bytes(size))
        record = {"source": source_of(video)}
        moved = tmp_path / "moved.mp4"
        moved.write_bytes(video.read_bytes())
        assert not is_recut(record, video) and not is_recut(record, moved)
        for place in (0, size // 2, size - 1):
            changed = bytearray(size)
            changed[place] = 1
            video.write_bytes(changed)
            assert is_recut(record, video)
        video.write_bytes(bytes(size + 1))
        assert is_recut(record, video)
    assert not is_recut({}, video) and not is_recut(record, tmp_path / "gone.mp4")


def test_each_caption_has_a_file_of_its_own(tmp_path):
    long = "x" * 60
    captions = ["a dog barks", "A dog barks", "a dog barks.", "a  dog barks", "🐶", "🐱", "dog!", "dog?", "caption", "-",
                f"{long} a", f"{long} b", "𐌰" * 60, "𐌰" * 61, "𐌰" * 61 + "b", "é", "e\u0301", "caf\udce9"]
    draw = random.Random(0)
    captions += ["".join(draw.choices("aA 犬🐶-._!é\u0301", k=draw.randint(1, 80))) for _ in range(200)]
    for caption in dict.fromkeys(captions):
        name = _caption_name(caption, 0, tmp_path)
        assert read_record(tmp_path / f"{name}.json") is None, f"{caption} would take another's file"
        write_record(tmp_path / f"{name}.json", {"asked": {"caption": caption}, "written": f"{name}.wav"})
        assert _caption_name(caption, 0, tmp_path) == name
    assert _caption_name("a dog barks", 0, tmp_path) == "a-dog-barks-0"
    assert _caption_name("𐌰" * 60, 0, tmp_path) == "𐌰" * 60 + "-0"


def test_a_captions_file_of_before_is_found(tmp_path):
    finish(tmp_path, "dog-0", Path("dog.mov"))  # of a video
    assert _caption_name("dog", 0, tmp_path).startswith("dog-") and _caption_name("dog", 0, tmp_path) != "dog-0"
    write_record(tmp_path / "cat-3.json", {"asked": {"caption": "Cat!"}, "written": "cat-3.wav"})
    assert _caption_name("Cat!", 3, tmp_path) == "cat-3" != _caption_name("cat", 3, tmp_path)
