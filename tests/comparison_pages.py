"""Requests for comparison pages made of small synthetic clips, and what a written page says, read back."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from conftest import write_video

from vta_sam.evaluation.comparison import PageClip, PageRequest
from vta_sam.evaluation.metric import Metric
from vta_sam.evaluation.pairing import SoundFile, Words
from vta_sam.evaluation.results import ClipScores, Evaluation, Figure, SystemResult
from vta_sam.media.audio import write_wav
from vta_sam.metrics.intervals import Interval

RATE_HZ = 16_000
DURATION_S = 1.0
CLICK_S = 0.5
SYSTEMS = ("truth", "ours", "theirs")
COLUMNS = (
    Metric("onset_f1", "Onset F1", "high", "clip", control=True, source="mir_eval.onset", group="Timing"),
    Metric("frechet_tiny", "Fréchet distance", "low", "set", source="Heusel et al., 2017"),
    Metric("loudness_dbfs", "Loudness (RMS)", "none", "clip", "dBFS", 1, group="Level"),
)
VOID = {"meta", "link", "input", "img", "br", "path"}


def click(time_s: float = CLICK_S, level: float = 0.8) -> np.ndarray:
    """A sound (samples,) of one click that rings for 20 ms."""
    sound = np.zeros(round(DURATION_S * RATE_HZ), np.float32)
    start = round(time_s * RATE_HZ)
    ring = np.arange(320)
    sound[start:start + 320] = level * np.sin(2 * np.pi * 1500 * ring / RATE_HZ) * np.exp(-ring / 80)
    return sound


def evaluation_of(systems=SYSTEMS, ids=("a", "b"), columns=COLUMNS, silent: float = 0.0) -> Evaluation:
    """Figures that differ by system; the last system has ``silent`` of its clips silent."""
    results = {}
    for n, name in enumerate(systems):
        figures = {"onset_f1": Figure(Interval(0.5 + n / 10, 0.4, 0.9, 2, 1), Interval(0.2, 0.1, 0.3, 2)),
                   "frechet_tiny": Figure(Interval(2.0 + n, 1.0, 9.0, 2)),
                   "loudness_dbfs": Figure(Interval(-20.0 - n, -30.0, -10.0, 2))}
        values = {"onset_f1": 0.25 * n, "loudness_dbfs": None}
        clips = {clip_id: ClipScores(values, [CLICK_S], False) for clip_id in ids}
        share = Interval(silent if n + 1 == len(systems) else 0.0, 0.0, 1.0, 2)
        results[name] = SystemResult(name, figures, clips, len(ids), share)
    return Evaluation(list(columns), results, list(ids), reference=systems[0], provenance={"seed": 0, "of": {"x": "y"}})


def request_in(folder: Path, ids=("a", "b"), systems=SYSTEMS, **changes) -> PageRequest:
    """A page in folder/out: all systems but the last have one playable video for all clips, the last has a wav."""
    video = write_video(folder / "clip.mp4", size=(96, 64), duration_s=DURATION_S, sound=click())
    wav = folder / "clip.wav"
    write_wav(wav, click(), RATE_HZ)
    sounds = {name: {clip_id: SoundFile(clip_id, 0, video, video) for clip_id in ids} for name in systems[:-1]}
    sounds[systems[-1]] = {clip_id: SoundFile(clip_id, 0, wav, None) for clip_id in ids}
    probs = np.linspace(0, 1, 10)[:, None]
    clips = [PageClip(clip_id, Words("dog", f"a dog barks in {clip_id}", ("dog",)), (["dog"], probs, DURATION_S),
                      np.array([CLICK_S])) for clip_id in ids]
    request = PageRequest("A comparison", evaluation_of(systems, ids), sounds, clips,
                          {clip_id: video for clip_id in ids}, folder / "out")
    for name, value in changes.items():
        setattr(request, name, value)
    return request


def clips_of(out: Path) -> list[str]:
    """The markup of every clip, in order."""
    markup = []
    for script in sorted((out / "pages").glob("0*.js")):
        _, clips = arguments_of(script)
        markup += clips
    return markup


def arguments_of(script: Path) -> list:
    """What a script of data hands to the page."""
    text = script.read_text(encoding="utf-8")
    assert text.startswith("comparison.") and text.endswith(");\n") and "<" not in text
    return json.loads(f"[{text[text.index('(') + 1:-3]}]")


class Markup(HTMLParser):
    """Elements in order as (tag, attributes), texts, and the faults of nesting."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.faults: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        self.faults += [f"<{tag}> is never closed" for tag in self._open]

    def handle_starttag(self, tag, attrs):
        if len(dict(attrs)) != len(attrs):
            self.faults.append(f"<{tag}> has an attribute twice")
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self._open or self._open[-1] != tag:
            self.faults.append(f"</{tag}> closes {self._open[-1:]} ")
        else:
            self._open.pop()

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, name: str) -> list[str]:
        """The values of an attribute, wherever it stands."""
        return [value for _, attributes in self.elements if (value := attributes.get(name))]
