"""What diffusion learns, the UNet it learns with, and the sampler: formulas by hand, and independence of the batch."""

import math

import pytest
import torch
from diffusers import UNet2DConditionModel
from models import SPEC, make_batch
from tiny_data import CONDITIONER, ENCODER, UNET, UNET_CONFIG, build

from vta_sam.dataset.shards.batch import Augmentation
from vta_sam.diffusion.condition import Condition
from vta_sam.diffusion.latent_diffusion import LatentDiffusion
from vta_sam.diffusion.objective import TIME_END, EpsilonPrediction, VPrediction, X0Prediction
from vta_sam.diffusion.sampler import Sampler, guided
from vta_sam.diffusion.windows import noise_of
from vta_sam.runtime.errors import InputError
from vta_sam.runtime.randomness import generator

COLUMNS, FREQ, FRAMES = SPEC.columns, 4, SPEC.frames


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def noise_for(seeds):
    return torch.stack([noise_of(seed, (8, COLUMNS, FREQ), COLUMNS) for seed in seeds])


def condition_of(batch=2, real=FRAMES, channels=4, seed=0):
    mask = torch.arange(FRAMES)[None, :].expand(batch, -1) < real
    return Condition(normal(batch, FRAMES, 16, seed=seed), mask, normal(batch, channels, COLUMNS, seed=seed + 1))


@pytest.fixture(scope="module", params=["plain", "timed"])
def unet(request):
    recipe = {**UNET, "config": {**UNET_CONFIG, "sample_size": [COLUMNS, FREQ]},
              "timed_attention": 1.0 if request.param == "timed" else 0.0}
    return build(recipe, randomise=True, spec=SPEC)


# ------------------------------------------------------------------ objective


def alphas():
    """ᾱ of the scaled-linear schedule, from its definition."""
    betas = torch.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0)


TIMES = torch.tensor([0, 1, 100, 500, 999])


def test_noise_and_target():
    latent, noise = normal(5, 2, 3, 4), normal(5, 2, 3, 4, seed=1)
    noisy, target = VPrediction().noised(latent, noise, TIMES), VPrediction().target(latent, noise, TIMES)
    a = alphas()[TIMES].float()[:, None, None, None]
    assert torch.allclose(noisy, a.sqrt() * latent + (1 - a).sqrt() * noise, atol=1e-4)
    assert torch.allclose(target, a.sqrt() * noise - (1 - a).sqrt() * latent, atol=1e-4)
    assert torch.equal(EpsilonPrediction().noised(latent, noise, TIMES), noisy)
    assert torch.equal(EpsilonPrediction().target(latent, noise, TIMES), noise)
    assert torch.equal(X0Prediction().noised(latent, noise, TIMES), noisy)
    assert torch.equal(X0Prediction().target(latent, noise, TIMES), latent)


@pytest.mark.parametrize("kind", [VPrediction, EpsilonPrediction, X0Prediction])
def test_a_prediction_stands_for_a_latent(kind):
    objective, latent, noise = kind(), normal(5, 2, 3, 4), normal(5, 2, 3, 4, seed=1)
    noisy, target = objective.noised(latent, noise, TIMES), objective.target(latent, noise, TIMES)
    assert torch.allclose(objective.to_x0(target, noisy, TIMES), latent, atol=2e-3)
    other = objective.target(latent, normal(5, 2, 3, 4, seed=2), TIMES) + 1
    assert not torch.allclose(objective.to_x0(other, noisy, TIMES), latent, atol=1e-2)


@pytest.mark.parametrize("kind", [VPrediction, EpsilonPrediction, X0Prediction])
def test_a_change_of_the_score_changes_each_prediction_alike(kind):
    """Tweedie: E[z | z_t] = (z_t + (1−ᾱ)·score) / √ᾱ, so a score that is larger by g moves z by (1−ᾱ)/√ᾱ·g."""
    objective, times = kind(), torch.tensor([1, 100, 500, 900])
    noisy, prediction, gradient = (normal(4, 2, 3, 4, seed=seed) for seed in (1, 2, 3))
    a = alphas()[times].float()[:, None, None, None]
    moved = prediction - objective.score_gain(times)[:, None, None, None] * gradient
    change = objective.to_x0(moved, noisy, times) - objective.to_x0(prediction, noisy, times)
    assert torch.allclose(change, (1 - a) / a.sqrt() * gradient, rtol=1e-3, atol=1e-3)


