"""A feature of one's own, in three files of one's own: extracted, stored, read, trained on and kept in a model."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy
import torch
from rich.console import Console
from test_extract import BrightnessEncoder, BrightnessGrounder, write_manifest
from tiny_stages import diffusion_parts
from tiny_data import CODEC, SPEC, UNET, a_clip, build, stage_context, stage_folder, stage_settings

from vta_sam.checkpoints import parts
from vta_sam.checkpoints.model_folder import ModelRecipe, read_recipe, save_model
from vta_sam.clip import FEATURES, ClipFeatures, Feature, register_feature
from vta_sam.conditioners.vta_sam import TemporalSemanticEncoder
from vta_sam.dataset.extraction.check import check_dataset
from vta_sam.dataset.extraction.extract import extract_dataset
from vta_sam.dataset.shards.batch import collate, window_of
from vta_sam.dataset.shards.datamodule import ShardDataModule
from vta_sam.dataset.shards.records import read_shard, write_shard
from vta_sam.dataset.shards.schema import decode_record, encode_record, read_dataset
from vta_sam.generation.build import load_extractors
from vta_sam.generation.pipeline import load
from vta_sam.media.picture_reader import Squeeze
from vta_sam.perception.base import FrameExtractor
from vta_sam.perception.features import Extractors, Words, build_features, features_of
from vta_sam.runtime.errors import InputError
from vta_sam.training.data_sources import EmbeddedData
from vta_sam.training.diffusion_stage import train_diffusion
from vta_sam.training.run_folder import with_dimensions

FILES = {
    "row.py": """
from vta_sam.clip import Feature, register_feature

register_feature("flow", Feature(("T", 2), optional=True, pad=-1.0, meaning="brightness on the left, on the right"))
""",
    "extractor.py": """
import numpy as np
import vta_sam
from vta_sam.media.picture_reader import Squeeze
from vta_sam.perception.base import FrameExtractor
from . import row

vta_sam.trust("mine.extractor.Flow")

class Flow(FrameExtractor):
    name, kind, fingerprint, fit = "flow", "halves", "halves-1", Squeeze(8, 16)

    def extract(self, frames):
        return np.stack([frames[:, :, :8].mean((1, 2, 3)), frames[:, :, 8:].mean((1, 2, 3))], 1).astype("float32") / 255
""",
    "conditioner.py": """
import torch
from torch import nn
import vta_sam
from vta_sam.diffusion.condition import Condition, Conditioner
from . import row

vta_sam.trust("mine.conditioner.FlowConditioner")

class FlowConditioner(Conditioner):
    def __init__(self, spec, flow_dim, token_dim):
        super().__init__()
        self.token_dim, self.project = token_dim, nn.Linear(flow_dim, token_dim)
        self.nothing = nn.Parameter(torch.zeros(token_dim))

    def forward(self, batch):
        return Condition(self.project(batch.flow), batch.frame_mask)

    def null(self, batch):
        return Condition(self.nothing.expand(*batch.frame_mask.shape, -1), batch.frame_mask)
""",
}
CONDITIONER = {"_target_": "mine.conditioner.FlowConditioner", "flow_dim": "from_data", "token_dim": 16}
ROW = Feature(("T", 2), optional=True)


@pytest.fixture(scope="module", autouse=True)
def table():
    """The table of features, as it was before once the tests are done."""
    before = dict(FEATURES)
    yield
    FEATURES.clear()
    FEATURES.update(before)


def brightness(i):
    """Picture i: its left half brightens and darkens within a second, its right half stays."""
    picture = np.full((48, 64, 3), 120, np.uint8)
    picture[:, :32] = round(120 + 100 * np.sin(2 * np.pi * i / 25))
    return picture


@pytest.fixture(scope="module")
def mine(make_video, tmp_path_factory):
    """Three clips whose flow was extracted: ``folder`` with the shards, and ``info`` of them."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "mine").mkdir()
    for name, text in FILES.items():
        (folder / "mine" / name).write_text(text)
    rng = np.random.default_rng(0)
    make_video(folder / "a.mp4", duration_s=7.0, picture=brightness, sound=rng.uniform(-0.3, 0.3, 7 * 16_000))
    manifest = write_manifest(folder / "manifest.csv", [
        {"id": f"c{i}", "caption": "a dog barks", "objects": "dog", "path": "a.mp4", "start": i / 2,
         "duration": 5.12 if i else 2.0, "split": "train" if i < 2 else "val"} for i in range(3)])
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setattr(parts, "_TRUSTED", {})
        features = build_features({"flow": {"_target_": "mine.extractor.Flow"}})
        info = extract_dataset(manifest, folder, folder / "shards", BrightnessGrounder(), BrightnessEncoder(), SPEC.fps,
                               workers=1, features=features)
        yield SimpleNamespace(folder=folder, root=folder / "shards", info=info)
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


