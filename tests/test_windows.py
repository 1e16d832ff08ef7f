"""Long latents: windows cover and blend, one window is the plain thing, and noise doesn't depend on the length."""

import numpy as np
import pytest
import torch
from models import SPEC, make_model_folder

from vta_sam.clip import MelSpec
from vta_sam.diffusion.objective import VPrediction
from vta_sam.diffusion.sampler import Sampler
from vta_sam.diffusion.windows import Windows, decode_windowed, noise_of, vocode, windowed
from vta_sam.evaluation.embeddings import Ceiling, RoundTrip
from vta_sam.evaluation.metric import SoundMeasurements
from vta_sam.evaluation.sounds import FeatureCache, sound_features
from vta_sam.generation.pipeline import limited, load
from vta_sam.runtime.errors import InputError
from vta_sam.runtime.randomness import SampleDraws
from vta_sam.vae.codec import Codec
from vta_sam.vocoder import GriffinLim


@pytest.mark.parametrize("total, size, overlap", [(8, 8, 2), (9, 8, 2), (14, 8, 2), (15, 8, 2), (33, 8, 2), (29, 8, 0),
                                                  (40, 8, 5)])
def test_windows_cover_every_step_and_weights_sum_to_one(total, size, overlap):
    windows = Windows(total, size, overlap)
    covered = torch.zeros(total)
    for start, weight in zip(windows.starts, windows.weights()):
        assert (weight > 0).all() and len(weight) == size
        covered[start:start + size] += weight
    assert torch.allclose(covered, torch.ones(total), atol=1e-6)
    assert windows.starts[0] == 0 and windows.starts[-1] == total - size
    gaps = [b - a for a, b in zip(windows.starts, windows.starts[1:])]
    assert all(0 < gap <= size - overlap for gap in gaps)


def test_the_cross_fade_is_a_straight_line():
    first, second = Windows(14, 8, 2).weights()
    assert first[-2:].tolist() == pytest.approx([0.75, 0.25])
    assert second[:2].tolist() == pytest.approx([0.25, 0.75])
    assert (first[:-2] == 1).all() and (second[2:] == 1).all()


@pytest.mark.parametrize("total, overlap", [(7, 2), (8, 8), (8, -1)])
def test_impossible_windows_are_refused(total, overlap):
    with pytest.raises(InputError):
        Windows(total, 8, overlap)


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_a_denoiser_that_looks_at_each_value_alone_is_the_same_windowed(at_once):
    windows, latent = Windows(27, 8, 2), torch.randn(1, 3, 27, 2)
    sizes = []

    def pointwise(x, timestep):
        sizes.append(len(x))
        return torch.tanh(x) * timestep[:, None, None, None] / 1000

    denoise = windowed([pointwise] * len(windows.groups(at_once)), windows, at_once)
    expected = pointwise(latent, torch.tensor([500]))
    assert torch.allclose(denoise(latent, torch.tensor([500])), expected, atol=1e-6)
    assert max(sizes) <= at_once and sum(sizes[1:]) == len(windows.starts)


def test_one_window_is_sampled_as_without_windows():
    def mixing(x, timestep):  # every value depends on all columns, so a cut would show
        return 0.1 * x + x.mean(dim=2, keepdim=True)

    noise = noise_of(3, (2, 8, 2), 8)[None]
    plain = Sampler(steps=4).sample(mixing, noise, VPrediction())
    long = windowed([mixing], Windows(8, 8, 2), 4)
    assert torch.equal(plain, Sampler(steps=4).sample(long, noise, VPrediction()))


def test_windows_meet_in_a_weighted_mean():
    windows = Windows(14, 8, 2)
    denoise = windowed([lambda x, t: torch.ones_like(x) * torch.tensor([0.0, 1.0])[:, None, None, None]], windows, 2)
    blended = denoise(torch.zeros(1, 1, 14, 1), torch.tensor([1])).flatten()
    assert blended.tolist() == pytest.approx([0] * 6 + [0.25, 0.75] + [1] * 6)


def test_the_number_of_denoisers_must_fit():
    with pytest.raises(ValueError, match="3 groups of windows"):
        windowed([lambda x, t: x], Windows(20, 8, 2), 1)


