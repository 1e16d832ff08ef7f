"""The comparison page as files: what it says, what it must not say, and what becomes of its folder."""

from __future__ import annotations

import errno
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from comparison_pages import (
    CLICK_S, COLUMNS, DURATION_S, Markup, arguments_of, click, clips_of, evaluation_of, request_in
)
from PIL import Image

import vta_sam.evaluation.comparison.page
from vta_sam.evaluation.comparison import write_page
from vta_sam.evaluation.comparison.page_tables import clip_scores, decimal, headlines, number, rows
from vta_sam.evaluation.comparison.players import lanes, percents, ticks, write_spectrogram
from vta_sam.evaluation.pairing import SoundFile, Words
from vta_sam.evaluation.results import ClipScores, Figure
from vta_sam.media.audio import read_audio, write_wav
from vta_sam.metrics.intervals import Interval
from vta_sam.plots.clip_pictures import decibels
from vta_sam.runtime.errors import InputError

ASSETS = Path(vta_sam.evaluation.comparison.page.__file__).with_name("assets")
EVIL = '<script>hit=1</script>"\'><img src=x onerror=hit=1>'


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """A page of 25 clips, to be looked at only."""
    request = request_in(tmp_path_factory.mktemp("page"), ids=tuple(f"clip {n}" for n in range(25)))
    return write_page(request).parent


def parts(out: Path) -> list[Markup]:
    return [Markup((out / "index.html").read_text(encoding="utf-8")), *map(Markup, clips_of(out))]


def test_every_part_is_well_formed_and_no_id_stands_twice(page):
    ids = []
    for part in parts(page):
        assert part.faults == []
        ids += part.all("id")
    assert len(ids) == len(set(ids)) > 25


def test_clips_are_split_by_the_dozen_and_the_index_does_not_grow_with_them(page, tmp_path):
    assert [len(arguments_of(page / "pages" / f"000{n}.js")[1]) for n in (1, 2, 3)] == [12, 12, 1]
    per_script, ids = arguments_of(page / "pages" / "index.js")
    assert per_script == 12 and [clip_id for clip_id, _ in ids] == [f"clip {n}" for n in range(25)]
    write_page(request_in(tmp_path, ids=("clip 0",)))
    sizes = [(out / "index.html").stat().st_size for out in (page, tmp_path / "out")]
    assert abs(sizes[0] - sizes[1]) < 20


def test_all_that_is_referred_to_is_there_and_nothing_is_fetched_from_elsewhere(page):
    named = set()
    for part in parts(page):
        for value in part.all("src") + part.all("poster") + part.all("href"):
            if not value.startswith(("#", "data:")):
                assert (page / value).is_file(), value
                named.add(value)
    kept = {str(path.relative_to(page)) for path in (page / "media").iterdir()}
    assert kept == {value for value in named if value.startswith("media/")}
    for sheet in ("page.css", "page.js"):
        assert not re.search(r"https?:|//\w|@import|\bfetch\(|XMLHttpRequest|url\(", (ASSETS / sheet).read_text())


def test_strangers_words_stay_words(tmp_path):
    ids, systems = (EVIL, "../../x"), ("truth", EVIL, "../../ours")
    request = request_in(tmp_path, ids, systems, title=EVIL, note=EVIL)
    request.evaluation.systems[EVIL].bad = {EVIL: EVIL}
    request.evaluation.notes = [EVIL]
    request.evaluation.provenance = {EVIL: EVIL}
    request.evaluation.metrics[0] = replace(COLUMNS[0], title=EVIL, source=EVIL)
    request.clips[0].words = Words(EVIL, EVIL * 9, (EVIL,))
    request.clips[0].timeline = ([EVIL], np.ones((4, 1)), DURATION_S)
    out = write_page(request).parent
    index, *clips = parts(out)
    for part in (index, *clips):
        assert part.faults == []
        assert not [name for _, attributes in part.elements for name in attributes if name.startswith("on")]
        assert EVIL in part.text
    assert [attributes.get("src") for tag, attributes in index.elements if tag == "script"] == [
        "assets/page.js", "pages/index.js"]
    assert not [tag for part in clips for tag, _ in part.elements if tag == "script"]
    names = [path.name for path in (out / "media").iterdir()]
    assert all(re.fullmatch(r"c000[12](-s0[0-2])?\.(mp4|png|jpg)", name) for name in names) and len(names) == 14


