"""AudioLDM's mel VAE and vocoder, from a checkpoint such as ``audioldm-s-full.ckpt`` (Liu et al. 2023, 2301.12503)."""

from __future__ import annotations

import math
import os
import re
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from diffusers import AutoencoderKL
from torch import Tensor

from .. import __version__
from ..checkpoint_file import read_state
from ..errors import InputError
from ..model_folder import ModelRecipe, save_model
from ..vae.codec import MelCodec
from ..vocoder import HiFiGAN
from .account import Account

LICENCE = "CC BY-NC: not for commercial use"
_PREFIX = "first_stage_model."
_DURATION_S = 10.24  # of a clip that it was trained on
# what latent diffusion's code (CompVis) keeps beside its networks
_SCHEDULE = frozenset("""betas alphas_cumprod alphas_cumprod_prev sqrt_alphas_cumprod sqrt_one_minus_alphas_cumprod
log_one_minus_alphas_cumprod sqrt_recip_alphas_cumprod sqrt_recipm1_alphas_cumprod posterior_variance
posterior_log_variance_clipped posterior_mean_coef1 posterior_mean_coef2 lvlb_weights logvar""".split())


def import_audioldm(checkpoint: Path, out: Path, widths: Sequence[int] = (128, 256, 512), channels: int = 1024,
                    ) -> Account:
    """A checkpoint ⇒ the model folder ``out`` with the VAE and vocoder, and the account of its tensors.

    widths: of the VAE's levels; channels: of the vocoder's first layer; the defaults are those of the released models.
    Raises InputError where ``out`` exists, or the checkpoint can't be read, lacks a tensor, holds one that nothing is
    known of, or one of another shape; then ``out`` is not written.
    """
    if out.exists():
        raise InputError(f"{out} exists; remove it or name another folder to import into")
    outer = read_state(checkpoint)
    state = outer.get("state_dict", outer)
    scale = state.pop("scale_factor", None) if isinstance(state, dict) else None
    if not isinstance(scale, Tensor) or not all(isinstance(key, str) for key in state):
        raise InputError(f"{checkpoint} has no scale_factor, so it is no checkpoint of AudioLDM; nothing was imported")
    if scale.numel() != 1 or not scale.is_floating_point() or not 0 < scale.item() < math.inf:
        raise InputError(f"{checkpoint}: scale_factor is no positive number; nothing was imported")
    levels = len(widths)
    network = {
        "in_channels": 1, "out_channels": 1, "latent_channels": 8, "block_out_channels": list(widths),
        "down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": 2, "norm_num_groups": 32, "sample_size": 1024,
    }
    codec, vocoder = MelCodec(AutoencoderKL(**network)), HiFiGAN(channels)
    account = Account(checkpoint, state)
    account.leave_out(("model.", "model_ema."), "AudioLDM's own UNet")
    account.leave_out(("cond_stage_model.",), "AudioLDM's CLAP")
    account.leave_out((f"{_PREFIX}loss.",), "losses of the VAE's training")
    account.left_out |= {key: "numbers of the noise schedule" for key in state if key in _SCHEDULE}
    account.fill(vocoder, "vocoder", f"{_PREFIX}vocoder.", vocoder_name)
    account.fill(codec, "VAE", _PREFIX, lambda name: "network." + vae_name(name, levels))
    account.close()
    recipe = ModelRecipe(
        clip={"duration_s": _DURATION_S, "fps": 8, "latent_stride_frames": codec.stride}, latent_scale=scale.item(),
        codec={"_target_": "vta_sam.vae.codec.MelCodec",
               "network": {"_target_": "diffusers.AutoencoderKL", **network}},
        vocoder={"_target_": "vta_sam.vocoder.HiFiGAN", "channels": channels},
        about={"source": "AudioLDM", "file": checkpoint.name, "licence": LICENCE, "code_version": __version__},
    )
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.partial")
    try:
        save_model(temporary, recipe, {"codec": codec, "vocoder": vocoder})
        os.rename(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return account


def vocoder_name(name: str) -> str:
    """The name of a tensor in HiFi-GAN's own code ⇒ its name in :class:`~vta_sam.vocoder.HiFiGAN`."""
    return "network." + re.sub(r"^ups\.", "upsampler.", name)


def vae_name(name: str, levels: int) -> str:
    """The name of a tensor of the VAE in CompVis' code ⇒ its name in diffusers' AutoencoderKL of ``levels`` levels."""
    for old, new in (("nin_shortcut", "conv_shortcut"), ("norm_out", "conv_norm_out"),
                     ("mid.block_1", "mid_block.resnets.0"), ("mid.block_2", "mid_block.resnets.1"),
                     ("mid.attn_1.norm", "mid_block.attentions.0.group_norm"),
                     ("mid.attn_1.proj_out", "mid_block.attentions.0.to_out.0")):
        name = name.replace(old, new)
    name = re.sub(r"mid\.attn_1\.([qkv])\.", r"mid_block.attentions.0.to_\1.", name)
    name = re.sub(r"\bdown\.(\d+)\.block\.", r"down_blocks.\1.resnets.", name)
    name = re.sub(r"\bdown\.(\d+)\.downsample\.", r"down_blocks.\1.downsamplers.0.", name)

    def turned(match: re.Match) -> str:  # CompVis counts the decoder's levels from the finest
        inside = "resnets" if match[2] == "block" else "upsamplers.0"
        return f"up_blocks.{levels - 1 - int(match[1])}.{inside}."

    return re.sub(r"\bup\.(\d+)\.(block|upsample)\.", turned, name)
