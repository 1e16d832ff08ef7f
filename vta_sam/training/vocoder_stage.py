"""Stage ``vocoder``: a vocoder of one's own, from the sounds of the shards."""

from __future__ import annotations

from typing import Any

from ..checkpoints.model_folder import ModelRecipe
from ..checkpoints.parts import build
from ..runtime.errors import InputError
from ..vocoder import HiFiGAN
from ..vocoder.hifigan_training import Adversary, VocoderTraining
from .run_folder import StageFolder
from .stage_context import StageSettings, Workshop
from .stages import clip_dict


def train_vocoder(shop: Workshop, folder: StageFolder, settings: StageSettings, recipe: dict[str, Any],
                  adversary: dict[str, Any]) -> None:
    """⇒ ``folder.model`` with the vocoder, for ``vocoder_from=``. adversary: arguments of
    :class:`~vta_sam.vocoder.hifigan_training.Adversary`. Raises InputError for a vocoder that has nothing to train."""
    data = shop.datamodule("vocoder", settings)
    with shop.seeded("vocoder"):
        vocoder = build(recipe)
        if not isinstance(vocoder, HiFiGAN):
            raise InputError(f"stage vocoder trains a HiFiGAN, and vocoder is a {type(vocoder).__name__}; give "
                             "+exp=vocoder, or vocoder=hifigan")
        vocoder.initialise()
        module = VocoderTraining(vocoder, Adversary(**adversary), settings.weights, settings.optimise())
    shop.fit(module, data, folder, settings, "vocoder", ("val/mel", "min"))
    model = ModelRecipe(clip=clip_dict(shop.spec), vocoder=recipe, about=shop.about("vocoder", settings))
    shop.save(folder, model, {"vocoder": module.vocoder})
