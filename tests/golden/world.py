"""A small embedded world as files and shards, and what the kept model of the first format makes of it.

``tests/data`` was written by the program of version 0.1.0, which named classes by dotted paths, and is never made anew:
this and every later program has to read it.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import soundfile
from golden.played import Job, platform_line, play
from safetensors.numpy import load

SHARDS, SOUNDS = "shards.txt", "sounds.txt"
KEPT = Path(__file__).resolve().parents[1] / "data"
MODELS = {stage: KEPT / f"{name}_of_format_1" for stage, name in
          {"vae": "vae", "condition": "condition", "diffusion": "model"}.items()}
RUN = KEPT / "run_of_format_1"
# What the kept run was told, and every part of its networks as small as can be
_TOLD = ("+exp=vta_sam", "size=smoke", "threads=1", "runs=runs", "data=shards", "data.root=world/shards",
         "data.videos=world/videos", "networks.codec.network.block_out_channels=[8,8,16]",
         "networks.condition.width=16", "networks.unet.config.block_out_channels=[16,16,16]",
         "networks.unet.config.norm_num_groups=8", "networks.unet.config.cross_attention_dim=16",
         "networks.unet.coordinate_channels=4", "validation.clips=2",
         "figures={clips: 2, batch_size: 2, samples: 0, expected_s: 0}", "fit.vae.learning_rate=4e-3",
         "fit.vae.fit={steps: 48, validate_every: 24, checkpoint_every: 24, ema_decay: 0.8}",
         "fit.condition.learning_rate=3e-3",
         "fit.condition.fit={steps: 20, validate_every: 10, checkpoint_every: 10, ema_decay: 0.8}",
         "fit.diffusion.learning_rate=3e-3",
         "fit.diffusion.fit={steps: 24, validate_every: 12, checkpoint_every: 12, ema_decay: 0.8}")
_BANDS_HZ = np.geomspace(100, 8000, 9)
_SEGMENT_SAMPLES = 2560  # 0.16 s


def make_world(folder: Path) -> None:
    """Eight clips in ``folder``/world/videos, their features in ``folder``/world/shards."""
    folder.mkdir(parents=True, exist_ok=True)
    play(Job("data_prep/synthesize.py", ["out=world/videos", "train=4", "val=2", "test=2", "workers=1"], str(folder)))
    play(Job("data_prep/extract.py", ["videos=world/videos", "out=world/shards", "workers=1"], str(folder)))


def train_kept(folder: Path, *more: str) -> str:
    """The command that the kept run was made by, in the folder of a world ⇒ what it says."""
    return play(Job("experiments/train.py", [*_TOLD, *more], str(folder)))


def lay_out_run(folder: Path, *finished: str) -> Path:
    """The kept run as its command left it in ``folder``, of whose stages ``finished`` are done ⇒ the run's folder."""
    run = folder / "runs" / "vta_sam-0"
    shutil.copytree(RUN, run)
    for stage in finished:
        (run / stage / "done").touch()
        if stage in MODELS:
            shutil.copytree(MODELS[stage], run / stage / "model")
    return run


def encode_as_format_1(folder: Path) -> None:
    """The latents of the kept run, with the one number that version 0.1.0 measured: of all splits."""
    play(Job("data_prep/encode_latents.py", ["vae=runs/vta_sam-0/vae/model", "shards=world/shards", "threads=1"],
             str(folder)))
    path, = folder.glob("world/shards/latents-*/latents.json")
    measured = json.loads(path.read_text())
    path.write_text(json.dumps({name: measured[name] for name in ("std", "vae")}) + "\n")


_OF_DATASET = ("grounder", "encoder", "fps", "sample_rate_hz", "frame_dim", "object_dim", "caption_dim", "config_hash",
               "manifest_hash", "code_version", "splits")  # all that version 0.1.0 wrote, besides the format


def describe_as_format_1(folder: Path) -> None:
    """The world's dataset.json as version 0.1.0 wrote it."""
    path = folder / "world" / "shards" / "dataset.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({name: content[name] for name in _OF_DATASET} | {"format_version": 1}) + "\n")


def generate_split(folder: Path, out: str) -> str:
    """The kept model's sounds for the test split of a world, into ``folder``/``out`` ⇒ what is said."""
    return play(Job("experiments/generate.py", [f"model={MODELS['diffusion']}", "shards=world/shards", "split=test",
                                                f"out={out}", "device=cpu", "threads=1"], str(folder)))


