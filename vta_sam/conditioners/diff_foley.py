"""Diff-Foley: features of a contrastive audio-visual encoder, and guidance by an alignment classifier (Luo et al. 2023,
arXiv 2306.17203).

In order: the encoder and stage ``contrastive`` that trains it (CAVP, section 3.1); the classifier of noisy latents and
stage ``classifier`` (section 3.3); the conditioner.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..clip import ClipSpec, MelSpec
from ..dataset.shards.batch import ClipBatch
from ..diffusion.condition import Condition, Conditioner, LogLikelihood, Pretrained
from ..diffusion.objective import TIME_END, Objective
from ..diffusion.unet import sinusoids
from ..mel import LOG_FLOOR, LogMel, normalise
from ..runtime.distributed import gathered
from ..runtime.randomness import SampleDraws, seed_of
from ..runtime.stage_module import StageModule, rows_before
from ..vae.codec import sample_posterior
from .vta_sam_pretraining import mean_per_frame

MAX_LOG_SCALE = math.log(100)  # of the similarities, as CLIP's


class _Tower(nn.Module):
    """Residual convolutions over time, then a linear layer ⇒ unit vectors."""

    def __init__(self, in_dim: int, width: int, dim: int, layers: int, kernel: int):
        super().__init__()
        self.enter = nn.Linear(in_dim, width)
        self.layers = nn.ModuleList([
            nn.Sequential(nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width),
                          nn.Conv1d(width, 2 * width, 1), nn.GELU(), nn.Conv1d(2 * width, width, 1))
            for _ in range(layers)
        ])
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(layers)])
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, T, in_dim), mask (B, T) True = real ⇒ (B, T, dim), unit vectors."""
        x = self.enter(x)
        for norm, layer in zip(self.norms, self.layers):
            h = norm(x) * mask[..., None]  # padding must look like the zeros beyond the clip's ends
            x = x + layer(h.transpose(1, 2)).transpose(1, 2)
        return F.normalize(self.leave(x), dim=-1)


class AlignedFrameEncoder(nn.Module):
    """Frame embeddings ⇒ unit vectors that describe the sound at each frame. Published: SlowOnly-R50 on 4 frames a
    second; here convolutions over the frame embeddings that all systems share.

    Args:
        frame_dim: Dv.
        width: of the convolutions.
        dim: of the vectors. Published: 512.
        layers: number of convolutions.
        kernel_frames: of the convolutions.
    """

    def __init__(self, frame_dim: int, width: int = 192, dim: int = 128, layers: int = 3, kernel_frames: int = 5):
        super().__init__()
        self.dim = dim
        self.norm = nn.LayerNorm(frame_dim)
        self.tower = _Tower(frame_dim, width, dim, layers, kernel_frames)

    def forward(self, batch: ClipBatch) -> Tensor:
        """Unit vectors (B, T, dim)."""
        return self.tower(self.norm(batch.frame_embedding), batch.frame_mask)


class AlignedSoundEncoder(nn.Module):
    """Log-mel (B, mel frames, n_mels) ⇒ unit vectors at the moments of the video's frames (B, T, dim). Used in this
    stage alone."""

    def __init__(self, n_mels: int, width: int = 128, dim: int = 128, layers: int = 3, kernel_frames: int = 5):
        super().__init__()
        self.listen = nn.Sequential(nn.Conv1d(n_mels, width, 5, padding=2), nn.GELU(),
                                    nn.Conv1d(width, width, 5, padding=2), nn.GELU())
        self.tower = _Tower(width, width, dim, layers, kernel_frames)

    def forward(self, mel: Tensor, mask: Tensor, spec: ClipSpec) -> Tensor:
        """Unit vectors (B, T, dim).

        Args:
            mel: log-mel, (B, mel frames, n_mels).
            mask: (B, T), which of the video's frames are real.
            spec: time base of both.
        """
        h = self.listen(((mel - LOG_FLOOR) / 8 - 0.5).transpose(1, 2))
        return self.tower(mean_per_frame(h, spec).transpose(1, 2), mask)


