"""Folders in the layout of the released weights, with random numbers: real networks, small language parts."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

WORD_PIECES = """car man cart racing race ##ing ##s ##t dog cat bird people person guitar bass drum the a of guinea pig
racket shuttle ##cock shuttlecock badminton popcorn canary chicken ferret""".split()


def randomise(module: nn.Module, seed: int, std: float = 0.02) -> None:
    """Draw *every* parameter from N(0, std): the packages are born with zeros in layers that would hide a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, std, generator=generator)


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


def write_bert(folder: Path) -> Path:
    """A BERT folder of two narrow layers, with a real WordPiece tokenizer of few pieces."""
    from transformers import BertConfig, BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "?", "-", *letters, *(f"##{c}" for c in letters)]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys([*pieces, *WORD_PIECES])) + "\n")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=True)
    tokenizer.save_pretrained(folder)
    BertConfig(vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
               intermediate_size=128).save_pretrained(folder)
    return folder


def write_detector(folder: Path, name: str = "swint_ogc", seed: int = 0) -> Path:
    """Grounding DINO as its official config says, but for the size of BERT, in its official file."""
    from vta_sam.grounding.detector import empty_detector_network

    network = empty_detector_network(name, write_bert(folder / "bert-base-uncased"))
    randomise(network, seed)
    path = folder / f"groundingdino_{name}.pth"
    torch.save({"model": {f"module.{key}": value for key, value in network.state_dict().items()}}, path)
    return path


def write_segmenter(folder: Path, seed: int = 1) -> Path:
    """SAM ViT-B in its official file."""
    from segment_anything import sam_model_registry

    network = sam_model_registry["vit_b"]()
    randomise(network, seed)
    path = folder / "sam_vit_b_01ec64.pth"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), path)
    return path


def narrow_sam(side: int = 256, seed: int = 4) -> nn.Module:
    """SAM of its own modules for pictures of ``side`` pixels, with a narrow and shallow image encoder."""
    from functools import partial

    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    encoder = ImageEncoderViT(img_size=side, embed_dim=32, depth=2, num_heads=2, out_chans=256, use_rel_pos=True,
                              norm_layer=partial(nn.LayerNorm, eps=1e-6), window_size=6, global_attn_indexes=(1,))
    prompts = PromptEncoder(256, (side // 16, side // 16), (side, side), 16)
    decoder = MaskDecoder(transformer_dim=256,
                          transformer=TwoWayTransformer(depth=2, embedding_dim=256, num_heads=8, mlp_dim=2048))
    network = Sam(encoder, prompts, decoder).eval()
    enliven(network, seed)
    return network


def write_clip(folder: Path, seed: int = 2, side: int = 32) -> Path:
    """A narrow CLIP of two layers in transformers' layout, with a real byte-pair tokenizer of single characters."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizerFast
    from transformers.models.clip.tokenization_clip import bytes_to_unicode

    folder.mkdir(parents=True, exist_ok=True)
    characters = list(bytes_to_unicode().values())
    words = [*characters, *(f"{c}</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)
    tokenizer.save_pretrained(folder)
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPConfig(projection_dim=24, vision_config={**layers, "image_size": side, "patch_size": 8},
                        text_config={**layers, "vocab_size": len(words), "bos_token_id": len(words) - 2,
                                     "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1})
    model = CLIPModel(config)
    randomise(model, seed, std=0.2)
    model.save_pretrained(folder, safe_serialization=True)
    CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(folder)
    return folder
