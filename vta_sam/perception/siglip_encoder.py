"""SigLIP 2: an embedding of each picture, object word and token of the caption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..checkpoints.registry import require
from ..media.picture_reader import BilinearSqueeze
from ..runtime.errors import InputError
from .clip_encoder import TwoTowerEncoder, load_network, load_processor, load_tokenizer

_BILINEAR = 2  # PIL's number, in preprocessor_config.json


class SigLIPEncoder(TwoTowerEncoder):
    """SigLIP 2's embeddings (Tschannen et al. 2025, arXiv 2502.14786), of its versions with a fixed picture size.

    The embedding of a picture is that of the whole picture, squeezed to a square as in SigLIP's own processor. The
    embedding of a word is the text embedding of ``template`` with the word in it, in lower case, padded to 64 tokens:
    SigLIP 2 was trained so, and its attention reads the padding. The tokens of a caption are the last states of the
    text model at the caption's own tokens, in the same way. No vector is scaled to norm 1.

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

    kind = "siglip2"
    title = "SigLIP"

    def __init__(self, name: str = "siglip2-base-patch16-224", weights: str | Path | None = None,
                 template: str = "this is a photo of {}.", batch_frames: int = 64, device: str = "auto",
                 precision: str = "auto") -> None:
        super().__init__(template, batch_frames, device, precision)
        source = require(name, weights)
        self.model = load_network("SiglipModel", self.title, source, self.device, self.held)
        self.tokenizer = load_tokenizer(self.title, source)
        vision, text = self.model.config.vision_config, self.model.config.text_config
        self.fit = BilinearSqueeze(vision.image_size, vision.image_size)
        self.frame_dim, self.object_dim = vision.hidden_size, text.projection_size
        self.caption_dim, self.max_tokens = text.hidden_size, text.max_position_embeddings
        processor = load_processor("SiglipImageProcessor", source)
        if processor.resample != _BILINEAR:
            raise InputError(f"{source}: preprocessor_config.json has resample {processor.resample}, expected "
                             f"{_BILINEAR}, the bilinear scaler of SigLIP 2")
        self.normalise_by(processor.image_mean, processor.image_std)
        self.name_weights(name, source)

    def _ids(self, text: str) -> list[int]:
        return super()._ids(text.lower())

    def _tokens(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """Ids alone: without a mask the padding is read, as in training."""
        tokens: Any = self.tokenizer([text.lower() for text in texts], padding="max_length", truncation=True,
                                     max_length=self.max_tokens, return_tensors="pt")
        return {"input_ids": tokens["input_ids"].to(self.device)}