def test_a_longer_cut_begins_with_the_same_noise():
    short, long = noise_of(5, (8, 8, 4), 8), noise_of(5, (8, 29, 4), 8)
    assert torch.equal(short, long[:, :8])
    assert torch.equal(noise_of(5, (8, 20, 4), 8), long[:, :20])
    assert not torch.equal(long[:, :8], long[:, 8:16])
    assert not torch.equal(noise_of(6, (8, 8, 4), 8), short)
    assert long.std().item() == pytest.approx(1, abs=0.1)


def test_noise_of_a_clip_is_drawn_as_a_samples_own():
    assert torch.equal(SampleDraws([5], "sample").normal(8, 8, 4)[0], noise_of(5, (8, 8, 4), 8))


def test_windowed_decoding_of_a_local_decoder_is_plain_decoding():
    def decode(latent):  # 4 mel frames a column
        return latent.mean(dim=(1, 3), keepdim=True).repeat_interleave(4, dim=2).expand(-1, -1, -1, 64)

    latent = torch.randn(1, 3, 29, 2)
    assert torch.allclose(decode_windowed(decode, latent, Windows(29, 8, 2), 3, 4), decode(latent), atol=1e-6)


class _Tones:
    """A vocoder whose waveform depends on each frame alone, and that counts frames and chunks."""

    sample_rate_hz = 16_000

    def __init__(self):
        self.chunks = []

    def __call__(self, mel):
        self.chunks.append(mel.shape[1])
        ringing = torch.zeros(len(mel), 32)  # what a neural vocoder adds at the end
        return torch.cat([mel.exp().mean(dim=2).repeat_interleave(160, dim=1), ringing], dim=1)


@pytest.mark.parametrize("frames", [1, 30, 100, 101, 463])
def test_stitched_vocoding_equals_whole_vocoding_where_frames_are_independent(frames):
    mel, tones = torch.randn(1, frames, 64), _Tones()
    whole = tones(mel)[0, :frames * 160]
    assert torch.allclose(vocode(tones, mel, 100, MelSpec()), whole, atol=1e-5)
    assert max(tones.chunks[1:]) <= 100


def test_seams_lie_where_it_is_quiet_and_do_not_click():
    """Two Griffin-Lim chunks of a tone with a pause in the overlap: no jump, no hole."""
    time_s = torch.arange(SPEC.sample_rate_hz * 2) / SPEC.sample_rate_hz
    tone = 0.3 * torch.sin(2 * torch.pi * 440 * time_s)
    tone[17_600:19_200] = 0  # frames 110 to 120
    from vta_sam.mel import FIGURES, LogMel

    mel = LogMel(FIGURES)(tone[None])[:, :200]
    stitched = vocode(GriffinLim(iterations=8), mel, 128, MelSpec())  # chunks 0-128, 72-200, overlap of 32 at 96-128
    assert stitched[17_900:18_900].abs().max() < 0.02
    loud = torch.cat([stitched[2_000:17_000], stitched[20_000:30_000]])
    levels = loud.unfold(0, 400, 400).square().mean(dim=1).sqrt()
    assert levels.min() > 0.5 * levels.median()


@pytest.fixture(scope="module")
def round_trip(tmp_path_factory):
    """Codec and vocoder of a model folder without the other networks."""
    folder = make_model_folder(tmp_path_factory.mktemp("trip"))
    pipeline = load(folder)
    for part in ("denoiser", "conditioner"):
        (folder / f"{part}.safetensors").unlink()
    return RoundTrip(folder), pipeline


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, round(16_000 * seconds)).astype(np.float32)


def test_a_sound_of_a_clip_s_length_takes_the_round_trip_in_one_piece(round_trip):
    trip, pipeline = round_trip
    sounds = [noise(pipeline.spec.duration_s, seed) for seed in range(3)] + [noise(0.61)]
    for together, sound in zip(trip(sounds), sounds):
        whole = np.pad(sound, (0, -len(sound) % pipeline.codec.column_samples))
        expected = pipeline.decode(pipeline.encode(torch.from_numpy(whole)[None]))[0].numpy()[:len(sound)]
        assert np.array_equal(trip([sound])[0], expected) and np.abs(expected).max() > 0.01
        assert np.abs(together - expected).max() < 2e-3  # in a batch, whose rounding the vocoder's phases make much of


