"""The record on disk: what goes in comes out, and a damaged or foreign file is refused by name."""

import dataclasses
import io
import json
import tarfile
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy
import webdataset
from webdataset.tariterators import group_by_keys, tar_file_expander

from vta_sam.clip import FEATURES, ClipFeatures
from vta_sam.dataset.shards.records import read_members, read_shard, write_shard
from vta_sam.dataset.shards.schema import (
    SOUND_HEADER_BYTES, DatasetInfo, ShardInfo, decode_record, encode_record, from_pcm16, member_key, read_dataset,
    source_video, to_pcm16
)
from vta_sam.runtime import files
from vta_sam.runtime.errors import InputError
from vta_sam.training.data_sources import EmbeddedData, ShardData


def a_clip(key="a", objects=("dog", "canary"), frames=5, seed=0, **changes):
    """A clip whose values are exact at fp16 and PCM-16."""
    rng = np.random.default_rng(seed)
    k = len(objects)

    def half(*shape):
        return rng.random(shape).astype(np.float16).astype(np.float32)

    values = dict(
        key=key, caption="a dog barks – naïvely", objects=list(objects), fps=12.5,
        waveform=from_pcm16(rng.integers(-32768, 32768, 6400).astype(np.int16)), frame_embedding=half(frames, 7),
        probs=half(frames, k), boxes=half(frames, k, 4), areas=half(frames, k), object_embedding=half(k, 3),
        caption_tokens=half(4, 6), label="dog", source="a.mp4", start_s=0.5, duration_s=0.4)
    return ClipFeatures(**{**values, **changes})


