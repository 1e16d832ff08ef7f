"""Making a listening test: its stimuli, alike in all but sound; ``raters/``, a folder to hand out; and ``key.json``,
which stays with its makers.

Stimuli are every system's sound, the hidden reference and two anchors, alike in all but sound. Each rater's stimuli and
their order are blind, random, balanced, and a function of the seed and the rater's number.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyloudnorm
import soundfile
from jinja2 import Environment, PackageLoader, select_autoescape
from scipy.signal import butter, sosfiltfilt

from ... import __version__
from ...media.audio import write_wav
from ...media.muxing import mux
from ...mel import SAMPLE_RATE_HZ
from ...runtime import work_plan
from ...runtime.cli import check_number
from ...runtime.errors import InputError
from ...runtime.files import atomic_path, printable, reason_of, temporary_beside, write_text, writing_to
from ..pairing import SoundFile, find_sounds
from ..sounds import LoadingPolicy, read_sound

REFERENCE, SHIFTED, LOW_PASSED = "hidden reference", "anchor: shifted", "anchor: low-passed"
HIDDEN = (REFERENCE, SHIFTED, LOW_PASSED)
SHIFT_S = 1.0  # the anchor of alignment: the true sound, this much late, its end moved to the start
LOW_PASS_HZ = 3500.0  # the anchor of quality: the low anchor of ITU-R BS.1534
TARGET_LUFS = -23.0  # EBU R 128
PEAK = 0.95
_ORDER = 8  # of the Butterworth filter, run forwards and backwards


@dataclass(frozen=True)
class Stimulus:
    """One sound of one clip. condition: a system's name, or one of HIDDEN."""

    clip: str
    condition: str
    waveform: np.ndarray


def clip_stimuli(clip: str, reference: SoundFile, systems: dict[str, SoundFile], keep_level: bool = False,
                 longest_s: float = 30.0) -> list[Stimulus]:
    """The stimuli of one clip, all of the true sound's length ⇒ one per system, then the hidden ones.

    Unless ``keep_level``, all have one loudness (ITU-R BS.1770): -23 LUFS, or less where one of them would pass a peak
    of 0.95, so that none gives itself away by level. A silent one stays silent. InputError naming the file: it can't be
    read, or the true sound is silent.
    """
    policy = LoadingPolicy(longest_s=longest_s)
    true = read_sound(reference.path, policy)
    waveforms = {name: read_sound(file.path, policy).fitted(len(true.waveform)).waveform
                 for name, file in systems.items()}
    waveforms |= {REFERENCE: true.waveform, SHIFTED: shifted(true.waveform), LOW_PASSED: low_passed(true.waveform)}
    if not np.any(true.waveform):
        raise InputError(f"{reference.path} is silent; a silent clip can't be judged, leave it out")
    if not keep_level:
        waveforms = equally_loud(waveforms)
    return [Stimulus(clip, name, waveform) for name, waveform in waveforms.items()]


def shifted(waveform: np.ndarray) -> np.ndarray:
    """One second later, circularly. InputError: no longer than that."""
    if len(waveform) <= round(SHIFT_S * SAMPLE_RATE_HZ):
        raise InputError(f"a clip of {len(waveform) / SAMPLE_RATE_HZ:.2f} s is too short for the anchor that is "
                         f"shifted by {SHIFT_S:g} s")
    return np.roll(waveform, round(SHIFT_S * SAMPLE_RATE_HZ))


def low_passed(waveform: np.ndarray) -> np.ndarray:
    """The sound below 3.5 kHz, without delay."""
    sections = butter(_ORDER, LOW_PASS_HZ, fs=SAMPLE_RATE_HZ, output="sos")
    return sosfiltfilt(sections, waveform.astype(np.float64)).astype(np.float32)


