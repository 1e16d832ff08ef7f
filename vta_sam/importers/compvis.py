"""Names of tensors in the code that AudioLDM was trained with ⇒ their names in diffusers and transformers."""

from __future__ import annotations

import re


def vocoder_name(name: str) -> str:
    """The name of a tensor in HiFi-GAN's own code ⇒ its name in :class:`~vta_sam.vocoder.HiFiGAN`."""
    return "network." + re.sub(r"^ups\.", "upsampler.", name)


def vae_name(name: str, levels: int) -> str:
    """The name of a tensor of the VAE in CompVis' code ⇒ its name in diffusers' AutoencoderKL of ``levels`` levels."""
    for old, new in (("nin_shortcut", "conv_shortcut"), ("norm_out", "conv_norm_out"),
                     ("mid.block_1", "mid_block.resnets.0"), ("mid.block_2", "mid_block.resnets.1"),
                     ("mid.attn_1.norm", "mid_block.attentions.0.group_norm"),
                     ("mid.attn_1.proj_out", "mid_block.attentions.0.to_out.0")):
        name = name.replace(old, new)
    name = re.sub(r"mid\.attn_1\.([qkv])\.", r"mid_block.attentions.0.to_\1.", name)
    name = re.sub(r"\bdown\.(\d+)\.block\.", r"down_blocks.\1.resnets.", name)
    name = re.sub(r"\bdown\.(\d+)\.downsample\.", r"down_blocks.\1.downsamplers.0.", name)

    def turned(match: re.Match) -> str:  # CompVis counts the decoder's levels from the finest
        inside = "resnets" if match[2] == "block" else "upsamplers.0"
        return f"up_blocks.{levels - 1 - int(match[1])}.{inside}."

    return re.sub(r"\bup\.(\d+)\.(block|upsample)\.", turned, name)
