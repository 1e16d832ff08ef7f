"""The sync network: what it computes, its training on any shards, its rows of an evaluation, and the shipped one."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from test_evaluation import write_folder
from tiny_data import FRAME_DIM, OBJECT_DIM, SPEC, a_clip, stage_context, stage_folder, stage_settings, write_dataset
from torch.nn import functional as F

from vta_sam.checkpoints.model_folder import read_recipe
from vta_sam.dataset.shards.batch import collate, window_of
from vta_sam.dataset.shards.schema import read_dataset
from vta_sam.embedded.extractors import TinyEncoder, TinyGrounder
from vta_sam.evaluation.embeddings import SHIPPED_SYNC, SyncTracks
from vta_sam.evaluation.evaluate import Request, evaluate
from vta_sam.evaluation.metric_table import figure_metrics
from vta_sam.evaluation.pairing import records_of
from vta_sam.metrics.signal import measure_level
from vta_sam.metrics.sync_network import (
    LAGS, MAX_LAG_STEPS, SyncDraws, SyncNetwork, answers, figures_mels, lag_logits, pair_figures,
    share_figure, shifted, sync_answer, sync_losses,
)
from vta_sam.runtime.errors import InputError
from vta_sam.training import diffusion_stage
from vta_sam.training.data_sources import EmbeddedData
from vta_sam.training.job import STAGES
from vta_sam.training.part_stages import PartStage, SyncTraining, train_sync

REPOSITORY = Path(__file__).resolve().parents[1]
RECIPE = {"_target_": "sync_network", "frame_dim": "from_data", "object_dim": "from_data", "fps": "from_data",
          "width": 8, "dim": 4, "layers": 1}
QUICK = {"set_resamples": 20, "resamples": 100}
ROWS = ("sync_probability", "sync_offset_s")


@pytest.fixture(scope="module")
def network() -> SyncNetwork:
    torch.manual_seed(0)
    return SyncNetwork(FRAME_DIM, OBJECT_DIM, SPEC.fps, width=8, dim=4, layers=1).eval()


def track(steps: int = 512, seed: int = 0, rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, steps, 4, generator=torch.Generator().manual_seed(seed))


def test_a_logit_is_the_product_of_the_tracks_at_its_lag_where_the_pictures_count():
    pictures, sound = track(seed=1, rows=2), track(seed=2, rows=3)
    logits = lag_logits(pictures, sound, real=torch.tensor([512, 300]))
    assert logits.shape == (2, 3, LAGS + 1) and (logits[..., LAGS] == 0).all()
    for (row, column, lag), end in {(0, 2, -60): 512, (0, 1, 0): 512, (1, 0, 60): 300, (1, 2, -7): 300}.items():
        places = torch.arange(60, end - 60)
        right = (pictures[row, places] * sound[column, places + lag]).sum() / 100
        assert logits[row, column, MAX_LAG_STEPS + lag] == pytest.approx(right.item(), abs=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = lag_logits(pictures.bfloat16(), sound.bfloat16())
    assert rounded.dtype == torch.float32 and torch.allclose(rounded[0], logits[0], atol=0.05)


def test_what_a_late_sound_says_at_a_lag_the_sound_says_without_it(network):
    """The answer follows the shift, whether the sound was cut out of a longer one or silence was put before it."""
    clip, late = a_clip("one"), 20
    with torch.inference_mode():
        pictures = network.pictures_of(clip.frame_embedding, clip.probs, clip.object_embedding, 512)
        mels = figures_mels(torch.from_numpy(clip.waveform)[None])
        own = lag_logits(pictures, network.sound(mels))[0, 0]
        for filling in (0, 1):
            moved = shifted(mels, torch.tensor([late]), torch.tensor([filling]))
            found = lag_logits(pictures, network.sound(moved))[0, 0]
            # beyond, a lag reads what was put before the sound, or a convolution's edge
            assert torch.allclose(found[late:LAGS - 6], own[:LAGS - 6 - late], atol=1e-4)


def test_pictures_tell_of_moments_between_frames(network):
    """A frame that changes moves the track around its own time alone, half a frame of 80 ms after its beginning."""
    clip = a_clip("one")
    frames = torch.from_numpy(clip.frame_embedding)[None]
    others = frames.clone()
    others[0, 30] += 1
    probs, objects = torch.from_numpy(clip.probs)[None], torch.from_numpy(clip.object_embedding)[None]
    with torch.inference_mode():
        moved = (network.pictures(frames, probs, objects, 512) - network.pictures(others, probs, objects, 512)).abs()
    places = moved[0].sum(dim=1).nonzero()[:, 0]
    assert places.min() > 244 - 25 and places.max() < 244 + 25 and len(places) > 16


def test_a_gap_is_filled_with_silence_with_the_other_end_or_with_another_clip():
    mels = torch.stack([torch.arange(10.0) + 100 * row for row in range(3)])[..., None].expand(-1, -1, 64)
    found = shifted(mels, torch.tensor([2, -3, 1]), torch.tensor([0, 1, 2]))[..., 0]
    assert found[0].tolist() == [pytest.approx(-11.512925)] * 2 + list(range(8))
    assert found[1].tolist() == [103, 104, 105, 106, 107, 108, 109, 100, 101, 102]
    assert found[2].tolist() == [109, *range(200, 209)]


def test_losses_are_low_for_the_true_lag_and_for_none_of_another_clips_sound():
    logits, shift = torch.zeros(2, 2, LAGS + 1), torch.tensor([5, -9])
    others = ~torch.eye(2, dtype=torch.bool)
    own, other = sync_losses(logits, shift, others)
    assert [own.item(), other.item()] == pytest.approx([np.log(LAGS + 1)] * 2)
    lags = torch.arange(-MAX_LAG_STEPS, MAX_LAG_STEPS + 1)
    logits[[0, 1], [0, 1], :LAGS] = 9 - (lags - shift[:, None]) ** 2 / 2  # within a step either way
    logits[others] = F.one_hot(torch.tensor(LAGS), LAGS + 1) * 9.0
    better = sync_losses(logits, shift, others)
    assert better[0] < own and better[1] < 0.1
    assert sync_losses(logits, shift, others & False)[1] == 0, "a batch of one clip has no other"
    assert sync_losses(logits, -shift, others)[0] > own


def test_an_answer_is_of_lags_near_zero():
    logits = torch.zeros(3, LAGS + 1)
    logits[0, MAX_LAG_STEPS + 4], logits[1, MAX_LAG_STEPS - 5], logits[2, LAGS] = 20.0, 20.0, 20.0
    near, early, none = answers(logits)
    assert near.probability > 0.99 and near.offset_s == pytest.approx(0.04)
    assert early.probability < 0.01 and early.offset_s == pytest.approx(-0.05)
    assert none.probability < 0.01


def test_silence_and_short_sounds_win_nothing():
    sound, pictures = track()[0].numpy(), track(seed=1)[0].numpy()
    silent, loud = measure_level(np.zeros(16_000), 16_000), measure_level(np.full(16_000, 0.5), 16_000)
    answer, quiet = sync_answer(sound, pictures, loud), sync_answer(sound, pictures, silent)
    assert (quiet.probability, quiet.distance_s) == (0.0, 0.6) and 0 < answer.probability < 1
    assert answer.distance_s == abs(answer.offset_s) and sync_answer(sound[:200], pictures, loud) is None


def test_shares_have_wilsons_interval():
    assert share_figure([True] * 59) == {"share": 1.0, "low": 0.9389, "high": 1.0, "n": 59}
    assert share_figure([])["share"] is None


def test_the_loss_of_a_batch_does_not_depend_on_its_padding_and_falls(network):
    """Training's own steps, on clips whose pictures show when they sound."""
    windows = [window_of(a_clip(str(i), duration_s=SPEC.duration_s if i else 3.2), SPEC, seed=i) for i in range(8)]
    batch = collate(windows, SPEC)
    torch.manual_seed(0)
    module = SyncTraining(SyncNetwork(FRAME_DIM, OBJECT_DIM, SPEC.fps, width=16, dim=8, layers=1),
                          {"lag": 1.0, "other": 1.0}, lambda module: None)
    optimiser = torch.optim.Adam(module.parameters(), 1e-2)
    module.eval()
    first, terms = module.measure(batch)
    assert set(terms) == {"lag", "other", "found"}
    padded = batch.replace(frame_embedding=batch.frame_embedding + (~batch.frame_mask[..., None]) * 3.0)
    assert module.measure(padded)[0].item() == pytest.approx(first.item(), abs=0.05)
    for _ in range(12):
        optimiser.zero_grad()
        loss, _ = module.measure(batch)
        loss.backward()
        optimiser.step()
    assert loss < 0.8 * first and SyncDraws()(batch)["shift"].abs().max() <= 52


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """⇒ the shards of a test and a model folder trained on them."""
    root = tmp_path_factory.mktemp("shards")
    context, folder = stage_context(root, write_dataset(root)), stage_folder(tmp_path_factory.mktemp("sync"))
    settings = stage_settings(2)
    settings.weights.update(lag=1.0, other=1.0)
    train_sync(context, folder, settings, RECIPE, about={"world_seed": 3})
    return root, folder.model


