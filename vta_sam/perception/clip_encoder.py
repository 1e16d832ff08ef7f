"""CLIP and SigLIP 2: an embedding of each picture, object word and token of the caption. T5: the tokens of the caption
alone.

What they share with other networks of transformers, such as OWLv2, is here as well: the base class of encoders of two
towers, and the reading of a released folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from ..checkpoints.registry import digest, require
from ..media.picture_reader import BilinearSqueeze, CentreCrop, Squeeze
from ..runtime.distributed import FORMATS, choose_device, choose_format, mixed_precision
from ..runtime.errors import InputError
from .base import Encoder, warn_of_cut
from .inference import Transfer, hold_weights

T5_TOKENS = 512  # of a caption, in FLAN-T5's training and in Tango
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


class TwoTowerEncoder(Encoder):
    """Base of encoders with a picture tower and a text tower of transformers.

    A subclass sets ``model``, ``tokenizer``, ``max_tokens``, ``fit`` and the lengths of embeddings, and calls
    :meth:`normalise_by` and :meth:`name_weights`.

    Args:
        template: sentence with one {} for an object's word.
        batch_frames: pictures in one batch.
        device: "auto", "cpu", "cuda", "cuda:1", …
        precision: "auto" (fp16 on a GPU), "fp32", "fp16", "bf16".

    Attributes:
        title: of the network, for messages.
    """

    title: ClassVar[str]
    batch_frames: int
    model: Any
    tokenizer: Any
    max_tokens: int

    def __init__(self, template: str, batch_frames: int, device: str, precision: str) -> None:
        if template.count("{}") != 1 or batch_frames < 1:
            raise InputError(f"the encoder needs one {{}} in its template and batch_frames >= 1, got {template!r} and "
                             f"{batch_frames}")
        self.device = choose_device(device)
        number_format = choose_format(precision, self.device)
        self.autocast, self.transfer = mixed_precision(number_format, self.device), Transfer(self.device)
        self.held = None if number_format == "fp32" else FORMATS[number_format]
        self.template, self.batch_frames = template, batch_frames
        self.settings: dict[str, Any] = {"template": template, "precision": number_format}
        self._word = lru_cache(maxsize=4096)(self._encode_word)
        self._prepared: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = {}, {}  # of words, and of captions

    def normalise_by(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the mean and the standard deviation of each channel in the network's training."""
        self.mean = torch.tensor(list(np.ravel(mean)), device=self.device).view(3, 1, 1)
        self.std = torch.tensor(list(np.ravel(std)), device=self.device).view(3, 1, 1)

    def name_weights(self, name: str, folder: Path) -> None:
        """Set the fingerprint of the weights in a folder."""
        self.fingerprint = f"{name}-{digest(folder / 'model.safetensors')}"

    def check_words(self, objects: Sequence[str]) -> None:
        """Raise InputError where a word has more tokens, in its template, than the network reads."""
        for word in objects:
            check_length(word, self.template, len(self._ids(self.template.format(word))), self.max_tokens, self.title)

    def encode_frames(self, frames: np.ndarray) -> np.ndarray:
        """(T, 224, 224, 3) uint8 RGB ⇒ (T, frame_dim) float32."""
        parts = [self.launch(frames[start:start + self.batch_frames])
                 for start in range(0, len(frames), self.batch_frames)]
        return np.concatenate([fetch() for fetch in parts] or [np.zeros((0, self.frame_dim), np.float32)])

    def launch(self, frames: np.ndarray) -> Callable[[], np.ndarray]:
        """Begin to encode one batch of frames, see :meth:`Encoder.launch`."""
        side = self.model.config.vision_config.image_size
        if frames.shape[1:] != (side, side, 3) or frames.dtype != np.uint8:
            raise InputError(f"{self.title} takes frames of shape (T, {side}, {side}, 3) uint8, got {frames.shape} "
                             f"{frames.dtype}; read the video at its fit")
        pictures = self.transfer.send(torch.from_numpy(np.ascontiguousarray(frames))).permute(0, 3, 1, 2)
        fetch = self.transfer.fetch(self.embed(pictures.float() / 255))
        return lambda: fetch().numpy()

    @torch.inference_mode()
    def embed(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures (T, 3, 224, 224) float in [0, 1], on the encoder's device ⇒ (T, frame_dim) float32."""
        with self.autocast:
            return self.model.get_image_features(pixel_values=(pictures - self.mean) / self.std).float()

    def encode_objects(self, objects: list[str]) -> np.ndarray:
        """K words ⇒ (K, object_dim) float32."""
        if not objects:
            return np.zeros((0, self.object_dim), np.float32)
        prepared = self._prepared[0]
        return np.stack([prepared[word] if word in prepared else self._word(word) for word in objects])

    def encode_caption(self, caption: str) -> np.ndarray:
        """A caption ⇒ (L, caption_dim) float32, L of 1 to ``max_tokens``. Longer ones are cut, with a warning."""
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
        """Texts ⇒ (n, object_dim)."""
        with self.autocast:
            return self.model.get_text_features(**self._tokens(texts)).float().cpu().numpy()

    @torch.inference_mode()
    def _states(self, texts: list[str]) -> list[np.ndarray]:
        """The states (L, caption_dim) of each text's own tokens. Padding stands after them."""
        tokens = self._tokens(texts)
        with self.autocast:
            states = self.model.text_model(**tokens).last_hidden_state.float().cpu().numpy()
        return [own[:max(1, min(len(self._ids(text)), self.max_tokens))].copy() for text, own in zip(texts, states)]

    def _ids(self, text: str) -> list[int]:
        """Of all of the text's tokens, start and end included."""
        return list(self.tokenizer(text, verbose=False)["input_ids"])

    def _tokens(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """What the text tower takes. A mask keeps padding from being read."""
        tokens = self.tokenizer(texts, truncation=True, max_length=self.max_tokens, padding=True, return_tensors="pt")
        return {name: tokens[name].to(self.device) for name in ("input_ids", "attention_mask")}


class CLIPEncoder(TwoTowerEncoder):
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
    title = "CLIP"
    fit: CentreCrop

    def __init__(self, name: str = "clip-vit-large-patch14", weights: str | Path | None = None,
                 template: str = "a photo of a {}", batch_frames: int = 64, device: str = "auto",
                 precision: str = "auto", normalise: bool = True, folder: str | Path | None = None) -> None:
        super().__init__(template, batch_frames, device, precision)
        source = require(name, weights) if folder is None else Path(folder)
        self.model = load_network("CLIPModel", self.title, source, self.device, self.held)
        self.tokenizer = load_tokenizer(self.title, source)
        vision, text = self.model.config.vision_config, self.model.config.text_config
        self.fit = CentreCrop(vision.image_size)
        self.frame_dim = self.object_dim = self.model.config.projection_dim
        self.caption_dim, self.max_tokens = text.hidden_size, text.max_position_embeddings
        if normalise:
            processor = load_processor("CLIPImageProcessor", source)
            self.normalise_by(processor.image_mean, processor.image_std)
        else:
            self.normalise_by([0.0] * 3, [1.0] * 3)
            self.settings["normalise"] = False
        self.name_weights(name if folder is None else source.name, source)


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
        self.model = load_network("T5EncoderModel", "T5", self.folder, self.device)
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
        warn_of_cut(caption, len(self.tokenizer(caption, verbose=False)["input_ids"]), T5_TOKENS)
        tokens = self.tokenizer(caption, truncation=True, max_length=T5_TOKENS, return_tensors="pt")
        return self.states(tokens["input_ids"], tokens["attention_mask"])[0].cpu().numpy()

    @torch.inference_mode()
    def states(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Token ids (B, L) and their mask ⇒ (B, L, caption_dim) float32."""
        with self.autocast:
            output = self.model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device))
        return output.last_hidden_state.float()

    @property
    def tokenizer(self) -> Any:
        """The folder's tokenizer, loaded once. Raises InputError where the folder has none."""
        if self._tokenizer is None:
            missing = [name for name in TOKENIZER_FILES[:2] if not (self.folder / name).is_file()]
            if missing:
                raise InputError(f"{self.folder} has no {missing[0]}, so captions can't be read; put the tokenizer of "
                                 "the text encoder there (for FLAN-T5 large: https://huggingface.co/google/"
                                 "flan-t5-large)")
            self._tokenizer = load_tokenizer("T5", self.folder)
        return self._tokenizer


def check_length(word: str, template: str, tokens: int, most: int, title: str) -> None:
    """Raise InputError where a word in its template has more tokens than the network reads.

    Args:
        word: of an object.
        template: sentence with one {} for it.
        tokens: of the sentence.
        most: that the network reads.
        title: of the network.
    """
    if tokens > most:
        shown = word if len(word) <= 40 else f"{word[:40]}…"
        raise InputError(f"the object {shown} makes {tokens} tokens in {template!r}, and {title} reads at most {most}; "
                         "leave it out, or name it in fewer words")


def load_network(kind: str, title: str, folder: Path, device: torch.device, held: torch.dtype | None = None) -> Any:
    """A network of transformers in fp32 and eval mode, from local safetensors alone.

    Args:
        kind: name of its class in transformers.
        title: of the model, for messages.
        folder: in transformers' layout.
        device: to put it on.
        held: the type that autocast would cast its weights to, see :func:`.inference.hold_weights`; None: none.

    Raises:
        InputError: the folder holds no such network, its weights don't fit its config, or transformers is too old.
    """
    import transformers
    from safetensors import SafetensorError

    if not hasattr(transformers, kind):
        raise InputError(f"transformers {transformers.__version__} is installed, which has no {kind}; install a newer "
                         "one, below 5")
    try:
        model, report = getattr(transformers, kind).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _unreadable(title, folder, error) from error
    # older releases store the position ids, which transformers computes now
    unknown = [key for key in report["unexpected_keys"] if not key.endswith("position_ids")]
    if report["missing_keys"] or unknown or report["mismatched_keys"]:
        raise InputError(f"{folder}: model.safetensors doesn't fit config.json (missing {report['missing_keys'][:3]}, "
                         f"unknown {unknown[:3]}, of another shape {report['mismatched_keys'][:3]})")
    model = model.float().to(device).eval()
    hold_weights(model, held)
    return model


def load_tokenizer(title: str, folder: Path) -> Any:
    """The tokenizer in a folder of transformers' layout. Raises InputError where there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # foreign files make transformers raise almost anything
        raise _unreadable(title, folder, error) from error


def load_processor(kind: str, folder: Path) -> Any:
    """The settings of pictures in a folder of transformers' layout. Raises InputError where there are none.

    Args:
        kind: name of the processor's class in transformers.
        folder: that holds preprocessor_config.json.
    """
    import transformers

    try:
        return getattr(transformers, kind).from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} lacks a readable preprocessor_config.json "
                         f"({str(error).strip().splitlines()[0]})") from error


def _unreadable(title: str, folder: Path, error: Exception) -> InputError:
    return InputError(f"{folder} can't be read as a {title} model ({str(error).strip().splitlines()[0]}); "
                      "`python data_prep/weights.py check` compares it with what was released")
