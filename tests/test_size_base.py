"""The networks of size=base train here: three steps of each stage, and the third again in a run that was stopped.

Asked for by `make test-base`: minutes, 15 GB of memory and of disk.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import zlib
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
from forks import Fork
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from tiny_data import write_dataset

from vta_sam.training import stage as stage_module
from vta_sam.training.callbacks import AtomicCheckpointIO
from vta_sam.training.job import TrainingJob

CONF = Path(__file__).resolve().parents[1] / "conf"
STAGES = ("vae", "condition", "diffusion")
# size=base's clips, but a quarter as long
CLIP = {"fps": 8, "duration_s": 2.56, "frame_dim": 768, "object_dim": 768, "caption_dim": 768}
RECIPES = {"grounder": {"_target_": "tiny_grounder"}, "encoder": {"_target_": "tiny_encoder"}}
FIT = "{steps: 3, validate_every: 3, checkpoint_every: 2, accumulate: 1, ema_decay: 0.5, ema_start: 0, " \
    "precision: fp32, accelerator: cpu, checkpoint_aside: false}"


class Stopped(Exception):
    """The run's end, as a machine's that goes off."""


class Third(L.Callback):
    """Notes losses, and the weights after step 3; there it may stop the run, before anything is saved."""

    def __init__(self, stop: bool):
        self.stop, self.losses, self.weights = stop, {}, 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses[trainer.global_step] = outputs["loss"].item().hex()
        if trainer.global_step == 3:
            for parameter in pl_module.parameters():
                self.weights = zlib.crc32(parameter.detach().contiguous().numpy(), self.weights)
            if self.stop:
                raise Stopped


def train(folder: str, stages: str, stop: bool) -> None:
    """The job up to the last of ``stages``, which is stopped at the end of its third step or trained to its end."""
    numbers = [f"++fit.{stage}.{key}" for stage in STAGES for key in ("batch_size=1", "workers=0", f"fit={FIT}")]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["+exp=vta_sam", "size=base", "data=shards", f"data.root={folder}/shards",
                                   f"stages=[{stages}]", "vocoder=griffin_lim", f"clip.duration_s={CLIP['duration_s']}",
                                   f"runs={folder}/runs", "validation={clips: 1, steps: 1}",
                                   f"threads={os.cpu_count()}", *numbers])
    third, fit, save = Third(stop), stage_module.fit, AtomicCheckpointIO.save_checkpoint
    stage_module.fit = lambda *args: fit(*args[:7], callbacks=[*args[7], third], preemption=args[8])
    # a second one beside that of step 2 is 9 GB more of disk
    AtomicCheckpointIO.save_checkpoint = lambda io, content, path, options=None: None \
        if Path(path).stem == "last" and content["global_step"] == 3 else save(io, content, path, options)
    try:
        TrainingJob.of(OmegaConf.to_container(config, resolve=True)).run()
    except Stopped:
        pass
    used = resource.getrusage(resource.RUSAGE_SELF)
    print("\n" + json.dumps({"losses": third.losses, "weights": third.weights, "peak_gb": used.ru_maxrss / 1024 ** 2,
                             "processor_s": used.ru_utime + used.ru_stime}), flush=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("base")
    info = write_dataset(made / "shards", {"train": 3, "val": 1, "test": 1}, **CLIP)
    replace(info, recipes=RECIPES).write(made / "shards")
    yield made
    shutil.rmtree(made)


@pytest.mark.base
@pytest.mark.parametrize("stage", STAGES)  # in this order: each is built on the ones before
def test_a_stage_trains_three_steps_and_stopped_after_two_takes_the_same_third(folder, stage):
    told = []
    for stop in (True, False):
        process = Fork(train, str(folder), ",".join(STAGES[:STAGES.index(stage) + 1]), stop)
        try:
            assert process.wait(850) == 0, process.read()[-3000:]
            told.append(json.loads(process.read().splitlines()[-1]))
        finally:
            process.close()
    print(stage, told)
    whole, resumed = told
    assert sorted(whole["losses"]) == ["1", "2", "3"] and sorted(resumed["losses"]) == ["3"]
    assert resumed["losses"]["3"] == whole["losses"]["3"] and resumed["weights"] == whole["weights"]
    assert (folder / "runs" / "vta_sam-0" / stage / "model" / "model.yaml").exists()
    assert max(each["peak_gb"] for each in told) < 20
