"""Pictures are those on screen at their frame's time, sound stays with them, and what can't be read is refused."""

from fractions import Fraction

import av
import numpy as np
import pytest
from conftest import coded_grey, decode_grey

from vta_sam.clip import ClipSpec
from vta_sam.media.audio import read_audio
from vta_sam.media.muxing import mux, picture_duration_s
from vta_sam.media.picture_reader import CentreCrop, Squeeze, Within
from vta_sam.media.video import OnScreen, probe, read_clip, stream_clip
from vta_sam.runtime.errors import InputError

SIZE = [Squeeze(24, 32)]


def numbers(clip):
    return [decode_grey(frame) for frame in clip.frames[0]]


def expected(times_s, shown_s):
    """The number of the picture on screen at each time, when picture n comes up at shown_s[n]."""
    return [max(0, np.searchsorted(shown_s, t + 1e-6, side="right") - 1) % 24 for t in times_s]


def tone(duration_s, rate_hz=16_000):
    return (0.4 * np.sin(2 * np.pi * 330 * np.arange(round(duration_s * rate_hz)) / rate_hz)).astype(np.float32)


@pytest.fixture(scope="module")
def video(make_video, tmp_path_factory):
    """Two seconds at 25 fps with sound."""
    return make_video(tmp_path_factory.mktemp("video") / "a.mp4", duration_s=2.0, sound=tone(2.0))


@pytest.fixture(scope="module", params=[25, Fraction(30_000, 1001), 15], ids=str)
def numbered(request, make_video, tmp_path_factory):
    """A video of three seconds at some rate ⇒ (path, its rate)."""
    folder = tmp_path_factory.mktemp("numbered")
    return make_video(folder / "a.mp4", fps=request.param, duration_s=3.0), request.param


@pytest.mark.parametrize("fps", [2, 8, 12.5, 29.97])
@pytest.mark.parametrize("start_s", [0.0, 1.3])
def test_each_frame_is_the_picture_on_screen_at_its_time(numbered, fps, start_s):
    path, video_fps = numbered
    clip = read_clip(path, start_s=start_s, duration_s=1.5, fps=fps, fits=SIZE, want_audio=False)
    spec = ClipSpec(duration_s=1.5, fps=fps, latent_stride_frames=1)
    shown = np.arange(100) / float(video_fps)
    assert len(clip.frames[0]) == spec.frames and clip.duration_s == 1.5
    assert numbers(clip) == expected(start_s + spec.frame_times_s(), shown)


def test_a_variable_frame_rate_is_followed(make_video, tmp_path):
    shown = [0.0, 0.1, 0.15, 0.9, 1.0, 1.7]
    path = make_video(tmp_path / "a.mp4", times_s=shown)
    clip = read_clip(path, duration_s=1.6, fps=10, fits=SIZE, want_audio=False)
    assert numbers(clip) == expected((np.arange(16) + 0.5) / 10, shown)


@pytest.mark.parametrize("suffix", ["mkv", "ts", "mov"])
def test_other_containers_agree(make_video, tmp_path, suffix):
    path = make_video(tmp_path / f"a.{suffix}", duration_s=2.0)
    clip = read_clip(path, fps=12.5, fits=SIZE, want_audio=False)
    assert clip.duration_s == pytest.approx(2.0, abs=0.002)
    assert numbers(clip) == expected((np.arange(25) + 0.5) / 12.5, np.arange(50) / 25)


def test_before_the_first_picture_the_first_is_shown(make_video, tmp_path):
    path = make_video(tmp_path / "a.mp4", times_s=0.5 + np.arange(25) / 25, sound=tone(1.5))
    clip = read_clip(path, fps=25, fits=SIZE, want_audio=True)
    assert clip.duration_s == pytest.approx(1.5, abs=0.01)
    assert numbers(clip)[:14] == [0] * 13 + [1]


def test_on_screen_ends_where_the_pictures_end():
    pictures = [(0.0, 0.5, "a"), (0.5, 0.5, "b")]
    shown = OnScreen(pictures, 4)
    assert "".join(shown) == "aabb" and shown.duration_s == 1.0
    short = OnScreen(pictures, 4, 2.0)
    assert "".join(short) == "aabb" and short.duration_s == 1.0
    almost = OnScreen(pictures, 4, 1.2)  # less than half a picture is missing
    assert "".join(almost) == "aabbb" and almost.duration_s == 1.2
    assert list(OnScreen([(-2.0, 0.5, "a")], 4)) == []
    back = OnScreen([(0.0, 0.5, "a"), (1.0, 0.5, "b"), (0.5, 0.5, "c")], 4)
    assert len(list(back)) == 6 and back.duration_s == 1.5


