"""Grounding DINO now and then, and SAM 2, which carries the masks from frame to frame between detections.

SAM 2's network is transformers' Sam2VideoModel (Ravi et al. 2024, arXiv 2408.00714). Frames go through its image
encoder in batches; its memory of each object goes on frame by frame, and ends with the next detection.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..checkpoints.registry import digest, require
from ..media.picture_reader import Within
from ..runtime.distributed import choose_format, mixed_precision
from ..runtime.errors import InputError
from .base import EXECUTION, Grounder, Grounding
from .clip_encoder import load_network
from .grounded_sam import GroundedSAM

_BOX = (2, 3)  # labels of a box's corners among the points of SAM 2's prompts


class GroundedSAM2(GroundedSAM):
    """Grounding DINO every ``detect_every`` frames of a clip, and SAM 2's masks in all of them, for any word.

    In a frame with a detection, probs and boxes are Grounding DINO's, as of :class:`GroundedSAM`, and SAM 2 draws a
    mask in each box. In the frames after it SAM 2 carries the masks on. There boxes are the extents of the masks, and
    probs are the detection's, times SAM 2's probability that the object is in the frame. They are not interpolated,
    since a long video comes chunk by chunk, so that the next detection isn't known; and SAM 2 sees when an object
    leaves. An object that comes between two detections is seen at the second. Where a mask is empty, the box stays
    where it was. areas are the areas of the masks. mask_embedding is SAM 2's image embedding averaged over each mask.

    Each detection begins SAM 2's memory anew, so that an error lasts ``detect_every`` frames at most, and so does the
    memory: a video's length costs none. SAM 2's memory holds one object at a time, and time grows with their number.

    Args:
        detector: "swint_ogc" or "swinb_cogcoor", the two released versions of Grounding DINO.
        sam2: entry of the table of released weights, a folder in transformers' layout.
        detect_every: frames from one detection to the next, by the frame rate of extraction.
        weights: folder with the released files; None ⇒ $VTA_SAM_WEIGHTS, or "weights".
        short_side: pixels of the short side of Grounding DINO's input.
        long_side: pixels of its long side at most.
        batch_frames: pictures in one batch of Grounding DINO.
        sam_batch_frames: pictures in one batch of SAM 2's image encoder.
        device: "auto", "cpu", "cuda", "cuda:1", …
        precision: "auto" (fp16 on a GPU), "fp32", "fp16", "bf16".

    Raises:
        InputError: a file is missing; the message names it and how to get it.
    """

    kind = "grounded_sam2"
    execution = (*EXECUTION, "sam_batch_frames")

    def __init__(self, detector: str = "swint_ogc", sam2: str = "sam2.1-hiera-large", detect_every: int = 8,
                 weights: str | Path | None = None, short_side: int = 800, long_side: int = 1333,
                 batch_frames: int = 8, sam_batch_frames: int = 4, device: str = "auto", precision: str = "auto",
                 ) -> None:
        if detect_every < 1:
            raise InputError(f"detect_every={detect_every}: expected at least 1 frame")
        source = require(sam2, weights)
        super().__init__(detector, None, weights, short_side, long_side, batch_frames, sam_batch_frames, device,
                         precision)
        self.network = load_network("Sam2VideoModel", "SAM 2", source, self.device)
        self.side: int = self.network.config.image_size
        self.fit = Within(max(short_side, self.side), max(long_side, self.side))
        self.detect_every, self._sam_batch_frames = detect_every, sam_batch_frames
        self.autocast = mixed_precision(choose_format(precision, self.device), self.device)
        self.fingerprint = (f"grounded_sam2{self.fingerprint.removeprefix('grounded_sam')}-{sam2}-"
                            f"{digest(source / 'model.safetensors')}")
        self.settings = {**self.settings, "detect_every": detect_every}

    def for_clip(self, video: str | os.PathLike, start_s: float, fps: float) -> Grounder:
        """The grounder of one clip, whose frames come chunk by chunk."""
        return _OfClip(self)

    def ground(self, frames: np.ndarray, objects: list[str]) -> Grounding:
        """All frames (T, H, W, 3) uint8 RGB of a clip, K words ⇒ Grounding."""
        return _OfClip(self).ground(frames, objects)

    def launch(self, requests: Sequence[tuple[np.ndarray, list[str]]]) -> Callable[[], list[Grounding]]:
        """Ground whole clips, one after the other, see :meth:`Grounder.launch`."""
        return Grounder.launch(self, requests)

    def masks(self, frames: np.ndarray, objects: list[str]) -> np.ndarray:
        """All frames (T, H, W, 3) uint8 RGB of a clip, K words ⇒ masks (T, K, H, W) bool."""
        return _OfClip(self).masks(frames, objects)

    @torch.inference_mode()
    def encode(self, pictures: torch.Tensor) -> Iterator[dict[str, list[torch.Tensor]]]:
        """Yields what SAM 2's image encoder says of each picture, as an inference session keeps it.

        Args:
            pictures: (B, 3, H, W) uint8, on the device.
        """
        from torchvision.transforms.v2 import InterpolationMode
        from torchvision.transforms.v2.functional import resize

        for start in range(0, len(pictures), self._sam_batch_frames):
            # to whole levels, as in transformers' processor
            pixels = resize(pictures[start:start + self._sam_batch_frames], [self.side, self.side],
                            InterpolationMode.BILINEAR, antialias=True).float() / 255
            with self.autocast:
                features, positions, *_ = self.network.get_image_features(
                    (pixels - self.detector.mean) / self.detector.std)
            for i in range(len(pixels)):
                yield {"vision_feats": [level[:, i:i + 1].float() for level in features],
                       "vision_pos_embeds": [level[:, :1].float() for level in positions]}


@dataclass
class _Seen:
    """A frame's K objects, on the device: probs (K,), boxes (K, 4), masks (K, H, W) bool, pooled (K, C)."""

    probs: torch.Tensor
    boxes: torch.Tensor
    masks: torch.Tensor
    pooled: torch.Tensor


