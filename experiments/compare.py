"""Systems on the same clips, side by side on a page that plays, shows and measures them: see conf/compare.yaml."""

import sys

from vta_sam.runtime.cli import program
from vta_sam.settings import CompareSettings


@program("compare", CompareSettings, writes_to=("out",))
def main(settings):
    from rich.progress import Progress

    from vta_sam.evaluation.comparison.page import page_item, write_comparison
    from vta_sam.evaluation.evaluate import evaluate, pair_files, request_of, systems_and_reference
    from vta_sam.evaluation.results import (
        console, end_of_report, figures_table, missing_lines, plan_report, write_evaluation
    )
    from vta_sam.runtime.files import alone_in
    from vta_sam.runtime.progress import terminal_progress

    systems, reference = systems_and_reference(settings.systems, str(settings.reference))
    request = request_of(settings.model_dump(), systems, reference)
    paired, out = pair_files(request), settings.out
    faults: list[str] = []
    plan_report(out, f"comparison of {len(systems)} systems, the true sound is {reference}", len(paired.clips),
                len(systems), paired.facts, [page_item(paired, out / "page")]).say()
    if settings.plan:
        return
    with alone_in(out):
        with terminal_progress(f"clips of {reference}") as progress:
            evaluation, _ = evaluate(request, progress, paired)
        console().print(figures_table(evaluation))
        print(*missing_lines(evaluation), sep="\n")
        with Progress() as bar:
            task = bar.add_task("page", total=None)
            page = write_comparison(evaluation, paired, request, out / "page", settings.title, settings.note,
                                    settings.shards, lambda done, total: bar.update(task, completed=done, total=total),
                                    faults)
        for path in (*write_evaluation(out, evaluation, faults), page):
            print(path)
    sys.exit(end_of_report(evaluation, faults))


if __name__ == "__main__":
    main()
