"""Turn a folder of videos and a manifest into shards for training. See conf/extract.yaml.

    python data_prep/extract.py videos=DIR manifest=CSV out=DIR grounder=tiny encoder=tiny fps=12.5 workers=2
    python data_prep/extract.py videos=DIR out=DIR retry_failed=true
    torchrun --nproc-per-node 4 data_prep/extract.py videos=DIR out=DIR        # or srun: each takes its share
"""

from pathlib import Path

from vta_sam.dataset.partition import shards_to_extract
from vta_sam.runtime.cli import program
from vta_sam.runtime.errors import InputError


@program("extract", shards=shards_to_extract)
def main(config):
    for key in ("videos", "out"):
        if config[key] is None:
            raise InputError(f"{key}= is missing; it names a folder. --help shows all keys")
    from rich import print as show

    from vta_sam.checkpoints.parts import build
    from vta_sam.dataset.extraction.extract import extract_dataset
    from vta_sam.dataset.extraction.progress import summary, terminal_progress
    from vta_sam.perception.features import build_features
    from vta_sam.runtime.distributed import share_of_work

    out = Path(config.out)
    grounder, encoder = (build(config[part]) for part in ("grounder", "encoder"))
    features = build_features(config.features)
    rank, world = share_of_work(config.rank, config.world)
    share = f" ({rank + 1} of {world})" if world > 1 else ""
    with terminal_progress(f"clips into {out}{share}") as progress:
        info = extract_dataset(
            Path(config.manifest), Path(config.videos), out, grounder, encoder, config.fps, config.shard_size,
            config.workers, rank, world, limit_s=config.limit_s, memory_mb=config.memory_mb,
            chunk_frames=config.chunk_frames, hwaccel=config.hwaccel, retry_failed=config.retry_failed,
            progress=progress, features=features,
            sample_rate_hz=config.sample_rate_hz)
    show(summary(info, out))


if __name__ == "__main__":
    main()
