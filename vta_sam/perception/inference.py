"""How the packages' networks run on a device: copies, weights and layers for which neither host nor device waits.

What replaces a layer of groundingdino-py or segment-anything has that layer's weights, and computes the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

TOKENS = 16  # texts are padded to a multiple of it: batches have few lengths


class Transfer:
    """Copies between the host and a device, for which the host doesn't wait: by pinned memory, upwards on a stream of
    their own. Without a GPU they are plain.

    Args:
        device: at the other end.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the host ⇒ on the device, for operations that are queued from now on."""
        if self._stream is None:
            return tensor.to(self.device)
        with torch.cuda.stream(self._stream):
            sent = tensor.pin_memory().to(self.device, non_blocking=True)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._stream)
        sent.record_stream(current)  # else its memory is given away while the current stream reads it
        return sent

    def fetch(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Begin to copy a tensor of the device ⇒ a function that waits for it, and returns it on the host."""
        if self._stream is None:
            return tensor.cpu
        arriving = torch.empty(tensor.shape, dtype=tensor.dtype).pin_memory()
        arriving.copy_(tensor, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))

        def wait() -> torch.Tensor:
            event.synchronize()
            return arriving

        return wait


def hold_weights(network: nn.Module, dtype: torch.dtype | None, but: Collection[nn.Module] = ()) -> None:
    """Cast the weights that autocast would cast for each batch, once: those of linear layers, convolutions and
    attention. Under autocast to this type the network computes the same to the bit. Norms and embeddings stay.

    Args:
        network: in inference, changed in place.
        dtype: of autocast; None: there is none, and nothing is done.
        but: layers that compute outside of autocast.
    """
    if dtype is None:
        return
    for layer in network.modules():
        if isinstance(layer, _CAST) and layer not in but:
            for parameter in layer.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)


_SHAPES = 64  # of one kind of block, each of which is compiled; torch gives up after eight


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile works for a device, found by a small function. Where it doesn't, a warning says why. Where
    it does, as many shapes of one kind of block are let through as networks here have."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(2, device=device))
    except Exception as error:  # of any kind: no compiler, no Triton, no headers, no room for its files
        warnings.warn("compile=true: nothing can be compiled here "
                      f"({type(error).__name__}: {str(error).strip().splitlines()[0][:200]}), so the blocks run as "
                      "they are")
        return False
    torch._dynamo.config.recompile_limit = max(_SHAPES, torch._dynamo.config.recompile_limit)
    return True


# ---------------------------------------------------------------------- of Grounding DINO

