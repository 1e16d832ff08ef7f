"""A tiny dataset of shards, and tiny models of all three stages, for tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from vta_sam.checkpoints import parts
from vta_sam.clip import ClipFeatures, ClipSpec
from vta_sam.dataset.shards.records import write_shard
from vta_sam.dataset.shards.schema import DatasetInfo, ShardInfo
from vta_sam.training.data_sources import ShardData
from vta_sam.training.run_folder import StageFolder
from vta_sam.training.stage import StageContext, StageSettings

SPEC = ClipSpec(duration_s=5.12, fps=12.5, latent_stride_frames=16)  # 64 frames, 32 columns
FRAME_DIM, OBJECT_DIM, CAPTION_DIM = 6, 5, 4
WORDS = ("dog", "canary", "clarinet")
COUNTS = {"train": 20, "val": 4, "test": 4}

CODEC: dict[str, Any] = {
    "_target_": "mel_codec", "patch": 8, "mel_mean": None, "mel_std": None,
    "network": {
        "_target_": "autoencoder_kl", "in_channels": 64, "out_channels": 64, "latent_channels": 8,
        "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4,
        "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2,
    },
}
UNET_CONFIG: dict[str, Any] = {
    "sample_size": [SPEC.columns, 4], "out_channels": 8, "block_out_channels": [16, 32], "layers_per_block": 1,
    "norm_num_groups": 4, "cross_attention_dim": 16, "attention_head_dim": 2, "use_linear_projection": True,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
UNET: dict[str, Any] = {"_target_": "latent_unet", "config": UNET_CONFIG, "map_channels": 4,
                        "coordinate_channels": 4, "timed_attention": 1.0}
ENCODER: dict[str, Any] = {
    "_target_": "temporal_semantic_encoder", "frame_dim": FRAME_DIM, "object_dim": OBJECT_DIM,
    "fps": SPEC.fps, "width": 16, "layers": 1, "heads": 2,
}
CONDITIONER: dict[str, Any] = {
    "_target_": "vta_sam", "encoder": ENCODER, "token_dim": 16,
    "map_channels": 4,
}


def a_clip(key: str, duration_s: float = SPEC.duration_s, fps: float = SPEC.fps, frame_dim: int = FRAME_DIM,
           words: tuple[str, ...] = WORDS, sample_rate_hz: int = 16_000, object_dim: int = OBJECT_DIM,
           caption_dim: int = CAPTION_DIM) -> ClipFeatures:
    """Bursts of noise at a few moments; the pictures (column 0 of the embedding) and the first object's probability
    are high exactly then, all else is noise. It depends on the key alone."""
    random = np.random.default_rng([ord(c) for c in key])
    frames, samples = max(1, int(duration_s * fps + 0.5)), round(duration_s * sample_rate_hz)
    loud = np.zeros(frames, bool)
    for start in random.integers(0, max(1, frames - 3), size=3):
        loud[start:start + 4] = True
    at_sample = np.minimum((np.arange(samples) / sample_rate_hz * fps).astype(int), frames - 1)
    waveform = random.normal(size=samples) * np.where(loud[at_sample], 0.2, 1e-3)
    objects = list(random.permutation(list(words))[: random.integers(1, len(words) + 1)])
    frame_embedding = 0.3 * random.normal(size=(frames, frame_dim))
    frame_embedding[:, 0] += 2 * loud
    probs = random.random((frames, len(objects))) * 0.2
    probs[:, 0] += 0.7 * loud
    meaning = {word: np.random.default_rng([ord(c) for c in word]).normal(size=object_dim) for word in words}
    return ClipFeatures(
        key=key, caption="a " + " and a ".join(objects), objects=[str(o) for o in objects], fps=fps,
        waveform=np.clip(waveform, -1, 1).astype(np.float32), frame_embedding=frame_embedding.astype(np.float32),
        probs=probs.astype(np.float32), boxes=np.full((frames, len(objects), 4), 0.5, np.float32),
        areas=np.full((frames, len(objects)), 0.1, np.float32),
        object_embedding=np.array([meaning[o] for o in objects], np.float32),
        caption_tokens=random.normal(size=(3, caption_dim)).astype(np.float32), duration_s=duration_s,
        sample_rate_hz=sample_rate_hz,
    ).validate()


def write_dataset(folder: Path, counts: dict[str, int] = COUNTS, shard_records: int = 8, **clip: Any) -> DatasetInfo:
    """Shards of :func:`a_clip` and their dataset.json. clip: its other arguments (duration_s, fps, frame_dim, …)."""
    folder.mkdir(parents=True, exist_ok=True)
    splits: dict[str, list[ShardInfo]] = {}
    for split, count in counts.items():
        keys = [f"{split}-{i}" for i in range(count)]
        splits[split] = []
        for start in range(0, count, shard_records):
            name = f"{split}-{start // shard_records:06d}.tar"
            records = write_shard(folder / name, (a_clip(key, **clip) for key in keys[start:start + shard_records]))
            splits[split].append(ShardInfo(name, records, 0))
    info = DatasetInfo(
        grounder="grounder of a test", encoder="encoder of a test", fps=clip.get("fps", SPEC.fps),
        sample_rate_hz=clip.get("sample_rate_hz", 16_000), frame_dim=clip.get("frame_dim", FRAME_DIM),
        object_dim=clip.get("object_dim", OBJECT_DIM), caption_dim=clip.get("caption_dim", CAPTION_DIM),
        config_hash="0", manifest_hash="0", code_version="0",
        splits=splits,
    )
    info.write(folder)
    return info


def stage_context(root: Path, info: DatasetInfo, seed: int = 0, spec: ClipSpec = SPEC, **more: Any) -> StageContext:
    """What the three stages share, on shards at ``root``."""
    return StageContext(seed, spec, root, info, ShardData(str(root)), [], Console(quiet=True), **more)


def stage_folder(path: Path) -> StageFolder:
    """A claimed folder of a stage."""
    folder = StageFolder(path, {"of": "a test"})
    folder.claim(overwrite=False)
    return folder


def stage_settings(steps: int = 8, batch_size: int = 2, **fit: Any) -> StageSettings:
    """A stage of a few steps, in fp32 on the CPU."""
    numbers = {"validate_every": steps // 2, "checkpoint_every": 2, "ema_decay": 0.5, "precision": "fp32",
               "accelerator": "cpu", **fit}
    weights = {"l1": 1.0, "mse": 1.0, "kl": 1e-3, "energy": 10.0, "onset": 1.0, "contrastive": 0.3}
    return StageSettings.of({"fit": {"steps": steps, **numbers}, "batch_size": batch_size, "learning_rate": 1e-3,
                             "warmup_steps": 2, "weights": weights})


def build(recipe: dict[str, Any], seed: int = 0, randomise: bool = False, **arguments: Any) -> Any:
    """A recipe ⇒ the module, in evaluation mode. randomise: also what starts at zero."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        module = parts.build(recipe, _partial_=True)(**arguments)
        if randomise:
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()
