"""Turn a folder of videos and a manifest into shards for training. See conf/extract.yaml.

    python data_prep/extract.py videos=DIR manifest=CSV out=DIR grounder=tiny encoder=tiny fps=12.5 workers=2
    python data_prep/extract.py videos=DIR out=DIR retry_failed=true
    torchrun --nproc-per-node 4 data_prep/extract.py videos=DIR out=DIR        # or srun: each takes its share
"""

import sys

from vta_sam.runtime.cli import program
from vta_sam.settings import ExtractSettings


def count_shards(settings) -> int:
    """Of the manifest's slices, which an array of jobs divides among its tasks."""
    from vta_sam.dataset.manifests.manifest import read_manifest, slices

    return len(slices(read_manifest(settings["manifest"]), settings["shard_size"]))


@program("extract", ExtractSettings, writes_to=("out", "rank", "world"), shards=count_shards)
def main(settings):
    from rich import print as show

    from vta_sam.checkpoints.parts import build
    from vta_sam.dataset.extraction.extract import Extraction
    from vta_sam.dataset.extraction.shard_folder import summary
    from vta_sam.perception.features import build_features
    from vta_sam.runtime.cluster.preemption import EXIT_STATUS
    from vta_sam.runtime.distributed import share_of_plan, share_of_work
    from vta_sam.runtime.progress import terminal_progress

    out = settings.out
    rank, world = share_of_work(settings.rank, settings.world)
    extraction = Extraction(
        settings.manifest or settings.videos / "manifest.csv", settings.videos, out, build(settings.grounder),
        build(settings.encoder), settings.fps, settings.shard_size, settings.workers, rank, world, settings.limit_s,
        settings.memory_mb, settings.chunk_frames, settings.hwaccel, settings.retry_failed,
        build_features(settings.features), settings.sample_rate_hz, settings.sound, settings.most_faults,
        settings.commit_mostly_failed, consecutive=settings.consecutive)
    planned = extraction.planned(share_of_plan(settings.rank, settings.world))
    planned.plan.say()
    if settings.plan:
        return
    share = f" ({rank + 1} of {world})" if world > 1 else ""
    with terminal_progress(f"clips into {out}{share}") as progress:
        info = extraction.run(planned, progress)
    show(summary(info, out))
    if settings.rank is not None and not all((out / task.part.name).exists() for task in planned.tasks):
        sys.exit(EXIT_STATUS)  # another process is at some of this share, and nobody else would make them


if __name__ == "__main__":
    main()
