"""Which of a video's sounds is heard, in every program; and where it was filmed, which is kept on demand alone."""

import json
import warnings
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from test_extract import BrightnessEncoder, BrightnessGrounder, write_manifest
from test_generate_failures import MODEL, Played

from vta_sam.dataset.extraction.extract import Extraction
from vta_sam.dataset.extraction.shard_folder import failures
from vta_sam.dataset.shards.records import read_shard
from vta_sam.evaluation.measure import ClipJob, measure_clip
from vta_sam.evaluation.pairing import SoundFile
from vta_sam.evaluation.sounds import LoadingPolicy, read_sound
from vta_sam.generation.inputs import read_record
from vta_sam.generation.videos import Outputs, Prompt, generate_videos, plan_videos
from vta_sam.media.audio import read_audio
from vta_sam.media.muxing import mux, plan_mux
from vta_sam.media.picture_reader import Squeeze
from vta_sam.media.video import Kept, probe, read_clip
from vta_sam.runtime.errors import InputError
from vta_sam.settings import GenerateSettings

HZ = {"eng": 300, "ger": 1200, "fra": 3000}
SILENCE = np.zeros(16_000, np.float32)
PLACE = "+52.5000-013.4000/"


def tone(hz: float) -> np.ndarray:
    return 0.4 * np.sin(2 * np.pi * hz * np.arange(16_000) / 16_000)


def loudest_hz(waveform: np.ndarray) -> int:
    return int(np.abs(np.fft.rfft(waveform[:16_000])).argmax())