def test_the_recipe_runs_on_any_shards_and_its_card_says_what_it_learned_from(trained):
    root, model = trained
    recipe = read_recipe(model)
    assert recipe.sync == {**RECIPE, "frame_dim": FRAME_DIM, "object_dim": OBJECT_DIM, "fps": SPEC.fps}
    assert recipe.features["encoder"] == "encoder of a test" and recipe.about["world_seed"] == 3
    held_out = recipe.about["held_out"]
    assert held_out["split"] == "test" and held_out["right_50_ms"]["n"] == 8 and held_out["lag_found"]["n"] == 44
    card = (model / "README.md").read_text()
    right = held_out["right_50_ms"]
    assert f"| right 50 ms | {right['share']:.3f} [" in card and "4 held-out clips, split test" in card


def test_what_cannot_be_trained_is_refused_before_it_is(tmp_path):
    info = write_dataset(tmp_path, {"train": 2, "val": 2})
    settings = stage_settings(2)
    settings.weights.update(lag=1.0, other=1.0)
    with pytest.raises(InputError, match="no split 'test'"):
        train_sync(stage_context(tmp_path, info), stage_folder(tmp_path / "sync"), settings, RECIPE)
    assert not (tmp_path / "sync" / "checkpoints").exists()
    for networks in ({}, {"sync": {"_target_": "griffin_lim"}}):
        with pytest.raises(InputError, match="give \\+exp=sync"):
            STAGES["sync"].check(SimpleNamespace(networks=networks))


