"""Write the embedded world: mp4 files, the truth beside each, manifest.csv. See conf/synthesize.yaml.

    python data_prep/synthesize.py out=data/embedded train=1024 val=64 test=128 seed=0 workers=2
    python data_prep/synthesize.py out=data/embedded statistics=true
"""

import sys

from vta_sam.runtime.cli import program
from vta_sam.settings import SynthesizeSettings


@program("synthesize", SynthesizeSettings, writes_to=("out",))
def main(settings):
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from vta_sam.embedded.world import broken_promises, failed_clips, make_world, measure_world, plan_world

    out = settings.out
    if not settings.statistics:
        counts = {split: getattr(settings, split) for split in ("train", "val", "test")}
        planned = plan_world(out, counts, settings.seed)
        planned.plan.say()
        if settings.plan:
            return
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns) as bar:
            task = bar.add_task(f"clips in {out}", total=len(planned.clips))
            failures = make_world(planned, settings.workers, lambda done, _: bar.update(task, completed=done))
        if failures:
            print(f"error: {failed_clips(failures)}", file=sys.stderr)
            sys.exit(1 if len(failures) < len(planned.clips) else 2)
    statistics = measure_world(out)
    print(statistics.table())
    for promise in broken_promises(statistics):
        print(f"  promise not kept ({'too few clips to tell' if statistics.clips < 100 else 'a fault'}): {promise}")


if __name__ == "__main__":
    main()