def pooled_windows(x: Tensor, frames: int) -> Tensor:
    """(B, T, D) ⇒ unit vectors (B, T // frames, D): the largest value of each dimension within each window, as the
    published encoder pools."""
    count = x.shape[1] // frames
    pooled = x[:, : count * frames].unflatten(1, (count, frames)).amax(dim=2)
    return F.normalize(pooled, dim=-1)


def between_clips(video: Tensor, sound: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Contrast window w of a clip's pictures with window w of every clip's sound, and the reverse.

    Args:
        video: (B, W, D).
        sound: (B, W, D).
        scale: of the similarities.

    Returns:
        Loss; share of windows whose own sound is the nearest.
    """
    with torch.autocast(video.device.type, enabled=False):  # bf16 would round a scaled logit of 100 by up to 0.25
        logits = torch.einsum("bwd,cwd->wbc", video.float(), sound.float())
    labels = torch.arange(len(video), device=video.device).expand(logits.shape[0], -1)
    return _both_ways(logits * scale, labels), (logits.argmax(dim=2) == labels).float().mean()


def within_clip(video: Tensor, sound: Tensor, displaced: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Contrast each window of a clip's pictures with all windows of its sound and of the sound shifted in time.

    Args:
        video: (B, W, D).
        sound: (B, W, D).
        displaced: (B, W, D), windows of the shifted sound.
        scale: of the similarities.

    Returns:
        Loss; share of windows whose own moment is the nearest.
    """
    with torch.autocast(video.device.type, enabled=False):
        video, sound, displaced = video.float(), sound.float(), displaced.float()
        logits = video @ torch.cat([sound, displaced], dim=1).transpose(1, 2)
        back = sound @ video.transpose(1, 2)
    labels = torch.arange(video.shape[1], device=video.device).expand(len(video), -1)
    loss = (F.cross_entropy((logits * scale).flatten(0, 1), labels.flatten())
            + F.cross_entropy((back * scale).flatten(0, 1), labels.flatten())) / 2
    return loss, (logits.argmax(dim=2) == labels).float().mean()


def _both_ways(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over the last axis, and over the one before it. logits (W, B, B), labels (W, B)."""
    return (F.cross_entropy(logits.flatten(0, 1), labels.flatten())
            + F.cross_entropy(logits.transpose(1, 2).flatten(0, 1), labels.flatten())) / 2


@dataclass(frozen=True)
class ShiftDraws:
    """The random draws of a step: ``shift`` (B,), the frames by which a clip's sound is displaced.

    Args:
        shortest: shift either way, in frames.
    """

    shortest: int

    def __call__(self, batch: ClipBatch) -> dict[str, Any]:
        free = max(1, batch.frame_mask.shape[1] - 2 * self.shortest)
        return {"shift": SampleDraws(batch.seeds, "displace").integer(free) + self.shortest}


def displaced(x: Tensor, shift: Tensor) -> Tensor:
    """Each row (T, D) of (B, T, D) rotated by its number of frames, (B,)."""
    frames = x.shape[1]
    places = (torch.arange(frames, device=x.device) + shift[:, None]) % frames
    return x.gather(1, places[..., None].expand_as(x))


class ContrastivePretraining(StageModule):
    """Tell sounds apart between clips, within a clip, and from themselves displaced in time.

    Args:
        encoder: of frames; the one that is kept.
        weights: of the loss terms, under the names they are logged by: between, within.
        optimise: (module) ⇒ Lightning's optimiser and schedule.
        mel: front end of the sound, the clip's.
        window_frames: pooled into one vector.
        shortest_shift_frames: of the displaced sound.
    """

    def __init__(self, encoder: AlignedFrameEncoder, weights: dict[str, float], optimise: Callable, mel: MelSpec,
                 window_frames: int = 8, shortest_shift_frames: int = 4):
        super().__init__(optimise)
        self.encoder, self.weights = encoder, weights
        self.window_frames, self.draw = window_frames, ShiftDraws(shortest_shift_frames)
        self.hearing, self.log_mel = AlignedSoundEncoder(mel.n_mels, dim=encoder.dim), LogMel(mel)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def _forward(self, batch: ClipBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """⇒ (losses, figures)."""
        batch = batch.with_draws(self.draw)
        assert batch.waveform is not None and batch.draws is not None, "this stage reads waveforms"
        mel = self.log_mel(normalise(batch.waveform))[:, :-1]
        video, sound = self.encoder(batch), self.hearing(mel, batch.frame_mask, batch.spec)
        scale = self.log_scale.clamp(max=MAX_LOG_SCALE).exp()
        later = pooled_windows(displaced(sound, batch.draws["shift"]), self.window_frames)
        video, sound = pooled_windows(video, self.window_frames), pooled_windows(sound, self.window_frames)
        between, between_accuracy = between_clips(gathered(video), gathered(sound), scale)
        within, within_accuracy = within_clip(video, sound, later, scale)
        return ({"between": between, "within": within},
                {"between_accuracy": between_accuracy, "within_accuracy": within_accuracy})

    def measure(self, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        losses, figures = self._forward(batch)
        return torch.stack([self.weights[name] * value for name, value in losses.items()]).sum(), {**losses, **figures}


TIMESTEP_DIM = 64


class AlignmentClassifier(nn.Module):
    """log p(aligned | noisy latent, time, frame features).

    Published: a UNet's encoder half with cross-attention to the whole video's features. Here the window's own features
    are brought to the latent's columns, so that guidance of a window depends on no other seconds.

    Args:
        feature_dim: of the frame features.
        latent_rows: channels times frequency rows of the latent.
        spec: the clip's time base.
        width: of the convolutions over columns.
        layers: number of convolutions.
        kernel_columns: of the convolutions.
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

    def logit(self, latent: Tensor, times: Tensor, features: Tensor) -> Tensor:
        """Logit of p(aligned), (B,).

        Args:
            latent: (B, C, columns, freq).
            times: (B,), of the diffusion.
            features: (B, T, dim).
        """
        sound = self.hear(rearrange(latent, "b c t f -> b t (c f)"))
        video = self.see(torch.einsum("ct,btd->bcd", self.interpolation.to(features.dtype), features))
        x = (sound * (1 + video) + video + self.timestep(
            sinusoids(times.float() / TIME_END, TIMESTEP_DIM, 0.01, 10.0).to(video.dtype))[:, None])
        x = x.transpose(1, 2)
        for norm, layer in zip(self.norms, self.layers):
            x = x + layer(F.silu(norm(x)))
        return self.judge(torch.cat([x.mean(dim=2), x.amax(dim=2)], dim=1))[:, 0]

    def forward(self, latent: Tensor, times: Tensor, features: Tensor) -> Tensor:
        """log p(aligned), (B,), ≤ 0; arguments as of :meth:`logit`."""
        return F.logsigmoid(self.logit(latent, times, features))


@dataclass(frozen=True)
class ClassifierDraws:
    """The random draws of a step: ``posterior`` and ``noise`` (B, C, columns, freq), ``times`` (B,), and ``shift``
    (B,), the frames by which a clip's pictures are displaced. And no draw: ``clip`` (B,), a number of each clip's own.

    Args:
        objective: draws the times.
    """

    objective: Objective

    def __call__(self, batch: ClipBatch) -> dict[str, Any]:
        assert batch.moments is not None, "the classifier is trained on latent shards"
        draws, shape = SampleDraws(batch.seeds, "classifier"), (batch.moments.shape[1] // 2, *batch.moments.shape[2:])
        frames = batch.frame_mask.shape[1]
        return {"posterior": draws.normal(*shape), "times": self.objective.draw_times(draws),
                "noise": draws.normal(*shape), "shift": draws.integer(frames // 2) + frames // 4,
                "clip": torch.tensor([seed_of(key) for key in batch.keys])}


class ClassifierTraining(StageModule):
    """Train the classifier to distinguish a latent's own pictures from another clip's, and from its own, shifted.

    Latents have every level of noise.

    Args:
        classifier: the network to train.
        encoder: of frames, frozen.
        latent_scale: 1 / std of the latents.
        optimise: (module) ⇒ Lightning's optimiser and schedule.
        objective: of the diffusion whose noisy latents the classifier is to guide.
    """

    def __init__(self, classifier: AlignmentClassifier, encoder: AlignedFrameEncoder, latent_scale: float,
                 optimise: Callable, objective: Objective):
        super().__init__(optimise)
        self.classifier, self.encoder = classifier, encoder.requires_grad_(False)
        self.latent_scale, self.objective = latent_scale, objective
        self.draw = ClassifierDraws(objective)

    def measure(self, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """(Loss, accuracy) over equally many own, other and displaced pictures; own ones weigh as much as the other two
        together.

        The other pictures are those of the clip before in the batch of all processes. A clip that comes after itself,
        as one that is alone, is given its displaced pictures only.
        """
        batch = batch.with_draws(self.draw)
        assert batch.moments is not None and batch.draws is not None, "the classifier is trained on latent shards"
        drawn = batch.draws
        latent = sample_posterior(batch.moments, drawn["posterior"]) * self.latent_scale
        noisy, features = self.objective.noised(latent, drawn["noise"], drawn["times"]), self.encoder(batch)
        pictures = (features, rows_before(features), displaced(features, drawn["shift"]))
        own, *wrong = [self.classifier.logit(noisy, drawn["times"], x) for x in pictures]
        another = rows_before(drawn["clip"]) != drawn["clip"]
        counts = torch.cat([another.to(own.dtype), torch.ones_like(own)])
        falsehoods = torch.cat(wrong)
        loss = (F.softplus(-own).mean() + (F.softplus(falsehoods) * counts).sum() / counts.sum()) / 2
        accuracy = ((own > 0).float().mean() + ((falsehoods <= 0) * counts).sum() / counts.sum()) / 2
        return loss, {"accuracy": accuracy}


class DiffFoleyConditioner(Conditioner):
    """The frozen encoder's features through a linear layer, with a learned position for each frame.

    Args:
        encoder: trained by stage ``contrastive``.
        spec: the clip's time base.
        token_dim: width of the denoiser's tokens.
        latent_channels: of the latent.
        latent_freq: frequency rows of the latent.
        classifier: sizes of the AlignmentClassifier that stage ``classifier`` trains; None: no double guidance.
        classifier_scale: s of v' = v − s·(σ/α)·∇log p; 0: no double guidance.
    """

    pretrained = {"contrastive": Pretrained("encoder", "frame_encoder"),
                  "classifier": Pretrained("classifier", "classifier", required=False)}

    def __init__(self, encoder: AlignedFrameEncoder, spec: ClipSpec, token_dim: int, latent_channels: int,
                 latent_freq: int, classifier: dict | None = None, classifier_scale: float = 0.0):
        super().__init__()
        self.encoder, self.spec, self.token_dim = encoder, spec, token_dim
        self.project = nn.Linear(encoder.dim, token_dim)
        self.positions = nn.Embedding(spec.frames, token_dim)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.null_token = nn.Parameter(torch.randn(token_dim) * 0.02)
        self.classifier_scale = float(classifier_scale)
        self.classifier = None if classifier is None else AlignmentClassifier(
            encoder.dim, latent_channels * latent_freq, spec, **classifier)

    def _positions(self, like: Tensor) -> Tensor:
        return self.positions.weight[: self.spec.frames].to(like.dtype)

    def forward(self, batch: ClipBatch) -> Condition:
        tokens = self.project(self.encoder(batch) * self.encoder.dim**0.5)  # unit vectors ⇒ values of about 1
        return Condition(tokens + self._positions(tokens), batch.frame_mask)

    def null(self, batch: ClipBatch) -> Condition:
        tokens = self.null_token + self._positions(self.null_token)
        return Condition(tokens.expand(len(batch), -1, -1), batch.frame_mask)

    @classmethod
    def is_guided(cls, recipe: dict[str, Any]) -> bool:
        return recipe.get("classifier") is not None and bool(recipe.get("classifier_scale"))

    def guide(self, batch: ClipBatch) -> tuple[LogLikelihood, float] | None:
        classifier = self.classifier
        if classifier is None or not self.classifier_scale:
            return None
        features = self.encoder(batch)
        return lambda latent, times: classifier(latent, times, features), self.classifier_scale
