"""The names of parts: what ``_target_`` says in a config, in a run's folder and in a model folder ⇒ a class.

A file on disk says ``_target_: grounded_sam``, so that the class may move without any trained model noticing. A dotted
path is understood too: of this project, today's or a former one, or of anybody's own class.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ..runtime.errors import InputError

TARGET = "_target_"
EXECUTION = ("weights", "device", "precision", "batch_frames")  # arguments of extractors that change no feature

# {short name: path of the class} of the parts that a model folder may name.
MODEL_PARTS: dict[str, str] = {
    "mel_codec": "vta_sam.vae.codec.MelCodec",
    "autoencoder_kl": "diffusers.AutoencoderKL",
    "latent_unet": "vta_sam.diffusion.unet.LatentUNet",
    "vta_sam": "vta_sam.conditioners.vta_sam.VTASAMConditioner",
    "temporal_semantic_encoder": "vta_sam.conditioners.vta_sam.TemporalSemanticEncoder",
    "vta_ldm": "vta_sam.conditioners.vta_ldm.VTALDMConditioner",
    "frame_projection": "vta_sam.conditioners.vta_ldm.FrameProjection",
    "tango": "vta_sam.conditioners.tango.TangoConditioner",
    "diff_foley": "vta_sam.conditioners.diff_foley.DiffFoleyConditioner",
    "aligned_frame_encoder": "vta_sam.conditioners.diff_foley.AlignedFrameEncoder",
    "foleycrafter": "vta_sam.conditioners.foleycrafter.FoleyCrafterConditioner",
    "onset_predictor": "vta_sam.conditioners.foleycrafter.OnsetPredictor",
    "v_prediction": "vta_sam.diffusion.objective.VPrediction",
    "epsilon_prediction": "vta_sam.diffusion.objective.EpsilonPrediction",
    "x0_prediction": "vta_sam.diffusion.objective.X0Prediction",
    "diffusion_sampler": "vta_sam.diffusion.sampler.Sampler",
    "griffin_lim": "vta_sam.vocoder.vocoders.GriffinLim",
    "hifigan": "vta_sam.vocoder.vocoders.HiFiGAN",
    "sync_network": "vta_sam.metrics.sync_network.SyncNetwork",
    "tiny_grounder": "vta_sam.embedded.extractors.TinyGrounder",
    "oracle_grounder": "vta_sam.embedded.truth.OracleGrounder",
    "grounded_sam": "vta_sam.perception.grounded_sam.GroundedSAM",
    "grounded_sam2": "vta_sam.perception.sam2.GroundedSAM2",
    "owlv2": "vta_sam.perception.owlv2.OWLv2",
    "no_grounder": "vta_sam.perception.base.NoGrounder",
    "tiny_encoder": "vta_sam.embedded.extractors.TinyEncoder",
    "oracle_encoder": "vta_sam.embedded.truth.OracleEncoder",
    "clip": "vta_sam.perception.clip_encoder.CLIPEncoder",
    "siglip": "vta_sam.perception.clip_encoder.SigLIPEncoder",
    "t5": "vta_sam.perception.clip_encoder.T5Encoder",
}
# The same of what configs name besides; none of it belongs into a model folder.
CONFIG_PARTS: dict[str, str] = {
    "shard_data": "vta_sam.training.data_sources.ShardData",
    "embedded_data": "vta_sam.training.data_sources.EmbeddedData",
    "wandb_logger": "vta_sam.training.fit.wandb_logger",
    "trunk_recipe": "vta_sam.embedded.tiny_recipes.TrunkRecipe",
    "tagger_recipe": "vta_sam.embedded.tiny_recipes.TaggerRecipe",
    "detector_recipe": "vta_sam.embedded.tiny_recipes.DetectorRecipe",
}
PARTS = MODEL_PARTS | CONFIG_PARTS

# Where the classes lived when files named them by dotted path: (module in vta_sam, class) ⇒ short name. Those files are
# still read, so this never changes. A path stands here in two halves and without the package, so that a search for
# dotted paths which renames a module everywhere leaves it as it is.
_FORMER: dict[tuple[str, str], str] = {
    ("vae.codec", "MelCodec"): "mel_codec",
    ("diffusion.unet", "LatentUNet"): "latent_unet",
    ("conditioners.vta_sam", "VTASAMConditioner"): "vta_sam",
    ("conditioners.vta_ldm", "VTALDMConditioner"): "vta_ldm",
    ("conditioners.vta_ldm", "FrameProjection"): "frame_projection",
    ("conditioners.tango", "TangoConditioner"): "tango",
    ("conditioners.diff_foley.conditioner", "DiffFoleyConditioner"): "diff_foley",
    ("conditioners.diff_foley.contrastive", "AlignedFrameEncoder"): "aligned_frame_encoder",
    ("conditioners.foleycrafter.conditioner", "FoleyCrafterConditioner"): "foleycrafter",
    ("conditioners.foleycrafter.onsets", "OnsetPredictor"): "onset_predictor",
    ("condition.encoder", "TemporalSemanticEncoder"): "temporal_semantic_encoder",
    ("diffusion.objective", "VPrediction"): "v_prediction",
    ("diffusion.sampler", "Sampler"): "diffusion_sampler",
    ("vocoder", "GriffinLim"): "griffin_lim",
    ("vocoder", "HiFiGAN"): "hifigan",
    ("vocoder.griffin_lim", "GriffinLim"): "griffin_lim",
    ("vocoder.hifigan", "HiFiGAN"): "hifigan",
    ("grounding.tiny", "TinyGrounder"): "tiny_grounder",
    ("grounding.oracle", "OracleGrounder"): "oracle_grounder",
    ("grounding.grounded_sam", "GroundedSAM"): "grounded_sam",
    ("grounding.none", "NoGrounder"): "no_grounder",
    ("encoders.tiny", "TinyEncoder"): "tiny_encoder",
    ("encoders.oracle", "OracleEncoder"): "oracle_encoder",
    ("embedded.oracle", "OracleGrounder"): "oracle_grounder",
    ("embedded.oracle", "OracleEncoder"): "oracle_encoder",
    ("encoders.clip", "CLIPEncoder"): "clip",
    ("encoders.t5", "T5Encoder"): "t5",
    ("perception.siglip_encoder", "SigLIPEncoder"): "siglip",
    ("training.data", "ShardData"): "shard_data",
    ("training.data", "EmbeddedData"): "embedded_data",
    ("training.loggers", "wandb_logger"): "wandb_logger",
    ("tiny.recipes", "TrunkRecipe"): "trunk_recipe",
    ("tiny.recipes", "TaggerRecipe"): "tagger_recipe",
}
FORMER_PATHS = {".".join(("vta_sam", module, name)): short for (module, name), short in _FORMER.items()}
_BY_PATH = FORMER_PATHS | {path: short for short, path in PARTS.items()}

_TRUSTED: dict[str, str] = {}  # dotted path of a class of one's own ⇒ the name that files give it


def trust(target: str, name: str | None = None) -> None:
    """Let model folders name a class of one's own. Call it before training or loading, best in the class's own module.

    Args:
        target: dotted path of the class, such as ``"mine.LoudnessConditioner"``; Python's path has to lead to it.
        name: a short name for it in files; None: files say the dotted path.

    Raises:
        InputError: the short name is taken, or is no plain word.
    """
    if name is not None:
        taken = PARTS.get(name) or next((path for path, short in _TRUSTED.items() if short == name), target)
        if taken != target or not name.isidentifier():
            of = f"already the name of {taken}" if taken != target else "no plain word"
            raise InputError(f"trust({target!r}, name={name!r}): {name!r} is {of}; choose another name")
    _TRUSTED[target] = name or short_name(target)


def short_name(target: Any) -> str:
    """The short name of a class, or its dotted path if it has none.

    Args:
        target: a short name, a dotted path of today or a former one, or the class itself.
    """
    if isinstance(target, str):
        return _BY_PATH.get(target) or _TRUSTED.get(target) or target
    path = f"{target.__module__}.{target.__qualname__}"
    if path not in _BY_PATH:  # one that its package hands on lives elsewhere than its path in the table says
        alike = (short for short in PARTS if class_name(short) == target.__qualname__)
        return next((short for short in alike if class_of(short) is target), short_name(path))
    return short_name(path)


def dotted_path(target: str) -> str:
    """Where the class of a short name, or of a dotted path, lives. Raises InputError for a name that is unknown."""
    short = short_name(target)
    if short in PARTS:
        return PARTS[short]
    own = next((path for path, name in _TRUSTED.items() if name == short), None)
    if own is None and "." not in short:
        close = difflib.get_close_matches(short, PARTS, n=1)
        raise InputError(f"{TARGET}: {short!r} names no part{f' (did you mean {close[0]}?)' if close else ''}; the "
                         f"parts are {', '.join(sorted(PARTS))}; a class of one's own is named by its dotted path")
    return own or short


def class_name(target: str) -> str:
    """The bare name of the class that a short name or dotted path names, without importing it; "" of ""."""
    return (PARTS.get(short_name(target)) or target).rpartition(".")[2]


def class_of(target: str) -> Any:
    """The class (or function) that a short name or dotted path names. Raises InputError where there is none."""
    try:
        return _locate(dotted_path(target))
    except (ImportError, AttributeError) as error:  # all else is a fault in a module, whose traceback its author needs
        raise InputError(f"{TARGET}: {target} can't be imported ({error}); a class of one's own has to be on Python's "
                         "path: PYTHONPATH=. before the command") from error


def _locate(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        owner = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module or "." not in module:
            raise
        owner = _locate(module)  # a class, and ``name`` something of it
    return getattr(owner, name)


def canonical(recipe: Any) -> Any:
    """A recipe, or whatever holds some, with each part by the name that files give it."""
    return _renamed(recipe, short_name)


def build(recipe: Any, **arguments: Any) -> Any:
    """The object of a recipe, built with its parts. Arguments that are dictionaries or lists are plain ones.

    Args:
        recipe: nested {"_target_": short name or dotted path, argument: value}, of Hydra's kind or plain; None ⇒ None.
        arguments: in place of the recipe's, or besides; ``_partial_=True`` ⇒ a callable that takes the missing ones.

    Raises:
        InputError: a part has an unknown name. A constructor's own error comes wrapped by Hydra, as its ``__cause__``.
    """
    from hydra.utils import instantiate
    from omegaconf import DictConfig, OmegaConf

    if isinstance(recipe, DictConfig):
        recipe = OmegaConf.to_container(recipe, resolve=True)
    return instantiate(_renamed(recipe, dotted_path), **_renamed(arguments, dotted_path), _convert_="all")


def sketch(recipe: Any, where: str, **arguments: Any) -> Any:
    """A part for reading its sizes before training, without memory for its weights where its class allows that.

    Args:
        recipe: as :func:`build` takes it.
        where: the setting that holds it.
        arguments: that its constructor takes besides, handed over as they are.

    Raises:
        InputError: its arguments don't fit its class.
    """
    import torch
    from hydra.errors import InstantiationException

    def built() -> Any:
        return build(recipe, _partial_=True)(**arguments)

    with torch.random.fork_rng(devices=[]):
        try:
            try:
                with torch.device("meta"):
                    return built()
            except (NotImplementedError, RuntimeError):  # a constructor that reads its random weights
                return built()
        except (InstantiationException, TypeError, ValueError, RuntimeError, AssertionError) as error:
            refused = error if isinstance(error, InputError) else error.__cause__
            if isinstance(refused, InputError):
                raise refused from None
            reason = str(error.__cause__ or error).strip().split("\n")[0]
            raise InputError(f"{where} describes a {class_name(recipe[TARGET])} that can't be built: {reason}"
                             ) from error


def is_loadable(target: Any) -> bool:
    """May a model folder name it: a part of :data:`MODEL_PARTS`, or a trusted one?"""
    return isinstance(target, str) and (short_name(target) in MODEL_PARTS or short_name(target) in _TRUSTED.values())


def require_loadable(recipe: Any, where: str) -> None:
    """Refuse, before training, a recipe with which a model folder could be written but not loaded.

    Args:
        recipe: nested, as :func:`build` takes it.
        where: the setting that holds it.

    Raises:
        InputError: a class is neither this project's nor trusted, can't be imported, or the recipe has a key that a
            model folder may not use.
    """
    if isinstance(recipe, dict):
        for key, value in recipe.items():
            if key == TARGET:
                _require_loadable_class(value, where)
            elif str(key).startswith("_"):
                raise InputError(f"{where} has the key {key!r}, which a model folder may not use; leave it out")
            require_loadable(value, f"{where}.{key}")
    elif isinstance(recipe, (list, tuple)):
        for i, value in enumerate(recipe):
            require_loadable(value, f"{where}[{i}]")


def _require_loadable_class(target: Any, where: str) -> None:
    if not is_loadable(target):
        try:
            class_of(str(target))  # its module may trust it
        except InputError as error:
            raise InputError(f"{where}.{error}") from error
    if not is_loadable(target):
        raise InputError(f"{where} names the class {target}, which is neither this project's nor trusted, so that "
                         f"the trained model could not be loaded; say vta_sam.trust({target!r}) in the module of that "
                         "class (docs/systems.md)")


def _renamed(recipe: Any, name: Callable[[str], str]) -> Any:
    if isinstance(recipe, dict):
        return {key: name(value) if key == TARGET and isinstance(value, str) else _renamed(value, name)
                for key, value in recipe.items()}
    if type(recipe) in (list, tuple):
        return type(recipe)(_renamed(value, name) for value in recipe)
    return recipe


def kind_of(recipe: Mapping[str, Any]) -> str:
    """The first word of the fingerprint of a recipe's extractor.

    It is the class's ``kind``, or the name of the module of a class without one.
    """
    extractor = class_of(recipe[TARGET])
    return str(getattr(extractor, "kind", extractor.__module__.rpartition(".")[2]))


def essence(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe without the arguments of execution and without arguments at their defaults.

    The class is imported if this project or its user trusts it. Otherwise the recipe is returned as it is.
    """
    changed = {name: value for name, value in recipe.items() if name != TARGET}
    if is_loadable(recipe[TARGET]):
        defaults, execution = _defaults(recipe[TARGET]), _execution(recipe[TARGET])
        changed = {name: value for name, value in changed.items()
                   if name not in execution and not (name in defaults and _same(defaults[name], value))}
    return {TARGET: short_name(recipe[TARGET]), **changed}


