"""Time of reading: square pictures at a low rate, as models take them, and the sound of real clips.

- seek: OpenCV, set to each frame by its number, as readers for few frames do
- grab: OpenCV, frame after frame, of which the wanted ones are converted
- ours: vta_sam.media.video.read_clip, pictures and sound in one pass

    python benchmarks/decode.py --videos FOLDER

Seek and grab get the same frames, shrink them by OpenCV's area averaging, and read the sound in a pass of its own.
Where a container claims more pictures than it has, they miss some. Our pictures are compared with FFmpeg's own scaler
and crop on the same decoded pictures.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from _report import Report, median, parser, seconds
from av import VideoFrame
from av.filter import Graph

from vta_sam.clip import ClipSpec
from vta_sam.media.audio import read_audio
from vta_sam.media.container import open_media, picture_stream
from vta_sam.media.picture_reader import CentreCrop, PictureReader
from vta_sam.media.video import OnScreen, read_clip
from vta_sam.runtime.cli import run
from vta_sam.runtime.errors import InputError

SIDE = 224  # pixels, of CLIP
SAMPLE_RATE_HZ = 16_000
Read = tuple[np.ndarray, np.ndarray]  # frames (T, side, side, 3), waveform (samples,)


def seek(video: Path, fps: float) -> Read:
    capture = cv2.VideoCapture(str(video))
    frames = []
    for number in _wanted(capture, fps):
        capture.set(cv2.CAP_PROP_POS_FRAMES, number)
        read, picture = capture.read()
        if read:
            frames.append(_square(picture))
    return np.stack(frames), read_audio(video, sample_rate_hz=SAMPLE_RATE_HZ)


def grab(video: Path, fps: float) -> Read:
    capture = cv2.VideoCapture(str(video))
    frames, at, last = list[np.ndarray](), -1, -1
    for number in _wanted(capture, fps):
        while at < number and capture.grab():
            at += 1
        if at < number:
            break
        if at != last:  # a picture that stays on screen is converted once
            picture, last = _square(capture.retrieve()[1]), at
        frames.append(picture)
    return np.stack(frames), read_audio(video, sample_rate_hz=SAMPLE_RATE_HZ)


def ours(video: Path, fps: float) -> Read:
    clip = read_clip(video, fps=fps, fits=[CentreCrop(SIDE)], want_audio=True, sample_rate_hz=SAMPLE_RATE_HZ)
    assert clip.waveform is not None
    return clip.frames[0], clip.waveform


WAYS: dict[str, Callable[[Path, float], Read]] = {"seek": seek, "grab": grab, "ours": ours}


def _wanted(capture: cv2.VideoCapture, fps: float) -> list[int]:
    """Numbers of the pictures on screen at (i + 0.5) / fps, if the container's rate and count were true."""
    video_fps, count = capture.get(cv2.CAP_PROP_FPS), int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    times_s = ClipSpec(1.0, fps, 1).frame_times_s(round(count / video_fps * fps))
    return [min(int(time_s * video_fps + 1e-6), count - 1) for time_s in times_s]


def _square(picture: np.ndarray) -> np.ndarray:
    """BGR ⇒ RGB, its short side shrunk to SIDE, the middle."""
    height, width = CentreCrop(SIDE).scaled(*picture.shape[:2])
    picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    top, left = (height - SIDE) // 2, (width - SIDE) // 2
    return cv2.cvtColor(picture[top:top + SIDE, left:left + SIDE], cv2.COLOR_BGR2RGB)


def psnr_db(video: Path, fps: float) -> float:
    """Of our pictures, all together, against FFmpeg's scale and crop filters on the same decoded pictures."""
    found = ours(video, fps)[0]
    wanted = np.stack(filtered(video, fps))
    error = np.square(found.astype(np.float32) - wanted).mean(dtype=np.float64)
    return float(10 * np.log10(255 ** 2 / error)) if error else float("inf")


def filtered(video: Path, fps: float) -> list[np.ndarray]:
    pictures = []
    with open_media(video) as container:
        stream = picture_stream(container)
        graph = None
        for frame in OnScreen(PictureReader(video, container, 0.0), fps):
            if graph is None:
                height, width = CentreCrop(SIDE).scaled(frame.height, frame.width)
                graph = Graph()
                graph.link_nodes(
                    graph.add_buffer(template=stream), graph.add("scale", f"{width}:{height}:flags=bicubic"),
                    graph.add("crop", f"{SIDE}:{SIDE}"), graph.add("format", "rgb24"), graph.add("buffersink"),
                ).configure()
            graph.push(frame)
            picture = graph.pull()
            assert isinstance(picture, VideoFrame)
            pictures.append(picture.to_ndarray())
    return pictures


def memory_mb(way: str, videos: list[Path], fps: float) -> int:
    """Peak of a process that reads each clip this way, above what it has after its imports."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (way, videos, fps))


def _peak(way: str, videos: list[Path], fps: float) -> int:
    before = _peak_kib()
    for video in videos:
        WAYS[way](video, fps)
    return (_peak_kib() - before) >> 10


def _peak_kib() -> int:
    # not getrusage: there a process inherits the peak of the one that started it
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


@run
def main() -> None:
    arguments = parser("Seconds a clip of reading pictures and sound, three ways.")
    arguments.add_argument("--videos", type=Path, required=True, help="folder of videos with sound")
    arguments.add_argument("--fps", type=float, default=8.0, help="frames a second")
    arguments.add_argument("--repeat", type=int, default=5, help="runs of each way, of which the median counts")
    options = arguments.parse_args()
    videos = sorted(path for path in options.videos.glob("*") if path.suffix in (".mp4", ".mkv", ".webm", ".mov"))
    if not videos:
        raise InputError(f"--videos {options.videos} holds no mp4, mkv, webm or mov")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    times: dict[str, dict[Path, list[float]]] = {way: {video: [] for video in videos} for way in WAYS}
    for _ in range(options.repeat):
        for video in videos:  # interleaved, so that what else the machine does falls on all alike
            for way, read in WAYS.items():
                times[way][video] += seconds(lambda: read(video, options.fps), 1)
    own_s = {video: median(times["ours"][video], 6) for video in videos}
    per_clip = [{"clip": video.name, **{f"{way}_s": median(times[way][video]) for way in WAYS},
                 "psnr_db": round(psnr_db(video, options.fps), 1)} for video in videos]
    rows = []
    for way in WAYS:
        each_s = {video: median(times[way][video], 6) for video in videos}
        rows.append({
            "way": way, "s_per_clip": round(sum(each_s.values()) / len(videos), 3),
            "frames": sum(len(WAYS[way](video, options.fps)[0]) for video in videos),
            "times_ours": round(sum(each_s.values()) / sum(own_s.values()), 2),
            "least_times_ours": round(min(each_s[video] / own_s[video] for video in videos), 2),
            "memory_mb": memory_mb(way, videos, options.fps)})
    facts = {"clips": len(videos), "fps": options.fps, "side": SIDE, "repeat": options.repeat,
             "lowest_psnr_db": min(row["psnr_db"] for row in per_clip)}
    Report("reading pictures and sound of real clips, median over runs", rows, facts, per_clip).show(options.json)


if __name__ == "__main__":
    main()
