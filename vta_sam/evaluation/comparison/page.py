"""The comparison page of an evaluation: a static folder that plays, shows and measures every clip of every system.

Media are written first, then clips in scripts of a dozen, then a small index that loads the clips on screen. A new page
is written beside the old one and takes its place when it is whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Iterator

import jinja2
import numpy as np

from ...dataset.shards.schema import read_dataset
from ...media.audio import read_audio
from ...mel import SAMPLE_RATE_HZ
from ...plots import clip_pictures
from ...plots.clip_pictures import check_probabilities
from ...runtime.errors import InputError
from ...runtime.files import reason_of, write_fault, write_text, writing_to
from ...runtime.work_plan import Deed, Item
from ..metric import true_events
from ..pairing import Plan, SoundFile, Timeline, Words, timelines
from ..evaluate import Request
from ..results import ClipScores, Evaluation
from . import page_tables, players
from .players import Player, make_player, without_folders


@dataclass
class PageClip:
    """One clip: a column of the page.

    Args:
        id: of the clip.
        words: label, caption and objects, as far as known.
        timeline: names of K objects, their probabilities (T, K) in [0, 1] spread evenly over duration_s, and
            duration_s; None: not known.
        events_s: true onsets in seconds; None: not known.
    """

    id: str
    words: Words = field(default_factory=Words)
    timeline: tuple[list[str], np.ndarray, float] | None = None
    events_s: np.ndarray | None = None


@dataclass
class PageRequest:
    """A page to be written.

    Args:
        title: of the page.
        evaluation: its figures.
        sounds: {system: {clip id: its first sample}}; a row each, in this order, the true sound first.
        clips: a column each.
        videos: {clip id: pictures} for systems that have only sound.
        out: the folder of index.html.
        note: a sentence under the title.
        faults: gets a sentence for each sound and picture that can't be shown.
    """

    title: str
    evaluation: Evaluation
    sounds: dict[str, dict[str, SoundFile]]
    clips: list[PageClip]
    videos: dict[str, Path]
    out: Path
    note: str = ""
    faults: list[str] = field(default_factory=list)

    @property
    def systems(self) -> list[str]:
        """The rows."""
        return sorted(self.sounds, key=lambda name: name != self.evaluation.reference)

    def check(self) -> None:
        """InputError: nothing to show, a clip twice, a timeline that doesn't fit, a source inside ``out``."""
        ids = [clip.id for clip in self.clips]
        if not ids or not self.sounds:
            raise InputError(f"{self.out}: a page needs a clip and a system at least, got {len(ids)} clips and "
                             f"{len(self.sounds)} systems")
        twice = sorted({clip_id for clip_id in ids if ids.count(clip_id) > 1}) if len(set(ids)) < len(ids) else []
        if twice:
            raise InputError(f"{self.out}: clip {twice[0]!r} is named twice; name each clip once")
        for clip in self.clips:
            if clip.timeline is not None:
                objects, probs, duration_s = clip.timeline
                check_probabilities(objects, probs)
                if not np.isfinite(probs).all() or not duration_s > 0:
                    raise InputError(f"clip {clip.id!r}: its object probabilities hold NaN or infinity, or last "
                                     f"{duration_s} s; extract it anew")
        out = self.out.resolve()
        sources = [file.path for files in self.sounds.values() for file in files.values()]
        for path in [*sources, *self.videos.values()]:
            if out in path.resolve().parents:
                raise InputError(f"{path} lies in out={self.out}, which the page replaces; name another folder")


MARKER = "comparison.json"
OWN = ("assets", "media", "pages", "index.html")  # index.html last: while it is missing, there is no page
NEIGHBOURS = ("results",)  # the evaluation's tables, which others write beside the page
_NEW, _OLD = ".new", ".old"


