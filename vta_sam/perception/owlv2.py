"""OWLv2: a probability and a box of each object word in each picture.

The network is transformers' Owlv2ForObjectDetection (Minderer et al. 2023, arXiv 2306.09683). Each patch of a picture
proposes a box, and its embedding is compared with the embedding of each word: there is no prompt that words share, so
that a word's result doesn't depend on the others. The pictures of several clips go through the picture tower at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import nn

from ..checkpoints.registry import digest, require
from ..media.picture_reader import Within
from ..runtime.distributed import FORMATS, choose_device, choose_format, mixed_precision
from ..runtime.errors import InputError
from .base import Grounder, Grounding, areas_inside
from .clip_encoder import check_length, load_network, load_processor, load_tokenizer
from .inference import Transfer, hold_weights

_GREY = 0.5  # of the padding, in Owlv2ImageProcessor


class OWLv2(Grounder):
    """OWLv2 for any word.

    probs[t, k] is the largest sigmoid logit of any patch for the embedding of word k, without a threshold. boxes[t, k]
    is the box of that patch, cut off at the picture's edges: OWLv2 sees a square that is grey below or beside the
    picture, and its boxes may reach into the grey. areas are the areas of the boxes. Objectness scores are not used.

    A word stands in ``template``. OWL-ViT, whose recipe OWLv2 takes over, is trained with CLIP's 80 templates and
    evaluated by the mean over seven of them (arXiv 2205.06230); transformers' examples use the default here alone.

    Args:
        name: entry of the table of released weights, a folder in transformers' layout.
        weights: folder with the released files; None ⇒ $VTA_SAM_WEIGHTS, or "weights".
        template: sentence with one {} for an object's word.
        batch_frames: pictures in one batch.
        device: "auto", "cpu", "cuda", "cuda:1", …
        precision: "auto" (fp16 on a GPU), "fp32", "fp16", "bf16".

    Raises:
        InputError: a file is missing; the message names it and how to get it.
    """

    kind = "owlv2"
    batch_frames: int

    def __init__(self, name: str = "owlv2-base-patch16-ensemble", weights: str | Path | None = None,
                 template: str = "a photo of a {}", batch_frames: int = 8, device: str = "auto",
                 precision: str = "auto") -> None:
        if template.count("{}") != 1 or batch_frames < 1:
            raise InputError(f"the grounder needs one {{}} in its template and batch_frames >= 1, got {template!r} and "
                             f"{batch_frames}")
        source = require(name, weights)
        self.device = choose_device(device)
        self.model = load_network("Owlv2ForObjectDetection", "OWLv2", source, self.device)
        _prepare_network(self.model)
        self.tokenizer = load_tokenizer("OWLv2", source)
        number_format = choose_format(precision, self.device)
        self.autocast, self.transfer = mixed_precision(number_format, self.device), Transfer(self.device)
        hold_weights(self.model.owlv2, None if number_format == "fp32" else FORMATS[number_format])  # of the two towers
        self.template, self.batch_frames = template, batch_frames
        self.max_tokens: int = self.model.config.text_config.max_position_embeddings
        self.side: int = self.model.config.vision_config.image_size
        self.fit = Within(self.side, self.side)
        processor = load_processor("Owlv2ImageProcessor", source)
        self.mean = torch.tensor(processor.image_mean, device=self.device).view(3, 1, 1)
        self.std = torch.tensor(processor.image_std, device=self.device).view(3, 1, 1)
        self.fingerprint = f"{name}-{digest(source / 'model.safetensors')}"
        self.settings = {"template": template, "precision": number_format}
        self._queries = lru_cache(maxsize=256)(self._encode_words)
        self._scaling = lru_cache(maxsize=16)(self._scaling_on_device)

    def check_words(self, objects: Sequence[str]) -> None:
        """Raise InputError where a word has more tokens, in its template, than OWLv2 reads."""
        for word in objects:
            ids = self.tokenizer(self.template.format(word), verbose=False)["input_ids"]
            check_length(word, self.template, len(ids), self.max_tokens, "OWLv2")

    def ground(self, frames: np.ndarray, objects: list[str]) -> Grounding:
        """Frames (T, H, W, 3) uint8 RGB of any size, K words ⇒ Grounding. A frame's result doesn't depend on others."""
        batches = range(0, max(1, len(frames)), self.batch_frames)
        return Grounding.concatenate(
            [self.launch([(frames[i:i + self.batch_frames], objects)])()[0] for i in batches])

    def launch(self, requests: Sequence[tuple[np.ndarray, list[str]]]) -> Callable[[], list[Grounding]]:
        """Begin to ground frames of several clips in one batch, see :meth:`Grounder.launch`."""
        asked = [(frames, tuple(objects)) for frames, objects in requests if len(frames) and objects]
        fetch: Callable[[], torch.Tensor] = lambda: torch.zeros(0, 0, 5)
        if asked:
            pictures = self.transfer.send(torch.from_numpy(np.concatenate([frames for frames, _ in asked])))
            probs, boxes = self.detect(pictures.permute(0, 3, 1, 2),
                                       [words for frames, words in asked for _ in frames])
            fetch = self.transfer.fetch(torch.cat([probs[..., None], boxes], dim=-1))

        def found() -> list[Grounding]:
            values = fetch().numpy()
            probs, boxes = values[..., 0], values[..., 1:]
            groundings, start = [], 0
            for frames, objects in requests:
                if not (len(frames) and objects):
                    groundings.append(Grounding.zeros(len(frames), len(objects)))
                    continue
                part = slice(start, start + len(frames))
                own = boxes[part, :len(objects)].copy()
                groundings.append(Grounding(probs[part, :len(objects)].copy(), own, areas_inside(own)))
                start += len(frames)
            return groundings

        return found

    @torch.inference_mode()
    def detect(self, pictures: torch.Tensor, words: Sequence[tuple[str, ...]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities (B, K) and boxes (B, K, 4) of each picture's own words, float32 on the device.

        K is the largest number of words; what lies beyond a picture's own means nothing.

        Args:
            pictures: (B, 3, H, W) uint8, on the device.
            words: of each picture, at least one.
        """
        most = max(map(len, words))
        queries = torch.stack([F.pad(self._queries(own), (0, 0, 0, most - len(own))) for own in words])
        height, width = pictures.shape[-2:]
        pixels = self.prepare(pictures)
        with self.autocast:
            grid = self.model.image_embedder(pixels)[0].float()  # (B, rows, columns, width of the tower)
        patches = grid.flatten(1, 2)  # the heads cost little, and a box in fp16 is half a pixel off
        logits, best = self.model.class_predictor(patches, queries)[0].max(dim=1)  # of (B, patches, K)
        boxes = self.model.box_predictor(patches, grid)
        chosen = boxes.gather(1, best[..., None].expand(-1, -1, 4))
        return logits.sigmoid(), _within_picture(chosen, height, width)

    @torch.inference_mode()
    def prepare(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures (B, 3, H, W) uint8 ⇒ (B, 3, side, side) float, as by Owlv2ImageProcessor.

        The picture is padded below or to its right to a grey square, blurred where it shrinks, and resized. Both axes
        of a square are scaled alike, and linearly: one matrix does it. What is scaled is the difference from grey,
        which is zero in the padding, so that the padding is never stored.
        """
        height, width = pictures.shape[-2:]
        pixels, longest = pictures.float() / 255 - _GREY, max(height, width)
        if longest == self.side:
            pixels = F.pad(pixels, (0, longest - width, 0, longest - height))
        else:
            matrix = self._scaling(longest)
            pixels = matrix[:, :height] @ pixels @ matrix[:, :width].T
        return (pixels + _GREY - self.mean) / self.std

    def _scaling_on_device(self, source: int) -> torch.Tensor:
        return torch.from_numpy(scaling_matrix(source, self.side)).to(self.device)

    @torch.inference_mode()
    def _encode_words(self, words: tuple[str, ...]) -> torch.Tensor:
        """K words ⇒ their embeddings (K, D), of norm 1, on the device."""
        self.check_words(words)
        tokens = self.tokenizer([self.template.format(word) for word in words], padding="max_length",
                                max_length=self.max_tokens, return_tensors="pt")
        ids, mask = (tokens[name].to(self.device) for name in ("input_ids", "attention_mask"))
        with self.autocast:
            embeddings = self.model.owlv2.get_text_features(ids, attention_mask=mask).float()
        return embeddings / torch.linalg.norm(embeddings, dim=-1, keepdim=True)


@lru_cache(maxsize=16)
def scaling_matrix(source: int, target: int) -> np.ndarray:
    """The resizing of Owlv2ImageProcessor along one axis, as a matrix (target, source) float32 with rows of sum 1."""
    factor, matrix = source / target, np.eye(source)
    if factor > 1:
        matrix = ndimage.gaussian_filter1d(matrix, (factor - 1) / 2, axis=0, mode="mirror")
    return ndimage.zoom(matrix, (1 / factor, 1), order=1, mode="mirror", grid_mode=True).astype(np.float32)


def _within_picture(boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Boxes (…, 4) cx cy w h as fractions of the padded square ⇒ the same of the picture, cut off at its edges."""
    longest = max(height, width)
    # numbers of the host, which are not sent to the device
    first = torch.stack([(boxes[..., i] - boxes[..., i + 2] / 2) * (longest / side)
                         for i, side in enumerate((width, height))], -1).clamp(0.0, 1.0)
    end = torch.stack([(boxes[..., i] + boxes[..., i + 2] / 2) * (longest / side)
                       for i, side in enumerate((width, height))], -1).clamp(0.0, 1.0)
    return torch.cat([(first + end) / 2, end - first], -1)


class FusedAttention(nn.Module):
    """Attention with the layers of OWLv2's own, without its matrix of weights.

    A picture has 3,601 tokens at 960 pixels, so that the package's matrix holds 156 million weights a layer.
    """

    def __init__(self, theirs: Any) -> None:
        super().__init__()
        self.heads = theirs.num_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            theirs.q_proj, theirs.k_proj, theirs.v_proj, theirs.out_proj)

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
        """States (B, T, C) ⇒ (B, T, C), and no weights. Masks are not read: the picture tower has none."""
        query, key, value = (projection(hidden_states).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                             for projection in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)), None


def _prepare_network(model: Any) -> None:
    """Fused attention in the picture tower, and the boxes' bias as a buffer, which each call would send to the device.
    """
    for layer in model.owlv2.vision_model.encoder.layers:
        layer.self_attn = FusedAttention(layer.self_attn)
    model.register_buffer("box_bias", model.__dict__.pop("box_bias").to(model.device), persistent=False)
