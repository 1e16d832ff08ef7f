"""The tiny tagger: what it knows, and what must not matter to it."""

from __future__ import annotations

import pytest
import torch

from vta_sam.embedded.tagger_training import SoundBatches, coarse, mels_of, solo_sounds, tagger_figures, vocoded
from vta_sam.embedded.timeline import WORDS
from vta_sam.embedded.tiny_networks import load_tagger


@pytest.fixture(scope="module")
def tagger():
    return load_tagger()


@pytest.fixture(scope="module")
def sounds():
    """Two fresh sounds a class, of a world that the tagger has not met."""
    return solo_sounds(seed=23, split="fresh", per_class=2)


def test_interface(tagger, sounds):
    waveforms, _ = sounds
    assert tagger.classes == WORDS and tagger.fingerprint.startswith("tiny-tagger-")
    assert tagger.logits(waveforms[:3]).shape == (3, 10) and tagger.embed(waveforms[:3]).shape == (3, 64)
    assert not any(p.requires_grad for p in tagger.parameters())


def test_fresh_sounds_are_recognised(tagger, sounds):
    waveforms, classes = sounds
    assert (tagger.logits(waveforms).argmax(1) == classes).float().mean() >= 0.95


def test_vocoded_sounds_are_recognised(tagger, sounds):
    waveforms, classes = sounds
    chosen = slice(0, 8)
    vectors = tagger.embed_mel(vocoded(mels_of(waveforms[chosen]), smear=True))
    answers = tagger.classify(vectors.relu()).argmax(1)
    assert (answers == classes[chosen]).float().mean() >= 0.85


def test_level_offset_and_silence_do_not_matter(tagger, sounds):
    waveforms, classes = sounds
    logits = tagger.logits(waveforms)
    torch.testing.assert_close(tagger.logits(waveforms * 0.05 + 0.1), logits, atol=0.05, rtol=0.01)
    padded = torch.nn.functional.pad(waveforms, (32_000, 32_000))
    assert torch.equal(tagger.logits(padded).argmax(1), classes)


def test_a_sound_is_judged_alone_and_silence_gives_numbers(tagger, sounds):
    waveforms, _ = sounds
    torch.testing.assert_close(tagger.embed(waveforms[5:6])[0], tagger.embed(waveforms)[5], atol=1e-3, rtol=1e-3)
    assert tagger.logits(torch.zeros(1, 16_000)).isfinite().all()


def test_solo_sounds_are_balanced_and_of_their_seed(sounds):
    waveforms, classes = sounds
    assert classes.bincount().tolist() == [2] * 10
    again, _ = solo_sounds(seed=23, split="fresh", per_class=2)
    other, _ = solo_sounds(seed=24, split="fresh", per_class=2)
    assert torch.equal(again, waveforms) and not torch.equal(other, waveforms)
    torch.testing.assert_close(waveforms.abs().amax(1), torch.full((20,), 0.5))


def test_batches_hold_sound_and_follow_the_seed(sounds):
    waveforms, classes = sounds
    mels = mels_of(waveforms)
    first, again = (list(SoundBatches(mels, classes, 6, 3, seed=4)) for _ in range(2))
    for (mel, label), (mel_again, label_again) in zip(first, again):
        assert torch.equal(mel, mel_again) and torch.equal(label, label_again)
        assert 96 <= mel.shape[1] <= 512 and mel.isfinite().all()
        assert (mel.amax((1, 2)) > -5).all()  # each crop lies around a moment at which something is heard


def test_coarse_keeps_the_mean_and_loses_detail():
    mel = torch.randn(2, 64, 64)
    assert coarse(mel).var() < 0.5 * mel.var()
    torch.testing.assert_close(coarse(mel).mean(), mel.mean(), atol=0.02, rtol=0)


def test_shipped_figures_meet_the_bar(tagger):
    from vta_sam.embedded.tiny_networks import SHIPPED_TAGGER, read_weights

    figures = read_weights(SHIPPED_TAGGER, "tagger").about["figures"]
    assert figures["top1"] >= 0.95 and figures["top1_vocoded"] >= 0.95 and figures["top1_smeared"] >= 0.9


@pytest.mark.slow
def test_tagger_on_many_fresh_sounds(tagger):
    waveforms, classes = solo_sounds(seed=31, split="fresh", per_class=10)
    figures = tagger_figures(tagger, waveforms, classes, vocode=30)
    assert figures["top1"] >= 0.95 and figures["top1_vocoded"] >= 0.9, figures
