"""Properties of sampling with a (random) model: seeds, batches, guidance, negatives, any length, what is refused."""

import dataclasses
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from models import SPEC, make_batch, make_features, make_model_folder, make_seeing_model

import vta_sam
from vta_sam.checkpoints.model_folder import read_recipe
from vta_sam.clip import ClipSpec
from vta_sam.dataset.shards.schema import DatasetInfo
from vta_sam.generation.build import inference_precision, require_same_features
from vta_sam.generation.pipeline import Pipeline, limited, load
from vta_sam.media.guarded import Media
from vta_sam.perception.features import words_of
from vta_sam.runtime.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", params=[False, True], ids=["cross-attention", "aligned"])
def pipeline(request, tmp_path_factory) -> Pipeline:
    return vta_sam.load(make_model_folder(tmp_path_factory.mktemp("model"), aligned=request.param))


def test_a_clip_does_not_depend_on_its_batch(pipeline):
    batch, seeds = make_batch("a", "b", "c"), [1, 2, 3]
    together = pipeline.sample_latents(batch, seeds)
    assert together.shape == (3, 8, SPEC.columns, 4)
    alone = torch.cat([pipeline.sample_latents(batch.select([i]), [seeds[i]]) for i in range(3)])
    turned = pipeline.sample_latents(batch.select([2, 0, 1]), [3, 1, 2])
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(together, turned[[1, 2, 0]], atol=1e-5)
    assert torch.allclose(pipeline.decode(together), pipeline.decode(alone), atol=2e-3)


def test_seeds_and_clips_matter(pipeline):
    batch = make_batch("a", "b")
    latents = pipeline.sample_latents(batch, [1, 1])
    assert torch.equal(latents, pipeline.sample_latents(batch, [1, 1]))
    assert (latents[0] - latents[1]).abs().max() > 1e-3  # same noise, other features
    assert (pipeline.sample_latents(batch, [2, 1])[0] - latents[0]).abs().max() > 0.1


def test_guidance_one_is_no_guidance(pipeline):
    batch = make_batch("a")
    told = pipeline.conditioner(batch)
    with torch.no_grad():
        noise = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 8, SPEC.columns, 4)).astype(np.float32))
        pipeline.denoiser.eval()
        plain = pipeline.sampler.sample(lambda z, t: pipeline.denoiser(z, t, told), noise, pipeline.objective)
        predict = pipeline._predictor(batch, None, 1.0)
        assert torch.equal(pipeline.sampler.sample(predict, noise, pipeline.objective), plain)
    guided = pipeline.sample_latents(batch, [1], guidance=3.0)
    assert (guided - pipeline.sample_latents(batch, [1], guidance=1.0)).abs().max() > 1e-3


def test_a_negative_takes_the_nulls_place(pipeline, monkeypatch):
    batch, negative = make_batch("a"), make_batch("a", objects=("cat",))
    plain = pipeline.sample_latents(batch, [1])
    told = pipeline.sample_latents(batch, [1], negative=negative)
    assert (plain - told).abs().max() > 1e-3
    # a null that says what the negative says makes the plain result the negative one
    monkeypatch.setattr(type(pipeline.conditioner), "null", lambda self, _: self(negative))
    assert torch.equal(pipeline.sample_latents(batch, [1]), told)


def test_a_negative_equal_to_the_prompt_cancels_guidance(pipeline):
    batch = make_batch("a")
    cancelled = pipeline.sample_latents(batch, [1], guidance=7.0, negative=batch)
    assert torch.allclose(cancelled, pipeline.sample_latents(batch, [1], guidance=1.0), atol=1e-4)


def test_steps_and_mode_of_the_modules(pipeline):
    calls = []
    handle = pipeline.denoiser.register_forward_hook(lambda *_: calls.append(pipeline.denoiser.training))
    pipeline.denoiser.train()
    pipeline.denoiser.unet.mid_block.eval()
    pipeline.sample_latents(make_batch("a"), [1], steps=3)
    handle.remove()
    assert calls == [False] * 3
    assert pipeline.denoiser.training and not pipeline.denoiser.unet.mid_block.training
    pipeline.denoiser.eval()


