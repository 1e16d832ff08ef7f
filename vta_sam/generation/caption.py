"""A sound for a caption alone, by a model that reads nothing else: a wav and its record."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

from .. import __version__
from ..atomic import write_text
from ..media.audio import write_wav
from ..metrics.level import measure_level
from ..pipeline import Pipeline
from .videos import Prompt, check_folder, finished_before

_LONGEST_NAME = 60  # characters of the caption in a file's name


def generate_caption(pipeline: Pipeline, prompt: Prompt, folder: Path, model: dict[str, str], overwrite: bool) -> Path:
    """⇒ ``<caption>-<seed>.wav`` in ``folder``, with a .json of what was asked beside it. What is there, made by the
    same settings, is kept unless ``overwrite``.

    Raises InputError where it was made by other settings, or the model looks at pictures.
    """
    check_folder(folder)
    words = re.sub(r"\W+", "-", (prompt.caption or "").lower()).strip("-")[:_LONGEST_NAME] or "caption"
    path = folder / f"{words}-{prompt.seed}.wav"
    sampler = pipeline.sampler_for(prompt.guidance, prompt.steps)
    asked = {"caption": prompt.caption, "negative_caption": prompt.negative_caption, "seed": prompt.seed,
             "guidance": sampler.guidance, "steps": sampler.steps, "solver": sampler.solver,
             "model_hash": model["hash"]}
    if not overwrite and finished_before(path.with_suffix(".json"), asked):
        return path
    waveform = pipeline.generate_from_caption(prompt.caption or "", prompt.negative_caption, prompt.seed,
                                              prompt.guidance, prompt.steps)
    record = {"asked": asked, "written": path.name, "level": asdict(measure_level(waveform)), "model": model,
              "code_version": __version__}
    path.with_suffix(".json").unlink(missing_ok=True)  # while the sound changes, nothing may say that it is finished
    write_wav(path, waveform, pipeline.spec.sample_rate_hz)
    write_text(path.with_suffix(".json"), json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return path
