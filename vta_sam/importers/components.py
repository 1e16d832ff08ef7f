"""The parts that the released models share, built empty and filled from their checkpoints: AudioLDM's VAE and vocoder,
the UNet of Tango and VTA-LDM, the encoder that a model reads with; and the model folder that is written of them."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL
from torch import Tensor

from .. import __version__
from ..checkpoints.model_folder import ModelRecipe, write_model
from ..clip import ClipSpec
from ..diffusion.condition import Conditioner
from ..diffusion.unet import LatentUNet
from ..runtime.errors import InputError
from ..vae.codec import MelCodec
from ..vocoder import HiFiGAN
from .tensor_mapping import Account, read_json

DURATION_S = 10.24  # of a clip that all three were trained on
AUDIOLDM_LICENCE = "CC BY-NC: not for commercial use"


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


@dataclass(frozen=True)
class BackEndShape:
    """Sizes of the VAE and vocoder. The defaults are the released models': 55.4 M and 55.3 M parameters.

    Attributes:
        widths: of the VAE's levels.
        vocoder: arguments of :class:`~vta_sam.vocoder.HiFiGAN`.
    """

    widths: Sequence[int] = (128, 256, 512)
    vocoder: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_json(cls, content: dict[str, Any], path: Path) -> "BackEndShape":
        """The content of a configuration beside the weights, by the names of AudioLDM's code ("ddconfig", "vocoder").

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
        """Fill both with the tensors below ``prefix`` of a checkpoint of AudioLDM's own code. Errors: see Account."""
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


def import_unet(account: Account, config: dict[str, Any], where: Path, spec: ClipSpec) -> tuple[LatentUNet, dict]:
    """The UNet filled with the tensors below ``unet.``, and its recipe. Raises InputError where they don't fit."""
    try:
        unet = LatentUNet(config, spec)
    except Exception as error:  # diffusers raises errors of any kind on arguments that make no UNet
        raise InputError(f"{where} describes no UNet that can be built ({str(error).splitlines()[0]}); nothing was "
                         "imported") from error
    account.fill(unet, "UNet", "unet.", lambda name: f"unet.{name}")
    return unet, {"_target_": "latent_unet", "config": config}


def empty_encoder(folder: Path, model_type: str, config_class: Any, model_class: Any) -> Any:
    """⇒ a model of the folder's config.json, without its weights. Raises InputError where that describes another kind
    of model, or none that can be built."""
    path = folder / "config.json"
    content = read_json(path)
    if content.get("model_type") != model_type:
        raise InputError(f"{path} describes a {content.get('model_type')!r}, expected a {model_type!r}; nothing was "
                         "imported")
    try:
        return model_class(config_class(**content))
    except Exception as error:  # transformers raises errors of any kind on arguments that make no model
        raise InputError(f"{path} describes no {model_type} that can be built ({str(error).splitlines()[0]}); nothing "
                         "was imported") from error


def keep_encoder(model: Any, named: Path, tokenizer_files: Sequence[str], folder: Path) -> None:
    """Write a filled model, and the tokenizer's files that the named folder has, into ``folder``."""
    model.save_pretrained(folder, safe_serialization=True)
    for name in tokenizer_files:
        if (named / name).is_file():
            shutil.copyfile(named / name, folder / name)


@dataclass(frozen=True)
class WholeModel:
    """An imported diffusion model, ready to be written.

    Attributes:
        source, file, licence: for model.yaml and the model card.
        fps: pictures a second.
        encoder: recipe.
        features: dimensions of the model's features.
        steps_offset: of the scheduler.
    """

    source: str
    file: str
    licence: str
    fps: float
    back_end: BackEnd
    latent_scale: float
    unet: LatentUNet
    unet_recipe: dict[str, Any]
    conditioner: Conditioner
    conditioner_recipe: dict[str, Any]
    encoder: dict[str, Any]
    features: dict[str, Any]
    steps_offset: int

    def recipe(self) -> ModelRecipe:
        """As published: ancestral sampling with 200 steps and guidance 3, no objects looked for."""
        return ModelRecipe(
            clip=self.back_end.clip(self.fps), codec=self.back_end.codec_recipe, latent_scale=self.latent_scale,
            denoiser=self.unet_recipe, conditioner=self.conditioner_recipe,
            objective={"_target_": "v_prediction", "weighting": "epsilon"}, vocoder=self.back_end.vocoder_recipe,
            sampler={"_target_": "diffusion_sampler", "solver": "ddpm", "steps": 200, "guidance": 3.0,
                     "steps_offset": self.steps_offset},
            grounder={"_target_": "no_grounder"}, encoder=self.encoder,
            features={"fps": self.fps, **self.features},
            about={"source": self.source, "file": self.file, "licence": self.licence, "code_version": __version__},
        )

    def write(self, out: Path, beside: Callable[[Path, ModelRecipe], None]) -> None:
        """As a new model folder. beside: writes the encoder into it, and may complete the recipe."""
        recipe = self.recipe()
        parts = {"codec": self.back_end.codec, "vocoder": self.back_end.vocoder, "denoiser": self.unet,
                 "conditioner": self.conditioner}
        write_model(out, recipe, parts, lambda folder: beside(folder, recipe))