def test_a_pause_does_not_come_twice(make_video, tmp_path):
    """Where containers give no lengths, as MPEG-TS, a picture's is guessed from the one before: behind a pause far too
    long a guess, which must not outlast the next picture."""
    times_s = np.append(np.arange(10) / 25, 5 + np.arange(10) / 25)
    clip = read_clip(make_video(tmp_path / "a.ts", times_s=times_s), fps=5, fits=SIZE, want_audio=False)
    assert clip.duration_s == pytest.approx(5.4, abs=0.01) and len(clip.frames[0]) == 27


def test_a_stream_that_begins_midway_does_not_matter(make_video, tmp_path):
    """A packet near the end says that it belongs to a stream that nobody announced."""
    data = bytearray(make_video(tmp_path / "a.ts", duration_s=2.0, sound=tone(2.0)).read_bytes())
    whole = read_clip(tmp_path / "a.ts", fps=5, fits=SIZE, want_audio=True)
    sound = [at for at in range(0, len(data), 188) if data[at + 1] & 0x5f == 0x41 and data[at + 2] == 1]
    data[sound[-1] + 2] = 0xaa
    (tmp_path / "b.ts").write_bytes(data)
    clip = read_clip(tmp_path / "b.ts", fps=5, fits=SIZE, want_audio=True)
    assert clip.duration_s == whole.duration_s and np.array_equal(clip.frames[0], whole.frames[0])
    assert np.array_equal(clip.waveform[:24_000], whole.waveform[:24_000])
    assert np.array_equal(read_audio(tmp_path / "b.ts")[:24_000], whole.waveform[:24_000])


def test_a_path_that_can_not_be_looked_at_is_refused_with_its_reason(tmp_path):
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    for name, words in (("loop.mp4", "links"), (f"{'a' * 300}.mp4", "File name too long")):
        with pytest.raises(InputError, match=f"mp4 can't be opened .*{words}"):
            read_clip(tmp_path / name, fps=5, fits=SIZE, want_audio=False)
    (tmp_path / "a.mp4").touch()
    with pytest.raises(InputError, match="doesn't exist"):
        read_clip(tmp_path / "a.mp4" / "b.mp4", fps=5, fits=SIZE, want_audio=False)


def test_a_shorter_video_gives_a_shorter_clip_with_sound_to_match(video):
    clip = read_clip(video, start_s=1.0, duration_s=5.0, fps=10, fits=SIZE, want_audio=True)
    assert clip.duration_s == pytest.approx(1.0, abs=1e-6) and len(clip.frames[0]) == 10
    assert clip.waveform.shape == (16_000,) and np.abs(clip.waveform - tone(2.0)[16_000:]).max() < 0.05


def test_sizes_are_squeezed_to_and_equal_ones_are_one_array(video):
    clip = read_clip(video, fps=5, fits=[Squeeze(24, 32), Squeeze(50, 20), Squeeze(24, 32)], want_audio=False)
    assert [frames.shape for frames in clip.frames] == [(10, 24, 32, 3), (10, 50, 20, 3), (10, 24, 32, 3)]
    assert clip.frames[0] is clip.frames[2] and clip.waveform is None


@pytest.mark.parametrize("degrees, corner", [(90, (-1, 0)), (180, (-1, -1)), (270, (0, -1))])
def test_rotation_is_honoured(make_video, tmp_path, degrees, corner):
    """A red upper left corner goes to where turning counter-clockwise takes it."""
    picture = np.full((48, 64, 3), 90, np.uint8)
    picture[:16, :16] = (230, 20, 20)
    path = make_video(tmp_path / "a.mp4", picture=lambda i: picture, rotation=degrees, duration_s=0.2)
    info = probe(path)
    assert (info.width, info.height) == ((48, 64) if degrees % 180 else (64, 48))
    frame = read_clip(path, fps=5, fits=[Squeeze(info.height, info.width)], want_audio=False).frames[0][0]
    reds = [frame[y, x, 0] - int(frame[y, x, 1]) for y in (2, -3) for x in (2, -3)]
    y, x = corner
    assert frame[2 if y == 0 else -3, 2 if x == 0 else -3, 0] > 180 and sum(red > 100 for red in reds) == 1


