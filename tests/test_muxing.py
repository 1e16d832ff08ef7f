"""A new sound under videos of all kinds that people have: as many pictures as before, at their times, tags kept."""

from __future__ import annotations

import os
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from conftest import usual_priority

from vta_sam.media import VIDEO_SUFFIXES
from vta_sam.media.audio import read_audio
from vta_sam.media.container import origin_s
from vta_sam.media.muxing import mux, picture_duration_s, plan_mux
from vta_sam.media.picture_reader import Squeeze
from vta_sam.media.video import read_clip
from vta_sam.runtime.errors import InputError

SOUND = (0.2 * np.sin(2 * np.pi * 440 * np.arange(48_000) / 16_000)).astype(np.float32)
SIZE = (64, 48)
# encoder ⇒ its pixel format, and options that make it quick
ENCODERS = {
    "libx264": ("yuv420p", {"preset": "ultrafast", "bf": "0"}),
    "libx265": ("yuv420p", {"preset": "ultrafast", "x265-params": "log-level=none:bframes=0:pools=1"}),
    "libsvtav1": ("yuv420p", {"preset": "13", "svtav1-params": "lp=1"}), "libvpx-vp9": ("yuv420p", {"cpu-used": "8"}),
    "libvpx": ("yuv420p", {"cpu-used": "8"}), "mpeg4": ("yuv420p", {}), "mpeg2video": ("yuv420p", {}),
    "mjpeg": ("yuvj420p", {}), "ffv1": ("yuv420p", {}), "prores_ks": ("yuv422p10le", {}), "gif": ("rgb8", {}),
    "wmv2": ("yuv420p", {}), "flv1": ("yuv420p", {}), "dvvideo": ("yuv420p", {}), "cinepak": ("rgb24", {}),
    "rawvideo": ("yuv420p", {}), "huffyuv": ("yuv422p", {}), "qtrle": ("rgb24", {}), "libtheora": ("yuv420p", {}),
    "msmpeg4": ("yuv420p", {}),
}
REORDERED = {"libx264": {"bf": "2", "preset": "ultrafast", "b-adapt": "0"},
             "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:bframes=2:b-adapt=0:pools=1"},
             "mpeg4": {"bf": "2"}, "mpeg2video": {"bf": "2"}}


@usual_priority()
def a_video(path: Path, encoder: str = "libx264", pictures: int = 6, times: list[int] | None = None, rotation: int = 0,
            reordered: bool = False, sound: str | None = None, size: tuple[int, int] = SIZE, **stream: Any) -> Path:
    """A few moving pictures. times: in ms; None: ten a second. sound: a layout (mono, stereo, 5.1). stream: attributes
    of the stream's codec."""
    pixel_format, options = ENCODERS[encoder]
    with av.open(str(path), "w") as container:
        video = container.add_stream(encoder, rate=25 if encoder == "dvvideo" else 10,
                                     options=REORDERED[encoder] if reordered else options)
        video.width, video.height = (720, 576) if encoder == "dvvideo" else size
        video.pix_fmt = pixel_format
        if times:
            video.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            video.set_display_rotation(rotation)
        for name, value in stream.items():
            setattr(video.codec_context, name, value)
        audio = container.add_stream("aac", rate=16_000, layout=sound) if sound else None
        for i in range(pictures):
            pixels = np.zeros((video.height, video.width, 3), np.uint8)
            pixels[:, :8 * (i % 8 + 1)] = 40 * (i % 6 + 1)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pixel_format)
            frame.pts, frame.time_base = (times[i], Fraction(1, 1000)) if times else (i, 1 / video.codec_context.rate)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            block = av.AudioFrame.from_ndarray(np.zeros((audio.layout.nb_channels, 8000), np.float32), format="fltp",
                                               layout=sound)
            block.sample_rate, block.pts, block.time_base = 16_000, 0, Fraction(1, 16_000)
            container.mux(audio.encode(block))
            container.mux(audio.encode(None))
    return path


