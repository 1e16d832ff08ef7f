"""From an evaluation to its page: which clips, which words and events, which pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..evaluation.plan import Plan
from ..evaluation.request import Request
from ..evaluation.results import Evaluation
from ..evaluation.truth import Timeline, timelines, true_events
from .page import write_page
from .request import PageClip, PageRequest


def write_comparison(evaluation: Evaluation, plan: Plan, asked: Request, out: Path, title: str, note: str = "",
                     shards: Path | None = None, progress: Callable[[int, int], None] = lambda done, total: None,
                     ) -> Path:
    """Write the page of an evaluation ⇒ its index.html.

    plan, asked: what was evaluated. shards: dataset of the clips, whose object probabilities are drawn over time.
    Sounds that were skipped as bad are absent from the page as well.
    """
    published = _without_folders(evaluation, asked)
    known = timelines(shards, evaluation.clips) if shards is not None else {}
    clips = [_page_clip(clip_id, plan, asked, known.get(clip_id)) for clip_id in evaluation.clips]
    sounds = {name: {clip_id: files[0] for clip_id, files in found.items()
                     if clip_id in evaluation.systems[name].clips} for name, found in plan.sounds.items()}
    return write_page(PageRequest(title, published, sounds, clips, plan.videos, out, note), progress)


def _without_folders(evaluation: Evaluation, asked: Request) -> Evaluation:
    """Where files lay on one machine is nobody else's business: folders by their last name, in sentences too."""
    known = [*asked.systems.values(), asked.reference, asked.videos, asked.weights, asked.ceiling]
    folders = sorted({str(folder) for folder in known if folder is not None}, key=len, reverse=True)

    def told(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: told(item) for key, item in value.items()}
        if isinstance(value, str):
            for folder in folders:
                value = value.replace(folder, Path(folder).name)
        return value

    systems = {name: replace(system, bad=told(system.bad), figures={
        key: replace(figure, reason=told(figure.reason)) for key, figure in system.figures.items()
    }) for name, system in evaluation.systems.items()}
    return replace(evaluation, systems=systems, missing=told(evaluation.missing),
                   provenance=told(evaluation.provenance))


def _page_clip(clip_id: str, plan: Plan, asked: Request, timeline: Timeline | None) -> PageClip:
    exact = true_events(plan.references[clip_id].path)
    words = asked.words.get(clip_id)
    if words is None and exact is not None:
        words = exact[1]
    probabilities = None if timeline is None else (timeline.objects, timeline.probs, timeline.duration_s)
    clip = PageClip(clip_id, timeline=probabilities, events_s=None if exact is None else exact[0])
    if words is not None:
        clip.words = words
    return clip
