"""Train a video-to-audio model: ``python experiments/train.py +exp=vta_sam``. See conf/train.yaml for every setting."""

from vta_sam.runtime.cli import program


@program("train")
def main(config):
    from omegaconf import OmegaConf

    from vta_sam.training.job import TrainingJob

    settings = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    job_settings = {k: v for k, v in settings.items() if k in TrainingJob.__dataclass_fields__}
    TrainingJob(**job_settings).run()


if __name__ == "__main__":
    main()
