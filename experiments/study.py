"""Train and measure the rows of a study on equal terms: see conf/study.yaml and conf/study/*.yaml."""

import sys

from vta_sam.runtime.cli import program
from vta_sam.settings import StudySettings


@program("study", StudySettings)
def main(settings):
    from vta_sam.study.sweep import plan_study, run_side_by_side, run_study
    from vta_sam.study.record import study_of
    from vta_sam.study.results_page import write_results

    seeds = {} if settings.seeds is None else {"seeds": settings.seeds}
    study, records, only = study_of({**settings.study.plain(), **seeds}), settings.records, list(settings.only)

    plan_study(study, records, only, records.with_suffix(".md")).say()
    if settings.plan:
        return

    def say(line):
        print(f"== {line}", flush=True)

    if settings.jobs > 1:
        run_side_by_side(study, records, only, settings.jobs, [sys.executable, *sys.argv], say)
    else:
        run_study(study, records, only, settings.cache, say, settings.beside)
    print(write_results(records))


if __name__ == "__main__":
    main()