def test_a_record_of_the_models_length_is_what_the_batch_gives(pipeline):
    batch = pipeline.generate_batch(make_batch("a"), [7])[0].numpy()
    assert batch.shape == (SPEC.samples,)
    assert np.array_equal(pipeline.generate_features(make_features("a"), 7), batch)


def test_ancestral_sampling_has_its_own_noise_per_clip(pipeline, monkeypatch):
    monkeypatch.setattr(pipeline, "sampler", dataclasses.replace(pipeline.sampler, solver="ddpm", steps=3))
    batch = pipeline.sample_latents(make_batch("a", "b"), [7, 8])
    assert torch.allclose(pipeline.sample_latents(make_batch("b"), [8])[0], batch[1], atol=1e-5)
    alone = pipeline.generate_batch(make_batch("a"), [7])[0].numpy()
    assert np.array_equal(pipeline.generate_features(make_features("a"), 7), alone)


@pytest.mark.parametrize("duration_s", [0.01, 0.3, 1.29, 3.84])
def test_any_length_comes_out_exactly_as_long(pipeline, duration_s):
    features = make_features("a", duration_s=duration_s)
    sizes = []
    handle = pipeline.denoiser.register_forward_hook(lambda module, inputs, _: sizes.append(inputs[0].shape))
    waveform = pipeline.generate_features(features, 7)
    handle.remove()
    assert waveform.shape == (round(duration_s * 16_000),) and np.isfinite(waveform).all()
    assert all(shape[2] == SPEC.columns and shape[0] <= 16 for shape in sizes)  # 8 windows, told and not told


def test_a_long_video_is_generated_in_a_bounded_batch(pipeline):
    sizes = []
    handle = pipeline.denoiser.register_forward_hook(lambda module, inputs, _: sizes.append(len(inputs[0])))
    waveform = pipeline.generate_features(make_features("a", duration_s=16.0), 7, guidance=1.0)
    handle.remove()
    assert len(waveform) == 256_000 and max(sizes) == 8
    seconds = np.sqrt(np.square(waveform.reshape(16, -1)).mean(axis=1))
    assert seconds.min() > 0.1 * seconds.max()  # every window left something


def test_a_negative_for_a_long_record(pipeline):
    features = make_features("a", duration_s=2.0)
    plain = pipeline.generate_features(features, 7)
    negative = make_features("a", duration_s=2.0, objects=("cat",))
    assert np.abs(plain - pipeline.generate_features(features, 7, negative=negative)).max() > 1e-3


def test_captions_of_different_lengths_may_face_each_other(pipeline):
    batch, negative = make_batch("a", caption_tokens=2), make_batch("a", caption_tokens=5)
    assert torch.isfinite(pipeline.sample_latents(batch, [1], negative=negative)).all()


def test_loud_sound_is_scaled_and_never_clipped():
    loud = torch.tensor([[0.5, -2.0, 1.0], [0.5, -0.2, 0.1]])
    assert torch.allclose(limited(loud), torch.tensor([[0.2475, -0.99, 0.495], [0.5, -0.2, 0.1]]))
    assert torch.equal(limited(torch.zeros(3)), torch.zeros(3))


@pytest.mark.parametrize("settings", [{"steps": 0}, {"steps": 1001}, {"steps": 2.5}, {"guidance": -1.0},
                                      {"guidance": float("nan")}, {"guidance": "much"}])
def test_numbers_that_make_no_sense_are_refused(pipeline, settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        pipeline.sample_latents(make_batch("a"), [1], **settings)


def test_half_precision(folder, tmp_path):
    """Matrices in bf16, what is delicate in fp32; nearly the same latents."""
    exact, half = load(folder), load(folder, precision="bf16")
    wanted, found = (each.sample_latents(make_batch("a"), [1], steps=4) for each in (exact, half))
    assert found.dtype == torch.float32 and not torch.equal(found, wanted)
    assert (found - wanted).square().mean().sqrt() < 0.03 * wanted.square().mean().sqrt()
    assert half.decode(found).dtype == torch.float32
    layers = [module for module in half.denoiser.modules() if hasattr(module, "weight")]
    matrices = [layer for layer in layers if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d))]
    strided = [layer for layer in matrices if max(getattr(layer, "stride", (1,))) > 1]  # exact on processors
    assert {layer.weight.dtype for layer in matrices if layer not in strided} == {torch.bfloat16}
    assert strided and {layer.weight.dtype for layer in strided} == {torch.float32}
    assert {layer.weight.dtype for layer in layers if isinstance(layer, (torch.nn.GroupNorm, torch.nn.LayerNorm))} == {
        torch.float32}
    assert all(parameter.dtype == torch.float32 for parameter in exact.denoiser.parameters())
    long = half.generate_features(make_features("long", 3.0), seed=0, steps=1)
    assert long.dtype == np.float32 and np.isfinite(long).all()
    with pytest.raises(InputError, match="weights in bf16"):
        half.save_pretrained(tmp_path / "new")


