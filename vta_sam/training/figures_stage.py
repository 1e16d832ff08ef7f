"""The last stage of a job: generate for held-out clips, measure, show."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import Progress

from .. import __version__
from ..checkpoints.model_folder import CARD_NAME, model_card, read_content
from ..checkpoints.parts import build
from ..generation.pipeline import load
from ..runtime.files import write_text
from .figures import held_out, measure
from .fit import close
from .run_report import figures_rows, figures_table, figures_title, show
from .stage_context import StageSettings, Workshop
from .stages import true_onsets

if TYPE_CHECKING:
    from .job import TrainingJob


def run_figures(job: "TrainingJob", shop: Workshop) -> None:
    """Measure the run's model, or ``job.model`` ⇒ figures.json, samples and pictures; the figures also go into the
    model card of the run's own model."""
    folder = job.stage_folder("figures")
    folder.claim(job.overwrite)
    model = job.model_folder or job.stage_folder("diffusion").model
    if not folder.done:
        job.timed("figures", lambda: _measure(job, shop, model))
        folder.finish()
    figures = json.loads((folder.path / "measured.json").read_text()) | _provenance(job, model)
    write_text(job.folder / "figures.json", json.dumps(figures, indent=1) + "\n")
    if job.model is None:
        write_text(model / CARD_NAME, model_card(read_content(model), figures_rows(figures), figures_title(figures)))
    _log(job, folder.path, figures)
    job.console.print(figures_table(figures))
    for path in sorted((folder.path / "samples").glob("*.mp4")):
        job.console.print(f"  {path}", highlight=False)
    job.console.print(f"figures: {job.folder / 'figures.json'}", highlight=False)


def _measure(job: "TrainingJob", shop: Workshop, model: Path) -> None:
    folder = job.stage_folder("figures").path
    pipeline = load(model, device="cuda" if torch.cuda.is_available() else "cpu")
    pipeline.sampler = build(job.sampler)  # with model=…, of a model trained with another one
    data = shop.datamodule("figures", StageSettings.of(job.fit["diffusion"]))
    clips = held_out(data.reader(job.source.test_split), data.reader(job.source.train_split), pipeline,
                     job.figures["clips"], lambda record, wave: true_onsets(job.source, record, wave))
    with Progress(console=job.console) as progress:
        task = progress.add_task("generate and measure", total=2 * len(clips.records) + len(clips.single))
        figures, sounds = measure(pipeline, clips, job.seed, job.figures["batch_size"],
                                  lambda n: progress.advance(task, n))
        figures["seed"], figures["exp"] = job.seed, job.exp
    show(folder, pipeline, clips, sounds, job.source, job.stage_folder("diffusion").path, job.figures["samples"])
    write_text(folder / "measured.json", json.dumps(figures, indent=1) + "\n")


def _log(job: "TrainingJob", folder: Path, figures: dict[str, Any]) -> None:
    """To the loggers, under the names that evaluate.py uses, so that tables of runs and of evaluations agree."""
    found = {name: content["score"]["mean"] for name, content in
             {**figures["timing"], "sound_class": figures.get("sound_class")}.items() if content}
    loggers = [build(logger, _partial_=True)(save_dir=str(folder), name="logs") for logger in job.logger]
    for logger in loggers:
        logger.log_metrics({name: mean for name, mean in found.items() if mean is not None}, step=0)
        logger.save()
    close(loggers)


def _provenance(job: "TrainingJob", model: Path) -> dict[str, Any]:
    peak = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "seconds": json.loads((job.folder / "seconds.json").read_text()),
        "peak_memory_gb": round(peak / 1024**2, 2), "model": str(model), "code_version": __version__,
        "torch": torch.__version__, "device": "cuda" if torch.cuda.is_available() else "cpu",
        "parameters": {part: _parameters(model, part) for part in ("codec", "unet", "conditioner")},
    }


def _parameters(model: Path, part: str) -> int:
    """Parameters of a part, counted from its file's header."""
    import safetensors

    with safetensors.safe_open(model / f"{part}.safetensors", "np") as file:
        return sum(int(torch.Size(file.get_slice(k).get_shape()).numel()) for k in file.keys())
