"""Alignment of onsets and motion: equal to the published code where it has a value, and mended where it is wrong."""

from __future__ import annotations

import json
from functools import cache

import av
import numpy as np
import pytest

from vta_sam.media.audio import read_audio
from vta_sam.metrics.alignment import (
    FlowTrajectory, aa_align_matched, aa_align_published, av_align_matched, av_align_published, av_align_sta_published,
    flow_magnitudes, flow_peaks_s, measure_flow,
)
from vta_sam.metrics.onsets import (
    FoleyOnsets, at_published_rate, foley_onsets, librosa_onsets_s, matched_pairs, onset_scores_matched,
    onset_scores_published, weighed
)
from vta_sam.runtime.errors import InputError

CLIPS = ("2", "3", "5", "6", "9", "11")
CLICKS = [6615, 17640, 26460, 35280]  # samples at 22 050 Hz


def clicks() -> np.ndarray:
    """Decaying 1 kHz clicks of 1, 0.8, 0.6, 0.4 in 2 s at 22 050 Hz."""
    sound, n = np.zeros(44_100), np.arange(400)
    for place, loudness in zip(CLICKS, (1, 0.8, 0.6, 0.4)):
        sound[place:place + 400] += loudness * np.exp(-n / 80) * np.sin(2 * np.pi * 1000 * n / 22_050)
    return sound


def at(*places: int) -> FoleyOnsets:
    return weighed(clicks(), places)


# ---------------------------------------------------------------- CondFoleyGen's onset scores

@pytest.mark.parametrize(("true", "generated", "accuracy", "precision"), [
    pytest.param(CLICKS, CLICKS, 1, 1, id="O1 equal"),
    pytest.param(CLICKS, CLICKS[:3], 0.75, 1, id="O2 a miss costs no precision"),
    pytest.param(CLICKS[:3], CLICKS, 1, 1, id="O3 the weakest is false"),
    pytest.param(CLICKS[1:], CLICKS, 1, 0.6388888889, id="O4 the strongest is false"),
    pytest.param(CLICKS, [o + 1984 for o in CLICKS], 1, 1, id="O5 90 ms late"),
    pytest.param(CLICKS, [o + 2425 for o in CLICKS], 0, 0.5, id="O6 110 ms late"),
    pytest.param([6615, 7000], [6800], 0.5, 1, id="O7 two by one"),
    pytest.param(list(range(2000, 42_000, 4000)), [2200], 0.1, 1, id="O8 what is behind the last is forgotten"),
    pytest.param(CLICKS, [], 0, 1, id="nothing generated is precise"),
])
def test_published_onset_scores(true, generated, accuracy, precision):
    found = onset_scores_published(at(*true), at(*generated))
    assert found.accuracy == pytest.approx(accuracy) and found.average_precision == pytest.approx(precision)
    assert found.count_agrees == (len(true) == len(generated))


def test_detected_onsets_of_clicks():
    assert foley_onsets(clicks()).samples.tolist() == [7168, 17_920, 26_624, 35_840]


def test_suppression_slips_past_neighbours_as_published():
    """Of four equally loud onsets 10 ms apart two stay, since the list is changed while it is walked through."""
    onsets = FoleyOnsets(np.array([6615, 6836, 7056, 7277]), np.ones(4), np.array([1.0, 0.9, 0.8, 0.7]))
    found = onset_scores_published(FoleyOnsets(np.array([40_000]), np.ones(1), np.ones(1)), onsets)
    from sklearn.metrics import average_precision_score

    assert found.average_precision == pytest.approx(average_precision_score([1, 0, 0], [0, 1.0, 0.8]))


def test_where_the_published_code_stops_there_is_no_value():
    assert onset_scores_published(at(*CLICKS), at(220)).accuracy is None  # it takes the maximum of an empty stretch
    silent = foley_onsets(np.zeros(44_100))
    assert len(silent.samples) == 0
    nothing = onset_scores_published(silent, silent)
    assert (nothing.accuracy, nothing.average_precision) == (None, None)
    assert onset_scores_published(silent, at(*CLICKS)).average_precision == 0


def test_matched_onset_scores_make_a_miss_cost():
    assert onset_scores_matched(at(*CLICKS), at(*CLICKS[:3])).average_precision == pytest.approx(0.75)
    assert onset_scores_matched(at(*CLICKS), at()).average_precision == 0
    assert onset_scores_matched(at(*CLICKS), at(*CLICKS)).f1 == 1
    eight = onset_scores_matched(at(*range(2000, 42_000, 4000)), at(2200))
    assert eight.average_precision == pytest.approx(0.1) and eight.f1 == pytest.approx(2 / 11)
    assert onset_scores_matched(at(*CLICKS), at(220)).f1 == 0, "an early onset is an onset"
    both = onset_scores_matched(at(), at())
    assert (both.f1, both.average_precision) == (None, None)