def assert_same(left, right):
    for name in {*(f.name for f in dataclasses.fields(ClipFeatures)), *FEATURES} - {"features"}:
        a, b = getattr(left, name), getattr(right, name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype == np.float32 and a.shape == b.shape, name
            assert np.array_equal(a, b), name
        else:
            assert a == b, name
    assert left.features.keys() == right.features.keys()


@pytest.mark.parametrize("changes", [
    {}, {"objects": ()}, {"objects": ("dog",), "mask_embedding": np.ones((5, 1, 256), np.float32)},
    {"key": "class/a.b %41ü"}])
def test_round_trip_is_exact(changes):
    clip = a_clip(**changes)
    assert_same(decode_record(member_key(clip.key), encode_record(clip)), clip)


def test_every_pcm_code_survives_and_overshoot_is_clipped():
    codes = np.arange(-32768, 32768).astype(np.int16)
    assert np.array_equal(to_pcm16(from_pcm16(codes)), codes)
    assert to_pcm16(np.array([1.0, 1.5, -1.5])).tolist() == [32767, 32767, -32768]


def test_nouns_that_were_left_out_are_counted_and_an_older_record_has_none():
    members = encode_record(a_clip(dropped=3))
    assert json.loads(members["json"])["dropped"] == 3 and decode_record("a", members).dropped == 3
    assert "dropped" not in json.loads(encode_record(a_clip())["json"]) and decode_record(
        "a", encode_record(a_clip())).dropped == 0
    for wrong in ("x", None, True, 10**30, [1], -1):
        words = {**json.loads(members["json"]), "dropped": wrong}
        with pytest.raises(InputError, match="'dropped' in its json member is"):
            decode_record("a", {**members, "json": json.dumps(words).encode()})


def test_arrays_of_any_layout_are_stored_in_order():
    clip = a_clip()
    clip.frame_embedding = np.asfortranarray(clip.frame_embedding)
    assert_same(decode_record("a", encode_record(clip)), a_clip())


def test_values_that_fp16_cannot_hold_are_refused():
    with pytest.raises(InputError, match="frame_embedding reaches 100000"):
        encode_record(a_clip(frame_embedding=np.full((5, 7), 1e5, np.float32)))


@pytest.mark.parametrize("damage, words", [
    (lambda m: m.pop("flac"), "no flac member"),
    (lambda m: m.update(flac=m["flac"][:20]), "flac member can't be read"),
    (lambda m: m.update(safetensors=m["safetensors"][:-4]), "safetensors member can't be read"),
    (lambda m: m.update(safetensors=safetensors.numpy.save({"probs": np.zeros(1)})), "lacks frame_embedding"),
    (lambda m: m.update(json=b"{"), "json member can't be read"),
    (lambda m: m.update(json=b"[]"), "'caption'"),
    (lambda m: m.update(json=m["json"].replace(b'"objects": ["dog",', b'"objects": [3,')), "'objects'"),
    (lambda m: m.update(json=m["json"].replace(b"16000", b"8000")), "8000 Hz"),
])
def test_a_damaged_record_is_refused_by_name(damage, words):
    members = encode_record(a_clip(key="x7"))
    damage(members)
    for unread in ((), {"waveform"}):
        with pytest.raises(InputError, match=words) as caught:
            decode_record("x7", members, unread)
        assert "'x7'" in str(caught.value)


@pytest.mark.parametrize("duration_s, frames", [
    (0.4, 2**36 - 1), (0.4, 16_000 * 3), (0, 16_000 * 700), (1e6, 2**36 - 1)])
def test_a_flac_that_claims_more_than_its_record_is_not_read(duration_s, frames, monkeypatch):
    members = encode_record(a_clip(key="x7", duration_s=duration_s))
    flac = bytearray(members["flac"])
    flac[21:26] = ((flac[21] >> 4 << 36) | frames).to_bytes(5, "big")  # 36 bits of the STREAMINFO block: all samples
    monkeypatch.setattr("soundfile.SoundFile.read", lambda *_, **__: pytest.fail("it was read"))
    for unread in ((), {"waveform"}):
        with pytest.raises(InputError, match=f"'x7': its flac member claims {frames} samples at 16000 Hz"):
            decode_record("x7", {**members, "flac": bytes(flac)}, unread)


@pytest.mark.parametrize("rate_hz, channels, duration_s, samples, words", [
    (655_350, 1, 0.4, 6_400, "sound at 655350 Hz, its json says 16000 Hz"),
    (16_000, 8, 0.4, 6_400, "8 channels, expected 1"),
    (384_000, 1, 14_000.0, 384_000 * 14_000, "claims 5376000000 samples"),
])
def test_a_flac_that_lies_about_its_rate_or_channels_is_not_read(rate_hz, channels, duration_s, samples, words,
                                                                 monkeypatch):
    members = encode_record(a_clip(key="x7", duration_s=duration_s))
    if rate_hz == 384_000:  # its json says so, too
        members["json"] = members["json"].replace(b"16000", b"384000")
    flac = bytearray(members["flac"])
    flac[18:26] = (rate_hz << 44 | channels - 1 << 41 | 15 << 36 | samples).to_bytes(8, "big")
    monkeypatch.setattr("soundfile.SoundFile.read", lambda *_, **__: pytest.fail("it was read"))
    for unread in ((), {"waveform"}):
        with pytest.raises(InputError, match=words):
            decode_record("x7", {**members, "flac": bytes(flac)}, unread)


@pytest.mark.parametrize("words, said", [
    (b"[" * 200_000, "json member can't be read"), (b"1" * 5_000, "json member can't be read"),
    (b'{"caption": "%s"}' % (b"x" * 2**24), "at most 16777216 are read"),
])
def test_a_json_beyond_reason_is_refused_in_a_sentence(tmp_path, words, said):
    members = encode_record(a_clip(key="x7"))
    with pytest.raises(InputError, match=said):
        decode_record("x7", {**members, "json": words})
    for name in ("start_s", "duration_s", "fps"):
        content = {**json.loads(members["json"]), name: 10**400}
        with pytest.raises(InputError, match=f"'{name}' in its json member is 1000"):
            decode_record("x7", {**members, "json": json.dumps(content).encode()})
    (tmp_path / "dataset.json").write_bytes(words[:200_000])
    with pytest.raises(InputError, match="dataset.json can't be read"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("source", ["/etc/passwd", "../a.mp4", "a/../../b.mp4", "a\0.mp4"])
def test_a_source_that_leaves_the_folder_is_refused(tmp_path, source):
    record = a_clip(source=source)
    for asked in (ShardData("x", videos=str(tmp_path)).video, EmbeddedData(str(tmp_path), {}).video,
                  EmbeddedData(str(tmp_path), {}).onsets_s):
        with pytest.raises(InputError, match="which leaves the folder of the videos"):
            asked(record)
    assert source_video(tmp_path, a_clip(source="b/a.mp4")) == tmp_path / "b" / "a.mp4"


@pytest.mark.parametrize("samples, rate_hz", [(1, 8_000), (6_399, 16_000), (70_001, 44_100), (2**20 + 1, 48_000)])
def test_a_waveform_that_is_not_read_has_its_length(samples, rate_hz):
    noise = from_pcm16(np.random.default_rng(0).integers(-9000, 9000, samples).astype(np.int16))
    members = encode_record(a_clip(waveform=noise, sample_rate_hz=rate_hz, duration_s=samples / rate_hz))
    members["flac"] = members["flac"][:SOUND_HEADER_BYTES]
    found = decode_record("a", members, {"waveform"})
    assert found.waveform.shape == (samples,) and not found.waveform.any() and found.waveform.strides == (0,)
    with pytest.raises(InputError, match="flac member can't be read"):
        decode_record("a", members)


def test_optional_features_that_nobody_reads_are_left_out():
    members = encode_record(a_clip(objects=("dog",), mask_embedding=np.ones((5, 1, 256), np.float32)))
    unread = {"mask_embedding", "probs"}
    assert set(decode_record("a", members, unread).features) == set(FEATURES) - {"mask_embedding"}


def test_an_immense_member_is_not_read(tmp_path, monkeypatch):
    write_shard(tmp_path / "large.tar", [a_clip()])
    assert len(list(read_shard(tmp_path / "large.tar"))) == 1
    monkeypatch.setattr(files, "_LARGEST_MEMBER", 1000)
    with pytest.raises(InputError, match="larger than"):
        list(read_shard(tmp_path / "large.tar"))


def header_of(kind, size, name="a.json"):
    """The block of a tar's header that claims any size, also one below zero."""
    member = tarfile.TarInfo(name)
    member.type = kind
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = (size % 2**88 | 0x80 << 88 if size >= 0 else size % 2**96).to_bytes(12, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE,
                                  tarfile.DIRTYPE])
@pytest.mark.parametrize("size", [2**33, 2**50, 2**80, -512, -2048])
def test_a_header_that_claims_what_the_file_has_not_takes_no_memory(tmp_path, kind, size):
    (tmp_path / "x.tar").write_bytes(header_of(tarfile.REGTYPE, 0) * 3 + header_of(kind, size) + bytes(2048))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="x.tar is cut short or is no tar .*(claims|larger than)"):
            list(read_shard(tmp_path / "x.tar"))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


