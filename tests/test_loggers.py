"""Weights & Biases without an account: on disk, one run per stage, no connection."""

from pathlib import Path

from lightning.pytorch.loggers import CSVLogger

from vta_sam.training.fit import close, has_wandb_account, wandb_logger


def test_each_stage_is_a_run_of_its_own_kept_on_disk(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert not has_wandb_account()
    ids = []
    for stage in ("vae", "condition"):
        folder = tmp_path / "vta_sam-0" / stage
        folder.mkdir(parents=True)
        logger = wandb_logger(str(folder), "logs", "vta-sam")
        logger.log_metrics({"train/loss": 1.0}, step=1)
        ids.append(logger.experiment.id)
        assert logger.experiment.settings.mode in ("offline", "dryrun")  # two words for the same
        close([logger, CSVLogger(str(folder))])
        assert len(list(Path(folder).rglob("*.wandb"))) == 1
    assert ids[0] != ids[1]


def test_a_key_in_the_environment_is_an_account(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert has_wandb_account()
