"""What accompanies a fit: averaged weights, the choice of the best, settings that keep nothing."""

import signal
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from tiny_data import stage_context, stage_folder, stage_settings, write_dataset
from tiny_stages import STEPS, Stopped, fit_with_scores, pretraining

from vta_sam.dataset.shards.schema import read_dataset
from vta_sam.runtime.errors import InputError
from vta_sam.training.fit import fit
from vta_sam.training.optimisation import ExponentialMovingAverage


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_dataset(folder)
    return folder


@pytest.mark.parametrize("stop_at, validating", [(5, False), (8, True)])
def test_the_best_so_far_is_remembered(root, tmp_path, stop_at, validating):
    """Step 4 was better than step 8 will be: also for a run that goes on from there."""
    scores = {4: 0.9, 8: 0.1}
    with pytest.raises(Stopped):
        fit_with_scores(root, tmp_path, scores, stop_at=stop_at, validating=validating)
    module, folder = fit_with_scores(root, tmp_path, scores)
    best = torch.load(folder.best_checkpoint, weights_only=True)
    assert best["global_step"] == 4
    assert all(torch.equal(value, best["state_dict"][name]) for name, value in module.state_dict().items())
    assert torch.load(folder.last_checkpoint, weights_only=True)["global_step"] == 8


def test_what_is_kept_is_the_average(root, tmp_path):
    _, folder = fit_with_scores(root, tmp_path, {4: 0.1, 8: 0.9})
    best, last = (torch.load(path, weights_only=True) for path in (folder.best_checkpoint, folder.last_checkpoint))
    assert best["global_step"] == last["global_step"] == 8
    name = "encoder.project.weight"
    assert torch.equal(best["state_dict"][name], last["state_dict"][name])
    assert not torch.equal(best["state_dict"][name], last["current_model_state"][name])


class Counting(L.LightningModule):
    """A weight, and a buffer of whole numbers as conditioners have it."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.register_buffer("picked", torch.arange(82))


def averaging(device, **settings):
    """An average of a module, as a trainer on ``device`` sets it up ⇒ (the callback, the module)."""
    average, module = ExponentialMovingAverage(**settings), Counting()
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))
    average.setup(trainer, module, "fit")
    return average, module


def test_the_average_lies_where_the_model_will_be():
    average, module = averaging("meta", decay=0.9, start_step=0)
    assert next(average._average_model.parameters()).device.type == "meta" and module.weight.device.type == "cpu"


def test_the_average_is_of_weights_and_leaves_whole_numbers_whole():
    average, module = averaging("cpu", decay=0.9999, start_step=2)
    assert [average.should_update(step_idx=step) for step in range(4)] == [False, False, True, True]
    assert not average.should_update(epoch_idx=5)
    for value in range(4):
        module.weight.data.fill_(float(value))
        average._average_model.update_parameters(module)
    expected = 0.0  # the first update takes the weights as they are
    for value in range(1, 4):
        expected = 0.9999 * expected + 1e-4 * value
    assert average._average_model.module.weight.tolist() == pytest.approx([expected] * 3, rel=1e-5)
    assert torch.equal(average._average_model.module.picked, torch.arange(82))


def test_the_average_asks_the_device_only_until_it_has_begun(monkeypatch):
    average, module = averaging("cpu", decay=0.5, start_step=0)
    asked = []
    gt, eq = torch.Tensor.__gt__, torch.Tensor.__eq__
    monkeypatch.setattr(torch.Tensor, "__gt__", lambda *pair: asked.append(pair) or gt(*pair))
    monkeypatch.setattr(torch.Tensor, "__eq__", lambda *pair: asked.append(pair) or eq(*pair))
    counts = []
    for value in range(4):
        module.weight.data.fill_(float(value))
        average._average_model.update_parameters(module)
        counts.append(len(asked))
    assert counts[0] > 0 and counts[1] == counts[2] == counts[3]
    assert average._average_model.module.weight.tolist() == [2.125] * 3 and average._average_model.n_averaged == 4
    again, other = averaging("cpu", decay=0.5, start_step=0)
    again._average_model.load_state_dict(average._average_model.state_dict())  # as a resumed run does
    other.weight.data.fill_(4.0)
    again._average_model.update_parameters(other)
    assert again._average_model.module.weight.tolist() == [3.0625] * 3


def test_ctrl_c_is_passed_on(root, tmp_path):
    """Lightning would end the program; entry scripts want to say a word."""
    class Interrupt(L.Callback):
        def on_train_batch_end(self, trainer, *args):
            raise KeyboardInterrupt

    context, settings, folder = stage_context(root, read_dataset(root)), stage_settings(STEPS), stage_folder(tmp_path)
    module = pretraining(settings)
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(module, context.datamodule("condition", settings), folder, settings.fit, "a test", ("val/loss", "min"),
                callbacks=[Interrupt()])
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("change, words", [
    (dict(validate_every=9), "validate_every=9 with steps=8"), (dict(validate_every=0), "validate_every=0"),
    (dict(ema_start=8), "ema_start=8 with steps=8"),
])
def test_settings_that_would_keep_nothing_trained_are_refused(change, words):
    with pytest.raises(InputError, match=words):
        stage_settings(STEPS, **change)
