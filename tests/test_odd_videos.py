"""Videos whose pictures don't simply begin at zero and follow each other are read and written as players show them."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from browser import launched_browser
from conftest import REPOSITORY, coded_grey, decode_grey, write_video
from mp4_atoms import add_to_sample_description
from odd_videos import KINDS, PLAIN, RATES, REORDERED, SLOW_KINDS, STEPS, Odd, edited, sound, whole

from vta_sam.media import VIDEO_SUFFIXES
from vta_sam.media.audio import read_audio
from vta_sam.media.container import origin_s
from vta_sam.media.muxing import mux, picture_duration_s, plan_mux
from vta_sam.media.picture_reader import Squeeze
from vta_sam.media.video import read_clip
from vta_sam.runtime.errors import InputError

SOUND = (0.2 * np.sin(2 * np.pi * 440 * np.arange(16_000 * 12) / 16_000)).astype(np.float32)
AAC_FRAME_S = 1024 / 16_000


def shown(path: Path) -> tuple[list[float], list[int], list[bytes]]:
    """What FFmpeg shows from time zero on: times after it, numbers, and pixels."""
    with av.open(str(path)) as container:
        zero_s = origin_s(container)
        frames = [frame for frame in container.decode(video=0) if frame.time is not None]
        frames = sorted((frame for frame in frames if frame.time >= zero_s - 1e-6), key=lambda frame: frame.time)
        return ([frame.time - zero_s for frame in frames],
                [decode_grey(frame.to_ndarray(format="rgb24")) for frame in frames],
                [frame.reformat(format="rgb48le").to_ndarray().tobytes() for frame in frames])


def assert_shown(odd: Odd, fps: float) -> None:
    """Frame i is the picture on screen at (i + 0.5) / fps, and the last one ends not before it comes."""
    clip = read_clip(odd.path, fps=fps, fits=[Squeeze(24, 32)], want_audio=False)
    middles_s = (np.arange(len(clip.frames[0])) + 0.5) / fps
    on_screen = np.maximum(0, np.searchsorted(np.array(odd.times_s), middles_s + 1e-3, side="right") - 1)
    assert [decode_grey(frame) for frame in clip.frames[0]] == [odd.numbers[n] % 24 for n in on_screen]
    assert clip.duration_s > odd.times_s[-1]
    assert clip.duration_s == pytest.approx(picture_duration_s(odd.path), abs=2e-3)


def assert_written(odd: Odd, target: Path) -> None:
    """The new file shows the same pictures at the same times, a whole one first, over as much sound."""
    plan = plan_mux(odd.path, target)
    assert plan.encoded is odd.encoded
    written = mux(odd.path, SOUND, 16_000, target)
    assert written == plan.target and not list(target.parent.glob(".*partial*"))
    times_s, numbers, pixels = shown(written)
    assert len(times_s) == len(odd.times_s) and np.allclose(times_s, odd.times_s, atol=1.1e-3), times_s
    assert numbers == [number % 24 for number in odd.numbers]
    assert odd.encoded or pixels == shown(odd.path)[2], "copied byte for byte"
    with av.open(str(written)) as container:
        assert next(packet for packet in container.demux(video=0) if packet.size).is_keyframe
    longer_s = len(read_audio(written)) / 16_000 - picture_duration_s(written)
    assert -1e-3 <= longer_s <= AAC_FRAME_S + 1e-3, "sound as long as the pictures"


def assert_right(odd: Odd, fps: float = 12.5) -> None:
    times_s, numbers, _ = shown(odd.path)
    assert len(times_s) == len(odd.times_s) and np.allclose(times_s, odd.times_s, atol=1.1e-3), times_s
    assert numbers == [number % 24 for number in odd.numbers], "the file is what its kind says"
    assert_shown(odd, fps)
    assert_written(odd, odd.path.with_name("new.mp4"))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_times_is_read_and_written_as_it_is_shown(tmp_path, kind):
    assert_right(KINDS[kind](tmp_path), 2.0 if "26.5 h" in kind else 12.5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SLOW_KINDS)
def test_each_kind_of_stream_is_read_and_written_as_it_is_shown(tmp_path, kind):
    assert_right(SLOW_KINDS[kind](tmp_path))


@pytest.mark.parametrize("rate", RATES, ids=lambda rate: f"{float(rate):g} fps")
def test_each_rate_is_kept(tmp_path, rate):
    for suffix, options in (("mp4", PLAIN), ("mkv", REORDERED), ("ts", REORDERED)):
        odd = whole(tmp_path / f"a.{suffix}", [float(i / rate) for i in range(9)], fps=rate, options=options)
        assert_right(odd, 2 * float(rate))


PLAY = """async address => {
    const video = document.createElement("video");
    video.muted = true;
    const end = new Promise(done => {
        video.onended = () => done("ended");
        video.onerror = () => done(video.error.message);
        setTimeout(() => done("goes on"), 20000);
    });
    video.src = address;
    await video.play();
    return [await end, video.duration, video.getVideoPlaybackQuality().totalVideoFrames];
}"""


@pytest.mark.slow
def test_a_browser_plays_what_is_written_as_long_and_every_picture(tmp_path):
    """Chromium follows edit lists by itself."""
    played = ("edit that cuts the tail, mp4", "edit that cuts both, with sound, mp4", "two edits, mp4",
              "edit that cuts the head among B-frames, mp4", "no whole picture first, ts", "pictures before zero, mkv",
              "pictures 2 s after the sound, ts", "begins 0.2 s before the clock turns over, a.ts")
    with launched_browser() as browser:
        page = browser.new_page()
        (tmp_path / "empty.html").write_text("<!DOCTYPE html>")
        page.goto((tmp_path / "empty.html").as_uri())
        for number, kind in enumerate(played):
            (tmp_path / str(number)).mkdir()
            odd = KINDS[kind](tmp_path / str(number))
            written = mux(odd.path, SOUND, 16_000, odd.path.with_name("new.mp4"))
            end, length_s, pictures = page.evaluate(PLAY, written.as_uri())
            assert end == "ended" and pictures == len(odd.times_s), (kind, end, pictures)
            assert length_s == pytest.approx(picture_duration_s(odd.path), abs=AAC_FRAME_S), kind


def test_matroska_keeps_what_an_edit_list_shows(tmp_path):
    """It has no edit lists: what is cut away is left out, or the rest encoded anew."""
    tail = edited(tmp_path / "tail.mp4", [(0.2, 0.0)], range(5), options=PLAIN)
    assert_written(tail, tmp_path / "tail.mkv")
    head = edited(tmp_path / "head.mp4", [(0.28, 0.2)], range(5, 12), encoded=True)
    assert_written(head, tmp_path / "head.mkv")
    assert plan_mux(head.path, tmp_path / "a.mkv").notes == (
        ".mkv can't cut pictures out as its edit list does, so they are encoded anew, as H.264",)


def test_an_edit_that_begins_beyond_the_pictures_is_refused(tmp_path):
    odd = edited(tmp_path / "a.mp4", [(0.2, 9.0)], [])
    with pytest.raises(InputError, match="a.mp4: its edit list shows none of its pictures"):
        mux(odd.path, SOUND, 16_000, tmp_path / "b.mp4")


@pytest.mark.parametrize("suffix, codec", [("mp4", "libx264"), ("mkv", "libx264"), ("webm", "libvpx-vp9")])
def test_a_video_without_a_decodable_picture_is_refused_in_words(tmp_path, suffix, codec):
    path = write_video(tmp_path / f"a.{suffix}", codec=codec, times_s=STEPS)
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        stored = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    for packet in stored:
        at = data.index(packet)
        data[at + 5:at + len(packet)] = b"\x55" * (len(packet) - 5)
    path.write_bytes(data)
    for tried in (lambda: read_clip(path, fps=5, fits=[Squeeze(4, 4)], want_audio=False),
                  lambda: mux(path, SOUND, 16_000, tmp_path / "b.mp4")):
        with pytest.raises(InputError, match=f"a.{suffix}: .*(damaged|decoded)") as caught:
            tried()
        assert "partial" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("pictures, claimed_s, expected_s", [
    (1, 10.0, 10.0), (2, 0.5, 0.54), (2, 3 * 3600.0, 1.04), (1, 3 * 3600.0, 600.0)])
def test_the_last_picture_lasts_as_long_as_can_be_believed(tmp_path, suffix, pictures, claimed_s, expected_s):
    """A picture alone may stay for minutes; behind others, hours are a writer's mistake."""
    plain, path = write_video(tmp_path / f"plain.{suffix}", times_s=STEPS[:pictures]), tmp_path / f"a.{suffix}"
    with av.open(str(plain)) as read, av.open(str(path), "w") as written:
        stream = written.add_stream_from_template(read.streams.video[0], opaque=True)
        stored = [packet for packet in read.demux(video=0) if packet.size]
        stored[-1].duration = round(claimed_s / stored[-1].time_base)
        for packet in stored:
            packet.stream = stream
            written.mux(packet)
    clip = read_clip(path, fps=2, fits=[Squeeze(4, 4)], want_audio=False)
    assert clip.duration_s == pytest.approx(expected_s, abs=2e-3)
    assert picture_duration_s(path) == pytest.approx(expected_s, abs=2e-3)


