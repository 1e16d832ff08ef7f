"""A trained model on disk: ``model.yaml`` (recipes of its parts) and one safetensors file per part (weights).

A model folder is data. Its yaml is read by ``yaml.safe_load``, may name only the classes of
:data:`~vta_sam.checkpoints.parts.MODEL_PARTS` and trusted classes, and nothing in it is run. README.md
beside them is the model card, with licence, data, training and figures.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import yaml
from torch import nn

from ..clip import ClipSpec, MelSpec
from ..runtime.errors import InputError
from ..runtime.files import atomic_path, temporary_beside, write_text
from .parts import TARGET, build, canonical, class_name, is_loadable
from .parts import trust as trust  # noqa: F401

FORMAT_VERSION = 2
_READABLE_VERSIONS = (1, 2)  # 1 says unet for denoiser, and no objective
YAML_NAME = "model.yaml"
_FORMER_PARTS = {"denoiser": "unet"}  # part ⇒ what folders written before call it


@dataclass
class ModelRecipe:
    """The content of model.yaml. Recipes are nested {"_target_": name, argument: value}; building adds the ClipSpec.

    Attributes:
        clip: time base, arguments of ClipSpec.
        codec: with it alone the folder is a VAE.
        condition_encoder: with it alone the folder is a result of stage ``condition``.
        pretrained: {part: recipe of its conditioner}; with it alone the folder is a result of another stage.
        latent_scale: 1 / std of latents.
        denoiser, conditioner: the diffusion model, with the codec.
        objective: recipe of the objective; None: v prediction on the standard schedule.
        sync: with it alone the folder is a sync network, which measures.
        sampler, vocoder, grounder, encoder: defaults of generation.
        features: fingerprints and dimensions of the features that the model was trained on.
        about: experiment, steps, figures, code version.
    """

    clip: dict[str, Any]
    codec: dict[str, Any] | None = None
    condition_encoder: dict[str, Any] | None = None
    pretrained: dict[str, dict[str, Any]] | None = None
    latent_scale: float = 1.0
    denoiser: dict[str, Any] | None = None
    conditioner: dict[str, Any] | None = None
    objective: dict[str, Any] | None = None
    sampler: dict[str, Any] | None = None
    vocoder: dict[str, Any] | None = None
    grounder: dict[str, Any] | None = None
    encoder: dict[str, Any] | None = None
    features: dict[str, Any] = field(default_factory=dict)
    sync: dict[str, Any] | None = None
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def spec(self) -> ClipSpec:
        return ClipSpec(**self.clip)

    def build(self, part: str, **arguments) -> Any:
        """Instantiate one part from its recipe. Raises InputError when its class is not in the table."""
        recipe = getattr(self, part)
        if recipe is None:
            raise InputError(f"this model folder has no {part}; a finished diffusion model has: train stage 3 first")
        refuse_foreign(recipe, part)
        return build(recipe, **arguments)


def refuse_foreign(recipe: Any, where: str) -> None:
    """Raise InputError where a recipe names a class outside the table, or asks Hydra for anything but a class."""
    if isinstance(recipe, str) and "${" in recipe:  # ${oc.create:…} would make a recipe that is not checked here
        raise InputError(f"{where} is {recipe!r}; a model folder holds values, no ${{…}} to be filled in; not loaded")
    if isinstance(recipe, dict):
        for key, value in recipe.items():
            if key == TARGET and not is_loadable(value):
                raise InputError(f"{where} names the class {value!r}, which is none of this project's; not loaded")
            if str(key).startswith("_") and key != TARGET:
                raise InputError(f"{where} has the key {key!r}, which a model folder may not use; not loaded")
            refuse_foreign(value, f"{where}.{key}")
    elif isinstance(recipe, (list, tuple)):
        for i, value in enumerate(recipe):
            refuse_foreign(value, f"{where}[{i}]")


def save_model(folder: Path, recipe: ModelRecipe, parts: dict[str, nn.Module]) -> None:
    """Write weights and the model card first and model.yaml last, so that a folder with a model.yaml is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / YAML_NAME).unlink(missing_ok=True)  # of a stage that was shorter
    for name, module in parts.items():
        state = {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
        with atomic_path(folder / f"{name}.safetensors") as temporary:
            safetensors.torch.save_file(state, temporary)
    content = {"format_version": FORMAT_VERSION, **canonical(asdict(recipe))}
    if recipe.sync is None:  # earlier releases refuse a folder with a key that they don't know
        del content["sync"]
    write_text(folder / CARD_NAME, model_card(content))
    write_text(folder / YAML_NAME, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def refuse_existing(out: Path) -> None:
    """Raise InputError where ``out`` is there already."""
    if out.exists():
        raise InputError(f"{out} exists; remove it or name another folder")


def write_model(out: Path, recipe: ModelRecipe, parts: dict[str, nn.Module],
                beside: Callable[[Path], None] = lambda folder: None) -> None:
    """Like :func:`save_model`, as a new folder that appears whole or not at all.

    beside: writes what else belongs into the folder. Raises InputError where ``out`` exists or can't be written.
    """
    refuse_existing(out)
    temporary = temporary_beside(out)
    try:
        temporary.mkdir(parents=True)
        beside(temporary)
        save_model(temporary, recipe, parts)
        os.rename(temporary, out)
    except OSError as error:
        raise InputError(f"{out} can't be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_content(folder: str | Path) -> dict[str, Any]:
    """The content of model.yaml, checked for its version alone. Raises InputError when it is missing or not ours."""
    path = Path(folder) / YAML_NAME
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder} is no model folder: it has no {YAML_NAME}; training writes one per stage, as "
                         "<run>/<stage>/model") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} can't be read: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict) or content.get("format_version") not in _READABLE_VERSIONS:
        raise InputError(f"{path} is not a model.yaml of format version "
                         f"{' or '.join(map(str, _READABLE_VERSIONS))}")
    content.pop("format_version")
    for part, former in _FORMER_PARTS.items():
        if former in content and part not in content:
            content[part] = content.pop(former)
    return content


