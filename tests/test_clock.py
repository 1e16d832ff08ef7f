"""One clock: what happens in frame i of a video comes out at (i + 0.5) / fps, in each window, crop and conditioner."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import nn
from torch.nn import functional as F

from vta_sam.clip import ClipFeatures, ClipSpec, FrameClock
from vta_sam.conditioners.diff_foley import AlignedSoundEncoder, AlignmentClassifier
from vta_sam.conditioners.foleycrafter import ControlBranch
from vta_sam.conditioners.vta_ldm import FrameProjection, VTALDMConditioner
from vta_sam.conditioners.vta_sam import TemporalSemanticEncoder, VTASAMConditioner
from vta_sam.conditioners.vta_sam_pretraining import energy_targets, max_per_frame, mean_per_frame, onset_targets
from vta_sam.dataset.shards.batch import collate, window_of
from vta_sam.dataset.shards.datamodule import _TrainingSamples
from vta_sam.diffusion.unet import POSITION_DIM, LatentUNet, TimedCrossAttention, sinusoids
from vta_sam.diffusion.windows import Windows
from vta_sam.mel import LOG_FLOOR
from vta_sam.runtime.errors import InputError

RATES = [2, 8, 12.5, 29.97]
LONG_S = 12.0
SMALL_UNET = {"out_channels": 4, "block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4,
              "cross_attention_dim": 16, "attention_head_dim": 4, "sample_size": [64, 4],
              "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
              "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}

each_rate = pytest.mark.parametrize("fps", RATES)


def spec_of(fps: float) -> ClipSpec:
    return ClipSpec(2.56, fps, 4)  # 64 columns of 40 ms, as a large model has them


def impulses(spec: ClipSpec, duration_s: float = LONG_S) -> ClipFeatures:
    """A long record in which dimension n of the embedding is 1 in frame n, and else 0."""
    frames = spec.frames_of(duration_s)
    return ClipFeatures(
        key="impulses", caption="", objects=[], fps=spec.fps,
        waveform=np.zeros(spec.samples_of(duration_s), np.float32), frame_embedding=np.eye(frames, dtype=np.float32),
        probs=np.zeros((frames, 0), np.float32), boxes=np.zeros((frames, 0, 4), np.float32),
        areas=np.zeros((frames, 0), np.float32),
        object_embedding=np.zeros((0, 1), np.float32), caption_tokens=np.zeros((1, 1), np.float32),
        duration_s=duration_s).validate()


def starts_of(spec: ClipSpec) -> list[int]:
    """Of every window of a long video, and of every crop that training may take of it."""
    columns = int(LONG_S / spec.column_s + 1e-6)
    samples = _TrainingSamples(None, None, spec, "test", 0, 0, 1)
    record = impulses(spec)
    crops = {samples._crop(record, seed) for seed in range(10)}
    return sorted({*Windows.of_clips(spec, columns, 0.25).starts, *crops})


def windows_of_impulses(spec: ClipSpec):
    """For every start: its batch of one, and of the frames that are well inside the window their numbers, and their
    times within it, by arithmetic on the video alone."""
    record = impulses(spec)
    for start in starts_of(spec):
        times_s = (np.arange(len(record.frame_embedding)) + 0.5) / spec.fps - start * spec.column_s
        coarse_s = max(1 / spec.fps, spec.column_s)
        window = window_of(record, spec, 0, start)
        end_s = min(spec.duration_s, LONG_S - start * spec.column_s)
        inside = np.flatnonzero((times_s > coarse_s) & (times_s < end_s - 1.5 * coarse_s))
        assert len(inside)
        yield collate([window], spec), inside, times_s[inside]


def centres_of(weights: np.ndarray, times_s: np.ndarray) -> np.ndarray:
    """When each row of weights (n, T) lies on the axis of times (T,) ⇒ (n,)."""
    return (weights * times_s).sum(axis=1) / weights.sum(axis=1)


# ------------------------------------------------------------------ the grid on which windows and crops begin

@pytest.mark.parametrize("spec, aligned, step, hop", [
    (ClipSpec(10.24, 8, 4), 25, 25, 175),  # size=base: 8 frames
    (ClipSpec(10.24, 2, 4), 25, 25, 175),
    (ClipSpec(10.24, 12.5, 4), 2, 2, 192),
    (ClipSpec(10.24, 30, 4), 5, 5, 190),
    (ClipSpec(10.24, 29.97, 4), 2500, 1, 192),
    (ClipSpec(10.24, 30_000 / 1001, 4), 1001, 1, 192),
    (ClipSpec(5.12, 12.5, 16), 1, 1, 24),  # size=embedded
    (ClipSpec(5.12, 12.5, 8), 1, 1, 48),
    (ClipSpec(5.12, 8, 16), 25, 1, 24),  # 25 of 32 columns would leave neighbours no quarter of a clip
])
def test_the_grid_of_starts(spec, aligned, step, hop):
    assert (spec.aligned_columns, spec.start_step_columns) == (aligned, step)
    assert aligned * spec.frames_per_column == round(aligned * spec.column_s * spec.fps)
    windows = Windows.of_clips(spec, 5 * spec.columns + 1, 0.25)
    assert windows.starts[:3] == [0, hop, 2 * hop] and all(start % step == 0 for start in windows.starts)
    assert 0 <= windows.total - (5 * spec.columns + 1) < step
    assert Windows.of_clips(spec, 1, 0.25).starts == [0] and Windows.of_clips(spec, 1, 0.25).total == spec.columns


@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.5, 0.75, 0.99])
def test_windows_of_any_overlap_cover_and_stay_on_the_grid(overlap):
    spec = ClipSpec(10.24, 8, 4)
    windows = Windows.of_clips(spec, 1000, overlap)
    assert all(start % 25 == 0 for start in windows.starts) and windows.total >= 1000
    assert all(0 < b - a <= spec.columns for a, b in zip(windows.starts, windows.starts[1:]))
    assert windows.overlap >= int(overlap * spec.columns) or overlap == 0.99


@each_rate
def test_crops_begin_on_the_grid_and_reach_the_end(fps):
    spec, record = spec_of(fps), impulses(spec_of(fps), 5.0)
    samples = _TrainingSamples(None, None, spec, "test", 0, 0, 1)
    found = {samples._crop(record, seed) for seed in range(2000)}
    assert found == set(range(0, 125 - spec.columns + 1, spec.start_step_columns))
    assert samples._crop(impulses(spec, 2.56), 7) == samples._crop(impulses(spec, 1.0), 7) == 0


# ------------------------------------------------------------------ windows and crops

@each_rate
def test_a_frame_keeps_its_time_in_every_window_and_crop(fps):
    spec = spec_of(fps)
    for batch, inside, times_s in windows_of_impulses(spec):
        seen = batch.frame_embedding[0].T.numpy()[inside]
        assert np.abs(centres_of(seen, spec.frame_times_s()) - times_s).max() < 1e-5
        assert np.allclose(seen.sum(axis=1), 1, atol=1e-5)
        if spec.start_step_columns > 1:  # each frame is there as it is, not a mixture of two
            assert set(np.unique(seen)) == {0.0, 1.0}


# ------------------------------------------------------------------ conditioners


class Echo(nn.Module):
    """Stands in place of an encoder, and gives each frame's embedding."""

    def __init__(self, width):
        super().__init__()
        self.width = width

    def forward(self, batch):
        return batch.frame_embedding