def test_pictures_that_change_their_size_are_kept(tmp_path):
    first = write_video(tmp_path / "first.ts", times_s=STEPS)
    second = write_video(tmp_path / "second.ts", times_s=[0.48 + time_s for time_s in STEPS], size=(96, 64))
    source = tmp_path / "a.ts"
    source.write_bytes(first.read_bytes() + second.read_bytes())
    with av.open(str(mux(source, SOUND, 16_000, tmp_path / "b.mp4"))) as container:
        found = [(frame.width, round(frame.time, 3)) for frame in container.decode(video=0)]
    assert found == [(64 if i < 12 else 96, round(i / 25, 3)) for i in range(24)]
    clip = read_clip(source, fps=25, fits=[Squeeze(24, 32)], want_audio=False)
    assert [decode_grey(frame) for frame in clip.frames[0]] == 2 * list(range(12))


def test_sizes_beyond_the_limit_are_refused_by_a_sentence(tmp_path):
    path = write_video(tmp_path / "a.mp4", size=(8200, 16), times_s=[0.0])
    for tried in (lambda: read_clip(path, fps=5, fits=[Squeeze(4, 4)], want_audio=False),
                  lambda: plan_mux(path, tmp_path / "b.mp4"), lambda: mux(path, SOUND, 16_000, tmp_path / "b.mp4")):
        with pytest.raises(InputError, match="8200x16 pixels; at most 8192"):
            tried()