def test_snr():
    expected = (alphas() / (1 - alphas())).float()
    assert torch.allclose(VPrediction().snr(TIMES), expected[TIMES], rtol=1e-3)
    assert expected[0] > 1000 and expected[-1] < 0.01


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights_by_hand(gamma):
    snr = (alphas() / (1 - alphas())).float()[TIMES]
    v = VPrediction(gamma).weight(TIMES)
    epsilon = VPrediction(gamma, weighting="epsilon").weight(TIMES)
    assert torch.allclose(v, torch.minimum(snr, torch.tensor(gamma)) / (snr + 1), rtol=1e-3)
    assert torch.allclose(epsilon, torch.minimum(snr, torch.tensor(gamma)) / snr, rtol=1e-3)
    assert v[-1] < 0.01 and epsilon[-1] == 1  # where there is almost nothing but noise, they disagree most
    assert torch.equal(VPrediction(None).weight(TIMES), torch.ones(5))
    clipped = torch.minimum(snr, torch.tensor(gamma))
    assert torch.allclose(EpsilonPrediction(gamma).weight(TIMES), clipped / snr, rtol=1e-3)
    assert torch.allclose(X0Prediction(gamma).weight(TIMES), clipped, rtol=1e-3)
    with pytest.raises(ValueError, match='"v" or "epsilon"'):
        VPrediction(weighting="x0")


def test_loss_by_hand():
    prediction, target = torch.zeros(2, 8, COLUMNS, FREQ), torch.ones(2, 8, COLUMNS, FREQ)
    target[1] = 3
    times = torch.tensor([100, 900])
    objective = VPrediction()
    loss, errors = objective.loss(prediction, target, times, torch.ones(2, COLUMNS, dtype=torch.bool))
    assert errors.tolist() == [1.0, 9.0]
    w = objective.weight(times)
    assert loss.item() == pytest.approx(((w[0] + 9 * w[1]) / 2).item(), rel=1e-6)


def test_masked_columns_do_not_count():
    prediction, target = normal(2, 8, COLUMNS, FREQ).requires_grad_(), normal(2, 8, COLUMNS, FREQ, seed=1)
    mask = torch.ones(2, COLUMNS, dtype=torch.bool)
    mask[0, 3:] = False
    objective, times = VPrediction(), torch.tensor([300, 400])
    loss, errors = objective.loss(prediction, target, times, mask)
    assert errors[0].item() == pytest.approx((prediction[0, :, :3] - target[0, :, :3]).square().mean().item(), rel=1e-5)
    loss.backward()
    assert not prediction.grad[0, :, 3:].any() and prediction.grad[0, :, :3].all() and prediction.grad[1].all()
    with torch.no_grad():
        prediction[0, :, 3:] += 100
    assert torch.equal(objective.loss(prediction, target, times, mask)[0], loss)


# ------------------------------------------------------------------ UNet


@torch.no_grad()
def test_extra_channels_start_at_zero():
    """At the start the model computes what the plain UNet of diffusers computes."""
    config = {**UNET_CONFIG, "sample_size": [COLUMNS, FREQ]}
    ours = build({**UNET, "config": config, "timed_attention": 0.0}, spec=SPEC)
    plain = UNet2DConditionModel(in_channels=8, **config).eval()
    state = dict(ours.unet.state_dict())
    assert state["conv_in.weight"].shape[1] == 8 + 4 + 4 and not state["conv_in.weight"][:, 8:].any()
    state["conv_in.weight"] = state["conv_in.weight"][:, :8]
    plain.load_state_dict(state)
    condition, latent, times = condition_of(), normal(2, 8, COLUMNS, FREQ), torch.tensor([10, 700])
    expected = plain(latent, times, condition.tokens, encoder_attention_mask=condition.mask).sample
    assert torch.allclose(ours(latent, times, condition), expected, atol=1e-6)
    assert ours.token_dim == 16 and ours.latent_channels == 8
    ours.unet.conv_in.weight[:, 8:].normal_()
    assert not torch.allclose(ours(latent, times, condition), expected, atol=1e-3)  # and they are heard later on


@torch.no_grad()
def test_padding_changes_nothing(unet):
    condition, latent, times = condition_of(real=9), normal(2, 8, COLUMNS, FREQ), torch.tensor([10, 700])
    expected = unet(latent, times, condition)
    condition.tokens[:, 9:] = 5.0
    assert torch.allclose(unet(latent, times, condition), expected, atol=1e-5)
    condition.tokens[:, 8] += 1.0
    assert not torch.allclose(unet(latent, times, condition), expected, atol=1e-4)


@torch.no_grad()
def test_a_row_does_not_depend_on_its_batch(unet):
    condition, latent, times = condition_of(batch=3), normal(3, 8, COLUMNS, FREQ), torch.tensor([10, 700, 300])
    together = unet(latent, times, condition)
    for i in range(3):
        row = Condition(condition.tokens[[i]], condition.mask[[i]], condition.column_map[[i]])
        assert torch.allclose(unet(latent[[i]], times[[i]], row), together[[i]], atol=1e-5)


