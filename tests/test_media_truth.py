"""What is seen and heard of a file is what a player shows and plays: a row of docs/media.md's table each."""

from __future__ import annotations

import gc
import warnings
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorTrc
from test_muxing import SOUND, a_video

from vta_sam.media.audio import read_audio
from vta_sam.media.muxing import mux
from vta_sam.media.picture_reader import CentreCrop, Squeeze
from vta_sam.media.video import probe, read_clip
from vta_sam.metrics.alignment import measure_flow

# display matrix (a, b, c, d) ⇒ how the stored picture is shown: all that leave the axes where they are
ORIENTATIONS = {
    (1, 0, 0, 1): lambda p: p, (0, 1, -1, 0): lambda p: np.rot90(p, -1), (-1, 0, 0, -1): lambda p: np.rot90(p, 2),
    (0, -1, 1, 0): np.rot90, (-1, 0, 0, 1): np.fliplr, (1, 0, 0, -1): np.flipud,
    (0, 1, 1, 0): lambda p: p.swapaxes(0, 1), (0, -1, -1, 0): lambda p: np.rot90(p, 2).swapaxes(0, 1),
}


def picture(path: Path, height: int, width: int, **more) -> np.ndarray:
    return read_clip(path, fps=10, fits=[Squeeze(height, width)], want_audio=False, **more).frames[0][0]


@pytest.mark.parametrize("matrix", ORIENTATIONS)
def test_all_eight_orientations_are_upright(tmp_path, matrix):
    def corners(path: Path, size: tuple[int, int]) -> np.ndarray:
        stored = np.zeros((48, 64, 3), np.uint8)
        stored[:24, :32], stored[24:, :32], stored[:24, 32:] = 250, 160, 80
        with av.open(str(path), "w") as container:
            video = container.add_stream("libx264", rate=10, options={"crf": "1"})
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
            container.mux(video.encode(av.VideoFrame.from_ndarray(stored, format="rgb24")))
            container.mux(video.encode(None))
        data = bytearray(path.read_bytes())
        at = data.index(b"tkhd") + 44
        for place, value in zip((0, 4, 12, 16), matrix):
            data[at + place:at + place + 4] = (value * 65536).to_bytes(4, "big", signed=True)
        path.write_bytes(data)
        return stored

    stored = corners(tmp_path / "a.mp4", (64, 48))
    expected = ORIENTATIONS[matrix](stored)
    found = picture(tmp_path / "a.mp4", *expected.shape[:2])
    assert np.abs(found.astype(int) - expected).mean() < 6
    info = probe(tmp_path / "a.mp4")
    assert (info.height, info.width) == expected.shape[:2]
    written = mux(tmp_path / "a.mp4", SOUND, 16_000, tmp_path / "b.mp4")
    assert np.array_equal(picture(written, *expected.shape[:2]), found), "kept in what is written"


def test_pictures_are_freed_as_soon_as_they_are_done_with(tmp_path):
    """Not only when Python looks for rings of objects: by then hundreds of large ones, each with a scaler and its
    threads, may have passed."""
    source = a_video(tmp_path / "a.mp4", "mpeg4")
    for reads in (lambda: picture(source, 48, 64), lambda: measure_flow(source),
                  lambda: mux(source, SOUND, 16_000, tmp_path / "b.mp4")):
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            reads()
            gc.collect()
            kept = [one for one in gc.garbage if isinstance(one, av.VideoFrame)]
        finally:
            gc.set_debug(0)
            gc.enable()
            gc.garbage.clear()
        assert not kept


