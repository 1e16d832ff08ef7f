"""T5's encoder: a vector per token of the caption, and nothing of the pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoints.checkpoint_file import digest
from ..media.picture_reader import Squeeze
from ..runtime.distributed import choose_device, choose_format, mixed_precision
from ..runtime.errors import InputError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


class T5Encoder:
    """An :class:`~vta_sam.perception.base.Encoder` of captions alone, as Tango reads them with FLAN-T5 (2210.11416).

    A caption's tokens are the encoder's last states, the end token's among them. Pictures and words have no vectors:
    frame_dim and object_dim are 0.

    Args: folder, in transformers' layout (config.json, model.safetensors, and the tokenizer's files, without which the
    model is whole and captions can't be read); device, precision: as in
    :class:`~vta_sam.perception.grounded_sam.GroundedSAM`.

    Raises InputError naming the file that is missing or can't be read.
    """

    frame_dim = object_dim = 0
    kind = "t5"
    fit = Squeeze(8, 8)  # pictures are not looked at

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
        """⇒ (T, 0)."""
        return np.zeros((len(frames), 0), np.float32)

    def encode_objects(self, objects: list[str]) -> np.ndarray:
        """⇒ (K, 0)."""
        return np.zeros((len(objects), 0), np.float32)

    def encode_caption(self, caption: str) -> np.ndarray:
        """A caption ⇒ (L, caption_dim) float32, L ≤ 512: what is longer is cut."""
        tokens = self.tokenizer(caption, truncation=True, max_length=512, return_tensors="pt")
        return self.states(tokens["input_ids"], tokens["attention_mask"])[0].cpu().numpy()

    @torch.inference_mode()
    def states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids (B, L) and their mask ⇒ (B, L, caption_dim) float32."""
        with self.autocast:
            found = self.model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device))
        return found.last_hidden_state.float()

    @property
    def tokenizer(self) -> Any:
        """Raises InputError where the folder has none."""
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
    """⇒ T5EncoderModel, from safetensors alone, without a look at the network."""
    from safetensors import SafetensorError
    from transformers import T5EncoderModel

    try:
        model, told = T5EncoderModel.from_pretrained(folder, local_files_only=True, use_safetensors=True,
                                                     output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder} can't be read as a T5 encoder ({str(error).strip().splitlines()[0]})") from error
    if told["missing_keys"] or told["unexpected_keys"] or told["mismatched_keys"]:
        raise InputError(f"{folder}: model.safetensors doesn't fit config.json")
    return model.float()
