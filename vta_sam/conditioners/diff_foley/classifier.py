"""Diff-Foley's alignment classifier: does this noisy latent belong to these pictures? (Luo et al. 2023, section 3.3)"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...clip import ClipSpec
from ...condition.encoder import sinusoids
from ...diffusion.objective import TRAIN_TIMESTEPS, VPrediction
from ...randomness import SampleDraws
from ...shards.batch import ClipBatch
from ...stage_module import StageModule
from ...vae.codec import sample_posterior
from .contrastive import AlignedFrameEncoder

TIMESTEP_DIM = 64


class AlignmentClassifier(nn.Module):
    """log p(aligned | noisy latent, timestep, frame features).

    Published: a UNet's encoder half with cross-attention to the whole video's features; here the features of the very
    window, brought to the latent's columns, so that no step of guidance looks at other seconds than it makes.

    Args: feature_dim, of the frame features; latent_rows, channels times frequency rows of the latent; spec; width,
    layers and kernel_columns of the convolutions over columns.
    """

    def __init__(self, feature_dim: int, latent_rows: int, spec: ClipSpec, width: int = 128, layers: int = 3,
                 kernel_columns: int = 5):
        super().__init__()
        self.hear, self.see = nn.Linear(latent_rows, width), nn.Linear(feature_dim, width)
        self.timestep = nn.Sequential(nn.Linear(TIMESTEP_DIM, width), nn.SiLU(), nn.Linear(width, width))
        self.norms = nn.ModuleList([nn.GroupNorm(8, width) for _ in range(layers)])
        self.layers = nn.ModuleList([
            nn.Conv1d(width, width, kernel_columns, padding=kernel_columns // 2) for _ in range(layers)
        ])
        self.judge = nn.Linear(2 * width, 1)
        self.register_buffer("interpolation", torch.from_numpy(spec.interpolation()), persistent=False)

    def logit(self, latent: Tensor, timestep: Tensor, features: Tensor) -> Tensor:
        """latent (B, C, columns, freq), timestep (B,), features (B, T, dim) ⇒ (B,)."""
        heard = self.hear(latent.permute(0, 2, 1, 3).flatten(2))
        seen = self.see(torch.einsum("ct,btd->bcd", self.interpolation.to(features.dtype), features))
        x = (heard * (1 + seen) + seen + self.timestep(
            sinusoids(timestep.float() / TRAIN_TIMESTEPS, TIMESTEP_DIM, 0.01, 10.0).to(seen.dtype))[:, None])
        x = x.transpose(1, 2)
        for norm, layer in zip(self.norms, self.layers):
            x = x + layer(F.silu(norm(x)))
        return self.judge(torch.cat([x.mean(dim=2), x.amax(dim=2)], dim=1))[:, 0]

    def forward(self, latent: Tensor, timestep: Tensor, features: Tensor) -> Tensor:
        """⇒ log p(aligned), (B,), ≤ 0."""
        return F.logsigmoid(self.logit(latent, timestep, features))


class ClassifierTraining(StageModule):
    """Own pictures against another clip's, and against its own displaced in time, at every level of noise.

    Args: classifier; encoder, frozen; latent_scale, 1 / std of the latents; optimise, (module) ⇒ Lightning's optimiser
    and schedule.
    """

    def __init__(self, classifier: AlignmentClassifier, encoder: AlignedFrameEncoder, latent_scale: float,
                 optimise: Callable):
        super().__init__(optimise)
        self.classifier, self.encoder = classifier, encoder.requires_grad_(False)
        self.latent_scale, self.objective = latent_scale, VPrediction()

    def measure(self, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """⇒ (loss, accuracy). A third each: its own, another clip's, its own displaced; own ones weigh as much as the
        other two together."""
        assert batch.moments is not None, "the classifier is trained on latent shards"
        draws, device = SampleDraws(batch.seeds, "classifier"), batch.moments.device
        shape = (batch.moments.shape[1] // 2, *batch.moments.shape[2:])
        latent = sample_posterior(batch.moments, draws.normal(*shape).to(device)) * self.latent_scale
        timestep = draws.integer(TRAIN_TIMESTEPS).to(device)
        noisy, _ = self.objective.noised(latent, draws.normal(*shape).to(device), timestep)
        features = self.encoder(batch)
        frames = features.shape[1]
        shift = (draws.integer(frames // 2) + frames // 4).to(device)
        places = (torch.arange(frames, device=device) + shift[:, None]) % frames
        displaced = features.gather(1, places[..., None].expand_as(features))
        logits = [self.classifier.logit(noisy, timestep, x) for x in (features, features.roll(1, 0), displaced)]
        wrong = torch.cat(logits[1:])
        loss = (F.softplus(-logits[0]).mean() + F.softplus(wrong).mean()) / 2
        accuracy = ((logits[0] > 0).float().mean() + (wrong <= 0).float().mean()) / 2
        return loss, {"accuracy": accuracy}
