"""A model folder with a very small random model, for tests of everything that reads one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vta_sam.checkpoints.model_folder import ModelRecipe, save_model
from vta_sam.clip import ClipFeatures, ClipSpec
from vta_sam.dataset.shards.batch import ClipBatch, collate, window_of
from vta_sam.generation.build import build_denoiser, build_part

FRAME_DIM, OBJECT_DIM, CAPTION_DIM = 12, 10, 6
SPEC = ClipSpec(duration_s=1.28, fps=12.5, latent_stride_frames=16)  # 16 frames, 8 columns


def make_recipe(aligned: bool = False, spec: ClipSpec = SPEC, **more: Any) -> ModelRecipe:
    """The recipe of a model of some 100 000 parameters. more: any other field of ModelRecipe."""
    dims = {"frame_dim": FRAME_DIM, "object_dim": OBJECT_DIM, **more.pop("dims", {})}
    network = {
        "_target_": "autoencoder_kl", "in_channels": 4, "out_channels": 4, "latent_channels": 8,
        "block_out_channels": [4, 4, 8, 8], "layers_per_block": 1, "norm_num_groups": 4,
        "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
    unet = {
        "out_channels": 8, "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4,
        "cross_attention_dim": 16, "attention_head_dim": 2, "sample_size": None,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    }
    map_channels = 4 if aligned else 0
    return ModelRecipe(**{
        "clip": asdict(spec),
        "codec": {"_target_": "mel_codec", "network": network, "patch": 2, "mel_mean": -5.0,
                  "mel_std": 2.0},
        "latent_scale": 0.8,
        "denoiser": {"_target_": "latent_unet", "config": unet, "map_channels": map_channels,
                     "coordinate_channels": 4},
        "conditioner": {
            "_target_": "vta_sam", "token_dim": 16,
            "map_channels": map_channels,
            "encoder": {"_target_": "temporal_semantic_encoder", **dims, "fps": spec.fps,
                        "width": 16, "layers": 1, "heads": 2},
        },
        "sampler": {"_target_": "diffusion_sampler", "steps": 2, "guidance": 2.0},
        "vocoder": {"_target_": "griffin_lim", "iterations": 2, "inversion_steps": 2},
        "about": {"experiment": "a random model of a test"},
        **more,
    })


def make_model_folder(tmp_path: Path, aligned: bool = False, seed: int = 0, **more: Any) -> Path:
    """Write tmp_path/model with random weights (also where training starts at zero, so that everything matters)."""
    recipe = make_recipe(aligned, **more)
    folder = tmp_path / "model"
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        parts = {"codec": build_part(recipe, "codec", folder)}
        parts["denoiser"], parts["conditioner"] = build_denoiser(recipe, folder)
        for part in (parts["denoiser"], parts["conditioner"]):
            for parameter in part.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.1)
        parts["denoiser"].unet.conv_in.weight.normal_(std=0.2)
    save_model(folder, recipe, parts)
    return folder


def make_tiny_weights(path: Path, seed: int = 0) -> Path:
    """A weights file of the tiny trunk with random weights: the real grounder and encoder, unable to see anything."""
    from vta_sam.embedded.timeline import WORDS
    from vta_sam.embedded.tiny_networks import Trunk, write_weights

    sizes: dict[str, Any] = {"words": len(WORDS), "word_dim": OBJECT_DIM, "embedding_dim": FRAME_DIM,
                             "widths": [4, 4, 8], "features": 8, "hidden": 8, "folded": True}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Trunk(**sizes)
    write_weights(path, network, {"kind": "trunk", "version": 0, "classes": list(WORDS), "sizes": sizes, "figures": {}})
    return path


def make_seeing_model(tmp_path: Path, **more: Any) -> Path:
    """A model folder that names the tiny grounder and encoder of :func:`make_tiny_weights`, which look at videos."""
    from vta_sam.embedded.extractors import TinyGrounder

    weights = str(make_tiny_weights(tmp_path / "trunk.safetensors"))
    fingerprint = TinyGrounder(weights).fingerprint
    return make_model_folder(tmp_path, **{
        "grounder": {"_target_": "tiny_grounder", "weights": weights},
        "encoder": {"_target_": "tiny_encoder", "weights": weights},
        "features": {"grounder": fingerprint, "encoder": fingerprint}, **more,
    })


def make_features(key: str = "clip", duration_s: float = SPEC.duration_s, objects: tuple[str, ...] = ("dog", "canary"),
                  caption_tokens: int = 3, spec: ClipSpec = SPEC) -> ClipFeatures:
    """Random features of a clip of any length; they depend on the key alone, and a longer clip begins as a shorter."""
    frames = spec.frames_of(duration_s)

    def draw(purpose: str, *shape: int) -> np.ndarray:
        generator = np.random.default_rng([ord(c) for c in key + purpose])
        return generator.normal(size=shape).astype(np.float32)

    return ClipFeatures(
        key=key, caption="a " + " and a ".join(objects), objects=list(objects), fps=spec.fps,
        waveform=np.zeros(spec.samples_of(duration_s), np.float32), frame_embedding=draw("frames", frames, FRAME_DIM),
        probs=1 / (1 + np.exp(-4 * draw("probs", frames, len(objects)))),
        boxes=np.full((frames, len(objects), 4), 0.5, np.float32),
        areas=np.full((frames, len(objects)), 0.1, np.float32),
        object_embedding=draw("objects", len(objects), OBJECT_DIM),
        caption_tokens=draw("caption", caption_tokens, CAPTION_DIM), duration_s=duration_s,
    ).validate()


def make_batch(*keys: str, spec: ClipSpec = SPEC, **features: Any) -> ClipBatch:
    """One window of random features per key."""
    return collate([window_of(make_features(key, spec=spec, **features), spec, 0) for key in keys], spec)