@pytest.mark.parametrize("settings", [{"gray": True}, {"size": (63, 47)}, {"size": (2, 2)}])
def test_gray_and_odd_pictures_are_read(make_video, tmp_path, settings):
    path = make_video(tmp_path / "a.mkv", duration_s=0.4, **settings)
    clip = read_clip(path, fps=25, fits=SIZE, want_audio=False)
    assert numbers(clip) == list(range(10))


def test_colours_are_right(make_video, tmp_path):
    colours = np.array([(200, 30, 30), (30, 200, 30), (30, 30, 200)])
    path = make_video(tmp_path / "a.mp4", picture=lambda i: np.full((48, 64, 3), colours[i], np.uint8), duration_s=0.12)
    frames = read_clip(path, fps=25, fits=SIZE, want_audio=False).frames[0]
    assert np.abs(frames.mean((1, 2)) - colours).max() < 12


@pytest.mark.parametrize("size, lengths", [(10, [10, 10, 5]), (25, [25]), (5, [5] * 5), (1, [1] * 25), (None, [25])])
def test_chunks_are_the_clip(video, size, lengths):
    fits = [Squeeze(24, 32), Within(30, 30), Squeeze(24, 32)]
    whole = read_clip(video, fps=12.5, fits=fits, want_audio=True)
    stream = stream_clip(video, fps=12.5, fits=fits, want_audio=True, chunk_frames=size)
    chunks = list(stream)
    assert [len(chunk[0]) for chunk in chunks] == lengths and all(chunk[0] is chunk[2] for chunk in chunks)
    for frames, column in zip(whole.frames, zip(*chunks)):
        assert np.array_equal(np.concatenate(column), frames)
    assert np.array_equal(stream.waveform, whole.waveform) and stream.duration_s == whole.duration_s


def test_what_breaks_midway_is_raised_there(make_video, tmp_path):
    """Two streams of MPEG packets one after the other are one stream, whose pictures here become absurd."""
    good = make_video(tmp_path / "good.ts", duration_s=0.8)
    absurd = make_video(tmp_path / "absurd.ts", size=(8200, 16), times_s=0.8 + np.arange(10) / 25)
    path = tmp_path / "a.ts"
    path.write_bytes(good.read_bytes() + absurd.read_bytes())
    chunks = iter(stream_clip(path, fps=25, fits=SIZE, want_audio=False, chunk_frames=5))
    assert [len(next(chunks)[0]) for _ in range(3)] == [5, 5, 5]
    with pytest.raises(InputError, match="a.ts: pictures of 8200x16 pixels"):
        list(chunks)


def test_timestamps_that_go_back_leave_frames_and_duration_in_step():
    shown = OnScreen([(0.0, 0.5, "a"), (2.0, 0.5, "b"), (0.5, 0.5, "c")], 4)
    frames = list(shown)
    assert shown.duration_s == 2.5 and len(frames) == 10


def test_refusals_name_the_file_and_what_is_wrong(make_video, tmp_path, video):
    def refused(path, words, **settings):
        settings = {"fps": 8, "fits": SIZE, "want_audio": True, **settings}
        with pytest.raises(InputError, match=words) as caught:
            read_clip(path, **settings)
        assert path.name in str(caught.value)

    for name, content in {"empty.mp4": b"", "text.mp4": b"hello " * 100, "list.mp4": b"#EXTM3U\n#EXTINF:1,\na.mp4\n"
                          }.items():
        (tmp_path / name).write_bytes(content)
    refused(tmp_path / "none.mp4", "doesn't exist")
    refused(tmp_path, "not a regular file")
    refused(tmp_path / "empty.mp4", "is empty")
    refused(tmp_path / "text.mp4", "can't be read as a video")
    refused(tmp_path / "list.mp4", "can't be read as a video")
    refused(video, "no picture is on screen 2 s after its start", start_s=2.0)
    refused(video, "duration > 0", duration_s=0.0)
    refused(make_video(tmp_path / "silent.mp4"), "has no sound")
    (tmp_path / "cut.mp4").write_bytes(video.read_bytes()[:3000])  # an mp4 has its index at the end
    refused(tmp_path / "cut.mp4", "can't be read as a video")
    from vta_sam.media.audio import write_wav
    write_wav(tmp_path / "sound.wav", tone(1.0), 16_000)
    refused(tmp_path / "sound.wav", "no pictures \\(only sound\\)")