def shown(path: Path) -> tuple[list[float], list[bytes]]:
    """Times of a file's pictures after time zero, and their pixels."""
    with av.open(str(path)) as container:
        zero_s = origin_s(container)
        frames = sorted(container.decode(video=0), key=lambda frame: frame.pts)
        return [frame.time - zero_s for frame in frames], [frame.to_ndarray().tobytes() for frame in frames]


def assert_pictures_kept(source: Path, written: Path, encoded: bool = False) -> None:
    (times, pixels), (new_times, new_pixels) = shown(source), shown(written)
    assert len(new_times) == len(times) > 0, f"{source.name}: {len(new_times)} of {len(times)} pictures"
    assert np.allclose(times, new_times, atol=1.1e-3), f"{source.name}: {times} {new_times}"
    assert encoded or pixels == new_pixels, f"{source.name}: other pictures"
    with av.open(str(written)) as container:
        first = next(packet for packet in container.demux(video=0) if packet.size)
        assert first.is_keyframe, f"{source.name}: the first picture needs others"
    length_s = picture_duration_s(written)
    assert len(read_audio(written)) / 16_000 == pytest.approx(length_s, abs=0.15), f"{source.name}: its sound"


def tag_of(path: Path) -> str:
    with av.open(str(path)) as container:
        return container.streams.video[0].codec_context.codec_tag


# (encoder, suffix of the source, whether B-frames, suffix of the result, whether encoded anew, tag)
KINDS = [
    ("libx264", ".mkv", True, ".mp4", False, "avc1"), ("libx265", ".mkv", True, ".mp4", False, "hvc1"),
    ("libx265", ".mov", False, ".mp4", False, "hvc1"), ("libsvtav1", ".mkv", False, ".mp4", False, "av01"),
    ("libsvtav1", ".webm", False, ".mp4", False, "av01"), ("libvpx-vp9", ".webm", False, ".mp4", False, "vp09"),
    ("libvpx", ".webm", False, ".mkv", False, None), ("ffv1", ".mkv", False, ".mkv", False, None),
    ("prores_ks", ".mov", False, ".mkv", False, None), ("mpeg2video", ".ts", True, ".mp4", False, None),
    ("gif", ".gif", False, ".mp4", True, "avc1"), ("wmv2", ".wmv", False, ".mp4", True, "avc1"),
    ("flv1", ".flv", False, ".mp4", True, "avc1"), ("dvvideo", ".avi", False, ".mp4", True, "avc1"),
    ("cinepak", ".avi", False, ".mp4", True, "avc1"), ("rawvideo", ".avi", False, ".mp4", True, "avc1"),
    ("huffyuv", ".avi", False, ".mp4", True, "avc1"), ("qtrle", ".mov", False, ".mp4", True, "avc1"),
    ("msmpeg4", ".avi", False, ".mp4", True, "avc1"),
]


@pytest.mark.parametrize("encoder, suffix, reordered, expected, encoded, tag", KINDS)
def test_every_picture_of_every_kind_is_kept(tmp_path, encoder, suffix, reordered, expected, encoded, tag):
    source = a_video(tmp_path / f"a{suffix}", encoder, reordered=reordered)
    plan = plan_mux(source, tmp_path / "b.mp4")
    assert plan.target.suffix == expected and plan.encoded is encoded
    assert encoded is any("encoded anew, as H.264" in note for note in plan.notes)
    written = mux(source, SOUND, 16_000, tmp_path / "b.mp4")
    assert written == plan.target and sorted(tmp_path.iterdir()) == sorted([source, written])
    assert_pictures_kept(source, written, encoded)
    assert tag is None or tag_of(written) == tag
    assert suffix in VIDEO_SUFFIXES, "a folder takes what a single file may be"


