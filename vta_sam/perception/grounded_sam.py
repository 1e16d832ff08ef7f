"""Grounding SAM: Grounding DINO detects each named object in a frame, and SAM (optional) segments it.

SAM's network is segment-anything's own (Kirillov et al. 2023, arXiv 2304.02643): pictures and boxes ⇒ masks, and the
image embedding inside each mask. A batch of pictures goes through its image encoder once, and all their boxes through
its mask decoder.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from segment_anything import sam_model_registry
from segment_anything.utils.transforms import ResizeLongestSide
from torch import nn

from ..checkpoints.registry import digest, read_state, require
from ..media.picture_reader import Within
from ..runtime.distributed import FORMATS, choose_device, choose_format, mixed_precision
from ..runtime.errors import InputError
from .base import EXECUTION, Grounder, Grounding, areas_inside
from .grounding_dino import CONFIGS, Detector, Prompt, build_detector_network
from .inference import ImageAttention, can_compile, hold_weights

MASK_DIM = 256  # channels of SAM's image embedding


class Segmenter:
    """SAM on a device.

    Args:
        model: the network, in eval mode; parts of it are replaced, and it computes the same.
        batch_frames: pictures in one batch of the image encoder, and of the mask decoder.
        device: where the network computes.
        autocast: context of the number format to compute in.
    """

    def __init__(self, model: Any, batch_frames: int, device: torch.device,
                 autocast: contextlib.AbstractContextManager) -> None:
        for block in model.image_encoder.blocks:
            if block.attn.use_rel_pos:
                block.attn = ImageAttention(block.attn)
        self.model, self.device, self.autocast = model.to(device).eval(), device, autocast
        self.batch_frames = batch_frames
        self.transform = ResizeLongestSide(model.image_encoder.img_size)
        with torch.inference_mode(), autocast:
            self._places = model.prompt_encoder.get_dense_pe()

    def compile_blocks(self) -> None:
        """Have the blocks of the image encoder compiled."""
        for block in self.model.image_encoder.blocks:
            block.compile()

    @torch.inference_mode()
    def segment(self, pictures: torch.Tensor, boxes: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields (mask logits (K, H, W), image embedding (256, 64, 64)) of each picture, float32. A mask is logits > 0.

        Args:
            pictures: (B, 3, H, W) uint8, on the device.
            boxes: (B, K, 4) cx cy w h in [0, 1], K ≥ 1, on the device.
        """
        for logits, embeddings in self._batches(pictures, boxes):
            yield from zip(logits, embeddings)

    @torch.inference_mode()
    def measure(self, pictures: torch.Tensor, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Areas (B, K) of the masks as fractions of the picture, and the image embedding averaged over each mask
        (B, K, 256), zeros where it is empty. Arguments as of :meth:`segment`; the host doesn't wait for them."""
        areas, pooled = [], []
        for logits, embeddings in self._batches(pictures, boxes):
            masks = logits > 0
            areas.append(masks.float().mean((2, 3)))
            pooled.append(self.pool(embeddings, masks))
        return torch.cat(areas), torch.cat(pooled)

    def _batches(self, pictures: torch.Tensor, boxes: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields mask logits (b, K, H, W) and embeddings (b, 256, 64, 64) of ``batch_frames`` pictures."""
        for start in range(0, len(pictures), self.batch_frames):
            part = slice(start, start + self.batch_frames)
            embeddings, input_size = self._encode(pictures[part])
            logits = self._decode(embeddings, boxes[part], input_size)
            full = self.model.postprocess_masks(logits, input_size, tuple(pictures.shape[-2:]))
            yield full[:, 0].unflatten(0, boxes[part].shape[:2]), embeddings

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

    def _decode(self, embeddings: torch.Tensor, boxes: torch.Tensor, input_size: tuple[int, int]) -> torch.Tensor:
        """Mask logits (B · K, 1, 256, 256) of all boxes (B, K, 4), each with its own picture's embedding."""
        first, end = boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2
        height, width = input_size
        corners = torch.stack([first[..., 0] * width, first[..., 1] * height, end[..., 0] * width,
                               end[..., 1] * height], dim=-1)
        with self.autocast:
            sparse, dense = self.model.prompt_encoder(points=None, boxes=corners.flatten(0, 1), masks=None)
            # the decoder repeats one picture's embedding for all boxes, and adds what may differ from box to box
            dense = dense + embeddings.repeat_interleave(boxes.shape[1], 0)
            low_resolution, _ = self.model.mask_decoder(
                image_embeddings=torch.zeros((1, 1, 1, 1), device=self.device), image_pe=self._places,
                sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense, multimask_output=False)
        return low_resolution.float()

    def pool(self, embedding: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """The image embedding averaged over each mask ⇒ (…, K, 256), zeros where a mask is empty.

        The weight of a cell of the embedding is the share of its area that the mask covers.

        Args:
            embedding: (…, 256, 64, 64) of pictures.
            masks: (…, K, H, W) bool.
        """
        side = self.transform.target_length
        height, width = self.transform.get_preprocess_shape(*masks.shape[-2:], side)
        scaled = F.interpolate(masks.flatten(0, -3)[:, None].float(), (max(1, height), max(1, width)), mode="area")
        padded = F.pad(scaled, (0, side - scaled.shape[-1], 0, side - scaled.shape[-2]))
        shares = F.adaptive_avg_pool2d(padded, (embedding.shape[-2], embedding.shape[-1]))  # (…K, 1, 64, 64)
        shares = shares.view(*masks.shape[:-2], *embedding.shape[-2:])
        total = shares.sum((-2, -1))[..., None]
        pooled = torch.einsum("...khw,...chw->...kc", shares, embedding) / total.clamp_min(1e-6)
        return torch.where(total > 0, pooled, 0.0)


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
        every: only every such frame of a clip is looked at, and its last; the others are interpolated.
        compile: the networks' repeated blocks by torch.compile, once for each shape of pictures.
        static_shapes: pictures are padded to one of two shapes for Grounding DINO, lying or upright, so that compiled
            blocks meet no others. It changes what is found a little.

    Raises:
        InputError: a file is missing; the message names it and how to get it.
    """

    kind = "grounded_sam"
    execution: ClassVar[tuple[str, ...]] = (*EXECUTION, "sam_batch_frames", "compile")
    draws_masks = True
    batch_frames: int

    def __init__(self, detector: str = "swint_ogc", sam: str | None = None, weights: str | Path | None = None,
                 short_side: int = 800, long_side: int = 1333, batch_frames: int = 8, sam_batch_frames: int = 4,
                 device: str = "auto", precision: str = "auto", every: int = 1,
                 compile: bool = False, static_shapes: bool = False) -> None:
        if detector not in CONFIGS:
            raise InputError(f"detector={detector} is not known; it is {' or '.join(CONFIGS)}")
        if min(batch_frames, sam_batch_frames, short_side) < 1 or long_side < short_side:
            raise InputError("the grounder needs batch_frames, sam_batch_frames and short_side >= 1 and long_side >= "
                             f"short_side, got {batch_frames}, {sam_batch_frames}, {short_side}, {long_side}")
        self._look_at(every)
        bert = require("bert-base-uncased", weights)
        files = [require(f"groundingdino_{detector}", weights)]
        if sam is not None:
            files.append(require(f"sam_{sam}", weights))
        self.device = choose_device(device)
        number_format = choose_format(precision, self.device)
        held = FORMATS[number_format] if number_format != "fp32" else None
        self.batch_frames = batch_frames
        # one picture for both networks, at the larger of their sizes; smaller videos are upscaled on the device
        self.fit = Within(short_side, long_side) if sam is None else Within(max(short_side, 1024), max(long_side, 1024))
        self.detector = Detector(build_detector_network(detector, files[0], bert), short_side, long_side,
                                 self.device, mixed_precision(number_format, self.device), static_shapes)
        self.detector.hold_weights(held)
        self.segmenter = None
        if sam is not None:
            self.segmenter = Segmenter(build_segmenter_network(sam, files[1]), sam_batch_frames,
                                       self.device, mixed_precision(number_format, self.device))
            hold_weights(self.segmenter.model, held)
        names = [f"{name}-{digest(file)}" for name, file in zip((detector, sam), files)]
        self.fingerprint = f"grounded_sam-{'-'.join(names)}-{short_side}x{long_side}px"
        if compile and can_compile(self.device):
            self.detector.compile_blocks()
            if self.segmenter is not None:
                self.segmenter.compile_blocks()
        self.settings = {"precision": number_format, **self.settings}
        if static_shapes:
            self.settings["static_shapes"] = True
        self._prompt = lru_cache(maxsize=1024)(self._build_prompt)

    def check_words(self, objects: Sequence[str]) -> None:
        """Raise InputError where the words have more tokens than Grounding DINO reads."""
        if objects:
            self._prompt(tuple(objects))

    def ground(self, frames: np.ndarray, objects: list[str]) -> Grounding:
        """Frames (T, H, W, 3) uint8 RGB of any size, K words ⇒ Grounding. A frame's result doesn't depend on others."""
        parts, before = [Grounding.zeros(0, len(objects))], None
        if self.segmenter is not None:
            parts[0].mask_embedding = np.zeros((0, len(objects), MASK_DIM), np.float32)
        for i in range(0, len(frames), self.batch_frames):  # while one is computed, the next is queued
            after = self.launch([(frames[i:i + self.batch_frames], objects)])
            parts += before() if before else []
            before = after
        return Grounding.concatenate(parts + (before() if before else []))

    def launch(self, requests: Sequence[tuple[np.ndarray, list[str]]]) -> Callable[[], list[Grounding]]:
        """See :meth:`Grounder.launch`. Frames with different words share a batch, and each batch is fetched once."""
        prompts = [self._prompt(tuple(objects)) for _, objects in requests]
        begun = []
        for batch in self._batches([frames if prompt.text else frames[:0]
                                    for (frames, _), prompt in zip(requests, prompts)]):
            pictures = self.to_device([frames for _, frames in batch])
            each = [prompts[i] for i, frames in batch for _ in frames]
            begun.append((batch, self.detector.transfer.fetch(self._look(pictures, each))))

        def wait() -> list[Grounding]:
            rows: list[list[np.ndarray]] = [[] for _ in requests]
            for batch, fetch in begun:
                found, start = fetch().numpy(), 0
                for i, frames in batch:
                    rows[i].append(found[start:start + len(frames), :len(prompts[i].spans)])
                    start += len(frames)
            return [self._grounding(own, prompt, len(frames))
                    for own, prompt, (frames, _) in zip(rows, prompts, requests)]

        return wait

    def masks(self, frames: np.ndarray, objects: list[str]) -> np.ndarray:
        """Frames (T, H, W, 3) uint8 RGB, K words ⇒ SAM's masks (T, K, H, W) bool. Raises InputError without SAM."""
        if self.segmenter is None:
            raise InputError("masks are drawn by SAM, which is left out; name one, for example grounder.sam=vit_b")
        masks = np.zeros((len(frames), len(objects), *frames.shape[1:3]), bool)
        prompt = self._prompt(tuple(objects))
        for i in range(0, len(frames) if prompt.text else 0, self.batch_frames):
            pictures = self.to_device([frames[i:i + self.batch_frames]])
            detections = self.detector.detect(pictures, prompt)
            for t, (logits, _) in enumerate(self.segmenter.segment(pictures, detections.boxes), i):
                masks[t] = (logits > 0).cpu().numpy()
        masks[:, _without_tokens(prompt)] = False
        return masks

    def _batches(self, requests: Sequence[np.ndarray]) -> Iterator[list[tuple[int, np.ndarray]]]:
        """Frames of each request ⇒ batches of (number of the request, some of its frames)."""
        batch: list[tuple[int, np.ndarray]] = []
        room = self.batch_frames
        for i, frames in enumerate(requests):
            while len(frames):
                batch.append((i, frames[:room]))
                frames, room = frames[room:], room - len(batch[-1][1])
                if not room:
                    yield batch
                    batch, room = [], self.batch_frames
        if batch:
            yield batch

    def _look(self, pictures: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
        """⇒ (B, K, 5) probability and box; with SAM (B, K, 6 + 256), the mask's area and embedding as well."""
        detections = self.detector.detect(pictures, prompts)
        parts = [detections.probs[..., None], detections.boxes]
        if self.segmenter is not None:
            areas, pooled = self.segmenter.measure(pictures, detections.boxes)
            parts += [areas[..., None], pooled]
        return torch.cat(parts, dim=-1)

    def _grounding(self, rows: list[np.ndarray], prompt: Prompt, frames: int) -> Grounding:
        """Rows of :meth:`_look` of a request ⇒ its Grounding; zeros where the network read no text of it."""
        objects = len(prompt.spans)
        width = 5 if self.segmenter is None else 6 + MASK_DIM
        found = np.concatenate(rows) if rows else np.zeros((frames, objects, width), np.float32)
        probs, boxes = found[..., 0].copy(), found[..., 1:5].copy()
        if self.segmenter is None:
            return Grounding(probs, boxes, areas_inside(boxes))
        found[:, _without_tokens(prompt), 5:] = 0.0
        return Grounding(probs, boxes, found[..., 5].copy(), found[..., 6:].copy())

    def to_device(self, frames: Sequence[np.ndarray]) -> torch.Tensor:
        """Frames (b, H, W, 3) uint8 of several clips ⇒ (B, 3, H, W) uint8 on the device."""
        return self.detector.transfer.send(torch.from_numpy(np.concatenate(frames))).permute(0, 3, 1, 2)

    def _build_prompt(self, objects: tuple[str, ...]) -> Prompt:
        prompt = self.detector.prompt(list(objects))
        for word, span in zip(objects, prompt.spans):
            if not span:
                _log.warning("nothing of the object %r can be read by Grounding DINO; it gets probability 0", word)
        return prompt


def _without_tokens(prompt: Prompt) -> list[int]:
    """Indices of the objects that have no token in the prompt."""
    return [k for k, span in enumerate(prompt.spans) if not span]