@each_rate
@torch.no_grad()
def test_aligned_map(fps):
    spec = spec_of(fps)
    width = spec.frames_of(LONG_S)
    conditioner = VTASAMConditioner(Echo(width), spec, token_dim=8, map_channels=width)
    conditioner.to_map = nn.Identity()
    classifier = AlignmentClassifier(width, 4, spec, width=8, layers=1)
    for batch, inside, times_s in windows_of_impulses(spec):
        batch.frame_mask[:] = True
        columns = conditioner(batch).column_map[0].numpy()[inside]
        assert np.abs(centres_of(columns, spec.column_times_s()) - times_s).max() <= spec.column_s / 2
        # Diff-Foley's classifier brings features to columns in the same way
        assert np.allclose((classifier.interpolation @ batch.frame_embedding[0]).T.numpy()[inside], columns, atol=1e-5)


@each_rate
@torch.no_grad()
def test_positions_of_vta_sam(fps):
    spec = spec_of(fps)
    expected = sinusoids(torch.from_numpy(spec.frame_times_s()), 16)
    encoder = TemporalSemanticEncoder(5, 5, fps, width=16, layers=0, heads=1)
    encoder.project, encoder.final_norm = nn.Linear(10, 16), nn.Identity()
    nn.init.zeros_(encoder.project.weight), nn.init.zeros_(encoder.project.bias)
    conditioner = VTASAMConditioner(encoder, spec, token_dim=16)
    record = impulses(spec, spec.duration_s)
    record.frame_embedding, record.object_embedding = record.frame_embedding[:, :5], np.zeros((0, 5), np.float32)
    record.frame_embedding = np.zeros((spec.frames, 5), np.float32)
    batch = collate([window_of(record, spec, 0)], spec)
    assert torch.allclose(encoder(batch)[0].double(), expected, atol=1e-4)
    assert torch.allclose(conditioner._positions(spec.frames, torch.zeros(1)).double(), expected, atol=1e-4)


