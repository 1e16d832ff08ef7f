"""The recipes of the tiny models: data, losses, folding, weights files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from vta_sam.embedded.timeline import WORDS
from vta_sam.embedded.tiny_networks import (
    SHIPPED_TAGGER, SHIPPED_TRUNK, Tagger, Trunk, fill, fold, load_trunk, read_weights, write_weights
)
from vta_sam.embedded.trunk_training import PictureBatches, Pictures, TrunkTraining, augment, pack
from vta_sam.runtime.errors import InputError

LOSSES = ("heat", "overlap", "presence", "acting", "told_presence", "told_pose", "told_place", "told_look_alikes")


def invented_pictures(count: int) -> Pictures:
    """Pictures in which word 0 is a bright square whose truth is known."""
    generator = torch.Generator().manual_seed(3)
    frames = torch.randint(0, 60, (count, 72, 96, 3), generator=generator, dtype=torch.uint8)
    masks = torch.zeros(count, 10, 24, 32)
    place = torch.zeros(count, 10, 3)
    for i in range(count):
        top = int(torch.randint(0, 16, (), generator=generator))
        left = int(torch.randint(0, 24, (), generator=generator))
        frames[i, 3 * top : 3 * top + 24, 3 * left : 3 * left + 24] = 250
        masks[i, 0, top : top + 8, left : left + 8] = 1
        place[i, 0] = torch.tensor([(left + 4) / 32, (top + 4) / 24, (8 * 8 / 32 / 24) ** 0.5])
    visible = torch.zeros(count, 10, dtype=torch.bool)
    visible[:, 0] = True
    pose = torch.rand(count, 10, generator=generator) * visible
    return Pictures(frames, torch.arange(count), visible, pose, place, pack(masks),
                    torch.zeros(count, 10, dtype=torch.bool))


def test_masks_survive_packing():
    masks = (torch.rand(3, 10, 24, 32) > 0.5).float()
    packed = pack(masks)
    np.testing.assert_array_equal(packed.numpy(), np.packbits(masks.numpy().astype(bool), axis=-1))
    pictures = invented_pictures(3)
    pictures.masks = packed
    assert torch.equal(pictures.unpacked_masks(), masks)


def test_augmentation_keeps_picture_and_truth_together():
    x, truth = augment(invented_pictures(40), torch.Generator().manual_seed(0))
    bright = x.mean(1) > x.mean((1, 2, 3))[:, None, None] + 0.4
    masks = truth.unpacked_masks()[:, 0]
    blown_up = torch.nn.functional.interpolate(masks[:, None], scale_factor=3)[:, 0].bool()
    overlap = (bright & blown_up).sum((1, 2)) / (bright | blown_up).sum((1, 2))
    assert overlap.min() > 0.8
    columns = (masks.amax(1) * (torch.arange(32) + 0.5)).sum(1) / 8 / 32
    torch.testing.assert_close(columns, truth.place[:, 0, 0])
    mirrored = truth.place[:, 0, 0] != invented_pictures(40).place[:, 0, 0]
    assert 8 < mirrored.sum() < 32


def test_batches_are_a_function_of_the_seed_and_use_every_picture():
    pictures = invented_pictures(12)
    first, again, other = ([t.clip for _, t in PictureBatches(pictures, 4, 3, seed)] for seed in (0, 0, 1))
    assert torch.equal(torch.cat(first), torch.cat(again)) and not torch.equal(torch.cat(first), torch.cat(other))
    assert sorted(torch.cat(first).tolist()) == list(range(12))


def test_every_loss_has_a_weight_and_every_parameter_a_gradient():
    training = TrunkTraining(Trunk(), 10, 1e-3, 10, dict.fromkeys(LOSSES, 1.0))
    training.log_dict = lambda *_, **__: None
    training.training_step(augment(invented_pictures(6), torch.Generator().manual_seed(0)), 0).backward()
    idle = [name for name, p in training.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert not idle


def test_losses_fall_when_the_truth_is_seen():
    torch.manual_seed(0)
    pictures = invented_pictures(4)
    training = TrunkTraining(Trunk(), 10, 1e-3, 10, dict.fromkeys(LOSSES, 1.0))
    x, truth = augment(pictures, torch.Generator().manual_seed(0))
    sight = training.trunk.forward_normalised(x)
    seen = truth.unpacked_masks() * 16 - 8
    better = sight._replace(heat=seen, presence=truth.visible.float() * 16 - 8)
    before, after = training.losses(sight, truth), training.losses(better, truth)
    for name in ("heat", "overlap", "presence"):
        assert after[name] < 0.2 * before[name], name


def test_folding_changes_no_answer():
    torch.manual_seed(0)
    trunk = Trunk()
    with torch.no_grad():
        for _ in range(3):
            trunk.forward_normalised(torch.randn(4, 3, 72, 96))  # gives the batch normalisations something to remember
    frames = torch.randint(0, 256, (2, 72, 96, 3), dtype=torch.uint8)
    whole, folded = trunk.eval()(frames), fold(trunk)(frames)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fold(trunk).modules())
    for a, b in zip(whole, folded):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("path, kind", [(SHIPPED_TRUNK, "trunk"), (SHIPPED_TAGGER, "tagger")])
def test_shipped_weights(path, kind):
    assert path.stat().st_size < 3_000_000
    assert {t.dtype for t in load_file(path).values()} == {torch.float16}
    weights = read_weights(path, kind)
    assert weights.classes == WORDS and weights.fingerprint.startswith(f"tiny-{kind}-")
    beside = yaml.safe_load(path.with_suffix(".yaml").read_text(encoding="utf-8"))
    assert beside == weights.about and beside["figures"]


def test_weights_round_trip(tmp_path):
    torch.manual_seed(0)
    tagger = Tagger(("a", "b"), folded=True)
    about = {"kind": "tagger", "version": 3, "classes": ["a", "b"], "sizes": {}}
    write_weights(tmp_path / "t.safetensors", tagger, about)
    weights = read_weights(tmp_path / "t.safetensors", "tagger")
    again = Tagger(weights.classes, folded=True)
    fill(again, weights, "t")
    for name, tensor in tagger.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, atol=1e-3, rtol=1e-3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.safetensors", "t.yaml"]


def test_weights_that_are_not_those_are_refused(tmp_path):
    with pytest.raises(InputError, match="missing"):
        read_weights(tmp_path / "none.safetensors", "trunk")
    with pytest.raises(InputError, match="tagger"):
        read_weights(SHIPPED_TAGGER, "trunk")
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(SHIPPED_TRUNK.read_bytes()[:5000])
    with pytest.raises(InputError, match="can't be read"):
        read_weights(torn, "trunk")
    save_file({"x": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(InputError, match="can't be read"):
        load_trunk(tmp_path / "foreign.safetensors")
    about = {"kind": "trunk", "version": 1, "classes": list(WORDS), "sizes": {"hidden": 16}}
    write_weights(tmp_path / "other.safetensors", Trunk(folded=True), about)
    with pytest.raises(InputError, match="don't fit the sizes"):
        load_trunk(tmp_path / "other.safetensors")
    endless = Tagger(("a",), folded=True)
    with torch.no_grad():
        endless.vector.bias.fill_(1e6)
    with pytest.raises(InputError, match="fp16"):
        write_weights(tmp_path / "endless.safetensors", endless, {})


@pytest.mark.slow
def test_the_recipes_run_from_end_to_end(tmp_path):
    from vta_sam.embedded.tiny_recipes import DetectorRecipe, TaggerRecipe, TrunkRecipe

    trunk = TrunkRecipe(
        scenes=str(tmp_path / "scenes"), train_clips=4, train_seed=1, test_clips=4, test_seed=2, fps=3.125, seed=0,
        steps=3, batch=8, rate=1e-3, loss_weights=dict.fromkeys(LOSSES, 1.0), version=9, workers=1,
        out=str(tmp_path / "trunk.safetensors"),
    )
    figures = trunk.train()
    assert figures["pictures"] == 64 and trunk.measure()["presence_ap"] == figures["presence_ap"]
    tagger = TaggerRecipe(
        train_sounds=2, train_seed=1, test_sounds=1, test_seed=2, vocoded=1, test_vocoded=1, seed=0, steps=2, batch=4,
        rate=1e-3, label_smoothing=0.05, version=9, out=str(tmp_path / "tagger.safetensors"),
    )
    assert tagger.train()["sounds"] == 10
    assert read_weights(tmp_path / "tagger.safetensors", "tagger").about["recipe"]["train_sounds"] == 2
    detector = DetectorRecipe(
        train_scenes=4, train_seed=1, test_scenes=3, test_seed=2, exchanged=0.5, noises=2, vocoded=2, test_vocoded=2,
        seed=0, steps=2, batch=4, rate=1e-3, onset_weight=3.0, sounding_weight=0.5, version=9,
        out=str(tmp_path / "detector.safetensors"),
    )
    figures = detector.train()
    assert figures["sounds"] == 3 and detector.measure() == figures
    for recipe in (trunk, tagger, detector):
        with pytest.raises(InputError, match="test_seed"):
            type(recipe)(**{**vars(recipe), "test_seed": 1}).train()