def test_dolby_vision_keeps_its_settings(tmp_path):
    """A record of 24 bytes beside the pictures, without which a player shows them in wrong colours."""
    settings = bytes([1, 0, 8 << 1, 1 << 3 | 5, 1 << 4]) + bytes(19)
    source = write_video(tmp_path / "a.mp4", codec="libx265", times_s=STEPS[:4], options={
        "preset": "ultrafast", "x265-params": "log-level=none:pools=1:bframes=0"})
    add_to_sample_description(source, "hev1", "dvvC", settings)
    for suffix in ("mp4", "mkv"):
        written = mux(source, SOUND, 16_000, tmp_path / f"b.{suffix}").read_bytes()
        assert settings in written and (suffix == "mkv" or b"dvvC" in written)
    source.write_bytes(source.read_bytes().replace(b"hev1", b"dvh1"))
    with av.open(str(mux(source, SOUND, 16_000, tmp_path / "c.mp4"))) as container:
        assert container.streams.video[0].codec_context.codec_tag == "dvh1"
    assert plan_mux(source, tmp_path / "c.mov").notes == ("left out: Dolby Vision's settings",)


def test_what_an_hdr_screen_was_mastered_for_is_kept(tmp_path):
    """In the stream, as x265 writes it, and in the container, as it stands beside VP9 and AV1."""
    mastering = np.array([13250, 34500, 7500, 3000, 34000, 16000, 15635, 16450], ">u2").tobytes()
    in_stream = write_video(
        tmp_path / "a.mov", codec="libx265", times_s=STEPS[:3], pixel_format="yuv420p10le", options={
            "preset": "ultrafast",
            "x265-params": "log-level=none:pools=1:hdr10=1:max-cll=1000,400:colorprim=9:transfer=16:colormatrix=9:"
                           "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"})
    in_file = write_video(tmp_path / "b.mp4", codec="libvpx-vp9", times_s=STEPS[:3], options={"cpu-used": "8"})
    add_to_sample_description(in_file, "vp09", "mdcv", mastering + np.array([10**7, 50], ">u4").tobytes())
    add_to_sample_description(in_file, "vp09", "clli", np.array([1000, 400], ">u2").tobytes())

    def marks(path: Path) -> list[float]:
        with av.open(str(path)) as container:
            frame = next(container.decode(video=0))
            context = container.streams.video[0].codec_context
        screen = np.frombuffer(bytes(frame.side_data.get("MASTERING_DISPLAY_METADATA")), np.int32)
        light = np.frombuffer(bytes(frame.side_data.get("CONTENT_LIGHT_LEVEL")), np.int32)
        return [*(screen[:20:2] / screen[1:20:2]), *screen[20:], *light, context.color_primaries, context.color_trc,
                context.colorspace, context.color_range]

    for source in (in_stream, in_file):
        expected = marks(source)
        assert len(expected) == 18 and expected[12:14] == [1000, 400]
        for suffix in ("mp4", "mkv"):
            assert marks(mux(source, SOUND, 16_000, tmp_path / f"new.{suffix}")) == pytest.approx(expected, rel=1e-3)


