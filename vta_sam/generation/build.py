"""Which model folder generates, and what identifies it in a record of what was generated."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from ..checkpoints.model_folder import YAML_NAME, ModelRecipe, load_weights
from ..diffusion.condition import Conditioner
from ..diffusion.unet import LatentUNet
from ..perception.features import Extractors
from ..runtime.errors import InputError
from ..vocoder import GriffinLim

# MERGED-DOC """The parts that a model folder describes, built, with a sentence where one can't be."""


def newest_model(runs: Path = Path("runs")) -> Path:
    """The diffusion model under ``runs`` that was written last: ``<run>/model`` or ``<run>/<stage>/model``; a VAE or a
    condition encoder alone is none. Raises InputError when there is none."""
    folders = [path.parent for depth in ("*", "*/*") for path in runs.glob(f"{depth}/model/{YAML_NAME}")]
    found = [folder for folder in folders if (folder / "unet.safetensors").exists()]
    if not found:
        raise InputError(f"there is no trained model under {runs}/; train one with experiments/train.py +exp=vta_sam, "
                         "name a model folder with model=, or say model=vta_ldm for a released one")
    return max(found, key=lambda folder: (folder / YAML_NAME).stat().st_mtime)


def identify(folder: Path) -> dict[str, str]:
    """⇒ {"path": as given, "hash": 12 hex digits that change with the yaml or any weight}."""
    digest = hashlib.sha256()
    try:
        for path in (folder / YAML_NAME, *sorted(folder.glob("*.safetensors"))):
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise InputError(f"{error.filename} can't be read ({error.strerror}); copy the model folder again") from error
    return {"path": str(folder), "hash": digest.hexdigest()[:12]}


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
