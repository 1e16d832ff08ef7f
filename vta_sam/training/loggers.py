"""Loggers that need a decision before they are made."""

from __future__ import annotations

import netrc
import os
from collections.abc import Iterable
from pathlib import Path

from lightning.pytorch.loggers import Logger, WandbLogger


def has_wandb_account() -> bool:
    """A key in the environment or in ~/.netrc; no connection is opened to find out."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def wandb_logger(save_dir: str, name: str, project: str) -> WandbLogger:
    """A run of its own per stage, grouped by the job's folder; offline unless there is an account.

    save_dir: the stage's folder, <runs>/<run>/<stage>.
    """
    stage = Path(save_dir)
    offline = not has_wandb_account() or os.environ.get("WANDB_MODE") == "offline"
    return WandbLogger(name=f"{stage.parent.name}/{stage.name}", project=project, save_dir=save_dir, offline=offline,
                       group=stage.parent.name, job_type=stage.name)


def close(loggers: Iterable[Logger]) -> None:
    """End what would otherwise go on into the next stage: wandb keeps one run open per process."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()
