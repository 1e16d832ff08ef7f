"""Train and measure the rows of a study on equal terms: see conf/study.yaml and conf/study/*.yaml."""

import sys
from pathlib import Path

from vta_sam.runtime.cli import program


@program("study")
def main(config):
    from omegaconf import OmegaConf

    from vta_sam.study.run import run_side_by_side, run_study
    from vta_sam.study.plan import study_of
    from vta_sam.study.results_page import write_results

    settings = OmegaConf.to_container(config.study, resolve=True)
    if config.seeds is not None:
        settings["seeds"] = list(config.seeds)
    study, records, only = study_of(settings), Path(config.records), list(config.only)

    def say(line):
        print(f"== {line}", flush=True)

    if config.jobs > 1:
        run_side_by_side(study, records, only, config.jobs, [sys.executable, *sys.argv], say)
    else:
        run_study(study, records, only, config.cache and Path(config.cache), say, config.beside)
    print(write_results(records))


if __name__ == "__main__":
    main()