@contextmanager
def replaced(out: Path) -> Iterator[Path]:
    """Give an empty folder to write a page into. When the block ends, it replaces the page in ``out``; if the block
    raises, the old page stays as it was.

    Raises:
        InputError: ``out`` is a file, can't be written to, or holds other files and no page.
    """
    _claim(out)
    new, old = out / _NEW, out / _OLD
    try:
        for folder in (new, old):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        yield new
        for name in reversed(OWN):
            if (out / name).exists() or (out / name).is_symlink():
                (out / name).rename(old / name)
        for name in OWN:
            (new / name).rename(out / name)
    except OSError as error:
        raise InputError(write_fault(error, out) or f"out={out}: the page can't be written "
                                                    f"({error.strerror or error})") from error
    finally:
        for folder in (new, old):
            shutil.rmtree(folder, ignore_errors=True)


def _claim(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not (out / MARKER).is_file():
            foreign = sorted(path.name for path in out.iterdir() if path.name not in (*NEIGHBOURS, _NEW, _OLD))
            if foreign:
                raise InputError(f"out={out} holds {', '.join(foreign[:3])}{' …' * (len(foreign) > 3)} and no "
                                 f"comparison page ({MARKER} is missing); name a new or empty folder")
            write_text(out / MARKER, json.dumps({"page": "vta_sam.evaluation.comparison", "format": 1}) + "\n")
    except FileExistsError as error:
        raise InputError(f"out={out} is a file; name a folder") from error
    except OSError as error:
        raise InputError(f"out={out} can't be written to ({error.strerror}); name another folder") from error


CLIPS_PER_SCRIPT = 12
LONGEST_S = 600.0
LONGEST_CAPTION = 120  # characters; the rest of a longer one is a click away
_ASSETS = Path(__file__).with_name("assets")
_POSTER_AT = 1 / 3  # of a clip: more is to be seen there than at its start


@dataclass
class Cell:
    """One system's clip. player, picture: None ⇒ there is no sound, and ``gap`` says why. picture: file name of the
    spectrogram; length_s: of the sound; scores: as they are shown; silent: no 50 ms of it are above -60 dBFS."""

    system: str
    reference: bool
    player: Player | None = None
    picture: str | None = None
    length_s: float = 0.0
    gap: str = ""
    onsets_s: list[float] = field(default_factory=list)
    silent: bool = False
    scores: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def write_page(request: PageRequest, progress: Callable[[int, int], None] = lambda done, total: None) -> Path:
    """Write the page ⇒ its index.html.

    The cell of a sound that can't be read says why. One clip's systems are in memory at a time. The same request gives
    the same bytes.

    Args:
        request: the page.
        progress: is called with the clips done, and of how many.

    Raises:
        InputError: see :meth:`PageRequest.check` and :func:`replaced`.
    """
    request.check()
    with writing_to(request.out), replaced(request.out) as folder:
        for name in ("assets", "media", "pages"):
            (folder / name).mkdir()
        for name in ("page.css", "page.js"):
            shutil.copyfile(_ASSETS / name, folder / "assets" / name)
        chunk: list[str] = []
        for number, clip in enumerate(request.clips):
            chunk.append(_clip_markup(request, clip, number, folder / "media"))
            if len(chunk) == CLIPS_PER_SCRIPT or number + 1 == len(request.clips):
                page = number // CLIPS_PER_SCRIPT
                _write_script(folder / "pages" / f"{page + 1:04d}.js", "addClips", page, chunk)
                chunk = []
            progress(number + 1, len(request.clips))
        _write_script(folder / "pages" / "index.js", "start", CLIPS_PER_SCRIPT,
                      [[clip.id, " ".join(_words(clip))] for clip in request.clips])
        write_text(folder / "index.html", _index_markup(request))
    return request.out / "index.html"


def _index_markup(request: PageRequest) -> str:
    evaluation = request.evaluation
    metrics, rows = page_tables.shown_metrics(evaluation), page_tables.rows(evaluation)
    return _template("index.html.j2").render(
        title=request.title, note=request.note, evaluation=evaluation, systems=request.systems,
        clips=len(request.clips), columns=metrics, column_groups=page_tables.groups(metrics),
        group_of={metric.key: metric.group for metric in metrics}, rows=rows, panels=page_tables.headlines(evaluation),
        usual=page_tables.usual_basis(rows),
        differences=page_tables.differences(evaluation), missing=page_tables.missing(evaluation),
        provenance=page_tables.provenance(evaluation), shown_db=round(clip_pictures.SHOWN_DB),
        several=any(system.samples > len(system.clips) > 0 for system in evaluation.systems.values()),
        timelines=any(clip.timeline is not None for clip in request.clips),
        events=any(clip.events_s is not None for clip in request.clips),
    )


def _clip_markup(request: PageRequest, clip: PageClip, number: int, media: Path) -> str:
    cells, mels = [], []
    for row, system in enumerate(request.systems):
        cell, mel_db = _cell(request, clip, system, media, f"c{number + 1:04d}-s{row:02d}")
        cells.append(cell)
        mels.append(mel_db)
    duration_s = max([cell.length_s for cell in cells] + [clip.timeline[2] if clip.timeline else 0.0]) or 1.0
    known = [mel for mel in mels if mel is not None]
    for row, (cell, mel_db) in enumerate(zip(cells, mels)):
        if mel_db is not None:
            name = f"c{number + 1:04d}-s{row:02d}.png"
            try:
                players.write_spectrogram(media / name, mel_db, clip_pictures.loudest_db(*known), duration_s)
                cell.picture = name
            except Exception as error:  # of any kind that a drawing library may raise
                if write_fault(error, request.out):
                    raise
                cell.notes.append("its spectrogram could not be drawn")
                request.faults.append(f"{clip.id}, {cell.system}: its spectrogram could not be drawn ({error})")
    poster = _poster(request, clip, media, f"c{number + 1:04d}.jpg", duration_s)
    return _template("clip.html.j2").render(
        clip=clip, number=number, cells=cells, duration_s=duration_s, poster=poster,
        lanes=players.lanes(clip.timeline, duration_s), ticks=players.ticks(duration_s), percents=players.percents,
        events_s=[] if clip.events_s is None else [float(time) for time in clip.events_s],
        frequencies=players.frequency_marks(), longest=LONGEST_CAPTION,
    )


def _cell(request: PageRequest, clip: PageClip, system: str, media: Path, stem: str) -> tuple[Cell, np.ndarray | None]:
    """⇒ the cell without its picture, and the log-mel in dB (frames, 64) that is to be drawn, None without sound."""
    result = request.evaluation.systems.get(system)
    scores: ClipScores | None = result.clips.get(clip.id) if result is not None else None
    cell = Cell(system, system == request.evaluation.reference)
    cell.scores = page_tables.clip_scores(page_tables.shown_metrics(request.evaluation), scores)
    if scores is not None:
        cell.onsets_s, cell.silent, cell.notes = list(scores.onsets_s), scores.silent, list(scores.notes)
    sound = request.sounds[system].get(clip.id)
    if sound is None:
        cell.gap = "no sound of this clip"
        return cell, None
    pictures = request.videos.get(clip.id)
    try:
        waveform = read_audio(sound.path, sample_rate_hz=SAMPLE_RATE_HZ, longest_s=LONGEST_S)
        if not np.isfinite(waveform).all():
            raise InputError(f"{sound.path} holds NaN or infinity")
        cell.player = make_player(sound, waveform, pictures, media, stem)
    except (InputError, OSError, UnicodeError) as error:
        if write_fault(error, request.out):
            raise
        reason = reason_of(error, sound.path)
        cell.gap = without_folders(reason, *_paths(sound, pictures))
        request.faults.append(f"{clip.id}, {system}: {reason}")
        return cell, None
    cell.notes += cell.player.notes
    cell.length_s = len(waveform) / SAMPLE_RATE_HZ
    return cell, clip_pictures.decibels(waveform, SAMPLE_RATE_HZ)


def _paths(sound: SoundFile, pictures: Path | None) -> list[Path]:
    return [path for path in (sound.path, sound.video, pictures) if path is not None]


def _poster(request: PageRequest, clip: PageClip, media: Path, name: str, duration_s: float) -> str | None:
    """Write one poster for all systems of a clip, of the first file with a picture ⇒ its name."""
    shown = [request.sounds[system].get(clip.id) for system in request.systems]
    videos = [request.videos.get(clip.id), *(sound.video for sound in shown if sound is not None)]
    for video in dict.fromkeys(path for path in videos if path is not None):
        for time_s in (_POSTER_AT * duration_s, 0.0):
            try:
                players.write_poster(media / name, video, time_s)
                return name
            except (InputError, OSError, UnicodeError) as error:
                if write_fault(error, request.out):
                    raise
                continue  # its cells hold the reason
    return None


def _words(clip: PageClip) -> list[str]:
    return [words for words in (clip.words.label, clip.words.caption, *clip.words.objects) if words]


def _write_script(path: Path, function: str, *arguments: Any) -> None:
    """A script that hands data to the page: files can't be fetched from disk, but scripts can be loaded."""
    data = ",".join(json.dumps(argument, ensure_ascii=False, separators=(",", ":")) for argument in arguments)
    write_text(path, f"comparison.{function}({data.replace('<', chr(92) + 'u003c')});\n")


@lru_cache(maxsize=None)
def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(_ASSETS), autoescape=True, trim_blocks=True,
                                     lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.get_template(name)


def write_comparison(evaluation: Evaluation, plan: Plan, asked: Request, out: Path, title: str, note: str = "",
                     shards: Path | None = None, progress: Callable[[int, int], None] = lambda done, total: None,
                     faults: list[str] | None = None) -> Path:
    """Write the page of an evaluation ⇒ its index.html. Sounds that were skipped as bad are absent from the page too.

    Args:
        evaluation: its figures.
        plan: which file is which clip's.
        asked: the evaluation's request.
        out: the page's folder.
        title: of the page.
        note: a sentence under the title.
        shards: dataset of the clips, whose object probabilities are drawn over time.
        progress: is called with the clips done, and of how many.
        faults: gets a sentence for each sound and picture that can't be shown.
    """
    if shards is not None:
        evaluation.provenance["dataset"] = read_dataset(shards).fingerprint
    published = _without_folders(evaluation, asked)
    known = timelines(shards, evaluation.clips) if shards is not None else {}
    clips = [_page_clip(clip_id, plan, asked, known.get(clip_id)) for clip_id in evaluation.clips]
    sounds = {name: {clip_id: files[0] for clip_id, files in found.items()
                     if clip_id in evaluation.systems[name].clips} for name, found in plan.sounds.items()}
    return write_page(PageRequest(title, published, sounds, clips, plan.videos, out, note,
                                  [] if faults is None else faults), progress)


def page_item(plan: Plan, out: Path) -> Item:
    """The page's row in the plan of a comparison: whether there is one already, and the size of its media."""
    files = [file for found in plan.sounds.values() for samples in found.values() for file in samples[:1]]
    size = sum(file.path.stat().st_size for file in files)
    there = (out / MARKER).exists()
    return Item(f"{out.name}/", Deed.REPLACE if there else Deed.MAKE, "a page that plays and shows them", size)


def _without_folders(evaluation: Evaluation, asked: Request) -> Evaluation:
    """⇒ the evaluation with folders by their last name alone, in sentences too: a published page shows no paths."""
    known = [*asked.systems.values(), asked.reference, asked.videos, asked.weights, asked.ceiling]
    folders = sorted({str(folder) for folder in known if folder is not None}, key=len, reverse=True)

    def shortened(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shortened(item) for key, item in value.items()}
        if isinstance(value, str):
            for folder in folders:
                value = value.replace(folder, Path(folder).name)
        return value

    systems = {name: replace(system, bad=shortened(system.bad), figures={
        key: replace(figure, reason=shortened(figure.reason)) for key, figure in system.figures.items()
    }) for name, system in evaluation.systems.items()}
    return replace(evaluation, systems=systems, missing=shortened(evaluation.missing),
                   provenance=shortened(evaluation.provenance))


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
