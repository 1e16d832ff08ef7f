"""Hold folders of generated sound against the true sound of their clips: see conf/evaluate.yaml."""

from vta_sam.runtime.cli import program
from vta_sam.settings import EvaluateSettings


@program("evaluate", EvaluateSettings, writes_to=("out",))
def main(settings):
    from vta_sam.dataset.extraction.progress import terminal_progress
    from vta_sam.evaluation.evaluate import evaluate
    from vta_sam.evaluation.request import named_folders, request_of
    from vta_sam.evaluation.results import console, differences_table, figures_table, missing_lines, write_evaluation

    request = request_of(settings.model_dump(), named_folders(settings.generated), settings.reference)
    with terminal_progress(f"clips of {settings.reference}") as progress:
        evaluation, _ = evaluate(request, progress)
    for table in (figures_table(evaluation), differences_table(evaluation)):
        if table is not None:
            console().print(table)
    print(*missing_lines(evaluation), sep="\n")
    for path in write_evaluation(settings.out, evaluation):
        print(path)


if __name__ == "__main__":
    main()
