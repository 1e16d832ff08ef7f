"""Frame semantics, the encoder that listens to them, and what stage 2 asks of it."""

import math

import numpy as np
import pytest
import torch
from models import FRAME_DIM as MODEL_FRAME_DIM
from models import OBJECT_DIM as MODEL_OBJECT_DIM
from models import SPEC as MODEL_SPEC
from models import make_batch
from tiny_data import ENCODER, FRAME_DIM, OBJECT_DIM, SPEC, a_clip, build

from vta_sam.conditioners.vta_sam import WEIGHTS, TemporalSemanticEncoder, frame_semantics, threshold
from vta_sam.conditioners.vta_sam_pretraining import (
    ConditionPretraining, contrastive_loss, energy_targets, onset_targets, retrieval_accuracy
)
from vta_sam.dataset.shards.batch import Augmentation, collate, window_of
from vta_sam.diffusion.unet import sinusoids
from vta_sam.mel import LOG_FLOOR, LogMel, normalise
from vta_sam.runtime.errors import InputError
from vta_sam.training.optimisation import AdamWithWarmup


def batch_of(*keys, duration_s=SPEC.duration_s, **more):
    return collate([window_of(a_clip(key, duration_s, **more), SPEC, i) for i, key in enumerate(keys)], SPEC)


# ------------------------------------------------------------------ s[t] = Σ p · e


def test_frame_semantics_by_hand():
    probs = torch.tensor([[[0.5, 0.0], [1.0, 0.25]]])  # two frames, two objects
    embedding = torch.tensor([[[2.0, 0.0, 4.0], [0.0, 8.0, -4.0]]])
    assert frame_semantics(probs, embedding).tolist() == [[[1.0, 0.0, 2.0], [2.0, 2.0, 3.0]]]


def test_frame_semantics_is_the_sum_over_objects():
    generator = torch.Generator().manual_seed(0)
    probs, embedding = torch.rand(3, 5, 4, generator=generator), torch.randn(3, 4, 6, generator=generator)
    expected = torch.zeros(3, 5, 6)
    for b, t, k in np.ndindex(3, 5, 4):
        expected[b, t] += probs[b, t, k] * embedding[b, k]
    assert torch.allclose(frame_semantics(probs, embedding), expected, atol=1e-6)
    assert not frame_semantics(probs[:, :, :0], embedding[:, :0]).any()  # no objects: nothing to say


def test_threshold_keeps_what_is_above_it():
    assert torch.equal(threshold(torch.tensor([0.1, 0.3, 0.31, 0.9]), 0.3), torch.tensor([0.0, 0.3, 0.31, 0.9]))


# ------------------------------------------------------------------ the encoder


@pytest.fixture(scope="module")
def encoder():
    return build(ENCODER, randomise=True)


def test_equal_times_have_equal_positions():
    at_frames, at_columns = sinusoids(torch.tensor([0.12, 1.0]), 16), sinusoids(torch.tensor([1.0]), 16)
    assert torch.equal(at_frames[1:], at_columns) and at_frames.shape == (2, 16)
    assert torch.allclose(sinusoids(torch.tensor([0.0]), 4), torch.tensor([[0.0, 0, 1, 1]]))
    apart = torch.cdist(sinusoids(torch.arange(64) * 0.08, 16), sinusoids(torch.arange(64) * 0.08, 16))
    assert (apart + torch.eye(64) * 9).min() > 0.1  # no two frames of a clip look alike


@torch.no_grad()
def test_padding_changes_nothing(encoder):
    batch = batch_of("a", "b", duration_s=2.0)
    tokens = encoder(batch)
    real = batch.frame_mask
    assert tokens.shape == (2, 64, 16) and 0 < real[0].sum() < 64
    for name, fill in (("frame_embedding", 50.0), ("probs", 1.0)):
        getattr(batch, name)[~real] = fill
    absent = ~batch.object_mask
    batch.probs.transpose(1, 2)[absent], batch.object_embedding[absent] = 0.7, 9.0
    assert torch.allclose(encoder(batch)[real], tokens[real], atol=1e-5)