SPARSE = {"0.0": {"size": 2**29, "numblocks": 1, "offset": 2**29, "numbytes": 0},
          "0.1": {"size": 2**29, "map": f"{2**29},0"},
          "1.0": {"major": 1, "minor": 0, "name": "a.flac", "realsize": 2**29}}


def sparse_tar(kind):
    """2 kB that claim a member of half a GB, in one of the ways in which GNU tar writes sparse files."""
    if kind == "header":
        block = bytearray(header_of(tarfile.GNUTYPE_SPARSE, 0, "a.flac"))
        for place, number in ((386, 2**29), (398, 0), (483, 2**29)):  # a piece's place and length, the whole length
            block[place:place + 12] = (0x80 << 88 | number).to_bytes(12, "big")
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        return bytes(block) + bytes(2048)
    member = tarfile.TarInfo("a.flac")
    member.pax_headers = {f"GNU.sparse.{name}": str(value) for name, value in SPARSE[kind].items()}
    member.size = 1024 if kind == "1.0" else 0
    return member.tobuf(tarfile.PAX_FORMAT) + b"1\n0\n512\n".ljust(512, b"\0") + bytes(2048)


@pytest.mark.parametrize("kind", ["header", *SPARSE])
def test_a_sparse_member_is_not_read(tmp_path, kind):
    (tmp_path / "x.tar").write_bytes(sparse_tar(kind))
    with pytest.raises(InputError, match="x.tar is cut short or is no tar .*'a.flac' is sparse"):
        list(read_shard(tmp_path / "x.tar"))


def test_shards_are_byte_stable_and_read_back(tmp_path):
    clips = [a_clip(key=f"clip.{i}", seed=i) for i in range(4)]
    assert write_shard(tmp_path / "a.tar", clips) == 4
    write_shard(tmp_path / "b.tar", clips)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    for found, clip in zip(read_shard(tmp_path / "a.tar"), clips, strict=True):
        assert_same(found, clip)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar", "b.tar"]


def test_webdataset_reads_the_same_records(tmp_path):
    clips = [a_clip(key=f"clip.{i}", seed=i) for i in range(3)]
    write_shard(tmp_path / "a.tar", clips)
    samples = webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False)
    for sample, clip in zip(samples, clips, strict=True):
        assert_same(decode_record(sample["__key__"], sample), clip)