class Texts(nn.Module):
    """The language model, in the place of the package's. A text goes through it once; a batch has a text per picture.

    The package tokenises the texts of each batch again, and reads the tokens value by value to mask them. Here that
    is done on the host when a text is new, and the network itself is given one that stands for any.

    Args:
        network: the package's, whose transformer gets its masks from here.
    """

    ANY = "."  # the text that the network itself is given

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.bert: Any = network.bert
        self._tokenizer, self._specials = network.tokenizer, network.specical_tokens
        self._heads = network.transformer.encoder.text_layers[0].nhead
        self._known: dict[tuple[str, bool], list[torch.Tensor]] = {}
        self._chosen: list[torch.Tensor] = []
        network.transformer.register_forward_pre_hook(self._hand_over)

    def choose(self, texts: Sequence[str], transfer: Transfer) -> None:
        """Set the text of each picture of the next batch. What is new goes through the language model together."""
        half = torch.is_autocast_enabled(transfer.device.type)
        distinct = list(dict.fromkeys(texts))
        if new := [text for text in distinct if (text, half) not in self._known]:
            self._read(new, half, transfer)
        for text in distinct:  # the last used stand last
            self._known[text, half] = self._known.pop((text, half))
        rows = {text: self._known[text, half] for text in distinct}
        longest = max(len(parts[0]) for parts in rows.values())
        rows = {text: _lengthened(parts, longest) for text, parts in rows.items()}
        self._chosen = [torch.stack(parts) for parts in zip(*(rows[text] for text in texts))]
        for key in list(self._known)[:-_KNOWN_TEXTS]:
            del self._known[key]

    def _read(self, texts: list[str], half: bool, transfer: Transfer) -> None:
        from groundingdino.models.GroundingDINO import bertwarper

        tokens = self._tokenizer(texts, padding=True, pad_to_multiple_of=TOKENS, return_tensors="pt")
        masks, positions, _ = bertwarper.generate_masks_with_special_tokens_and_transfer_map(
            tokens, self._specials, self._tokenizer)
        own = tokens["attention_mask"].bool()
        ids, types, masks, positions, sent = (transfer.send(each) for each in (
            tokens["input_ids"], tokens["token_type_ids"], masks, positions, own))
        states = self.bert(input_ids=ids, token_type_ids=types, attention_mask=masks,
                           position_ids=positions)["last_hidden_state"]
        for i, (text, count) in enumerate(zip(texts, own.sum(1).tolist())):
            end = -(-count // TOKENS) * TOKENS
            self._known[text, half] = [states[i, :end].clone(), masks[i, :end, :end].clone(), positions[i, :end],
                                       sent[i, :end]]

    def forward(self, **_: Any) -> dict[str, torch.Tensor]:
        """States (B, L, C) of the chosen texts, whatever the tokens that the network made."""
        return {"last_hidden_state": self._chosen[0]}

    def _hand_over(self, _: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Hook before Transformer: put the chosen texts' masks in the place of the one text's."""
        text = arguments[-1]
        masks, text["position_ids"], text["text_token_mask"] = self._chosen[1:]
        # of each head: the package repeats masks in an order that gives most heads another picture's
        text["text_self_attention_masks"] = masks.repeat_interleave(self._heads, 0)


_KNOWN_TEXTS = 256  # 50 kB each, of 16 tokens; 0.8 MB of 256


def _lengthened(parts: list[torch.Tensor], tokens: int) -> list[torch.Tensor]:
    """States, mask, positions and marks of a text ⇒ with so many tokens. What is added attends to itself alone."""
    states, mask, positions, own = parts
    more = tokens - len(states)
    if not more:
        return parts
    themselves = torch.eye(tokens, dtype=torch.bool, device=mask.device)
    return [F.pad(states, (0, 0, 0, more)), F.pad(mask, (0, more, 0, more)) | themselves, F.pad(positions, (0, more)),
            F.pad(own, (0, more))]


class BiAttention(nn.Module):
    """Attention between pictures and texts, both ways, with the layers of groundingdino's.

    The package subtracts the largest weight of the whole batch and then bounds the rest, so that a picture's numbers
    depend on the others. Here each row has its own softmax, and no weight is stored.
    """

    def __init__(self, theirs: Any) -> None:
        super().__init__()
        self.heads, self.scale = theirs.num_heads, theirs.scale
        self.v_proj, self.l_proj = theirs.v_proj, theirs.l_proj
        self.values_v_proj, self.values_l_proj = theirs.values_v_proj, theirs.values_l_proj
        self.out_v_proj, self.out_l_proj = theirs.out_v_proj, theirs.out_l_proj

    def forward(self, v: torch.Tensor, l: torch.Tensor, attention_mask_v: torch.Tensor,  # noqa: E741
                attention_mask_l: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cells (B, S, C) and tokens (B, L, C), masks (B, S) and (B, L) True in padding ⇒ what is added to them."""
        def split(states: torch.Tensor) -> torch.Tensor:
            return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(query, key, split(value), ~padding[:, None, None],
                                                  scale=self.scale).transpose(1, 2).flatten(2)

        cells, tokens = split(self.v_proj(v)), split(self.l_proj(l))
        return (self.out_v_proj(attend(cells, tokens, self.values_l_proj(l), attention_mask_l)),
                self.out_l_proj(attend(tokens, cells, self.values_v_proj(v), attention_mask_v)))


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention (Zhu et al. 2021, arXiv 2010.04159) with the layers of groundingdino's.

    The package samples each level by ``grid_sample``, in fp32 also under autocast, and holds the sampled values of all
    levels, queries and points before it sums them. Here ``embedding_bag`` sums rows of values as it reads them, and
    stores none; a row's weight is its bilinear share times its attention.

    Attributes:
        sizes: (height, width) of each level as numbers, of which compiled code is made; None: read from tensors.
    """

    sizes: list[tuple[int, int]] | None = None

    def __init__(self, theirs: Any) -> None:
        super().__init__()
        self.heads, self.levels, self.points = theirs.num_heads, theirs.num_levels, theirs.num_points
        self.value_proj, self.output_proj = theirs.value_proj, theirs.output_proj
        self.sampling_offsets, self.attention_weights = theirs.sampling_offsets, theirs.attention_weights

    @classmethod
    def tell_sizes(cls, transformer: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Hook before Transformer, whose first argument are the levels (B, C, height, width)."""
        sizes = [(level.shape[-2], level.shape[-1]) for level in arguments[0]]
        for part in transformer.modules():
            if isinstance(part, cls):
                part.sizes = sizes

    def forward(self, query: torch.Tensor, value: torch.Tensor, reference_points: torch.Tensor,
                spatial_shapes: torch.Tensor, key_padding_mask: torch.Tensor, **_: Any) -> torch.Tensor:
        """Queries and values ⇒ (B, Q, C).

        Args:
            query: (B, Q, C), with positions.
            value: (B, S, C), the cells of all levels.
            reference_points: (B, Q, levels, 2) x y or (B, Q, levels, 4) cx cy w h, fractions of the padded picture.
            spatial_shapes: (levels, 2) height and width, on the host: elsewhere each layer waits for them.
            key_padding_mask: (B, S) bool, True in padding.
        """
        value = self.value_proj(value).masked_fill(key_padding_mask[..., None], 0.0)
        batch, cells, channels = value.shape
        rows = value.view(batch * cells * self.heads, -1)
        offsets = self.sampling_offsets(query).view(batch, -1, self.heads, self.levels, self.points, 2)
        weights = self.attention_weights(query).view(*offsets.shape[:3], -1).softmax(-1).view(offsets.shape[:-1])
        integer = torch.int32 if max(len(rows), 4 * weights.numel()) < 2 ** 31 else torch.int64  # half the memory
        count = torch.arange(max(batch, self.heads, 2), dtype=integer, device=value.device)
        first = (count[:batch] * (cells * self.heads)).view(-1, 1, 1, 1, 1) + count[:self.heads].view(-1, 1, 1)
        summed = torch.zeros(weights[..., 0, 0].numel(), rows.shape[1], device=value.device)
        sizes = self.sizes or spatial_shapes.tolist()
        for level, (height, width) in enumerate(sizes):
            start = sum(high * wide for high, wide in sizes[:level])
            point, offset = reference_points[:, :, None, level, None].float(), offsets[:, :, :, level].float()
            column, across = self._neighbours(point, offset, 0, width, count[:2])
            row, down = self._neighbours(point, offset, 1, height, count[:2])
            shares = (down * weights[:, :, :, level, :, None])[..., None] * across[..., None, :]
            index = ((row * width + start) * self.heads + first)[..., None] + (column * self.heads)[..., None, :]
            summed += F.embedding_bag(index.view(len(summed), -1), rows, mode="sum",
                                      per_sample_weights=shares.to(rows.dtype).view(len(summed), -1))
        return self.output_proj(summed.to(rows.dtype).view(batch, -1, channels))

    def _neighbours(self, point: torch.Tensor, offset: torch.Tensor, axis: int, cells: int, pair: torch.Tensor,
                    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The two cells beside each place along an axis of ``cells`` (…, 2), and their bilinear shares, 0 outside."""
        reach: Any = point[..., 2 + axis] * (0.5 / self.points) if point.shape[-1] == 4 else 1 / cells
        place = (point[..., axis] + offset[..., axis] * reach) * cells - 0.5
        found, share = place.floor()[..., None].to(pair.dtype) + pair, place.remainder(1.0)
        shares = torch.stack([1 - share, share], -1).masked_fill((found < 0) | (found >= cells), 0.0)
        return found.clamp(0, cells - 1), shares


# ---------------------------------------------------------------------- of SAM

class ImageAttention(nn.Module):
    """Attention of SAM's image encoder, within a square of cells, with the layers of segment-anything's.

    The package sends indices of relative positions to the device twice in each layer, and holds the weights of all
    pairs of cells several times. Here the positions are looked up once, and fused attention adds them.
    """

    def __init__(self, theirs: Any) -> None:
        super().__init__()
        self.heads, self.scale, self.qkv, self.proj = theirs.num_heads, theirs.scale, theirs.qkv, theirs.proj
        self.rows, self.columns = (self._between(table) for table in (theirs.rel_pos_h, theirs.rel_pos_w))

    @staticmethod
    def _between(table: torch.Tensor) -> nn.Parameter:
        """Positions (2 n - 1, C) by distance ⇒ (n, n, C) of each query and key."""
        place = torch.arange((len(table) + 1) // 2, device=table.device)
        return nn.Parameter(table.detach()[place[:, None] - place + len(place) - 1], requires_grad=False)

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        """Cells (B, n, n, C) ⇒ (B, n, n, C)."""
        batch, height, width, _ = cells.shape
        qkv = self.qkv(cells).reshape(batch, height * width, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        grid = query.reshape(batch * self.heads, height, width, -1)
        # einsum leaves them in another order, which their sum, the largest tensor here, would take over
        down = torch.einsum("bhwc,hkc->bhwk", grid, self.rows).contiguous()[..., None]
        across = torch.einsum("bhwc,wkc->bhwk", grid, self.columns).contiguous()[..., None, :]
        bias = (down + across).view(batch, self.heads, height * width, -1)
        mixed = F.scaled_dot_product_attention(query, key, value, bias, scale=self.scale)
        return self.proj(mixed.transpose(1, 2).reshape(batch, height, width, -1))


_CAST = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.MultiheadAttention, ImageAttention)