def read_recipe(folder: str | Path) -> ModelRecipe:
    """model.yaml ⇒ ModelRecipe, its parts by their short names. Raises InputError when it is missing, not ours, or
    names a foreign class."""
    path, content = Path(folder) / YAML_NAME, read_content(folder)
    unknown = set(content) - set(ModelRecipe.__dataclass_fields__)
    if unknown or not isinstance(content.get("clip"), dict):
        raise InputError(f"{path} has unknown keys {sorted(unknown)} or lacks clip; it is not a model.yaml of ours")
    refuse_foreign(content, str(path))
    try:
        ClipSpec(**content["clip"])
    except (TypeError, InputError) as error:
        raise InputError(f"{path}: its clip can't be used: {error}") from error
    return ModelRecipe(**canonical(content))


def weights_file(folder: str | Path, part: str) -> Path:
    """Where a part's weights lie, or would lie; there may be no such file."""
    path = Path(folder) / f"{part}.safetensors"
    former = Path(folder) / f"{_FORMER_PARTS.get(part, part)}.safetensors"
    return former if former.exists() and not path.exists() else path


@contextmanager
def uninitialised() -> Iterator[None]:
    """A context in which new layers draw no weights, since :func:`load_weights` is about to assign them."""
    functions = {name: function for name, function in vars(torch.nn.init).items()
                 if name.endswith("_") and not name.startswith("_") and callable(function)}
    for name in functions:
        setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)
    try:
        yield
    finally:
        for name, function in functions.items():
            setattr(torch.nn.init, name, function)


