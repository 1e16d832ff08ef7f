"""Hold folders of generated sound against the true sound of their clips: see conf/evaluate.yaml."""

import sys
from pathlib import Path

from vta_sam.runtime.cli import program, quote_text
from vta_sam.runtime.errors import InputError

PLAIN_TEXT = ("reference", "videos", "out", "ids", "split", "captions", "weights", "ceiling", "cache")


@program("evaluate", writes_to=("out",))
def main(config):
    for name in ("generated", "reference"):
        if config[name] is None:
            raise InputError(f"{name}= is missing; it names a folder of sounds")
    from omegaconf import OmegaConf

    from vta_sam.dataset.extraction.progress import terminal_progress
    from vta_sam.evaluation.evaluate import evaluate
    from vta_sam.evaluation.request import named_folders, request_of
    from vta_sam.evaluation.results import console, differences_table, figures_table, missing_lines, write_evaluation

    settings = OmegaConf.to_container(config, resolve=True)
    request = request_of(settings, named_folders(settings["generated"]), Path(config.reference))
    with terminal_progress(f"clips of {config.reference}") as progress:
        evaluation, _ = evaluate(request, progress)
    for table in (figures_table(evaluation), differences_table(evaluation)):
        if table is not None:
            console().print(table)
    print(*missing_lines(evaluation), sep="\n")
    for path in write_evaluation(Path(config.out), evaluation):
        print(path)


if __name__ == "__main__":
    sys.argv[1:] = quote_text(sys.argv[1:], PLAIN_TEXT)
    main()