def test_an_evaluation_has_the_rows_where_features_are_known(trained, tmp_path):
    root, model = trained
    records = {record.key: record for record in records_of(root, [f"test-{i}" for i in range(4)])}
    write_folder(tmp_path / "true", {key: record.waveform for key, record in records.items()})
    asked = Request({"true": tmp_path / "true"}, tmp_path / "true", shards=root, sync=model, **QUICK)
    found = evaluate(asked)[0]
    for key in ROWS:
        figure = found.systems["true"].figures[key]
        assert figure.score.n == 4 and figure.control.n == 4 and key not in found.missing
    network = SyncTracks(model)
    record = records["test-2"]
    answer = sync_answer(network.embed([record.waveform])[0].embeddings, network.pictures(root, records)["test-2"],
                         measure_level(record.waveform, 16_000))
    assert answer.probability > 0
    values = found.systems["true"].clips["test-2"].values
    assert values["sync_probability"] == pytest.approx(answer.probability, abs=1e-3)
    assert found.provenance["backbones"]["sync"] == network.fingerprint
    kinds = [metric.key for metric in found.metrics if metric.key.endswith("_sync")]
    assert kinds == [], "a track is no embedding that distances are taken of"


def test_without_features_of_its_own_eyes_a_row_says_why_it_is_missing(trained, tmp_path):
    root, model = trained
    write_folder(tmp_path / "true", {f"test-{i}": a_clip(f"test-{i}").waveform for i in range(2)})
    plain = Request({"true": tmp_path / "true"}, tmp_path / "true", **QUICK)
    assert "shards=" in evaluate(plain)[0].missing["sync_probability"]
    # the shipped one was trained on the embedded world's pictures, these features are of others
    foreign = evaluate(Request({"true": tmp_path / "true"}, tmp_path / "true", shards=root, **QUICK))[0]
    assert foreign.systems["true"].figures["sync_offset_s"].score is None
    assert "learned from other features" in foreign.missing["sync_offset_s"]
    with pytest.raises(InputError, match="has none of the 1 clips"):
        SyncTracks(model).pictures(root, ["another"])
    with pytest.raises(InputError, match="no model folder"):
        SyncTracks(tmp_path)


