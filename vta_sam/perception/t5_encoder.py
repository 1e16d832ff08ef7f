"""T5's encoder: an embedding of each token of the caption; pictures are not read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoints.registry import digest
from ..media.picture_reader import Squeeze
from ..runtime.distributed import choose_device, choose_format, mixed_precision
from ..runtime.errors import InputError
from .base import Encoder, warn_of_cut

MAX_TOKENS = 512  # of a caption, in FLAN-T5's training and in Tango
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


class T5Encoder(Encoder):
    """Embeddings of captions alone, as in Tango with FLAN-T5 (arXiv 2210.11416).

    The tokens of a caption are the encoder's last states, the end token included. Pictures and words have no embedding:
    frame_dim and object_dim are 0.

    Args:
        folder: in transformers' layout: config.json, model.safetensors and the tokenizer's files. Without the
            tokenizer the model is built, but captions can't be encoded.
        device: "auto", "cpu", "cuda", "cuda:1", …
        precision: "auto" (bf16 on a GPU), "fp32", "bf16"; fp16 becomes bf16.

    Raises:
        InputError: a file is missing or can't be read; the message names it.
    """

    frame_dim = object_dim = 0
    kind = "t5"
    fit = Squeeze(8, 8)  # the smallest pictures, since they are not read

    def __init__(self, folder: str | Path, device: str = "auto", precision: str = "auto") -> None:
        self.folder, self.device = Path(folder), choose_device(device)
        self.model = _load(self.folder).to(self.device).eval()
        number_format = choose_format(precision, self.device)
        if number_format == "fp16":
            number_format = "bf16"  # T5's activations leave fp16's range
        self.autocast = mixed_precision(number_format, self.device)
        self.caption_dim = self.model.config.d_model
        self.fingerprint = f"t5-{digest(self.folder / 'model.safetensors')}"
        self.settings = {"precision": number_format}
        self._tokenizer: Any = None

    def encode_frames(self, frames: np.ndarray) -> np.ndarray:
        """Frames ⇒ (T, 0): no embedding."""
        return np.zeros((len(frames), 0), np.float32)

    def encode_objects(self, objects: list[str]) -> np.ndarray:
        """Words ⇒ (K, 0): no embedding."""
        return np.zeros((len(objects), 0), np.float32)

    def encode_caption(self, caption: str) -> np.ndarray:
        """A caption ⇒ (L, caption_dim) float32, L ≤ 512. Longer captions are cut, as in Tango, with a warning."""
        warn_of_cut(caption, len(self.tokenizer(caption, verbose=False)["input_ids"]), MAX_TOKENS)
        tokens = self.tokenizer(caption, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        return self.states(tokens["input_ids"], tokens["attention_mask"])[0].cpu().numpy()

    @torch.inference_mode()
    def states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids (B, L) and their mask ⇒ (B, L, caption_dim) float32."""
        with self.autocast:
            output = self.model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device))
        return output.last_hidden_state.float()

    @property
    def tokenizer(self) -> Any:
        """The folder's tokenizer, loaded once. Raises InputError where the folder has none."""
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            missing = [name for name in TOKENIZER_FILES[:2] if not (self.folder / name).is_file()]
            if missing:
                raise InputError(f"{self.folder} has no {missing[0]}, so captions can't be read; put the tokenizer of "
                                 "the text encoder there (for FLAN-T5 large: https://huggingface.co/google/"
                                 "flan-t5-large)")
            try:
                self._tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
            except Exception as error:  # foreign files make transformers raise almost anything
                raise InputError(f"{self.folder}: its tokenizer can't be read ({str(error).splitlines()[0]})"
                                 ) from error
        return self._tokenizer


def _load(folder: Path) -> Any:
    """T5EncoderModel in float32, from local safetensors alone."""
    from safetensors import SafetensorError
    from transformers import T5EncoderModel

    try:
        model, report = T5EncoderModel.from_pretrained(folder, local_files_only=True, use_safetensors=True,
                                                       output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder} can't be read as a T5 encoder ({str(error).strip().splitlines()[0]})") from error
    if report["missing_keys"] or report["unexpected_keys"] or report["mismatched_keys"]:
        raise InputError(f"{folder}: model.safetensors doesn't fit config.json")
    return model.float()