@torch.no_grad()
def test_each_half_can_be_left_out():
    batch, other = batch_of("a"), batch_of("a")
    other.frame_embedding = torch.randn_like(other.frame_embedding)
    unseen = build({**ENCODER, "use_frames": False})
    assert torch.equal(unseen(batch), unseen(other))
    assert not torch.allclose(unseen(batch), unseen(batch.without_objects(torch.tensor([True]))), atol=1e-3)
    wordless = build({**ENCODER, "use_semantics": False})
    assert torch.equal(wordless(batch), wordless(batch.without_objects(torch.tensor([True]))))
    assert not torch.allclose(wordless(batch), wordless(other), atol=1e-3)
    with pytest.raises(ValueError, match="frames, semantics or both"):
        TemporalSemanticEncoder(FRAME_DIM, OBJECT_DIM, 12.5, use_frames=False, use_semantics=False)


@torch.no_grad()
def test_probabilities_of_a_single_object_are_heard(encoder):
    """A norm over the sum would divide them away."""
    batch = batch_of("a", words=("dog",))
    tokens = encoder(batch)
    batch.probs = batch.probs * 0.5
    assert (encoder(batch) - tokens).abs().max() > 1e-2


@torch.no_grad()
def test_order_of_objects_does_not_matter(encoder):
    batch = batch_of("a", words=("dog", "canary", "clarinet", "ferret"))
    turned = [3, 1, 7, 0, 2, 4, 5, 6]
    tokens = encoder(batch)
    batch.probs, batch.object_embedding = batch.probs[:, :, turned], batch.object_embedding[:, turned]
    batch.object_mask = batch.object_mask[:, turned]
    assert torch.allclose(encoder(batch), tokens, atol=1e-5)


# ------------------------------------------------------------------ targets of stage 2


def mel_of(*waveforms):
    return LogMel(SPEC.mel)(normalise(torch.from_numpy(np.stack(waveforms).astype(np.float32))))[:, :-1]


@pytest.mark.parametrize("frame", [3, 20, 40, 62])
def test_a_burst_is_heard_in_its_frame(frame):
    waveform = np.zeros(SPEC.samples)
    at = round(SPEC.frame_times_s()[frame] * 16_000)
    waveform[at:at + 160] = np.random.default_rng(0).normal(size=160)
    mel = mel_of(waveform)
    energy, onset = energy_targets(mel, SPEC)[0], onset_targets(mel, SPEC)[0]
    assert energy.argmax() == frame and onset.argmax() == frame and onset[frame] == 1
    far = (torch.arange(SPEC.frames) - frame).abs() > 1  # a window of 64 ms reaches into the neighbours
    assert not energy[far].any() and not onset[far].any()


