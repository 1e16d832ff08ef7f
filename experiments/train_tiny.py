"""Train the tiny models of the embedded world, or measure existing ones: see conf/train_tiny.yaml."""

import sys

from vta_sam.runtime.cli import program
from vta_sam.settings import TrainTinySettings


@program("train_tiny", TrainTinySettings)
def main(settings):
    import torch
    import yaml

    from vta_sam.checkpoints.parts import build

    torch.set_num_threads(settings.threads)
    recipe = build(getattr(settings, settings.model))
    recipe.planned(settings.figures).say(sys.stderr)  # stdout is the figures
    if settings.plan:
        return
    figures = recipe.measure() if settings.figures else recipe.train()
    print(yaml.safe_dump({settings.model: figures}, sort_keys=False, allow_unicode=True))


if __name__ == "__main__":
    main()
