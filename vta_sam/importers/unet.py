"""The UNet of Tango and VTA-LDM: diffusers' own, under its own names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..clip import ClipSpec
from ..diffusion.unet import LatentUNet
from ..errors import InputError
from .account import Account


def import_unet(account: Account, config: dict[str, Any], where: Path, spec: ClipSpec) -> tuple[LatentUNet, dict]:
    """⇒ the UNet filled with what lies below ``unet.``, and its recipe. Raises InputError where it doesn't fit."""
    try:
        unet = LatentUNet(config, spec)
    except Exception as error:  # diffusers raises what it likes on arguments that make no UNet
        raise InputError(f"{where} describes no UNet that can be built ({str(error).splitlines()[0]}); nothing was "
                         "imported") from error
    account.fill(unet, "UNet", "unet.", lambda name: f"unet.{name}")
    return unet, {"_target_": "latent_unet", "config": config}
