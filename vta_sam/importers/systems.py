"""Released systems, VAE and vocoder and all, from their folders: Tango (Ghosal et al. 2023, 2304.13731), text to audio,
and VTA-LDM (Xu et al. 2024, 2407.07464), video to audio. And AudioLDM's mel VAE and vocoder alone (Liu et al. 2023,
2301.12503), from a checkpoint such as ``audioldm-s-full.ckpt`` or a folder in diffusers' layout such as
``cvssp/audioldm-s-full-v2``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..checkpoints.model_folder import ModelRecipe, refuse_existing, write_model
from ..checkpoints.registry import digest, read_state
from ..clip import ClipSpec
from ..conditioners.tango import TangoConditioner
from ..conditioners.vta_ldm import FrameProjection, VTALDMConditioner
from ..perception.clip_encoder import TOKENIZER_FILES
from ..runtime.errors import InputError
from .components import (
    AUDIOLDM_LICENCE, Account, BackEnd, BackEndShape, NamedParts, WholeModel, checked_scale, empty_encoder,
    import_unet, keep_encoder, read_json
)

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


# --- AudioLDM ---------------------------------------------------------------------------------------------------------

_FIRST_STAGE = "first_stage_model."
# what latent diffusion's code (CompVis) keeps beside its networks
_SCHEDULE = frozenset("""betas alphas_cumprod alphas_cumprod_prev sqrt_alphas_cumprod sqrt_one_minus_alphas_cumprod
log_one_minus_alphas_cumprod sqrt_recip_alphas_cumprod sqrt_recipm1_alphas_cumprod posterior_variance
posterior_log_variance_clipped posterior_mean_coef1 posterior_mean_coef2 lvlb_weights logvar""".split())


def import_audioldm(checkpoint: Path, out: Path) -> list[Account]:
    """Write a model folder with the VAE and vocoder of a checkpoint ⇒ the account of its tensors.

    Args:
        checkpoint: a file of AudioLDM's own code. Widths are the released models', unless a .json of the checkpoint's
            name lies beside it.
        out: the new model folder.

    Raises:
        InputError: ``out`` exists, or the checkpoint can't be read, lacks a tensor, holds one that nothing is known
            of, or one of another shape; then ``out`` is not written.
    """
    refuse_existing(out)
    back_end, scale, account = read_audioldm(checkpoint)
    recipe = ModelRecipe(
        clip=back_end.clip(fps=8), latent_scale=scale, codec=back_end.codec_recipe, vocoder=back_end.vocoder_recipe,
        about={"source": "AudioLDM", "file": checkpoint.name, "licence": AUDIOLDM_LICENCE, "code_version": __version__},
    )
    write_model(out, recipe, {"codec": back_end.codec, "vocoder": back_end.vocoder})
    return [account]


def read_audioldm(checkpoint: Path) -> tuple[BackEnd, float, Account]:
    """A checkpoint ⇒ the filled VAE and vocoder, the latents' scale, and the account. Errors: import_audioldm's."""
    outer = read_state(checkpoint)
    state: Any = outer.get("state_dict", outer)
    scale = state.pop("scale_factor", None) if isinstance(state, dict) else None
    if not isinstance(scale, Tensor):
        raise InputError(f"{checkpoint} has no scale_factor, so it is no checkpoint of AudioLDM; nothing was imported")
    beside = checkpoint.with_suffix(".json")
    shape = BackEndShape.of_json(read_json(beside), beside) if beside.is_file() else BackEndShape()
    back_end, account = BackEnd.of(shape), Account(checkpoint, state)
    account.leave_out(("model.", "model_ema."), "AudioLDM's own UNet")
    account.leave_out(("cond_stage_model.",), "AudioLDM's CLAP")
    account.leave_out((f"{_FIRST_STAGE}loss.",), "losses of the VAE's training")
    account.left_out |= {key: "numbers of the noise schedule" for key in state if key in _SCHEDULE}
    back_end.fill(account, _FIRST_STAGE)
    account.close()
    return back_end, checked_scale(scale, str(checkpoint)), account


# the VAE's shape in the configuration, and the values that are required
_SHAPE = ("block_out_channels", "down_block_types", "up_block_types", "layers_per_block", "norm_num_groups",
          "sample_size")
_FIXED = {"in_channels": 1, "out_channels": 1, "latent_channels": 8, "act_fn": "silu"}
_VOCODER = {"upsample_initial_channel": "channels", "upsample_rates": "upsample_rates",
            "upsample_kernel_sizes": "upsample_kernels", "resblock_kernel_sizes": "resblock_kernels",
            "resblock_dilation_sizes": "resblock_dilations"}
_FIXED_VOCODER = {"model_in_dim": 64, "sampling_rate": 16000, "normalize_before": False, "leaky_relu_slope": 0.1}


def import_audioldm_diffusers(checkpoint: Path, out: Path) -> list[Account]:
    """Write a model folder with the VAE and vocoder of a folder in diffusers' layout ⇒ the accounts of their tensors.

    Args:
        checkpoint: a folder with ``vae/`` and ``vocoder/``. The pipeline's other folders (UNet, text encoder) are not
            read.
        out: the new model folder.

    Raises:
        InputError: a file is missing, a tensor is missing, unknown or of another shape, or a configuration describes
            another kind of network; then ``out`` is not written.
    """
    refuse_existing(out)
    vae_path, vocoder_path = checkpoint / "vae" / "config.json", checkpoint / "vocoder" / "config.json"
    vae, vocoder = read_json(vae_path), read_json(vocoder_path)
    for path, content, fixed in ((vae_path, vae, _FIXED), (vocoder_path, vocoder, _FIXED_VOCODER)):
        for key, value in fixed.items():
            if content.get(key, value) != value:
                raise InputError(f"{path}: {key} is {content[key]!r}, this project's front end and networks take "
                                 f"{value!r}; nothing was imported")
    try:
        back_end = BackEnd({**_FIXED, **{key: vae[key] for key in _SHAPE if key in vae}},
                           {ours: vocoder[theirs] for theirs, ours in _VOCODER.items() if theirs in vocoder})
    except Exception as error:  # diffusers and transformers raise errors of any kind on arguments that make no network
        raise InputError(f"{checkpoint}: its VAE and vocoder can't be built as configured "
                         f"({str(error).splitlines()[0]}); nothing was imported") from error
    codec = _account(checkpoint / "vae", "diffusion_pytorch_model")
    codec.fill(back_end.codec, "VAE", "", lambda name: "network." + _vae_name(name))
    sound = _account(checkpoint / "vocoder", "model", "pytorch_model")
    sound.left_out |= {key: "what mels would be normalised by, if they were" for key in ("mean", "scale")
                       if key in sound.state}
    sound.fill(back_end.vocoder, "vocoder", "", lambda name: f"network.{name}")
    for account in (codec, sound):
        account.close()
    recipe = ModelRecipe(
        clip=back_end.clip(fps=8), latent_scale=checked_scale(vae.get("scaling_factor"), str(vae_path)),
        codec=back_end.codec_recipe, vocoder=back_end.vocoder_recipe,
        about={"source": "AudioLDM", "file": checkpoint.name, "licence": AUDIOLDM_LICENCE, "code_version": __version__},
    )
    write_model(out, recipe, {"codec": back_end.codec, "vocoder": back_end.vocoder})
    return [codec, sound]


def _account(folder: Path, *names: str) -> Account:
    """Of the first file that there is: safetensors, else one of torch's own format."""
    places = [folder / f"{name}.{suffix}" for suffix in ("safetensors", "bin") for name in names]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise InputError(f"{places[0]} is missing, and so is {places[-1].name}; nothing was imported")
    state: dict[str, Any] = read_state(path)
    return Account(path, state)


def _vae_name(name: str) -> str:
    """Attention layers were called otherwise by diffusers before 0.15."""
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        name = re.sub(rf"(attentions\.\d+\.){old}\.", rf"\g<1>{new}.", name)
    return name
