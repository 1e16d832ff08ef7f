"""Grounding DINO, SAM and CLIP through the doors that users take: the extraction script, the check of its shards, and
generation's own look at a video. Random weights in the released layout."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import released
from programs import call
from test_extract import write_manifest

from vta_sam.clip import ClipSpec
from vta_sam.dataset.extraction.extract import extract_dataset
from vta_sam.dataset.shards.records import read_shard
from vta_sam.perception.clip_encoder import CLIPEncoder
from vta_sam.perception.features import Extractors, features_of, words_of
from vta_sam.perception.grounded_sam import GroundedSAM
from vta_sam.perception.grounded_sam import Segmenter
from vta_sam.runtime.errors import InputError

SIDE = 224  # pixels: little more than Grounding DINO needs


@pytest.fixture(scope="module")
def weights(random_weights) -> dict[str, Path]:
    return {"grounder": random_weights("groundingdino_swint_ogc"), "encoder": random_weights("clip-vit-large-patch14")}


@pytest.fixture(scope="module")
def clips(make_video, tmp_path_factory) -> Path:
    """A video of 160 x 120 pixels that changes from frame to frame, its manifest, and a file that is none."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (2, 12, 16, 3), dtype=np.uint8).repeat(10, 1).repeat(10, 2)
    make_video(folder / "seen.mp4", size=(160, 120), fps=2, duration_s=1.0, picture=lambda i: pictures[i],
               sound=rng.uniform(-0.3, 0.3, 16_000))
    (folder / "broken.mp4").write_bytes(b"no video")
    write_manifest(folder / "manifest.csv", [
        {"id": "seen", "caption": "a dog barks while a racing car drives past"}, {"id": "broken", "caption": "a dog"}])
    return folder


@pytest.fixture(scope="module")
def extractors(weights) -> Extractors:
    grounder = GroundedSAM(weights=weights["grounder"], short_side=SIDE, device="cpu")
    released.make_shallow(grounder.detector.model)
    grounder.segmenter = Segmenter(released.narrow_sam(), 1, grounder.device, grounder.detector.autocast)
    return Extractors(grounder, CLIPEncoder(weights=weights["encoder"], device="cpu"))


def extract(extractors, clips, out):
    return extract_dataset(clips / "manifest.csv", clips, out, extractors.grounder, extractors.encoder, fps=2.0,
                           workers=1)


@pytest.fixture(scope="module")
def extracted(extractors, clips, tmp_path_factory):
    """⇒ (folder of shards, what extraction said of it)."""
    out = tmp_path_factory.mktemp("extracted")
    return out, extract(extractors, clips, out)


def test_a_record_holds_what_the_networks_say(extractors, clips, extracted):
    """The shard and generation's own look at the same video agree, but for fp16."""
    out, info = extracted
    assert (info.frame_dim, info.object_dim, info.caption_dim) == (24, 24, 32)
    assert [(s.records, s.failed) for s in info.splits["train"]] == [(1, 1)]
    [clip] = read_shard(out / "train-000000.tar")
    assert clip.objects == ["dog", "car"] and clip.probs.shape == (2, 2) and clip.mask_embedding.shape == (2, 2, 256)
    spec = ClipSpec(duration_s=1.0, fps=2.0, latent_stride_frames=1)
    [looked], _ = features_of(clips / "seen.mp4", [words_of(clip.caption, None)], extractors, spec)
    for name in ("probs", "boxes", "areas", "frame_embedding", "object_embedding", "caption_tokens", "mask_embedding"):
        np.testing.assert_allclose(getattr(clip, name), getattr(looked, name), atol=4e-3, rtol=2e-3, err_msg=name)
    assert np.abs(clip.frame_embedding[0] - clip.frame_embedding[1]).max() > 0.01


def test_a_folder_begun_in_another_number_format_is_refused(extractors, clips, extracted):
    out, _ = extracted
    settings, extractors.grounder.settings = extractors.grounder.settings, {"precision": "fp16"}
    try:
        with pytest.raises(InputError, match="grounder_settings .*fp32.* then, .*fp16.* now"):
            extract(extractors, clips, out)
    finally:
        extractors.grounder.settings = settings


@pytest.mark.slow
def test_the_scripts_from_a_folder_to_checked_shards(weights, clips, tmp_path):
    def script(name: str, *arguments: str) -> subprocess.CompletedProcess:
        return call(f"data_prep/{name}", *arguments, cwd=tmp_path)

    made = script("manifest.py", "folder", "--videos", str(clips), "--out", "m.csv", "--caption-from", "name")
    assert made.returncode == 0, made.stderr
    settings = [f"videos={clips}", "manifest=m.csv", "out=shards", "grounder=grounded_sam", "encoder=clip", "fps=2"]
    none = script("extract.py", *settings)
    assert none.returncode == 2 and "missing; `python data_prep/weights.py fetch" in none.stderr
    extracted = script("extract.py", *settings, f"grounder.weights={weights['grounder']}",
                       f"encoder.weights={weights['encoder']}",
                       f"grounder.short_side={SIDE}")
    assert extracted.returncode == 0, extracted.stderr
    assert "broken.mp4" in (tmp_path / "shards" / "train-000000.failed.jsonl").read_text()
    checked = script("check.py", "shards=shards", f"videos={clips}", "overlay=1")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert (tmp_path / "shards" / "check" / "overlays" / "seen.mp4").stat().st_size > 1000