@pytest.mark.slow
def test_a_matrix_of_codecs_containers_orders_rotations_and_sounds(tmp_path):
    """None is lost, none is moved, none hangs."""
    copied = [("libx264", ".mkv .mp4 .mov .ts .avi .flv"), ("libx265", ".mkv .mp4 .mov .ts"),
              ("mpeg4", ".mkv .mp4 .avi"), ("mpeg2video", ".mkv .mp4 .ts .mpg"), ("mjpeg", ".mkv .avi .mov"),
              ("libvpx-vp9", ".mkv .webm .mp4"),
              ("ffv1", ".mkv"), ("libvpx", ".webm .mkv")]
    tried = 0
    for encoder, suffixes in copied:
        for suffix, reordered, rotation, sound, target in product(
                suffixes.split(), (False, True), (0, 90), (None, "stereo", "5.1"), (".mp4", ".mkv")):
            if reordered and encoder not in REORDERED or rotation and suffix not in (".mp4", ".mov", ".mkv") or (
                    sound == "5.1" and (suffix not in (".mkv", ".mp4") or reordered)) or (
                    sound and suffix in (".webm", ".mpg", ".avi")):
                continue
            source = a_video(tmp_path / f"{tried}-{encoder}-{reordered}-{rotation}-{sound}{suffix}", encoder, 5,
                             rotation=rotation, reordered=reordered, sound=sound)
            written = mux(source, SOUND, 16_000, tmp_path / f"{tried}-out{target}", mix=0.5 if sound else 0.0)
            assert_pictures_kept(source, written)
            tried += 1
    assert tried >= 150


def test_lengths_follow_from_the_order_of_showing(tmp_path):
    """A phone's variable rate with B-frames: mp4 claims the last picture's length by the order of decoding."""
    source = a_video(tmp_path / "a.mp4", pictures=3, times=[0, 6670, 7970], reordered=True)
    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        ends_s = float(stream.duration * stream.time_base)
    assert picture_duration_s(source) == pytest.approx(ends_s, abs=1e-3)
    clip = read_clip(source, fps=10, fits=[Squeeze(4, 4)], want_audio=False)
    assert clip.duration_s == pytest.approx(ends_s, abs=1e-3)
    written = mux(source, np.tile(SOUND, 5), 16_000, tmp_path / "b.mp4")
    assert len(read_audio(written)) / 16_000 == pytest.approx(ends_s, abs=0.1)


def test_two_pictures_at_one_time_are_a_tick_apart(tmp_path):
    source = a_video(tmp_path / "a.mkv", times=[0, 100, 200, 300, 400, 500])
    data = source.read_bytes()
    blocks = [at for at in range(len(data) - 4) if data[at] == 0xA3 and data[at + 2] == 0x81 or
              data[at:at + 1] == b"\xa3" and data[at + 3:at + 4] == b"\x81"]  # SimpleBlocks of track 1
    places = [data.index(b"\x81", at + 1) + 1 for at in blocks]
    twice = [at for at in places if data[at:at + 2] in ((200).to_bytes(2, "big"),)]
    assert len(twice) == 1, "the third picture's time was found"
    source.write_bytes(data[:twice[0]] + (100).to_bytes(2, "big") + data[twice[0] + 2:])
    assert [round(1000 * time_s) for time_s in shown(source)[0]] == [0, 100, 100, 300, 400, 500]
    written = mux(source, SOUND, 16_000, tmp_path / "b.mp4")
    assert [round(1000 * time_s) for time_s in shown(written)[0]] == [0, 100, 101, 300, 400, 500]


def test_joined_recordings_are_carried_on(tmp_path):
    one = a_video(tmp_path / "one.ts", pictures=30, sound="mono").read_bytes()
    source = tmp_path / "a.ts"
    source.write_bytes(one + one)
    clip = read_clip(source, fps=10, fits=[Squeeze(*SIZE[::-1])], want_audio=True)
    assert clip.duration_s == pytest.approx(2 * picture_duration_s(tmp_path / "one.ts"), abs=0.15)
    assert clip.duration_s == pytest.approx(picture_duration_s(source), abs=0.02), "with the sound and without"
    written = mux(source, np.tile(SOUND, 3), 16_000, tmp_path / "b.mp4")
    assert len(shown(written)[0]) == 60 and picture_duration_s(written) == pytest.approx(clip.duration_s, abs=0.02)


