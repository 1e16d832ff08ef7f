"""Train a video-to-audio model: ``python experiments/train.py +exp=vta_sam``. See conf/train.yaml for every setting."""

from vta_sam.runtime.cli import program
from vta_sam.settings import RUN_FOLDER, TrainSettings


@program("train", TrainSettings, writes_to=RUN_FOLDER)
def main(settings):
    from vta_sam.training.job import TrainingJob

    TrainingJob.of(settings.plain()).run()


if __name__ == "__main__":
    main()
