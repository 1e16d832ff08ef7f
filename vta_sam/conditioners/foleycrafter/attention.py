"""Decoupled cross-attention: a second stream of tokens with keys and values of its own (IP-Adapter, Ye et al. 2023)."""

from __future__ import annotations

from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F


class DecoupledCrossAttention(nn.Module):
    """Attention over text, plus ``scale`` times attention over image tokens with the same queries.

    The last ``image_tokens`` of the keys are the second stream. Its values start at zero, so that a new layer computes
    what text alone would.
    """

    def __init__(self, inner_dim: int, cross_dim: int, image_tokens: int, scale: float):
        super().__init__()
        self.image_tokens, self.scale = image_tokens, scale
        self.to_k_ip = nn.Linear(cross_dim, inner_dim, bias=False)
        self.to_v_ip = nn.Linear(cross_dim, inner_dim, bias=False)
        nn.init.zeros_(self.to_v_ip.weight)

    def forward(self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
                attention_mask: Tensor | None = None, **ignored) -> Tensor:
        """As diffusers calls an attention processor: (B, N, dim), (B, L, cross dim), bias (B, 1, L) ⇒ (B, N, dim)."""
        assert encoder_hidden_states is not None, "set on cross-attention layers only"
        length = encoder_hidden_states.shape[1] - self.image_tokens
        text, image = encoder_hidden_states.split([length, self.image_tokens], dim=1)
        query = _heads(attn, attn.to_q(hidden_states))
        bias = None if attention_mask is None else attention_mask[..., :length][:, None].to(query.dtype)
        hidden = F.scaled_dot_product_attention(query, _heads(attn, attn.to_k(text)), _heads(attn, attn.to_v(text)),
                                                attn_mask=bias)
        if self.scale:
            hidden = hidden + self.scale * F.scaled_dot_product_attention(
                query, _heads(attn, self.to_k_ip(image)), _heads(attn, self.to_v_ip(image)))
        hidden = hidden.transpose(1, 2).flatten(2).to(query.dtype)
        return attn.to_out[1](attn.to_out[0](hidden))


def _heads(attn: Attention, x: Tensor) -> Tensor:
    return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)


def decouple(unet: UNet2DConditionModel, image_tokens: int, scale: float) -> None:
    """Give every cross-attention layer of a UNet its second stream."""
    cross_dim = unet.config["cross_attention_dim"]
    for name, module in unet.named_modules():
        if name.endswith("attn2") and isinstance(module, Attention):
            module.set_processor(DecoupledCrossAttention(module.inner_dim, cross_dim, image_tokens, scale))


def attention_scale(unet: nn.Module, scale: float) -> None:
    """Change how much the second stream counts; 0: text alone."""
    for module in unet.modules():
        if isinstance(module, DecoupledCrossAttention):
            module.scale = scale
