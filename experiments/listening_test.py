"""A listening test: make a page for raters, and analyse their answers. See docs/listening_test.md.

    python experiments/listening_test.py make --systems clips --reference gt --out listening
    python experiments/listening_test.py analyse --test listening --answers sent --out listening_results

Hand out the folder listening/raters; key.json beside it names the systems, and stays with you.
"""

import argparse
import sys
from pathlib import Path

from vta_sam.runtime.cli import run


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = made.add_subparsers(dest="verb", required=True, metavar="make | analyse")
    make = verbs.add_parser("make", help="write the page for raters")
    make.add_argument("--systems", type=Path, required=True, metavar="DIR", help="a folder of clips per system")
    make.add_argument("--reference", default="gt", metavar="NAME", help="the true sounds: one of them, or any folder")
    make.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    make.add_argument("--videos", type=Path, metavar="DIR", help="the pictures; default: those of the reference")
    make.add_argument("--clips", type=int, default=12, metavar="N", help="clips to be judged, evenly from all (12)")
    make.add_argument("--raters", type=int, default=20, metavar="N", help="how many raters there may be (20)")
    make.add_argument("--per-rater", type=int, metavar="N", help="systems' sounds for each rater; default: all")
    make.add_argument("--seed", type=int, default=0, help="of orders and names (0)")
    make.add_argument("--title", default="Listening test", help="heads the page; must not name the systems")
    make.add_argument("--keep-level", action="store_true", help="don't bring sounds to one loudness")
    analyse = verbs.add_parser("analyse", help="mean opinion scores of what raters sent")
    analyse.add_argument("--test", type=Path, required=True, metavar="DIR", help="the folder that `make` wrote")
    analyse.add_argument("--answers", type=Path, required=True, metavar="DIR", help="the folder of the raters' files")
    analyse.add_argument("--out", type=Path, required=True, metavar="DIR", help="results.json, scores.csv, scores.png")
    analyse.add_argument("--least-reference", type=float, default=3.5, metavar="X", help=(
        "leave out raters whose mean of the hidden reference is below this (3.5)"))
    analyse.add_argument("--most-reversed", type=float, default=0.15, metavar="SHARE", help=(
        "and those who put it below the anchor more often than this (0.15)"))
    analyse.add_argument("--seed", type=int, default=0, help="of the bootstrap (0)")
    return made


@run
def main() -> None:
    arguments = parser().parse_args()
    (make if arguments.verb == "make" else analyse)(arguments)


def make(arguments: argparse.Namespace) -> None:
    from rich.progress import Progress

    from vta_sam.evaluation.listening.study_files import make_test, TestRequest
    from vta_sam.evaluation.request import systems_and_reference

    systems, reference = systems_and_reference(str(arguments.systems), arguments.reference)
    request = TestRequest(
        {name: folder for name, folder in systems.items() if folder != reference}, reference, arguments.out,
        arguments.clips, arguments.raters, arguments.per_rater, arguments.seed, arguments.title, arguments.keep_level,
        arguments.videos)
    faults: dict[str, str] = {}
    with Progress() as bar:
        task = bar.add_task("clips", total=None)
        page = make_test(request, lambda done, total: bar.update(task, completed=done, total=total), faults)
    print(f"{page}: hand out its folder; each rater opens it with a number of their own, or as index.html?rater=1")
    print(f"{arguments.out / 'key.json'}: what is what; keep it")
    if faults:
        lines = [f"{clip}: {reason}" for clip, reason in faults.items()]
        print(f"{len(lines)} clips can't be used, and are left out:", *lines, sep="\n  ", file=sys.stderr)
        sys.exit(1)


def analyse(arguments: argparse.Namespace) -> None:
    from rich import print as show

    from vta_sam.evaluation.listening.analysis import Screening
    from vta_sam.evaluation.listening.analysis import analyse as analyse_sessions
    from vta_sam.evaluation.listening.answers import read_key, read_sessions
    from vta_sam.evaluation.listening.report import differences_table, notes, scores_table, write_report
    from vta_sam.runtime.errors import InputError

    key = read_key(arguments.test)
    sessions, refused = read_sessions(arguments.answers, key)
    if not sessions:
        why = "; ".join(list(refused.values())[:3]) or "it holds no .json file"
        raise InputError(f"--answers {arguments.answers} holds no ratings of this test: {why}")
    screening = Screening(arguments.least_reference, arguments.most_reversed)
    analysis = analyse_sessions(sessions, key.systems, screening, arguments.seed)
    analysis.refused = refused
    if any(analysis.scores.values()):
        show(scores_table(analysis))
        show(differences_table(analysis))
    for note in notes(analysis):
        print(f"note: {note}")
    about = {"test": key.test, "title": key.title, "seed": arguments.seed}
    for path in write_report(arguments.out, analysis, screening, about):
        print(path)


if __name__ == "__main__":
    main()