def test_best_is_what_the_evaluation_calls_best_and_never_silent_or_true():
    evaluation = evaluation_of(silent=0.06)
    evaluation.best = {"onset_f1": "ours", "frechet_tiny": "theirs", "loudness_dbfs": "truth"}
    marked = [(row.name, column.key) for row in rows(evaluation) for column, entry in zip(COLUMNS, row.entries)
              if entry.best]
    assert marked == [("ours", "onset_f1")]
    remarks = {row.name: row.remarks for row in rows(evaluation)}
    assert remarks["theirs"] == ["not ranked: 6 % of its clips are silent"] and remarks["ours"] == []
    evaluation.best = {}
    assert not any(entry.best for row in rows(evaluation) for entry in row.entries)


def test_the_table_says_direction_interval_control_and_reason(tmp_path):
    evaluation = evaluation_of()
    evaluation.best = {"onset_f1": "ours"}
    evaluation.systems["theirs"].figures["frechet_tiny"] = Figure(None, reason="it needs 20 clips, got 2")
    for system in evaluation.systems.values():
        system.figures["loudness_dbfs"] = Figure(None, reason="nobody listened")
    evaluation.differences = {"ours − theirs": {"onset_f1": Interval(-0.1, -0.2, -0.05, 2),
                                                "frechet_tiny": Interval(-1.0, -2.0, 0.5, 2)}}
    index, *_ = parts(write_page(request_in(tmp_path, evaluation=evaluation)).parent)
    assert "Onset F1 ↑ , higher is better" in index.text and "Fréchet distance ↓ , lower is better" in index.text
    assert "0.600 ★ best 0.400 to 0.900 control 0.200 0.100 to 0.300" in index.text
    assert "missing: it needs 20 clips, got 2" in index.text
    assert "Loudness (RMS) — missing: nobody listened" in index.text
    assert "−0.100 ≠ 0 −0.200 to −0.050" in index.text and "−1.000 −2.000 to 0.500" in index.text
    assert index.text.count("best") == 3  # a mark in the picture and in the table, and what it means
    assert "n = 2, 1 undefined where nothing else is said" in index.text and index.text.count("n = 2 ") == 4
    assert "of.x y" in index.text


def test_the_picture_has_the_headline_figures_on_an_axis_that_the_truth_does_not_stretch():
    evaluation = evaluation_of()
    first, second = headlines(evaluation)
    assert (first.metric.key, first.column, second.metric.key, second.column) == ("onset_f1", 1, "frechet_tiny", 2)
    assert (first.low, first.high, first.zero) == ("0.400", "0.900", None)
    assert [(dot.name, dot.left, dot.right, dot.at) for dot in first.dots] == [
        ("truth", 0.0, 100.0, 20.0), ("ours", 0.0, 100.0, 40.0), ("theirs", 0.0, 100.0, 60.0)]
    evaluation.systems["truth"].figures["onset_f1"] = Figure(Interval(1.0, 1.0, 1.0, 2))
    evaluation.systems["ours"].figures["onset_f1"] = Figure(None, reason="nobody listened")
    evaluation.systems["theirs"].figures["onset_f1"] = Figure(Interval(0.5, -0.5, 0.5, 2))
    first, _ = headlines(evaluation)
    assert [(dot.name, dot.at, dot.score.missing) for dot in first.dots] == [
        ("ours", None, "nobody listened"), ("theirs", 100.0, "")]
    assert first.zero == 50.0
    del evaluation.systems["ours"], evaluation.systems["theirs"]
    assert [[dot.at for dot in panel.dots] for panel in headlines(evaluation)] == [[0.0], [12.5]]


def test_what_is_not_known_is_never_a_number():
    nan = float("nan")
    assert number(Interval(nan, nan, nan, 0, 3), 3).missing == "not defined (3 undefined)"
    assert number(Interval(nan, nan, nan, 0), 3) == number(Interval(0.0, 0.0, 0.0, 0), 3)
    assert (lone := number(Interval(0.5, 0.5, 0.5, 1), 2)).interval == "no interval" and lone.mean == "0.50"
    assert decimal(-0.0004, 3) == "0.000" and decimal(-0.04, 2) == "−0.04"
    scores = ClipScores({"onset_f1": None, "loudness_dbfs": -12.34}, [], False)
    assert clip_scores(list(COLUMNS), scores) == [("Onset F1 ↑", "not defined"), ("Loudness (RMS)", "−12.3 dBFS")]


