"""Check a finished dataset, print its statistics, and draw the grounding over some of its clips. See conf/check.yaml.

    python data_prep/check.py shards=DIR
    python data_prep/check.py shards=DIR videos=DIR overlay=3
"""

from pathlib import Path

from vta_sam.runtime.cli import program
from vta_sam.runtime.errors import InputError


@program("check")
def main(config):
    if config.shards is None:
        raise InputError("shards= is missing; it names a folder that data_prep/extract.py wrote")
    keys = config["keys"] or []  # config.keys is a method
    keys = [str(key) for key in ([keys] if isinstance(keys, (str, int)) else keys)]
    overlays = bool(config.overlay or keys)
    if overlays and config.videos is None:
        raise InputError("videos= is missing; overlays are drawn over the videos that the shards were made from")
    if config.masks and config.grounder is None:
        raise InputError("masks=true needs a grounder, the one that the shards were made with: grounder=tiny, …")
    from rich import print as show

    from vta_sam.dataset.extraction.check import check_dataset, write_check
    from vta_sam.dataset.extraction.dataset_statistics import faults_table, statistics_tables
    from vta_sam.dataset.extraction.progress import progress_bar
    from vta_sam.runtime.cli import check_number

    check_number("overlay", config.overlay, 0, whole=True)
    check_number("shown", config.shown, 0, 1)
    shards, out = Path(config.shards), Path(config.out)
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

        grounder = build(config.grounder) if config.masks else None
        for path in write_overlays(shards, Path(config.videos), out / "overlays", config.overlay, keys, grounder,
                                   config.shown):
            print(path)
    print(f"statistics, their picture and the list of faults: {out}")
    if faults:
        raise InputError(f"{shards} has {len(faults)} faults, all of them in {out / 'faults.jsonl'}; extract anew what "
                         "they name: delete a shard's tar, and run extraction again")


if __name__ == "__main__":
    main()
