"""Write the embedded world: a folder of real mp4 files, the truth beside each, and a manifest."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
from av.codec.context import Flags as CodecFlags

from ..runtime.errors import InputError
from ..runtime.files import atomic_path, write_text
from .render import render
from .scene_sounds import SAMPLE_RATE_HZ, render_sound
from .timeline import DURATION_S, FPS, HEIGHT_PX, WIDTH_PX, Scene, make_scene
from .truth import SCENES_VERSION, write_truth

MANIFEST_COLUMNS = ("id", "path", "caption", "objects", "label", "split", "start", "duration")
X264_OPTIONS = {"preset": "veryfast", "crf": "18", "x264-params": "keyint=50:scenecut=0"}
# without noise substitution and with the quicker search the silence before a sound stays 48 dB and more below it
AAC_OPTIONS = {"aac_coder": "fast", "aac_pns": "0"}
AAC_BIT_RATE = 96_000  # the most that one channel at 16 kHz may have
Progress = Callable[[int, int], None]


def write_world(
    out: Path, counts: dict[str, int], seed: int, workers: int = 1, progress: Progress | None = None
) -> Path:
    """Write ``counts[split]`` clips of each split ⇒ the manifest's path.

    Clips that are there are kept (a run that was cut off goes on); a folder of another version or seed is refused.
    A clip is there when its mp4 is: its truth is written before. The manifest comes last. progress(done, all) is called
    after each clip. The bytes of a clip depend on (version, seed, split, index) alone.
    """
    out = Path(out)
    _claim(out, seed)
    clips = [(split, index) for split, count in counts.items() for index in range(count)]
    missing = [(out, seed, *clip) for clip in clips if not _video_path(out, *clip).is_file()]
    done = len(clips) - len(missing)
    for _ in _each(missing, workers):
        done += 1
        if progress is not None:
            progress(done, len(clips))
    return _write_manifest(out, [make_scene(seed, *clip) for clip in clips])


def write_clip(out: Path, seed: int, split: str, index: int) -> Path:
    """Render one clip and write its truth and then its mp4, each whole or not at all ⇒ the mp4's path."""
    scene = make_scene(seed, split, index)
    path = _video_path(out, split, index)
    pictures, truth = render(scene)
    sound = render_sound(scene)
    write_truth(path, truth)
    with atomic_path(path) as temporary:
        encode(temporary, pictures, sound)
    return path


def encode(path: Path, pictures: np.ndarray, sound: np.ndarray) -> None:
    """Pictures (T, H, W, 3) uint8 at 25 fps and mono sound at 16 kHz ⇒ h264 and aac in an mp4, always the same bytes.

    One thread and no dates or encoder names in the container. The aac encoder's delay of 1024 samples is written as
    an edit list, which readers that honour it (FFmpeg's, PyAV's) take off: sample 0 comes back as sample 0.
    """
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        video = container.add_stream("libx264", rate=round(FPS), options=X264_OPTIONS)
        video.width, video.height, video.pix_fmt = WIDTH_PX, HEIGHT_PX, "yuv420p"
        video.codec_context.thread_count = 1
        video.codec_context.flags |= CodecFlags.bitexact.value
        audio = container.add_stream("aac", rate=SAMPLE_RATE_HZ, layout="mono", options=AAC_OPTIONS)
        audio.bit_rate = AAC_BIT_RATE
        audio.codec_context.flags |= CodecFlags.bitexact.value
        samples = iter(_audio_frames(sound, 1024))
        for number, picture in enumerate(pictures):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            due = round((number + 1) / FPS * SAMPLE_RATE_HZ) // 1024 - round(number / FPS * SAMPLE_RATE_HZ) // 1024
            for frame in islice(samples, due):
                container.mux(audio.encode(frame))
        for frame in samples:
            container.mux(audio.encode(frame))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))


def _audio_frames(sound: np.ndarray, size: int) -> Iterator[av.AudioFrame]:
    for start in range(0, len(sound), size):
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[None, start:start + size]), "fltp", "mono")
        frame.sample_rate, frame.pts = SAMPLE_RATE_HZ, start
        yield frame


def _each(jobs: list[tuple], workers: int) -> Iterator[None]:
    if workers <= 1:
        for job in jobs:
            write_clip(*job)
            yield
        return
    # spawn: a forked child could inherit the locks of the parent's threads
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        for future in as_completed([pool.submit(write_clip, *job) for job in jobs]):
            future.result()
            yield


def _video_path(out: Path, split: str, index: int) -> Path:
    return Path(out) / split / f"{split}-{index:06d}.mp4"


def _claim(out: Path, seed: int) -> None:
    """Write what the folder is to world.json, or check that it is that already."""
    what = {"scenes_version": SCENES_VERSION, "seed": seed}
    path = out / "world.json"
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found != what:
            raise InputError(f"{path} holds {found}, and this run would write {what}; choose another out= or remove it")
    else:
        write_text(path, json.dumps(what) + "\n")


def _write_manifest(out: Path, scenes: list[Scene]) -> Path:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(MANIFEST_COLUMNS)
    for scene in scenes:
        path = _video_path(out, scene.split, scene.index).relative_to(out).as_posix()
        label = scene.words[0] if len(scene.words) == 1 else ""
        writer.writerow((scene.id, path, scene.caption, ";".join(scene.words), label, scene.split, 0.0, DURATION_S))
    write_text(out / "manifest.csv", text.getvalue())
    return out / "manifest.csv"


def read_manifest(out: Path) -> list[dict[str, str]]:
    """The rows of a written world's manifest."""
    path = Path(out) / "manifest.csv"
    if not path.is_file():
        raise InputError(f"{path} is missing: no finished embedded world; run data_prep/synthesize.py out={out}")
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
