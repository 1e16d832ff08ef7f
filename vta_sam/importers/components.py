"""Checkpoints of released models, tensor by tensor, and the parts that these models share.

Every tensor of a checkpoint is accounted for: taken under another name, or left out with a reason. Every part that a
checkpoint names and does not hold is found: a scheduler's numbers, a UNet's shape, an encoder. AudioLDM's VAE and
vocoder, the UNet of Tango and VTA-LDM and the encoder that a model reads with are built empty and filled from their
checkpoints, and a model folder is written of them.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from .. import __version__
from ..checkpoints.model_folder import ModelRecipe, write_model
from ..clip import ClipSpec
from ..diffusion.condition import Conditioner
from ..diffusion.objective import SCHEDULE
from ..diffusion.unet import LatentUNet
from ..runtime.errors import InputError
from ..vae.codec import MelCodec
from ..vocoder import HiFiGAN

DURATION_S = 10.24  # of a clip that all three were trained on
AUDIOLDM_LICENCE = "CC BY-NC: not for commercial use"


@dataclass
class Account:
    """The taken and the left-out tensors of one checkpoint.

    Attributes:
        path: of the checkpoint.
        state: all that it holds.
        taken: its keys that are now weights of ours.
        left_out: {key: reason}.
    """

    path: Path
    state: dict[str, Any]
    taken: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        if not all(isinstance(key, str) for key in self.state):
            raise InputError(f"{self.path} is no checkpoint: its entries have no names; nothing was imported")

    def leave_out(self, prefixes: tuple[str, ...], reason: str) -> None:
        """Keys that begin with one of ``prefixes`` are of no use here."""
        self.left_out |= {key: reason for key in self._open() if key.startswith(prefixes)}

    def fill(self, module: nn.Module, part: str, prefix: str, renamed: Callable[[str], str],
             given: Mapping[str, Tensor] | None = None) -> None:
        """Fill a module with the tensors below ``prefix``, each under the name that ``renamed`` gives it; those
        taken or left out already are passed over. given: weights of the module that the checkpoint doesn't hold.

        A weight of a 1x1 convolution may fill a linear layer. Raises InputError where a tensor is missing, is one that
        the module doesn't know, or has another shape.
        """
        own, found = module.state_dict(), dict[str, Tensor](given or {})
        keys = [key for key in self._open() if key.startswith(prefix)]
        for key in keys:
            name, value = renamed(key.removeprefix(prefix)), self.state[key]
            if name not in own or name in found:
                raise InputError(f"{self.path} holds {key!r}, which the {part} has no place for; nothing was imported")
            if not isinstance(value, Tensor) or value.is_sparse or not value.is_floating_point():
                raise InputError(f"{self.path}: {key!r} is no dense tensor of numbers; nothing was imported")
            if value.ndim == own[name].ndim + 2 and value.shape[-2:] == (1, 1):
                value = value[..., 0, 0]
            if value.shape != own[name].shape:
                raise InputError(f"{self.path}: {key!r} has the shape {tuple(value.shape)}, the {part} takes "
                                 f"{tuple(own[name].shape)}; nothing was imported")
            found[name] = value.to(torch.float32)
        missing = [name for name in own if name not in found]
        if missing:
            raise InputError(f"{self.path} lacks {len(missing)} tensors of the {part}, the first is {missing[0]!r}; "
                             "nothing was imported")
        module.load_state_dict(found)
        self.taken += keys

    def close(self) -> None:
        """Raise InputError unless every key was taken or left out."""
        rest = self._open()
        if rest:
            raise InputError(f"{self.path} holds {len(rest)} tensors that nothing is known of, the first is "
                             f"{rest[0]!r}; nothing was imported")

    def lines(self) -> list[str]:
        """A summary of the taken and left-out entries, in words."""
        counts = Counter(self.left_out.values())
        return [f"{len(self.taken)} tensors taken",
                *(f"{count} entries left out: {reason}" for reason, count in sorted(counts.items()))]

    def _open(self) -> list[str]:
        """Keys of which nothing was said yet."""
        said = self.left_out.keys() | set(self.taken)
        return [key for key in self.state if key not in said]


_MOST_BYTES = 1_000_000  # of a configuration


def read_json(path: Path, first_line: bool = False) -> dict[str, Any]:
    """A file with one JSON object, or whose first line is one. Raises InputError where it is none."""
    try:
        with open(path, "rb") as file:
            raw = file.readline(_MOST_BYTES + 1) if first_line else file.read(_MOST_BYTES + 1)
        if len(raw) > _MOST_BYTES:
            raise InputError(f"{path} is longer than a configuration can be; nothing was imported")
        content = json.loads(raw)
    except FileNotFoundError:
        raise InputError(f"{path} is missing; nothing was imported") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} can't be read as JSON ({str(error).splitlines()[0]}); nothing was imported"
                         ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object; nothing was imported")
    return content


@dataclass(frozen=True)
class NamedParts:
    """Finds the parts that the configuration ``path`` names.

    content: the configuration. folders: where parts may lie, first the checkpoint's own. instead: {key: name} that a
    user gives in place of the configuration's. A part is looked for under its name and, since authors keep
    theirs elsewhere, under the last part of its name; never at an absolute path or through "..".
    """

    path: Path
    content: Mapping[str, Any]
    folders: Sequence[Path]
    instead: Mapping[str, str] = field(default_factory=dict)

    def find(self, key: str, default: str | None = None) -> Path:
        """⇒ where the part that ``key`` names lies. Raises InputError where it names none, or it lies nowhere."""
        name = self.instead.get(key, self.content.get(key) or default)
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{self.path} names no {key}, and it is not guessed; say it with --set {key}=NAME. "
                             "Nothing was imported")
        parts = PurePosixPath(name.replace("\\", "/")).parts
        absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or name.startswith("\\")
        if absolute or ".." in parts or "\0" in name or not parts:
            raise InputError(f"{self.path} names {key} {name!r}, a path that leaves the checkpoint's folder; it is not "
                             f"followed. Put the part into a folder, and say --set {key}=NAME --parts FOLDER. Nothing "
                             "was imported")
        for folder in self.folders:
            for place in (folder.joinpath(*parts), folder / parts[-1]):
                if os.path.exists(place):  # False too for names that no disk can hold
                    return place
        raise InputError(f"{self.path} names {key} {name!r}, which lies in none of {', '.join(map(str, self.folders))};"
                         f" put it there as {parts[-1]}, or name another folder with --parts. Nothing was imported")

    def schedule_offset(self, key: str) -> int:
        """The scheduler's ``steps_offset``. Raises InputError unless it is the schedule that this project samples with.

        The UNet's target (noise or v) is stated only there, so a model without it is not imported.
        """
        place = self.find(key)
        folders = [place / "scheduler", place] if place.is_dir() else []
        path = next((f / "scheduler_config.json" for f in folders if (f / "scheduler_config.json").is_file()), place)
        if path.is_dir():
            raise InputError(f"{place} has no scheduler_config.json, which says what the UNet predicts; it is not "
                             "guessed, and nothing was imported")
        content = read_json(path)
        for name, value in {**SCHEDULE, "prediction_type": "v_prediction", "clip_sample": False}.items():
            if content.get(name) != value:
                raise InputError(f"{path}: {name} is {content.get(name)!r}, this project samples with {value!r}; "
                                 "nothing was imported")
        offset = content.get("steps_offset", 0)
        if offset not in (0, 1) or content.get("trained_betas") is not None:
            raise InputError(f"{path}: steps_offset is {offset!r}, or it has betas of its own; nothing was imported")
        return int(offset)

    def unet_config(self, key: str) -> dict[str, Any]:
        """The arguments of the UNet. Raises InputError where they are another kind of UNet's."""
        import inspect

        from diffusers import UNet2DConditionModel

        path = self.find(key)
        config = {k: v for k, v in read_json(path).items() if not k.startswith("_")}
        known = inspect.signature(UNet2DConditionModel.__init__).parameters
        unknown = [name for name in config if name not in known]
        if unknown or config.pop("in_channels", None) != config.get("out_channels"):
            raise InputError(f"{path} is no configuration of the UNet ({unknown[0] if unknown else 'in_channels'} does "
                             "not fit); nothing was imported")
        return config


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
