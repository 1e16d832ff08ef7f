"""The table of stages, in the order in which a job goes through them. A conditioner of one's own adds its row here."""

from __future__ import annotations

import dataclasses

from ..runtime.errors import InputError
from .codec_stages import VAEStage, VocoderStage
from .diffusion_stage import DiffusionStage
from .figures_stage import FiguresStage
from .part_stages import ClassifierStage, ConditionStage, ContrastiveStage, OnsetStage
from .stage import JobSettings, Stage

STAGES: dict[str, Stage] = {stage.name: stage for stage in (
    VAEStage(), VocoderStage(), ConditionStage(), ContrastiveStage(), ClassifierStage(), OnsetStage(),
    DiffusionStage(), FiguresStage(),
)}


def register_stage(stage: Stage) -> None:
    """Let jobs name a stage of one's own, in ``stages=[…]``, in ``fit`` and, where it is replaceable, as
    ``+<name>=FOLDER``. Call it in the module of the conditioner, which a job imports before it reads its stages.

    Args:
        stage: its ``name`` is a plain word, and no key of ``conf/train.yaml``.

    Raises:
        InputError: another stage or a setting has that name, or it is no plain word.
    """
    taken = STAGES.get(stage.name)
    own = taken is not None and _path(taken) == _path(stage)  # its module was imported again
    keys = {field.name for field in dataclasses.fields(JobSettings)}
    if not own and (taken is not None or stage.name in keys or not stage.name.isidentifier()):
        of = f"the name of {_path(taken)}" if taken else "a setting" if stage.name in keys else "no plain word"
        raise InputError(f"register_stage({_path(stage)}): its name {stage.name!r} is {of}; choose another name")
    STAGES[stage.name] = stage


def _path(stage: Stage) -> str:
    return f"{type(stage).__module__}.{type(stage).__qualname__}"
