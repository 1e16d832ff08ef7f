"""The embedded world: timelines keep their promises, pictures show who sounds, files are the same each time."""

import csv
import dataclasses

import av
import numpy as np
import pytest

from vta_sam.embedded.canvas import Style
from vta_sam.embedded.render import render, sprite_sheet
from vta_sam.embedded.scene_sounds import SAMPLES, render_sound
from vta_sam.embedded.timeline import (
    CLASSES, FRAMES, HEIGHT_PX, LOOK_ALIKES, WIDTH_PX, WORDS, Thing, frame_times_s, make_scene
)
from vta_sam.embedded.truth import Event, SceneObject, read_truth, truth_paths, write_truth
from vta_sam.embedded.world import (
    broken_promises, facts_of_scene, facts_of_truth, measure, measure_world, write_clip, write_world
)
from vta_sam.runtime.errors import InputError


@pytest.fixture(scope="module")
def scenes():
    return [make_scene(0, "train", i) for i in range(600)]


@pytest.fixture(scope="module")
def rendered():
    return [(scene, *render(scene)) for scene in (make_scene(3, "test", i) for i in range(10))]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, {"train": 3, "val": 1}, seed=5)
    return folder


def test_timelines_keep_every_promise(scenes):
    assert broken_promises(measure(map(facts_of_scene, scenes))) == []


def test_a_world_that_never_pauses_breaks_a_promise(scenes):
    facts = [facts_of_scene(s) for s in scenes[:100]]
    for f in facts:
        f.sounding[:] = True
    broken = broken_promises(measure(facts))
    assert any("silent" in b for b in broken) and any("out of full view" in b for b in broken)


def test_size_and_place_do_not_tell_the_class(scenes):
    things = [t for s in scenes for t in s.things if t.named]
    label = np.array([WORDS.index(t.word) for t in things])
    times = frame_times_s()
    centres = np.array([np.nanmean(t.centres_px(times), axis=0) for t in things])
    for trait in (np.array([t.height_px for t in things]), centres[:, 0], centres[:, 1]):
        means = np.array([trait[label == k].mean() for k in range(len(WORDS))])
        # the class explains a small part of the spread
        assert means.std() < 0.25 * trait.std()


def test_colours_are_drawn_without_knowing_the_class():
    """Two classes with the same seed wear the same colours."""
    dog, clarinet = (Thing(word, True, seed=11, height_px=40, width_px=44) for word in ("dog", "clarinet"))
    seen = {tuple(np.round(Style.random(np.random.default_rng([s, 2])).body, -2)) for s in range(200)}
    assert len(seen) > 8
    assert not np.array_equal(sprite_sheet(dog)[0], sprite_sheet(clarinet)[0])


def test_captions_name_the_named_things_and_no_other(scenes):
    for scene in scenes[:200]:
        for word in WORDS:
            assert (word in scene.caption) == (word in scene.words), scene.caption
        assert not any(look_alike in scene.caption for look_alike in LOOK_ALIKES), scene.caption


def test_scenes_differ_by_seed_split_and_index_and_by_nothing_else():
    first = make_scene(0, "train", 4)
    assert first.caption == make_scene(0, "train", 4).caption
    others = [make_scene(1, "train", 4), make_scene(0, "val", 4), make_scene(0, "train", 5)]
    assert all([t.seed for t in o.things] != [t.seed for t in first.things] for o in others)


@pytest.mark.parametrize("word", list(WORDS) + list(LOOK_ALIKES))
def test_a_gesture_changes_the_picture_and_look_alikes_look_different(word):
    height = 44
    thing = Thing(word, word in WORDS, seed=3, height_px=height, width_px=round(height * 1.2))
    levels = sprite_sheet(thing)
    rest, full = levels[0][..., 3], levels[-1][..., 3]
    assert rest.sum() > 0.08 * rest.size
    assert np.abs(full - rest).sum() > (0.25 if word in WORDS else 0.1) * rest.sum()
    if word in LOOK_ALIKES:
        model = sprite_sheet(Thing(LOOK_ALIKES[word], True, thing.seed, thing.height_px, thing.width_px))[0][..., 3]
        assert np.abs(model - rest).sum() > 0.2 * model.sum()


def test_a_sounding_thing_is_posed_in_the_very_picture(scenes):
    """Of every event, one of the two pictures after its onset shows nearly the full gesture, also at half the rate."""
    times = frame_times_s()
    for scene in scenes[:60]:
        for thing in scene.things:
            pose = thing.pose_at(times)
            for event in thing.events:
                first = int(np.ceil(event.onset_s * 25 - 0.5))
                for start in (first, first + 1):  # every second picture, from either
                    assert pose[start:start + 4:2].max() >= 0.85
            quiet = ~thing.sounding()
            if thing.named:
                assert pose[~quiet].mean() > 2.5 * pose[quiet].mean()


def test_truth_agrees_with_the_pictures(rendered):
    for scene, pictures, truth in rendered:
        assert pictures.shape == (FRAMES, HEIGHT_PX, WIDTH_PX, 3) and pictures.dtype == np.uint8
        truth.validate()
        for k, thing in enumerate(scene.things):
            away = np.isnan(thing.centres_px(frame_times_s())[:, 0])
            assert not truth.visible[away, k].any() and not truth.masks[away, k].any()
            seen = np.flatnonzero(truth.inside[:, k] > 0.99)
            for frame in seen[::16]:
                cx, cy, w, h = truth.boxes[frame, k].astype(float)
                rows, columns = np.nonzero(truth.masks[frame, k])
                if len(rows):  # cells covered by more than half lie in the box, up to a cell
                    assert columns.min() / 32 > cx - w / 2 - 1 / 32 and (columns.max() + 1) / 32 < cx + w / 2 + 1 / 32
                    assert rows.min() / 24 > cy - h / 2 - 1 / 24 and (rows.max() + 1) / 24 < cy + h / 2 + 1 / 24


