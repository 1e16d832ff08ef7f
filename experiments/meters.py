"""Measure the metrics: true sounds against the same sounds with known faults. See conf/meters.yaml."""

import sys

from vta_sam.runtime.cli import program
from vta_sam.settings import MetersSettings


@program("meters", MetersSettings, writes_to=("out",))
def main(settings):
    from vta_sam.evaluation.meter_report import end_of_meters, markdown, page_with_meters, write_meters
    from vta_sam.evaluation.meters import run, study_of
    from vta_sam.evaluation.metric_table import PAGE
    from vta_sam.runtime.files import alone_in, write_text
    from vta_sam.runtime.progress import terminal_progress

    values, out = settings.model_dump(), settings.out
    study = study_of(values)
    study.plan(out).say()
    if settings.plan:
        return
    with alone_in(out):
        with terminal_progress("clips with faults") as making:
            left_out = study.make(values, making)
        with terminal_progress("clips measured") as measuring:
            meters = run(study, values, left_out, measuring)
        print(markdown(meters))
        print(*write_meters(out, meters), sep="\n")
        if settings.docs:
            write_text(PAGE, page_with_meters(PAGE.read_text(encoding="utf-8"), meters))
            print(PAGE)
    sys.exit(end_of_meters(meters))


if __name__ == "__main__":
    main()
