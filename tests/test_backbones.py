"""Backbones: front ends by reference values, networks by counted parameters and layouts, answers that know no batch."""

from __future__ import annotations

from pathlib import Path

import librosa
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vta_sam.checkpoints import registry
from vta_sam.checkpoints.registry import read_state
from vta_sam.evaluation.embeddings import NOT_SHIPPED, TITLES, BackboneEmbeddings, load_backbone
from vta_sam.evaluation.metric_table import metrics_for
from vta_sam.evaluation.sounds import FeatureCache
from vta_sam.importers.random_weights import write_random
from vta_sam.metrics.alignment import tagged_onsets
from vta_sam.metrics.backbones import (
    FRONT_ENDS, Cnn14, Cnn14DecisionLevelMax, LogMelFilterBank, VGGish, vggish_patches
)
from vta_sam.runtime.errors import InputError


def tone(samples: int, rate_hz: int = 16_000) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(samples) / rate_hz)


def noise(seed: int, samples: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    for name in ("vggish", "panns_16k", "clap-htsat-unfused"):
        write_random(name, folder, narrow=True)
    return folder


# ---------------------------------------------------------------- front ends

def test_vggish_front_end_equals_the_published_one():
    """Values of torchvggish's own functions for half a 440 Hz tone of 2 s."""
    patches = vggish_patches(tone(32_000))
    assert patches.shape == (2, 96, 64)
    assert patches.mean() == pytest.approx(-3.501832, abs=1e-5)
    assert patches.std() == pytest.approx(2.109481, abs=1e-5)
    assert patches.max() == pytest.approx(4.089175, abs=1e-5)
    assert patches[0].mean(axis=0).argmax() == 8
    np.testing.assert_allclose(patches[0, 0, :4], [-3.736307, -2.743742, -2.204709, -2.052619], atol=1e-5)
    np.testing.assert_allclose(vggish_patches(np.zeros(32_000)), np.log(0.01), atol=1e-6)


@pytest.mark.parametrize(("seconds", "patches"), [(0.974, 0), (0.975, 1), (1.92, 1), (2, 2), (5, 5), (8, 8), (8.2, 8),
                                                  (10, 10), (0, 0), (0.02, 0)])
def test_vggish_counts_whole_patches(seconds, patches):
    assert len(vggish_patches(np.zeros(round(seconds * 16_000)))) == patches


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_panns_front_end_equals_librosa(name):
    front = FRONT_ENDS[name]
    sound = noise(0, front.rate_hz) + tone(front.rate_hz, front.rate_hz).astype(np.float32)
    found = LogMelFilterBank(front)(torch.from_numpy(sound)[None].float())[0].numpy()
    power = librosa.feature.melspectrogram(
        y=sound, sr=front.rate_hz, n_fft=front.fft_samples, hop_length=front.hop_samples, window="hann", center=True,
        pad_mode="reflect", power=2.0, n_mels=64, fmin=front.low_hz, fmax=front.high_hz)
    np.testing.assert_allclose(found.T, librosa.power_to_db(power, ref=1.0, amin=1e-10, top_db=None), atol=2e-3)


# ---------------------------------------------------------------- networks

def test_networks_have_the_published_sizes():
    with torch.device("meta"):
        assert sum(p.numel() for p in VGGish().parameters()) == 72_141_184
    network = Cnn14(FRONT_ENDS["panns_16k"])
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(80.75e6, rel=1e-3)
    keys = set(network.state_dict())
    assert {"bn0.weight", "conv_block6.conv2.weight", "conv_block1.bn1.running_mean", "logmel_extractor.melW",
            "fc1.bias", "fc_audioset.weight"} <= keys
    assert "embeddings.4.weight" in VGGish().state_dict() and "features.13.weight" in VGGish().state_dict()


def segments_of(state: dict[str, torch.Tensor], sound: np.ndarray) -> torch.Tensor:
    """A sound at 16 kHz ⇒ (1, 2048, segments) by plain functions, from Cnn14's own tensors."""
    def normalised(x, name):
        return F.batch_norm(x, *(state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")))

    x = LogMelFilterBank(FRONT_ENDS["panns_16k"])(torch.from_numpy(sound)[None])[:, None]
    x = normalised(x.transpose(1, 3), "bn0").transpose(1, 3)
    for block in range(1, 7):
        for layer in (1, 2):
            weight = state[f"conv_block{block}.conv{layer}.weight"]
            x = normalised(F.conv2d(x, weight, padding=1), f"conv_block{block}.bn{layer}").relu()
        x = F.avg_pool2d(x, 2) if block < 6 else x
    return x.mean(3)


def test_cnn14_is_its_layers_one_by_one(weights):
    """The same numbers by plain functions, from the checkpoint's own tensors."""
    state = read_state(registry.require("panns_16k", weights))["model"]
    backbone = load_backbone("panns_16k", weights)
    sound = noise(1, 16_000)
    x = segments_of(state, sound)
    x = F.linear(x.max(2).values + x.mean(2), state["fc1.weight"], state["fc1.bias"]).relu()
    [heard] = backbone.embed([sound])
    np.testing.assert_allclose(heard.embeddings[0], x[0].numpy(), rtol=1e-4, atol=1e-5)
    assert heard.embeddings.shape == (1, 2048) and heard.logits.shape == (527,)
    expected = F.linear(x, state["fc_audioset.weight"], state["fc_audioset.bias"])[0].numpy()
    np.testing.assert_allclose(heard.logits, expected, rtol=1e-4, atol=1e-5)


def test_the_frame_wise_cnn14_tags_each_segment(weights):
    """Cnn14_DecisionLevelMax, by plain functions."""
    state = read_state(registry.require("panns_16k", weights))["model"]
    network = Cnn14DecisionLevelMax(FRONT_ENDS["panns_16k"]).eval()
    network.load_state_dict({k: v for k, v in state.items() if not k.startswith("spectrogram_extractor.")})
    sound = noise(1, 32_000)
    x = segments_of(state, sound)
    around = F.pad(x, (1, 1))
    largest = torch.stack([F.pad(x, (1, 1), value=-torch.inf)[..., i:i + x.shape[2]] for i in range(3)]).amax(0)
    mean = sum(around[..., i:i + x.shape[2]] for i in range(3)) / 3
    hidden = F.linear((largest + mean).transpose(1, 2), state["fc1.weight"], state["fc1.bias"]).relu()
    tags = F.linear(hidden, state["fc_audioset.weight"], state["fc_audioset.bias"])
    with torch.inference_mode():
        embedding, logits, found = network(torch.from_numpy(sound)[None])
    assert found.shape == (1, 6, 527)
    torch.testing.assert_close(found, tags, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits, tags.amax(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(embedding, hidden.mean(1), rtol=1e-4, atol=1e-5)


def test_a_tagged_onset_is_an_event_of_every_class_in_its_segment():
    sound = np.zeros(48_000, np.float32)
    for at in (8_000, 32_000):
        sound[at:at + 3000] = np.exp(-np.arange(3000) / 500) * np.sin(np.arange(3000))
    logits = np.full((9, 4), -5.0)
    logits[1, 2], logits[2, 0], logits[6, 1], logits[8, 3] = 1.0, -1.0, 0.5, 3.0  # segments of 0.32 s
    found = tagged_onsets(sound, logits, 0.32)
    np.testing.assert_array_equal(found[:, 1], [0, 2, 1])
    np.testing.assert_allclose(found[:, 0], [0.5, 0.5, 2.0], atol=0.03)
    assert tagged_onsets(np.zeros(48_000, np.float32), logits, 0.32).shape == (0, 2)
    assert len(tagged_onsets(sound, logits[:2], 0.32)) == 2, "an onset after the last segment counts for that"


@pytest.mark.slow
def test_events_of_the_frame_wise_cnn14_are_scored_against_those_of_the_true_sound(tmp_path):
    write_random("panns_events", tmp_path)
    embeddings = BackboneEmbeddings.of(["panns_events", "tiny"], tmp_path, "cpu", 2, FeatureCache(None))
    assert embeddings.detectors == ["panns_events"] and not embeddings.missing
    keys = [metric.key for metric in metrics_for(embeddings.titles, detectors=embeddings.detectors)]
    assert "event_f1_panns_events" in keys and "event_f1_tiny" not in keys
    backbone = embeddings.backbones["panns_events"]
    sound = np.concatenate([np.zeros(32_000), noise(0, 32_000)]).astype(np.float32)
    [output, short] = backbone.embed([sound, sound[:100]])
    assert len(output.embeddings) == 1 and len(short.embeddings) == 0
    assert output.sound_events.shape[1] == 2 and (np.abs(output.sound_events[:, 0] - 1.0) < 0.1).any()


# ---------------------------------------------------------------- what holds for each

@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "vggish", "panns_16k", "clap"])
def test_an_answer_depends_on_its_own_sound_alone(name, weights):
    backbone = load_backbone(name, weights)
    rate = backbone.sample_rate_hz
    sounds = [noise(0, 2 * rate), noise(1, rate + 777), tone(2 * rate, rate).astype(np.float32), noise(3, 2 * rate)]
    together = backbone.embed(sounds)
    for sound, heard in zip(sounds, together):
        [alone] = backbone.embed([sound])
        scale = np.abs(alone.embeddings).max()
        assert heard.embeddings.shape[1] == backbone.dim and scale > 0
        np.testing.assert_allclose(heard.embeddings, alone.embeddings, atol=1e-4 * scale)
        if heard.logits is not None:
            np.testing.assert_allclose(heard.logits, alone.logits, atol=1e-4 * np.abs(alone.logits).max())
        assert (heard.logits is not None) == TITLES[name][1]
    different = np.abs(together[0].embeddings[0] - together[2].embeddings[0]).max()
    assert different > 1e-3 * np.abs(together[0].embeddings).max(), "hears no difference between noise and a tone"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "vggish", "panns_16k"])
def test_sounds_too_short_have_no_rows(name, weights):
    [heard] = load_backbone(name, weights).embed([noise(0, 300)])
    assert len(heard.embeddings) == 0 and heard.logits is None


@pytest.mark.slow
@pytest.mark.parametrize("bad", [np.zeros(0), np.full(20_000, np.nan), np.zeros((2, 16_000))])
@pytest.mark.parametrize("name", ["tiny", "vggish"])
def test_what_is_no_sound_is_refused(name, weights, bad):
    with pytest.raises(InputError, match="finite mono"):
        load_backbone(name, weights).embed([bad.astype(np.float32)])


def test_the_tiny_backbone_is_the_tagger():
    from vta_sam.embedded.tiny_networks import load_tagger

    sound, tagger = tone(32_000).astype(np.float32), load_tagger()
    [heard] = load_backbone("tiny").embed([sound])
    np.testing.assert_allclose(heard.logits, tagger.logits(torch.from_numpy(sound)[None])[0].numpy(), atol=1e-5)


def test_clap_reads_captions_into_the_same_space(weights):
    backbone = load_backbone("clap", weights)
    rows = backbone.embed_text(["a dog barks", "a dog barks", "rain"])
    assert rows.shape == (3, backbone.dim)
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-5)
    assert np.abs(rows[0] - rows[2]).max() > 1e-4