def ldm(spec: ClipSpec, fps: float | None) -> VTALDMConditioner:
    return VTALDMConditioner(FrameProjection(5, 16), spec, 16, fps=fps)


@each_rate
@pytest.mark.parametrize("read_fps", [1, 2, 4, None])
def test_picks_of_vta_ldm(fps, read_fps):
    spec = spec_of(fps)
    conditioner = ldm(spec, read_fps)
    wanted = FrameClock(min(read_fps or fps, fps))
    times_s = (conditioner.picked.numpy() + 0.5) / fps
    assert len(times_s) == wanted.frames_of(spec.duration_s)
    assert np.abs(times_s - wanted.times_s(len(times_s))).max() <= 0.5 / fps + 1e-9  # the nearest frame to each
    expected = sinusoids(torch.from_numpy(times_s), 16)
    assert torch.allclose(conditioner._positions(torch.zeros(1)).double(), expected, atol=1e-4)


@each_rate
@pytest.mark.parametrize("read_fps", [None, 1.5])
@torch.no_grad()
def test_keys_of_timed_cross_attention(fps, read_fps):
    """Where nothing but times is compared, each frame is read most by the column that is nearest to its true time."""
    spec = spec_of(fps)
    unet = LatentUNet(SMALL_UNET, spec, timed_attention=1.0)
    conditioner = ldm(spec, read_fps)
    conditioner.adapt(unet)
    layers = [layer for layer in unet.modules() if isinstance(layer, TimedCrossAttention)]
    assert len(layers) == 1 + 1 + 2  # one going down, the middle, two going up
    for layer in layers:
        layer.position = nn.Identity()
        attention = Attention(query_dim=8, cross_attention_dim=8, heads=1, dim_head=POSITION_DIM)
        column_s = layer.column_s
        columns = round(spec.duration_s / column_s)
        assert columns in (64, 32)
        query, key = layer.project(attention, torch.zeros(1, columns * layer.rows, 8),
                                   torch.zeros(1, len(conditioner.picked), 8))
        nearest = (query[0, 0, ::layer.rows] @ key[0, 0].T).argmax(dim=0).numpy()
        true_s = (conditioner.picked.numpy() + 0.5) / fps
        assert np.abs((nearest + 0.5) * column_s - true_s).max() <= column_s / 2 + 1e-4


def test_other_tokens_than_frames_are_refused_with_a_remedy():
    layer = TimedCrossAttention(8, spec_of(8), 4, 1.0)
    attention = Attention(query_dim=8, cross_attention_dim=8, heads=1, dim_head=8)
    with pytest.raises(InputError, match="makes 7 tokens.*times for 20.*set_token_times"):
        layer.project(attention, torch.zeros(1, 64 * 4, 8), torch.zeros(1, 7, 8))


def mel_impulses(spec: ClipSpec) -> torch.Tensor:
    """For each frame a log-mel that is loud at the mel frame in which the frame's centre lies ⇒ (frames, mel, 1)."""
    mel = torch.full((spec.frames, spec.mel_frames, 1), LOG_FLOOR)
    at = np.minimum(np.floor(spec.frame_times_s() * spec.mel_rate_hz + 1e-6).astype(int), spec.mel_frames - 1)
    mel[torch.arange(spec.frames), at] = 0.0
    return mel