@torch.no_grad()
def test_the_map_is_heard_at_its_columns_first():
    """The map enters beside the latent: changing one column of it changes the input of that column alone."""
    unet = build({**UNET, "config": {**UNET_CONFIG, "sample_size": [COLUMNS, FREQ]}}, randomise=True, spec=SPEC)
    seen = []
    unet.unet.conv_in.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    condition = condition_of()
    unet(normal(2, 8, COLUMNS, FREQ), torch.tensor([1, 2]), condition)
    condition.column_map[:, :, 5] += 1
    unet(normal(2, 8, COLUMNS, FREQ), torch.tensor([1, 2]), condition)
    changed = (seen[0] != seen[1]).any(dim=(0, 1, 3))
    assert changed.nonzero().flatten().tolist() == [5]
    coordinates = seen[0][:, 12:]  # the time of each column, whatever the latent
    assert torch.equal(coordinates[0], coordinates[1]) and torch.equal(coordinates[..., 0], coordinates[..., 3])
    assert torch.cdist(coordinates[0, :, :, 0].T, coordinates[0, :, :, 0].T).fill_diagonal_(1).min() > 0.05


# ------------------------------------------------------------------ sampler


class Listening:
    """Stands for a UNet; notes the batches it is given."""

    def __init__(self):
        self.calls = []

    def __call__(self, latent, times, condition):
        self.calls.append((len(latent), condition))
        return latent * 0.5 + condition.tokens.mean(dim=(1, 2))[:, None, None, None]


def test_guidance_by_hand():
    model, told, null = Listening(), condition_of(seed=3), condition_of(seed=8)
    latent, times = normal(2, 8, COLUMNS, FREQ), torch.tensor([10, 10])
    v_told, v_null = model(latent, times, told), model(latent, times, null)
    for scale in (0.0, 0.5, 3.0):
        expected = v_null + scale * (v_told - v_null)
        assert torch.allclose(guided(model, told, null, scale)(latent, times), expected, atol=1e-6)


def test_guidance_one_never_asks_the_null():
    model, told = Listening(), condition_of(seed=3)
    latent, times = normal(2, 8, COLUMNS, FREQ), torch.tensor([10, 10])
    out = guided(model, told, condition_of(seed=8), 1.0)(latent, times)
    assert len(model.calls) == 1 and model.calls[0] == (2, told)
    assert torch.equal(out, model(latent, times, told))
    guided(model, told, condition_of(seed=8), 1.5)(latent, times)
    assert model.calls[-1][0] == 4


@pytest.mark.parametrize("solver", ["dpm", "ddpm"])
def test_sampling_does_not_depend_on_the_batch(unet, solver):
    told, null, seeds = condition_of(batch=3, seed=3), condition_of(batch=3, real=9, seed=8), [11, 12, 13]
    sampler = Sampler(steps=4, guidance=2.0, solver=solver)

    def sample(rows):
        parts = [Condition(c.tokens[rows], c.mask[rows], c.column_map[rows]) for c in (told, null)]
        noise = noise_for(seeds[r] for r in rows)
        generators = [generator(seeds[r], "steps") for r in rows]
        return sampler.sample(guided(unet, *parts, 2.0), noise, VPrediction(), generators)

    together = sample([0, 1, 2])
    assert torch.isfinite(together).all() and torch.allclose(sample([2, 0]), together[[2, 0]], atol=1e-5)
    assert torch.allclose(sample([1]), together[[1]], atol=1e-5)
    assert torch.equal(sample([0, 1, 2]), together)


def test_dpm_draws_nothing_and_ddpm_draws_from_its_rows():
    def predict(latent, times):
        return 0.1 * latent

    noise = noise_for([1, 2])
    torch.manual_seed(0)
    first = Sampler(steps=5).sample(predict, noise, VPrediction())
    torch.manual_seed(1)
    assert torch.equal(Sampler(steps=5).sample(predict, noise, VPrediction()), first)
    ancestral = Sampler(steps=5, solver="ddpm")
    one = ancestral.sample(predict, noise, VPrediction(), [generator(1), generator(2)])
    other = ancestral.sample(predict, noise, VPrediction(), [generator(1), generator(3)])
    assert torch.equal(one[0], other[0]) and not torch.allclose(one[1], other[1], atol=1e-2)
    shared = ancestral.sample(predict, noise, VPrediction(), torch.Generator().manual_seed(1))
    assert torch.equal(shared, ancestral.sample(predict, noise, VPrediction(), torch.Generator().manual_seed(1)))
    with pytest.raises(InputError, match="dpm, ddpm"):
        Sampler(solver="euler")


