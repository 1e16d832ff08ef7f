"""Diff-Foley: features of a contrastive audio-visual encoder, and guidance by an alignment classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...clip import ClipSpec
from ...shards.batch import ClipBatch
from ..base import Condition, Conditioner, LogLikelihood, Pretrained
from .classifier import AlignmentClassifier
from .contrastive import AlignedFrameEncoder


class DiffFoleyConditioner(Conditioner):
    """The frozen encoder's features through a linear layer, with learned positions.

    Args: encoder, trained by stage ``contrastive``; token_dim; latent_channels and latent_freq of the latent;
    classifier, sizes of the AlignmentClassifier that stage ``classifier`` trains (None: no double guidance);
    classifier_scale, s of v' = v − s·(σ/α)·∇log p (0: none).
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

    def guide(self, batch: ClipBatch) -> tuple[LogLikelihood, float] | None:
        classifier = self.classifier
        if classifier is None or not self.classifier_scale:
            return None
        features = self.encoder(batch)
        return lambda latent, timestep: classifier(latent, timestep, features), self.classifier_scale
