"""Objects ⇒ the one prompt that Grounding DINO reads, and which of its tokens are whose."""

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

from ..checkpoints.checkpoint_file import read_state
from ..runtime.errors import InputError

# MERGED-DOC """Grounding DINO: pictures and a prompt ⇒ for each object how surely it is seen, and where. The network
# is groundingdino-py's own (Liu et al. 2023, arXiv 2303.05499), run on batches of pictures; the prompt goes through
# its language model once, however many pictures follow. """


MAX_TOKENS = 256  # Grounding DINO cuts longer prompts off (max_text_len of its configs)


@dataclass(frozen=True)
class Prompt:
    """text: "car . man .", empty where nothing can be read. spans: for each object the indices of its own tokens in the
    tokenised text; () where nothing of the object can be read (an object of punctuation alone). tokens: how many the
    text has, its start and end included."""

    text: str
    spans: tuple[tuple[int, ...], ...]
    tokens: int

    def token_mask(self) -> torch.Tensor:
        """⇒ (K, tokens) bool, True at each object's own."""
        mask = torch.zeros(len(self.spans), self.tokens, dtype=torch.bool)
        for k, span in enumerate(self.spans):
            mask[k, list(span)] = True
        return mask


def build_prompt(objects: Sequence[str], tokenizer: Any) -> Prompt:
    """Words ⇒ their prompt. Raises InputError where they are too long for one prompt.

    Tokens are assigned by where they stand in the text, never by looking a word up in it: so "car" in ["car", "cart",
    "racing car"] owns its one token, and no piece of another word. Full stops and question marks part a prompt's
    phrases in Grounding DINO, so within a word they become spaces.

    tokenizer: a fast tokenizer of transformers, which tells each token's place.
    """
    text, places = "", []
    for word in objects:
        written = " ".join(re.sub(r"[.?]", " ", word.lower()).split())
        places.append((len(text), len(text) + len(written)))
        text += f"{written} . " if written else ""
    text = text.rstrip()
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    if len(offsets) > MAX_TOKENS:
        raise InputError(f"the objects {', '.join(objects)[:60]!r}… make {len(offsets)} tokens; Grounding DINO reads "
                         f"at most {MAX_TOKENS}; name fewer or shorter objects")
    spans = tuple(tuple(i for i, (first, end) in enumerate(offsets) if start <= first < end <= stop)
                  for start, stop in places)
    return Prompt(text, spans, len(offsets))


CONFIGS = {"swint_ogc": "GroundingDINO_SwinT_OGC", "swinb_cogcoor": "GroundingDINO_SwinB_cfg"}
# in the released files, but not in the network: a table of the training code, and an index that BERT once stored
_NOT_OURS = frozenset(("label_enc.weight", "bert.embeddings.position_ids"))
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as in groundingdino.util.inference
_STRIDES = (8, 16, 32, 64)  # of the feature maps whose cells compete to become queries


@dataclass
class Detections:
    """Of B pictures and K objects. probs (B, K) in [0, 1], boxes (B, K, 4) cx cy w h in [0, 1], float32 on the CPU."""

    probs: torch.Tensor
    boxes: torch.Tensor