def load_weights(module: nn.Module, folder: str | Path, part: str, device: torch.device | None = None) -> nn.Module:
    """Fill a built part from its file; every key must match.

    Args:
        module: the part.
        folder: the model folder.
        part: its name.
        device: the file's tensors become the module's own, on this device, so that weights are in memory once. Nothing
            else may hold the module's former parameters. None: they are copied into the module's.

    Raises:
        InputError: names the file and what differs.
    """
    path = weights_file(folder, part)
    try:
        state = safetensors.torch.load_file(path, device=str(device or "cpu"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing; the model folder is not whole") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} can't be read ({error}); copy the model folder again") from error
    own = module.state_dict()
    wrong = sorted(set(own) ^ set(state)) + [k for k in own if k in state and own[k].shape != state[k].shape]
    if wrong:
        raise InputError(f"{path} doesn't fit the {part} that {YAML_NAME} describes: {len(wrong)} keys differ, "
                         f"the first is {wrong[0]!r}")
    if device is None:
        module.load_state_dict(state)
        return module
    # on a processor the tensors lie in the file, which may change, and as the file has them, not aligned
    module.load_state_dict({key: tensor.to(own[key].dtype, copy=device.type == "cpu") for key, tensor in state.items()},
                           assign=True)
    return module


FIGURE_COLUMNS = ("figure", "score", "control", "ceiling")
CARD_NAME = "README.md"
_UNSAID = "No licence was stated. Say one here before you publish the weights."


def model_card(content: dict[str, Any], figures: Sequence[Sequence[str]] = (), measured: str = "") -> str:
    """The content of model.yaml ⇒ Markdown with licence, data, training and figures.

    figures: rows of the table of figures, in :data:`FIGURE_COLUMNS`; measured: on what.
    """
    about, clip = content.get("about") or {}, content["clip"]
    rate = f"{MelSpec(**(clip.get('mel') or {})).sample_rate_hz / 1000:g} kHz"
    kind = class_name((content.get("conditioner") or {}).get(TARGET, "")).removesuffix("Conditioner")
    name = about.get("source") or about.get("experiment") or (kind and f"{kind}, trained with VTA-SAM's framework")
    name = name or ("A sync network, which measures" if content.get("sync") else
                    "A part of a model of VTA-SAM's framework")
    known = ("codec", "condition_encoder", "denoiser", "conditioner", "vocoder", "sync")
    parts = [part for part in known if content.get(part)]
    lines = ["---", "library_name: vta-sam", "tags: [video-to-audio]", "---", "", f"# {name}", "",
             f"Clips of {clip['duration_s']:g} s, {clip['fps']:g} pictures a second, sound of {rate}. "
             f"Parts: {', '.join(parts) or 'one stage before the diffusion'}.", "", "## Licence", "",
             *_licences(about), "", "## Data and training", ""]
    facts = {key: value for key, value in about.items() if key not in ("licence", "starts", "held_out")}
    figures, measured = (figures, measured) if figures else _held_out(about.get("held_out") or {})
    lines += [f"- {key.replace('_', ' ')}: {value}" for key, value in facts.items()] or ["Nothing was recorded."]
    lines += ["", "## Figures", ""]
    if figures:
        rows = (FIGURE_COLUMNS, ["---"] * len(FIGURE_COLUMNS), *figures)
        padded = ([*row, *[""] * (len(FIGURE_COLUMNS) - len(row))] for row in rows)
        lines += [f"{measured}.", "", *(f"| {' | '.join(cell.strip() for cell in row)} |" for row in padded)]
    else:
        lines += ["None were measured with these weights."]
    if content.get("denoiser"):
        lines += ["", "## Use", "", "```python", "import vta_sam", "",
                  'pipeline = vta_sam.load("this/folder").to("cpu")',
                  f'sound = pipeline.generate(video="in.mp4", caption="a dog barks")  # .waveform, {rate}', "```"]
    return "\n".join(lines) + "\n"


def _held_out(found: dict[str, Any]) -> tuple[list[tuple[str, str]], str]:
    """Shares on held-out clips, as a stage wrote them ⇒ rows of a card's table, and what they were measured on."""
    rows = [(name.replace("_", " "), f"{figure['share']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}], "
             f"n = {figure['n']}") for name, figure in found.items() if isinstance(figure, dict) and figure["n"]]
    return rows, f"{found.get('clips')} held-out clips, split {found.get('split')}; share [95 % interval]"


def _licences(about: dict[str, Any]) -> list[str]:
    starts = about.get("starts") or {}
    own = [about["licence"]] if about.get("licence") else [] if starts else [_UNSAID]
    inherited = [f"- {part}, that training began with: {licence}" for part, licence in starts.items()]
    return [*own, *inherited] + (["", _UNSAID] if starts and not own else [])
