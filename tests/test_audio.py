"""Sound is read at its own time, at the right rate and level."""

import av
import numpy as np
import pytest
import soundfile

from vta_sam.media.audio import (
    SoundCollector, fit_length, normalise_waveform, read_audio, read_wav, resample, write_wav
)
from vta_sam.runtime.errors import InputError


def tone(duration_s=1.0, rate_hz=16_000, hz=440.0):
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(duration_s * rate_hz)) / rate_hz)).astype(np.float32)


def pulse_at(waveform, rate_hz=16_000):
    return np.abs(waveform).argmax() / rate_hz


def test_wav_round_trip_counts_what_it_clips(tmp_path):
    wave = tone()
    wave[100:103] = (1.2, -1.4, 1.0)
    assert write_wav(tmp_path / "a.wav", wave, 16_000) == 2
    found, rate_hz = read_wav(tmp_path / "a.wav")
    assert rate_hz == 16_000 and np.abs(found - wave.clip(-1, 1)).max() < 2 / 32768
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]
    assert np.array_equal(read_audio(tmp_path / "a.wav"), found)


@pytest.mark.parametrize("wave", [np.zeros((2, 10)), np.array([0.0, np.nan])])
def test_a_waveform_that_is_none_is_not_written(tmp_path, wave):
    with pytest.raises(InputError, match="a.wav"):
        write_wav(tmp_path / "a.wav", wave, 16_000)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_32", "FLOAT", "DOUBLE"])
def test_every_sample_format_has_the_same_level(tmp_path, subtype):
    soundfile.write(tmp_path / "a.wav", tone(), 16_000, subtype=subtype)
    assert np.abs(read_audio(tmp_path / "a.wav") - tone()).max() < (0.01 if subtype == "PCM_U8" else 1e-4)


def test_stereo_is_read_as_the_mean_of_its_channels(tmp_path):
    left, right = tone(hz=300), tone(hz=500)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), 16_000, subtype="FLOAT")
    assert np.abs(read_audio(tmp_path / "a.wav") - (left + right) / 2).max() < 1e-6


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 44_100, 48_000])
def test_resampling_keeps_time_and_level(rate_hz):
    found = resample(tone(2.0, rate_hz), rate_hz, 16_000)
    assert len(found) == 32_000
    assert np.abs(found - tone(2.0))[500:-500].max() < 1e-3


def test_long_sounds_are_resampled_without_seams():
    found = resample(tone(30.0, 96_000), 96_000, 16_000)  # three blocks
    assert len(found) == 480_000 and np.abs(found - tone(30.0))[500:-500].max() < 1e-3


@pytest.mark.parametrize("block", [1000, 44_100])
def test_the_size_of_blocks_changes_no_sample(make_video, tmp_path, monkeypatch, block):
    path = make_video(tmp_path / "a.mkv", sound=np.random.default_rng(0).uniform(-0.5, 0.5, 66_000),
                      sample_rate_hz=44_100, sound_start_s=0.3)
    stretches = [(0.0, None), (0.0, 0.2), (0.5, 0.7), (1.2, None), (0.25, 3.0)]
    whole = [read_audio(path, *stretch) for stretch in stretches]
    monkeypatch.setattr("vta_sam.media.audio._BLOCK_SAMPLES", block)
    assert all(np.array_equal(read_audio(path, *stretch), found) for stretch, found in zip(stretches, whole))
    assert all(found.any() for found in whole[2:])


def test_a_stretch_equals_that_part_of_the_whole(tmp_path):
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "a.wav", rng.uniform(-0.5, 0.5, 44_100 * 4), 44_100, subtype="FLOAT")
    whole = read_audio(tmp_path / "a.wav")
    part = read_audio(tmp_path / "a.wav", 2.25, 0.5)
    assert len(whole) == 64_000 and len(part) == 8_000
    assert np.abs(part - whole[36_000:44_000]).max() < 1e-4


def test_what_is_kept_of_a_long_sound_is_its_stretch(make_video, tmp_path):
    path = make_video(tmp_path / "a.mkv", sound=tone(20.0), duration_s=0.4)
    collector = SoundCollector(path, 1.0, 0.5)
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            collector.add(frame)
    assert sum(len(samples) for _, samples in collector.parts) < 2.0 * 16_000
    assert np.abs(collector.waveform(16_000) - tone(20.0)[16_000:24_000]).max() < 0.05


def test_beyond_its_end_a_stretch_is_silent_and_a_start_there_is_refused(tmp_path):
    write_wav(tmp_path / "a.wav", tone(1.0), 16_000)
    part = read_audio(tmp_path / "a.wav", 0.5, 1.0)
    assert len(part) == 16_000 and np.abs(part[:8_000]).max() > 0.4 and not part[8_000:].any()
    with pytest.raises(InputError, match="a.wav: its sound ends 0.50 s before"):
        read_audio(tmp_path / "a.wav", 1.5, 1.0)


@pytest.mark.parametrize("suffix, codec", [("mp4", "aac"), ("mkv", "aac"), ("mkv", "pcm_s16le")])
@pytest.mark.parametrize("start_s", [0.0, 0.4])
def test_a_pulse_is_heard_when_its_stream_says(make_video, tmp_path, suffix, codec, start_s):
    """Encoder delay and a stream that starts late are both in the timestamps."""
    pulse = np.zeros(16_000, np.float32)
    pulse[8_000:8_040] = 0.8
    path = make_video(tmp_path / f"a.{suffix}", duration_s=2.0, sound=pulse, sound_start_s=start_s, sound_codec=codec)
    waveform = read_audio(path, duration_s=2.0)
    assert len(waveform) == 32_000
    assert pulse_at(waveform) == pytest.approx(0.5 + start_s, abs=0.004)
    later = read_audio(path, 0.3, 1.0)
    assert pulse_at(later) == pytest.approx(0.2 + start_s, abs=0.004)


def test_a_file_without_sound_is_refused_by_name(make_video, tmp_path):
    with pytest.raises(InputError, match="silent.mp4 has no sound"):
        read_audio(make_video(tmp_path / "silent.mp4"))


def test_normalising_centres_and_sets_the_peak():
    wave = normalise_waveform(3 * tone() + 0.2)
    assert abs(wave.mean()) < 1e-6 and np.abs(wave).max() == pytest.approx(0.5, abs=1e-6)
    assert not normalise_waveform(np.full(100, 0.3, np.float32)).any()
    assert normalise_waveform(np.zeros(0, np.float32)).shape == (0,)


def test_fit_length_cuts_and_pads_at_the_end():
    assert fit_length(np.arange(3.0), 2).tolist() == [0, 1]
    assert fit_length(np.arange(3.0), 5).tolist() == [0, 1, 2, 0, 0]


def test_the_shared_clips_have_ten_seconds_of_sound(shared_dir):
    for path in sorted((shared_dir / "clips" / "gt").glob("*.mp4")):
        waveform = read_audio(path)
        assert 9.9 < len(waveform) / 16_000 < 10.1 and 0.005 < np.abs(waveform).max() < 1.5, path.name