@pytest.mark.parametrize("names", [
    ("a.json", "a.flac", "a.safetensors"), ("./a.json", "x/a.FLAC", "x/y.z/b.json", "x/y.z/b.txt", "x/y.z/b.flac"),
    ("__meta__", "__index__.json", "__x__/a.json", "a.json", "README", "notes.txt", "b.JSON", "b.jpg.txt"),
    ("%2E.json", ".json", "x/.flac", "a", "é ü.json", "é ü.safetensors", "c" * 120 + ".json"),
])
def test_records_are_grouped_as_webdataset_groups_them(tmp_path, names):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        folder = tarfile.TarInfo("x")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for number, name in enumerate(names):
            header = tarfile.TarInfo(name)
            header.size = 600 * number
            tar.addfile(header, io.BytesIO(bytes([number]) * 600 * number))
    suffixes = {"json", "flac", "safetensors"}
    with open(tmp_path / "a.tar", "rb") as file:
        expected = [(sample["__key__"], {suffix: sample[suffix] for suffix in suffixes & set(sample)})
                    for sample in group_by_keys(tar_file_expander([{"url": "", "stream": file}]), suffixes=suffixes)]
    assert list(read_members(tmp_path / "a.tar")) == expected and expected


def test_a_shard_may_be_empty_but_not_hold_a_key_twice(tmp_path):
    assert write_shard(tmp_path / "empty.tar", []) == 0
    assert list(read_shard(tmp_path / "empty.tar")) == []
    with pytest.raises(InputError, match="two records have the key 'a'"):
        write_shard(tmp_path / "twice.tar", [a_clip(), a_clip()])
    assert [p.name for p in tmp_path.iterdir()] == ["empty.tar"]


@pytest.mark.parametrize("kept", [0.999, 0.7, 0.3, 0.0])
def test_a_shard_cut_anywhere_is_refused_by_name(tmp_path, kept):
    write_shard(tmp_path / "whole.tar", [a_clip(key=f"c{i}") for i in range(3)])
    data = (tmp_path / "whole.tar").read_bytes().rstrip(b"\0")
    (tmp_path / "cut.tar").write_bytes(data[:int(kept * len(data))])
    with pytest.raises(InputError, match="cut.tar is cut short or is no tar"):
        list(read_shard(tmp_path / "cut.tar"))


INFO = DatasetInfo(
    grounder="tiny-1", encoder="tiny-2", fps=12.5, sample_rate_hz=16000, frame_dim=7, object_dim=3, caption_dim=6,
    config_hash="c", manifest_hash="m", code_version="0",
    splits={"train": [ShardInfo("train-000000.tar", 3, 1), ShardInfo("train-000001.tar", 0, 4)]})


def test_dataset_json_round_trip_and_counts(tmp_path):
    for shard in INFO.splits["train"]:
        write_shard(tmp_path / shard.name, [])
    INFO.write(tmp_path)
    info = read_dataset(tmp_path)
    assert info == INFO and info.records("train") == 3
    assert [shard.name for shard in info.shards("train")] == ["train-000000.tar"]
    with pytest.raises(InputError, match="no split 'test'; it has train"):
        info.records("test")
    info.require("data", fps=12.5, frame_dim=7)
    with pytest.raises(InputError, match="data: fps is 12.5, expected 8"):
        info.require("data", fps=8.0, frame_dim=7)