def test_absurd_sizes_are_refused(make_video, tmp_path):
    path = make_video(tmp_path / "wide.mp4", size=(8200, 16), duration_s=0.08)
    with pytest.raises(InputError, match="8200x16 pixels; at most 8192"):
        read_clip(path, fps=8, fits=SIZE, want_audio=False)


def test_pictures_like_threads_are_refused_where_they_would_grow(make_video, tmp_path):
    path = make_video(tmp_path / "thin.mp4", size=(8000, 16), duration_s=0.08)
    assert read_clip(path, fps=25, fits=[Within(800, 1333)], want_audio=False).frames[0].shape == (2, 3, 1333, 3)
    with pytest.raises(InputError, match="thin.mp4: pictures of 8000x16 pixels are too long and thin"):
        read_clip(path, fps=25, fits=[CentreCrop(224)], want_audio=False)


def test_a_gap_of_hours_is_refused_before_it_is_filled(make_video, tmp_path):
    path = make_video(tmp_path / "a.mp4", times_s=[0.0, 0.04, 590.0, 2e4, 2e4 + 1])
    assert len(read_clip(path, duration_s=100.0, fps=1, fits=SIZE, want_audio=False).frames[0]) == 100
    with pytest.raises(InputError, match="a.mp4: its pictures have a gap of 19410 s"):
        read_clip(path, fps=1, fits=SIZE, want_audio=False)
    late = make_video(tmp_path / "late.mkv", times_s=[2e4, 2e4 + 1], sound=tone(1.0))
    with pytest.raises(InputError, match="late.mkv: its pictures have a gap of 20000 s"):
        read_clip(late, fps=1, fits=SIZE, want_audio=True)