def a_video(path: Path, languages: tuple[str, ...] = ("eng", "ger", "fra"), tags: dict[str, str] = {},
            picture_tags: dict[str, str] = {}) -> Path:
    """A second of pictures, with a tone for each language; the second is marked as a comment, the last as default."""
    marks = {1: av.stream.Disposition.comment, len(languages) - 1: av.stream.Disposition.default}
    with av.open(str(path), "w") as container:
        container.metadata.update(tags)
        video = container.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.metadata.update(picture_tags)
        tracks = [container.add_stream("aac", rate=16_000, layout="mono") for _ in languages]
        for number, (track, language) in enumerate(zip(tracks, languages)):
            track.metadata["language"] = language
            track.disposition = marks.get(number, av.stream.Disposition(0))
        for _ in range(10):
            container.mux(video.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(video.encode(None))
        for track, language in zip(tracks, languages):
            block = av.AudioFrame.from_ndarray(tone(HZ[language])[None].astype(np.float32), "fltp", "mono")
            block.sample_rate, block.pts, block.time_base = 16_000, 0, Fraction(1, 16_000)
            container.mux(track.encode(block))
            container.mux(track.encode(None))
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return a_video(tmp_path_factory.mktemp("sounds") / "v.mkv")


@pytest.mark.parametrize("sound, heard", [
    (None, 3000), ("0", 300), ("1", 1200), ("2", 3000), ("eng", 300), ("ger", 1200), ("deu", 1200), ("FRE", 3000),
])
def test_a_sound_is_chosen_by_number_or_language(video, sound, heard):
    assert loudest_hz(read_audio(video, sound=sound)) == heard
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clip = read_clip(video, fps=10, fits=[Squeeze(8, 8)], want_audio=True, sound=sound)
    assert loudest_hz(clip.waveform) == heard


@pytest.mark.parametrize("sound", ["3", "spa", "-1", "9" * 5000])
def test_a_sound_that_is_not_there_is_refused_with_those_that_are(video, tmp_path, sound):
    for read in (lambda: read_audio(video, sound=sound), lambda: plan_mux(video, tmp_path / "o.mp4", Kept(sound)),
                 lambda: read_sound(video, LoadingPolicy(), sound)):
        with pytest.raises(InputError, match=r"\(sounds: 0 eng, 1 ger comment, 2 fra default\)"):
            read()


def test_several_sounds_are_told(video, tmp_path):
    told = "of its 3 sounds (0 eng, 1 ger comment, 2 fra default) number 2 is heard; sound= names another"
    assert probe(video).choice_of_sound == told and told in read_sound(video, LoadingPolicy()).notes
    with pytest.warns(UserWarning, match="number 2 is heard"):
        read_clip(video, fps=10, fits=[Squeeze(8, 8)], want_audio=True)
    assert probe(a_video(tmp_path / "one.mkv", ("eng",))).choice_of_sound == ""
    assert read_sound(video, LoadingPolicy(), "eng").notes == []


def test_the_named_sound_is_mixed_in(video, tmp_path):
    def made(folder: str, mix: float, kept: Kept) -> tuple[list, dict, Path]:
        outputs = Outputs(tmp_path / folder, mix, picture=False, kept=kept)
        pipeline = Played()
        pipeline.level = 0.0
        outcomes = generate_videos(pipeline, {"v": video}, Prompt(), outputs, MODEL)
        return outcomes, read_record(tmp_path / folder / "v.json")["asked"], tmp_path / folder / "v.mp4"

    outcomes, asked, written = made("named", 1.0, Kept("ger"))
    assert asked["sound"] == "ger" and loudest_hz(read_audio(written)) == 1200 and not outcomes[0].notes
    outcomes, asked, written = made("unnamed", 1.0, Kept())
    assert "sound" not in asked and "keep_location" not in asked and loudest_hz(read_audio(written)) == 3000
    assert any("number 2 is heard" in note for note in outcomes[0].notes)
    outcomes, asked, _ = made("unmixed", 0.0, Kept())
    assert not outcomes[0].notes
    planned = plan_videos({"v": video}, Prompt(), Outputs(tmp_path / "x", 0.5, kept=Kept("spa")), MODEL,
                          Played().sampler)
    assert "has no sound spa" in planned.tasks[0].item.detail, "refused before the model is loaded"


@pytest.mark.slow
def test_extraction_hears_the_named_sound_and_lists_videos_without_it(video, tmp_path):
    a_video(tmp_path / "v.mkv")
    a_video(tmp_path / "one.mkv", ("eng",))
    manifest = write_manifest(tmp_path / "m.csv", [
        {"id": name, "caption": "a dog", "path": f"{name}.mkv", "split": "train"} for name in ("v", "one")])

    def asked(sound: str | None) -> Extraction:
        return Extraction(manifest, tmp_path, tmp_path / "out", BrightnessGrounder(), BrightnessEncoder(), 5.0,
                          workers=1, sound=sound)

    info = asked("ger").run()
    [record] = [record for shard in info.shards("train") for record in read_shard(tmp_path / "out" / shard.name)]
    assert record.key == "v" and loudest_hz(record.waveform) == 1200
    [failed] = [entry for path in (tmp_path / "out").glob("*.failed.jsonl") for entry in failures(path)]
    assert failed["id"] == "one" and "has no sound ger" in failed["reason"] and "(sounds: 0 eng" in failed["reason"]
    assert json.loads((tmp_path / "out" / "extraction.json").read_text())["config"]["sound"] == "ger"
    with pytest.raises(InputError, match="sound ger then, None now"):
        asked(None).planned()
    plain = asked(None)
    object.__setattr__(plain, "out", tmp_path / "plain")
    assert "sound" not in plain.planned().folder.config, "older datasets stay what they are"


def test_evaluation_hears_the_named_true_sound(video, tmp_path):
    def digest(sound: str | None) -> tuple[str, list[str]]:
        true = SoundFile("v", 0, video, None)
        job = ClipJob("v", true, (("ours", true),), None, (), LoadingPolicy(), (), tmp_path / "cache", sound=sound,
                      keep_reference=True)
        measured = measure_clip(job)
        assert loudest_hz(measured.reference.waveform) == (3000 if sound is None else HZ[sound])
        assert not isinstance(measured.sounds["ours", 0], str)
        return measured.reference.digest, measured.reference.notes

    assert digest(None)[0] != digest("ger")[0] != digest("eng")[0]
    assert digest(None)[1] and not digest("ger")[1]


PLACES = {"location": PLACE, "com.apple.quicktime.location.ISO6709": PLACE, "RECORDING_LOCATION": "Berlin"}


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
@pytest.mark.parametrize("tag", PLACES)
def test_where_it_was_filmed_is_kept_on_demand_alone(tmp_path, tag, suffix):
    source = a_video(tmp_path / "a.mkv", ("eng",), {tag: PLACES[tag], "title": "A walk"}, {"LOCATION": PLACE})
    for kept in (Kept(), Kept(location=True)):
        plan = plan_mux(source, tmp_path / f"b{suffix}", kept)
        assert any("where it was filmed" in note for note in plan.notes) is not kept.location
        with av.open(str(mux(source, SILENCE, 16_000, tmp_path / f"b{suffix}", kept=kept))) as container:
            tags = {key.lower(): value for key, value in container.metadata.items()}
            anywhere = json.dumps([container.metadata, *(stream.metadata for stream in container.streams)])
        assert tags["title"] == "A walk"
        if not kept.location:
            assert "52.5" not in anywhere and "Berlin" not in anywhere
        elif tag != "RECORDING_LOCATION":
            assert tags["location"].startswith("+52.5")
        elif suffix == ".mkv":
            assert tags["recording_location"] == "Berlin"


def test_a_place_of_the_pictures_alone_is_told_and_left_out(tmp_path):
    source = a_video(tmp_path / "a.mkv", ("eng",), {}, {"LOCATION": PLACE})
    assert plan_mux(source, tmp_path / "b.mkv").notes == ("left out: where it was filmed",)
    with av.open(str(mux(source, SILENCE, 16_000, tmp_path / "b.mkv"))) as container:
        assert "LOCATION" not in container.streams.video[0].metadata


def test_a_sound_is_named_for_a_mix_alone():
    assert GenerateSettings.of({"video": "a.mp4", "sound": 1, "mix": 0.5}).sound == "1"
    with pytest.raises(InputError, match="sound= names the sound that mix= adds; give mix= too"):
        GenerateSettings.of({"video": "a.mp4", "sound": "ger"})