def test_matched_precision_is_of_the_largest_matching():
    """True 1.00 and 1.15 s, generated 1.08 and 1.20 s: both are met, although the first is nearer to the second."""
    true, generated = ([round(t * 22_050) for t in times] for times in ((1, 1.15), (1.08, 1.2)))
    for confidences in ([1.0, 0.5], [0.5, 1.0], [1.0, 1.0]):
        found = onset_scores_matched(FoleyOnsets(np.array(true), np.ones(2), np.ones(2)),
                                     FoleyOnsets(np.array(generated), np.ones(2), np.array(confidences)))
        assert (found.precision, found.recall, found.f1, found.average_precision) == (1, 1, 1, 1)


def test_confidence_decides_the_order_of_precision():
    true = FoleyOnsets(np.array([22_050]), np.ones(1), np.ones(1))
    pair = np.array([22_050, 44_100])
    assert onset_scores_matched(true, FoleyOnsets(pair, np.ones(2), np.array([1, 0.5]))).average_precision == 1
    assert onset_scores_matched(true, FoleyOnsets(pair, np.ones(2), np.array([0.5, 1]))).average_precision == 0.5
    assert onset_scores_matched(true, FoleyOnsets(pair, np.ones(2), np.ones(2))).average_precision == 0.5


def test_a_magnitude_that_never_changes_has_no_confidence():
    square = np.tile(np.repeat([0.5, -0.5], 50), 441)
    onsets = weighed(square, [6615, 17_640])
    assert len(onsets.samples) == 2 and onset_scores_published(at(*CLICKS), onsets).average_precision is None
    assert onset_scores_matched(onsets, onsets).f1 == 1


# ---------------------------------------------------------------- AA-Align

def test_aa_align():
    assert aa_align_published(np.array([0.5, 1, 1.5, 2]), np.array([0.5, 1])) == 0.5
    one, five = np.array([1.0]), np.array([0.92, 0.96, 1, 1.04, 1.08])
    assert (aa_align_published(one, five), aa_align_published(five, one)) == (5.0, 0.2)
    assert (aa_align_matched(one, five), aa_align_matched(five, one)) == (0.2, 0.2)
    nothing = np.zeros(0)
    assert aa_align_published(nothing, nothing) is None and aa_align_matched(nothing, nothing) is None
    assert aa_align_published(one, nothing) == 0 == aa_align_matched(nothing, one)


# ---------------------------------------------------------------- AV-Align

def test_av_align():
    three, one = np.array([0.98, 1, 1.02]), np.array([1.0])
    assert av_align_published(three, one, 24) == pytest.approx(1 / 3)
    assert av_align_sta_published(three, one, 24) == 3.0, "no intersection over union"
    assert av_align_published(np.array([1.0]), np.array([1.2]), 4) == 1.0
    assert av_align_published(np.array([1.0]), np.array([1.2]), 25) == 0.0
    assert av_align_matched(np.array([1.0]), np.array([1.2])) == 0.0, "the window knows no frame rate"
    assert av_align_published(np.zeros(0), np.zeros(0), 25) is None
    assert av_align_matched(np.zeros(0), np.zeros(0)) is None


def test_peaks_of_motion():
    flow = FlowTrajectory(np.array([0, 0.1, 0, 0.2, 0.2, 0, 0.5, 0.3]), 10)
    np.testing.assert_allclose(flow_peaks_s(flow), [0.1, 0.6])  # a plateau is none; 0.1 px is enough
    assert len(flow_peaks_s(FlowTrajectory(np.array([1.0, 1.0]), 10))) == 0


def jumping_square() -> list[np.ndarray]:
    """20 frames of 120x160, a textured square that jumps 4 px at frame 5 and 6 px at frame 12."""
    texture = np.random.RandomState(0).randint(0, 255, (40, 40)).astype(np.uint8)
    frames, x = [], 40
    for i in range(20):
        x += {5: 4, 12: 6}.get(i, 0)
        frame = np.full((120, 160), 90, np.uint8)
        frame[40:80, x:x + 40] = texture
        frames.append(frame)
    return frames


def test_a_jump_is_a_peak():
    flow = FlowTrajectory(flow_magnitudes(jumping_square()), 10)
    np.testing.assert_allclose(flow_peaks_s(flow), [0.5, 1.2])
    assert av_align_published(np.array([0.5, 1.2]), flow_peaks_s(flow), 10) == 1.0
    assert av_align_published(np.array([0.45, 1.0]), flow_peaks_s(flow), 10) == pytest.approx(1 / 3)
    assert flow.magnitudes[0] == flow.magnitudes[1] and len(flow.magnitudes) == 20


