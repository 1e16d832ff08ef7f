"""What train.py nests under one key: plain blocks of numbers, and recipes of parts.

A block has the fields of the dataclass that reads it, with the same defaults (a test compares them). A recipe is
checked against the constructor of its class (:mod:`.signatures`).
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import Field, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError
from pydantic_core.core_schema import no_info_after_validator_function

from ..checkpoints.parts import TARGET, dotted_path
from ..runtime.errors import InputError
from ..runtime.typed_settings import (
    READY, UNKNOWN, Block, Count, Keys, Kind, LocalPath, Number, Place, Positive, Share, Switch, Text, nearest,
    setting,
)
from .signatures import Signature, signature_of

AboveZero = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]
STAGES = ("vae", "vocoder", "condition", "contrastive", "classifier", "onsets", "diffusion", "figures", "sync")

_ALIKE = 0.8  # how near a key has to be to a known one for a slip of the finger
# Arguments that hold the arguments of another class, which the part hands on
_HANDED_ON = {("LatentUNet", "config"): "diffusers.UNet2DConditionModel"}
_FROM_DATA = "from_data"  # training/run_folder.py puts a dimension of the dataset in its place


class Recipe(Kind):
    """Marks a field that holds a part's recipe, recipes by name, or a list of them, and checks it.

    Args:
        completed: arguments that the program hands over itself, where the recipe has none or null.
    """

    def __init__(self, *completed: str):
        super().__init__("recipe")
        self.completed = frozenset(completed)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_after_validator_function(partial(checked, completed=self.completed), handler(source))


def checked(value: Any, completed: Collection[str] = ()) -> Any:
    """A recipe with its switches and whole numbers as the constructors take them.

    Raises:
        ValidationError: of all faults, each with the place of its key.
    """
    faults: list[InitErrorDetails] = []
    right = _checked(value, (), frozenset(completed), faults)
    if faults:
        raise ValidationError.from_exception_data("recipe", faults)
    return right


Part = Annotated[Any, Recipe()]
CodecPart = Annotated[Any, Recipe("mel_mean", "mel_std", "mel")]
DenoiserPart = Annotated[Any, Recipe("spec", "map_channels")]
ConditionerPart = Annotated[Any, Recipe("spec")]
LoggerPart = Annotated[Any, Recipe("save_dir", "name", "version")]


def as_given(given: Any, right: Any) -> Any:
    """A checked value in the form and order in which a config gives it, so that run folders keep what they had: a
    switch is true or false, a whole number one, a path a text, and all else what it was."""
    if isinstance(given, Mapping) and isinstance(right, Mapping):
        return {key: as_given(value, right[key]) if key in right else value for key, value in given.items()}
    if isinstance(given, (list, tuple)) and isinstance(right, (list, tuple)) and len(given) == len(right):
        return [as_given(*pair) for pair in zip(given, right)]
    if isinstance(right, PurePath):
        return str(right)
    return right if right != given or isinstance(right, int) and type(right) is not type(given) else given


def _fault(faults: list[InitErrorDetails], kind: str, place: tuple, found: Any, words: str) -> None:
    told = PydanticCustomError(kind, "{words}", {"words": words})  # type: ignore[arg-type]
    faults.append(InitErrorDetails(type=told, loc=place, input=found))


def _checked(value: Any, place: tuple, completed: frozenset[str], faults: list[InitErrorDetails]) -> Any:
    if isinstance(value, (list, tuple)):
        return [_checked(item, (*place, i), completed, faults) for i, item in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    if TARGET not in value:
        if not place and not all(isinstance(item, Mapping) and TARGET in item for item in value.values()):
            _fault(faults, READY, (TARGET,), None, "is missing; choose the part first, by its name in conf/")
        return {key: _checked(item, (*place, key), completed, faults) for key, item in value.items()}
    try:
        told = signature_of(dotted_path(str(value[TARGET])))
    except InputError as error:
        _fault(faults, READY, (*place, TARGET), value[TARGET], str(error).removeprefix(f"{TARGET}: "))
        return value
    given = {str(key): item for key, item in value.items() if not str(key).startswith("_")}
    if told is not None and "_args_" not in value:
        missing = [] if value.get("_partial_") else [
            name for name in told.required if name not in given and name not in completed]
        for name in missing:
            _fault(faults, READY, (*place, name), None, f"is missing; {told.name} needs it")
        given = _arguments(told, given, place, completed, faults)
    return {key: _checked(given[key], (*place, key), completed, faults) if key in given else item
            for key, item in value.items()}


def _arguments(told: Signature, given: dict[str, Any], place: tuple, completed: frozenset[str],
               faults: list[InitErrorDetails]) -> dict[str, Any]:
    """Arguments of a constructor, checked; those that are parts themselves are left as they are."""
    open_ones = {name for name, value in given.items() if value == _FROM_DATA or value is None and name in completed
                 or isinstance(value, Mapping) and TARGET in value}
    for name in given:
        if name not in told.types and not told.takes_more:
            words = nearest(name, told.types)
            takes = f"{told.name} takes {', '.join(item for item in told.types if item not in completed) or 'none'}"
            _fault(faults, UNKNOWN, (*place, name), given[name], words if "meant" in words else takes)
    known = {name: value for name, value in given.items() if name in told.types and name not in open_ones}
    try:
        right = told.schema.model_validate(known).model_dump(by_alias=True, exclude_unset=True)
    except ValidationError as error:
        for fault in error.errors():
            _fault(faults, READY, (*place, *fault["loc"]), fault["input"], told.schema.words_of(fault))
        return given
    given = {name: as_given(value, right[name]) if name in right else value for name, value in given.items()}
    for name, value in given.items():
        inner = signature_of(_HANDED_ON[told.name, name]) if (told.name, name) in _HANDED_ON else None
        if inner is not None and isinstance(value, Mapping):
            given[name] = _arguments(inner, dict(value), (*place, name), completed, faults)
    return given


class MelBlock(Block):
    """clip.mel: vta_sam.clip.MelSpec"""

    sample_rate_hz: Positive = setting("Hz, of the waveform", 16_000)
    fft_samples: Positive = setting("samples of the FFT and of the Hann window", 1024)
    hop_samples: Positive = setting("samples from one mel frame to the next", 160)
    n_mels: Positive = setting("bins of the filterbank", 64)
    min_hz: NotNegative = setting("Hz, lower edge of the filterbank", 0.0)
    max_hz: AboveZero = setting("Hz, upper edge of the filterbank; at most half of sample_rate_hz", 8000.0)


class ClipBlock(Block):
    """clip: vta_sam.clip.ClipSpec"""

    duration_s: AboveZero = Field(description="seconds of a clip; a whole number of the VAE's columns")
    fps: AboveZero = Field(description="pictures a second")
    latent_stride_frames: Positive = Field(description="mel frames a column of the latent: the VAE's stride in time")
    mel: MelBlock | None = setting("log-mel front end of codec and vocoder; null: AudioLDM's, 16 kHz and 64 bins")


class FitBlock(Block):
    """fit.<stage>.fit: vta_sam.training.fit.FitSettings"""

    steps: Positive = Field(description="optimiser steps")
    validate_every: Positive = Field(description="steps between validations, of which one chooses the weights")
    checkpoint_every: Positive = Field(description="steps between checkpoints: at most so many are lost by a kill")
    accumulate: Positive = setting("batches a step, of one process", 1)
    clip_norm: NotNegative = setting("largest norm of the gradient (of a vocoder: either side's); 0: not clipped", 1.0)
    ema_decay: Share = setting("of the averaged weights, which are validated and kept", 0.99)
    ema_start: Count = setting("step from which weights are averaged", 0)
    precision: Literal["auto", "fp32", "bf16"] = setting("number format; auto: the faster one, measured", "auto")
    accelerator: Text = setting("Lightning's name of the kind of device, or auto", "auto")
    strategy: Literal["ddp", "fsdp2"] = setting("of several processes; fsdp2: sharded, experimental", "ddp")
    gradient_checkpointing: Switch = setting("of stage diffusion: less memory, more time", False)
    compile: Switch = setting("of vae, condition and diffusion: the network's repeated blocks, by torch.compile", False)
    checkpoint_aside: Switch = setting(
        "steps go on while a checkpoint is written, from a copy in the host's memory: 16 bytes a parameter", True)


class StageBlock(Block):
    """fit.<stage>: vta_sam.training.stage.StageSettings"""

    fit: FitBlock = Field(description="steps, validations, checkpoints")
    batch_size: Positive = Field(description="clips a batch, of one process")
    learning_rate: NotNegative = Field(description="AdamW's")
    warmup_steps: Count = Field(description="steps in which the rate rises")
    weight_decay: NotNegative = setting("AdamW's", 0.01)
    betas: Annotated[list[Annotated[Number, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = setting(
        "AdamW's", [0.9, 0.99])
    weights: dict[str, Number] = setting("of the loss terms, by name", {})
    workers: Count = setting("loader processes of each device", 0)
    cached_gb: NotNegative = setting("10⁹ bytes that the loader processes of a machine keep in memory together", 8.0)
    streams: Positive = setting("of the order of samples: a multiple of processes times workers", 8)
    expected_s: NotNegative = setting("seconds that the stage took elsewhere: its share of a job; 0: not known", 0.0)
    schedule_steps: Positive | None = setting("steps over which the rate falls; null: all of fit.steps")


class AugmentBlock(Block):
    """augment: vta_sam.dataset.shards.batch.Augmentation"""

    objects: Share = setting("share of samples whose objects are all forgotten: the video alone", 0.1)
    frames: Share = setting("share of samples whose frame embeddings are blank: the grounding alone", 0.0)
    appearance: NotNegative = setting("a random vector a clip on its frame embeddings, in units of their spread", 0.0)


class ValidationBlock(Block):
    """validation"""

    clips: Positive = Field(description="validation clips that are sampled while stage diffusion trains")
    steps: Positive = Field(description="sampler steps of them")


class FiguresBlock(Block):
    """figures"""

    clips: Positive = Field(description="held-out clips that are measured")
    batch_size: Positive = Field(description="clips at once")
    samples: Count = Field(description="clips that get a video and a picture")
    steps: Positive | None = setting("sampler steps of their sounds; null: the sampler's own")
    expected_s: NotNegative = setting("seconds that it took elsewhere: its share of a job; 0: not known", 0.0)


class ConditionSizes(Block):
    """networks.condition: of the condition encoder"""

    width: Positive = Field(description="channels of its layers")
    layers: Positive = Field(description="of its transformer")
    heads: Positive = Field(description="of its attention")
    frame_gain: NotNegative = setting("initial scale of VTA-SAM's norm of frames", 0.1)
    object_gain: NotNegative = setting("initial scale of its norm of objects", 3.0)


class NetworksBlock(Block):
    """networks: sizes of the networks. Further keys are for configs of one's own to refer to."""

    model_config = {**Block.model_config, "extra": "allow"}

    codec: CodecPart = setting("recipe of the VAE; null numbers are measured")
    unet: DenoiserPart = setting("recipe of the denoiser, unless denoiser= names another")
    condition: ConditionSizes | None = setting("sizes of the condition encoder")
    vocoder: dict[Literal["channels"], Positive] | None = setting("width of a vocoder that is trained")
    adversary: dict[Literal["period_width", "scale_width"], Positive] | None = setting("widths of its discriminators")
    sync: Annotated[Any, Recipe("frame_dim", "object_dim", "fps")] = setting("recipe of a sync network that is trained")
    token_dim: Positive | None = setting("width of condition tokens")


