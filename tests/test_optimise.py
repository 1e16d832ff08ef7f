"""The rate over time, and who is trained at which rate."""

import copy
import json
import math
import time

import lightning as L
import pytest
import torch
from tiny_data import CODEC, ENCODER, SPEC, build, stage_settings
from torch import nn

from vta_sam.conditioners.vta_sam_pretraining import ConditionPretraining
from vta_sam.dataset.shards.batch import Augmentation
from vta_sam.diffusion.condition import Denoiser
from vta_sam.generation.build import prepare_layers
from vta_sam.runtime.errors import InputError
from vta_sam.training.codec_stages import MelVAE
from vta_sam.training.optimisation import AdamWithWarmup, choose_precision, prepare_blocks


def test_the_rate_rises_and_falls():
    make = AdamWithWarmup(1.0, steps=110, warmup_steps=10, final=0.1)
    assert [make.factor(step) for step in (0, 4, 9, 10)] == [0.1, 0.5, 1.0, 1.0]
    assert make.factor(60) == pytest.approx(0.55) and make.factor(110) == pytest.approx(0.1)
    assert make.factor(35) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert make.factor(500) == pytest.approx(0.1)  # a run that was made longer doesn't rise again
    rates = [make.factor(step) for step in range(10, 111)]
    assert rates == sorted(rates, reverse=True)


def test_without_warmup_it_starts_at_its_peak():
    assert AdamWithWarmup(1.0, steps=10).factor(0) == 1.0
    assert AdamWithWarmup(1.0, steps=5, warmup_steps=5).factor(7) == pytest.approx(0.1)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.body = nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
        self.token, self.kept = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2), requires_grad=False)


def groups_of(**more):
    module = Model()
    made = AdamWithWarmup(0.1, steps=10, warmup_steps=2, weight_decay=0.5, **more)(module)
    names = {id(p): name for name, p in module.named_parameters()}
    found = {names[id(p)]: (group["initial_lr"], group["weight_decay"])
             for group in made["optimizer"].param_groups for p in group["params"]}
    return module, made, found


def test_vectors_are_not_decayed_and_frozen_parameters_left_out():
    _, made, found = groups_of()
    assert found == {"encoder.weight": (0.1, 0.5), "encoder.bias": (0.1, 0.0), "body.0.weight": (0.1, 0.5),
                     "body.0.bias": (0.1, 0.0), "body.1.weight": (0.1, 0.0), "body.1.bias": (0.1, 0.0),
                     "token": (0.1, 0.0)}
    assert made["lr_scheduler"]["interval"] == "step"


def test_what_is_pretrained_goes_slower():
    _, made, found = groups_of(slower={"encoder.": 0.1})
    assert found["encoder.weight"] == (pytest.approx(0.01), 0.5) and found["body.0.weight"] == (0.1, 0.5)
    assert found["encoder.bias"] == (pytest.approx(0.01), 0.0)
    rates = []
    for _ in range(4):
        rates.append(sorted({group["lr"] for group in made["optimizer"].param_groups}))
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    assert rates[0] == pytest.approx([0.005, 0.05]) and rates[1] == pytest.approx([0.01, 0.1])
    assert all(slow == pytest.approx(fast / 10) for slow, fast in rates)


def test_a_factor_of_zero_freezes():
    module, made, found = groups_of(slower={"encoder.": 0.0})
    assert not any(name.startswith("encoder") for name in found)
    assert not module.encoder.weight.requires_grad and module.body[0].weight.requires_grad
    before = module.encoder.weight.clone()
    module.body(module.encoder(torch.ones(1, 3))).square().sum().backward()
    made["optimizer"].step()
    assert torch.equal(module.encoder.weight, before) and module.encoder.weight.grad is None


class Blocks(Denoiser):
    latent_channels = token_dim = 1

    def __init__(self):
        super().__init__()
        self.done = []

    def forward(self, latent, times, condition):
        raise NotImplementedError

    def checkpoint_blocks(self):
        self.done.append("checkpointed")

    def compile_blocks(self):
        self.done.append("compiled")


class Bare(Blocks):
    checkpoint_blocks, compile_blocks = Denoiser.checkpoint_blocks, Denoiser.compile_blocks