def test_a_sound_without_pictures_is_played_under_the_clips_own(page):
    clip = Markup(clips_of(page)[3])
    assert clip.all("src").count("media/c0004-s02.mp4") == 1
    heard = read_audio(page / "media" / "c0004-s02.mp4")
    assert abs(np.abs(heard).argmax() / 16_000 - CLICK_S) < 0.01
    assert (page / "media" / "c0004-s00.mp4").read_bytes() == (page.parent / "clip.mp4").read_bytes()


def test_without_playable_pictures_there_is_sound_and_a_word(tmp_path, make_video):
    request = request_in(tmp_path, ids=("a",))
    foreign = make_video(tmp_path / "old.avi", codec="mpeg4", sound=click(), sound_codec="mp3")
    request.sounds["ours"]["a"] = SoundFile("a", 0, foreign, foreign)
    request.sounds["theirs"]["a"] = SoundFile("a", 0, tmp_path / "clip.wav", None)
    request.videos = {}
    out = write_page(request).parent
    clip = Markup(clips_of(out)[0])
    assert {"media/c0001-s01.wav", "media/c0001-s02.wav"} <= set(clip.all("src"))
    assert "browsers don't play the pictures of old.avi (mpeg4 yuv420p)" in clip.text
    assert str(tmp_path) not in clip.text


def test_an_unreadable_or_absent_sound_leaves_its_reason(tmp_path):
    request = request_in(tmp_path)
    (tmp_path / "torn.wav").write_bytes(b"RIFF")
    request.sounds["ours"]["a"] = SoundFile("a", 0, tmp_path / "torn.wav", None)
    del request.sounds["ours"]["b"]
    first, second = map(Markup, clips_of(write_page(request).parent))
    assert "Nothing to play: torn.wav can't be read" in first.text and str(tmp_path) not in first.text
    assert "Nothing to play: no sound of this clip" in second.text
    assert first.all("src").count("media/c0001-s00.mp4") == 1


def test_spectrograms_share_one_scale_and_stand_at_their_time(tmp_path):
    loud, quiet = decibels(click(0.25), 16_000), decibels(click(0.25, level=0.08), 16_000)
    for name, mel in (("loud", loud), ("quiet", quiet)):
        write_spectrogram(tmp_path / f"{name}.png", mel, float(loud.max()), duration_s=2.0)
    images = {name: np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int) for name in ("loud", "quiet")}
    assert images["loud"].shape == (64, 200)
    assert abs(images["loud"].sum(axis=0).argmax() / 100 - 0.25) <= 0.02
    assert images["loud"].max() - images["quiet"].max() == round(20 / 60 * 47)  # 20 dB less
    assert not images["loud"][:, 102:].any()  # it has ended
    noise = np.random.default_rng(0).normal(0, 0.2, 160_000).astype(np.float32)
    mel = decibels(noise, 16_000)
    write_spectrogram(tmp_path / "noise.png", mel, float(mel.max()), duration_s=10.0)
    assert (tmp_path / "noise.png").stat().st_size < 25_000


def test_timeline_marks_and_axis_share_the_seconds_of_the_spectrogram():
    [lane] = lanes((["dog"], np.array([[0.0], [1.0], [0.5], [0.0]]), 2.0), duration_s=4.0)
    assert lane.path == "M0 100V100H125.0V0H250.0V50H375.0V100H500.0V100Z" and (lane.mean, lane.most) == (0.375, 1.0)
    assert percents([0.0, 1.0, 5.0], 4.0) == ["0.00", "25.00"]
    assert ticks(10.24) == [("0.00", "0"), ("19.53", "2"), ("39.06", "4"), ("58.59", "6"), ("78.12", "8"),
                            ("97.66", "10")]
    assert [label for _, label in ticks(0.8)] == ["0", "0.2", "0.4", "0.6", "0.8"]


