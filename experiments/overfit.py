"""Overfit a handful of real clips and pair generated with true sound: see conf/exp/overfit.yaml."""

from vta_sam.runtime.cli import program
from vta_sam.settings import TrainSettings


@program("train", TrainSettings)
def main(settings):
    from pathlib import Path

    from vta_sam.clip import ClipSpec
    from vta_sam.generation.pipeline import load
    from vta_sam.runtime.errors import InputError
    from vta_sam.study.overfit import extract_clips, measure_pairs, plan_clips, show_plan
    from vta_sam.training.job import TrainingJob

    values = settings.plain()
    if not values.get("overfit"):
        raise InputError("give +exp=overfit overfit.videos=FOLDER overfit.captions=CSV")
    clips = values.pop("overfit")
    plan_clips(Path(clips["out"])).say()
    if settings.plan:
        return show_plan(TrainingJob.of(values), Path(clips["out"]) / "shards")
    videos = Path(clips["videos"])
    shards = extract_clips(videos, Path(clips["captions"]), Path(clips["out"]), values["grounder"],
                           values["encoder"], ClipSpec(**values["clip"]), clips["learned_s"], clips["unheard_s"])
    job = TrainingJob.of(values)
    folder = job.run()
    measure_pairs(load(folder / "diffusion" / "model"), shards, videos, folder / "pairs", job.seed, job.console)


if __name__ == "__main__":
    main()
