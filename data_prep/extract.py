"""Turn a folder of videos and a manifest into shards for training. See conf/extract.yaml.

    python data_prep/extract.py videos=DIR manifest=CSV out=DIR grounder=tiny encoder=tiny fps=12.5 workers=2
    python data_prep/extract.py videos=DIR out=DIR retry_failed=true
    torchrun --nproc-per-node 4 data_prep/extract.py videos=DIR out=DIR        # or srun: each takes its share
"""

from vta_sam.dataset.partition import shards_to_extract
from vta_sam.runtime.cli import program
from vta_sam.settings import ExtractSettings


@program("extract", ExtractSettings, shards=shards_to_extract)
def main(settings):
    from rich import print as show

    from vta_sam.checkpoints.parts import build
    from vta_sam.dataset.extraction.extract import extract_dataset
    from vta_sam.dataset.extraction.progress import summary, terminal_progress
    from vta_sam.perception.features import build_features
    from vta_sam.runtime.distributed import say_share, share_of_work

    out, grounder, encoder = settings.out, build(settings.grounder), build(settings.encoder)
    features = build_features(settings.features)
    rank, world = share_of_work(settings.rank, settings.world)
    say_share(settings.rank, settings.world)
    share = f" ({rank + 1} of {world})" if world > 1 else ""
    with terminal_progress(f"clips into {out}{share}") as progress:
        info = extract_dataset(
            settings.manifest, settings.videos, out, grounder, encoder, settings.fps, settings.shard_size,
            settings.workers, rank, world, limit_s=settings.limit_s, memory_mb=settings.memory_mb,
            chunk_frames=settings.chunk_frames, hwaccel=settings.hwaccel, retry_failed=settings.retry_failed,
            progress=progress, features=features,
            sample_rate_hz=settings.sample_rate_hz)
    show(summary(info, out))


if __name__ == "__main__":
    main()
