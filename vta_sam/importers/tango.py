"""Tango, text to audio, from its hub folder (Ghosal et al. 2023, 2304.13731)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.model_folder import refuse_existing
from ..checkpoints.registry import read_state
from ..clip import ClipSpec
from ..conditioners.tango import TangoConditioner
from ..perception.t5_encoder import TOKENIZER_FILES
from ..runtime.errors import InputError
from .components import (
    AUDIOLDM_LICENCE, BackEnd, BackEndShape, WholeModel, checked_scale, empty_encoder, import_unet, keep_encoder
)
from .tensor_mapping import Account, NamedParts, read_json

MAIN_CONFIG, VAE_CONFIG = "main_config.json", "vae_config.json"
LICENCE = f"Tango: CC BY-NC-ND 4.0; its VAE and vocoder are AudioLDM's: {AUDIOLDM_LICENCE}"
_TEXT_ENCODER = "text_encoder"
_FPS = 1.0  # no picture is read


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
    back_end = BackEnd.of(_shape(sound, vae_config, checkpoint / VAE_CONFIG))
    scale = checked_scale(vae_config.get("scale_factor"), str(checkpoint / VAE_CONFIG))
    back_end.fill(sound, "")
    sound.close()

    account = Account(checkpoint / "pytorch_model_main.bin", read_state(checkpoint / "pytorch_model_main.bin"))
    spec = ClipSpec(**back_end.clip(fps=_FPS))
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
        source="Tango", file=checkpoint.name, licence=LICENCE, fps=_FPS, back_end=back_end, latent_scale=scale,
        unet=unet, unet_recipe=unet_recipe, conditioner=conditioner, steps_offset=offset,
        conditioner_recipe={"_target_": "tango", "caption_dim": width,
                            "token_dim": width, "straight": True},
        encoder={"_target_": "t5", "folder": _TEXT_ENCODER},
        features={"frame_dim": 0, "object_dim": 0, "caption_dim": width},
    )
    model.write(out, lambda folder, recipe: keep_encoder(encoder, text_folder, TOKENIZER_FILES, folder / _TEXT_ENCODER))
    return [sound, account]


def _shape(sound: Account, vae_config: dict[str, Any], where: Path) -> BackEndShape:
    """The VAE's configuration; the vocoder's first width is read off its weights, as no file says it."""
    first = sound.state.get("vocoder.conv_pre.weight")
    if not isinstance(first, torch.Tensor) or first.ndim != 3:
        raise InputError(f"{sound.path} lacks vocoder.conv_pre.weight; nothing was imported")
    content = {**vae_config, "vocoder": {"upsample_initial_channel": len(first)}}
    return BackEndShape.of_json(content, where)
