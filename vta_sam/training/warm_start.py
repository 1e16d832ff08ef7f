"""Starting stage 3 from another model: what of its weights is taken, what is fitted to new inputs, and what is new."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.model_folder import ModelRecipe, load_weights, read_recipe
from ..checkpoints.parts import short_name
from ..conditioners.vta_sam import VTASAMConditioner
from ..diffusion.condition import Conditioner
from ..diffusion.unet import LatentUNet
from ..generation.build import build_denoiser
from ..runtime.errors import InputError

_CONV_IN = "unet.conv_in.weight"


@dataclass
class Start:
    """A model folder to start from. taken, resized, new: names of weights, once :meth:`fill` has run."""

    folder: Path
    taken: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.recipe: ModelRecipe = read_recipe(self.folder)
        if self.recipe.unet is None or self.recipe.conditioner is None:
            raise InputError(f"init={self.folder} has no UNet; name the model folder of a finished stage 3, or of a "
                             "released model")

    def is_of(self, conditioner: dict[str, Any]) -> bool:
        """Has the source a conditioner of this recipe's kind?"""
        source = self.recipe.conditioner
        return bool(source and source["_target_"] == short_name(conditioner["_target_"]))

    def conditioner_recipe(self, recipe: dict[str, Any]) -> dict[str, Any]:
        """The recipe of the conditioner to train, changed where it takes over how the source saw frames.

        VTA-SAM from VTA-LDM carries VTA-LDM's projection of frames. Raises InputError where frames are of another
        width.
        """
        source: Any = self.recipe.conditioner
        if self.is_of(recipe) and source.get("carried"):  # a model that was itself started from VTA-LDM
            return {**recipe, "carried": source["carried"]}
        if (source["_target_"], short_name(recipe["_target_"])) != ("vta_ldm", "vta_sam"):
            return recipe
        width, found = source["encoder"]["frame_dim"], recipe["encoder"]["frame_dim"]
        if width != found:
            raise InputError(f"init={self.folder} reads frame embeddings of width {width}, these shards hold {found}; "
                             "extract with the encoder that it was trained with")
        return {**recipe, "carried": {**source["encoder"], "frozen": False}}

    @torch.no_grad()
    def fill(self, unet: LatentUNet, conditioner: Conditioner) -> None:
        """Fill both with the source's weights, so that given the source's tokens they compute what it computes.

        A conditioner of the source's own kind takes all that the source has; another one is new, but for what
        :meth:`conditioner_recipe` carries. Raises InputError where the UNets differ in more than what lies beside the
        latent, or something of a conditioner of the same kind has no place.
        """
        source_unet, source = build_denoiser(self.recipe, self.folder)
        load_weights(source_unet, self.folder, "unet")
        load_weights(source, self.folder, "conditioner")
        self._fill_unet(unet, source_unet)
        if type(conditioner) is type(source):
            self._take(conditioner, source.state_dict(), "conditioner", "conditioner.")
        elif isinstance(conditioner, VTASAMConditioner) and conditioner.carried is not None:
            self._carry(conditioner, source)
        else:
            self.new += [f"conditioner.{name}" for name in conditioner.state_dict()]

    def lines(self) -> list[str]:
        """What became of the weights, for a person."""
        parts = sorted({".".join(name.split(".")[:2]) for name in self.new})
        return [f"init: {len(self.taken)} tensors taken from {self.folder}",
                f"  resized, with zeros for what is new in them: {', '.join(self.resized) or 'none'}",
                f"  new: {len(self.new)} tensors" + (f" ({', '.join(parts)})" if parts else "")]

    def _fill_unet(self, unet: LatentUNet, source: LatentUNet) -> None:
        given = source.state_dict()
        if not _same_input(unet, source) and unet.unet.conv_in.out_channels == source.unet.conv_in.out_channels:
            before, given[_CONV_IN] = given[_CONV_IN], _widened(unet, source)
            self.resized.append(f"{_CONV_IN} ({before.shape[1]} to {given[_CONV_IN].shape[1]} channels)")
        self._take(unet, given, "UNet", "")
        if self.resized:
            self.taken.remove(_CONV_IN)

    def _take(self, module: nn.Module, given: dict[str, Tensor], part: str, prefix: str) -> None:
        """All of ``given`` into a module that may have more. Raises InputError where something has no place."""
        own = module.state_dict()
        other = [name for name, value in given.items() if name not in own or own[name].shape != value.shape]
        if other:
            raise InputError(f"init={self.folder} has another {part} than is configured: {other[0]} does not fit; "
                             "choose the size= and the conditioner's settings that it has")
        module.load_state_dict({**own, **given})
        self.taken += [prefix + name for name in given]
        self.new += [prefix + name for name in own if name not in given]

    def _carry(self, conditioner: VTASAMConditioner, source: Any) -> None:
        """At step 0 tokens are the source's: its projection of frames, and nothing from what is new."""
        assert conditioner.carried is not None, "its recipe has the source's projection"
        conditioner.carried.load_state_dict(source.encoder.state_dict())
        conditioner.null_token.copy_(source.null_token)
        conditioner.position_gain.fill_(float(source.positions))
        nn.init.zeros_(conditioner.to_token.weight)
        nn.init.zeros_(conditioner.to_token.bias)
        taken = {f"carried.{name}" for name in conditioner.carried.state_dict()} | {"null_token"}
        self.taken += [f"conditioner.{name}" for name in sorted(taken)]
        self.new += [f"conditioner.{name}" for name in conditioner.state_dict() if name not in taken]


def _same_input(unet: LatentUNet, source: LatentUNet) -> bool:
    return (unet.map_channels, unet.coordinate_channels) == (source.map_channels, source.coordinate_channels)


def _widened(unet: LatentUNet, source: LatentUNet) -> Tensor:
    """The first layer's weight over [latent ; column map ; coordinates]: the source's where it has as many channels of
    a kind, zeros elsewhere."""
    weight, given = torch.zeros_like(unet.unet.conv_in.weight), source.unet.conv_in.weight
    at = its = 0
    for name in ("latent_channels", "map_channels", "coordinate_channels"):
        here, there = getattr(unet, name), getattr(source, name)
        if here == there:
            weight[:, at:at + here] = given[:, its:its + there]
        at, its = at + here, its + there
    return weight