class _OfClip(Grounder):
    """The grounder of one clip: it remembers the last frames.

    Args:
        whole: the grounder of all clips.
    """

    kind = GroundedSAM2.kind
    draws_masks = True

    def __init__(self, whole: GroundedSAM2) -> None:
        self.whole, self.fingerprint, self.fit, self.settings = whole, whole.fingerprint, whole.fit, whole.settings
        self.known_words = whole.known_words
        self._tracks: dict[tuple[str, ...], _Track] = {}

    def check_words(self, objects: Sequence[str]) -> None:
        self.whole.check_words(objects)

    def ground(self, frames: np.ndarray, objects: list[str]) -> Grounding:
        """The clip's next frames (T, H, W, 3), K words ⇒ Grounding."""
        if not objects:
            return Grounding.empty(len(frames))
        return self._track(objects).ground(frames)

    def masks(self, frames: np.ndarray, objects: list[str]) -> np.ndarray:
        """The clip's next frames (T, H, W, 3), K words ⇒ masks (T, K, H, W) bool."""
        if not objects:
            return np.zeros((len(frames), 0, *frames.shape[1:3]), bool)
        seen = [seen.masks.cpu().numpy() for seen in self._track(objects).follow(frames)]
        return np.stack(seen) if seen else np.zeros((0, len(objects), *frames.shape[1:3]), bool)

    def _track(self, objects: list[str]) -> "_Track":
        words = tuple(objects)
        if words not in self._tracks:
            self._tracks[words] = _Track(self.whole, words)
        return self._tracks[words]


