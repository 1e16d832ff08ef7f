"""A listening test: make a page for raters, and analyse their answers. See docs/listening_test.md.

    python experiments/listening_test.py make --systems clips --reference gt --out listening
    python experiments/listening_test.py analyse --test listening --answers sent --out listening_results

Hand out the folder listening/raters; key.json beside it names the systems, and stays with you.
"""

import sys

from vta_sam.runtime.cli import parsed, run
from vta_sam.settings.tools import LISTENING_TEST


@run
def main() -> None:
    verb, options = parsed(__doc__, LISTENING_TEST)
    (make if verb == "make" else analyse)(options)


def make(options):
    from rich.console import Console
    from rich.progress import Progress

    from vta_sam.evaluation.listening.study_files import TestRequest, make_test, plan_test
    from vta_sam.evaluation.evaluate import systems_and_reference

    systems, reference = systems_and_reference(str(options.systems), options.reference)
    request = TestRequest(
        {name: folder for name, folder in systems.items() if folder != reference}, reference, options.out,
        options.clips, options.raters, options.per_rater, options.seed, options.title, options.keep_level,
        options.videos)
    if options.plan:
        return plan_test(request).show(Console())
    faults: dict[str, str] = {}
    with Progress() as bar:
        task = bar.add_task("clips", total=None)
        page = make_test(request, lambda done, total: bar.update(task, completed=done, total=total), faults)
    print(f"{page}: hand out its folder; each rater opens it with a number of their own, or as index.html?rater=1")
    print(f"{options.out / 'key.json'}: what is what; keep it")
    if faults:
        lines = [f"{clip}: {reason}" for clip, reason in faults.items()]
        print(f"{len(lines)} clips can't be used, and are left out:", *lines, sep="\n  ", file=sys.stderr)
        sys.exit(1)


def analyse(options):
    from rich import print as show
    from rich.console import Console

    from vta_sam.evaluation.listening.analysis import Screening
    from vta_sam.evaluation.listening.analysis import analyse as analyse_sessions
    from vta_sam.evaluation.listening.answers import read_key, read_sessions
    from vta_sam.evaluation.listening.analysis import differences_table, notes, plan_report, scores_table, write_report
    from vta_sam.runtime.errors import InputError

    if options.plan:
        return plan_report(options.out).show(Console())
    key = read_key(options.test)
    sessions, refused = read_sessions(options.answers, key)
    if not sessions:
        why = "; ".join(list(refused.values())[:3]) or "it holds no .json file"
        raise InputError(f"--answers {options.answers} holds no ratings of this test: {why}")
    screening = Screening(options.least_reference, options.most_reversed)
    analysis = analyse_sessions(sessions, key.systems, screening, options.seed)
    analysis.refused = refused
    if any(analysis.scores.values()):
        show(scores_table(analysis))
        show(differences_table(analysis))
    for note in notes(analysis):
        print(f"note: {note}")
    about = {"test": key.test, "title": key.title, "seed": options.seed}
    for path in write_report(options.out, analysis, screening, about):
        print(path)


if __name__ == "__main__":
    main()
