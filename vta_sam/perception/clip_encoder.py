"""CLIP: an embedding of each picture, object word and token of the caption."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoints.registry import digest, require
from ..media.picture_reader import CentreCrop
from ..runtime.distributed import choose_device, choose_format, mixed_precision
from ..runtime.errors import InputError
from .base import Encoder, warn_of_cut


class CLIPEncoder(Encoder):
    """CLIP's projected embeddings (Radford et al. 2021, arXiv 2103.00020).

    The embedding of a picture is CLIP's image embedding (768 for ViT-L/14) of its middle square, normalised by CLIP's
    own mean and standard deviation. The embedding of a word is CLIP's text embedding of ``template`` with the word in
    it. The tokens of a caption are the last states of the text model, from its start token to its end token. No vector
    is scaled to norm 1.

    Args:
        name: entry of the table of released weights, a folder in transformers' layout.
        weights: folder with the released files; None ⇒ $VTA_SAM_WEIGHTS, or "weights".
        template: sentence with one {} for an object's word.
        batch_frames: pictures in one batch.
        device: "auto", "cpu", "cuda", "cuda:1", …
        precision: "auto" (fp16 on a GPU), "fp32", "fp16", "bf16".
        normalise: False: pictures in [0, 1] without CLIP's normalisation, as in VTA-LDM.
        folder: a CLIP of a model folder in the same layout, in place of ``name`` and ``weights``.

    Raises:
        InputError: a file is missing; the message names it and how to get it.
    """

    kind = "clip"
    fit: CentreCrop
    batch_frames: int

    def __init__(self, name: str = "clip-vit-large-patch14", weights: str | Path | None = None,
                 template: str = "a photo of a {}", batch_frames: int = 64, device: str = "auto",
                 precision: str = "auto", normalise: bool = True, folder: str | Path | None = None) -> None:
        if template.count("{}") != 1 or batch_frames < 1:
            raise InputError(f"the encoder needs one {{}} in its template and batch_frames >= 1, got {template!r} and "
                             f"{batch_frames}")
        source = require(name, weights) if folder is None else Path(folder)
        self.device = choose_device(device)
        self.model, self.tokenizer = _load(source, self.device)
        number_format = choose_format(precision, self.device)
        self.autocast = mixed_precision(number_format, self.device)
        self.template, self.batch_frames = template, batch_frames
        vision, text = self.model.config.vision_config, self.model.config.text_config
        self.fit = CentreCrop(vision.image_size)
        self.frame_dim = self.object_dim = self.model.config.projection_dim
        self.caption_dim, self.max_tokens = text.hidden_size, text.max_position_embeddings
        mean, std = _normalisation(source) if normalise else ([0.0] * 3, [1.0] * 3)
        self.mean = torch.tensor(mean, device=self.device).view(3, 1, 1)
        self.std = torch.tensor(std, device=self.device).view(3, 1, 1)
        self.fingerprint = f"{name if folder is None else source.name}-{digest(source / 'model.safetensors')}"
        self.settings: dict[str, Any] = {"template": template, "precision": number_format}
        if not normalise:
            self.settings["normalise"] = False
        self._word = lru_cache(maxsize=4096)(self._encode_word)
        self._prepared: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = {}, {}  # of words, and of captions

    def check_words(self, objects: Sequence[str]) -> None:
        """Raise InputError where a word has more tokens, in its template, than CLIP reads."""
        for word in objects:
            count = len(self._ids(self.template.format(word)))
            if count > self.max_tokens:
                shown = word if len(word) <= 40 else f"{word[:40]}…"
                raise InputError(f"the object {shown} makes {count} tokens in {self.template!r}, and CLIP reads at "
                                 f"most {self.max_tokens}; leave it out, or name it in fewer words")

    def encode_frames(self, frames: np.ndarray) -> np.ndarray:
        """(T, 224, 224, 3) uint8 RGB ⇒ (T, 768) float32."""
        if frames.shape[1:] != (self.fit.side, self.fit.side, 3) or frames.dtype != np.uint8:
            raise InputError(f"CLIP takes frames of shape (T, {self.fit.side}, {self.fit.side}, 3) uint8, got "
                             f"{frames.shape} {frames.dtype}; read the video at its fit")
        parts = [self._launch(frames[start:start + self.batch_frames])
                 for start in range(0, len(frames), self.batch_frames)]
        return np.concatenate([part.cpu().numpy() for part in parts] or [np.zeros((0, self.frame_dim), np.float32)])

    def launch(self, frames: np.ndarray) -> Callable[[], np.ndarray]:
        vectors = self._launch(frames)
        return lambda: vectors.cpu().numpy()

    def _launch(self, frames: np.ndarray) -> torch.Tensor:
        pictures = torch.from_numpy(np.ascontiguousarray(frames)).to(self.device).permute(0, 3, 1, 2)
        return self.embed(pictures.float() / 255)

    @torch.inference_mode()
    def embed(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures (T, 3, 224, 224) float in [0, 1], on the encoder's device ⇒ (T, 768) float32."""
        with self.autocast:
            return self.model.get_image_features(pixel_values=(pictures - self.mean) / self.std).float()

    def encode_objects(self, objects: list[str]) -> np.ndarray:
        """K words ⇒ (K, 768) float32."""
        if not objects:
            return np.zeros((0, self.object_dim), np.float32)
        prepared = self._prepared[0]
        return np.stack([prepared[word] if word in prepared else self._word(word) for word in objects])

    def encode_caption(self, caption: str) -> np.ndarray:
        """A caption ⇒ (L, 768) float32, 2 ≤ L ≤ 77. Longer captions are cut, as in CLIP, with a warning."""
        warn_of_cut(caption, len(self._ids(caption)), self.max_tokens)
        if caption in self._prepared[1]:
            return self._prepared[1][caption]
        return self._states([caption])[0]

    def prepare_texts(self, objects: Sequence[str], captions: Sequence[str]) -> None:
        """The texts of a shard, ``batch_frames`` at once; those of the one before are forgotten, so that a text's
        vectors depend on its shard alone."""
        short = [word for word in objects if len(self._ids(self.template.format(word))) <= self.max_tokens]
        captions = list(dict.fromkeys(captions))
        words, states = dict[str, np.ndarray](), dict[str, np.ndarray]()
        for start in range(0, len(short), self.batch_frames):
            part = short[start:start + self.batch_frames]
            words.update(zip(part, self._vectors([self.template.format(word) for word in part])))
        for start in range(0, len(captions), self.batch_frames):
            part = captions[start:start + self.batch_frames]
            states.update(zip(part, self._states(part)))
        self._prepared = words, states

    def _encode_word(self, word: str) -> np.ndarray:
        self.check_words([word])
        return self._vectors([self.template.format(word)])[0]

    @torch.inference_mode()
    def _vectors(self, texts: list[str]) -> np.ndarray:
        """Texts ⇒ (n, 768)."""
        with self.autocast:
            return self.model.get_text_features(**self._tokens(texts)).float().cpu().numpy()

    @torch.inference_mode()
    def _states(self, texts: list[str]) -> list[np.ndarray]:
        """The states (L, 768) of each text's own tokens. Padding stands after them, and the model looks back alone."""
        tokens = self._tokens(texts)
        with self.autocast:
            states = self.model.text_model(**tokens).last_hidden_state.float().cpu().numpy()
        return [own[:min(len(self._ids(text)), self.max_tokens)].copy() for text, own in zip(texts, states)]

    def _ids(self, text: str) -> list[int]:
        """Of all of the text's tokens, start and end included."""
        return list(self.tokenizer(text, verbose=False)["input_ids"])

    def _tokens(self, texts: list[str]) -> dict[str, torch.Tensor]:
        tokens = self.tokenizer(texts, truncation=True, max_length=self.max_tokens, padding=True, return_tensors="pt")
        return {name: tokens[name].to(self.device) for name in ("input_ids", "attention_mask")}


def _load(folder: Path, device: torch.device) -> tuple[Any, Any]:
    """CLIPModel in eval mode and its tokenizer, from local safetensors alone."""
    from safetensors import SafetensorError
    from transformers import AutoTokenizer, CLIPModel

    try:
        model, report = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True,
                                                  output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder} can't be read as a CLIP model ({str(error).strip().splitlines()[0]}); "
                         "`python data_prep/weights.py check` compares it with what was released") from error
    # older releases store the position ids, which transformers computes now
    unknown = [key for key in report["unexpected_keys"] if not key.endswith("position_ids")]
    if report["missing_keys"] or unknown or report["mismatched_keys"]:
        raise InputError(f"{folder}: model.safetensors doesn't fit config.json (missing {report['missing_keys'][:3]}, "
                         f"unknown {unknown[:3]}, of another shape {report['mismatched_keys'][:3]})")
    return model.float().to(device).eval(), tokenizer


def _normalisation(folder: Path) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel in the model's training ⇒ two lists of 3."""
    from transformers import CLIPImageProcessor

    try:
        processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} lacks a readable preprocessor_config.json "
                         f"({str(error).strip().splitlines()[0]})") from error
    return list(np.ravel(processor.image_mean)), list(np.ravel(processor.image_std))