def test_flow_does_not_depend_on_threads():
    import cv2

    before = cv2.getNumThreads()
    try:
        found = []
        for threads in (1, 2):
            cv2.setNumThreads(threads)
            found.append(flow_magnitudes(jumping_square()))
    finally:
        cv2.setNumThreads(before)
    np.testing.assert_array_equal(*found)


def test_flow_of_a_file(make_video, tmp_path):
    def picture(i: int) -> np.ndarray:
        return np.repeat(jumping_square()[i][..., None], 3, axis=2)

    path = make_video(tmp_path / "jump.mp4", size=(160, 120), fps=10, duration_s=2.0, picture=picture)
    full = measure_flow(path)
    assert full.fps == 10 and len(full.magnitudes) == 20
    np.testing.assert_allclose(flow_peaks_s(full), [0.5, 1.2])
    # 120 rows are no more than the fast variant keeps
    np.testing.assert_allclose(measure_flow(path, "fast").magnitudes, full.magnitudes)


def test_flow_equals_that_of_opencv_s_reader(make_video, tmp_path):
    """As the published code reads its videos; also where they are to be turned upright."""
    import cv2

    def picture(i: int) -> np.ndarray:
        return np.repeat(jumping_square()[i][..., None], 3, axis=2)

    for turned in (0, 90):
        path = make_video(tmp_path / f"{turned}.mp4", size=(160, 120), fps=10, duration_s=2.0, picture=picture,
                          rotation=turned)
        capture = cv2.VideoCapture(str(path))
        frames = []
        while (read := capture.read())[0]:
            frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2GRAY))
        assert frames[0].shape == ((160, 120) if turned else (120, 160))
        found = measure_flow(path)
        np.testing.assert_allclose(found.magnitudes, flow_magnitudes(frames), atol=2e-5)
        assert found.fps == capture.get(cv2.CAP_PROP_FPS)


