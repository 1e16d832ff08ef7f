"""Weights & Biases: whose server, which key, and why a run stays on disk: one run per stage, no connection."""

import os
import warnings

import pytest
from lightning.pytorch.loggers import CSVLogger

from vta_sam.runtime.errors import InputError
from vta_sam.training.fit import close, wandb_logger, wandb_offline_reason

SERVER = "http://localhost:9"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home and working folder, and nothing of wandb's in the environment."""
    for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
        monkeypatch.delenv(name)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.slow
def test_each_stage_is_a_run_of_its_own_kept_on_disk(home, tmp_path):
    ids = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for stage in ("vae", "condition"):
            folder = tmp_path / "vta_sam-0" / stage
            folder.mkdir(parents=True)
            logger = wandb_logger(str(folder), "logs", "vta-sam")
            logger.log_metrics({"train/loss": 1.0}, step=1)
            ids.append(logger.experiment.id)
            assert logger.experiment.settings.mode == "offline" and "WANDB_MODE" not in os.environ
            close([logger, CSVLogger(str(folder))])
            assert len(list(folder.rglob("*.wandb"))) == 1
    assert ids[0] != ids[1]
    told, = [str(warning.message) for warning in said if "wandb" in str(warning.message)]
    assert told.startswith("wandb's runs stay offline, since there is no key for ")
    pattern = f"{tmp_path / 'vta_sam-0'}/*/wandb/offline-run-*"
    assert told.endswith(f"later: wandb sync {pattern}")
    assert len(list(tmp_path.glob("vta_sam-0/*/wandb/offline-run-*"))) == 2


@pytest.mark.parametrize("name, value", [("WANDB_API_KEY", "x" * 40), ("WANDB_IDENTITY_TOKEN_FILE", "token"),
                                         ("WANDB_MODE", "disabled")])
def test_the_environment_may_say_it_all(home, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert wandb_offline_reason() is None


@pytest.mark.parametrize("mode", [0o600, 0o644])
@pytest.mark.parametrize("entries, url, found", [
    ("machine api.wandb.ai", None, True), ("machine localhost:9", None, False), ("default", None, True),
    ("machine api.wandb.ai", SERVER, False), ("machine localhost:9", SERVER, True),
    ("machine localhost:9", f"{SERVER}/", True),
    ("machine example.org login a password b\nmachine localhost:9", SERVER, True),
])
def test_the_entry_of_ones_own_server_counts(home, monkeypatch, entries, url, found, mode):
    netrc = home / ".netrc"
    netrc.write_text(f"{entries}\n  login user\n  password secret\n")
    netrc.chmod(mode)
    if url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
    reason = wandb_offline_reason()
    if found:
        assert reason is None
    else:
        assert reason.startswith("there is no key for " + ("localhost:9: " if url else "api."))
        assert f"WANDB_API_KEY is not set, and {netrc} doesn't name it" in reason


@pytest.mark.parametrize("content, said", [
    ("machine localhost:9\n  login user\n  password one two\n", "an odd word about line "),
    ("machine localhost:9\nlogn user\n", "an odd word about line "),
    ("machine localhost:9 login user\n", "doesn't name it"),  # no password
    (b"\xff\xfe\x00", "can't be read"),
    (None, "there is no"),
])
def test_a_netrc_that_is_of_no_use_is_the_reason(home, monkeypatch, content, said):
    monkeypatch.setenv("WANDB_BASE_URL", SERVER)
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    if content is not None:
        (home / "netrc").write_bytes(content if isinstance(content, bytes) else content.encode())
    reason = wandb_offline_reason()
    assert str(home / "netrc") in reason and said in reason and "two" not in reason
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert wandb_offline_reason() is None


@pytest.mark.parametrize("place", ["home", "working folder", "named"])
def test_wandbs_settings_files_are_read(home, monkeypatch, place):
    if place == "named":
        monkeypatch.setenv("WANDB_CONFIG_DIR", str(home / "own"))
    path = home / {"home": ".config/wandb", "working folder": "wandb", "named": "own"}[place] / "settings"
    path.parent.mkdir(parents=True)
    path.write_text(f"[default]\nbase_url = {SERVER}\n")
    assert wandb_offline_reason().startswith("there is no key for localhost:9: ")
    path.write_text(f"[default]\nbase_url = {SERVER}\napi_key = {'x' * 40}\n")
    assert wandb_offline_reason() is None
    path.write_text("[default]\nmode = offline\n")
    reason = wandb_offline_reason()
    assert reason.endswith("settings says mode = offline") and path.parent.name in reason
    monkeypatch.setenv("WANDB_MODE", "online")
    assert "no key" in wandb_offline_reason()
    path.write_text("[default\nwhat is this")
    assert "no key" in wandb_offline_reason()


def test_offline_by_ones_own_wish(home, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert wandb_offline_reason() == "WANDB_MODE=offline is set"


def test_an_address_without_a_scheme_is_refused(home, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "localhost:9")
    with pytest.raises(InputError, match="WANDB_BASE_URL=localhost:9 .* is no address of a server; it starts"):
        wandb_offline_reason()


def test_wandb_looks_for_the_key_in_the_same_place(home, monkeypatch):
    """A name in netrc that wandb doesn't find would make it ask on the terminal."""
    wbnetrc = pytest.importorskip("wandb.sdk.lib.wbauth.wbnetrc")
    path = home / ".netrc"
    path.write_text(f"machine localhost:9\n  login user\n  password {'x' * 40}\n")
    path.chmod(0o644)
    for url in (SERVER, "http://localhost:8080", "http://localhost"):
        monkeypatch.setenv("WANDB_BASE_URL", url)
        assert (wbnetrc.read_netrc_auth(host=url) is None) == (wandb_offline_reason() is not None), url