def test_clap_takes_the_first_ten_seconds(weights):
    backbone = load_backbone("clap", weights)
    sound = noise(0, 12 * 48_000)
    first, second = (backbone.embed([part])[0].embeddings for part in (sound, sound[:10 * 48_000]))
    np.testing.assert_allclose(first, second, atol=1e-5)


# ---------------------------------------------------------------- weights

@pytest.mark.parametrize("name", ["vggish", "panns_16k", "panns_32k", "panns_events", "clap"])
def test_missing_weights_are_said_with_the_command_that_gets_them(name, tmp_path):
    with pytest.raises(InputError, match=r"is missing; `python data_prep/weights.py fetch \S+"):
        load_backbone(name, tmp_path)


@pytest.mark.parametrize(("name", "content"), [("vggish", {"features.0.weight": torch.zeros(2)}),
                                               ("panns_16k", {"model": {"bn0.weight": torch.zeros(64)}}),
                                               ("panns_16k", {"other": 1})])
def test_foreign_checkpoints_are_refused(name, content, tmp_path):
    torch.save(content, tmp_path / registry.find_entry(name).place)
    with pytest.raises(InputError, match="fetch it again"):
        load_backbone(name, tmp_path)


def test_numbers_of_numpy_in_a_checkpoint_are_read_and_code_is_not(tmp_path):
    """The 16 kHz checkpoint of PANNs keeps its iteration as a numpy array."""

    path = tmp_path / "x.pth"
    torch.save({"iteration": np.array(3), "model": {"a": torch.ones(2)}}, path)
    assert int(read_state(path, numpy_arrays=True)["iteration"]) == 3
    with pytest.raises(InputError):
        read_state(path)
    torch.save({"run": Path("x")}, path)
    with pytest.raises(InputError):
        read_state(path, numpy_arrays=True)