def test_the_number_format_follows_device_and_model(folder):
    recipe = read_recipe(folder)
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert inference_precision("auto", cuda, recipe) == "bf16" and inference_precision("auto", cpu, recipe) == "fp32"
    assert inference_precision("fp32", cuda, recipe) == "fp32"
    recipe.about["source"] = "VTA-LDM"
    assert inference_precision("auto", cuda, recipe) == "fp32" and inference_precision("bf16", cuda, recipe) == "bf16"
    with pytest.raises(InputError, match="precision=fp16: auto, fp32 or bf16"):
        load(folder, precision="fp16")


def test_as_many_seeds_as_clips(pipeline):
    with pytest.raises(InputError, match="2 clips need as many seeds, got 1"):
        pipeline.sample_latents(make_batch("a", "b"), [1])


def test_a_codec_of_another_stride_is_refused(pipeline):
    spec = ClipSpec(duration_s=1.28, fps=12.5, latent_stride_frames=8)
    with pytest.raises(InputError, match="stride of 16 mel frames"):
        Pipeline(spec=spec, codec=pipeline.codec, denoiser=pipeline.denoiser, conditioner=pipeline.conditioner,
                 latent_scale=1.0, sampler=pipeline.sampler, vocoder=pipeline.vocoder)


def test_latent_scale_divides_latents(pipeline):
    one, batch = pipeline.sample_latents(make_batch("a"), [1]), make_batch("a")
    names = ("spec", "codec", "denoiser", "conditioner", "sampler", "vocoder")
    parts = {name: getattr(pipeline, name) for name in names}
    twice = Pipeline(**parts, latent_scale=2 * pipeline.latent_scale).sample_latents(batch, [1])
    assert torch.allclose(2 * twice, one)


def test_no_gradients_are_kept(pipeline):
    assert not pipeline.sample_latents(make_batch("a"), [1]).requires_grad
    assert not any(p.requires_grad for p in pipeline.denoiser.parameters())


@pytest.mark.slow
def test_without_lightning(folder):
    import subprocess
    import sys

    code = f"import sys, vta_sam; vta_sam.load({str(folder)!r}); print('lightning' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def _rewritten(folder, tmp_path, change):
    copy = shutil.copytree(folder, tmp_path / "copy")
    content = yaml.safe_load((copy / "model.yaml").read_text())
    change(content)
    (copy / "model.yaml").write_text(yaml.safe_dump(content))
    return copy


@pytest.mark.parametrize("change, expected", [
    (lambda c: c["denoiser"].update(_target_="os.system"), "none of this project's"),
    (lambda c: c["denoiser"]["config"].update(layers=3), "a denoiser that can't be built"),
    (lambda c: c["sampler"].update(solver=5, speed=1), "a sampler that can't be built"),
    (lambda c: c["denoiser"]["config"].update(block_out_channels=[8, 24]), "doesn't fit the denoiser"),
    (lambda c: c.pop("denoiser"), "no denoiser"),
])
def test_a_folder_that_does_not_fit_is_refused_in_words(folder, tmp_path, change, expected):
    with pytest.raises(InputError, match=expected):
        vta_sam.load(_rewritten(folder, tmp_path, change))


def test_a_missing_folder_and_missing_weights(folder, tmp_path):
    with pytest.raises(InputError, match="is no model folder"):
        vta_sam.load(tmp_path)
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "denoiser.safetensors").unlink()
    with pytest.raises(InputError, match="denoiser.safetensors is missing"):
        vta_sam.load(copy)