def test_transparency_is_kept_or_named(tmp_path):
    source = write_video(tmp_path / "a.webm", codec="libvpx-vp9", times_s=STEPS[:4], pixel_format="yuva420p",
                         options={"cpu-used": "8"})
    beside = b"\x75\xa1"  # BlockAdditions, one a picture
    assert source.read_bytes().count(beside) == 4
    assert plan_mux(source, tmp_path / "b.mp4").notes == ("left out: its transparency",)
    assert plan_mux(source, tmp_path / "b.mkv").notes == ()
    assert mux(source, SOUND, 16_000, tmp_path / "b.mkv").read_bytes().count(beside) == 4


def with_more(path: Path, source: Path, more: str) -> Path:
    """A copy of a video with another picture stream, a cover or an attachment."""
    with av.open(str(source)) as read, av.open(str(path), "w") as written:
        streams = [written.add_stream_from_template(read.streams.video[0], opaque=True)]
        if more == "attachment":
            written.add_attachment("note.txt", "text/plain", b"a walk")
        elif more == "stream":
            streams.append(written.add_stream_from_template(read.streams.video[0], opaque=True))
        else:
            cover = written.add_stream("mjpeg", rate=1)
            cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
            cover.disposition = av.stream.Disposition.attached_pic
            frame = av.VideoFrame(64, 48, "yuvj420p")
            frame.pts = 0
            covers = cover.encode(frame) + cover.encode(None)
        for packet in read.demux(video=0):
            for stream in streams if packet.size else ():
                copy = av.Packet(bytes(packet))
                copy.pts, copy.dts, copy.time_base, copy.stream = packet.pts, packet.dts, packet.time_base, stream
                copy.is_keyframe = packet.is_keyframe
                written.mux(copy)
        if more == "cover":
            written.mux(covers)
    return path


@pytest.mark.parametrize("more, suffix, note", [
    ("stream", "mkv", "left out: another picture stream (1)"), ("cover", "mp4", "left out: its cover"),
    ("attachment", "mkv", "left out: an attachment (1)")])
def test_what_else_a_file_holds_is_named(tmp_path, more, suffix, note):
    plain = write_video(tmp_path / f"plain.{suffix}", times_s=STEPS)
    source = with_more(tmp_path / f"a.{suffix}", plain, more)
    assert plan_mux(source, tmp_path / "b.mkv").notes == (note,)
    assert_written(Odd(source, STEPS, range(12)), tmp_path / "b.mkv")