def test_no_checkpoint_is_chosen_by_the_network_that_judges():
    monitors = {stage.name: stage.monitor[0] for stage in STAGES.values() if isinstance(stage, PartStage)}
    monitors["diffusion"] = diffusion_stage.MONITOR[0]
    assert not [name for name, monitor in monitors.items() if "sync" in monitor]
    assert not [metric.key for metric in figure_metrics() if metric.key in ROWS or "track" in str(metric.needs)]
    readers = [path.name for path in sorted((REPOSITORY / "vta_sam" / "training").glob("*.py"))
               if "sync_network" in path.read_text(encoding="utf-8")]
    assert readers == ["part_stages.py"], "stage sync alone builds it"


def test_the_shipped_network_learned_from_another_world_than_generators_do():
    recipe = read_recipe(SHIPPED_SYNC)
    generators = yaml.safe_load((REPOSITORY / "conf" / "data" / "embedded.yaml").read_text(encoding="utf-8"))["seed"]
    tiny = yaml.safe_load((REPOSITORY / "conf" / "train_tiny.yaml").read_text(encoding="utf-8"))
    others = {generators, *(tiny[model][key] for model in ("trunk", "tagger") for key in ("train_seed", "test_seed"))}
    assert recipe.about["world_seed"] not in others
    assert recipe.features["grounder"] == TinyGrounder().fingerprint
    assert recipe.features["encoder"] == TinyEncoder().fingerprint
    held_out = recipe.about["held_out"]
    assert held_out["right_50_ms"]["low"] > 0.8 and held_out["right_200_ms"]["low"] > 0.95


@pytest.mark.slow
def test_the_shipped_network_tells_sounds_in_step_from_late_ones(tmp_path):
    source = EmbeddedData(str(tmp_path), {"test": 16}, seed=11, workers=2)
    root = source.prepare(SPEC, {"_target_": "tiny_grounder"}, {"_target_": "tiny_encoder"},
                          Console(file=io.StringIO()))
    names = [f"test-{i:06d}" for i in range(16)]
    records = list(records_of(root, names))
    tracks = SyncTracks(None)
    figures = pair_figures(tracks.network, records)
    assert figures["right_50_ms"]["share"] >= 0.75 and figures["right_200_ms"]["share"] >= 0.9
    assert read_dataset(root).records("test") == 16
    assert same_answers(tracks, records) >= 0.9
    late = {"in_step": 0, "late": 3200, "early": -3200}
    for name, samples in late.items():
        write_folder(tmp_path / name, {record.key: padded(record.waveform, samples) for record in records})
    found = evaluate(Request({name: tmp_path / name for name in late}, tmp_path / "videos" / "test", shards=root,
                             **QUICK))[0].systems
    score = {name: [system.figures[row].score.mean for row in ROWS] for name, system in found.items()}
    assert score["in_step"][0] > 0.6 and max(score["late"][0], score["early"][0]) < 0.3
    assert score["in_step"][1] < 0.1 < 0.15 < min(score["late"][1], score["early"][1])
    assert found["in_step"].figures[ROWS[0]].control.mean < 0.2


def padded(waveform: np.ndarray, samples: int) -> np.ndarray:
    """The sound so many samples later, with silence in the gap."""
    return np.roll(np.pad(waveform, abs(samples)), samples)[abs(samples):][:len(waveform)]


def same_answers(tracks: SyncTracks, records: list) -> float:
    """⇒ the share of clips whose sound has the same answer 0.2 s late, whether it was cut out of the clip's sound or
    silence fills its beginning."""
    same = []
    for record in records:
        cut = record.waveform[8 * 1280 - 3200:][:48 * 1280]  # under 48 frames, from the ninth on
        filled = np.concatenate([np.zeros(3200, np.float32), cut[3200:]])
        inner = slice(8, 56)
        pictures = tracks.network.pictures_of(record.frame_embedding[inner], record.probs[inner],
                                              record.object_embedding, 384).detach()[0].numpy()
        one, other = (sync_answer(track.embeddings, pictures, measure_level(sound, 16_000))
                      for track, sound in zip(tracks.embed([cut, filled]), (cut, filled)))
        same.append(abs(one.offset_s - other.offset_s) < 0.015 and abs(one.probability - other.probability) < 0.1)
    return float(np.mean(same))