def test_colours_are_told_apart_in_both_schemes():
    def luminance(colour: str) -> float:
        values = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))  # WCAG 2.2

    sheet = (ASSETS / "page.css").read_text()
    pairs = dict(re.findall(r"--([\w-]+): light-dark\((#\w{6}, #\w{6})\)", sheet))
    assert "color-scheme: light dark" in sheet and len(pairs) >= 10
    for scheme in (0, 1):
        colours = {name: luminance(pair.split(", ")[scheme]) for name, pair in pairs.items()}
        uses = [(ink, ground) for ink in ("text", "faint", "accent", "warn", "true", "heard")
                for ground in ("ground", "raised", "truth")] + [("on-accent", "accent")]
        for ink, ground in uses:
            low, high = sorted((colours[ink], colours[ground]))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (scheme, ink, ground)


def test_the_same_request_gives_the_same_bytes_and_leaves_nothing_stale(tmp_path):
    def content(out: Path) -> dict[str, bytes]:
        return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}

    request = request_in(tmp_path, ids=("a", "b"))
    first = content(write_page(request).parent)
    (request.out / "results").mkdir()
    (request.out / "results" / "evaluation.json").write_text("{}")
    assert content(write_page(request).parent) == {**first, "results/evaluation.json": b"{}"}
    write_page(replace(request, clips=request.clips[:1]))
    assert not [name for name in content(request.out) if "c0002" in name]


def test_a_page_that_cannot_be_finished_leaves_the_old_one(tmp_path, monkeypatch):
    request = request_in(tmp_path)
    before = write_page(request).read_bytes()

    def fail(request):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(vta_sam.evaluation.comparison.page, "_index_markup", fail)
    with pytest.raises(InputError, match="no space left for out="):
        write_page(replace(request, title="another"))
    assert (request.out / "index.html").read_bytes() == before
    assert sorted(path.name for path in request.out.iterdir()) == ["assets", "comparison.json", "index.html", "media",
                                                                   "pages"]


def test_sounds_and_pictures_that_fail_are_lines_of_their_own(tmp_path, monkeypatch):
    request, module = request_in(tmp_path, ids=("a", "b")), vta_sam.evaluation.comparison.page
    read, drawn, broken = module.read_audio, [], tmp_path / "broken.wav"

    def read_or_fail(path, **settings):
        if path == broken:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return read(path, **settings)

    def draw(path, *_):
        drawn.append(path)
        if len(drawn) == 2:
            raise ValueError("no colours")
        path.write_bytes(b"")

    monkeypatch.setattr(module, "read_audio", read_or_fail)
    monkeypatch.setattr(module.players, "write_spectrogram", draw)
    request.sounds["ours"]["b"] = SoundFile("b", 0, broken, None)
    clips = [Markup(clip) for clip in clips_of(write_page(request).parent)]
    assert len(request.faults) == 2 and "could not be drawn (no colours)" in request.faults[0]
    assert request.faults[1].startswith("b, ours: ") and len(drawn) == 5
    assert "Input/output error" in clips[1].text and "could not be drawn" in clips[0].text
    assert not any(str(tmp_path) in clip.text for clip in clips), "no folders on a page"


def test_refusals(tmp_path):
    request = request_in(tmp_path)
    request.out.mkdir()
    (request.out / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="thesis.tex"):
        write_page(request)
    assert [path.name for path in request.out.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match="is a file"):
        write_page(replace(request, out=tmp_path / "clip.wav"))
    with pytest.raises(InputError, match="lies in out="):
        write_page(replace(request, out=tmp_path))
    with pytest.raises(InputError, match="named twice"):
        write_page(replace(request, clips=request.clips[:1] * 2))
    with pytest.raises(InputError, match="at least"):
        write_page(replace(request, clips=[]))


def test_the_longest_sound_of_a_clip_sets_its_axis(tmp_path):
    request = request_in(tmp_path, ids=("a",))
    write_wav(tmp_path / "long.wav", np.tile(click(), 2), 16_000)
    request.sounds["theirs"]["a"] = SoundFile("a", 0, tmp_path / "long.wav", None)
    clip = Markup(clips_of(write_page(request).parent)[0])
    assert set(clip.all("aria-valuemax")) == {"2.00"}
    assert "its last 1.0 s are not played, since the pictures end before" in clip.text
    events = [attributes for tag, attributes in clip.elements if tag == "line" and attributes.get("y2") == "100%"]
    assert [event["x1"] for event in events] == ["25.00%"] * 3  # that at 0.5 s, in each cell