class OverfitBlock(Block):
    """overfit, of experiments/overfit.py"""

    videos: LocalPath = Field(description="folder of clips, each at least learned_s + unheard_s long")
    captions: LocalPath = Field(description="csv: id, caption, and optionally objects")
    out: LocalPath = Field(description="folder of manifest and shards")
    learned_s: AboveZero = setting("seconds from the start of each clip that are trained on", 7.0)
    unheard_s: AboveZero = setting("seconds after them, left out of training", 3.0)


class RowBlock(Block):
    """One row of a study's table: one trained system."""

    exp: Text | None = setting("of train.py; null: the row's name")
    stages: Keys | None = setting("of train.py; null: the table's")
    overrides: list[Text] = setting("further arguments of train.py; {table/row}: that row's finished model", [])
    title: Text | None = setting("on the page of results")
    sees: Text = setting("its condition, in words", "")
    labels: Text = setting("the labels that its condition learned from, in words", "")
    aligned: bool = setting("a path keeps time by construction", False)
    controls: bool = setting("its controls are sampled too", False)


class TableBlock(Block):
    """A table of a study."""

    title: Text = Field(description="on the page of results")
    rows: dict[str, RowBlock | None] = Field(description="trained systems by name")
    defaults: RowBlock | None = setting("what rows have where they say nothing else")


