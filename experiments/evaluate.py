"""Hold folders of generated sound against the true sound of their clips: see conf/evaluate.yaml."""

import sys

from vta_sam.runtime.cli import program
from vta_sam.settings import EvaluateSettings


@program("evaluate", EvaluateSettings, writes_to=("out",))
def main(settings):
    from vta_sam.evaluation.evaluate import evaluate, named_folders, pair_files, request_of
    from vta_sam.evaluation.results import (
        console, differences_table, end_of_report, figures_table, missing_lines, plan_report, write_evaluation
    )
    from vta_sam.runtime.files import alone_in
    from vta_sam.runtime.progress import terminal_progress

    request = request_of(settings.model_dump(), named_folders(settings.generated), settings.reference)
    paired, out = pair_files(request), settings.out
    faults: list[str] = []
    plan_report(out, f"evaluation of {', '.join(request.systems)} against {settings.reference}", len(paired.clips),
                len(request.systems), paired.facts).say()
    if settings.plan:
        return
    with alone_in(out):
        with terminal_progress(f"clips of {settings.reference}") as progress:
            evaluation, _ = evaluate(request, progress, paired)
        for table in (figures_table(evaluation), differences_table(evaluation)):
            if table is not None:
                console().print(table)
        print(*missing_lines(evaluation), sep="\n")
        for path in write_evaluation(out, evaluation, faults):
            print(path)
    sys.exit(end_of_report(evaluation, faults))


if __name__ == "__main__":
    main()
