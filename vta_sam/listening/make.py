"""Make a listening test: ``raters/``, a folder to hand out, and ``key.json``, which stays at home."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
from jinja2 import Environment, PackageLoader, select_autoescape

from .. import __version__
from ..atomic import atomic_path, write_text
from ..errors import InputError
from ..evaluation.files import SoundFile, find_sounds
from ..generation.inputs import check_number
from ..mel import SAMPLE_RATE_HZ
from .design import Item, plans, tokens
from .stimuli import HIDDEN, clip_stimuli, headphone_trials, write_stimulus

FORMAT = 1
KEY_NAME, RATERS_NAME = "key.json", "raters"
PRACTICE = "practice"
_LONG_AGO = 946_684_800  # 2000-01-01


@dataclass(frozen=True)
class TestRequest:
    """systems: {name: folder}; reference: folder of the true sounds; clips: how many (evenly from the sorted ids), or
    None for all that every system has; raters: how many there may be; per_rater: systems' stimuli each judges, None for
    all; keep_level: don't match loudness; videos: folder of pictures, None for the reference's own."""

    __test__ = False  # no test, whatever pytest thinks of the name

    systems: Mapping[str, Path]
    reference: Path
    out: Path
    clips: int | None = 12
    raters: int = 20
    per_rater: int | None = None
    seed: int = 0
    title: str = "Listening test"
    keep_level: bool = False
    videos: Path | None = None

    def __post_init__(self):
        for name in ("raters", *(name for name in ("clips", "per_rater") if getattr(self, name) is not None)):
            check_number(f"--{name.replace('_', '-')}", getattr(self, name), 1, whole=True)
        check_number("--seed", self.seed, 0, whole=True)
        hidden = [name for name in self.systems if name in HIDDEN]
        if hidden or not self.systems:
            raise InputError(f"--systems: {', '.join(hidden) or 'no system'} to be judged; name folders of systems")


def make_test(request: TestRequest, progress: Callable[[int, int], None] = lambda done, total: None) -> Path:
    """Write the test ⇒ the page to open. InputError: a folder that already holds a test, no clip that all systems have,
    a file that can't be used."""
    if request.out.exists() and any(request.out.iterdir()):
        raise InputError(f"--out {request.out} is not empty; a test that was handed out must not change under its "
                         "raters: name another folder")
    references, systems = find_sounds(request.reference), {n: find_sounds(f) for n, f in request.systems.items()}
    chosen = _chosen(references, systems, request.clips)
    pictures = find_sounds(request.videos) if request.videos else references
    conditions = [*request.systems, *HIDDEN]
    names = tokens(len(chosen) * len(conditions) + 1, request.seed)
    media = request.out / RATERS_NAME / "media"
    items: list[Item] = []
    files: dict[str, str] = {}
    for done, clip in enumerate(chosen):
        video = pictures[clip][0].video if clip in pictures else None
        sounds = {name: found[clip][0] for name, found in systems.items()}
        for stimulus in clip_stimuli(clip, references[clip][0], sounds, request.keep_level):
            token = names[len(items)]
            files[token] = f"media/{write_stimulus(stimulus, video, media / token).name}"
            items.append(Item(token, clip, stimulus.condition))
            if stimulus.condition == HIDDEN[0] and not done:  # what is practised on is heard again later, unnamed
                files[PRACTICE] = f"media/{write_stimulus(stimulus, video, media / names[-1]).name}"
        progress(done + 1, len(chosen))
    trials = _write_trials(media, request.seed)
    planned = plans(items, request.raters, request.per_rater, request.seed)
    test_id = hashlib.sha256(json.dumps([planned, request.title, sorted(files.values())]).encode()).hexdigest()[:16]
    data = {"format": FORMAT, "test": test_id, "title": request.title, "raters": planned,
            "media": dict(sorted(files.items())), "headphones": trials}
    key = {"format": FORMAT, "test": test_id, "title": request.title, "code_version": __version__, "seed": request.seed,
           "items": [asdict(item) for item in items], "raters": planned, "loudness_matched": not request.keep_level,
           "systems": {name: str(folder) for name, folder in request.systems.items()},
           "reference": str(request.reference)}
    _write_page(request.out / RATERS_NAME, request.title, data)
    for path in media.iterdir():  # the order of their making would tell what is what
        os.utime(path, (_LONG_AGO, _LONG_AGO))
    write_text(request.out / KEY_NAME, json.dumps(key, indent=1, ensure_ascii=False) + "\n")
    return request.out / RATERS_NAME / "index.html"


def _chosen(references: dict[str, list[SoundFile]], systems: dict[str, dict[str, list[SoundFile]]],
            count: int | None) -> list[str]:
    common = [clip for clip in references if all(clip in found for found in systems.values())]
    if not common:
        raise InputError("no clip of the reference is there from every system; their ids are their files' names")
    if count is None or count >= len(common):
        return common
    return [common[i * len(common) // count] for i in range(count)]


def _write_trials(media: Path, seed: int) -> list[dict[str, str | int]]:
    trials: list[dict[str, str | int]] = []
    for number, (sound, answer) in enumerate(headphone_trials(seed), 1):
        name = f"tones-{number}.wav"
        with atomic_path(media / name) as temporary:
            soundfile.write(temporary, np.clip(sound, -1, 1), SAMPLE_RATE_HZ, format="WAV", subtype="PCM_16")
        trials.append({"file": f"media/{name}", "answer": answer})
    return trials


def _write_page(folder: Path, title: str, data: dict) -> None:
    environment = Environment(loader=PackageLoader("vta_sam.listening", "assets"),
                              autoescape=select_autoescape(default=True))
    write_text(folder / "index.html", environment.get_template("index.html").render(title=title))
    # in a script and not in json: pages opened from a folder may not fetch files. No "<" can end the script early
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    write_text(folder / "data.js", f"window.TEST = {text};\n")
    assets = Path(__file__).parent / "assets"
    for name in ("test.css", "test.js"):
        with atomic_path(folder / name) as temporary:
            shutil.copyfile(assets / name, temporary)
