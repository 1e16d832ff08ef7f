"""Released models by name: imported once from the folder of released weights, and told where files go if not."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import writable_copy
from programs import call

import vta_sam
from vta_sam.checkpoints import weights_report as report
from vta_sam.importers import named_models as by_name
from vta_sam.media.audio import read_wav
from vta_sam.runtime.errors import InputError

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def weights(released, tmp_path, monkeypatch):
    """The tiny checkpoints where the released ones would lie."""
    folder = tmp_path / "weights"
    copies = {"vta-ldm": "vta_ldm_tiny", "tango": "tango_tiny", "clip-vit-large-patch14": "clip-vit-large-tiny",
              "flan-t5-large": "tango_tiny/text_encoder", "stable-diffusion-2-1": "stable-diffusion-2-1"}
    for name, tiny in copies.items():
        writable_copy(released / tiny, folder / name)
    for suffix in ("ckpt", "json"):
        shutil.copyfile(released / f"audioldm_tiny.{suffix}", folder / f"audioldm-s-full.{suffix}")
    for name, config in (("vta-ldm", "diffusion_model_config_large_2048.json"),
                         ("tango", "diffusion_model_config.json")):
        (folder / name / "configs").mkdir()
        shutil.copyfile(released / "unet_tiny.json", folder / name / "configs" / config)
    # as in the published training script and hub folder
    (folder / "vta-ldm" / "summary.jsonl").write_text(json.dumps({
        "fea_encoder_name": "clip-vit-large-patch14", "scheduler_name": "ckpt/stable-diffusion-2-1",
        "unet_model_config": "configs/diffusion_model_config_large_2048.json", "task": "video2audio"}) + "\n")
    (folder / "tango" / "main_config.json").write_text(json.dumps({
        "text_encoder_name": "google/flan-t5-large", "scheduler_name": "stabilityai/stable-diffusion-2-1",
        "unet_model_config_path": "configs/diffusion_model_config.json", "unet_model_name": None}))
    write_word_tokenizer(folder / "flan-t5-large")
    monkeypatch.setenv("VTA_SAM_WEIGHTS", str(folder))
    return folder


def write_word_tokenizer(folder: Path) -> None:
    """Of whole words, in the layout of a T5's."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "dog": 4, "barks": 5}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
                            ).save_pretrained(folder)


def generate(*arguments: str) -> subprocess.CompletedProcess:
    return call("experiments/generate.py", *arguments, cwd=REPOSITORY)


def test_a_name_is_imported_once_and_a_folder_is_a_folder(weights, monkeypatch):
    folder = by_name.named_folder("audioldm")
    assert folder == weights / "imported" / "audioldm" and (folder / "model.yaml").exists()
    monkeypatch.setattr(by_name, "import_checkpoint", lambda *a: pytest.fail("imported again"))
    assert by_name.named_folder("audioldm") == folder
    assert by_name.named_folder("./audioldm") == Path("audioldm") and by_name.named_folder("mine") == Path("mine")
    assert [path.name for path in (weights / "imported").iterdir() if path.suffix != ".lock"] == ["audioldm"]


def test_offline_every_missing_file_is_named_with_its_place(weights, monkeypatch):
    for name in ("vta-ldm/pytorch_model_2.bin", "stable-diffusion-2-1/scheduler/scheduler_config.json",
                 "clip-vit-large-patch14/model.safetensors"):
        (weights / name).unlink()

    def offline(files, folder, console):
        raise InputError("there is no network")

    monkeypatch.setattr(report, "fetch_all", offline)
    with pytest.raises(InputError) as told:
        by_name.named_folder("vta_ldm")
    words = str(told.value)
    for name in ("vta-ldm/pytorch_model_2.bin", "stable-diffusion-2-1/scheduler/scheduler_config.json"):
        assert str(weights / name) in words
    assert words.count("https://") == 2 and not (weights / "imported" / "vta_ldm").exists()
    assert "clip-vit-large-patch14" not in words  # whose weights are in the checkpoint


@pytest.mark.slow
def test_sound_under_a_video_in_one_command(weights, shared_dir, tmp_path):
    video = shared_dir / "clips" / "vta-ldm" / "11.mp4"
    done = generate("model=vta_ldm", f"video={video}", f"out={tmp_path}/out", "steps=2", "wav=true", "objects=[dog]")
    assert done.returncode == 0, done.stderr
    assert "763 tensors taken" in done.stderr and "looks for no objects" in done.stdout
    record = json.loads((tmp_path / "out" / "11.json").read_text())
    assert record["asked"]["solver"] == "ddpm" and record["asked"]["guidance"] == 3.0 and record["objects"] == []
    waveform, rate_hz = read_wav(tmp_path / "out" / "11.wav")
    assert rate_hz == 16_000 and np.abs(waveform).max() > 0
    assert (tmp_path / "out" / "11.mp4").exists()


@pytest.mark.slow
def test_a_caption_alone(weights, tmp_path):
    done = generate("model=tango", "caption=a dog barks", f"out={tmp_path}/out", "steps=2", "solver=dpm")
    assert done.returncode == 0, done.stderr
    waveform, _ = read_wav(tmp_path / "out" / "a-dog-barks-0.wav")
    assert len(waveform) == 163_840
    record = json.loads((tmp_path / "out" / "a-dog-barks-0.json").read_text())
    assert [record["asked"][key] for key in ("solver", "steps", "caption")] == ["dpm", 2, "a dog barks"]
    again = generate("model=tango", "caption=a dog barks", f"out={tmp_path}/out", "steps=3", "solver=dpm")
    assert again.returncode == 2 and "was made with steps=2" in again.stderr
    pipeline = vta_sam.load("tango")
    once, again, other = (pipeline.generate_from_caption(words, seed=0, steps=1)
                          for words in ("a dog barks", "a dog barks", "a dog"))
    assert np.array_equal(once, again) and not np.array_equal(once, other)
    assert len(pipeline.extractors.encoder.encode_caption("a dog barks")) == 4  # the end token is one
    with pytest.raises(InputError, match="looks at pictures"):
        vta_sam.load("vta_ldm").generate_from_caption("a dog barks")


def test_an_imported_model_is_saved_and_loaded_again(weights, tmp_path):
    pipeline = vta_sam.load("vta_ldm").to("cpu")
    pipeline.save_pretrained(tmp_path / "mine")
    assert "CC BY 4.0" in (tmp_path / "mine" / "README.md").read_text()
    again = type(pipeline).from_pretrained(tmp_path / "mine")
    assert again.extractors.encoder.fingerprint == pipeline.extractors.encoder.fingerprint
    for part in ("codec", "denoiser", "conditioner", "vocoder"):
        one, other = getattr(pipeline, part).state_dict(), getattr(again, part).state_dict()
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    with pytest.raises(InputError, match="exists"):
        pipeline.save_pretrained(tmp_path / "mine")
