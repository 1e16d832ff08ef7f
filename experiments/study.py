"""Train and measure the rows of a study on equal terms: see conf/study.yaml and conf/study/*.yaml."""

from pathlib import Path

import hydra

from vta_sam.cli import run


@hydra.main(version_base="1.3", config_path="../conf", config_name="study")
@run
def main(config):
    from omegaconf import OmegaConf

    from vta_sam.study.plan import study_of
    from vta_sam.study.results import write_results
    from vta_sam.study.run import run_study

    settings = OmegaConf.to_container(config.study, resolve=True)
    if config.seeds is not None:
        settings["seeds"] = list(config.seeds)
    records = Path(config.records)
    run_study(study_of(settings), records, list(config.only), config.cache and Path(config.cache),
              lambda line: print(f"== {line}", flush=True))
    print(write_results(records))


if __name__ == "__main__":
    main()