def test_motion_of_fields_is_that_of_whole_pictures(tmp_path):
    """A textured disc in leaps, filmed in whole pictures, and in fields of which the second is a fiftieth later."""
    rows, columns = np.mgrid[0:120, 0:160]
    ground = 60 + 0.3 * np.random.default_rng(0).integers(40, 200, (15, 20)).repeat(8, 0).repeat(8, 1)

    def scene(time_s: float) -> np.ndarray:
        centre = 30 + (18 * (time_s * 4 // 1) + 12 * min(1, time_s * 4 % 1 * 3)) % 100
        inside = (columns - centre) ** 2 + (rows - 60) ** 2 < 400
        return np.where(inside, 120 + 40 * (((columns - centre) * 7).astype(int) % 3), ground)

    def woven(first_s: float, second_s: float) -> np.ndarray:
        return np.where(rows % 2 == 0, scene(first_s), scene(second_s))

    def flow(pictures: list[np.ndarray], fields: bool) -> np.ndarray:
        options = {"x264-params": "tff=1", "flags": "+ilme+ildct"} if fields else {}
        with av.open(str(tmp_path / "a.mp4"), "w") as container:
            video = container.add_stream("libx264", rate=25, options={"crf": "4", **options})
            video.width, video.height, video.pix_fmt = 160, 120, "yuv420p"
            for picture in pictures:
                grey = picture.clip(0, 255).astype(np.uint8)[..., None].repeat(3, 2)
                container.mux(video.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
            container.mux(video.encode(None))
        return measure_flow(tmp_path / "a.mp4").magnitudes

    times_s = np.arange(30) / 25
    whole = flow([scene(time_s) for time_s in times_s], False).mean()
    fields = [woven(time_s, time_s + 0.02) for time_s in times_s]
    assert flow(fields, True).mean() == pytest.approx(whole, rel=0.1)
    assert abs(flow(fields, False).mean() / whole - 1) > 0.15, "nothing would be gained"
    assert flow([woven(0.2, 0.22)] * 30, True)[2:].max() < 0.1, "a still picture moves, however it is combed"


def test_what_has_no_flow(make_video, tmp_path):
    one = make_video(tmp_path / "one.mp4", times_s=[0.0])
    with pytest.raises(InputError, match="one.mp4.*at least two frames"):
        measure_flow(one)
    long = make_video(tmp_path / "long.mp4", duration_s=2.0)
    with pytest.raises(InputError, match="longer than 1 s"):
        measure_flow(long, longest_s=1.0)
    with pytest.raises(InputError, match="no variant"):
        measure_flow(long, "slow")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(InputError, match="text.mp4"):
        measure_flow(tmp_path / "text.mp4")


# ---------------------------------------------------------------- one to one

@pytest.mark.parametrize("score", [aa_align_published, aa_align_matched, av_align_matched,
                                   lambda a, b: av_align_published(a, b, 25),
                                   lambda a, b: av_align_sta_published(a, b, 25)])
def test_order_does_not_matter_and_nan_is_refused(score):
    first, second = np.array([1.0, 0.2, 3.1, 2.0]), np.array([2.02, 1.03, 0.5])
    assert score(first, second) == score(np.sort(first), np.sort(second)[::-1]) > 0
    with pytest.raises(InputError, match="1 of 4 times"):
        score(np.array([1.0, np.nan, 2, 3]), second)


def test_windows_end_where_the_published_ones_do():
    """0.6 − 0.1 is no less than 0.5 in binary, although |0.5 − 0.6| is less than 0.1."""
    assert abs(0.5 - 0.6) < 0.1
    assert aa_align_published(np.array([0.6]), np.array([0.5])) == 0


def test_a_greedy_matching_in_time_is_the_largest():
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import maximum_bipartite_matching

    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = rng.uniform(0, 2, rng.integers(1, 12)), rng.uniform(0, 2, rng.integers(1, 12))
        near = np.abs(a[:, None] - b[None]) <= 0.1
        largest = int((maximum_bipartite_matching(csr_matrix(near), perm_type="column") >= 0).sum())
        assert matched_pairs(a, b, 0.1) == largest


# ---------------------------------------------------------------- what must hold of any sound

def test_a_shift_hurts_every_score():
    rate, rng = 16_000, np.random.default_rng(0)
    sound = 0.001 * rng.normal(size=8 * rate)
    for time_s in np.sort(rng.uniform(0.3, 7.5, 9)):
        n = np.arange(rate // 20)
        sound[int(time_s * rate) + n] += rng.uniform(0.3, 0.9) * np.exp(-n / 150) * np.sin(n * rng.uniform(0.2, 1))
    shifted = np.roll(sound, rate // 2)
    same, late = (foley_onsets(at_published_rate(w)) for w in (sound, shifted))
    times, late_times = (librosa_onsets_s(at_published_rate(w)) for w in (sound, shifted))
    assert onset_scores_published(same, same).accuracy == 1 == aa_align_matched(times, times)
    assert onset_scores_published(same, late).accuracy < 0.5
    assert onset_scores_matched(same, late).average_precision < 0.5
    assert aa_align_matched(times, late_times) < 0.5 and aa_align_published(times, late_times) < 0.5


@pytest.mark.parametrize("bad", [np.full(16_000, np.nan), np.zeros((2, 16_000))])
def test_what_is_no_sound(bad):
    with pytest.raises(InputError, match="finite mono"):
        at_published_rate(bad)


# ---------------------------------------------------------------- reference values of six clips by six systems

@pytest.fixture(scope="module")
def golden(shared_dir):
    return json.loads((shared_dir / "golden" / "alignment.json").read_text())


@cache
def onsets(shared_dir, system: str, clip: str) -> tuple[np.ndarray, FoleyOnsets]:
    sound = at_published_rate(read_audio(shared_dir / "clips" / system / f"{clip}.mp4"))
    return librosa_onsets_s(sound), foley_onsets(sound)


@pytest.mark.parametrize("clip", CLIPS)
def test_sounds_score_as_published(golden, shared_dir, clip):
    true_s, true = onsets(shared_dir, "gt", clip)
    for system, scores in golden.items():
        found_s, found = onsets(shared_dir, system, clip)
        expected = scores[clip]
        assert len(found.samples) == expected["n_on"]
        assert aa_align_published(true_s, found_s) == pytest.approx(expected["aa_align"], abs=1e-5), system
        published = onset_scores_published(true, found)
        assert published.accuracy == pytest.approx(expected.get("on_acc"), abs=1e-5), system
        assert published.average_precision == pytest.approx(expected.get("on_ap"), abs=1e-5), system


# the clips of the smallest pictures; flow of the largest takes ten times as long
@pytest.mark.parametrize("clip", ["11", *(pytest.param(clip, marks=pytest.mark.slow) for clip in ("6", "9"))])
def test_motion_scores_as_published(golden, shared_dir, clip):
    flow = measure_flow(shared_dir / "clips" / "gt" / f"{clip}.mp4")
    for system, scores in golden.items():
        found = av_align_published(onsets(shared_dir, system, clip)[0], flow_peaks_s(flow), flow.fps)
        assert found == pytest.approx(scores[clip]["av_align"], abs=1e-3), system
