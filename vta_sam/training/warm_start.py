"""A warm start of stage diffusion from another model: weights that are taken, resized for new inputs, or new."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.model_folder import ModelRecipe, load_weights, read_recipe
from ..checkpoints.parts import class_of, short_name
from ..conditioners.vta_sam import VTASAMConditioner
from ..diffusion.condition import Conditioner, Denoiser
from ..diffusion.unet import LatentUNet, TimedCrossAttention
from ..generation.build import build_denoiser
from ..runtime.errors import InputError


@dataclass
class WarmStart:
    """A model folder to start from.

    Attributes:
        folder: of the model.
        taken, resized, new: names of weights, once :meth:`fill` has run.
    """

    folder: Path
    taken: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.recipe: ModelRecipe = read_recipe(self.folder)
        if self.recipe.denoiser is None or self.recipe.conditioner is None:
            raise InputError(f"init={self.folder} has no denoiser; name the model folder of a stage diffusion, "
                             "or of a released model")

    def is_of(self, conditioner: dict[str, Any]) -> bool:
        """Whether the source has a conditioner of this recipe's kind."""
        source = self.recipe.conditioner
        return bool(source and source["_target_"] == short_name(conditioner["_target_"]))

    def require_denoiser(self, recipe: dict[str, Any]) -> None:
        """Refuse, before training, a denoiser of another kind than the source's, unless its class says by a
        ``weights_of`` of its own what it takes of others.

        Args:
            recipe: of the denoiser to train.

        Raises:
            InputError: neither class is the other one's, and none of its weights would have a place.
        """
        kind, source = class_of(recipe["_target_"]), class_of(self.recipe.denoiser["_target_"])  # type: ignore[index]
        if kind.weights_of in (Denoiser.weights_of, LatentUNet.weights_of) and not (
                issubclass(kind, source) or issubclass(source, kind)):
            raise InputError(f"init={self.folder} has the denoiser {source.__name__}, and the one to train is a "
                             f"{kind.__name__}, in which its weights have no place; leave init= out, or take the "
                             "denoiser of that model: without denoiser= it is the size's UNet")

    def conditioner_recipe(self, recipe: dict[str, Any]) -> dict[str, Any]:
        """The recipe of the conditioner to train: VTA-SAM started from VTA-LDM carries VTA-LDM's projection of frames.

        Args:
            recipe: as configured.

        Raises:
            InputError: the source reads frame embeddings of another width.
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
    def fill(self, denoiser: Denoiser, conditioner: Conditioner) -> None:
        """Fill both with the source's weights, so that for the source's tokens they compute the same.

        A conditioner of the source's own kind takes all of the source's weights. Another one is new, but for the
        arguments of :meth:`conditioner_recipe`.

        Args:
            denoiser, conditioner: changed in place.

        Raises:
            InputError: the denoisers differ in more than the channels beside the latent, or a weight of a conditioner
                of the same kind has no place.
        """
        source_denoiser, source = build_denoiser(self.recipe, self.folder)
        load_weights(source_denoiser, self.folder, "denoiser")
        load_weights(source, self.folder, "conditioner")
        weights, resized = denoiser.weights_of(source_denoiser)
        self._take(denoiser, weights, "denoiser", "")
        self.resized += [f"{name} ({how})" for name, how in resized.items()]
        self.taken = [name for name in self.taken if name not in resized]
        for name, module in denoiser.named_modules():
            if isinstance(module, TimedCrossAttention) and f"{name}.position.weight" in self.new:
                nn.init.zeros_(module.position.weight)
        if type(conditioner) is type(source):
            self._take(conditioner, source.state_dict(), "conditioner", "conditioner.")
        elif isinstance(conditioner, VTASAMConditioner) and conditioner.carried is not None:
            self._carry(conditioner, source)
        else:
            self.new += [f"conditioner.{name}" for name in conditioner.state_dict()]

    def lines(self) -> list[str]:
        """A summary of :meth:`fill` as lines for the screen."""
        parts = sorted({".".join(name.split(".")[:2]) for name in self.new})
        return [f"init: {len(self.taken)} tensors taken from {self.folder}",
                f"  resized, with zeros for what is new in them: {', '.join(self.resized) or 'none'}",
                f"  new: {len(self.new)} tensors" + (f" ({', '.join(parts)})" if parts else "")]

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
        """At step 0 tokens are the source's: its projection of frames, and zeros from the new layers."""
        assert conditioner.carried is not None, "its recipe has the source's projection"
        conditioner.carried.load_state_dict(source.encoder.state_dict())
        conditioner.null_token.copy_(source.null_token)
        conditioner.position_gain.fill_(float(source.positions))
        nn.init.zeros_(conditioner.to_token.weight)
        nn.init.zeros_(conditioner.to_token.bias)
        taken = {f"carried.{name}" for name in conditioner.carried.state_dict()} | {"null_token"}
        self.taken += [f"conditioner.{name}" for name in sorted(taken)]
        self.new += [f"conditioner.{name}" for name in conditioner.state_dict() if name not in taken]
