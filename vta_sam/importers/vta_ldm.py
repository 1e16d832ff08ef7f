"""VTA-LDM, video to audio, from its folder with ``summary.jsonl`` (Xu et al. 2024, 2407.07464)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..checkpoints.model_folder import ModelRecipe, refuse_existing
from ..checkpoints.registry import digest, read_state
from ..clip import ClipSpec
from ..conditioners.vta_ldm import FrameProjection, VTALDMConditioner
from ..runtime.errors import InputError
from .audioldm import read_audioldm
from .components import AUDIOLDM_LICENCE, WholeModel, empty_encoder, import_unet, keep_encoder
from .tensor_mapping import Account, NamedParts, read_json

SUMMARY, WEIGHTS = "summary.jsonl", "pytorch_model_2.bin"
LICENCE = ("VTA-LDM: code Apache-2.0, weights CC BY 4.0; its VAE and vocoder are AudioLDM's: " + AUDIOLDM_LICENCE)
FPS = 2.0  # pictures a second that it was trained on
_PREFIX, _CLIP = "vid_fea_extractor.", "clip"
_TOKENIZER_FILES = ("merges.txt", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.json")


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
    spec = ClipSpec(**back_end.clip(fps=FPS))
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
    conditioner = VTALDMConditioner(projection, spec, token_dim, fps=FPS, positions=False, null="zeros")
    model = WholeModel(
        source="VTA-LDM", file=checkpoint.name, licence=LICENCE, fps=FPS, back_end=back_end, latent_scale=scale,
        unet=unet, unet_recipe=unet_recipe, conditioner=conditioner, steps_offset=offset,
        conditioner_recipe={
            "_target_": "vta_ldm", "token_dim": token_dim, "fps": FPS,
            "positions": False, "null": "zeros",
            "encoder": {"_target_": "frame_projection", "frame_dim": frame_dim,
                        "width": token_dim, "normalise": False, "frozen": True}},
        encoder={"_target_": "clip", "folder": _CLIP, "normalise": False},
        features={"frame_dim": frame_dim, "object_dim": frame_dim,
                  "caption_dim": clip.config.text_config.hidden_size},
    )

    def beside(folder: Path, recipe: ModelRecipe) -> None:
        keep_encoder(clip, clip_folder, _TOKENIZER_FILES, folder / _CLIP)
        recipe.features["encoder"] = f"{_CLIP}-{digest(folder / _CLIP / 'model.safetensors')}"

    model.write(out, beside)
    return [sound, account]