def test_dataset_json_of_an_earlier_and_of_a_later_release_is_read(tmp_path):
    for shard in INFO.splits["train"]:
        write_shard(tmp_path / shard.name, [])
    earlier = dataclasses.replace(INFO, format_version=1)
    content = json.loads(earlier.write(tmp_path).read_text())
    assert set(content) == set(EARLIEST) and read_dataset(tmp_path) == earlier
    assert earlier.known_settings is None and earlier.fingerprint == INFO.fingerprint
    assert "the rules that took nouns from captions; the comm" in earlier.lacks
    assert {"settings", "nouns"}.isdisjoint(earlier.trained_on)
    some = dataclasses.replace(earlier, recipes={"grounder": {}}, settings={"encoder": {"template": "{}"}})
    some.write(tmp_path)
    assert read_dataset(tmp_path) == some and "doesn't say the rules that took" in some.lacks
    later = json.loads(dataclasses.replace(INFO, nouns={"tagger": "x", "rules": 2}).write(tmp_path).read_text())
    shards = {"train": [{**shard, "colour": "red"} for shard in later["splits"]["train"]]}
    (tmp_path / "dataset.json").write_text(json.dumps({**later, "splits": shards, "colour": 2}))
    with pytest.warns(UserWarning, match=r"dataset\.json says 'colour', which this release doesn't know"):
        found = read_dataset(tmp_path)
    assert found == dataclasses.replace(INFO, nouns={"tagger": "x", "rules": 2}) and found.lacks == ""
    assert found.fingerprint == INFO.fingerprint and found.known_settings == {}
    assert found.trained_on["nouns"] == {"tagger": "x", "rules": 2} and found.trained_on["settings"] == {}
    more = dataclasses.replace(INFO, dims={"flow_dim": 3})
    more.write(tmp_path)
    found = read_dataset(tmp_path)
    assert found == more and found.dimensions["flow_dim"] == 3 and found.dimensions["frame_dim"] == 7
    assert found.fingerprint != INFO.fingerprint


EARLIEST = ("grounder", "encoder", "fps", "sample_rate_hz", "frame_dim", "object_dim", "caption_dim", "config_hash",
            "manifest_hash", "code_version", "splits", "format_version")


@pytest.mark.parametrize("content, words", [
    (None, "doesn't exist"), ("{", "can't be read"), ("{}", "was not written by"), ("[1]", "was not written by"),
    ('{"format_version": 99}', "format version 99.*update"), ('{"format_version": 0}', "format version 0.*extract"),
    ('{"format_version": 1, "colour": 2}', "unknown \\['colour'\\]"),
    (json.dumps(dataclasses.asdict(INFO)), "not in the folder"),
    (json.dumps({**dataclasses.asdict(INFO), "splits": {"train": [{"name": 1}]}}), "'splits'"),
    (json.dumps({**dataclasses.asdict(INFO), "dims": 3}), "'dims' is 3, expected .name"),
    (json.dumps({**dataclasses.asdict(INFO), "fps": "8"}), "'fps' is '8', expected a number"),
    (json.dumps({**dataclasses.asdict(INFO), "frame_dim": None}), "'frame_dim' is None, expected a whole number"),
    (json.dumps({**dataclasses.asdict(INFO), "encoder": [1]}), "'encoder' is .*, expected a text"),
    (json.dumps({**dataclasses.asdict(INFO), "settings": {"encoder": 3}}), "'settings' is .*, expected .name"),
    (json.dumps({name: dataclasses.asdict(INFO)[name] for name in EARLIEST}), "lacks .'nouns', 'recipes', 'settings'"),
])
def test_a_foreign_or_unfinished_dataset_is_refused_in_words(tmp_path, content, words):
    if content is not None:
        (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(InputError, match=words):
        read_dataset(tmp_path)


def a_tar(path, names):
    """A tar of members of the clips a and b, by their names; x.a.json is a.json under another name."""
    members = {f"{member_key(key)}.{suffix}": data for key in "ab" for suffix, data in
               encode_record(a_clip(key)).items()}
    with tarfile.open(path, "w") as tar:
        for name in names:
            data = members[name.replace("x.", "", 1)]
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return path


A, B = ("a.json", "a.flac", "a.safetensors"), ("b.json", "b.flac", "b.safetensors")


@pytest.mark.parametrize("names, said", [
    ((A[0], B[0], A[1], B[1], A[2], B[2]), "a.flac stands apart from the other members of its clip; the members of a "
                                           "clip must stand together"),
    ((B[1], A[1], A[0], B[0], A[2], B[2]), "b.json stands apart"),
    ((*A, A[1], *B), "a.flac stands twice in the tar"),
    ((*A, *B, *A), "a.json stands apart"),
    (("x.a.json", "x.a.flac", "x.a.safetensors"), "x.a.json has a dot in its clip's name, which readers cut"),
])
def test_members_that_stand_where_they_must_not(tmp_path, names, said):
    with pytest.raises(InputError, match=said):
        list(read_shard(a_tar(tmp_path / "x.tar", names)))


def test_members_in_another_order_within_a_clip_are_read(tmp_path):
    path = a_tar(tmp_path / "x.tar", (*A[::-1], B[1], B[0], B[2]))
    assert [clip.key for clip in read_shard(path)] == ["a", "b"]