class DifferenceBlock(Block):
    """A comparison of two rows of a table, clip by clip."""

    table: Text = Field(description="of both rows")
    first: Text = Field(description="row")
    second: Text = Field(description="row that is subtracted")
    question: Text = Field(description="that the difference answers")


class StudyBlock(Block):
    """A study: conf/study/<name>.yaml"""

    name: Text = Field(description="first word of its records")
    title: Text = Field(description="heads its page")
    runs: Place = Field(description="folder of its runs")
    seeds: list[Count] = Field(description="every row is trained with each of them")
    shared: dict[str, Any] = Field(description="the run whose VAE all rows take: exp, seed, stages")
    common: list[Text] = setting("arguments of train.py for every row", [])
    tables: dict[str, TableBlock] = Field(description="rows by table")
    differences: list[DifferenceBlock] = setting("pairs of rows that are compared", [])
    note: Text = setting("a paragraph of its page", "")


class SweptBlock(Block):
    """Values of one setting of a sweep."""

    values: list[Any] = Field(description="each of which is tried")


class SweepBlock(Block):
    """A wandb sweep: conf/sweep/<name>.yaml"""

    program: Text = Field(description="experiments/train.py")
    method: Literal["grid", "random", "bayes"] = Field(description="how wandb goes through the values")
    metric: dict[Literal["name", "goal"], Text] = Field(description="figure that is sought, and its better direction")
    parameters: dict[str, SweptBlock] = Field(description="values by setting of train.py")
    command: list[Text] = Field(description="words of wandb's command line")


