"""A new sound under what strangers send: each file is written so that it reads back, or listed with a reason; one that
crashes FFmpeg, hangs it or takes its memory costs itself alone."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from damaged_videos import FAILS, GOOD, write_corpus
from processes import children_of, survivors
from test_extract import BrightnessEncoder, BrightnessGrounder
from test_generate_failures import MODEL, Played

from vta_sam.generation.pipeline import Generated
from vta_sam.generation.planning import Outputs, Prompt
from vta_sam.generation.videos import generate_videos
from vta_sam.media.guarded import GuardedMedia
from vta_sam.media.muxing import picture_duration_s
from vta_sam.media.video import probe
from vta_sam.perception.features import Extractors, Words, features_of

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at processes by /proc")
LIMIT_S, MEMORY_MB = 5.0, 1024
OVER = {"time": "took longer than", "memory": f"more than {MEMORY_MB} MB", "crash": "crashed on it"}


class Looking(Played):
    """A pipeline that looks at the whole video, and gives it a silence."""

    def __init__(self):
        super().__init__()
        self.extractors = Extractors(BrightnessGrounder(), BrightnessEncoder())

    def generate(self, video, media, **prompt):
        [features], strip = features_of(video, [Words("a dog", ["dog"])], self.extractors, self.spec, media)
        return Generated(np.zeros(len(features.waveform), np.float32), features, strip)


def decoders():
    return {pid: name for pid, name in children_of(os.getpid()).items() if "media.decoding" in name}


@pytest.mark.slow
def test_more_than_a_thousand_damaged_videos_get_a_sound_or_a_reason(tmp_path):
    cases = write_corpus(tmp_path / "videos", everything=True)
    assert len(cases) >= 1200
    videos = {f"v{number}": tmp_path / "videos" / case.path for number, case in enumerate(cases)}
    out = tmp_path / "out"
    with GuardedMedia(LIMIT_S, MEMORY_MB) as media:
        outcomes = generate_videos(Looking(), videos, Prompt(), Outputs(out, picture=False), MODEL, media=media)
    assert [outcome.video for outcome in outcomes] == list(videos.values()) and not survivors(decoders, 3.0)
    for case, outcome in zip(cases, outcomes):
        reason = outcome.failure
        assert bool(reason) is (outcome.written is None)
        assert case.pictures != GOOD or not reason, (case, reason)
        assert case.pictures != FAILS or reason, case
        if reason:
            assert str(outcome.video) in reason and "partial" not in reason and ".next" not in reason, reason
            assert "\n" not in reason.replace(case.path, "") and "Traceback" not in reason, reason
    written = [outcome for outcome in outcomes if outcome.written]
    made = {Path(path).name for path in os.listdir(out)}
    assert made == {name for outcome in written for name in (outcome.written.name, f"{outcome.written.stem}.json")}
    for outcome in written[::10]:  # each was read back; here once more
        assert probe(outcome.written).audio_codec == "aac" and picture_duration_s(outcome.written) > 0
    over = {kind: sum(words in outcome.failure for outcome in outcomes) for kind, words in OVER.items()}
    # FFmpeg asks for what a header claims: tables of 2³² entries, say
    assert len(written) >= 700 and over["memory"] <= 60 and over["time"] + over["crash"] <= 5, over