@each_rate
@pytest.mark.parametrize("duration_s", [2.56, 10.24])
def test_targets_of_stage_2(fps, duration_s):
    spec = ClipSpec(duration_s, fps, 4)
    rows = torch.arange(0, spec.frames, 7)
    for targets in (make(mel_impulses(spec)[rows], spec) for make in (energy_targets, onset_targets)):
        assert targets.shape == (len(rows), spec.frames)
        assert torch.equal(targets.argmax(dim=1), rows) and (targets.amax(dim=1) > 0).all()
    times_s = (torch.arange(spec.mel_frames, dtype=torch.float64) + 0.5) / spec.mel_rate_hz
    whole = [i for i in range(spec.frames) if (i + 1) / fps <= duration_s + 1e-9]
    centres_s = mean_per_frame(times_s[None, None], spec)[0, 0][whole]
    # mel frames that two video frames share count for each by their share, but with their whole centre
    assert np.abs(centres_s.numpy() - spec.frame_times_s()[whole]).max() < 0.1 / spec.mel_rate_hz
    ends_s = max_per_frame(times_s[None, None], spec)[0, 0][whole] + 0.5 / spec.mel_rate_hz
    late_s = ends_s.numpy() - (np.array(whole) + 1) / fps  # of the last mel frame that a frame has a part in
    assert late_s.min() > -1e-6 and late_s.max() < 1 / spec.mel_rate_hz


@each_rate
@torch.no_grad()
def test_pooling_of_diff_foley(fps):
    """The sound's encoder, without its convolutions, has each moment in the frame that was on screen then."""
    spec = spec_of(fps)
    encoder = AlignedSoundEncoder(64, dim=8)
    encoder.listen = nn.Identity()
    encoder.tower.forward = lambda x, mask: x
    pooled = encoder(mel_impulses(spec), torch.ones(spec.frames, spec.frames, dtype=torch.bool), spec)
    assert pooled.shape == (spec.frames, spec.frames, 1)
    assert torch.equal(pooled[:, :, 0].argmax(dim=1), torch.arange(spec.frames))


@pytest.fixture(scope="module")
def small_unet():
    return UNet2DConditionModel(in_channels=4, **SMALL_UNET)


@each_rate
def test_control_track_of_foleycrafter(small_unet, fps):
    spec = spec_of(fps)
    branch = ControlBranch(small_unet, spec, 1.0)
    found = branch.steps_of(torch.eye(spec.frames)[:, None])[:, 0].numpy()  # frame i is the only one in row i
    steps_s = (np.arange(found.shape[1]) + 0.5) * spec.duration_s / found.shape[1]
    assert found.sum() == found.shape[1] and len(steps_s) == 4 * spec.columns
    centres_s = centres_of(found[:-1], steps_s)  # the last one is held to the clip's end
    assert np.abs(centres_s - spec.frame_times_s()[:-1]).max() <= spec.column_s / 2


# ------------------------------------------------------------------ where frames fill a clip, nothing has changed

EMBEDDED = [ClipSpec(5.12, 12.5, 16), ClipSpec(5.12, 12.5, 8), ClipSpec(1.28, 12.5, 16)]
each_embedded = pytest.mark.parametrize("spec", EMBEDDED, ids=lambda spec: f"{spec.duration_s:g} s, {spec.columns}")


def spread(count: int, duration_s: float) -> torch.Tensor:
    """The times of ``count`` things that fill a clip, as they were computed before there was one clock."""
    return (torch.arange(count) + 0.5) * (duration_s / count)


@each_embedded
@torch.no_grad()
def test_times_inside_attention_are_the_same_numbers(spec):
    for level in range(3):
        layer = TimedCrossAttention(POSITION_DIM, spec, 2, 1.0, level)
        attention = Attention(query_dim=8, cross_attention_dim=8, heads=1, dim_head=POSITION_DIM)
        nn.init.zeros_(attention.to_q.weight), nn.init.zeros_(attention.to_k.weight)
        columns = spec.columns // 2**level
        query, key = layer.project(attention, torch.zeros(1, columns * 2, 8), torch.zeros(1, spec.frames, 8))
        vectors = [layer.position(sinusoids(spread(n, spec.duration_s), POSITION_DIM)) for n in (columns, spec.frames)]
        assert torch.equal(query[0, 0], vectors[0].repeat_interleave(2, dim=0)) and torch.equal(key[0, 0], vectors[1])