class Detector:
    """Grounding DINO on a device.

    Args:
        model: the network, in eval mode.
        short_side, long_side: pixels that a picture's short side gets, unless its long side would pass long_side.
        autocast: context of the number format to compute in.
    """

    def __init__(self, model: Any, short_side: int, long_side: int, device: torch.device,
                 autocast: contextlib.AbstractContextManager) -> None:
        model.bert = _OncePerPrompt(model.bert)
        self.model, self.device, self.autocast = model.to(device).eval(), device, autocast
        self.short_side, self.long_side = short_side, long_side
        self.tokenizer: Any = model.tokenizer
        self.mean = torch.tensor(_MEAN, device=device).view(3, 1, 1)
        self.std = torch.tensor(_STD, device=device).view(3, 1, 1)

    def prompt(self, objects: list[str]) -> Prompt:
        return build_prompt(objects, self.tokenizer)

    def detect(self, pictures: torch.Tensor, prompt: Prompt) -> Detections:
        """pictures (B, 3, H, W) uint8 on the device ⇒ Detections.

        probs[b, k] is the largest sigmoid of any query at any token of object k's own span; the box is that query's.
        An object without tokens has probability and box 0.
        """
        tokens, boxes = self.queries(pictures, prompt)
        mask = prompt.token_mask().to(tokens.device)
        own = tokens[:, :, None, :].masked_fill(~mask, -1.0).amax(-1)  # (B, queries, K)
        probs, best = own.max(dim=1)
        chosen = boxes.gather(1, best[..., None].expand(-1, -1, 4))
        return Detections(probs.clamp_min(0.0).cpu(), torch.where(probs[..., None] >= 0, chosen, 0.0).cpu())

    @torch.inference_mode()
    def queries(self, pictures: torch.Tensor, prompt: Prompt) -> tuple[torch.Tensor, torch.Tensor]:
        """pictures (B, 3, H, W) uint8 ⇒ probabilities (B, 900, L) of the prompt's L tokens, boxes (B, 900, 4)."""
        pixels = self.prepare(pictures)
        with self.autocast, _quiet():
            answer = self.model(pixels, captions=[prompt.text] * len(pixels))
        logits = answer["pred_logits"][..., :prompt.tokens]  # the network fills up to 256 with -inf
        return logits.float().sigmoid(), answer["pred_boxes"].float()

    def prepare(self, pictures: torch.Tensor) -> torch.Tensor:
        """pictures (B, 3, H, W) uint8 ⇒ (B, 3, h, w) float, scaled and normalised as groundingdino's load_image does.

        Raises InputError where a picture is so narrow that fewer cells than queries are left of it.
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


def scaled_size(height: int, width: int, short_side: int, long_side: int) -> tuple[int, int]:
    """The (height, width) that Grounding DINO's own transform scales a picture to
    (groundingdino/datasets/transforms.py, ``get_size_with_aspect_ratio``)."""
    short, long = float(min(height, width)), float(max(height, width))
    if long / short * short_side > long_side:
        short_side = max(1, round(long_side * short / long))
    if min(height, width) == short_side:
        return height, width
    if width < height:
        return int(short_side * height / width), short_side
    return short_side, int(short_side * width / height)


class _OncePerPrompt(nn.Module):
    """The language model in a batch of equal prompts: one row is computed, kept, and repeated."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert
        self._kept: tuple[tuple[Any, ...], torch.Tensor] | None = None

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        ids = inputs["input_ids"]
        key = (*ids[0].tolist(), torch.is_autocast_enabled(ids.device.type))
        if self._kept is None or self._kept[0] != key:
            first = {name: value[:1] for name, value in inputs.items()}
            self._kept = key, self.bert(**first)["last_hidden_state"]
        return {"last_hidden_state": self._kept[1].expand(len(ids), -1, -1)}


def build_detector_network(name: str, checkpoint: Path, bert: Path) -> nn.Module:
    """Grounding DINO as the official config ``name`` describes it (a key of CONFIGS), filled from an official file.

    bert: folder with the config and the tokenizer of BERT; BERT's weights come with the checkpoint. Raises InputError
    where the file can't be read or doesn't fit.
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
    """The network of an official config with whatever weights it is born with; see :func:`build_detector_network`."""
    with _quiet():
        import groundingdino
        from groundingdino.models import build_model
        from groundingdino.util.slconfig import SLConfig

    config = SLConfig.fromfile(str(Path(groundingdino.__file__).parent / "config" / f"{CONFIGS[name]}.py"))
    config.text_encoder_type = str(bert)
    config.use_checkpoint = config.use_transformer_ckpt = False  # they save memory in training, and warn elsewhere
    with _bert_without_weights(bert), _quiet(), contextlib.redirect_stdout(io.StringIO()):  # it prints its settings
        return build_model(config).eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the package's use of older names makes torch, timm and transformers say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message="torch.meshgrid")
        yield


@contextlib.contextmanager
def _bert_without_weights(folder: Path) -> Iterator[None]:
    """While the network is built, its BERT is made from the config alone: the checkpoint fills it, so that another
    440 MB needn't be fetched and read."""
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