def keep_run(folder: Path) -> None:
    """Make ``tests/data`` of a run by :func:`train_kept`: configs of its stages, and their model folders."""
    run = folder / "runs" / "vta_sam-0"
    for path in sorted(run.glob("*/config.yaml")):
        (RUN / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, RUN / path.parent.name)
    shutil.copy(run / "figures" / "measured.json", RUN / "figures")
    for stage, kept in MODELS.items():
        shutil.copytree(run / stage / "model", kept)


def shards_record(folder: Path) -> str:
    """Of :func:`make_world`'s folder: every file by its hash, and what is in the records."""
    world, lines = folder / "world", [f"platform: {platform_line()}", "", "[files]"]
    info = json.loads((world / "shards" / "dataset.json").read_text())
    lines += [f"dataset.json, {name}: {info[name]}" for name in
              ("grounder", "encoder", "fps", "sample_rate_hz", "frame_dim", "object_dim", "caption_dim", "config_hash",
               "manifest_hash", "format_version")]
    files = [path for path in (*world.glob("videos/**/*"), *world.glob("shards/*.tar")) if path.is_file()]
    lines += [f"{path.relative_to(world)}, sha256: {hashlib.sha256(path.read_bytes()).hexdigest()}"
              for path in sorted(files)]
    lines += ["", "[records]"]
    for path in sorted(world.glob("shards/*.tar")):
        with tarfile.open(path) as shard:
            for member in shard.getmembers():
                content = shard.extractfile(member)
                assert content is not None
                lines += _member_lines(member.name, content.read())
    return "\n".join(lines) + "\n"


def tolerance_of_shards(line: str) -> tuple[float, float] | None:
    """Of another platform, where a sound is rendered and coded with other roundings, and a feature of the tiny networks
    is off in the last bits of fp16: 5e-4 of it."""
    return None if "sha256" in line or "_hash" in line else (1e-2, 1e-2)


def sounds_record(folder: Path) -> str:
    """The kept model's sounds in the folder of :func:`make_world`: for the test split's features, and for a video."""
    model = f"model={MODELS['diffusion']}"
    generate_split(folder, "sounds/split")
    play(Job("experiments/generate.py", [model, "video=world/videos/test/test-000000.mp4", "out=sounds/video",
                                         "caption=a dog barks", "wav=true", "picture=false", "device=cpu",
                                         "threads=1"], str(folder)))
    lines = [f"platform: {platform_line()}"]
    for path in sorted(folder.glob("sounds/*/*.wav")):
        lines += ["", f"[{path.parent.name}/{path.name}]", *_sound_lines(path)]
    return "\n".join(lines) + "\n"


def tolerance_of_sounds(line: str) -> tuple[float, float] | None:
    """Of another platform, for decades of power in a band. Measured with another rounding of everything: 0.01."""
    return None if "sha256" in line else (0.0, 0.05)


def _member_lines(name: str, content: bytes) -> list[str]:
    """A member of a record: words as they are, of arrays their shape, mean, deviation, and five values."""
    if name.endswith(".json"):
        return [f"{name}, {key}: {value}" for key, value in sorted(json.loads(content).items())]
    arrays = load(content) if name.endswith(".safetensors") else {"waveform": soundfile.read(io.BytesIO(content))[0]}
    lines = []
    for key, array in sorted(arrays.items()):
        flat = array.astype(np.float64).ravel()
        some = flat[np.linspace(0, flat.size - 1, 5).astype(int)] if flat.size else flat
        values = [flat.mean(), flat.std(), *some] if flat.size else []
        lines += [f"{name}, {key}, shape: {' '.join(map(str, array.shape))}",
                  f"{name}, {key}: {' '.join(f'{value:.4f}' for value in values)}"]
    return lines


def _sound_lines(path: Path) -> list[str]:
    """The hash of the samples, and power in eight bands every 0.16 s."""
    samples, _ = soundfile.read(path, dtype="int16")
    lines = [f"samples: {len(samples)}", f"samples, sha256: {hashlib.sha256(samples.tobytes()).hexdigest()}"]
    for number, segment in enumerate(np.split(samples, range(_SEGMENT_SAMPLES, len(samples), _SEGMENT_SAMPLES))):
        power = np.abs(np.fft.rfft(segment / 32768)) ** 2 / len(segment)
        band = np.digitize(np.fft.rfftfreq(len(segment), 1 / 16_000), _BANDS_HZ[1:-1])
        decades = [np.log10(power[band == i].mean() + 1e-8) for i in range(len(_BANDS_HZ) - 1)]
        lines.append(f"{number * _SEGMENT_SAMPLES / 16_000:.2f} s: {' '.join(f'{value:.2f}' for value in decades)}")
    return lines