@each_embedded
def test_pooling_picks_and_tracks_are_the_same_numbers(small_unet, spec):
    frames, x = spec.frames, torch.randn(3, 5, spec.mel_frames)
    assert torch.equal(mean_per_frame(x, spec), F.adaptive_avg_pool1d(x, frames))
    assert torch.equal(max_per_frame(x, spec), F.adaptive_max_pool1d(x, frames))
    steps = 4 * spec.columns
    places = ((torch.arange(steps) + 0.5) * (frames / steps)).long()
    track = torch.randn(2, 1, frames)
    assert torch.equal(ControlBranch(small_unet, spec, 1.0).steps_of(track), track[:, :, places])
    assert torch.equal(ldm(spec, None).picked, torch.arange(frames))
    assert torch.equal(ldm(spec, None)._positions(torch.zeros(1)), sinusoids((torch.arange(frames) + 0.5) / 12.5, 16))
    published = ClipSpec(10.24, 2, 4)  # VTA-LDM's checkpoint: all of 20 pictures
    assert torch.equal(ldm(published, 2).picked, torch.arange(20))


@each_embedded
def test_windows_and_crops_are_the_same(spec):
    for columns in (1, spec.columns, spec.columns + 1, 5 * spec.columns + 3):
        total = max(spec.columns, columns)
        assert Windows.of_clips(spec, columns, 0.25) == Windows(total, spec.columns, spec.columns // 4)
    record = impulses(spec)
    for start in range(0, 3 * spec.columns // 2, 3):
        first = int(np.floor(start * spec.column_s * spec.fps + 0.5))
        cut = window_of(record, spec, 0, start)
        kept = record.frame_embedding[first:first + spec.frames]
        assert np.array_equal(cut.features.frame_embedding[:len(kept)], kept) and cut.valid_frames == len(kept)


# ------------------------------------------------------------------ nobody else does it

# What is no time of a clip's frames: the drawn world's own pictures, published figures' own definitions, drawings in
# which a clip's frames fill the width, and ramps over steps that are no frames.
ELSEWHERE = ("metrics/", "plots/", "embedded/render.py", "embedded/timeline.py", "embedded/truth.py",
             "embedded/world.py", "diffusion/windows.py", "dataset/extraction/dataset_statistics.py")


def computes_times(node: ast.AST) -> bool:
    """Is it ``… / fps``, ``… * fps`` or ``(… + 0.5) / …``, ``(… + 0.5) * …``?"""
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, (ast.Div, ast.FloorDiv, ast.Mult)):
        return False
    sides = node.left, node.right
    rates = [getattr(side, "attr", getattr(side, "id", "")).lower() for side in sides]
    centres = [isinstance(side, ast.BinOp) and isinstance(side.op, ast.Add) and ast.unparse(side.right) == "0.5"
               for side in sides]
    return any(rate.endswith("fps") for rate in rates) or any(centres)


def test_no_other_module_computes_times_of_frames():
    root = Path(__file__).parents[1] / "vta_sam"
    found = []
    for path in sorted(root.rglob("*.py")):
        text, name = path.read_text(encoding="utf-8"), path.relative_to(root).as_posix()
        if not name.startswith(("clip.py", *ELSEWHERE)) and ("fps" in text.lower() or "0.5)" in text):
            found += [f"{name}:{node.lineno}: {ast.unparse(node)}"  # type: ignore[attr-defined]
                      for node in ast.walk(ast.parse(text)) if computes_times(node)]
    assert not found, "ask FrameClock (vta_sam/clip.py):\n" + "\n".join(found)


@pytest.mark.parametrize("line, computes", [
    ("(np.arange(frames) + 0.5) / self.spec.fps", True), ("time_s * fps", True), ("1 / FPS", True),
    ("(torch.arange(count) + 0.5) * (duration_s / count)", True), ("body + 0.5 * click", False),
    ("spec.clock.time_s(frame)", False)])
def test_the_check_knows_such_a_line(line, computes):
    assert any(computes_times(node) for node in ast.walk(ast.parse(line))) == computes