def test_energy_is_decibels_below_the_loudest():
    """A steady level and another 30 dB below it: 1 and a half."""
    noise = np.random.default_rng(0).normal(size=SPEC.samples)
    noise[SPEC.samples // 2:] *= 10 ** (-30 / 20)
    energy = energy_targets(mel_of(noise), SPEC)[0]
    assert energy[2:30].mean() - energy[34:62].mean() == pytest.approx(0.5, abs=0.02)
    assert energy.max() <= 1 and energy.min() >= 0


def test_an_onset_is_a_rise_and_not_an_end():
    noise = np.random.default_rng(0).normal(size=SPEC.samples)
    noise[:20 * 1280], noise[40 * 1280:] = 0, 0
    onset = onset_targets(mel_of(noise), SPEC)[0]
    assert onset[19:21].max() == 1 and onset[38:43].max() < 0.6 and onset[39:].argmax() + 39 < 42


def test_silence_has_neither_energy_nor_onsets():
    mel = mel_of(np.zeros(SPEC.samples), np.full(SPEC.samples, 0.3))
    assert torch.all(mel <= LOG_FLOOR + 1e-3)
    assert not energy_targets(mel, SPEC).any() and not onset_targets(mel, SPEC).any()


def test_contrastive_loss_by_hand():
    a = torch.eye(4)
    scale = torch.tensor(math.log(5.0))
    right = contrastive_loss(a, 3 * a, scale)  # lengths don't count
    assert right == pytest.approx(math.log(1 + 3 * math.exp(-5)), abs=1e-5)
    assert contrastive_loss(a, a.roll(1, 0), scale) == pytest.approx(5 + float(right), abs=1e-4)
    assert retrieval_accuracy(a, a) == 1 and retrieval_accuracy(a, a.roll(1, 0)) == 0
    assert contrastive_loss(a, a, torch.tensor(99.0)).isfinite()  # the scale has a bound


# ------------------------------------------------------------------ what training hides


def test_augmentation_belongs_to_the_sample():
    batch = batch_of("a", "b", "c")
    augment = Augmentation(objects=0.5, frames=0.5, appearance=1.0)
    together, turned = augment(batch, "x"), augment(batch.select([2, 0, 1]), "x")
    for name in ("frame_embedding", "probs", "object_embedding", "object_mask"):
        assert torch.equal(getattr(turned, name), getattr(together, name)[[2, 0, 1]]), name
    assert not torch.equal(augment(batch, "y").frame_embedding, together.frame_embedding)


def test_nothing_is_hidden_unless_asked_for():
    batch = batch_of("a", "b")
    same = Augmentation(objects=0.0)(batch, "x")
    assert torch.equal(same.frame_embedding, batch.frame_embedding) and torch.equal(same.probs, batch.probs)


def test_shares_are_as_asked_for_and_never_both():
    batch = batch_of("a").select([0] * 400)
    batch.seeds = torch.arange(400)
    hidden = Augmentation(objects=0.3, frames=0.2)(batch, "x")
    blank, wordless = ~hidden.frame_embedding.any(dim=(1, 2)), ~hidden.object_mask.any(dim=1)
    assert not (blank & wordless).any(), "a clip of which nothing is left"
    assert blank.float().mean() == pytest.approx(0.2, abs=0.06)
    assert wordless.float().mean() == pytest.approx(0.3 * 0.8, abs=0.06)


def test_an_offset_keeps_what_changes():
    batch = batch_of("a", "b")
    moved = Augmentation(objects=0.0, appearance=2.0)(batch, "x")
    offset = moved.frame_embedding - batch.frame_embedding
    assert torch.allclose(offset, offset[:, :1].expand_as(offset), atol=1e-5) and offset.abs().max() > 0.1
    assert not torch.allclose(offset[0], offset[1], atol=1e-2)
    assert torch.equal(moved.probs, batch.probs)


# ------------------------------------------------------------------ the module


def pretraining(object_dropout=0.0):
    weights = {"energy": 10.0, "onset": 1.0, "contrastive": 0.3}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = ConditionPretraining(build(ENCODER), weights, Augmentation(objects=object_dropout),
                                      AdamWithWarmup(5e-3, 40), SPEC.mel)
    module.log = module.log_dict = lambda *args, **kwargs: None
    return module.train()


@pytest.mark.slow
def test_losses_fall_and_what_is_learned_holds_for_unseen_clips():
    train = batch_of(*(f"train-{i}" for i in range(8)))
    unseen = batch_of(*(f"unseen-{i}" for i in range(8)))
    module = pretraining()
    optimiser = module.configure_optimizers()["optimizer"]
    with torch.no_grad():
        before, figures_before = module._forward(unseen)
    first, _ = module._forward(train)
    for step in range(40):
        optimiser.zero_grad()
        module.training_step(train, step).backward()
        optimiser.step()
    with torch.no_grad():
        after, figures = module._forward(unseen)
        last, _ = module._forward(train)
    assert all(last[name] < 0.8 * first[name] for name in ("energy", "contrastive"))
    assert after["energy"] < 0.7 * before["energy"]
    assert figures["energy_correlation"] > max(0.6, figures_before["energy_correlation"] + 0.2)


@torch.no_grad()
def test_padded_frames_do_not_count():
    module = pretraining()
    batch = batch_of("a", "b", duration_s=2.0)
    losses, figures = module._forward(batch)
    module.heads.energy.register_forward_hook(
        lambda _, __, out: out + 100 * ~batch.frame_mask[..., None])  # far off, where nothing is
    again, figures_again = module._forward(batch)
    assert torch.allclose(losses["energy"], again["energy"])
    assert torch.allclose(figures["energy_correlation"], figures_again["energy_correlation"], atol=1e-6)


@torch.no_grad()
def test_objects_are_dropped_by_the_samples_own_draws():
    batch = batch_of("a", "b", "c")
    seen = []
    for dropout, rows in ((0.0, batch), (1.0, batch), (0.5, batch), (0.5, batch.select([2, 0, 1]))):
        module = pretraining(dropout)
        module.encoder.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].object_mask.any(dim=1)))
        module.training_step(rows, 0)
    assert seen[0].all() and not seen[1].any()
    assert torch.equal(seen[3], seen[2][[2, 0, 1]])


