"""Systems on the same clips, side by side on a page that plays, shows and measures them: see conf/compare.yaml."""

from vta_sam.runtime.cli import program
from vta_sam.settings import CompareSettings


@program("compare", CompareSettings, writes_to=("out",))
def main(settings):
    from rich.progress import Progress

    from vta_sam.dataset.extraction.progress import terminal_progress
    from vta_sam.evaluation.comparison.page import write_comparison
    from vta_sam.evaluation.evaluate import evaluate
    from vta_sam.evaluation.request import request_of, systems_and_reference
    from vta_sam.evaluation.results import console, figures_table, missing_lines, write_evaluation

    systems, reference = systems_and_reference(settings.systems, str(settings.reference))
    request = request_of(settings.model_dump(), systems, reference)
    with terminal_progress(f"clips of {reference}") as progress:
        evaluation, plan = evaluate(request, progress)
    console().print(figures_table(evaluation))
    print(*missing_lines(evaluation), sep="\n")
    with Progress() as bar:
        task = bar.add_task("page", total=None)
        page = write_comparison(evaluation, plan, request, settings.out / "page", settings.title,
                                settings.note, settings.shards,
                                lambda done, total: bar.update(task, completed=done, total=total))
    for path in (*write_evaluation(settings.out, evaluation), page):
        print(path)


if __name__ == "__main__":
    main()
