"""Check a finished dataset, print its statistics, and draw the grounding over some of its clips. See conf/check.yaml.

    python data_prep/check.py shards=DIR
    python data_prep/check.py shards=DIR videos=DIR overlay=3
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
    from rich import print as show

    from vta_sam.dataset.extraction.check import check_dataset, plan_check, write_check
    from vta_sam.dataset.extraction.dataset_statistics import faults_table, statistics_tables
    from vta_sam.runtime.files import alone_in
    from vta_sam.runtime.progress import progress_bar

    shards, out = settings.shards, settings.out or settings.shards / "check"
    plan_check(shards, out, settings.overlay, settings.keys or ()).say()
    if settings.plan:
        return
    with alone_in(out):
        with progress_bar() as bar:
            task = bar.add_task(f"clips of {shards}", total=None, failed=0)
            statistics, faults = check_dataset(shards, lambda done, clips, failed: bar.update(
                task, completed=done, total=clips, failed=failed))
        undrawn = write_check(out, statistics, faults, str(shards))
        show(statistics_tables(statistics, str(shards)))
        if faults:
            show(faults_table(faults))
        films, missing = write_films(settings, out) if overlays else (0, {})
    print(f"statistics, their picture and the list of faults: {out}")
    if faults:
        raise InputError(f"{shards} has {len(faults)} faults, all of them in {out / 'faults.jsonl'}; extract anew what "
                         "they name: delete a shard's tar, and run extraction again")
    told = [undrawn] if undrawn else []
    told += [f"{key}: no film, {reason}" for key, reason in missing.items()]
    if told:
        print("error: " + "\n  ".join(told), file=sys.stderr)
        sys.exit(2 if missing and not films else 1)


def write_films(settings, out):
    """⇒ number of films, {clip without one: reason}."""
    from vta_sam.checkpoints.parts import build
    from vta_sam.dataset.extraction.check import OVERLAYS, write_overlays

    grounder, films = build(settings.grounder) if settings.masks else None, 0
    missing: dict[str, str] = {}
    for path in write_overlays(settings.shards, settings.videos, out / OVERLAYS, settings.overlay,
                               list(settings.keys or ()), grounder, settings.shown, missing):
        print(path)
        films += 1
    return films, missing


if __name__ == "__main__":
    main()