def test_damage_in_the_middle_costs_a_few_pictures_or_the_file_but_never_lies(make_video, tmp_path):
    path = make_video(tmp_path / "a.mkv", size=(128, 96), duration_s=2.0,
                      picture=lambda i: np.random.default_rng(i).integers(0, 255, (96, 128, 3)).astype(np.uint8))
    data = bytearray(path.read_bytes())
    data[len(data) // 4:len(data) // 2] = bytes(len(data) // 2 - len(data) // 4)
    path.write_bytes(data)
    try:
        clip = read_clip(path, fps=10, fits=SIZE, want_audio=False)
    except InputError as error:
        assert "a.mkv" in str(error)
    else:
        assert len(clip.frames[0]) == ClipSpec(1.0, 10, 1).frames_of(clip.duration_s)


# --- a new sound under untouched pictures ---------------------------------------------------------------------------

def packets(path):
    with av.open(str(path)) as container:
        return [(packet.pts * packet.time_base, packet.is_keyframe, bytes(packet))
                for packet in container.demux(video=0) if packet.pts is not None]


@pytest.mark.parametrize("given_s", [0.5, 2.0, 9.0])
def test_mux_copies_pictures_and_fits_the_sound(video, tmp_path, given_s):
    new = (0.3 * np.sin(2 * np.pi * 1000 * np.arange(round(given_s * 16_000)) / 16_000)).astype(np.float32)
    out = mux(video, new, 16_000, tmp_path / "out.mp4")
    assert out == tmp_path / "out.mp4" and [p.name for p in tmp_path.iterdir()] == ["out.mp4"]
    assert packets(out) == packets(video)
    with av.open(str(out)) as container:
        sound, pictures = container.streams.audio[0], container.streams.video[0]
        assert sound.duration * sound.time_base == pictures.duration * pictures.time_base == 2
    clip = read_clip(out, fps=8, fits=SIZE, want_audio=True)
    wanted = np.pad(new, (0, 32_000))[:32_000]
    error = np.abs(clip.waveform - wanted)
    assert error[400:int(min(given_s, 2) * 16_000) - 400].max() < 0.05
    assert error[int(min(given_s, 2) * 16_000) + 1500:].max(initial=0.0) < 0.01


def test_mux_mixes_the_original_sound_and_does_not_clip(video, tmp_path):
    half = mux(video, np.zeros(32_000, np.float32), 16_000, tmp_path / "half.mp4", mix=0.5)
    found = read_clip(half, fps=8, fits=SIZE, want_audio=True).waveform
    assert np.abs(found - 0.5 * tone(2.0))[400:-400].max() < 0.06  # encoded twice
    assert (found @ tone(2.0)) / (tone(2.0) @ tone(2.0)) == pytest.approx(0.5, rel=0.03)
    loud = mux(video, 2.4 * tone(2.0), 16_000, tmp_path / "loud.mp4", mix=1.0)  # sums to a peak of 1.36
    found = read_clip(loud, fps=8, fits=SIZE, want_audio=True).waveform
    assert 0.95 < np.abs(found[400:-400]).max() < 1.05
    # a clipped sine has harmonics, a scaled one has not
    spectrum = np.abs(np.fft.rfft(found[8_000:24_000] * np.hanning(16_000)))
    assert spectrum[985:995].max() < 0.01 * spectrum[325:335].max()


def test_mux_keeps_rotation_and_the_last_picture(make_video, tmp_path):
    source = make_video(tmp_path / "a.mp4", rotation=90)
    out = mux(source, np.zeros(100, np.float32), 16_000, tmp_path / "b.mp4")
    assert probe(out).rotation == probe(source).rotation != 0
    stream = make_video(tmp_path / "a.ts", sound=tone(1.0))  # packets without durations
    assert picture_duration_s(mux(stream, tone(1.0), 16_000, tmp_path / "c.mp4")) == pytest.approx(
        picture_duration_s(stream), abs=1e-3)


def test_mux_writes_matroska_where_mp4_cannot_hold_the_codec(make_video, tmp_path):
    source = make_video(tmp_path / "a.webm", codec="libvpx", sound=tone(1.0, 48_000), sample_rate_hz=48_000,
                        sound_codec="libopus")
    out = mux(source, tone(1.0), 16_000, tmp_path / "b.mp4")
    assert out == tmp_path / "b.mkv" and probe(out).video_codec == probe(source).video_codec
    assert numbers(read_clip(out, fps=25, fits=SIZE, want_audio=True))[:24] == list(range(24))


def test_mux_refuses_in_words_and_leaves_nothing_behind(make_video, tmp_path, video):
    for words, arguments in {
        "finite waveform": (video, np.full(10, np.nan), 16_000, tmp_path / "out.mp4"),
        "mix=2": (video, np.zeros(10), 16_000, tmp_path / "out.mp4", 2.0),
        "such a name": (video, np.zeros(10), 16_000, tmp_path / "out.wav"),
        "doesn't exist": (tmp_path / "none.mp4", np.zeros(10), 16_000, tmp_path / "out.mp4"),
        "can't be written": (video, np.zeros(10), 12_345, tmp_path / "out.mp4"),  # AAC has no such rate
    }.items():
        with pytest.raises(InputError, match=words):
            mux(*arguments)
    assert not list(tmp_path.iterdir())
    silent = make_video(tmp_path / "silent.mp4")
    with pytest.raises(InputError, match="silent.mp4 has no sound"):
        mux(silent, np.zeros(10), 16_000, tmp_path / "out.mp4", mix=0.5)


@pytest.mark.slow
def test_the_shared_clips_are_read_whole_and_muxed(shared_dir, tmp_path):
    """Edit lists, mono (9), 15 fps doubled (11), 44.1 kHz."""
    for path in sorted((shared_dir / "clips" / "gt").glob("*.mp4")):
        clip = read_clip(path, fps=8, fits=SIZE, want_audio=True)
        assert 9.99 < clip.duration_s < 10.05 and len(clip.frames[0]) == 80, path.name
        assert len(clip.waveform) == round(clip.duration_s * 16_000)
        out = mux(path, np.zeros(160_000, np.float32), 16_000, tmp_path / path.name)
        assert picture_duration_s(out) == pytest.approx(clip.duration_s, abs=1e-3)
        assert [data for _, _, data in packets(out)] == [data for _, _, data in packets(path)]


def test_the_code_of_brightness_is_its_own_inverse():
    assert [decode_grey(np.full((2, 2, 3), coded_grey(i))) for i in range(24)] == list(range(24))


def test_sound_that_begins_after_the_pictures_is_refused(make_video, tmp_path):
    """A record of pure silence would be the sound of nothing that is seen."""
    path = make_video(tmp_path / "late.mkv", duration_s=1.0, sound=np.full(16_000, 0.3), sound_start_s=0.9,
                      sound_codec="pcm_s16le")
    assert read_clip(path, fps=8, fits=SIZE, want_audio=True).waveform.any()
    with pytest.raises(InputError, match="late.mkv: its sound begins 0.40 s after the end of its pictures"):
        read_clip(path, duration_s=0.5, fps=8, fits=SIZE, want_audio=True)
