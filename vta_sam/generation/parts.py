"""The parts that a model folder describes, built, with a sentence where one can't be."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from torch import nn

from ..conditioners.base import Conditioner
from ..diffusion.unet import LatentUNet
from ..errors import InputError
from ..features import Extractors
from ..model_folder import YAML_NAME, ModelRecipe, load_weights
from ..vocoder import GriffinLim


def load_extractors(recipe: ModelRecipe, folder: Path) -> Extractors:
    """Build the recipe's grounder and encoder. Raises InputError unless they are the very ones of training."""
    own = (recipe.encoder or {}).get("folder")
    inside = {} if own is None else {"folder": str(_inside(folder, own))}
    extractors = Extractors(recipe.build("grounder"), recipe.build("encoder", **inside))
    for role, part in (("grounder", extractors.grounder), ("encoder", extractors.encoder)):
        trained = recipe.features.get(role)
        if trained is not None and part.fingerprint != trained:
            raise InputError(f"the model in {folder} was trained on features of the {role} {trained!r}, but "
                             f"{part.fingerprint!r} is installed; install that one, or train again on new features")
    return extractors


def _inside(folder: Path, name: Any) -> Path:
    """A folder of the model folder's own. Raises InputError where the name leads out of it."""
    if not isinstance(name, str) or not name or "/" in name or "\\" in name or name in (".", ".."):
        raise InputError(f"{folder / YAML_NAME} names the folder {name!r}, which is none of its own; not loaded")
    return folder / name


def copy_inside(folder: Path, name: Any, new: Path) -> None:
    """Copy a folder of the model folder's own into another model folder. Errors: as in loading."""
    shutil.copytree(_inside(folder, name), new / str(name))


def build_part(recipe: ModelRecipe, part: str, folder: Path) -> Any:
    """One part of a recipe, without its weights. Raises InputError where its arguments don't fit its class."""
    from hydra.errors import InstantiationException

    try:
        if part in ("unet", "conditioner"):
            # the time base is handed over afterwards: Hydra would turn it into a dict on the way
            return recipe.build(part, _partial_=True)(spec=recipe.spec)
        return recipe.build(part)
    except (InstantiationException, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        raise InputError(f"{folder / YAML_NAME} describes a {part} that can't be built: {reason}") from error


def load_vocoder(recipe: ModelRecipe, folder: Path) -> Any:
    """The recipe's vocoder with its weights, where it has any; Griffin-Lim where the recipe names none."""
    vocoder = build_part(recipe, "vocoder", folder) if recipe.vocoder else GriffinLim()
    if isinstance(vocoder, nn.Module):
        if vocoder.state_dict():
            load_weights(vocoder, folder, "vocoder")
        vocoder.requires_grad_(False).eval()
    return vocoder


def build_denoiser(recipe: ModelRecipe, folder: Path) -> tuple[LatentUNet, Conditioner]:
    """The UNet as its conditioner changes it, and the conditioner, both without their weights."""
    unet, conditioner = build_part(recipe, "unet", folder), build_part(recipe, "conditioner", folder)
    conditioner.adapt(unet)
    return unet, conditioner
