"""Loggers that need a decision before they are made."""

from __future__ import annotations

import netrc
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.loggers import Logger, WandbLogger


def has_wandb_account() -> bool:
    """A key in the environment or in ~/.netrc; no connection is opened to find out."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def wandb_logger(save_dir: str, name: str, project: str, tags: Sequence[str] = ()) -> WandbLogger:
    """A run of its own per stage, grouped by the job's folder; offline unless there is an account.

    Its config is what the stage was told, so that a table of runs shows what differs. In a sweep the agent has named
    one run for the whole job: all stages go into that one. save_dir: the stage's folder, <runs>/<run>/<stage>.
    """
    stage = Path(save_dir)
    offline = not has_wandb_account() or os.environ.get("WANDB_MODE") == "offline"
    told: dict[str, Any] = {"name": f"{stage.parent.name}/{stage.name}", "group": stage.parent.name,
                            "job_type": stage.name}
    if os.environ.get("WANDB_SWEEP_ID") and os.environ.get("WANDB_RUN_ID"):
        told = {"name": stage.parent.name, "id": os.environ["WANDB_RUN_ID"], "resume": "allow"}
    config = stage / "config.yaml"
    if config.exists():
        told["config"] = {stage.name: yaml.safe_load(config.read_text())}
    return WandbLogger(project=project, save_dir=save_dir, offline=offline, tags=list(tags), **told)


def close(loggers: Iterable[Logger]) -> None:
    """End what would otherwise go on into the next stage: wandb keeps one run open per process."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()
