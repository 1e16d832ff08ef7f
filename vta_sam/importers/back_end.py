"""The mel VAE and vocoder that AudioLDM, Tango and VTA-LDM share, built and filled from their checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL
from torch import Tensor

from ..errors import InputError
from ..vae.codec import MelCodec
from ..vocoder import HiFiGAN
from .account import Account
from .compvis import vae_name, vocoder_name

DURATION_S = 10.24  # of a clip that all three were trained on
AUDIOLDM_LICENCE = "CC BY-NC: not for commercial use"


@dataclass(frozen=True)
class BackEndShape:
    """widths: of the VAE's levels. vocoder: arguments of :class:`~vta_sam.vocoder.HiFiGAN`. The defaults are those of
    the released models: 55.4 M and 55.3 M parameters."""

    widths: Sequence[int] = (128, 256, 512)
    vocoder: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_json(cls, content: dict[str, Any], path: Path) -> "BackEndShape":
        """What a configuration beside the weights says, under the names of AudioLDM's code ("ddconfig", "vocoder").

        Raises InputError where it describes another kind of network than the one that is built here.
        """
        vae, vocoder = content.get("ddconfig", {}), content.get("vocoder", {})
        fixed = {"double_z": True, "z_channels": 8, "in_channels": 1, "out_ch": 1, "num_res_blocks": 2,
                 "attn_resolutions": [], "downsample_time": False}
        try:
            other = [key for key, value in fixed.items() if vae.get(key, value) != value]
            other += [key for key, value in {"num_mels": 64, "sampling_rate": 16000}.items()
                      if vocoder.get(key, value) != value]
            if content.get("embed_dim", 8) != 8 or other:
                raise InputError(f"{path}: {(other or ['embed_dim'])[0]} is another than the released models'; nothing "
                                 "was imported")
            widths = [int(vae["ch"]) * int(factor) for factor in vae["ch_mult"]] if vae else cls.widths
            names = {"upsample_initial_channel": "channels", "upsample_rates": "upsample_rates",
                     "upsample_kernel_sizes": "upsample_kernels", "resblock_kernel_sizes": "resblock_kernels",
                     "resblock_dilation_sizes": "resblock_dilations"}
            return cls(tuple(widths), {ours: vocoder[theirs] for theirs, ours in names.items() if theirs in vocoder})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is no configuration of a VAE and a vocoder ({error!r}); nothing was imported"
                             ) from error


class BackEnd:
    """An empty VAE and vocoder, and their recipes for model.yaml."""

    def __init__(self, network: dict[str, Any], vocoder: dict[str, Any]):
        self.codec, self.vocoder = MelCodec(AutoencoderKL(**network)), HiFiGAN(**vocoder)
        self.codec_recipe: dict[str, Any] = {
            "_target_": "mel_codec", "network": {"_target_": "autoencoder_kl", **network}}
        self.vocoder_recipe: dict[str, Any] = {"_target_": "hifigan", **vocoder}

    @classmethod
    def of(cls, shape: BackEndShape) -> "BackEnd":
        levels = len(shape.widths)
        return cls({
            "in_channels": 1, "out_channels": 1, "latent_channels": 8, "block_out_channels": list(shape.widths),
            "down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels,
            "layers_per_block": 2, "norm_num_groups": 32, "sample_size": 1024,
        }, shape.vocoder)

    def fill(self, account: Account, prefix: str) -> None:
        """Fill both with what lies below ``prefix`` of a checkpoint of AudioLDM's own code. Errors: see Account."""
        levels = len(self.codec.network.config["block_out_channels"])
        account.fill(self.vocoder, "vocoder", f"{prefix}vocoder.", vocoder_name)
        account.fill(self.codec, "VAE", prefix, lambda name: "network." + vae_name(name, levels))

    def clip(self, fps: float) -> dict[str, Any]:
        """The time base for model.yaml."""
        return {"duration_s": DURATION_S, "fps": fps, "latent_stride_frames": self.codec.stride}


def checked_scale(value: Any, where: str) -> float:
    """A scale factor of latents. Raises InputError unless it is one positive number."""
    if isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point():
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise InputError(f"{where}: the scale factor of latents is no positive number; nothing was imported")
    return float(value)
