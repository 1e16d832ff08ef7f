"""Parameters sharded over processes train as whole ones do."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import load_file
from tiny_data import stage_settings, write_dataset
from together import STEPS, finish, start, train

from vta_sam.runtime.cluster.preemption import EXIT_STATUS
from vta_sam.runtime.errors import InputError
from vta_sam.training.optimisation import to_be_sharded
from vta_sam.training.stage import StageSettings

CONF = Path(__file__).resolve().parents[1] / "conf"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_dataset(folder)
    return folder


def last(folder):
    return torch.load(next(folder.rglob("last.ckpt")), weights_only=True)


@pytest.mark.slow
def test_two_processes_that_share_parameters_train_as_one_does_and_go_on_where_they_stopped(root, tmp_path):
    """Losses, weights, a stop in the middle; and the model folder holds whole tensors."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train("vae", root, tmp_path / "vae")
    vae = tmp_path / "vae" / "model"
    expected = train("diffusion", root, tmp_path / "one", vae)
    torch.set_num_threads(threads)
    stopped = finish(start(2, root, tmp_path / "two", vae, "diffusion", f"1:3:{int(signal.SIGUSR1)}", "fsdp2"))
    assert [status for status, _ in stopped] == [EXIT_STATUS] * 2, stopped
    assert last(tmp_path / "two")["global_step"] == 3
    ended = finish(start(2, root, tmp_path / "two", vae, "diffusion", "", "fsdp2"))
    assert [status for status, _ in ended] == [0, 0], ended
    found = json.loads((tmp_path / "two" / "losses.json").read_text())["diffusion"]
    for step in range(4, STEPS + 1):
        assert found[str(step)][0] == pytest.approx(expected[step][0], abs=1e-4), f"step {step}"
    one, two = last(tmp_path / "one")["current_model_state"], last(tmp_path / "two")["state_dict"]
    for name, value in two.items():
        assert (value - one[name]).abs().max() < 1e-3, name  # as by DDP: Adam makes much of rounding
    saved = load_file(tmp_path / "two" / "diffusion" / "model" / "denoiser.safetensors")
    assert saved and {f"unet.{name}": value.shape for name, value in saved.items()} == {
        name: value.shape for name, value in two.items() if name.startswith("unet.")}


def test_only_the_diffusion_stage_is_sharded():
    with pytest.raises(InputError, match="for stage diffusion"):
        to_be_sharded(L.LightningModule())


def test_the_config_asks_for_it():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["+exp=vta_sam", "+strategy=fsdp2", "size=large"])
    settings = StageSettings.of(OmegaConf.to_container(config.fit, resolve=True)["diffusion"])
    assert settings.fit.strategy == "fsdp2" and settings.split_over(2).fit.strategy == "fsdp2"


def test_an_unknown_strategy_is_refused():
    with pytest.raises(InputError, match="strategy=fsdp3: ddp or fsdp2"):
        stage_settings(8, strategy="fsdp3")