def a_ball(path: Path, size: tuple[int, int], aspect: Fraction, **stream) -> None:
    """A ball that is round once pixels have their shape."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    inside = (x - width / 2)**2 * float(aspect)**2 + (y - height / 2)**2 < (height / 3)**2
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10, options={"crf": "8"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.codec_context.sample_aspect_ratio = aspect
        pixels = np.repeat((230 * inside)[..., None], 3, axis=2).astype(np.uint8)
        container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode(None))


@pytest.mark.parametrize("size, aspect", [((64, 48), 2), ((96, 64), Fraction(32, 27)), ((128, 48), Fraction(1, 2)),
                                          ((64, 48), 1)])
def test_pixels_have_their_shape(tmp_path, size, aspect):
    a_ball(tmp_path / "a.mp4", size, Fraction(aspect))
    found = read_clip(tmp_path / "a.mp4", fps=10, fits=[CentreCrop(96)], want_audio=False).frames[0][0, ..., 0] > 128
    across, down = found.any(axis=0).sum(), found.any(axis=1).sum()
    assert across == pytest.approx(down, abs=5) and down == pytest.approx(64, abs=5)
    assert probe(tmp_path / "a.mp4").width == round(size[0] * aspect)


def test_fields_become_whole_pictures(tmp_path):
    """A moving bar of which odd and even lines were filmed a fiftieth of a second apart."""
    with av.open(str(tmp_path / "a.ts"), "w") as container:
        video = container.add_stream("mpeg2video", rate=25, options={"flags": "+ilme+ildct", "q": "2"})
        video.width, video.height, video.pix_fmt = 128, 96, "yuv420p"
        video.codec_context.bit_rate = 4_000_000
        for i in range(8):
            pixels = np.zeros((96, 128, 3), np.uint8)
            for field in (0, 1):
                pixels[field::2, 12 * i + 6 * field:12 * i + 6 * field + 24] = 230
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p", interpolation="POINT")
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    with av.open(str(tmp_path / "a.ts")) as container:
        stored = list(container.decode(video=0))
    assert stored[0].interlaced_frame, "the file says so"
    clip = read_clip(tmp_path / "a.ts", fps=25, fits=[Squeeze(96, 128)], want_audio=False)
    assert len(clip.frames[0]) == len(stored) == 8, "none is lost"
    middle, raw = (frame.astype(int) for frame in (clip.frames[0][4], stored[4].to_ndarray(format="rgb24")))

    def combed(pixels: np.ndarray) -> float:
        return float(np.abs(pixels[2:-2:2] - pixels[3:-1:2]).mean())

    assert combed(middle) < 0.5 * combed(raw) and middle.max() > 150


@pytest.mark.parametrize("curve, white", [(ColorTrc.SMPTE2084, 0.58), (ColorTrc.ARIB_STD_B67, 0.75)])
def test_hdr_looks_as_on_an_ordinary_screen(tmp_path, curve, white):
    """Diffuse white is nearly white, and grey of an eighteenth of its light is the usual grey."""
    from vta_sam.media.picture_reader import _light

    light = _light(curve)
    levels = [int(np.searchsorted(light, light[round(65535 * white)] * share)) >> 6 for share in (1.0, 0.18)]
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        video = container.add_stream("ffv1", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p10le"
        video.codec_context.color_trc, video.codec_context.colorspace = int(curve), 9
        video.codec_context.color_primaries = 9
        frame = av.VideoFrame(64, 48, "yuv420p10le")
        for plane, values in zip(frame.planes, (levels, [512], [512])):
            rows = np.frombuffer(memoryview(plane), np.uint16).reshape(plane.height, -1)
            content = rows.copy()
            for part, value in enumerate(values):
                # limited range, of luma alone
                content[:, part * 32:] = value if len(values) == 1 else 64 + round(value * 876 / 1023)
            plane.update(content.tobytes())
        container.mux(video.encode(frame))
        container.mux(video.encode(None))
    found = picture(tmp_path / "a.mkv", 48, 64)
    bright, grey = found[:, :28].mean(), found[:, 36:].mean()
    assert 235 <= bright <= 252 and 105 <= grey <= 135, (bright, grey)


def with_sounds(path: Path, *sounds: tuple[np.ndarray, str, int]) -> Path:
    """Pictures with sounds of (channels, 16000), each of a layout, with dispositions."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        tracks = []
        for sound, layout, disposition in sounds:
            track = container.add_stream("pcm_s16le" if path.suffix == ".mkv" else "aac", rate=16_000, layout=layout)
            track.disposition = av.stream.Disposition(disposition)
            tracks.append((track, sound, layout))
        for _ in range(10):
            container.mux(video.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(video.encode(None))
        for track, sound, layout in tracks:
            pcm = np.ascontiguousarray((sound.T * 32767).astype(np.int16).reshape(1, -1))
            block = av.AudioFrame.from_ndarray(pcm, format="s16", layout=layout)
            block.sample_rate, block.pts, block.time_base = 16_000, 0, Fraction(1, 16_000)
            container.mux(track.encode(block))
            container.mux(track.encode(None))
    return path


def tone(hz: float, amplitude: float = 0.5) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * hz * np.arange(16_000) / 16_000)