def differences(named: Mapping[str, Any], made_by: Mapping[str, Any]) -> list[str]:
    """Differences of two recipes in arguments that change features, as phrases: "template is 'a {}', not 'the {}'".

    Args:
        named: by a user; its class is imported, and may trust itself then.
        made_by: out of dataset.json.
    """
    class_of(named[TARGET])
    ours, theirs = essence(named), essence(made_by)
    if ours[TARGET] != theirs[TARGET]:
        return [f"it is {ours[TARGET]}, not {theirs[TARGET]}"]
    defaults = _defaults(ours[TARGET])
    ours, theirs = defaults | ours, defaults | theirs
    return [f"{name} is {ours.get(name)!r}, not {theirs.get(name)!r}" for name in sorted({*ours, *theirs})
            if not _same(ours.get(name), theirs.get(name))]


def settings_of(extractors: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{role: extractor} ⇒ {role: settings}, without extractors that have none."""
    return {role: dict(extractor.settings) for role, extractor in extractors.items() if extractor.settings}


def differing_settings(trained: Mapping[str, Any], found: Mapping[str, Any], then: str = "in training it was",
                       ) -> list[str]:
    """Differences of extractors' settings, as phrases: "encoder.template is 'a {}', in training it was …".

    Settings of execution, such as the number format, don't count.

    Args:
        trained: {role: settings} of the features that a model was trained on.
        found: {role: settings} of the features that it is to read now.
        then: of the phrases, where ``trained`` is of something else.
    """
    wrong = []
    for role in sorted({*trained, *found}):
        before, now = trained.get(role) or {}, found.get(role) or {}
        wrong += [f"{role}.{name} is {now.get(name)!r}, {then} {before.get(name)!r}"
                  for name in sorted({*before, *now}) if name not in EXECUTION and before.get(name) != now.get(name)]
    return wrong


def _defaults(target: str) -> dict[str, Any]:
    parameters = inspect.signature(class_of(target)).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters
            if parameter.default is not inspect.Parameter.empty and parameter.name not in _execution(target)}


def _execution(target: str) -> tuple[str, ...]:
    return getattr(class_of(target), "execution", EXECUTION)


def _same(one: Any, other: Any) -> bool:
    """Whether two values are equal, where True differs from 1, and 800 equals 800.0."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)
