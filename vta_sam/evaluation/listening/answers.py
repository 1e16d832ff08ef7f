"""Raters' answers: files of strangers, checked before anything is counted."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.errors import InputError
from .study_files import FORMAT, KEY_NAME, QUESTIONS, Item

LARGEST_BYTES = 2_000_000
HEADPHONES_PASSED = 5  # of six trials


@dataclass(frozen=True)
class Rating:
    """One answer.

    Attributes:
        rater: of the answer.
        item: the rated stimulus.
        question: quality or alignment.
        value: 1 to 5.
        plays: times that the clip was played to its end.
        seconds: time of the item on the screen.
    """

    rater: str
    item: Item
    question: str
    value: int
    plays: int
    seconds: float


@dataclass(frozen=True)
class Session:
    """One rater's file. headphones: right answers of the check; complete: everything planned was answered."""

    rater: str
    ratings: tuple[Rating, ...]
    headphones: int
    complete: bool
    finished: str


@dataclass(frozen=True)
class Key:
    """The secret part of a test.

    Attributes:
        test: its id.
        title: of the page.
        items: {token: Item}.
        plans: {rater: [(token, question)]}.
        systems: names in order.
    """

    test: str
    title: str
    items: dict[str, Item]
    plans: dict[str, list[tuple[str, str]]]
    systems: list[str]


def read_key(folder: Path) -> Key:
    """The key of a test that :func:`~.make.make_test` wrote. InputError: it is not there, or of another kind."""
    path = folder / KEY_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise InputError(f"{path} is of another format than this version reads")
        items = {item["token"]: Item(**item) for item in content["items"]}
        plans = {rater: [(token, question) for token, question in plan] for rater, plan in content["raters"].items()}
        return Key(content["test"], content["title"], items, plans, list(content["systems"]))
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}); --test names the folder that `make` wrote, with "
                         f"its {KEY_NAME}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no key of a test ({error!r})") from error


def read_sessions(folder: Path, key: Key) -> tuple[list[Session], dict[str, str]]:
    """All ``*.json`` and ``*.txt`` of a folder ⇒ (a session per rater, in order; {file: why it was not counted}).

    Of two files of one rater the complete one counts, of two such the later one.
    """
    if not folder.is_dir():
        raise InputError(f"--answers {folder} is no folder; name the one with the files that raters sent")
    sessions: dict[str, tuple[Session, str]] = {}
    refused: dict[str, str] = {}
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".json", ".txt") and p.is_file()):
        try:
            session = read_session(path, key)
        except InputError as error:
            refused[path.name] = str(error)
            continue
        before = sessions.get(session.rater)
        if before is None or _better(session, before[0]):
            sessions[session.rater] = session, path.name
            if before is not None:
                refused[before[1]] = f"rater {session.rater} sent a later or more complete file, {path.name}"
        else:
            refused[path.name] = f"rater {session.rater} sent a later or more complete file, {before[1]}"
    return [sessions[rater][0] for rater in sorted(sessions, key=int)], refused


def read_session(path: Path, key: Key) -> Session:
    """One file. InputError, in a sentence: too large, broken, of another test, or not of this shape."""
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise InputError(f"{path} has {path.stat().st_size} bytes; a file of ratings has a few thousand")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no file of ratings ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path} is no file of ratings of this version")
    if content.get("test") != key.test:
        raise InputError(f"{path} belongs to another test ({str(content.get('test'))[:40]!r}, expected {key.test!r})")
    rater, trials = content.get("rater"), content.get("headphones")
    if not isinstance(rater, str) or rater not in key.plans:
        raise InputError(f"{path}: there is no rater {str(rater)[:40]!r} in this test")
    if not isinstance(trials, list) or len(trials) > 20 or any(type(x) is not int or x not in (0, 1) for x in trials):
        raise InputError(f"{path}: the headphones check is not a list of 0 and 1")
    answers = content.get("answers")
    if not isinstance(answers, list) or len(answers) > len(key.plans[rater]):
        raise InputError(f"{path}: expected a list of at most {len(key.plans[rater])} answers")
    ratings = tuple(_rating(path, rater, answer, planned, key)
                    for answer, planned in zip(answers, key.plans[rater]))
    if content.get("checksum") != checksum(key.test, rater, trials, ratings):
        raise InputError(f"{path}: its checksum is wrong; it was cut off or changed on its way, ask for it again")
    complete = len(ratings) == len(key.plans[rater])
    return Session(rater, ratings, sum(trials), complete, str(content.get("finished"))[:40])


def checksum(test: str, rater: str, headphones: list[int], ratings: tuple[Rating, ...]) -> str:
    """FNV-1a (32 bits) of a file's content, as on the page. It detects a broken file, not a forged one."""
    lines = [f"{r.item.token} {r.question} {r.value} {r.plays} {r.seconds:.1f}" for r in ratings]
    value = 0x811C9DC5
    for byte in "\n".join([test, rater, "".join(map(str, headphones)), *lines]).encode():
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return f"{value:08x}"


def _rating(path: Path, rater: str, answer: Any, planned: tuple[str, str], key: Key) -> Rating:
    if not isinstance(answer, dict) or (answer.get("item"), answer.get("question")) != planned:
        raise InputError(f"{path}: its answers are not in the order of rater {rater}")
    value: Any
    plays: Any
    seconds: Any
    value, plays, seconds = answer.get("value"), answer.get("plays"), answer.get("seconds")
    whole = type(value) is int and type(plays) is int
    if not whole or not 1 <= value <= 5 or not 0 <= plays < 10_000 \
            or type(seconds) not in (int, float) or not 0 <= seconds < 1e6:
        raise InputError(f"{path}: an answer has value {value!r:.20}, plays {plays!r:.20}, seconds {seconds!r:.20}")
    assert planned[1] in QUESTIONS
    return Rating(rater, key.items[planned[0]], planned[1], value, plays, float(seconds))


def _better(one: Session, other: Session) -> bool:
    date = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")
    late = [session.finished if date.fullmatch(session.finished) else "" for session in (one, other)]
    return (one.complete, len(one.ratings), late[0]) > (other.complete, len(other.ratings), late[1])
