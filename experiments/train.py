"""Train a video-to-audio model: ``python experiments/train.py +exp=vta_sam``. See conf/train.yaml for every setting."""

from vta_sam.runtime.cli import program, RUN_FOLDER


@program("train", writes_to=RUN_FOLDER)
def main(config):
    from omegaconf import OmegaConf

    from vta_sam.training.job import TrainingJob

    TrainingJob.of(OmegaConf.to_container(config, resolve=True, throw_on_missing=True)).run()


if __name__ == "__main__":
    main()
