"""What Tango's and VTA-LDM's model folders have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..conditioners.base import Conditioner
from ..diffusion.unet import LatentUNet
from ..model_folder import ModelRecipe, write_model
from .back_end import BackEnd


@dataclass(frozen=True)
class WholeModel:
    """An imported diffusion model, ready to be written.

    source, file, licence: for model.yaml and the model card. fps: pictures a second. steps_offset: of the scheduler.
    encoder: recipe; features: dimensions of what the model reads.
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
            unet=self.unet_recipe, conditioner=self.conditioner_recipe, vocoder=self.back_end.vocoder_recipe,
            sampler={"_target_": "diffusion_sampler", "solver": "ddpm", "steps": 200, "guidance": 3.0,
                     "steps_offset": self.steps_offset},
            grounder={"_target_": "no_grounder"}, encoder=self.encoder,
            features={"fps": self.fps, **self.features},
            about={"source": self.source, "file": self.file, "licence": self.licence, "code_version": __version__},
        )

    def write(self, out: Path, beside: Callable[[Path, ModelRecipe], None]) -> None:
        """As a new model folder. beside: writes the encoder into it, and may complete the recipe."""
        recipe = self.recipe()
        parts = {"codec": self.back_end.codec, "vocoder": self.back_end.vocoder, "unet": self.unet,
                 "conditioner": self.conditioner}
        write_model(out, recipe, parts, lambda folder: beside(folder, recipe))
