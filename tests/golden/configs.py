"""The composed config of every experiment as text, whatever its classes' modules are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from golden.played import CHECKOUT

FOLDER = Path(__file__).parent / "configs"
SIZES = ("smoke", "base", "large")  # of vta_sam; all experiments are composed at the default size


def class_name(target: str) -> str:
    """``a.b.Class`` and a short name of Class ⇒ ``Class``."""
    if "." in target:
        return target.rpartition(".")[2]
    from vta_sam.checkpoints.parts import class_name as of_short_name

    return of_short_name(target)


def canonical(value: Any) -> Any:
    """The same with the bare name of each class in ``_target_``."""
    if isinstance(value, dict):
        return {key: class_name(item) if key == "_target_" else canonical(item) for key, item in value.items()}
    return [canonical(item) for item in value] if isinstance(value, list) else value


def commands() -> dict[str, list[str]]:
    """⇒ name of the file ⇒ overrides of conf/train.yaml."""
    experiments = sorted(path.stem for path in (CHECKOUT / "conf" / "exp").glob("*.yaml"))
    return {name: [f"+exp={name}"] for name in experiments} | {
        f"vta_sam-{size}": ["+exp=vta_sam", f"size={size}"] for size in SIZES} | {
        "vta_sam-real": ["+exp=vta_sam", "size=base", "data=shards", "grounder=grounded_sam", "encoder=clip",
                         "vocoder=hifigan", "logger=wandb"]}


def composed() -> dict[str, str]:
    """⇒ name ⇒ the config as yaml, sorted, since the order of keys means nothing; ``???`` is for the user to name."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    found = {}
    with initialize_config_dir(str(CHECKOUT / "conf"), version_base="1.3"):
        for name, overrides in commands().items():
            config = OmegaConf.to_container(compose("train", overrides=overrides), resolve=True)
            found[name] = yaml.safe_dump(canonical(config), sort_keys=True, allow_unicode=True)
    return found


def recorded() -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.yaml")}


def write() -> None:
    now = composed()
    FOLDER.mkdir(exist_ok=True)
    for name in set(recorded()) - set(now):
        (FOLDER / f"{name}.yaml").unlink()
    for name, text in now.items():
        (FOLDER / f"{name}.yaml").write_text(text, encoding="utf-8")
