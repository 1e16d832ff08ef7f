"""Networks for tests of grounding: wider weights, fewer layers, and a small SAM."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn


def enliven(module: nn.Module, seed: int) -> None:
    """Draw weights wide enough that signals get through: N(0, 0.05), and N(1, 0.02) in norms. The answers of a network
    of N(0, 0.02) alone differ by less than rounding, so that some comparisons would see nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            norm = "norm" in type(part).__name__.lower()
            for name, parameter in part.named_parameters(recurse=False):
                mean, std = (1.0, 0.02) if norm and name == "weight" else (0.0, 0.05)
                parameter.normal_(mean, std, generator=generator)


def make_shallow(detector: nn.Module, layers: int = 2) -> nn.Module:
    """Keep ``layers`` of each stack of equal layers of Grounding DINO: of Swin's long stage, of the encoder and of the
    decoder. More of them compute the same again."""
    encoder, decoder = detector.transformer.encoder, detector.transformer.decoder
    for part, stack in ((detector.backbone[0].layers[2], "blocks"), (encoder, "layers"), (encoder, "text_layers"),
                        (encoder, "fusion_layers"), (decoder, "layers")):
        setattr(part, stack, getattr(part, stack)[:layers])
    return detector


def narrow_sam(side: int = 256, seed: int = 4) -> nn.Module:
    """SAM of its own modules for pictures of ``side`` pixels, with a narrow and shallow image encoder."""
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    encoder = ImageEncoderViT(img_size=side, embed_dim=32, depth=2, num_heads=2, out_chans=256, use_rel_pos=True,
                              norm_layer=partial(nn.LayerNorm, eps=1e-6), window_size=6, global_attn_indexes=(1,))
    prompts = PromptEncoder(256, (side // 16, side // 16), (side, side), 16)
    decoder = MaskDecoder(transformer_dim=256,
                          transformer=TwoWayTransformer(depth=2, embedding_dim=256, num_heads=8, mlp_dim=2048))
    network = Sam(encoder, prompts, decoder).eval()
    enliven(network, seed)
    return network
