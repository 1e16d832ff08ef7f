"""At the released sizes, on torch's meta device: every key of the official shapes finds its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import (
    CLIPConfig, CLIPTextModelWithProjection, CLIPVisionModelWithProjection, T5Config, T5EncoderModel
)

from vta_sam.importers import components as whole_model
from vta_sam.importers import systems

SCHEDULER = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000,
             "prediction_type": "v_prediction", "clip_sample": False, "steps_offset": 1}
UNET: dict[str, Any] = {
    "sample_size": [32, 2], "in_channels": 8, "out_channels": 8, "layers_per_block": 2, "use_linear_projection": True,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "upcast_attention": True,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3, "attention_head_dim": [5, 10, 20, 20]}
TANGO = {**UNET, "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 1024}
VTA_LDM = {**UNET, "block_out_channels": [320, 640, 640, 1280], "cross_attention_dim": 2048}
# google/flan-t5-large, openai/clip-vit-large-patch14
T5 = {"model_type": "t5", "d_model": 1024, "d_kv": 64, "d_ff": 2816, "num_layers": 24, "num_heads": 16,
      "vocab_size": 32128, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "eos_token_id": 1}
CLIP: dict[str, Any] = {
    "model_type": "clip", "projection_dim": 768,
    "text_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12,
                    "projection_dim": 768},
    "vision_config": {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "patch_size": 14,
                      "num_hidden_layers": 24, "projection_dim": 768}}


def numbers(module: nn.Module, *without: str) -> int:
    return sum(p.numel() for name, p in module.named_parameters() if not name.startswith(without or ("-",)))


def prefixed(prefix: str, module: nn.Module) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in module.state_dict().items()}


@pytest.fixture
def back_end_state(released) -> dict[str, torch.Tensor]:
    """AudioLDM's names, from the tiny checkpoint and what wider levels add, with the shapes of the released size."""
    tiny = torch.load(released / "audioldm_tiny.ckpt", weights_only=True)["state_dict"]
    names = [key.removeprefix("first_stage_model.") for key in tiny if key != "scale_factor"]
    names += [f"{block}.nin_shortcut.{kind}" for block in ("encoder.down.2.block.0", "decoder.up.1.block.0")
              for kind in ("weight", "bias")]
    back_end = systems.BackEnd.of(systems.BackEndShape())
    shapes: dict[str, tuple[nn.Module, Callable[[str], str]]] = {
        name: (back_end.vocoder, audioldm_vocoder) if name.startswith("vocoder.") else (back_end.codec, audioldm_vae)
        for name in names}
    return {name: module.state_dict()[renamed(name)] for name, (module, renamed) in shapes.items()}


def audioldm_vocoder(name: str) -> str:
    from vta_sam.importers.components import vocoder_name

    return vocoder_name(name.removeprefix("vocoder."))


def audioldm_vae(name: str) -> str:
    from vta_sam.importers.components import vae_name

    return "network." + vae_name(name, 3)


@pytest.fixture
def meta(monkeypatch):
    """Whatever is built is built without memory."""
    with torch.device("meta"):
        yield


@pytest.fixture
def written(monkeypatch):
    """{part: module} of what would have been written."""
    found: dict[str, nn.Module] = {}
    monkeypatch.setattr(whole_model, "write_model", lambda out, recipe, parts, beside: found.update(parts))
    return found


def put(path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def test_tango(meta, written, back_end_state, tmp_path, monkeypatch):
    put(tmp_path / "main_config.json", {"text_encoder_name": "google/flan-t5-large",
        "scheduler_name": "stabilityai/stable-diffusion-2-1", "unet_model_config_path": "configs/unet.json"})
    put(tmp_path / "vae_config.json", {"embed_dim": 8, "ddconfig": {"ch": 128, "ch_mult": [1, 2, 4]},
                                       "scale_factor": 0.92})
    put(tmp_path / "stable-diffusion-2-1/scheduler/scheduler_config.json", SCHEDULER)
    put(tmp_path / "unet.json", TANGO)
    put(tmp_path / "flan-t5-large/config.json", T5)
    main = prefixed("unet.", UNet2DConditionModel(**TANGO)) | prefixed("text_encoder.", T5EncoderModel(T5Config(**T5)))
    states = {"pytorch_model_main.bin": main, "pytorch_model_vae.bin": back_end_state}
    monkeypatch.setattr(systems, "read_state", lambda path: states[path.name])
    sound, account = systems.import_tango(tmp_path, tmp_path / "model")
    assert len(sound.taken) == len(back_end_state) == 398 and len(account.taken) == len(main) and not account.left_out
    assert numbers(written["denoiser"]) == 865_933_768
    check_back_end(written)


def test_vta_ldm(meta, written, back_end_state, tmp_path, monkeypatch):
    put(tmp_path / "summary.jsonl", {"fea_encoder_name": "clip-vit-large-patch14", "task": "video2audio",
        "scheduler_name": "ckpt/stable-diffusion-2-1", "unet_model_config": "configs/unet.json", "pe": False})
    put(tmp_path / "stable-diffusion-2-1/scheduler/scheduler_config.json", SCHEDULER)
    put(tmp_path / "unet.json", VTA_LDM)
    put(tmp_path / "clip-vit-large-patch14/config.json", CLIP)
    (tmp_path / "audioldm-s-full.ckpt").touch()
    config, feature = CLIPConfig(**CLIP), "vid_fea_extractor."
    main = (prefixed("unet.", UNet2DConditionModel(**VTA_LDM))
            | prefixed(f"{feature}linear_layer.", nn.Linear(768, 2048))
            | prefixed(f"{feature}clip_vision.", CLIPVisionModelWithProjection(config.vision_config))
            | prefixed(f"{feature}clip_text.", CLIPTextModelWithProjection(config.text_config)))
    old = f"{feature}clip_text.text_model.embeddings.position_ids"  # which older code saved
    main[old] = torch.zeros(1, 77, dtype=torch.int64)
    sounding = {f"first_stage_model.{name}": value for name, value in back_end_state.items()}
    scale = torch.tensor(0.92, device="cpu")
    audioldm = {"state_dict": {"scale_factor": scale, **sounding}}
    monkeypatch.setattr(systems, "read_state", lambda path: audioldm if path.suffix == ".ckpt" else main)
    sound, account = systems.import_vta_ldm(tmp_path, tmp_path / "model")
    assert len(sound.taken) == 398 and len(account.taken) == len(main) - 1 and set(account.left_out) == {old}
    assert numbers(written["denoiser"]) == 578_052_168
    check_back_end(written)


def check_back_end(written: dict[str, nn.Module]) -> None:
    assert round(numbers(written["codec"]) / 1e6, 1) == 55.4
    assert round(numbers(written["vocoder"]) / 1e6, 1) == 55.3
