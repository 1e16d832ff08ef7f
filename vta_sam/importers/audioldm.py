"""AudioLDM's mel VAE and vocoder, from a checkpoint such as ``audioldm-s-full.ckpt`` (Liu et al. 2023, 2301.12503)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from .. import __version__
from ..checkpoint_file import read_state
from ..errors import InputError
from ..model_folder import ModelRecipe, refuse_existing, write_model
from .account import Account
from .back_end import AUDIOLDM_LICENCE, BackEnd, BackEndShape, checked_scale
from .named_parts import read_json

_PREFIX = "first_stage_model."
# what latent diffusion's code (CompVis) keeps beside its networks
_SCHEDULE = frozenset("""betas alphas_cumprod alphas_cumprod_prev sqrt_alphas_cumprod sqrt_one_minus_alphas_cumprod
log_one_minus_alphas_cumprod sqrt_recip_alphas_cumprod sqrt_recipm1_alphas_cumprod posterior_variance
posterior_log_variance_clipped posterior_mean_coef1 posterior_mean_coef2 lvlb_weights logvar""".split())


def import_audioldm(checkpoint: Path, out: Path) -> list[Account]:
    """A checkpoint ⇒ the model folder ``out`` with the VAE and vocoder, and the account of its tensors.

    Widths are the released models', unless a .json of the checkpoint's name lies beside it. Raises InputError where
    ``out`` exists, or the checkpoint can't be read, lacks a tensor, holds one that nothing is known of, or one of
    another shape; then ``out`` is not written.
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
