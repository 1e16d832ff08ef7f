"""Train the tiny models of the embedded world, or measure existing ones: see conf/train_tiny.yaml."""

from vta_sam.runtime.cli import program


@program("train_tiny")
def main(config):
    from vta_sam.checkpoints.parts import build
    from vta_sam.runtime.errors import InputError

    if config.model not in ("trunk", "tagger"):
        raise InputError(f"model={config.model} is no tiny model; choose model=trunk or model=tagger")
    import torch
    import yaml

    torch.set_num_threads(config.threads)
    recipe = build(config[config.model])
    figures = recipe.measure() if config.figures else recipe.train()
    print(yaml.safe_dump({config.model: figures}, sort_keys=False, allow_unicode=True))


if __name__ == "__main__":
    main()