def test_titles_and_chapters_and_subtitles_are_kept_where_the_container_can(tmp_path):
    plain, source = a_video(tmp_path / "plain.mkv", pictures=20), tmp_path / "a.mkv"
    titles = {"title": "A walk", "date": "2024", "location": "+52.1+13.4/"}
    with av.open(str(plain)) as read, av.open(str(source), "w") as container:
        container.metadata.update(titles)
        container.set_chapters([{"id": i, "start": i * 1000, "end": (i + 1) * 1000, "time_base": Fraction(1, 1000),
                                 "metadata": {"title": name}} for i, name in enumerate(("one", "two"))])
        pictures = container.add_stream_from_template(read.streams.video[0], opaque=True)
        words = container.add_mux_stream("subrip")
        words.metadata["language"] = "eng"
        for packet in read.demux(video=0):
            if packet.size:
                packet.stream = pictures
                container.mux(packet)
        line = av.Packet(b"a dog barks")
        line.pts, line.dts, line.duration, line.time_base, line.stream = 500, 500, 700, Fraction(1, 1000), words
        container.mux(line)
    for suffix, held in ((".mp4", False), (".mkv", True)):
        plan = plan_mux(source, tmp_path / f"b{suffix}")
        assert any("where it was filmed" in note for note in plan.notes)
        assert any("subtitles (subrip)" in note for note in plan.notes) is not held
        written = mux(source, SOUND, 16_000, tmp_path / f"b{suffix}")
        with av.open(str(written)) as container:
            kept = {key.lower(): value for key, value in container.metadata.items()}
            assert kept["title"] == "A walk" and kept["date"] == "2024" and "location" not in kept
            assert [chapter["metadata"]["title"] for chapter in container.chapters()] == ["one", "two"]
            assert len(container.streams.subtitles) == held
        if held:
            with av.open(str(written)) as container:
                found = [(round(float(packet.pts * packet.time_base), 3), bytes(packet))
                         for packet in container.demux(container.streams.subtitles[0]) if packet.size]
            assert found == [(0.5, b"a dog barks")]
        assert_pictures_kept(source, written)


def test_odd_sides_and_pixel_shapes_survive_a_new_encoding(tmp_path):
    written = mux(a_video(tmp_path / "a.gif", "gif", size=(63, 47)), SOUND, 16_000, tmp_path / "b.mp4")
    with av.open(str(written)) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (62, 46)
    wide = a_video(tmp_path / "c.avi", "huffyuv", sample_aspect_ratio=Fraction(2))
    copied = a_video(tmp_path / "d.mkv", sample_aspect_ratio=Fraction(2))
    for source in (wide, copied):
        with av.open(str(mux(source, SOUND, 16_000, source.with_suffix(".mp4")))) as container, \
                av.open(str(source)) as read:
            assert container.streams.video[0].sample_aspect_ratio == read.streams.video[0].sample_aspect_ratio


def test_what_was_written_wrongly_is_not_kept(tmp_path, monkeypatch):
    """As if the muxer had dropped pictures in silence."""
    source = a_video(tmp_path / "a.mp4", pictures=12)
    written = av.container.OutputContainer.mux
    dropped = []

    class Dropping:
        def __init__(self, container):
            self.container = container

        def __getattr__(self, name):
            return getattr(self.container, name)

        def mux(self, packets):
            for packet in [packets] if isinstance(packets, av.Packet) else packets:
                if packet.stream.type == "video" and not packet.is_keyframe and not dropped:
                    dropped.append(packet)
                else:
                    written(self.container, packet)

    from vta_sam.media import muxing

    keep = muxing._Writer._write
    monkeypatch.setattr(muxing._Writer, "_write", lambda self, sink: keep(self, Dropping(sink)))
    with pytest.raises(InputError, match="holds 11 of 12 pictures, so it is not kept"):
        mux(source, SOUND, 16_000, tmp_path / "b.mp4")
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="priorities of Linux")
def test_writing_av1_leaves_the_process_its_priority(tmp_path):
    before = os.sched_getscheduler(0), os.sched_getparam(0).sched_priority
    a_video(tmp_path / "a.mkv", "libsvtav1")
    assert (os.sched_getscheduler(0), os.sched_getparam(0).sched_priority) == before