def equally_loud(waveforms: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Scaled to one integrated loudness."""
    meter = pyloudnorm.Meter(SAMPLE_RATE_HZ)
    loudness = {name: float(meter.integrated_loudness(waveform.astype(np.float64)))
                for name, waveform in waveforms.items()}
    audible = {name: lufs for name, lufs in loudness.items() if np.isfinite(lufs)}
    highest = [lufs + 20 * np.log10(PEAK / np.abs(waveforms[name]).max()) for name, lufs in audible.items()]
    target = min([TARGET_LUFS, *highest])
    return {name: waveform * np.float32(10 ** ((target - audible[name]) / 20)) if name in audible else
            np.zeros_like(waveform) for name, waveform in waveforms.items()}


def write_stimulus(stimulus: Stimulus, video: Path | None, path: Path) -> Path:
    """Write it under the clip's pictures (copied, the same for all its stimuli), or as a sound file where there are
    none ⇒ the path with its suffix."""
    if video is None:
        write_wav(path.with_suffix(".wav"), stimulus.waveform, SAMPLE_RATE_HZ)
        return path.with_suffix(".wav")
    written = mux(video, stimulus.waveform, SAMPLE_RATE_HZ, path.with_suffix(".mp4"))
    if written.suffix != ".mp4":
        written.unlink()
        raise InputError(f"{video}: its pictures don't go into an mp4, which browsers play; convert it to H.264 first")
    return written


def headphone_trials(seed: int, trials: int = 6) -> Iterator[tuple[np.ndarray, int]]:
    """Trials of the headphones check of Woods et al. (2017) ⇒ (stereo sound (samples, 2), which interval is quietest).

    Three 200 Hz tones of a second, one of them 6 dB quieter; one of the others has its channels in antiphase. Over
    loudspeakers antiphase cancels in the air and that one seems quietest; over headphones the quiet one does.
    """
    rng = np.random.default_rng([seed, 2017])
    rate, n = SAMPLE_RATE_HZ, np.arange(SAMPLE_RATE_HZ)
    fade = np.minimum(1, np.minimum(n, n[::-1]) / (0.1 * rate))
    tone = 0.25 * np.sin(2 * np.pi * 200 * n / rate) * fade
    for _ in range(trials):
        quiet, antiphase, _ = (int(i) for i in rng.permutation(3))
        parts = []
        for interval in range(3):
            left = tone * (10 ** (-6 / 20) if interval == quiet else 1)
            right = -left if interval == antiphase else left
            parts += [np.stack([left, right], axis=1), np.zeros((rate // 2, 2))]
        yield np.concatenate(parts[:-1]).astype(np.float32), quiet


QUESTIONS = ("quality", "alignment")
FEWEST_HIDDEN = 3  # of the reference and of each anchor, for every rater, as far as there are clips


@dataclass(frozen=True)
class Item:
    """One stimulus of the test under its opaque name."""

    token: str
    clip: str
    condition: str


def tokens(count: int, seed: int) -> list[str]:
    """Opaque names: random, different, in no order that says anything."""
    rng = np.random.default_rng([seed, 1])
    made: dict[str, None] = {}
    while len(made) < count:
        made["".join(rng.choice(list("abcdefghijkmnpqrstuvwxyz23456789"), size=10))] = None
    return list(made)


def shares(items: Sequence[Item], raters: int, per_rater: int | None, seed: int) -> list[list[Item]]:
    """⇒ for each rater the stimuli to be judged, unordered.

    Without ``per_rater`` everything. Else so many systems' stimuli each, dealt in turn from one shuffled row, so that
    over all raters every stimulus is judged equally often (give or take one), and three hidden references and three of
    each anchor, likewise dealt in turn. InputError: per_rater < 1.
    """
    if per_rater is None:
        return [list(items)] * raters
    if per_rater < 1:
        raise InputError(f"--per-rater {per_rater}: expected at least 1")
    rng = np.random.default_rng([seed, 2])
    rows = {name: [item for item in items if item.condition == name] for name in HIDDEN}
    rows[""] = [item for item in items if item.condition not in HIDDEN]
    found: list[list[Item]] = [[] for _ in range(raters)]
    for name, row in rows.items():
        row = [row[i] for i in rng.permutation(len(row))]
        count = min(len(row), per_rater if not name else FEWEST_HIDDEN)
        for rater in range(raters):
            found[rater] += [row[(rater * count + i) % len(row)] for i in range(count)]
    return found


def order(items: Sequence[Item], seed: int, rater: int, question: str) -> list[Item]:
    """A random order in which no clip comes twice in a row, as far as that can be."""
    rng = np.random.default_rng([seed, 3, rater, QUESTIONS.index(question)])
    left: dict[str, list[Item]] = {}
    for i in rng.permutation(len(items)):
        left.setdefault(items[i].clip, []).append(items[i])
    ordered: list[Item] = []
    while left:
        names = [name for name in left if not ordered or name != ordered[-1].clip] or list(left)
        most = max(len(left[name]) for name in names)
        rest = sum(map(len, left.values()))
        # a clip with more than half of the remaining stimuli must come now, else two of it would become neighbours
        urgent = [name for name in names if len(left[name]) == most and 2 * most > rest]
        weights = np.array([len(left[name]) for name in names], float)
        name = urgent[0] if urgent else names[int(rng.choice(len(names), p=weights / weights.sum()))]
        ordered.append(left[name].pop())
        if not left[name]:
            del left[name]
    return ordered


def plans(items: Sequence[Item], raters: int, per_rater: int | None, seed: int) -> dict[str, list[tuple[str, str]]]:
    """{rater's number: [(token, question), …]}: one question about all stimuli, then the other; odd and even raters
    begin with different ones."""
    made = {}
    for rater, share in enumerate(shares(items, raters, per_rater, seed), 1):
        questions = QUESTIONS if rater % 2 else QUESTIONS[::-1]
        made[str(rater)] = [(item.token, question) for question in questions
                            for item in order(share, seed, rater, question)]
    return made


FORMAT = 1
KEY_NAME, RATERS_NAME = "key.json", "raters"
PRACTICE = "practice"
_LONG_AGO = 946_684_800  # 2000-01-01


@dataclass(frozen=True)
class TestRequest:
    """Settings of a listening test.

    Args:
        systems: {name: folder}.
        reference: folder of the true sounds.
        out: folder of the test.
        clips: number of clips, evenly from the sorted ids; None: all clips that every system has.
        raters: most raters.
        per_rater: systems' stimuli of each rater; None: all.
        seed: of clips, order and tokens.
        title: of the page.
        keep_level: don't match loudness.
        videos: folder of pictures; None: the reference's own.
    """

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


def make_test(request: TestRequest, progress: Callable[[int, int], None] = lambda done, total: None,
              faults: dict[str, str] | None = None) -> Path:
    """Write the test ⇒ the page to open. The folder appears once all of it is there.

    Args:
        request: the test.
        progress: called with (clips done, clips).
        faults: gets {clip: reason} of clips that can't be used, which are left out; None: the first of them ends it.

    Raises:
        InputError: a folder that already holds a test, no clip that all systems have, a file that can't be used.
        EndOfRun: the disk is full, or the folder can't be written to.
    """
    references, systems, chosen = _sounds(request)
    pictures = find_sounds(request.videos) if request.videos else references
    names = tokens(len(chosen) * len([*request.systems, *HIDDEN]) + 1, request.seed)
    items: list[Item] = []
    files: dict[str, str] = {}
    folder = temporary_beside(request.out)
    media = folder / RATERS_NAME / "media"
    try:
        for done, clip in enumerate(chosen, 1):
            sounds = {name: found[clip][0] for name, found in systems.items()}
            video = pictures[clip][0].video if clip in pictures else None
            of_clip = names[len(items):], names[-1] if PRACTICE not in files else None
            try:
                with writing_to(request.out, "--out"):
                    made = _write_clip(clip, references[clip][0], sounds, request.keep_level, video, media, *of_clip)
            except (InputError, OSError, UnicodeError) as error:
                if faults is None:
                    raise
                faults[printable(clip)] = reason_of(error, clip)
            else:
                items += made[0]
                files |= made[1]
            progress(done, len(chosen))
        if not items:
            raise InputError(f"none of the {len(chosen)} clips can be used; the first: "
                             f"{next(iter((faults or {}).values()))}")
        with writing_to(request.out, "--out"):
            _write_test(request, folder, items, files)
            request.out.parent.mkdir(parents=True, exist_ok=True)
            os.replace(folder, request.out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return request.out / RATERS_NAME / "index.html"


def _write_clip(clip: str, reference: SoundFile, sounds: dict[str, SoundFile], keep_level: bool, video: Path | None,
                media: Path, names: Sequence[str], practice: str | None) -> tuple[list[Item], dict[str, str]]:
    """Write the stimuli of one clip, all or none ⇒ its items, {token: file}. practice: name of the practice stimulus,
    where one is still wanted."""
    items: list[Item] = []
    written: dict[str, Path] = {}
    try:
        for token, stimulus in zip(names, clip_stimuli(clip, reference, sounds, keep_level)):
            written[token] = write_stimulus(stimulus, video, media / token)
            items.append(Item(token, clip, stimulus.condition))
            if stimulus.condition == HIDDEN[0] and practice is not None:  # it comes again later, unnamed
                written[PRACTICE] = write_stimulus(stimulus, video, media / practice)
    except BaseException:
        for path in written.values():
            path.unlink(missing_ok=True)
        raise
    return items, {token: f"media/{path.name}" for token, path in written.items()}


def _write_test(request: TestRequest, folder: Path, items: Sequence[Item], files: Mapping[str, str]) -> None:
    """Write all but the stimuli."""
    media = folder / RATERS_NAME / "media"
    trials = _write_trials(media, request.seed)
    planned = plans(items, request.raters, request.per_rater, request.seed)
    test_id = hashlib.sha256(json.dumps([planned, request.title, sorted(files.values())]).encode()).hexdigest()[:16]
    data = {"format": FORMAT, "test": test_id, "title": request.title, "raters": planned,
            "media": dict(sorted(files.items())), "headphones": trials}
    key = {"format": FORMAT, "test": test_id, "title": request.title, "code_version": __version__, "seed": request.seed,
           "items": [asdict(item) for item in items], "raters": planned, "loudness_matched": not request.keep_level,
           "systems": {name: str(folder) for name, folder in request.systems.items()},
           "reference": str(request.reference)}
    _write_page(folder / RATERS_NAME, request.title, data)
    for path in media.iterdir():  # times of modification in the order of making would reveal the systems
        os.utime(path, (_LONG_AGO, _LONG_AGO))
    write_text(folder / KEY_NAME, printable(json.dumps(key, indent=1, ensure_ascii=False)) + "\n")


def plan_test(request: TestRequest) -> work_plan.Plan:
    """What :func:`make_test` writes. Raises InputError as it does, but for files that can't be decoded."""
    _, systems, chosen = _sounds(request)
    stimuli = len(chosen) * (len(systems) + len(HIDDEN))
    details = {RATERS_NAME: f"the page, {stimuli} stimuli of {len(chosen)} clips, for {request.raters} raters",
               KEY_NAME: f"what is what, of {len(systems)} systems: {', '.join(systems)}"}
    items = [work_plan.Item(name, work_plan.Deed.MAKE, detail) for name, detail in details.items()]
    return work_plan.Plan("listening test", items, request.out)


def _sounds(request: TestRequest) -> tuple[dict[str, list[SoundFile]], dict[str, dict[str, list[SoundFile]]],
                                           list[str]]:
    """Sounds of the reference, of each system, and the clips that are judged."""
    if request.out.exists() and any(request.out.iterdir()):
        raise InputError(f"--out {request.out} is not empty; a test that was handed out must not change under its "
                         "raters: name another folder")
    references, systems = find_sounds(request.reference), {n: find_sounds(f) for n, f in request.systems.items()}
    return references, systems, _chosen(references, systems, request.clips)


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
    environment = Environment(loader=PackageLoader("vta_sam.evaluation.listening", "assets"),
                              autoescape=select_autoescape(default=True))
    write_text(folder / "index.html", environment.get_template("index.html").render(title=title))
    # in a script and not in json: pages opened from a folder may not fetch files. No "<" can end the script early
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    write_text(folder / "data.js", f"window.TEST = {text};\n")
    assets = Path(__file__).parent / "assets"
    for name in ("test.css", "test.js"):
        with atomic_path(folder / name) as temporary:
            shutil.copyfile(assets / name, temporary)
