"""Where the time goes when a sound is put under a video: reading the model, looking, sampling, decoding, writing.

    python benchmarks/generate.py --model runs/vta_sam-0/diffusion/model --video clip.mp4 --caption "a dog barks"
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _report import Report, median, parser, peak_memory_gb, seconds

from vta_sam.runtime.cli import run


class Stopwatch:
    """Wall time spent inside functions, by name; waits for a GPU to have finished."""

    def __init__(self, finish: Callable[[], None]):
        self.finish, self.seconds = finish, dict[str, float]()

    def timed(self, name: str, work: Callable) -> Callable:
        """The same function; its time is added to ``name``."""
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.finish()
            start = time.perf_counter()
            result = work(*args, **kwargs)
            self.finish()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            return result

        return watched


def one_video(pipeline: Any, video: Path, caption: str | None, folder: Path, watch: Stopwatch) -> float:
    """Put a sound under ``video`` once, step by step as Pipeline.generate and the command do ⇒ seconds of sound."""
    from vta_sam.media.muxing import mux
    from vta_sam.perception.features import features_of, words_of

    words = words_of(caption, None, pipeline.extractors.known_words)
    [features], _ = watch.timed("features", features_of)(video, [words], pipeline.extractors, pipeline.spec)
    waveform = watch.timed("generation", pipeline.generate_features)(features, seed=0)
    watch.timed("mux", mux)(video, waveform, pipeline.spec.sample_rate_hz, folder / "with_sound.mp4")
    return len(waveform) / pipeline.spec.sample_rate_hz


@run
def main() -> None:
    arguments = parser("Seconds to put a sound under a video, and their shares.")
    arguments.add_argument("--model", type=Path, required=True, help="model folder")
    arguments.add_argument("--video", type=Path, required=True, help="a video file")
    arguments.add_argument("--caption", default=None, help="what is seen in it")
    arguments.add_argument("--repeat", type=int, default=3, help="times, after one to warm up; the median counts")
    arguments.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 or auto")
    arguments.add_argument("--threads", type=int, default=None, help="processor threads of torch")
    options = arguments.parse_args()
    [imports_s] = seconds(_import, 1)
    import torch

    from vta_sam.generation.pipeline import load
    from vta_sam.runtime.distributed import choose_device

    device = choose_device(options.device, options.threads)
    loaded: list[Any] = []
    [load_s] = seconds(lambda: loaded.append(load(options.model, device)), 1)
    pipeline = loaded[0]
    [extractors_s] = seconds(lambda: pipeline.extractors, 1)
    on_gpu = str(device).startswith("cuda")
    rounds: list[dict[str, float]] = []
    watch = Stopwatch(torch.cuda.synchronize if on_gpu else lambda: None)
    pipeline.codec.decode = watch.timed("decode", pipeline.codec.decode)
    pipeline.vocoder.forward = watch.timed("vocode", pipeline.vocoder.forward)
    duration_s = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(1 + options.repeat):
            watch.seconds = {}
            duration_s = one_video(pipeline, options.video, options.caption, Path(folder), watch)
            rounds.append(shares(watch.seconds))
    spent = {part: median(times[part] for times in rounds[1:]) for part in rounds[0]}
    total = sum(spent.values())
    rows = [{"part": "imports (once)", "s": round(imports_s, 3)}, {"part": "load (once)", "s": round(load_s, 3)},
            {"part": "load extractors (once)", "s": round(extractors_s, 3)}]
    rows += [{"part": part, "s": value, "share": f"{value / total:.0%}",
              "s_per_10_s": round(10 * value / duration_s, 3)}
             for part, value in {**spent, "all": round(total, 3)}.items()]
    facts = {"video_s": round(duration_s, 2), "steps": pipeline.sampler.steps, "guidance": pipeline.sampler.guidance,
             "device": str(device), "threads": torch.get_num_threads(), "peak_memory_gb": peak_memory_gb(),
             "repeat": options.repeat}
    if on_gpu:
        facts["peak_gpu_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1024 ** 3, 2)
    Report(f"sound for {options.video.name}", rows, facts).show(options.json)


def _import() -> None:
    import vta_sam.generation.pipeline  # noqa: F401


def shares(watched: dict[str, float]) -> dict[str, float]:
    """Watched times ⇒ parts that add up: sampling is what generation did besides decoding and vocoding."""
    sampling = watched["generation"] - watched["decode"] - watched["vocode"]
    return {"features": watched["features"], "sampling": sampling, "decode": watched["decode"],
            "vocode": watched["vocode"], "mux": watched["mux"]}


if __name__ == "__main__":
    main()