def test_extractors_must_be_those_of_training(tmp_path):
    folder = make_seeing_model(tmp_path)
    assert vta_sam.load(folder).extractors.grounder.fingerprint.startswith("tiny-trunk-0-")
    other = _rewritten(folder, tmp_path, lambda c: c["features"].update(encoder="clip-1"))
    with pytest.raises(InputError, match="trained on features of the encoder 'clip-1'"):
        vta_sam.load(other).extractors


def test_a_caption_gets_a_note_where_other_rules_take_its_nouns(tmp_path, make_video, monkeypatch):
    monkeypatch.setattr("vta_sam.generation.pipeline.noun_rules", lambda: {"tagger": "x", "rules": 2})
    video = make_video(tmp_path / "in.mp4", duration_s=0.2, size=(16, 16))
    folder = make_seeing_model(tmp_path)

    def notes_of(nouns, **prompt):
        pipeline = vta_sam.load(folder)
        pipeline.trained_on = {**pipeline.trained_on, **nouns}
        return [note for note in pipeline.generate(video, steps=1, guidance=1.0, media=Media(), **prompt).notes
                if "nouns." in note]

    other = {"nouns": {"tagger": "y", "rules": 2}}
    assert notes_of(other, caption="a dog") == ["nouns.tagger is 'x', in training it was 'y': captions may give other "
                                                "objects than in training; objects= names them"]
    assert notes_of(other, objects=["dog"], caption="a dog") == [] == notes_of({}, caption="a dog")
    assert notes_of({"nouns": {"tagger": "x", "rules": 2}}, caption="a dog") == [] == notes_of(other)


INFO = DatasetInfo("g-1", "e-1", SPEC.fps, SPEC.sample_rate_hz, 12, 10, 6, "c", "m", "0", dims={"flow_dim": 2},
                   features={"flow": "flow-1"}, settings={"encoder": {"template": "{}", "precision": "fp16"}})


@pytest.mark.parametrize("change, words", [
    ({"settings": {"encoder": {"template": "a {}"}}}, "encoder.template is 'a {}', in training it was '{}'"),
    ({"settings": {}}, "encoder.template is None, in training it was '{}'"),
    ({"settings": {**INFO.settings, "grounder": {"every": 2}}}, "grounder.every is 2, in training it was None"),
    ({"features": {"flow": "flow-2"}}, "flow is 'flow-2', in training it was 'flow-1'"),
    ({"features": {}}, "flow is None, in training it was 'flow-1'"), ({"encoder": "e-2"}, "encoder is 'e-2', expected"),
    ({"fps": 8.0}, "fps is 8.0"),
])
def test_a_dataset_of_other_features_than_training_s_is_refused(change, words):
    require_same_features(INFO.trained_on, SPEC, "here", INFO)
    with pytest.raises(InputError, match=f"here: .*{re.escape(words)}"):
        require_same_features(INFO.trained_on, SPEC, "here", dataclasses.replace(INFO, **change))


def test_what_an_earlier_release_did_not_say_is_not_compared():
    earlier = dataclasses.replace(INFO, settings={}, format_version=1)
    require_same_features(INFO.trained_on, SPEC, "here", earlier)
    require_same_features(earlier.trained_on, SPEC, "here", INFO)
    require_same_features({}, SPEC, "here", INFO)


def test_a_pipeline_without_extractors_says_so(pipeline):
    bare = Pipeline(spec=pipeline.spec, codec=pipeline.codec, denoiser=pipeline.denoiser,
                    conditioner=pipeline.conditioner, latent_scale=1.0,
                    sampler=dataclasses.replace(pipeline.sampler), vocoder=pipeline.vocoder)
    with pytest.raises(InputError, match="without extractors"):
        bare.generate("in.mp4")


def test_words():
    assert words_of(None, None).objects == []
    assert words_of("", ["Dog ", "dog", "Racing Car"]).objects == ["dog", "racing car"]
    assert words_of("a dog barks", []).objects == []
    found = words_of("a dog barks at a racing car", None, ("racing car",))
    assert found.objects == ["dog", "racing car"] and found.caption == "a dog barks at a racing car"
    many = words_of("a dog, a cat, a cow, a pig, a hen, a fox, a wolf, a sheep, a horse and a duck", None)
    assert len(many.objects) == 8 and many.dropped == 2
    with pytest.raises(InputError, match="9 are named, at most 8"):
        words_of(None, [f"thing{i}" for i in range(9)])