def stage_of(denoiser):
    module = L.LightningModule()
    if denoiser is not None:
        module.denoiser = denoiser
    return module


def test_blocks_are_checkpointed_and_compiled_where_asked(monkeypatch):
    cpu, denoiser = torch.device("cpu"), Blocks()
    monkeypatch.setattr(torch, "compile", lambda function: function)
    prepare_blocks(stage_of(None), False, False, cpu)
    for network, words in ((None, "diffusion; leave it out of the others"), (Bare(), "Bare")):
        for asked in ((True, False), (False, True)):
            with pytest.raises(InputError, match=words):
                prepare_blocks(stage_of(network), *asked, cpu)
    prepare_blocks(stage_of(denoiser), True, True, cpu)
    assert denoiser.done == ["checkpointed", "compiled"]


def test_blocks_of_other_stages_are_compiled_too():
    settings = stage_settings(4)
    for make in (lambda: MelVAE(build(CODEC | {"mel_mean": 0.0, "mel_std": 1.0}), settings.weights, None),
                 lambda: ConditionPretraining(build(ENCODER), settings.weights, Augmentation(), None, SPEC.mel)):
        torch.manual_seed(0)
        module = make()
        prepare_blocks(module, False, False, torch.device("cpu"))
        assert module.repeated_blocks() and not any(part._compiled_call_impl for part in module.modules())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "compile", lambda function, **more: function)
            prepare_blocks(module, False, True, torch.device("cpu"))
        compiled = [part for part in module.modules() if part._compiled_call_impl]
        assert compiled == module.repeated_blocks()
        with pytest.raises(InputError, match="gradient_checkpointing is for stage diffusion"):
            prepare_blocks(module, True, False, torch.device("cpu"))


def test_without_a_compiler_blocks_run_as_they_are(monkeypatch):
    def missing(function):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nin any place")

    monkeypatch.setattr(torch, "compile", missing)
    denoiser = Blocks()
    with pytest.warns(UserWarning, match="compile=true: .*No working C.. compiler found.*run as they are"):
        prepare_blocks(stage_of(denoiser), False, True, torch.device("cpu"))
    assert not denoiser.done


def test_convolutions_with_a_stride_compute_in_fp32_on_processors():
    """Down to one column: there bf16 with AMX is wrong."""
    layers = nn.ModuleList([nn.Conv2d(32, 32, 3, 2, 1), nn.Conv2d(32, 32, 3, 1, 1)])
    names, x = set(layers.state_dict()), torch.randn(4, 32, 8, 2)
    prepare_layers(layers, torch.device("cpu"))
    for part in (layers, copy.deepcopy(layers)):
        with torch.no_grad():
            part[0].weight.mul_(2)  # a copy computes with its own kernel
        exact = nn.functional.conv2d(x, part[0].weight, part[0].bias, 2, 1)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(part[0](x), exact)
            assert [layer(x.bfloat16()).dtype for layer in part] == [torch.float32, torch.bfloat16]
    assert set(layers.state_dict()) == names
    normed = nn.utils.parametrizations.spectral_norm(nn.Conv1d(4, 4, 3, 2)).train()
    before = {name: value.clone() for name, value in normed.state_dict().items()}
    prepare_layers(normed, torch.device("cpu"))
    assert all(torch.equal(value, before[name]) for name, value in normed.state_dict().items())


class Overflowing(L.LightningModule):
    """A step whose loss is finite in fp32 alone, and faster in bf16."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def training_step(self, batch, batch_idx):
        half = torch.is_autocast_enabled("cpu")
        time.sleep(0 if half else 0.005)
        return self.layer(batch).sum() * (float("nan") if half else 1.0)


def test_a_format_in_which_the_loss_is_not_finite_is_not_chosen(tmp_path):
    assert choose_precision("auto", Overflowing(), lambda: torch.ones(2, 4), tmp_path) == "32-true"
    assert json.loads((tmp_path / "precision.json").read_text())["seconds_a_step"]["bf16"] is None


def test_decay_pulls_matrices_only():
    module, made, _ = groups_of()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(1.0)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    made["optimizer"].step()
    assert torch.all(module.encoder.weight < 1) and torch.all(module.encoder.bias == 1) and torch.all(module.token == 1)
