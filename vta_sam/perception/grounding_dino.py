"""Grounding DINO: pictures and object words ⇒ a probability and a box of each object.

The network is groundingdino-py's own (Liu et al. 2023, arXiv 2303.05499). The words make one prompt, which goes through
the language model once. Pictures go through in batches, each with its own prompt, and the host waits for nothing.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from ..checkpoints.registry import read_state
from ..runtime.errors import InputError
from .inference import BiAttention, DeformableAttention, Texts, Transfer, hold_weights

MAX_TOKENS = 256  # Grounding DINO cuts longer prompts off (max_text_len of its configs)
CONFIGS = {"swint_ogc": "GroundingDINO_SwinT_OGC", "swinb_cogcoor": "GroundingDINO_SwinB_cfg"}
# in the released files, but not in the network: a table of the training code, and an index that BERT once stored
_NOT_OURS = frozenset(("label_enc.weight", "bert.embeddings.position_ids"))
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as in groundingdino.util.inference
_STRIDES = (8, 16, 32, 64)  # of the feature maps whose cells compete to become queries


@dataclass(frozen=True)
class Prompt:
    """The words of K objects as a prompt of Grounding DINO.

    Attributes:
        text: "car . man ."; empty where no object has a token.
        spans: for each object the indices of its tokens in the text; () for an object of punctuation alone.
        tokens: number of tokens of the text, its start and end included.
    """

    text: str
    spans: tuple[tuple[int, ...], ...]
    tokens: int

    def token_mask(self) -> torch.Tensor:
        """Mask of each object's own tokens ⇒ (K, tokens) bool."""
        mask = torch.zeros(len(self.spans), self.tokens, dtype=torch.bool)
        for k, span in enumerate(self.spans):
            mask[k, list(span)] = True
        return mask


def build_prompt(objects: Sequence[str], tokenizer: Any) -> Prompt:
    """The prompt of words.

    A token is assigned to a word by its offset in the text, never by a search for the word: in ["car", "cart", "racing
    car"] "car" has one token, and no piece of another word. Full stops and question marks separate phrases in Grounding
    DINO, so within a word they become spaces.

    Args:
        objects: the words.
        tokenizer: a fast tokenizer of transformers, which returns offsets.

    Raises:
        InputError: the words have too many tokens for one prompt.
    """
    text, offsets_of_words = "", []
    for word in objects:
        written = " ".join(re.sub(r"[.?]", " ", word.lower()).split())
        offsets_of_words.append((len(text), len(text) + len(written)))
        text += f"{written} . " if written else ""
    text = text.rstrip()
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    spans = tuple(tuple(i for i, (first, end) in enumerate(offsets) if start <= first < end <= stop)
                  for start, stop in offsets_of_words)
    if len(offsets) > MAX_TOKENS:
        beyond = [word if len(word) <= _SHOWN else f"{word[:_SHOWN]}…" for word in _beyond_limit(objects, spans)]
        raise InputError(f"the {len(objects)} objects make {len(offsets)} tokens, and Grounding DINO reads at most "
                         f"{MAX_TOKENS}; leave out {', '.join(beyond)}")
    return Prompt(text, spans, len(offsets))


_SHOWN = 40  # characters of a word in a message


def _beyond_limit(objects: Sequence[str], spans: Sequence[Sequence[int]]) -> Iterator[str]:
    """The words that don't fit in, if each before them does that can."""
    used = 2  # the prompt's start and end
    for word, span in zip(objects, spans):
        needed = len(span) + 1  # the full stop after it
        if used + needed > MAX_TOKENS:
            yield word
        else:
            used += needed


@dataclass
class Detections:
    """Detections of K objects in B pictures, float32 on the detector's device.

    Attributes:
        probs: (B, K) in [0, 1].
        boxes: (B, K, 4) cx cy w h in [0, 1].
    """

    probs: torch.Tensor
    boxes: torch.Tensor


