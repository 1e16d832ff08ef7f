r"""A trained vocoder beside Griffin-Lim: from true mels back to sound, how near and how fast.

    python benchmarks/vocoders.py --model runs/vocoder-0/vocoder/model \
        --shards data/embedded-1-0/shards-tiny-tiny-12.5fps
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from _report import Report, parser, peak_memory_gb, seconds

from vta_sam.runtime.cli import run


@run
def main() -> None:
    arguments = parser("Mel error, Fréchet distance with the embedded tagger, and time of two vocoders.")
    arguments.add_argument("--model", required=True, help="model folder with a vocoder's weights")
    arguments.add_argument("--shards", required=True, help="folder of shards")
    arguments.add_argument("--split", default="test", help="whose clips")
    arguments.add_argument("--clips", type=int, default=64, help="at most")
    options = arguments.parse_args()
    import numpy as np
    import torch

    from vta_sam.checkpoints.model_folder import read_recipe
    from vta_sam.dataset.shards.records import read_records
    from vta_sam.dataset.shards.schema import read_dataset
    from vta_sam.embedded.tiny_networks import TinyBackbone
    from vta_sam.generation.build import load_vocoder
    from vta_sam.mel import FIGURES, HOP_SAMPLES, LogMel, normalise
    from vta_sam.metrics.set_scores import frechet_distance
    from vta_sam.vocoder import GriffinLim

    root, folder = Path(options.shards), Path(options.model)
    shards = read_dataset(root).splits[options.split]
    records = islice((record for shard in shards for record in read_records(root, shard)), options.clips)
    true = [normalise(torch.from_numpy(np.array(record.waveform))[None]) for record in records]
    log_mel, backbone, rows = LogMel(FIGURES), TinyBackbone(), []

    def embeddings(waveforms) -> np.ndarray:
        return np.concatenate([answer.embeddings for answer in backbone.embed([w[0].numpy() for w in waveforms])])

    for name, vocoder in (("griffin_lim", GriffinLim()), ("trained", load_vocoder(read_recipe(folder), folder))):
        made: list[torch.Tensor] = []

        def work() -> None:
            with torch.inference_mode():
                made.extend(vocoder(log_mel(wave)[:, :-1])[:, : wave.shape[1] // HOP_SAMPLES * HOP_SAMPLES]
                            for wave in true)

        [took_s] = seconds(work, 1)
        errors = []
        for wave, sound in zip(true, made):
            given, found = log_mel(wave[:, : sound.shape[1]]), log_mel(sound)
            loud = given > given.max() - np.log(10) * 2  # within 40 dB of the peak
            errors.append([(given - found).abs().mean().item(), (given - found)[loud].abs().mean().item()])
        everywhere, within_40_db = np.mean(errors, axis=0)
        rows.append({"vocoder": name, "mel_error_nats": round(everywhere, 3),
                     "mel_error_within_40_db": round(within_40_db, 3),
                     "frechet_tagger": round(frechet_distance(embeddings(made), embeddings(true)), 3),
                     "s_per_clip": round(took_s / len(true), 3)})
    Report("true log-mels back to sound", rows, {"clips": len(true), "peak_memory_gb": peak_memory_gb()}
           ).show(options.json)


if __name__ == "__main__":
    main()
