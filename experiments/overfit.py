"""Overfit a handful of real clips and pair generated with true sound: see conf/exp/overfit.yaml."""

from vta_sam.runtime.cli import program


@program("train")
def main(config):
    from pathlib import Path

    from omegaconf import OmegaConf

    from vta_sam.clip import ClipSpec
    from vta_sam.generation.pipeline import load
    from vta_sam.runtime.errors import InputError
    from vta_sam.study.overfit import extract_clips, measure_pairs
    from vta_sam.training.job import TrainingJob

    if "overfit" not in config:
        raise InputError("give +exp=overfit overfit.videos=FOLDER overfit.captions=CSV")
    settings = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    clips = settings.pop("overfit")
    videos = Path(clips["videos"])
    shards = extract_clips(videos, Path(clips["captions"]), Path(clips["out"]), settings["grounder"],
                           settings["encoder"], ClipSpec(**settings["clip"]), clips["learned_s"], clips["unheard_s"])
    job = TrainingJob.of(settings)
    folder = job.run()
    measure_pairs(load(folder / "diffusion" / "model"), shards, videos, folder / "pairs", job.seed, job.console)


if __name__ == "__main__":
    main()