class Detector:
    """Grounding DINO on a device.

    Args:
        model: the network, in eval mode; parts of it are replaced, and it computes the same.
        short_side: pixels of a picture's short side, less where the long side would exceed ``long_side``.
        long_side: pixels that the long side has at most.
        device: where the network computes.
        autocast: context of the number format to compute in.
        static_shapes: pictures are padded to ``short_side`` × ``long_side``, lying or upright, as the package pads the
            smaller pictures of a batch. Its transformer leaves padding out, its backbone reads it at a picture's edge.
    """

    def __init__(self, model: Any, short_side: int, long_side: int, device: torch.device,
                 autocast: contextlib.AbstractContextManager, static_shapes: bool = False) -> None:
        _replace_parts(model)
        self.model, self.device, self.autocast = model.to(device).eval(), device, autocast
        self.short_side, self.long_side, self.static_shapes = short_side, long_side, static_shapes
        self.tokenizer: Any = model.tokenizer
        self.transfer = Transfer(device)
        self.mean = torch.tensor(_MEAN, device=device).view(3, 1, 1)
        self.std = torch.tensor(_STD, device=device).view(3, 1, 1)

    def hold_weights(self, dtype: torch.dtype | None) -> None:
        """See :func:`.inference.hold_weights`. The package computes these layers of the decoder outside of autocast."""
        outside = [part for layer in self.model.transformer.decoder.layers for part in (layer.linear1, layer.linear2)]
        hold_weights(self.model, dtype, outside)

    def compile_blocks(self) -> None:
        """Have the repeated layers compiled for each shape that they meet."""
        transformer = self.model.transformer
        stages = [stage.blocks for stage in self.model.backbone[0].layers]
        for stack in (*stages, transformer.encoder.layers, transformer.encoder.text_layers,
                      transformer.encoder.fusion_layers, transformer.decoder.layers):
            for layer in stack:
                layer.compile()

    def prompt(self, objects: list[str]) -> Prompt:
        """The prompt of K words, see :func:`build_prompt`."""
        return build_prompt(objects, self.tokenizer)

    @torch.inference_mode()
    def detect(self, pictures: torch.Tensor, prompts: Prompt | Sequence[Prompt]) -> Detections:
        """Detections of each picture's objects. The host doesn't wait for them.

        probs[b, k] is the largest sigmoid of any query at any token of object k's own span. The box is the box of that
        query. An object without tokens has probability and box 0, as has one beyond a picture's own.

        Args:
            pictures: (B, 3, H, W) uint8 on the device.
            prompts: of all pictures, or one for each.
        """
        each = _for_each(pictures, prompts)
        mask = torch.zeros(len(each), max(len(prompt.spans) for prompt in each), max(p.tokens for p in each)).bool()
        for row, prompt in zip(mask, each):
            row[:len(prompt.spans), :prompt.tokens] = prompt.token_mask()
        mask = self.transfer.send(mask)
        tokens, boxes = self.queries(pictures, each)
        own = tokens[:, :, None, :].masked_fill(~mask[:, None], -1.0).amax(-1)  # (B, queries, K)
        probs, best = own.max(dim=1)
        chosen = boxes.gather(1, best[..., None].expand(-1, -1, 4))
        return Detections(probs.clamp_min(0.0), torch.where(probs[..., None] >= 0, chosen, 0.0))

    @torch.inference_mode()
    def queries(self, pictures: torch.Tensor, prompts: Prompt | Sequence[Prompt]) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures (B, 3, H, W) uint8 ⇒ probabilities (B, 900, L) of L tokens, those of the longest prompt, and boxes
        (B, 900, 4). What a shorter prompt lacks has probability 0."""
        each = _for_each(pictures, prompts)
        prepared = self._padded(self.prepare(pictures))
        with self.autocast, _quiet(), _HostAnswers():
            self.model.bert.choose([prompt.text for prompt in each], self.transfer)
            output = self.model(prepared, captions=[Texts.ANY])
        logits = output["pred_logits"][..., :max(prompt.tokens for prompt in each)]  # padded to 256 with -inf
        return logits.float().sigmoid(), output["pred_boxes"].float()

    def prepare(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures (B, 3, H, W) uint8 ⇒ (B, 3, h, w) float, scaled and normalised as by groundingdino's load_image.

        Raises:
            InputError: a picture is so narrow that it has fewer cells than the network has queries.
        """
        height, width = pictures.shape[-2:]
        size = scaled_size(height, width, self.short_side, self.long_side)
        cells = sum(-(-size[0] // stride) * -(-size[1] // stride) for stride in _STRIDES)
        if cells < self.model.num_queries:
            raise InputError(f"pictures of {width}x{height} pixels become {size[1]}x{size[0]} for Grounding DINO; it "
                             f"needs {self.model.num_queries} cells and finds {cells}; crop the video to a usual shape")
        pixels = pictures.float() / 255
        if size != tuple(pixels.shape[-2:]):
            pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
        return (pixels - self.mean) / self.std

    def _padded(self, pixels: torch.Tensor) -> _Pictures:
        """Prepared pictures ⇒ with their padding, none unless ``static_shapes``. A picture of an odd shape, which
        rounding makes larger than that, keeps its size."""
        height, width = pixels.shape[-2:]
        sides = (self.short_side, self.long_side) if width >= height else (self.long_side, self.short_side)
        down, right = (max(0, side - own) if self.static_shapes else 0 for side, own in zip(sides, (height, width)))
        mask = torch.zeros((len(pixels), height, width), dtype=torch.bool, device=pixels.device)
        return _Pictures(F.pad(pixels, (0, right, 0, down)), F.pad(mask, (0, right, 0, down), value=True))


def _for_each(pictures: torch.Tensor, prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    """One prompt for each picture."""
    return [prompts] * len(pictures) if isinstance(prompts, Prompt) else prompts


def scaled_size(height: int, width: int, short_side: int, long_side: int) -> tuple[int, int]:
    """(height, width) of a picture after Grounding DINO's own transform.

    The rule is ``get_size_with_aspect_ratio`` of groundingdino/datasets/transforms.py.

    Args:
        height: of the picture, in pixels.
        width: of the picture, in pixels.
        short_side: pixels of the scaled short side, less where the long side would exceed ``long_side``.
        long_side: pixels of the scaled long side at most.
    """
    short, long = float(min(height, width)), float(max(height, width))
    if long / short * short_side > long_side:
        short_side = max(1, round(long_side * short / long))
    if min(height, width) == short_side:
        return height, width
    if width < height:
        return int(short_side * height / width), short_side
    return short_side, int(short_side * width / height)


def _replace_parts(network: Any) -> None:
    """Put :class:`Texts`, :class:`BiAttention` and :class:`DeformableAttention` in the place of the package's parts."""
    from groundingdino.models.GroundingDINO.fuse_modules import BiMultiHeadAttention
    from groundingdino.models.GroundingDINO.ms_deform_attn import MultiScaleDeformableAttention

    network.bert = Texts(network)
    ours = {BiMultiHeadAttention: BiAttention, MultiScaleDeformableAttention: DeformableAttention}
    for part in list(network.modules()):
        for name, child in part.named_children():
            if type(child) in ours:
                setattr(part, name, ours[type(child)](child))
    network.transformer.register_forward_pre_hook(DeformableAttention.tell_sizes)


@dataclass
class _Pictures:
    """A batch of pictures of one size, in place of the package's NestedTensor."""

    tensors: torch.Tensor  # (B, 3, h, w)
    mask: torch.Tensor  # (B, h, w) bool, True in padding
    device: torch.device = torch.device("cpu")  # of the prompt's tokens, whose values the network reads


class _Levels(torch.Tensor):
    """Heights and widths of the levels (levels, 2), on the host, which iterate as numbers of Python."""

    def __iter__(self) -> Iterator[Any]:
        return iter(self.tolist())


class _HostAnswers(TorchFunctionMode):
    """A context in which the package's Transformer and TransformerDecoder ask the device for no values.

    Transformer sends the levels' sizes by ``torch.as_tensor`` and reads them in each layer: they stay on the host.
    TransformerDecoder asks each layer for NaN and infinity in order to print a line: it is told that there are none.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.as_tensor:
            return func(*args, **{**(kwargs or {}), "device": "cpu"}).as_subclass(_Levels)
        if func in (torch.Tensor.isnan, torch.Tensor.isinf):
            return torch.zeros(1, dtype=torch.bool)
        return func(*args, **(kwargs or {}))


def build_detector_network(name: str, checkpoint: Path, bert: Path) -> nn.Module:
    """Grounding DINO of an official config with the weights of an official file, in eval mode.

    Args:
        name: a key of :data:`CONFIGS`.
        checkpoint: the official file.
        bert: folder with the config and the tokenizer of BERT; the checkpoint holds BERT's weights.

    Raises:
        InputError: the file can't be read, or doesn't fit.
    """
    if name not in CONFIGS:
        raise InputError(f"detector={name} is not known; it is {' or '.join(CONFIGS)}")
    network = empty_detector_network(name, bert)
    state = read_state(checkpoint)
    inner = state.get("model", state)
    if not isinstance(inner, dict):
        raise InputError(f"{checkpoint} is no checkpoint of Grounding DINO: its 'model' holds no tensors")
    state = {key.removeprefix("module."): value for key, value in inner.items()}
    own = network.state_dict()
    wrong = [key for key in own if key not in state or own[key].shape != getattr(state[key], "shape", None)]
    wrong += [key for key in state if key not in own and key not in _NOT_OURS]
    if wrong:
        raise InputError(f"{checkpoint} doesn't fit Grounding DINO {name} with the BERT of {bert}: {len(wrong)} keys "
                         f"differ, the first is {wrong[0]!r}")
    network.load_state_dict({key: state[key] for key in own})
    return network.eval()


def empty_detector_network(name: str, bert: Path) -> nn.Module:
    """The network of an official config with its initial weights; see :func:`build_detector_network`."""
    with _quiet():
        import groundingdino
        from groundingdino.models import build_model
        from groundingdino.util.slconfig import SLConfig

    config = SLConfig.fromfile(str(Path(groundingdino.__file__).parent / "config" / f"{CONFIGS[name]}.py"))
    config.text_encoder_type = str(bert)
    config.use_checkpoint = config.use_transformer_ckpt = False  # for training: they save memory, and warn in inference
    with _bert_without_weights(bert), _quiet(), contextlib.redirect_stdout(io.StringIO()):  # it prints its settings
        return build_model(config).eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide warnings of torch, timm and transformers about deprecated names, which groundingdino uses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message="torch.meshgrid")
        yield


@contextlib.contextmanager
def _bert_without_weights(folder: Path) -> Iterator[None]:
    """A context in which the network's BERT is built from its config alone.

    The checkpoint holds BERT's weights, so that BERT's own file of 440 MB is not needed.
    """
    from groundingdino.util import get_tokenlizer
    from transformers import AutoTokenizer, BertConfig, BertModel

    try:
        config = BertConfig.from_pretrained(folder, local_files_only=True)
        AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} doesn't hold the config and tokenizer of BERT ({str(error).splitlines()[0]}); "
                         "`python data_prep/weights.py fetch bert-base-uncased` gets them") from error
    with mock.patch.object(get_tokenlizer, "get_pretrained_language_model", lambda _: BertModel(config)):
        yield
