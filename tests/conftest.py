"""Fixtures that several test files share: the reference material beside the repository, small videos, and what takes
long to make and is only read."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Callable, Iterator, Sequence

import one_thread  # noqa: F401  isort: skip  before numpy

import numpy as np
import pytest
from checkpoints import released  # noqa: F401  fixture of the tests of importers
from filelock import FileLock
from played_slurm import cluster, dataset, dry_run, manifest, refused  # noqa: F401  fixtures of the launcher
from weights_server import shelf, small  # noqa: F401  fixtures of the tests of released weights

REPOSITORY = Path(__file__).resolve().parents[1]
# Files begun first, those of most processor time first: else one of pytest's processes would be left alone with one of
# them in the end
LONGEST = ("test_golden.py", "test_played_gpu.py", "test_extract_killed.py", "test_generate_damaged.py",
           "test_metrics_alignment.py", "test_grounded_sam.py", "test_train_smoke.py", "test_study.py",
           "test_decoding.py", "test_extract_damaged.py", "test_evaluation.py", "test_training_resume.py",
           "test_processes.py", "test_sharding.py", "test_configs.py", "test_front_door.py", "test_house.py",
           "test_generate_cli.py", "test_evaluation_parts.py", "test_compiled.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def pytest_xdist_auto_num_workers() -> int:
    """Of ``-n auto``: one more than there are cores, since many tests wait for processes that they have started."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of reference clips and golden values beside the repository; tests that need it are skipped without."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder of reference material, `shared`, beside the repository")
    return folder


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """A function (name, make) that returns a folder which ``make`` has filled, once for all of pytest's processes.
    Tests read it; one that changes something copies it first."""
    own = tmp_path_factory.getbasetemp()
    base = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def folder_of(name: str, make: Callable[[Path], object]) -> Path:
        folder, made = base / f"made-{name}", base / f"made-{name}.done"
        with FileLock(base / f"made-{name}.lock"):
            if not made.exists():
                folder.mkdir(exist_ok=True)
                make(folder)
                made.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def random_weights(made_once) -> Callable[[str], Path]:
    """A function (name) that returns a folder of released weights with that entry, narrow and random."""
    from vta_sam.importers.random_weights import write_random

    return lambda name: made_once(f"weights-{name}", lambda folder: write_random(name, folder, narrow=True))


@pytest.fixture(scope="module", autouse=True)
def forget_own_modules() -> None:
    """Users' own code is called mine in many test files, each in a folder of its own; one process runs them all."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]
    sys.path[:] = [place for place in sys.path if not (Path(place) / "mine").exists() and
                   not (Path(place) / "mine.py").exists()]


@pytest.fixture(autouse=True)
def loggers_speak() -> None:
    """A script that is run in this process has Hydra silence the loggers that were there before it, and the root."""
    logging.root.setLevel(logging.WARNING)
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("vta_sam") and isinstance(logger, logging.Logger):
            logger.disabled = False


@pytest.fixture(scope="session")
def make_video() -> Callable[..., Path]:
    """A factory that writes a small video; see :func:`write_video`."""
    return write_video


def coded_grey(i: int) -> int:
    """The brightness that codes picture number i (mod 24): steps of 9 grey levels survive h264."""
    return 20 + 9 * (i % 24)


def decode_grey(picture: np.ndarray) -> int:
    """A picture (h, w, 3) whose number is coded in brightness ⇒ that number (mod 24)."""
    return round((float(picture.mean()) - 20) / 9) % 24


@contextmanager
def usual_priority() -> Iterator[None]:
    """Also a decorator. SVT-AV1 makes its caller a real-time process where it may, as root, and what that one starts
    later is one too: a browser, say, that leaves no core to anybody."""
    if not hasattr(os, "sched_getscheduler"):  # no Linux
        yield
        return
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


@usual_priority()
def write_video(
    path: Path,
    *,
    size: tuple[int, int] = (64, 48),  # width, height
    fps: Fraction | float = 25,
    duration_s: float = 1.0,
    picture: Callable[[int], np.ndarray] | None = None,  # i ⇒ (h, w, 3) uint8; default: number coded in brightness
    times_s: Sequence[float] | None = None,  # a variable frame rate: when each picture comes up
    sound: np.ndarray | None = None,  # (samples,) or (channels, samples) float
    sample_rate_hz: int = 16_000,
    sound_start_s: float = 0.0,
    rotation: int = 0,  # degrees counter-clockwise by which the display matrix has players turn the picture
    gray: bool = False,
    codec: str = "libx264",
    sound_codec: str = "aac",
    options: dict[str, str] | None = None,  # of the encoder, beside the usual ones
    pixel_format: str | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write ``path`` with PyAV; the container follows from its suffix."""
    import av

    width, height = size
    rate = Fraction(fps).limit_denominator(1001)
    times = list(times_s) if times_s is not None else [float(i / rate) for i in range(round(duration_s * rate))]
    pixel_format = pixel_format or ("gray" if gray else "yuv420p" if width % 2 == height % 2 == 0 else "yuv444p")
    with av.open(str(path), "w", options=container_options or {}) as container:
        video = container.add_stream(codec, rate=rate)
        video.width, video.height, video.pix_fmt = width, height, pixel_format
        clock = Fraction(1, 90_000) if codec in ("libx264", "libx265") else 1 / rate  # mpeg4 knows no finer one
        video.codec_context.time_base = clock
        usual = {"crf": "12", "preset": "ultrafast", "threads": "1"} if codec == "libx264" else {}
        video.options = usual | (options or {})
        if gray:
            video.codec_context.color_range = 2  # full, as FFmpeg converts to gray
        if rotation:
            video.set_display_rotation(rotation)
        audio = None
        if sound is not None:
            sound = np.atleast_2d(np.asarray(sound, np.float32))
            layout = {1: "mono", 2: "stereo"}[sound.shape[0]]
            audio = container.add_stream(sound_codec, rate=sample_rate_hz, layout=layout)
        for i, time_s in enumerate(times):
            pixels = picture(i) if picture else np.full((height, width, 3), coded_grey(i), np.uint8)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = frame.reformat(format=pixel_format)
            frame.pts, frame.time_base = round(time_s / clock), clock
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            block = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), format="fltp", layout=layout)
            block.sample_rate, block.time_base = sample_rate_hz, Fraction(1, sample_rate_hz)
            block.pts = round(sound_start_s * sample_rate_hz)
            container.mux(audio.encode(block))
            container.mux(audio.encode(None))
    return path