def test_a_long_sound_takes_the_round_trip_in_windows(round_trip, monkeypatch):
    """With networks that hear one frame alone the windows make what one piece makes; no piece is larger than a clip."""
    trip, _ = round_trip
    hop, seen = trip.spec.hop_samples, []

    def moments(mel):
        seen.append(mel.shape[0] * mel.shape[2] / trip.codec.stride)
        return mel[:, 0].unflatten(1, (-1, trip.codec.stride)).transpose(1, 2).repeat(1, 2, 1, 1)

    def decode(latents):
        seen.append(latents.shape[0] * latents.shape[2])
        return latents.transpose(1, 2).flatten(1, 2)[:, None]

    def vocoder(mel):
        seen.append(mel.shape[1] / trip.codec.stride)
        return mel.exp().mean(dim=2).repeat_interleave(hop, dim=1)

    monkeypatch.setattr(trip.codec, "moments", moments)
    monkeypatch.setattr(trip.codec, "decode", decode)
    monkeypatch.setattr(trip, "vocoder", vocoder)
    sounds = [noise(seconds, seed) for seed, seconds in enumerate((20.0, 1.28, 3.3))]
    found = trip(sounds)
    assert max(seen) <= 8 * trip.spec.columns and len(seen) > 6
    for sound, made in zip(sounds, found):
        whole = np.pad(sound, (0, -len(sound) % trip.codec.column_samples))
        mel = trip.codec.mel_of(torch.from_numpy(whole)[None])[:, 0]
        expected = limited(mel.exp().mean(dim=2).repeat_interleave(hop, dim=1))[0, :len(sound)].numpy()
        assert made.shape == sound.shape and np.abs(made - expected).max() < 1e-5


def test_a_codec_of_one_s_own_encodes_a_long_sound_whole_and_decodes_it_in_windows(round_trip, monkeypatch):
    trip, _ = round_trip
    pieces = []

    class Samples(Codec):
        mel, decodes_to, stride, latent_channels, latent_freq = trip.spec.mel, "waveform", 2560, 2560, 1

        def encode_moments(self, waveform):
            whole = waveform.reshape(-1, 2560).T[:, :, None]
            return np.concatenate([whole, whole])

        def decode(self, latent):
            pieces.append(latent.shape[2])
            return latent[..., 0].transpose(1, 2).flatten(1)[:, None]

    monkeypatch.setattr(trip, "codec", Samples())
    sound = noise(7.7)
    [found] = trip([sound])
    assert np.abs(found - sound).max() < 1e-6 and max(pieces) == trip.spec.columns


def test_the_ceiling_of_many_sounds_is_measured_some_at_once_and_kept(round_trip, tmp_path, monkeypatch):
    trip, pipeline = round_trip
    waves = {f"c{i}": noise(1.28, i) for i in range(5)}
    true = {key: SoundMeasurements(sound_features(wave), key, waveform=wave) for key, wave in waves.items()}
    calls = []
    monkeypatch.setattr(RoundTrip, "__call__", lambda self, sounds: calls.append(len(sounds)) or list(sounds))
    for made in ([2, 2, 1], [0, 0, 0]):
        ceiling = Ceiling(pipeline.origin[1], cache=FeatureCache(tmp_path), batch_size=2)
        found: dict[str, SoundMeasurements] = {}
        for key, sound in true.items():
            found |= ceiling.add(key, sound)
        found |= ceiling.finish()
        assert list(found) == list(waves) and calls == made
        assert all(np.array_equal(found[key].waveform, wave) for key, wave in waves.items())
        calls.clear()
    assert not ceiling.add("long", SoundMeasurements(sound_features(noise(2)), "a", waveform=noise(1.28)))
    assert list(ceiling.add("longer", SoundMeasurements(sound_features(noise(2)), "b", waveform=noise(20)))) == [
        "long", "longer"]