@pytest.mark.parametrize("times", [[0, 3600, 7200], [0, 3000, 9000, 12_000]], ids=["25 fps", "variable"])
def test_timecodes_are_kept(tmp_path, times):
    """They count frames of the pictures' rate, which the muxer would take from the ticks of the clock, 90,000 here."""
    source = tmp_path / "a.mov"
    with av.open(str(source), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "crf": "12"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.metadata["timecode"] = "01:02:03:04"
        video.codec_context.time_base = Fraction(1, 90_000)
        for i, pts in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), coded_grey(i), np.uint8), format="rgb24")
            frame.pts, frame.time_base = pts, Fraction(1, 90_000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    with av.open(str(source)) as container:
        assert [stream.type for stream in container.streams] == ["video", "data"]
    for suffix in ("mp4", "mov", "mkv"):
        assert plan_mux(source, tmp_path / f"b.{suffix}").notes == ()
        with av.open(str(mux(source, SOUND, 16_000, tmp_path / f"b.{suffix}"))) as container:
            tags = {key.lower(): value for key, value in container.streams.video[0].metadata.items()}
        assert tags["timecode"] == "01:02:03:04"


def test_a_tape_is_encoded_anew(tmp_path):
    """FFmpeg takes the clock's ticks for the rate of raw DV, which has a timecode too."""
    source = write_video(tmp_path / "a.dv", codec="dvvideo", size=(720, 576), times_s=STEPS[:3])
    assert_written(Odd(source, STEPS[:3], range(3), encoded=True), tmp_path / "b.mp4")


@pytest.mark.parametrize("codec, settings", [
    ("libvpx-vp9", {"options": {"cpu-used": "8"}}), ("mpeg2video", {}), ("mpeg4", {}),
    ("mjpeg", {"pixel_format": "yuvj420p"}), ("prores_ks", {"pixel_format": "yuv422p10le"})])
def test_each_container_gets_what_it_holds(tmp_path, codec, settings):
    """What FFmpeg's table says that QuickTime holds, its muxer may refuse."""
    source = write_video(tmp_path / "a.mkv", codec=codec, times_s=STEPS[:4], **settings)
    for suffix in (".mp4", ".m4v", ".mov", ".mkv"):
        plan = plan_mux(source, tmp_path / f"b{suffix}")
        assert mux(source, SOUND, 16_000, tmp_path / f"b{suffix}") == plan.target and not plan.encoded
        assert len(shown(plan.target)[0]) == 4


def test_an_edited_video_that_is_encoded_anew_keeps_its_marks(tmp_path):
    odd = edited(tmp_path / "a.mp4", [(0.12, 0.0), (0.16, 0.24)], [0, 1, 2, 6, 7, 8, 9], encoded=True, options=PLAIN,
                 rotation=90, sound=sound(0.3))
    assert_written(odd, tmp_path / "b.mp4")
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert next(container.decode(video=0)).rotation == 90


def test_a_folder_takes_what_a_single_file_may_be():
    assert VIDEO_SUFFIXES >= set(".gif .vob .mxf .asf .divx .qt .3g2 .3gp .ogv .mts .m2ts .wmv .flv .dv .mpg".split())


def test_every_test_that_the_tables_of_media_name_exists():
    text = (REPOSITORY / "docs" / "media.md").read_text(encoding="utf-8")
    functions = {name for path in (REPOSITORY / "tests").glob("test_*.py")
                 for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)}
    files = re.findall(r"`(tests/\w+\.py)`", text)
    named = re.findall(r"`(test_\w+)`", text)
    assert len(named) >= 30 and files
    stated = {name: int(count) for count, name in re.findall(r"\| (\d+) \| `(test_\w+)`", text)}
    assert stated["test_each_kind_of_times_is_read_and_written_as_it_is_shown"] == len(KINDS)
    assert stated["test_each_kind_of_stream_is_read_and_written_as_it_is_shown"] == len(SLOW_KINDS)
    assert stated["test_each_rate_is_kept"] == 3 * len(RATES)
    assert not [name for name in named if name not in functions]
    assert not [name for name in files if not (REPOSITORY / name).is_file()]
