"""Systems on the same clips, side by side on a page that plays, shows and measures them: see conf/compare.yaml."""

import sys
from pathlib import Path

from vta_sam.runtime.cli import program, quote_text
from vta_sam.runtime.errors import InputError

PLAIN_TEXT = ("reference", "videos", "out", "ids", "split", "captions", "weights", "ceiling", "cache", "title",
              "note", "shards")


@program("compare", writes_to=("out",))
def main(config):
    if config.systems is None:
        raise InputError("systems= is missing; it names a folder with one folder of clips per system, or is "
                         "{name: folder, ...}")
    from omegaconf import OmegaConf
    from rich.progress import Progress

    from vta_sam.dataset.extraction.progress import terminal_progress
    from vta_sam.evaluation.comparison.page import write_comparison
    from vta_sam.evaluation.evaluate import evaluate
    from vta_sam.evaluation.request import request_of, systems_and_reference
    from vta_sam.evaluation.results import console, figures_table, missing_lines, write_evaluation

    settings = OmegaConf.to_container(config, resolve=True)
    systems, reference = systems_and_reference(settings["systems"], settings["reference"])
    request = request_of(settings, systems, reference)
    with terminal_progress(f"clips of {reference}") as progress:
        evaluation, plan = evaluate(request, progress)
    console().print(figures_table(evaluation))
    print(*missing_lines(evaluation), sep="\n")
    out = Path(config.out)
    shards = None if config.shards is None else Path(config.shards)
    with Progress() as bar:
        task = bar.add_task("page", total=None)
        page = write_comparison(evaluation, plan, request, out / "page", config.title, config.note, shards,
                                lambda done, total: bar.update(task, completed=done, total=total))
    for path in (*write_evaluation(out, evaluation), page):
        print(path)


if __name__ == "__main__":
    sys.argv[1:] = quote_text(sys.argv[1:], PLAIN_TEXT)
    main()