def varied_batch():
    """Two clips of two objects, of known probabilities and areas."""
    batch = make_batch("a", "b")
    batch.areas = batch.areas * torch.linspace(0.1, 1, batch.areas.shape[1])[None, :, None]
    return batch


def test_uniform_probabilities_keep_who_and_forget_when():
    batch = varied_batch()
    batch.frame_mask[1, 10:] = False
    found = WEIGHTS["uniform"](batch)
    assert torch.equal(found, found[:, :1].expand_as(found)) and found.shape == batch.probs.shape
    assert torch.allclose(found[0, 0], batch.probs[0].mean(dim=0))
    assert torch.allclose(found[1, 0], batch.probs[1, :10].mean(dim=0))


def test_areas_weigh_near_things_more():
    batch = varied_batch()
    found = WEIGHTS["by_area"](batch)
    last = batch.areas.shape[1] - 1
    assert torch.allclose(found[:, last], batch.probs[:, last])
    assert torch.allclose(found[:, 0], batch.probs[:, 0] * 0.1, atol=1e-6)


@torch.no_grad()
def test_encoder_options_reach_the_semantics():
    """Each option changes the tokens exactly where it changes what objects weigh."""
    def tokens(batch, **options):
        torch.manual_seed(0)
        return TemporalSemanticEncoder(MODEL_FRAME_DIM, MODEL_OBJECT_DIM, MODEL_SPEC.fps, 16, 1, 2, **options)(batch)

    batch = varied_batch()
    assert not torch.allclose(tokens(batch), tokens(batch, weights="uniform"), atol=1e-4)
    assert not torch.allclose(tokens(batch), tokens(batch, threshold=0.5), atol=1e-4)
    batch.probs[:] = batch.probs[:, :1]
    assert torch.allclose(tokens(batch), tokens(batch, weights="uniform"), atol=1e-5)
    batch.probs[:] = 0.7
    assert torch.allclose(tokens(batch), tokens(batch, threshold=0.5), atol=1e-6)
    with pytest.raises(ValueError, match="weights is one of as_seen, uniform, by_area"):
        tokens(batch, weights="loudest")


@torch.no_grad()
def test_mask_pooled_embeddings_join_their_objects():
    torch.manual_seed(0)
    encoder = TemporalSemanticEncoder(MODEL_FRAME_DIM, MODEL_OBJECT_DIM, MODEL_SPEC.fps, 16, 1, 2, mask_dim=6)
    batch = varied_batch()
    with pytest.raises(InputError, match="the features have none; extract them with"):
        encoder(batch)
    batch.mask_embedding = torch.randn(2, *batch.probs.shape[1:], 6)
    before = encoder(batch)
    batch.mask_embedding[:, :, 2:] = 50.0  # objects that the clips don't have
    assert torch.allclose(encoder(batch), before, atol=1e-6)
    batch.mask_embedding[:, :, 0] = -batch.mask_embedding[:, :, 0]
    assert not torch.allclose(encoder(batch), before, atol=1e-3)
