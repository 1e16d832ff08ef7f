"""Mean opinion scores of raters whose preferences are known, and files that are not what they should be."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from programs import call
from rich.console import Console
from simulated_raters import Crowd, write_session

from vta_sam.evaluation.listening.analysis import (
    Screening, agreement, analyse, differences_table, scores_table, write_report
)
from vta_sam.evaluation.listening.answers import Key, read_key, read_session, read_sessions
from vta_sam.evaluation.listening.study_files import HIDDEN, REFERENCE, Item, plans, tokens
from vta_sam.metrics.intervals import pigeonhole_interval
from vta_sam.runtime.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[1]
CROWD = Crowd({"ours": 3.6, "theirs": 3.1})


def make_key(seed: int = 0, clips: int = 8, raters: int = 20, per_rater: int | None = None) -> Key:
    conditions = [*CROWD.liking, *HIDDEN]
    names = iter(tokens(clips * len(conditions), seed))
    items = [Item(next(names), f"clip{clip}", name) for clip in range(clips) for name in conditions]
    return Key("0123456789abcdef", "A test", {item.token: item for item in items},
               plans(items, raters, per_rater, seed), list(CROWD.liking))


@pytest.fixture(scope="module")
def key() -> Key:
    return make_key()


def covered(studies: int, raters: int = 10, clips: int = 8) -> int:
    truth, count = CROWD.true_difference("ours", "theirs"), 0
    for seed in range(studies):
        made = make_key(seed, clips, raters)
        found = analyse(CROWD.sessions(made, seed, raters), made.systems, seed=seed, resamples=500)
        difference = found.differences["quality"]["ours − theirs"]
        count += difference.low <= truth <= difference.high
    return count


def test_the_true_preference_is_covered():
    """20 seeded studies of ten simulated raters, without a browser."""
    assert covered(20) >= 18


def test_the_interval_is_not_endless():
    made = make_key(0, 8, 10)
    found = analyse(CROWD.sessions(made, 0, 10), made.systems).differences["quality"]["ours − theirs"]
    assert 0.2 < found.high - found.low < 1.2


def test_single_answers_would_give_too_narrow_an_interval():
    """Of raters who differ much, new raters' means vary far more than drawing answers says."""
    rng = np.random.default_rng(0)
    spread = np.std([(rng.normal(0, 0.8, (8, 1)) + rng.normal(0, 0.3, (8, 12))).mean() for _ in range(400)])
    table = rng.normal(0, 0.8, (8, 1)) + rng.normal(0, 0.3, (8, 12))
    found = pigeonhole_interval(table)
    naive = 3.92 * np.std(table) / np.sqrt(table.size)
    assert naive < 0.7 * 3.92 * spread, "the example shows nothing"
    assert found.high - found.low > 1.5 * naive


