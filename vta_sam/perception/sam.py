"""SAM: pictures and boxes ⇒ masks, and the image embedding inside each mask.

The network is segment-anything's own (Kirillov et al. 2023, arXiv 2304.02643). A batch of pictures goes through its
image encoder once; all boxes of a picture go through its mask decoder in one call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from segment_anything import sam_model_registry
from segment_anything.utils.transforms import ResizeLongestSide
from torch import nn

from ..checkpoints.registry import read_state
from ..runtime.errors import InputError

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
