"""Check a finished dataset, print its statistics, and draw the grounding over some of its clips. See conf/check.yaml.

    python data_prep/check.py shards=DIR
    python data_prep/check.py shards=DIR videos=DIR overlay=3
"""

from vta_sam.runtime.cli import program
from vta_sam.runtime.errors import InputError
from vta_sam.settings import CheckSettings


@program("check", CheckSettings)
def main(settings):
    overlays = bool(settings.overlay or settings.keys)
    if overlays and not settings.videos.is_dir():
        raise InputError(f"videos={settings.videos} is no folder")
    from rich import print as show

    from vta_sam.dataset.extraction.check import check_dataset, write_check
    from vta_sam.dataset.extraction.dataset_statistics import faults_table, statistics_tables
    from vta_sam.dataset.extraction.progress import progress_bar

    shards, out = settings.shards, settings.out
    with progress_bar() as bar:
        task = bar.add_task(f"clips of {shards}", total=None, failed=0)
        statistics, faults = check_dataset(shards, lambda done, clips, failed: bar.update(
            task, completed=done, total=clips, failed=failed))
    write_check(out, statistics, faults, str(shards))
    show(statistics_tables(statistics, str(shards)))
    if faults:
        show(faults_table(faults))
    if overlays:
        from vta_sam.checkpoints.parts import build
        from vta_sam.dataset.extraction.check import write_overlays

        grounder = build(settings.grounder) if settings.masks else None
        for path in write_overlays(shards, settings.videos, out / "overlays", settings.overlay,
                                   list(settings.keys or ()), grounder, settings.shown):
            print(path)
    print(f"statistics, their picture and the list of faults: {out}")
    if faults:
        raise InputError(f"{shards} has {len(faults)} faults, all of them in {out / 'faults.jsonl'}; extract anew what "
                         "they name: delete a shard's tar, and run extraction again")


if __name__ == "__main__":
    main()