def test_names():
    with pytest.raises(InputError, match="no backbone is called 'passt'"):
        load_backbone("passt")
    assert {"ImageBind score", "DeSync by Synchformer"} <= set(NOT_SHIPPED)


def test_the_example_of_the_documentation_runs(tmp_path, monkeypatch):
    """docs/backbones.md shows a whole backbone: it hears, and an evaluation takes it."""
    import re

    from vta_sam.evaluation import embeddings as backbones
    from vta_sam.evaluation.sounds import FeatureCache

    text = (Path(__file__).resolve().parents[1] / "docs" / "backbones.md").read_text(encoding="utf-8")
    [source] = re.findall(r"```python\n(.*?)```", text, re.S)
    scope: dict = {}
    exec(compile(source, "docs/backbones.md", "exec"), scope)
    backbone = scope["Loudness"]()
    sounds = [noise(0, 16_000), 0.1 * noise(1, 16_000), noise(2, 8_000)]
    answers = backbone.embed(sounds)
    assert [answer.embeddings.shape for answer in answers] == [(1, 2)] * 3
    assert answers[0].embeddings[0, 0] - answers[1].embeddings[0, 0] == pytest.approx(1, abs=0.05)
    monkeypatch.setattr(backbones, "TITLES", {**TITLES, "loudness": ("loudness", False)})
    monkeypatch.setattr(backbones, "load_backbone", lambda *_: backbone)
    found = backbones.BackboneEmbeddings.of(["loudness"], None, "cpu", 4, FeatureCache(None))
    assert found.fingerprints == (("loudness", "loudness-1"),)