@pytest.mark.parametrize("kind", [VPrediction, EpsilonPrediction, X0Prediction])
@pytest.mark.parametrize("solver, steps, tolerance", [("dpm", 25, 0.02), ("ddpm", 200, 0.02)])
def test_a_perfect_denoiser_finds_the_latent(solver, steps, tolerance, kind):
    """Of a known z0 the noise is (z_t − √ᾱ·z0) / √(1 − ᾱ), and the prediction the objective's target of both."""
    truth, a = normal(2, 8, COLUMNS, FREQ, seed=5), alphas().float()

    def predict(latent, times):
        alpha = a[times.long()][:, None, None, None]
        return kind().target(truth, (latent - alpha.sqrt() * truth) / (1 - alpha).sqrt(), times)

    noise = noise_for([1, 2])
    found = Sampler(steps=steps, solver=solver).sample(predict, noise, kind(), [generator(1), generator(2)])
    assert (found - truth).abs().max() < tolerance


# ------------------------------------------------------------------ training step


def module_of(unet, dropout=0.5, objects=0.5):
    recipe = {**CONDITIONER, "encoder": {**ENCODER, "frame_dim": 12, "object_dim": 10}}
    module = LatentDiffusion(unet, build(recipe, randomise=True, spec=SPEC), VPrediction(), 0.7,
                             dropout, Augmentation(objects=objects), lambda module: None)
    module.log = lambda *args, **kwargs: None
    return module.train()


def batch_with_moments(size):
    batch = make_batch(*[f"clip {i}" for i in range(size)])
    batch.seeds = torch.arange(100, 100 + size)
    batch.moments = torch.stack([normal(16, COLUMNS, FREQ, seed=i) for i in range(size)])
    return batch


@torch.no_grad()
def test_errors_do_not_depend_on_the_batch(unet):
    module, batch = module_of(unet), batch_with_moments(6)
    _, errors, times = module.errors(batch)
    for rows in ([0], [5, 2], [3, 4, 1]):
        _, some, their_times = module.errors(batch.select(rows))
        assert torch.equal(their_times, times[rows]) and torch.allclose(some, errors[rows], atol=1e-5)
    assert times.min() >= 0 and times.max() < TIME_END and len(set(times.tolist())) == 6


@torch.no_grad()
def test_dropout_gives_rows_the_null_and_forgets_objects(unet):
    batch = batch_with_moments(4)
    heard = []
    for dropout, objects, training in ((1.0, 0.0, True), (0.0, 1.0, True), (0.0, 0.0, True), (0.0, 1.0, False)):
        module = module_of(unet, dropout, objects).train(training)
        hook = unet.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[2]))
        module.errors(batch)
        hook.remove()
        null, told = module.conditioner.null(batch), module.conditioner(batch)
        alone = module.conditioner(batch.without_objects(torch.ones(4, dtype=torch.bool)))
    assert torch.equal(heard[0].tokens, null.tokens) and torch.equal(heard[0].column_map, null.column_map)
    for condition, expected in zip(heard[1:], (alone, told, told), strict=True):  # nothing is hidden from validation
        assert torch.allclose(condition.tokens, expected.tokens, atol=1e-5)
        assert torch.allclose(condition.column_map, expected.column_map, atol=1e-5)


def test_a_step_reaches_every_parameter():
    """From the start, with everything beside the latent still at zero."""
    unet = build({**UNET, "config": {**UNET_CONFIG, "sample_size": [COLUMNS, FREQ]}}, spec=SPEC)
    module = module_of(unet, 0.5, 0.0)
    batch = batch_with_moments(8)
    loss, _, _ = module.errors(batch)
    loss.backward()
    still = {name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()}
    # the map's weights in conv_in are zero, so what makes the map hears nothing until they have moved
    assert still == {"conditioner.to_map.weight", "conditioner.to_map.bias", "conditioner.null_column"}
    assert unet.unet.conv_in.weight.grad[:, 8:12].any() and unet.unet.conv_in.weight.grad[:, 12:].any()


def test_loss_falls_on_one_batch():
    unet = build({**UNET, "config": {**UNET_CONFIG, "sample_size": [COLUMNS, FREQ]}}, spec=SPEC)
    module, batch = module_of(unet, 0.0, 0.0), batch_with_moments(4)
    optimiser = torch.optim.AdamW(module.parameters(), 3e-3)
    losses = []
    for _ in range(25):
        optimiser.zero_grad()
        loss = module.training_step(batch, 0)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
