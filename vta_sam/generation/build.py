"""Which model folder generates, what identifies it, and its parts, built."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MethodType
from typing import Any, Literal

import torch
from diffusers import ModelMixin
from torch import Tensor, nn
from torch.nn import functional

from ..checkpoints.model_folder import (
    YAML_NAME, ModelRecipe, load_weights, read_content, uninitialised, weights_file
)
from ..checkpoints.parts import differing_settings, settings_of
from ..clip import ClipSpec
from ..dataset.shards.schema import DatasetInfo
from ..diffusion.condition import Conditioner, Denoiser, connect
from ..diffusion.objective import Objective, VPrediction
from ..diffusion.sampler import BaseSampler, Sampler
from ..perception.features import Extractors, build_features
from ..runtime.errors import InputError
from ..vae.codec import Codec
from ..vocoder import GriffinLim


def newest_model(runs: Path = Path("runs")) -> Path:
    """The diffusion model under ``runs`` that was written last: ``<run>/model`` or ``<run>/<stage>/model``; a VAE or a
    condition encoder alone is none. Raises InputError when there is none."""
    folders = [path.parent for depth in ("*", "*/*") for path in runs.glob(f"{depth}/model/{YAML_NAME}")]
    found = [folder for folder in folders if weights_file(folder, "denoiser").exists()]
    if not found:
        raise InputError(f"there is no trained model under {runs}/; train one with experiments/train.py +exp=vta_sam, "
                         "name a model folder with model=, or say model=vta_ldm for a released one")
    return max(found, key=lambda folder: (folder / YAML_NAME).stat().st_mtime)


def identify(folder: Path, parts: Sequence[str] | None = None) -> dict[str, str]:
    """⇒ {"path": as given, "hash": 12 hex digits that change with the yaml or any weight}.

    Args:
        folder: of the model.
        parts: whose recipes and weights alone are read and count; None: everything does.
    """
    digest = hashlib.sha256()
    files = [folder / YAML_NAME, *sorted(folder.glob("*.safetensors"))]
    if parts is not None:
        content = read_content(folder)
        digest.update(json.dumps([content.get(key) for key in ("clip", *parts)], sort_keys=True).encode())
        files = [path for part in parts if (path := weights_file(folder, part)).exists()]
    try:
        for path in files:
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise InputError(f"{error.filename} can't be read ({error.strerror}); copy the model folder again") from error
    return {"path": str(folder), "hash": digest.hexdigest()[:12]}


Precision = Literal["fp32", "bf16"]


def inference_precision(wanted: str, device: torch.device, recipe: ModelRecipe) -> Precision:
    """The number format in which a model's networks compute.

    Args:
        wanted: "fp32", "bf16", or "auto": bf16 on a GPU, but for released models, which computed in fp32 when they were
            published; fp32 on a processor.
        device: of the networks.
        recipe: of the model.

    Raises:
        InputError: another name.
    """
    if wanted == "auto":
        return "bf16" if device.type == "cuda" and not recipe.about.get("source") else "fp32"
    if wanted not in ("fp32", "bf16"):
        raise InputError(f"precision={wanted}: auto, fp32 or bf16")
    return "bf16" if wanted == "bf16" else "fp32"


def prepare_layers(module: nn.Module, device: torch.device) -> None:
    """Have layers compute under autocast as is right on a processor, and fast on a GPU; without autocast they compute
    what they did.

    On a processor convolutions with a stride stay in fp32. In bf16 with AMX, oneDNN reads beyond the input of one whose
    output is one column wide: outputs and the kernel's gradient then hold whatever was in memory, NaN or worse (torch
    2.14.1, Sapphire Rapids). A UNet's downsampling of the last two frequency rows is one.

    On a GPU the norms of diffusers' networks read and write autocast's number format. Autocast would have them in fp32,
    with a copy before and after each. Their kernels sum in fp32 either way.

    Args:
        module: changed in place; on a processor its strided convolutions in bf16 get fp32 kernels back.
        device: where it computes.
    """
    if device.type == "cpu":
        for layer in module.modules():
            if isinstance(layer, (nn.Conv1d, nn.Conv2d)) and max(layer.stride) > 1:
                for weight in layer.parameters(recurse=False):  # a parametrised kernel is none, and computed when asked
                    weight.data = weight.data.float()
                layer.forward = MethodType(_in_fp32, layer)  # type: ignore[method-assign]
    elif device.type == "cuda":
        networks = [part for part in module.modules() if isinstance(part, ModelMixin)]
        for layer in (layer for network in networks for layer in network.modules()):
            if isinstance(layer, (nn.GroupNorm, nn.LayerNorm)):
                layer.forward = MethodType(_in_its_format, layer)  # type: ignore[method-assign]


def _in_fp32(layer: Any, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return type(layer).forward(layer, x.float())


def _in_its_format(norm: nn.GroupNorm | nn.LayerNorm, x: Tensor) -> Tensor:
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return type(norm).forward(norm, x)  # type: ignore[arg-type]
    number_format = torch.get_autocast_dtype(kind)
    weight, bias = (None if each is None else each.to(number_format) for each in (norm.weight, norm.bias))
    with torch.autocast(kind, enabled=False):
        if isinstance(norm, nn.GroupNorm):
            return functional.group_norm(x.to(number_format), norm.num_groups, weight, bias, norm.eps)
        return functional.layer_norm(x.to(number_format), norm.normalized_shape, weight, bias, norm.eps)


def load_extractors(recipe: ModelRecipe, folder: Path) -> Extractors:
    """Build the recipe's grounder, encoder and extractors of further features.

    Raises:
        InputError: they differ from training's in their fingerprints or, where known, their settings.
    """
    own = (recipe.encoder or {}).get("folder")
    inside = {} if own is None else {"folder": str(_inside(folder, own))}
    further = recipe.features.get("further", {})
    extractors = Extractors(recipe.build("grounder"), recipe.build("encoder", **inside),
                            features=build_features(_recipes_of(further, folder)))
    trained = recipe.features | {name: row.get("fingerprint") for name, row in further.items()}
    for role, part in extractors.by_role.items():
        if trained.get(role) is not None and part.fingerprint != trained[role]:
            raise InputError(f"the model in {folder} was trained on features of the {role} {trained[role]!r}, but "
                             f"{part.fingerprint!r} is installed; install that one, or train again on new features")
    if "settings" in recipe.features:
        wrong = differing_settings(recipe.features["settings"], settings_of(extractors.by_role))
        if wrong:
            raise InputError(f"the model in {folder} was trained on other features than its {YAML_NAME} makes: "
                             f"{'; '.join(wrong)}; mend {YAML_NAME}")
    return extractors


def require_same_features(trained_on: Mapping[str, Any], spec: ClipSpec, where: str, info: DatasetInfo) -> None:
    """Compare a dataset with what a model was trained on, as far as both say it.

    Args:
        trained_on: features of the model, as its model.yaml has them.
        spec: of the model.
        where: the dataset, for the message.
        info: its dataset.json.

    Raises:
        InputError: rates, dimensions, fingerprints or settings of the extractors differ.
    """
    names = ("grounder", "encoder", "frame_dim", "object_dim", "caption_dim")
    known = {name: trained_on[name] for name in names if name in trained_on}
    info.require(where, fps=spec.fps, sample_rate_hz=spec.sample_rate_hz, **known)
    further = {name: row.get("fingerprint") for name, row in trained_on.get("further", {}).items()}
    wrong = [f"{name} is {info.features.get(name)!r}, in training it was {fingerprint!r}"
             for name, fingerprint in further.items() if info.features.get(name) != fingerprint]
    if info.known_settings is not None and "settings" in trained_on:
        wrong += differing_settings(trained_on["settings"], info.known_settings)
    if wrong:
        raise InputError(f"{where}: {'; '.join(wrong)}. Extract again with the settings of training")


def notes_on_nouns(trained_on: Mapping[str, Any], found: Mapping[str, Any], remedy: str) -> list[str]:
    """A sentence for the user where captions give objects by other rules than in training; none where they are the
    same, or not known.

    Args:
        trained_on: features of the model, as its model.yaml has them.
        found: {"tagger": name, "rules": version}.
        remedy: what the user may do.
    """
    if not (trained_on.get("nouns") and found):
        return []
    wrong = differing_settings({"nouns": trained_on["nouns"]}, {"nouns": found})
    return [f"{'; '.join(wrong)}: captions may give other objects than in training; {remedy}"] if wrong else []


def _recipes_of(further: Any, folder: Path) -> dict[str, Any]:
    """{name of a further feature: recipe}, as model.yaml has them. Raises InputError where one is missing."""
    rows = further.values() if isinstance(further, dict) else [None]
    if not all(isinstance(row, dict) and row.get("recipe") for row in rows):
        raise InputError(f"{folder / YAML_NAME}: features.further is {further!r}, expected {{name: {{fingerprint: …, "
                         "recipe: …}}}; without a recipe videos can't be read")
    return {name: row["recipe"] for name, row in further.items()}


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
        if part in ("denoiser", "conditioner"):
            # the time base is handed over afterwards: Hydra would turn it into a dict on the way
            return recipe.build(part, _partial_=True)(spec=recipe.spec)
        return recipe.build(part)
    except (InstantiationException, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        raise InputError(f"{folder / YAML_NAME} describes a {part} that can't be built: {reason}") from error


def load_networks(recipe: ModelRecipe, folder: Path, device: torch.device, precision: Precision = "fp32",
                  ) -> tuple[Codec, Denoiser, Conditioner]:
    """The recipe's codec, denoiser and conditioner with their weights, which need no gradient.

    Args:
        recipe: of the model.
        folder: its own.
        device: of the weights.
        precision: bf16: matrices and kernels are kept in bf16, for use under autocast, which would else cast them anew
            at every step. What is small and delicate stays in fp32: norms, biases, tables.
    """
    codec = load_codec(recipe, folder, device, precision)
    with uninitialised():
        denoiser, conditioner = build_denoiser(recipe, folder)
    for part, module in (("denoiser", denoiser), ("conditioner", conditioner)):
        _fill(module, part, folder, device, precision)
    return codec, denoiser, conditioner


def load_codec(recipe: ModelRecipe, folder: Path, device: torch.device, precision: Precision = "fp32") -> Codec:
    """The recipe's codec alone; arguments as of :func:`load_networks`."""
    with uninitialised():
        codec: Codec = build_part(recipe, "codec", folder)
    _fill(codec, "codec", folder, device, precision)
    return codec


