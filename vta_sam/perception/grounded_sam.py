"""Grounding SAM: Grounding DINO detects each named object in a frame, and SAM (optional) segments it.

SAM's network is segment-anything's own (Kirillov et al. 2023, arXiv 2304.02643): pictures and boxes ⇒ masks, and the
image embedding inside each mask. A batch of pictures goes through its image encoder once; all boxes of a picture go
through its mask decoder in one call.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from segment_anything import sam_model_registry
from segment_anything.utils.transforms import ResizeLongestSide
from torch import nn

from ..checkpoints.registry import digest, read_state, require
from ..media.picture_reader import Within
from ..runtime.distributed import choose_device, choose_format, mixed_precision
from ..runtime.errors import InputError
from .base import EXECUTION, Grounder, Grounding, areas_inside
from .grounding_dino import CONFIGS, Detections, Detector, Prompt, build_detector_network

MASK_DIM = 256  # channels of SAM's image embedding


class Segmenter:
    """SAM on a device.

    Args:
        model: the network, in eval mode.
        batch_frames: pictures in one batch of the image encoder.
        device: where the network computes.
        autocast: context of the number format to compute in.
    """

    def __init__(self, model: Any, batch_frames: int, device: torch.device,
                 autocast: contextlib.AbstractContextManager) -> None:
        self.model, self.device, self.autocast = model.to(device).eval(), device, autocast
        self.batch_frames = batch_frames
        self.transform = ResizeLongestSide(model.image_encoder.img_size)

    @torch.inference_mode()
    def segment(self, pictures: torch.Tensor, boxes: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields (mask logits (K, H, W), image embedding (256, 64, 64)) of each picture, float32. A mask is logits > 0.

        Args:
            pictures: (B, 3, H, W) uint8, on the device.
            boxes: (B, K, 4) cx cy w h in [0, 1], K ≥ 1, on the device.
        """
        for start in range(0, len(pictures), self.batch_frames):
            part = slice(start, start + self.batch_frames)
            embeddings, input_size = self._encode(pictures[part])
            for embedding, own in zip(embeddings, boxes[part]):
                yield self._logits(embedding, own, input_size, tuple(pictures.shape[-2:])), embedding

    def _encode(self, pictures: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """Image embeddings (B, 256, 64, 64), and the pictures' scaled (height, width) before padding."""
        height, width = self.transform.get_preprocess_shape(*pictures.shape[-2:], self.transform.target_length)
        size = max(1, height), max(1, width)
        pixels = pictures.float()
        if size != tuple(pixels.shape[-2:]):
            # rounded to whole levels, as in SamPredictor
            pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False).round()
        with self.autocast:
            return self.model.image_encoder(self.model.preprocess(pixels)).float(), size

    def _logits(self, embedding: torch.Tensor, boxes: torch.Tensor, input_size: tuple[int, int],
                picture_size: tuple[int, ...]) -> torch.Tensor:
        """Mask logits (K, H, W) of one picture."""
        corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=-1)
        height, width = input_size
        corners = corners * torch.tensor([width, height, width, height], device=self.device)
        with self.autocast:
            sparse, dense = self.model.prompt_encoder(points=None, boxes=corners, masks=None)
            low_resolution, _ = self.model.mask_decoder(
                image_embeddings=embedding[None], image_pe=self.model.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense, multimask_output=False)
        return self.model.postprocess_masks(low_resolution.float(), input_size, picture_size)[:, 0]

    def pool(self, embedding: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """The image embedding averaged over each mask ⇒ (K, 256), zeros where a mask is empty.

        The weight of a cell of the embedding is the share of its area that the mask covers.

        Args:
            embedding: (256, 64, 64) of one picture.
            masks: (K, H, W) bool.
        """
        side = self.transform.target_length
        height, width = self.transform.get_preprocess_shape(*masks.shape[-2:], side)
        scaled = F.interpolate(masks[:, None].float(), (max(1, height), max(1, width)), mode="area")
        padded = F.pad(scaled, (0, side - scaled.shape[-1], 0, side - scaled.shape[-2]))
        shares = F.adaptive_avg_pool2d(padded, (embedding.shape[-2], embedding.shape[-1]))[:, 0]  # (K, 64, 64)
        total = shares.sum((1, 2))
        pooled = torch.einsum("khw,chw->kc", shares, embedding) / total.clamp_min(1e-6)[:, None]
        return torch.where(total[:, None] > 0, pooled, 0.0)


def build_segmenter_network(name: str, checkpoint: Path) -> nn.Module:
    """SAM with the weights of an official file, in eval mode.

    Args:
        name: "vit_b", "vit_l" or "vit_h".
        checkpoint: the official file.

    Raises:
        InputError: the name is unknown, or the file doesn't fit.
    """
    if name not in sam_model_registry or name == "default":
        raise InputError(f"sam={name} is not known; it is vit_b, vit_l, vit_h or null")
    network = sam_model_registry[name]()
    state, own = read_state(checkpoint), network.state_dict()
    wrong = sorted(set(own) ^ set(state)) or [key for key in own if own[key].shape != state[key].shape]
    if wrong:
        raise InputError(f"{checkpoint} doesn't fit SAM {name}: {len(wrong)} keys differ, the first is {wrong[0]!r}")
    network.load_state_dict(state)
    return network.eval()


_log = logging.getLogger(__name__)


class GroundedSAM(Grounder):
    """Grounding DINO and optionally SAM, for any word.

    probs[t, k] is the largest sigmoid logit of any query of Grounding DINO at any token of the word itself, without a
    threshold. boxes[t, k] is the box of that query. With SAM, areas are the areas of its masks in these boxes, and
    mask_embedding is its image embedding averaged over each mask. Without SAM, areas are the areas of the boxes.

    Args:
        detector: "swint_ogc" or "swinb_cogcoor", the two released versions of Grounding DINO.
        sam: "vit_b", "vit_l", "vit_h"; None: without SAM.
        weights: folder with the released files; None ⇒ $VTA_SAM_WEIGHTS, or "weights".
        short_side: pixels of the short side of Grounding DINO's input.
        long_side: pixels of its long side at most.
        batch_frames: pictures in one batch of Grounding DINO.
        sam_batch_frames: pictures in one batch of SAM's image encoder.
        device: "auto", "cpu", "cuda", "cuda:1", …
        precision: "auto" (fp16 on a GPU), "fp32", "fp16", "bf16".

    Raises:
        InputError: a file is missing; the message names it and how to get it.
    """

    kind = "grounded_sam"
    execution = (*EXECUTION, "sam_batch_frames")
    draws_masks = True
    batch_frames: int

    def __init__(self, detector: str = "swint_ogc", sam: str | None = None, weights: str | Path | None = None,
                 short_side: int = 800, long_side: int = 1333, batch_frames: int = 8, sam_batch_frames: int = 4,
                 device: str = "auto", precision: str = "auto") -> None:
        if detector not in CONFIGS:
            raise InputError(f"detector={detector} is not known; it is {' or '.join(CONFIGS)}")
        if min(batch_frames, sam_batch_frames, short_side) < 1 or long_side < short_side:
            raise InputError("the grounder needs batch_frames, sam_batch_frames and short_side >= 1 and long_side >= "
                             f"short_side, got {batch_frames}, {sam_batch_frames}, {short_side}, {long_side}")
        bert = require("bert-base-uncased", weights)
        files = [require(f"groundingdino_{detector}", weights)]
        if sam is not None:
            files.append(require(f"sam_{sam}", weights))
        self.device = choose_device(device)
        number_format = choose_format(precision, self.device)
        self.batch_frames = batch_frames
        # one picture for both networks, at the larger of their sizes; smaller videos are upscaled on the device
        self.fit = Within(short_side, long_side) if sam is None else Within(max(short_side, 1024), max(long_side, 1024))
        self.detector = Detector(build_detector_network(detector, files[0], bert), short_side, long_side,
                                 self.device, mixed_precision(number_format, self.device))
        self.segmenter = None
        if sam is not None:
            self.segmenter = Segmenter(build_segmenter_network(sam, files[1]), sam_batch_frames,
                                       self.device, mixed_precision(number_format, self.device))
        names = [f"{name}-{digest(file)}" for name, file in zip((detector, sam), files)]
        self.fingerprint = f"grounded_sam-{'-'.join(names)}-{short_side}x{long_side}px"
        self.settings = {"precision": number_format}
        self._prompt = lru_cache(maxsize=16)(self._build_prompt)

    def check_words(self, objects: Sequence[str]) -> None:
        """Raise InputError where the words have more tokens than Grounding DINO reads."""
        if objects:
            self._prompt(tuple(objects))

    def ground(self, frames: np.ndarray, objects: list[str]) -> Grounding:
        """Frames (T, H, W, 3) uint8 RGB of any size, K words ⇒ Grounding. A frame's result doesn't depend on others."""
        if not objects:
            return Grounding.empty(len(frames))
        prompt = self._prompt(tuple(objects))
        if not prompt.text:
            return self._empty_grounding(len(frames), len(objects))
        parts = [self._ground(self._to_device(frames[i:i + self.batch_frames]), prompt)
                 for i in range(0, len(frames), self.batch_frames)]
        return Grounding.concatenate(parts)

    def masks(self, frames: np.ndarray, objects: list[str]) -> np.ndarray:
        """Frames (T, H, W, 3) uint8 RGB, K words ⇒ SAM's masks (T, K, H, W) bool. Raises InputError without SAM."""
        if self.segmenter is None:
            raise InputError("masks are drawn by SAM, which is left out; name one, for example grounder.sam=vit_b")
        masks = np.zeros((len(frames), len(objects), *frames.shape[1:3]), bool)
        prompt = self._prompt(tuple(objects))
        for i in range(0, len(frames) if prompt.text else 0, self.batch_frames):
            pictures = self._to_device(frames[i:i + self.batch_frames])
            detections = self.detector.detect(pictures, prompt)
            for t, (logits, _) in enumerate(self._segment(pictures, detections), i):
                masks[t] = (logits > 0).cpu().numpy()
        masks[:, _without_tokens(prompt)] = False
        return masks

    def _ground(self, pictures: torch.Tensor, prompt: Prompt) -> Grounding:
        detections = self.detector.detect(pictures, prompt)
        probs, boxes = detections.probs.numpy(), detections.boxes.numpy()
        if self.segmenter is None:
            return Grounding(probs, boxes, areas_inside(boxes))
        areas, pooled = np.zeros_like(probs), np.zeros((*probs.shape, MASK_DIM), np.float32)
        for t, (logits, embedding) in enumerate(self._segment(pictures, detections)):
            masks = logits > 0
            areas[t] = masks.float().mean((1, 2)).cpu().numpy()
            pooled[t] = self.segmenter.pool(embedding, masks).cpu().numpy()
        without_tokens = _without_tokens(prompt)
        areas[:, without_tokens], pooled[:, without_tokens] = 0.0, 0.0
        return Grounding(probs, boxes, areas, pooled)

    def _empty_grounding(self, frames: int, objects: int) -> Grounding:
        grounding = Grounding.zeros(frames, objects)
        if self.segmenter is not None:
            grounding.mask_embedding = np.zeros((frames, objects, MASK_DIM), np.float32)
        return grounding

    def _segment(self, pictures: torch.Tensor, detections: Detections) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        assert self.segmenter is not None
        return self.segmenter.segment(pictures, detections.boxes.to(self.device))

    def _to_device(self, frames: np.ndarray) -> torch.Tensor:
        """(B, H, W, 3) uint8 ⇒ (B, 3, H, W) uint8 on the device."""
        return torch.from_numpy(np.ascontiguousarray(frames)).to(self.device).permute(0, 3, 1, 2)

    def _build_prompt(self, objects: tuple[str, ...]) -> Prompt:
        prompt = self.detector.prompt(list(objects))
        for word, span in zip(objects, prompt.spans):
            if not span:
                _log.warning("nothing of the object %r can be read by Grounding DINO; it gets probability 0", word)
        return prompt


def _without_tokens(prompt: Prompt) -> list[int]:
    """Indices of the objects that have no token in the prompt."""
    return [k for k, span in enumerate(prompt.spans) if not span]