def test_extraction_stores_it_and_a_dataset_knows_it(mine):
    assert read_dataset(mine.root) == mine.info and mine.info.dimensions["flow_dim"] == 2
    clips = {clip.key: clip for shards in mine.info.splits.values() for shard in shards
             for clip in read_shard(mine.root / shard.name)}
    assert {key: clip.flow.shape for key, clip in clips.items()} == {"c0": (25, 2), "c1": (64, 2), "c2": (64, 2)}
    times_s = 1.0 + SPEC.frame_times_s()
    assert np.abs(clips["c2"].flow[:, 0] - (120 + 100 * np.sin(2 * np.pi * times_s)) / 255).max() < 0.06
    assert np.abs(clips["c2"].flow[:, 1] - 120 / 255).max() < 0.01
    statistics, faults = check_dataset(mine.root)
    assert not faults and statistics.to_dict()["features"]["flow"]["clips"] == 3


def test_batches_pad_crop_and_blank_it(mine):
    data = ShardDataModule(mine.root, SPEC, 2, 0, "diffusion", streams=2)
    [batch] = data.batches("train")
    row = batch.keys.index("c0")
    assert batch.flow.shape == (2, 64, 2) and (batch.flow[row, 25:] == -1).all() and (batch.flow[row, :25] >= 0).all()
    assert torch.equal(batch.select([row]).to("cpu").flow[0], batch.flow[row])
    assert not batch.without_frames(torch.tensor([True, True])).flow.any()
    assert torch.equal(batch.without_objects(torch.tensor([True, True])).flow, batch.flow)
    clip = a_clip("long", 10.24)
    clip.flow = np.stack([SPEC.frame_times_s(128)] * 2, 1).astype(np.float32)
    cut = window_of(clip, SPEC, 0, 16).features.flow
    assert np.allclose(cut[:, 0], 16 * SPEC.column_s + SPEC.frame_times_s(), atol=1e-5)


def test_a_conditioner_trains_on_it_and_its_model_reads_it(mine):
    codec = {**CODEC, "mel_mean": -5.0, "mel_std": 2.0}
    save_model(mine.folder / "vae", ModelRecipe(clip=SPEC.settings(), codec=codec), {"codec": build(codec)})
    recipe = with_dimensions(CONDITIONER, mine.info.dimensions)
    extractors = {role: mine.info.recipes[role] for role in ("grounder", "encoder")}
    made_of = diffusion_parts(mine.folder / "vae", conditioner=recipe, denoiser={**UNET, "map_channels": 0},
                              **extractors)
    folder = stage_folder(mine.folder / "diffusion")
    train_diffusion(stage_context(mine.root, mine.info), folder, stage_settings(1, validate_every=1), made_of)
    for part in extractors.values():
        parts.trust(part["_target_"])
    assert read_recipe(folder.model).conditioner == {**CONDITIONER, "flow_dim": 2}
    of_video = load_extractors(read_recipe(folder.model), folder.model)
    [record], _ = features_of(mine.folder / "a.mp4", [Words("a dog", ["dog"])], of_video, SPEC)
    assert record.flow.shape == (SPEC.frames_of(7.0), 2) and np.allclose(record.flow[:, 1], 120 / 255, atol=0.01)
    model = load(folder.model)
    [batch] = ShardDataModule(mine.root, SPEC, 2, 0, "diffusion", streams=2).batches("val")
    with torch.no_grad():
        model.conditioner.project.weight.normal_()
        tokens = model.conditioner(batch).tokens
    assert torch.isfinite(model.sample_latents(batch, [0])).all()
    assert not torch.equal(tokens, model.conditioner(batch.replace(flow=batch.flow + 1)).tokens)


class Changes(FrameExtractor):
    """The change of each frame's brightness against the frame before."""

    name, kind, fingerprint, fit = "flow", "changes", "changes-1", Squeeze(8, 16)
    context_frames = 1

    def extract(self, frames):
        means = frames.mean((1, 2, 3), dtype=np.float64)
        change = np.diff(means, prepend=means[:1])
        return np.stack([change, means], 1).astype(np.float32)


def test_a_feature_of_two_frames_is_the_same_in_any_chunks(mine):
    """The last frame of a chunk is handed over with the next one."""
    found = []
    for at_once in (1, 5, 1000):
        extractors = Extractors(BrightnessGrounder(), BrightnessEncoder(), at_once, [Changes()])
        [record], _ = features_of(mine.folder / "a.mp4", [Words("a dog", ["dog"])], extractors, SPEC)
        found.append(record.flow)
    assert np.abs(found[0][1:, 0]).max() > 1 and len(found[0]) == SPEC.frames_of(7.0)
    assert all(np.array_equal(found[0], other) for other in found[1:])