def _fill(module: nn.Module, part: str, folder: Path, device: torch.device, precision: Precision) -> None:
    load_weights(module, folder, part, device).requires_grad_(False)
    for layer in module.modules() if precision == "bf16" else ():
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            layer.weight.data = layer.weight.data.bfloat16()
    if precision == "bf16":
        prepare_layers(module, device)


def load_vocoder(recipe: ModelRecipe, folder: Path) -> Any:
    """The recipe's vocoder with its weights, where it has any; Griffin-Lim where the recipe names none."""
    with uninitialised():
        vocoder = build_part(recipe, "vocoder", folder) if recipe.vocoder else GriffinLim(mel=recipe.spec.mel)
    if isinstance(vocoder, nn.Module):
        if vocoder.state_dict():
            load_weights(vocoder, folder, "vocoder", torch.device("cpu"))
        vocoder.requires_grad_(False).eval()
    return vocoder


def build_denoiser(recipe: ModelRecipe, folder: Path) -> tuple[Denoiser, Conditioner]:
    """The denoiser as its conditioner adapts it, and the conditioner, both without their weights."""
    denoiser, conditioner = build_part(recipe, "denoiser", folder), build_part(recipe, "conditioner", folder)
    connect(denoiser, conditioner)
    return denoiser, conditioner


def build_sampler(recipe: ModelRecipe, folder: Path) -> BaseSampler:
    """The recipe's sampler with its defaults; DPM-Solver++ where it says nothing."""
    return build_part(recipe, "sampler", folder) if recipe.sampler else Sampler()


def build_objective(recipe: ModelRecipe, folder: Path) -> Objective:
    """The recipe's objective; without one, v prediction on the standard schedule."""
    return build_part(recipe, "objective", folder) if recipe.objective else VPrediction()
