"""AudioLDM's mel VAE and vocoder (Liu et al. 2023, arXiv 2301.12503): from a checkpoint such as
``audioldm-s-full.ckpt``, or from a folder in diffusers' layout such as ``cvssp/audioldm-s-full-v2``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import __version__
from ..checkpoints.model_folder import ModelRecipe, refuse_existing, write_model
from ..checkpoints.registry import read_state
from ..runtime.errors import InputError
from .components import AUDIOLDM_LICENCE, BackEnd, BackEndShape, checked_scale
from .tensor_mapping import Account, read_json

_PREFIX = "first_stage_model."
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
    account.leave_out((f"{_PREFIX}loss.",), "losses of the VAE's training")
    account.left_out |= {key: "numbers of the noise schedule" for key in state if key in _SCHEDULE}
    back_end.fill(account, _PREFIX)
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
