"""Released systems, VAE and vocoder and all, from their folders: Tango (Ghosal et al. 2023, 2304.13731), text to audio,
and VTA-LDM (Xu et al. 2024, 2407.07464), video to audio."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.model_folder import ModelRecipe, refuse_existing
from ..checkpoints.registry import digest, read_state
from ..clip import ClipSpec
from ..conditioners.tango import TangoConditioner
from ..conditioners.vta_ldm import FrameProjection, VTALDMConditioner
from ..perception.t5_encoder import TOKENIZER_FILES
from ..runtime.errors import InputError
from .audioldm import read_audioldm
from .components import (
    AUDIOLDM_LICENCE, BackEnd, BackEndShape, WholeModel, checked_scale, empty_encoder, import_unet, keep_encoder
)
from .tensor_mapping import Account, NamedParts, read_json

MAIN_CONFIG, VAE_CONFIG = "main_config.json", "vae_config.json"
TANGO_LICENCE = f"Tango: CC BY-NC-ND 4.0; its VAE and vocoder are AudioLDM's: {AUDIOLDM_LICENCE}"
_TEXT_ENCODER = "text_encoder"
_TANGO_FPS = 1.0  # no picture is read


def import_tango(checkpoint: Path, out: Path, folders: Sequence[Path] = (),
                 instead: dict[str, str] | None = None) -> list[Account]:
    """A hub folder ⇒ the model folder ``out``, and the accounts of its two files of weights.

    folders, instead: see NamedParts; ``main_config.json`` names the text encoder, whose configuration and tokenizer are
    taken from there, the scheduler, and the UNet's configuration. ``pytorch_model_stft.bin`` is not read: this project
    has the front end of its own. Raises InputError where anything is missing or doesn't fit; then nothing is written.
    """
    from transformers import T5Config, T5EncoderModel

    refuse_existing(out)
    vae_config = read_json(checkpoint / VAE_CONFIG)
    main = read_json(checkpoint / MAIN_CONFIG)
    named = NamedParts(checkpoint / MAIN_CONFIG, main, (checkpoint, *folders), instead or {})
    offset = named.schedule_offset("scheduler_name")
    unet_config = named.unet_config("unet_model_config_path")
    text_folder = named.find("text_encoder_name")

    sound = Account(checkpoint / "pytorch_model_vae.bin", read_state(checkpoint / "pytorch_model_vae.bin"))
    back_end = BackEnd.of(_tango_shape(sound, vae_config, checkpoint / VAE_CONFIG))
    scale = checked_scale(vae_config.get("scale_factor"), str(checkpoint / VAE_CONFIG))
    back_end.fill(sound, "")
    sound.close()

    account = Account(checkpoint / "pytorch_model_main.bin", read_state(checkpoint / "pytorch_model_main.bin"))
    spec = ClipSpec(**back_end.clip(fps=_TANGO_FPS))
    unet, unet_recipe = import_unet(account, unet_config, named.find("unet_model_config_path"), spec)
    encoder = empty_encoder(text_folder, "t5", T5Config, T5EncoderModel)
    account.fill(encoder, "text encoder", "text_encoder.", lambda name: name)
    account.close()
    width = encoder.config.d_model
    if width != unet.token_dim:
        raise InputError(f"{text_folder}: its states are {width} wide, the UNet's cross-attention is {unet.token_dim}; "
                         "nothing was imported")
    conditioner = TangoConditioner(width, spec, width, straight=True)
    with torch.no_grad():
        empty = torch.tensor([[encoder.config.eos_token_id]])
        conditioner.caption.null_token.copy_(encoder.eval()(empty).last_hidden_state[0, 0])
    model = WholeModel(
        source="Tango", file=checkpoint.name, licence=TANGO_LICENCE, fps=_TANGO_FPS, back_end=back_end,
        latent_scale=scale,
        unet=unet, unet_recipe=unet_recipe, conditioner=conditioner, steps_offset=offset,
        conditioner_recipe={"_target_": "tango", "caption_dim": width,
                            "token_dim": width, "straight": True},
        encoder={"_target_": "t5", "folder": _TEXT_ENCODER},
        features={"frame_dim": 0, "object_dim": 0, "caption_dim": width},
    )
    model.write(out, lambda folder, recipe: keep_encoder(encoder, text_folder, TOKENIZER_FILES, folder / _TEXT_ENCODER))
    return [sound, account]


def _tango_shape(sound: Account, vae_config: dict[str, Any], where: Path) -> BackEndShape:
    """The VAE's configuration; the vocoder's first width is read off its weights, as no file says it."""
    first = sound.state.get("vocoder.conv_pre.weight")
    if not isinstance(first, torch.Tensor) or first.ndim != 3:
        raise InputError(f"{sound.path} lacks vocoder.conv_pre.weight; nothing was imported")
    content = {**vae_config, "vocoder": {"upsample_initial_channel": len(first)}}
    return BackEndShape.of_json(content, where)


SUMMARY, WEIGHTS = "summary.jsonl", "pytorch_model_2.bin"
VTA_LDM_LICENCE = ("VTA-LDM: code Apache-2.0, weights CC BY 4.0; its VAE and vocoder are AudioLDM's: "
                   + AUDIOLDM_LICENCE)
VTA_LDM_FPS = 2.0  # pictures a second that it was trained on
_PREFIX, _CLIP = "vid_fea_extractor.", "clip"
_CLIP_TOKENIZER_FILES = ("merges.txt", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
                         "vocab.json")


def import_vta_ldm(checkpoint: Path, out: Path, folders: Sequence[Path] = (),
                   instead: dict[str, str] | None = None) -> list[Account]:
    """The checkpoint's folder ⇒ the model folder ``out``, and the accounts of its two files of weights.

    folders, instead: see NamedParts; ``summary.jsonl`` names CLIP, whose configuration and tokenizer are taken from
    there, the scheduler and the UNet's configuration; key ``vae`` is the VAE's checkpoint. As published: 2 pictures a
    second that are not normalised, a null of zeros, ancestral sampling. Raises InputError where anything is missing or
    doesn't fit, or a variant is asked for that isn't built here; then nothing is written.
    """
    from transformers import CLIPConfig, CLIPModel

    refuse_existing(out)
    summary = checkpoint / SUMMARY
    settings = read_json(summary, first_line=True)
    variants = [key for key in ("pe", "ib", "lb", "jepa", "cavp", "vivit", "of") if settings.get(key)]
    if variants or settings.get("task", "video2audio") != "video2audio":
        raise InputError(f"{summary}: it was trained with {[*variants, settings.get('task')][0]!r}; only the "
                         "base model, CLIP's frames through one linear layer, is built here. Nothing was imported")
    named = NamedParts(summary, settings, (checkpoint, *folders), instead or {})
    offset = named.schedule_offset("scheduler_name")
    unet_config = named.unet_config("unet_model_config")
    clip_folder = named.find("fea_encoder_name")
    back_end, scale, sound = read_audioldm(named.find("vae", default="audioldm-s-full.ckpt"))

    account = Account(checkpoint / WEIGHTS, read_state(checkpoint / WEIGHTS))
    spec = ClipSpec(**back_end.clip(fps=VTA_LDM_FPS))
    unet, unet_recipe = import_unet(account, unet_config, named.find("unet_model_config"), spec)
    clip = empty_encoder(clip_folder, "clip", CLIPConfig, CLIPModel)
    account.left_out |= {key: "running numbers that the code makes itself" for key in account.state
                         if key.startswith(_PREFIX) and key.endswith(".position_ids")}
    # contrastive training's temperature: the checkpoint drops it, and no embedding depends on it
    account.fill(clip, "CLIP", f"{_PREFIX}clip_", lambda name: name.split(".", 1)[1],
                 given={"logit_scale": torch.tensor(clip.config.logit_scale_init_value)})
    frame_dim, token_dim = clip.config.projection_dim, unet.token_dim
    projection = FrameProjection(frame_dim, token_dim, normalise=False, frozen=True)
    account.fill(projection, "projection of frames", f"{_PREFIX}linear_layer.", lambda name: f"project.{name}")
    account.close()
    conditioner = VTALDMConditioner(projection, spec, token_dim, fps=VTA_LDM_FPS, positions=False, null="zeros")
    model = WholeModel(
        source="VTA-LDM", file=checkpoint.name, licence=VTA_LDM_LICENCE, fps=VTA_LDM_FPS, back_end=back_end,
        latent_scale=scale,
        unet=unet, unet_recipe=unet_recipe, conditioner=conditioner, steps_offset=offset,
        conditioner_recipe={
            "_target_": "vta_ldm", "token_dim": token_dim, "fps": VTA_LDM_FPS,
            "positions": False, "null": "zeros",
            "encoder": {"_target_": "frame_projection", "frame_dim": frame_dim,
                        "width": token_dim, "normalise": False, "frozen": True}},
        encoder={"_target_": "clip", "folder": _CLIP, "normalise": False},
        features={"frame_dim": frame_dim, "object_dim": frame_dim,
                  "caption_dim": clip.config.text_config.hidden_size},
    )

    def beside(folder: Path, recipe: ModelRecipe) -> None:
        keep_encoder(clip, clip_folder, _CLIP_TOKENIZER_FILES, folder / _CLIP)
        recipe.features["encoder"] = f"{_CLIP}-{digest(folder / _CLIP / 'model.safetensors')}"

    model.write(out, beside)
    return [sound, account]