def test_one_answer_has_no_interval(tmp_path):
    made = make_key(clips=1, raters=1)
    found = analyse(CROWD.sessions(made, 0, 1), made.systems, Screening(1.0, 1.0))
    one = found.scores["quality"]["ours"]
    assert one.ratings == 1 and np.isnan([one.low, one.high]).all()
    paths = write_report(tmp_path, found, Screening(), {})
    written = json.loads(paths[0].read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert written["scores"]["quality"]["ours"]["low"] is None
    assert f"quality,ours,{one.mean:.4f},,,1,1,1" in paths[1].read_text().splitlines()
    shown = io.StringIO()
    for table in (scores_table(found), differences_table(found)):
        Console(file=shown, width=200).print(table)
    assert "nan" not in shown.getvalue() and f"{one.mean:.2f} " in shown.getvalue()


def test_scores_and_shares(key):
    found = analyse(CROWD.sessions(key, 1, 12), key.systems)
    for question in ("quality", "alignment"):
        scores = found.scores[question]
        assert list(scores) == ["ours", "theirs", *HIDDEN]
        assert scores["ours"].mean > scores["theirs"].mean > scores[HIDDEN[2]].mean
        assert scores["ours"].ratings == 12 * 8 and (scores["ours"].raters, scores["ours"].clips) == (12, 8)
        assert scores["ours"].low < scores["ours"].mean < scores["ours"].high
        assert 0.2 < found.agreement[question] < 0.9
    assert (found.raters, found.complete, found.excluded, found.hasty) == (12, 12, {}, 0)
    few = make_key(raters=12, per_rater=4)
    part = analyse(CROWD.sessions(few, 1, 12), few.systems, Screening(1.0, 1.0))
    assert part.scores["quality"]["ours"].ratings + part.scores["quality"]["theirs"].ratings == 48


def test_raters_who_do_not_hear_the_reference_are_left_out(key):
    sessions = CROWD.sessions(key, 2, 8)
    turned = tuple(dataclasses.replace(r, value=6 - r.value) for r in sessions[3].ratings)
    sessions[3] = dataclasses.replace(sessions[3], ratings=turned)
    found = analyse(sessions, key.systems)
    assert list(found.excluded) == ["4"] and "hidden reference" in found.excluded["4"]
    assert found.scores["quality"]["ours"].raters == 7 and found.unscreened["quality"]["ours"].raters == 8
    lenient = analyse(sessions, key.systems, Screening(1.0, 1.0))
    assert lenient.excluded == {}


def test_one_rater_and_no_rater(key):
    alone = analyse(CROWD.sessions(key, 0, 1), key.systems)
    assert alone.agreement == {"quality": None, "alignment": None} and alone.scores["quality"]["ours"].raters == 1
    assert analyse([], key.systems).scores == {"quality": {}, "alignment": {}}


def test_agreement_of_known_data():
    """Perfect agreement is 1; of raters who answer by chance it is about 0."""
    made = make_key(clips=30)
    rng = np.random.default_rng(0)
    sessions = CROWD.sessions(made, 0, 4)
    by_token = {token: int(rng.integers(1, 6)) for token in made.items}
    same = [dataclasses.replace(r, value=by_token[r.item.token]) for s in sessions for r in s.ratings
            if r.question == "quality"]
    assert agreement(same) == pytest.approx(1)
    chance = [dataclasses.replace(r, value=int(rng.integers(1, 6))) for r in same]
    assert abs(agreement(chance)) < 0.1


# ---------------------------------------------------------------- files

def test_a_session_survives_its_file(key, tmp_path):
    [session] = CROWD.sessions(key, 0, 1)
    assert read_session(write_session(tmp_path, key, session), key) == session


def spoil(kind: str, path: Path) -> None:
    content = json.loads(path.read_text())
    if kind == "broken":
        path.write_text(path.read_text()[:500])
    elif kind == "other test":
        path.write_text(json.dumps({**content, "test": "f" * 16}))
    elif kind == "changed":
        content["answers"][3]["value"] = 5 if content["answers"][3]["value"] != 5 else 4
        path.write_text(json.dumps(content))
    elif kind == "six of five":
        content["answers"][3]["value"] = 6
        path.write_text(json.dumps(content))
    elif kind == "true":
        content["answers"][3]["value"] = True
        path.write_text(json.dumps(content))
    elif kind == "other order":
        content["answers"] = content["answers"][::-1]
        path.write_text(json.dumps(content))
    elif kind == "nobody":
        path.write_text(json.dumps({**content, "rater": "77"}))
    elif kind == "list":
        path.write_text("[]")
    elif kind == "nested":
        path.write_text("[" * 100_000)
    elif kind == "headphones":
        path.write_text(json.dumps({**content, "headphones": [2] * 6}))
    elif kind == "huge":
        path.write_text(json.dumps({**content, "more": "x" * 3_000_000}))


@pytest.mark.parametrize(("kind", "said"), [
    ("broken", "no file of ratings"), ("other test", "another test"), ("changed", "checksum is wrong"),
    ("six of five", "has value 6"), ("true", "has value True"), ("other order", "not in the order"),
    ("nobody", "no rater '77'"), ("list", "no file of ratings"), ("nested", "no file of ratings"),
    ("headphones", "list of 0 and 1"), ("huge", "has 30"),
])
def test_bad_files_are_listed_and_the_others_count(key, tmp_path, kind, said):
    first, second = CROWD.sessions(key, 0, 2)
    write_session(tmp_path, key, first)
    bad = write_session(tmp_path, key, second)
    spoil(kind, bad)
    sessions, refused = read_sessions(tmp_path, key)
    assert [session.rater for session in sessions] == ["1"]
    assert list(refused) == [bad.name] and said in refused[bad.name], refused


def test_a_rater_counts_once(key, tmp_path):
    session = CROWD.sessions(key, 0, 1)[0]
    part = dataclasses.replace(session, ratings=session.ratings[:20], complete=False)
    write_session(tmp_path, key, part, "a.json")
    write_session(tmp_path, key, session, "b.json")
    write_session(tmp_path, key, dataclasses.replace(part, ratings=session.ratings[:30]), "c.json")
    sessions, refused = read_sessions(tmp_path, key)
    assert sessions == [session] and set(refused) == {"a.json", "c.json"}


def test_an_unfinished_session_counts_as_far_as_it_goes(key, tmp_path):
    session = CROWD.sessions(key, 0, 1)[0]
    part = dataclasses.replace(session, ratings=session.ratings[:20], complete=False)
    found = read_session(write_session(tmp_path, key, part), key)
    assert len(found.ratings) == 20 and not found.complete
    assert analyse([found], key.systems).complete == 0


# ---------------------------------------------------------------- as users call it

def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return call("experiments/listening_test.py", *arguments, cwd=REPOSITORY)


@pytest.mark.slow
def test_the_command_line(tmp_path):
    from test_listening_make import write_systems

    systems = write_systems(tmp_path / "systems", ("gt", "ours", "theirs"), clips=3)
    told = run("make", "--systems", systems, "--out", tmp_path / "test", "--raters", 6)
    assert told.returncode == 0, told.stderr
    key = read_key(tmp_path / "test")
    assert key.systems == ["ours", "theirs"]
    for session in CROWD.sessions(key, 5, 6):
        write_session(tmp_path / "sent", key, session)
    told = run("analyse", "--test", tmp_path / "test", "--answers", tmp_path / "sent", "--out", tmp_path / "results")
    assert told.returncode == 0, told.stderr
    assert "mean opinion score" in told.stdout and REFERENCE in told.stdout
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    assert results["scores"]["quality"]["ours"]["raters"] + len(results["excluded"]) == 6
    assert (tmp_path / "results" / "scores.png").stat().st_size > 5000
    told = run("analyse", "--test", tmp_path / "test", "--answers", tmp_path / "systems", "--out", tmp_path / "x")
    assert told.returncode == 2 and "no ratings of this test" in told.stderr and "Traceback" not in told.stderr
    told = run("analyse", "--test", tmp_path / "none", "--answers", tmp_path / "sent", "--out", tmp_path / "x")
    assert told.returncode == 2 and "key.json can't be read" in told.stderr


def test_another_key_is_refused(tmp_path):
    (tmp_path / "key.json").write_text('{"format": 1}')
    with pytest.raises(InputError, match="no key of a test"):
        read_key(tmp_path)