def test_pictures_change_where_a_thing_comes_in(rendered):
    for scene, pictures, truth in rendered:
        still = np.median(pictures[~truth.visible.any(1)], axis=0) if (~truth.visible.any(1)).sum() > 5 else None
        if still is None:
            continue
        full = truth.inside[:, 0] > 0.99
        cell = truth.masks[full, 0].repeat(4, 1).repeat(4, 2)
        change = np.abs(pictures[full].astype(float) - still).mean(-1)
        assert change[cell].mean() > 1.5 * change[~cell].mean()


def test_truth_survives_the_disk(rendered, tmp_path):
    _, _, truth = rendered[0]
    write_truth(tmp_path / "a.mp4", truth)
    back = read_truth(tmp_path / "a.mp4")
    assert back.objects == truth.objects and back.caption == truth.caption
    for name in truth.ARRAYS:
        assert np.array_equal(getattr(back, name), getattr(truth, name))
    assert not list(tmp_path.glob(".*"))


def test_broken_truth_is_refused_in_words(rendered, tmp_path):
    _, _, truth = rendered[0]
    video = tmp_path / "a.mp4"
    with pytest.raises(InputError, match="is missing"):
        read_truth(video)
    write_truth(video, truth)
    text = truth_paths(video)[0].read_text()
    truth_paths(video)[0].write_text(text.replace('"version": 1', '"version": 999'))
    with pytest.raises(InputError, match="version 999"):
        read_truth(video)
    truth_paths(video)[0].write_text(text[: len(text) // 2])
    with pytest.raises(InputError, match="can't be read"):
        read_truth(video)


def test_onsets_of_two_things_at_once_count_once(rendered):
    _, _, truth = rendered[0]
    first = SceneObject("dog", True, (Event(1.0, 1.2, "impulse"), Event(2.0, 2.2, "impulse")))
    second = SceneObject("canary", True, (Event(1.02, 1.5, "sustained"), Event(0.5, 0.9, "sustained")))
    truth = dataclasses.replace(truth, objects=[first, second])
    assert truth.onsets_s().tolist() == [0.5, 1.0, 2.0]


def test_written_world_is_complete_and_the_same_bytes_again(world, tmp_path):
    with (world / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["id"] for r in rows] == ["train-000000", "train-000001", "train-000002", "val-000000"]
    assert list(rows[0]) == ["id", "path", "caption", "objects", "label", "split", "start", "duration"]
    assert all((r["label"] == "") == (";" in r["objects"]) for r in rows)
    assert measure_world(world).clips == 4
    again = write_clip(tmp_path, make_scene(5, "train", 1))
    for path in (again, *truth_paths(again)):
        assert path.read_bytes() == (world / "train" / path.name).read_bytes(), path.name


def test_a_second_run_keeps_clips_and_another_seed_is_refused(world):
    video = world / "train" / "train-000000.mp4"
    before = video.stat().st_mtime_ns
    (world / "train" / "train-000002.mp4").unlink()
    counts = []
    write_world(world, {"train": 3, "val": 1}, seed=5, progress=lambda done, total: counts.append((done, total)))
    assert counts == [(4, 4)] and video.stat().st_mtime_ns == before
    with pytest.raises(InputError, match="another out="):
        write_world(world, {"train": 1}, seed=6)


def test_a_finished_world_is_kept_without_planning_its_scenes_again(world, monkeypatch):
    manifest = world / "manifest.csv"
    before = manifest.stat().st_mtime_ns, manifest.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("vta_sam.embedded.world.make_scene", None)
        write_world(world, {"train": 3, "val": 1}, seed=5)
    assert (manifest.stat().st_mtime_ns, manifest.read_bytes()) == before
    write_world(world, {"train": 2, "val": 1}, seed=5)
    assert len(manifest.read_bytes().splitlines()) == 1 + 3, "of these clips"
    write_world(world, {"train": 3, "val": 1}, seed=5)
    assert manifest.read_bytes() == before[1]


def test_an_mp4_gives_back_its_128_pictures_and_its_sound_unshifted(world):
    scene = make_scene(5, "train", 0)
    with av.open(str(world / "train" / "train-000000.mp4")) as container:
        pictures = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    with av.open(str(world / "train" / "train-000000.mp4")) as container:
        sound = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
    assert len(pictures) == FRAMES and len(sound) == SAMPLES
    drawn, _ = render(scene)
    assert np.abs(np.stack(pictures).astype(float) - drawn).mean() < 8
    true = render_sound(scene)
    lags = np.arange(-40, 41)
    match = [np.dot(sound[1100 + lag:-1100 + lag], true[1100:-1100]) for lag in lags]
    assert lags[int(np.argmax(match))] == 0
    assert np.mean((sound - true) ** 2) < 0.02 * np.mean(true**2)


def test_statistics_of_pictures_agree_with_those_of_timelines(rendered):
    drawn = measure(facts_of_truth(truth) for _, _, truth in rendered)
    planned = measure(facts_of_scene(scene) for scene, _, _ in rendered)
    assert drawn.per_class == planned.per_class and sum(drawn.per_class.values()) > 0
    assert abs(drawn.off_screen - planned.off_screen) < 0.05
    assert set(CLASSES) == set(drawn.per_class)