def test_an_adapter_of_version_0_1_goes_on_working(monkeypatch):
    """It says ``hear`` and ``Heard``, which ``embed`` and ``Embedding`` have taken the place of."""
    from vta_sam.evaluation import embeddings as backbones
    from vta_sam.evaluation.metric import SoundMeasurements
    from vta_sam.evaluation.sounds import FeatureCache, WaveformFeatures
    from vta_sam.metrics.backbones import Heard, by_length

    class Old:
        name, fingerprint, sample_rate_hz, dim = "old", "old-1", 16_000, 1

        def hear(self, waveforms):
            return by_length(waveforms, lambda batch: [Heard(np.array([[np.abs(row).max()]])) for row in batch])

    monkeypatch.setattr(backbones, "TITLES", {**TITLES, "old": ("old", False)})
    monkeypatch.setattr(backbones, "load_backbone", lambda *_: Old())
    embeddings = backbones.BackboneEmbeddings.of(["old"], None, "cpu", 4, FeatureCache(None))
    sound = SoundMeasurements(WaveformFeatures(noise(0, 8_000)), waveform=noise(0, 8_000))
    embeddings.add([sound])
    embeddings.finish()
    assert sound.embeddings["old"]["embeddings"][0, 0] == np.abs(noise(0, 8_000)).max() and sound.waveform is None
