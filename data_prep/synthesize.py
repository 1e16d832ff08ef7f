"""Write the embedded world: mp4 files, the truth beside each, manifest.csv. See conf/synthesize.yaml.

    python data_prep/synthesize.py out=data/embedded train=1024 val=64 test=128 seed=0 workers=2
    python data_prep/synthesize.py out=data/embedded statistics=true
"""

from vta_sam.runtime.cli import program
from vta_sam.settings import SynthesizeSettings


@program("synthesize", SynthesizeSettings, writes_to=("out",))
def main(settings):
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from vta_sam.embedded.world import broken_promises, measure_world, write_world

    out = settings.out
    if not settings.statistics:
        counts = {split: getattr(settings, split) for split in ("train", "val", "test")}
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns) as bar:
            task = bar.add_task(f"clips in {out}", total=sum(counts.values()))
            write_world(out, counts, settings.seed, settings.workers, lambda done, _: bar.update(task, completed=done))
    statistics = measure_world(out)
    print(statistics.table())
    for promise in broken_promises(statistics):
        print(f"  promise not kept ({'too few clips to tell' if statistics.clips < 100 else 'a fault'}): {promise}")


if __name__ == "__main__":
    main()
