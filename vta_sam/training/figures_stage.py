"""Stage ``figures``: generate for held-out clips, measure, and show: tables, sounds, videos, pictures."""

from __future__ import annotations

import csv
import json
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from .. import __version__
from ..checkpoints.model_folder import CARD_NAME, FIGURE_COLUMNS, model_card, read_content, read_recipe, weights_file
from ..checkpoints.parts import build
from ..dataset.shards.batch import ClipBatch
from ..diffusion.objective import TIME_END
from ..diffusion.unet import LatentUNet, recorded_attention
from ..evaluation.metric_table import figure_metrics
from ..generation.build import require_same_features
from ..generation.pipeline import Pipeline, load
from ..importers.named_models import named_folder
from ..media.audio import write_wav
from ..media.muxing import mux
from ..media.picture_reader import Squeeze
from ..media.video import read_clip
from ..plots.clip_pictures import attention_picture, clip_picture, curve_picture
from ..runtime.files import write_text
from .data_sources import DataSource, true_onsets
from .diffusion_stage import build_sampling
from .figures import HeldOut, SoundMaker, Sounds, held_out, mean_scores, measure
from .fit import close
from .stage import JobSettings, Stage, StageContext

PICTURE_SIZE = (96, 128)


def show(folder: Path, pipeline: Pipeline, clips: HeldOut, sounds: np.ndarray, source: DataSource, diffusion: Path,
         samples: int) -> None:
    """Write ``folder``/samples (mp4, png), generated/ (wav), attention.png and curve.png.

    Args:
        folder: of the figures stage.
        pipeline: the finished model.
        clips: of the test split.
        sounds: (n, samples) generated for ``clips``.
        source: of their videos.
        diffusion: stage 3's folder, whose log has the curve.
        samples: how many clips get a video and a picture.
    """
    for name in ("samples", "generated"):
        (folder / name).mkdir(exist_ok=True)
    rate_hz = pipeline.spec.sample_rate_hz
    for i, record in enumerate(clips.records):
        write_wav(folder / "generated" / f"{record.key}.wav", sounds[i], rate_hz)
    for i, record in enumerate(clips.records[:samples]):
        video = source.video(record)
        if video is None:
            continue
        frames = read_clip(video, start_s=record.start_s, duration_s=pipeline.spec.duration_s, fps=pipeline.spec.fps,
                           fits=[Squeeze(*PICTURE_SIZE)], want_audio=False).frames[0]
        mux(video, sounds[i], rate_hz, folder / "samples" / f"{record.key}.mp4")
        clip_picture(folder / "samples" / f"{record.key}.png", frames, record.objects, record.probs, sounds[i],
                     record.waveform[: len(sounds[i])], clips.onsets_s[i], sample_rate_hz=rate_hz,
                     duration_s=pipeline.spec.duration_s, title=record.caption)
    maps = attention_maps(pipeline, clips.batch.select([0]), seed=0)
    if maps:
        attention_picture(folder / "attention.png", maps, title=f"cross-attention, {clips.records[0].caption}")
    steps, curves = validation_curve(diffusion)
    if steps:
        curve_picture(folder / "curve.png", steps, curves, ylabel="on validation clips")


@torch.no_grad()
def attention_maps(pipeline: Pipeline, clip: ClipBatch, seed: int, time: int = TIME_END // 2,
                   ) -> dict[str, np.ndarray]:
    """Attention of a UNet on one clip, its true sound noised to ``time`` ⇒ {level: (columns, frames)}, mean over heads,
    frequency rows and the level's layers; {} for another kind of denoiser."""
    denoiser = pipeline.denoiser
    if not isinstance(denoiser, LatentUNet):
        return {}
    clip = clip.to(pipeline.device)
    assert clip.waveform is not None
    mean = pipeline.encode(clip.waveform)
    at = torch.full((1,), time, device=mean.device)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(seed)).to(mean)
    noisy = pipeline.objective.noised(mean * pipeline.latent_scale, noise, at)
    with recorded_attention(denoiser.unet) as recorded, pipeline.computing(denoiser, pipeline.conditioner):
        denoiser(noisy, at, pipeline.conditioner(clip))
    levels: dict[str, list[np.ndarray]] = {}
    columns = mean.shape[2]
    depth = len(denoiser.unet.config["block_out_channels"])
    for name, weights in recorded.items():
        block, index, *_ = name.split(".")
        level = depth - 1 if block == "mid_block" else int(index)
        level = depth - 1 - level if block == "up_blocks" else level
        here = columns
        for _ in range(level):
            here = (here + 1) // 2
        levels.setdefault(f"level {level}, {here} columns", []).append(
            weights[0].unflatten(0, (here, -1)).mean(dim=1).float().cpu().numpy())
    return {name: np.mean(maps, axis=0) for name, maps in sorted(levels.items())}