def test_vta_sam_reads_it_by_settings_alone(mine):
    recipe = with_dimensions({"frame_dim": "from_data", "object_dim": "from_data", "fps": SPEC.fps, "width": 16,
                              "layers": 1, "further": {"flow": "from_data"}}, mine.info.dimensions)
    encoder = TemporalSemanticEncoder(**recipe)
    [batch] = ShardDataModule(mine.root, SPEC, 2, 0, "diffusion", streams=2).batches("train")
    tokens = encoder(batch)
    assert encoder.further["flow"].in_features == 2 and tokens.shape == (2, 64, 16)
    assert not torch.equal(tokens, encoder(batch.replace(flow=batch.flow + 1)))
    with pytest.raises(InputError, match="reads the feature 'flow', and these clips have none"):
        encoder(batch.replace(flow=None))


def test_the_embedded_world_is_extracted_with_it(mine, tmp_path):
    source = EmbeddedData(str(tmp_path), {"train": 1, "val": 1}, workers=1,
                          features={"flow": {"_target_": "mine.extractor.Flow"}})
    tiny = {"_target_": "tiny_grounder"}, {"_target_": "tiny_encoder"}
    shards = source.prepare(SPEC, *tiny, Console(quiet=True))
    assert shards.name.endswith("12.5fps-flow") and read_dataset(shards).dimensions["flow_dim"] == 2


def test_old_shards_and_mixed_batches_lack_it(tmp_path):
    register_feature("flow", FEATURES.get("flow", ROW))
    old, new = a_clip("old"), a_clip("new").replace(flow=np.zeros((64, 2), np.float32))
    assert old.flow is None and "flow" not in safetensors.numpy.load(encode_record(old)["safetensors"])
    write_shard(tmp_path / "a.tar", [old, new])
    windows = [window_of(clip, SPEC, 0) for clip in read_shard(tmp_path / "a.tar")]
    assert collate(windows, SPEC).flow is None and collate(windows[:1], SPEC).flow is None
    assert collate(windows[1:], SPEC).flow.shape == (1, 64, 2)


@pytest.mark.parametrize("change, what", [
    ({"flow": np.zeros((63, 2), np.float32)}, r"flow has shape \(63, 2\), expected \(64, 2\)"),
    ({"flow": np.zeros((64, 3), np.float32)}, r"flow has shape \(64, 3\), expected \(64, 2\)"),
    ({"flow": np.full((64, 2), np.nan, np.float32)}, "flow holds NaN"),
])
def test_its_row_is_kept_to(change, what):
    register_feature("flow", FEATURES.get("flow", ROW))
    with pytest.raises(InputError, match=what):
        encode_record(replace(a_clip("a"), **change))


def test_a_feature_that_has_to_be_there_is_missed():
    register_feature("needed", Feature(("K", "Dn")))
    try:
        with pytest.raises(InputError, match="clip 'a': it has no needed"):
            a_clip("a")
        clip = ClipFeatures(**{**vars(_without_needed()), "needed": np.zeros((1, 3), np.float32)})
        with pytest.raises(InputError, match="lacks needed"):
            decode_record("a", {**encode_record(clip), "safetensors": safetensors.numpy.save({
                name: array for name, array in clip.features.items() if name != "needed"})})
    finally:
        del FEATURES["needed"]


def _without_needed():
    row = FEATURES.pop("needed")
    clip = a_clip("a")
    FEATURES["needed"] = row
    return clip.replace(objects=clip.objects[:1], probs=clip.probs[:, :1], boxes=clip.boxes[:, :1],
                        areas=clip.areas[:, :1], object_embedding=clip.object_embedding[:1])


@pytest.mark.parametrize("name, row, what", [
    ("probs", ROW, r"taken by Feature\("), ("waveform", ROW, "a member of Clip"),
    ("moments", ROW, "a member of ClipBatch"),
    ("select", ROW, "a member of ClipBatch"), ("a b", ROW, "no name"), ("_x", ROW, "no name"),
    ("x", Feature(()), "axes"), ("x", Feature(("T", 0)), "axes"),
])
def test_a_row_that_can_not_be_is_refused(name, row, what):
    before = dict(FEATURES)
    with pytest.raises(InputError, match=what):
        register_feature(name, row)
    register_feature("probs", FEATURES["probs"])  # the same again
    assert FEATURES == before