# ---------------------------------------------------------------------- what several settings of train.py say together

def train_faults(values: Mapping[str, Any], known: Collection[str]) -> Iterator[str]:
    """Sentences about a composed conf/train.yaml that no single field shows.

    Args:
        values: of the config.
        known: its keys.
    """
    networks = values.get("networks")
    for place, given, names in (("", values, known), ("networks.", networks, NetworksBlock.model_fields)):
        for key in given if isinstance(given, Mapping) else ():
            near = difflib.get_close_matches(str(key), list(names), n=1, cutoff=_ALIKE)
            if near and key not in names:
                yield f"there is no setting {place}{key}; is {place}{near[0]} meant?"
    stages, fit = values.get("stages"), values.get("fit")
    named = [stages] if isinstance(stages, str) else list(stages) if isinstance(stages, (list, tuple)) else []
    numbers: Mapping[str, Any] = fit if isinstance(fit, Mapping) else {}
    for name in map(str, named):
        near = difflib.get_close_matches(name, STAGES, n=1, cutoff=_ALIKE)
        if near and name not in {*STAGES, *numbers}:
            yield f"stages: there is no stage {name}; is {near[0]} meant?"
        yield from _fit_faults(f"fit.{name}.fit", numbers.get(name))
    yield from _clip_faults(values.get("clip"))


def _fit_faults(key: str, stage: Any) -> Iterator[str]:
    fit = stage.get("fit") if isinstance(stage, Mapping) else None
    steps, every, start = (fit.get(name) if isinstance(fit, Mapping) else None
                           for name in ("steps", "validate_every", "ema_start"))
    if not isinstance(steps, int):
        return
    if isinstance(every, int) and every > steps:
        yield (f"{key}.validate_every={every} with steps={steps}: a validation chooses the weights that are kept, so "
               "there must be one; make it 1 … steps")
    if isinstance(start, int) and start >= steps:
        yield (f"{key}.ema_start={start} with steps={steps}: the averaged weights are those that are kept, and these "
               "would be the untrained ones")


def _clip_faults(clip: Any) -> Iterator[str]:
    """What ClipSpec has to say; numbers of a wrong type are the fields' own affair."""
    from ..clip import ClipSpec

    try:
        ClipBlock.model_validate(clip)
    except ValidationError:
        return
    try:
        ClipSpec(**clip)
    except InputError as error:
        yield f"clip: {error}"