def loudest_hz(waveform: np.ndarray) -> int:
    return int(np.abs(np.fft.rfft(waveform[:16_000])).argmax())


COMMENT, DEFAULT = int(av.stream.Disposition.comment), int(av.stream.Disposition.default)


@pytest.mark.parametrize("dispositions, heard", [
    ((COMMENT, DEFAULT), 3000), ((0, DEFAULT), 3000), ((COMMENT | DEFAULT, 0), 3000), ((DEFAULT, 0), 300),
    ((0, 0), 300), ((COMMENT, int(av.stream.Disposition.visual_impaired)), 300),
])
def test_the_sound_that_a_player_plays_is_heard(tmp_path, dispositions, heard):
    path = with_sounds(tmp_path / "a.mkv", *((tone(hz)[None], "mono", given)
                                             for hz, given in zip((300, 3000), dispositions)))
    assert loudest_hz(read_audio(path)) == heard


@pytest.mark.parametrize("layout, channel, gain", [
    ("stereo", 0, 0.5), ("5.1", 2, 0.707), ("5.1", 0, 0.5), ("5.1", 3, 0.0), ("5.1", 4, 0.354), ("7.1", 6, 0.354),
    ("mono", 0, 1.0),
])
def test_channels_are_mixed_as_players_do(tmp_path, layout, channel, gain):
    sound = np.zeros((av.AudioLayout(layout).nb_channels, 16_000))
    sound[channel] = tone(440)
    found = read_audio(with_sounds(tmp_path / "a.mkv", (sound, layout, 0)))
    assert np.abs(found[2000:14_000]).max() == pytest.approx(0.5 * gain, abs=0.01)


def test_channels_that_cancel_are_not_silence(tmp_path):
    opposed = np.stack([tone(440), -0.8 * tone(440) - 0.2 * tone(440)])
    path = with_sounds(tmp_path / "a.mkv", (opposed, "stereo", 0))
    with pytest.warns(UserWarning, match="cancel each other"):
        found = read_audio(path)
    assert np.abs(found[2000:14_000]).max() == pytest.approx(0.5, abs=0.01) and loudest_hz(found) == 440
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wide = with_sounds(tmp_path / "b.mkv", (np.stack([tone(440), -0.5 * tone(440)]), "stereo", 0))
        assert np.abs(read_audio(wide)[2000:14_000]).max() == pytest.approx(0.125, abs=0.01), "still the mean"


def test_untagged_large_pictures_have_the_colours_of_players(tmp_path):
    for lines, blue in ((720, "bt709"), (480, "bt601")):
        path = tmp_path / f"{lines}.mkv"
        with av.open(str(path), "w") as container:
            video = container.add_stream("ffv1", rate=10)
            video.width, video.height, video.pix_fmt = 64, lines, "yuv420p"
            frame = av.VideoFrame(64, lines, "yuv420p")
            for plane, value in zip(frame.planes, (100, 90, 180)):
                plane.update(bytes([value]) * plane.buffer_size)
            container.mux(video.encode(frame))
            container.mux(video.encode(None))
        luma, cb, cr = 1.1644 * (100 - 16), 90 - 128, 180 - 128
        green = {"bt709": luma - 0.2132 * cb - 0.5329 * cr, "bt601": luma - 0.3918 * cb - 0.8130 * cr}[blue]
        assert picture(path, 48, 64)[24, 32, 1] == pytest.approx(green, abs=3), lines


def test_a_video_without_marks_is_read_as_before(tmp_path):
    source = a_video(tmp_path / "a.mp4", pictures=3)
    with av.open(str(source)) as container:
        stored = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert np.array_equal(picture(source, 48, 64), stored)