def validation_curve(diffusion: Path) -> tuple[list[int], dict[str, list[float]]]:
    """⇒ (steps, {figure: values}) of timing, read from stage 3's csv logs; empty where there are none."""
    names = ("val/envelope_correlation", "val/onset_f1")
    rows: dict[int, dict[str, float]] = {}
    for path in sorted(diffusion.glob("logs/version_*/metrics.csv"), key=lambda p: int(p.parent.name.split("_")[1])):
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                found = {name: float(row[name]) for name in names if row.get(name)}
                if found:
                    rows[int(row["step"])] = found  # a resumed run's later log wins
    steps = sorted(rows)
    return [step + 1 for step in steps], {
        name.removeprefix("val/"): [rows[s].get(name, float("nan")) for s in steps] for name in names
        if any(name in row for row in rows.values())
    }


def figures_rows(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    """figures.json ⇒ rows of (figure, score, control, ceiling), the last ones left out where there are none."""
    titles = {metric.key: metric.title[0].lower() + metric.title[1:] for metric in figure_metrics()}
    timing, ceiling = figures["timing"], figures["ceiling"]
    rows: list[tuple[str, ...]] = []
    for name, parts in timing.items():
        rows.append((titles.get(name, name), *(_text(part) if part else "" for part in (
            parts["score"], parts.get("control"), ceiling[name]["score"]))))
        if "score_minus_control" in parts:
            rows.append(("  score − control", _text(parts["score_minus_control"])))
    if "sound_class" in figures:
        found = figures["sound_class"]
        rows.append((f"sound class, n={found['score']['n']}", _text(found["score"]), f"chance {found['chance']:.2f}",
                     _text(found["ceiling"])))
    if "swap" in figures:
        swap, kept = figures["swap"], figures["swap"]["timing"]["envelope_correlation"]
        rows.append(("word swapped: heard", _text(swap["follows_the_new_word"])))
        rows.append(("  its envelope corr.", _text(kept["score"]), _text(kept["control"])))
    for name in (name for name in titles if name in figures and name != "sound_class"):
        parts = [figures[name].get(part) for part in ("score", "control", "ceiling")]
        rows.append((titles[name], *(_text(part) if part else "" for part in parts)))
    if figures["vae"]["mel_error_share"] is not None:
        rows.append(("VAE mel error share", f"{figures['vae']['mel_error_share']:.3f}"))
    generated = figures["level"]["generated"]
    rows.append(("silent, clipped", f"{generated['silent_clips']:.3f}, {generated['clipping_rate']:.1e}"))
    minutes = sum(figures["seconds"].values()) / 60
    rows.append(("time, peak memory", f"{minutes:.1f} min, {figures['peak_memory_gb']} GB"))
    return rows


def figures_title(figures: dict[str, Any]) -> str:
    return f"{figures['exp']}: {figures['clips']} held-out clips, seed {figures['seed']}, mean [95 % interval]"


def figures_table(figures: dict[str, Any]) -> Table:
    """figures.json ⇒ the table at the end of a run: means with 95 % intervals, within 80 columns."""
    table = Table(title=figures_title(figures), title_justify="left", box=None, pad_edge=False)
    for column in FIGURE_COLUMNS:
        table.add_column(column, justify="left" if column == "figure" else "right", no_wrap=True)
    for row in figures_rows(figures):
        table.add_row(*row)
    return table


def _text(interval: dict[str, Any]) -> str:
    if interval["mean"] is None:
        return "not defined"
    if interval["low"] is None:
        return f"{interval['mean']:.2f}"
    return f"{interval['mean']:.2f} [{interval['low']:.2f}, {interval['high']:.2f}]"


class FiguresStage(Stage):
    """Measures the run's model, or ``model=…`` ⇒ figures.json, samples and pictures."""

    name = "figures"
    trains = False

    def settings(self, job: JobSettings) -> dict[str, Any]:
        # runs that were made before figures had steps don't have the key
        figures = {key: value for key, value in job.figures.items() if key != "steps" or value is not None}
        return job.common_settings() | {"figures": figures, "model": job.model, "sampler": job.sampler}

    def reads(self, job: JobSettings) -> Sequence[str]:
        return ["model" if job.model else "diffusion"]

    def plan(self, job: JobSettings) -> tuple[str, float]:
        return f"{job.figures['clips']} held-out clips", job.figures["expected_s"]

    def check(self, job: JobSettings) -> None:
        if "diffusion" not in job.stages:
            build_sampling(job.sampler, read_recipe(_model(job)).objective or {"_target_": "v_prediction"})

    def train(self, job: JobSettings, context: StageContext) -> None:
        """Generate, each process its share, and measure, the first alone; nothing is trained."""
        prepared: list[tuple[Pipeline, HeldOut]] = []
        context.processes.on_all_ranks(lambda: prepared.append(self._prepared(job, context)))
        pipeline, clips = prepared[0]
        with context.progress.phase("generate", 2 * len(clips.records) + len(clips.single)) as phase:
            sounds = SoundMaker(pipeline, job.figures["batch_size"], context.preemption, phase.advance).make(
                clips, job.seed)
        context.processes.on_first_rank(lambda: self._measure(job, context, pipeline, clips, sounds))

    def _prepared(self, job: JobSettings, context: StageContext) -> tuple[Pipeline, HeldOut]:
        """The finished model on this process's device, and the clips. Raises InputError where it was trained on other
        features than theirs."""
        pipeline = load(_model(job), device="cuda" if torch.cuda.is_available() else "cpu")
        require_same_features(pipeline.trained_on, pipeline.spec, str(context.root), context.info)
        pipeline.sampler = build(job.sampler)  # with model=…, of a model trained with another one
        pipeline.sampler = pipeline.sampler_for(None, job.figures.get("steps"))
        source, data = context.source, context.datamodule("figures", job.numbers("diffusion"))
        return pipeline, held_out(data.reader(source.test_split), data.reader(source.train_split), pipeline,
                                  job.figures["clips"], lambda record, wave: true_onsets(source, record, wave))

    def _measure(self, job: JobSettings, context: StageContext, pipeline: Pipeline, clips: HeldOut,
                 sounds: Sounds) -> None:
        folder = self.folder(job).path
        with context.progress.times.part("measure"):
            figures = measure(clips, sounds, job.seed)
        figures["seed"], figures["exp"] = job.seed, job.exp
        show(folder, pipeline, clips, sounds.generated, context.source, job.folder / "diffusion",
             job.figures["samples"])
        write_text(folder / "measured.json", json.dumps(figures, indent=1) + "\n")

    def report(self, job: JobSettings, context: StageContext) -> None:
        """Write figures.json and, of the run's own model, the figures into its card; log and print them."""
        folder, model = self.folder(job).path, _model(job)
        figures = json.loads((folder / "measured.json").read_text()) | _provenance(job, model)
        write_text(job.folder / "figures.json", json.dumps(figures, indent=1) + "\n")
        if job.model is None:
            card = model_card(read_content(model), figures_rows(figures), figures_title(figures))
            write_text(model / CARD_NAME, card)
        _log(context, folder, figures)
        context.console.print(figures_table(figures))
        for name, reason in figures.get("left_out", {}).items():
            context.console.print(f"  {name} left out: {reason}", highlight=False)
        for path in sorted((folder / "samples").glob("*.mp4")):
            context.console.print(f"  {path}", highlight=False)
        context.console.print(f"figures: {job.folder / 'figures.json'}", highlight=False)


def _model(job: JobSettings) -> Path:
    """The folder of the model to measure."""
    return named_folder(job.model) if job.model else job.model_of("diffusion")


def _log(context: StageContext, folder: Path, figures: dict[str, Any]) -> None:
    """To the loggers, under the names that evaluate.py uses, so that tables of runs and of evaluations agree."""
    loggers = [make(save_dir=str(folder), name="logs") for make in context.loggers]
    for logger in loggers:
        logger.log_metrics(mean_scores(figures), step=0)
        logger.save()
    close(loggers)


def _provenance(job: JobSettings, model: Path) -> dict[str, Any]:
    peak = sum(resource.getrusage(process).ru_maxrss for process in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "seconds": json.loads((job.folder / "seconds.json").read_text()),
        "peak_memory_gb": round(peak / 1024**2, 2), "model": str(model), "code_version": __version__,
        "torch": torch.__version__, "device": "cuda" if torch.cuda.is_available() else "cpu",
        "parameters": {part: _parameters(model, part) for part in ("codec", "denoiser", "conditioner")},
    }


def _parameters(model: Path, part: str) -> int:
    """Parameters of a part, counted from its file's header."""
    import safetensors

    with safetensors.safe_open(weights_file(model, part), "np") as file:
        return sum(int(torch.Size(file.get_slice(k).get_shape()).numel()) for k in file.keys())
