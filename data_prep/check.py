"""Check a finished dataset, print its statistics, and draw the grounding over some of its clips. See conf/check.yaml.

    python data_prep/check.py shards=DIR
    python data_prep/check.py shards=DIR videos=DIR overlay=3
    python data_prep/check.py "shards=[s3://bucket/train,data/test]"    # each, and what made the one and not the other
"""

import sys

from vta_sam.runtime.cli import program
from vta_sam.runtime.errors import InputError
from vta_sam.settings import CheckSettings


@program("check", CheckSettings, writes_to=("out",))
def main(settings):
    overlays = bool(settings.overlay or settings.keys)
    if overlays and not settings.videos.is_dir():
        raise InputError(f"videos={settings.videos} is no folder")
    from vta_sam.dataset.extraction.check import differing_datasets, plan_check, report_folders

    places = report_folders(settings.shards, settings.out)
    for shards, out in places.items():
        plan_check(shards, out, settings.overlay, settings.keys or ()).say()
    if settings.plan:
        return
    faults, told, films, missing = [], [], 0, {}
    for shards, out in places.items():
        found, undrawn = check(settings, shards, out)
        if found:
            faults.append(f"{shards} has {len(found)} faults, all of them in {out / 'faults.jsonl'}")
        told += [undrawn] if undrawn else []
        if overlays:
            films, missing = write_films(settings, shards, out)
        print(f"statistics, their picture and the list of faults: {out}")
    faults = [f"{'; '.join(faults)}; extract anew what they name: delete a shard's tar, and run extraction again"
              ] if faults else []
    if different := differing_datasets(list(places)):
        faults.append("these datasets are not alike, and what was trained on one should not be measured on another: "
                      + "; ".join(different))
    if faults:
        raise InputError(". ".join(faults))
    told += [f"{key}: no film, {reason}" for key, reason in missing.items()]
    if told:
        print("error: " + "\n  ".join(told), file=sys.stderr)
        sys.exit(2 if missing and not films else 1)


def check(settings, shards, out):
    """Check one dataset ⇒ its faults, and why there is no picture of its statistics or ""."""
    from rich import print as show

    from vta_sam.dataset.extraction.check import check_dataset, origin_lines, write_check
    from vta_sam.dataset.extraction.dataset_statistics import faults_table, statistics_tables
    from vta_sam.dataset.shards.schema import read_dataset
    from vta_sam.runtime.files import alone_in
    from vta_sam.runtime.progress import progress_bar

    with alone_in(out):
        info = read_dataset(shards)
        with progress_bar() as bar:
            task = bar.add_task(f"clips of {shards}", total=None, failed=0)
            statistics, faults = check_dataset(shards, lambda done, clips, failed: bar.update(
                task, completed=done, total=clips, failed=failed), settings.seen)
        undrawn = write_check(out, statistics, faults, str(shards), info)
        show(statistics_tables(statistics, str(shards)))
        print(*origin_lines(info), sep="\n")
        if faults:
            show(faults_table(faults))
    return faults, undrawn


def write_films(settings, shards, out):
    """⇒ number of films, {clip without one: reason}."""
    from vta_sam.checkpoints.parts import build
    from vta_sam.dataset.extraction.check import OVERLAYS, write_overlays
    from vta_sam.runtime.files import alone_in

    grounder, films = build(settings.grounder) if settings.masks else None, 0
    missing: dict[str, str] = {}
    with alone_in(out):
        for path in write_overlays(shards, settings.videos, out / OVERLAYS, settings.overlay,
                                   list(settings.keys or ()), grounder, settings.shown, missing):
            print(path)
            films += 1
    return films, missing


if __name__ == "__main__":
    main()