class _Track:
    """The objects of one list of words, followed through a clip.

    Args:
        whole: the grounder, with its networks.
        words: of the objects.
    """

    def __init__(self, whole: GroundedSAM2, words: tuple[str, ...]) -> None:
        self.whole, self.prompt = whole, whole._prompt(words)
        self.present = [k for k, span in enumerate(self.prompt.spans) if span]  # objects with tokens
        self.frames = 0  # of the clip, so far
        self.session: Any = None
        self.boxes: torch.Tensor | None = None  # the last (K, 4)
        self._last: tuple[np.ndarray, Grounding] | None = None
        self._ready: list[tuple[torch.Tensor, ...]] = []  # of frames that were seen before memory ran out

    def ground(self, frames: np.ndarray) -> Grounding:
        """The clip's next frames ⇒ Grounding. The same array once more is the same frames, for a second prompt."""
        if self._last is not None and _is_same(self._last[0], frames):
            return self._last[1]
        for seen in self.follow(frames[len(self._ready):]):
            self._ready.append((seen.probs, seen.boxes, seen.masks.float().mean((1, 2)), seen.pooled))
        found, self._ready = self._ready[:len(frames)], self._ready[len(frames):]
        if not found:
            count = len(self.prompt.spans)
            return Grounding.zeros(0, count)
        probs, boxes, areas, pooled = (torch.stack(values).float().cpu().numpy() for values in zip(*found))
        grounding = Grounding(probs, boxes, areas, pooled)
        self._last = frames, grounding
        return grounding

    def follow(self, frames: np.ndarray) -> Iterator[_Seen]:
        """Yields the results of each of the clip's next frames (T, H, W, 3)."""
        whole, room = self.whole, self.whole.batch_frames
        for start in range(0, len(frames), room):
            pictures = whole.to_device([frames[start:start + room]])
            first = -self.frames % whole.detect_every
            looked_at = pictures[first::whole.detect_every] if self.prompt.text else pictures[:0]
            detections = whole.detector.detect(looked_at, self.prompt) if len(looked_at) else None
            for i, features in enumerate(whole.encode(pictures)):
                if detections is not None and i >= first and (i - first) % whole.detect_every == 0:
                    at = (i - first) // whole.detect_every
                    self._begin(detections.probs[at], detections.boxes[at])
                seen = self._step(features, tuple(pictures.shape[-2:]))
                self.frames += 1
                yield seen

    def _begin(self, probs: torch.Tensor, boxes: torch.Tensor) -> None:
        """A session of SAM 2 that begins with boxes, as Sam2VideoProcessor puts them."""
        from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

        device = self.whole.device
        self.session = Sam2VideoInferenceSession(inference_device=device, inference_state_device=device,
                                                 video_storage_device=device, dtype=torch.float32)
        self.at, self.probs, self.boxes = 0, probs.to(device), boxes.to(device)
        corners = torch.cat([self.boxes[:, :2] - self.boxes[:, 2:] / 2, self.boxes[:, :2] + self.boxes[:, 2:] / 2], -1)
        corners = corners * self.whole.side
        for k in self.present:
            place = self.session.obj_id_to_idx(k)
            self.session.add_point_inputs(place, 0, {
                "point_coords": corners[k].view(1, 1, 2, 2), "point_labels": torch.tensor([[_BOX]], dtype=torch.int32)})
        self.session.obj_with_new_inputs = list(self.present)

    @torch.inference_mode()
    def _step(self, features: dict[str, list[torch.Tensor]], size: tuple[int, ...]) -> _Seen:
        """The next frame of the session, size (height, width)."""
        count, embedding = len(self.prompt.spans), features["vision_feats"][-1]
        device, channels = embedding.device, embedding.shape[-1]
        masks = torch.zeros((count, *size), dtype=torch.bool, device=device)
        if not self.present:
            probs, boxes, pooled = (torch.zeros(shape, device=device) for shape in ((count,), (count, 4),
                                                                                    (count, channels)))
            return _Seen(probs, boxes, masks, pooled)
        logits, there = self._advance(features)
        masks[self.present] = F.interpolate(logits, size, mode="bilinear", align_corners=False)[:, 0] > 0
        assert self.boxes is not None
        probs, boxes = self.probs, self.boxes
        if self.at > 0:  # no frame with a detection
            probs = probs.clone()
            probs[self.present] *= there
            boxes = torch.where(masks.any(-1).any(-1)[:, None], _extents(masks), boxes)
        height, width = self.whole.network.backbone_feature_sizes[-1]
        shares = F.adaptive_avg_pool2d(masks[:, None].float(), (height, width)).flatten(1)  # (K, cells)
        pooled = shares @ embedding[:, 0] / shares.sum(1, keepdim=True).clamp_min(1e-6)
        self.at, self.boxes = self.at + 1, boxes  # at last: where memory runs out, the frame comes again
        return _Seen(probs, boxes, masks, pooled)

    def _advance(self, features: dict[str, list[torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
        """The present objects in the next frame: mask logits (n, 1, h, w), and probabilities (n,) that they are there.

        What no later frame reads is forgotten.
        """
        session, network = self.session, self.whole.network
        session.cache.cache_vision_features(self.at, features)
        with self.whole.autocast:
            # the features are there, so that the picture itself is not read
            logits = network(session, frame_idx=self.at, frame=torch.zeros(1, 3, 1, 1)).pred_masks.float()
        kind = "cond_frame_outputs" if self.at == 0 else "non_cond_frame_outputs"
        outputs = [session.output_dict_per_obj[place] for place in range(len(self.present))]
        scores = torch.stack([own[kind][self.at]["object_score_logits"].float().view(()) for own in outputs])
        session.processed_frames.clear()
        old = self.at - max(network.config.num_maskmem, network.config.max_object_pointers_in_encoder)
        for place, own in enumerate(outputs):
            # kept in bf16, which autocast to fp16 refuses to join with the rest
            own[kind][self.at]["maskmem_features"] = own[kind][self.at]["maskmem_features"].float()
            own["non_cond_frame_outputs"].pop(old, None)
            session.frames_tracked_per_obj[place].pop(old, None)
        return logits, scores.sigmoid()


def _extents(masks: torch.Tensor) -> torch.Tensor:
    """Masks (K, H, W) bool ⇒ the smallest boxes (K, 4) cx cy w h around them, as fractions; (½ ½ 1 1) of none."""
    found = []
    for axis in (1, 2):  # over rows: columns that the mask reaches; over columns: rows
        reached = masks.any(axis).float()
        cells = reached.shape[1]
        found.append((reached.argmax(1) / cells, 1 - reached.flip(1).argmax(1) / cells))
    (left, right), (top, bottom) = found
    return torch.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], -1)


def _is_same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and one.__array_interface__["data"] == other.__array_interface__["data"]
