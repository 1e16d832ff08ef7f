"""Networks of random numbers in the layout of the released ones: they recognise nothing, and take the
same code path as the released ones. They serve tests, benchmarks, and trials of the whole path without a download."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ..checkpoints.registry import find_entry
from ..runtime.errors import InputError
from ..runtime.files import atomic_path, write_text
from ..runtime.work_plan import Deed, Item, Plan

M = TypeVar("M", bound=nn.Module)
# whole words of the small vocabulary; every other word is spelt in letters
WORDS = """car man cart racing race ##ing ##s ##t dog cat bird people person guitar bass drum the a of guinea pig racket
shuttle ##cock shuttlecock badminton popcorn canary chicken ferret""".split()
# written last
_LAST = {"bert-base-uncased": "config.json", "clip-vit-large-patch14": "preprocessor_config.json",
         **dict.fromkeys(("clap-htsat-unfused", "owlv2-base-patch16-ensemble", "owlv2-large-patch14-ensemble",
                          "siglip2-base-patch16-224", "siglip2-so400m-patch14-384"), "preprocessor_config.json"),
         **dict.fromkeys(("sam2.1-hiera-tiny", "sam2.1-hiera-large"), "model.safetensors")}
# towers of transformers as released
_BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
_SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
_NARROW = {"num_hidden_layers": 2, "num_attention_heads": 4}


def _is_there(name: str, place: Path) -> bool:
    return (place / _LAST.get(name, "")).exists()


def random_plan(names: Sequence[str], folder: Path) -> Plan:
    """What :func:`write_random` writes for each name. Raises InputError for an unknown name."""
    places = {name: find_entry(name).place for name in names}
    items = [Item(place, Deed.KEEP if _is_there(name, folder / place) else Deed.MAKE) for name, place in places.items()]
    return Plan("weights of random numbers", items, folder)


def write_random(name: str, folder: Path, seed: int = 0, narrow: bool = False) -> Path:
    """Write weights of the ``name`` that the table of released ones gives, drawn from N(0, 0.02) ⇒ their place.

    The networks are those that are released, of the same size; the vocabularies are small. narrow: language models,
    CLIP, OWLv2 and SigLIP of two thin layers, which is quicker. Existing files are kept. Raises InputError for an
    unknown name.
    """
    place = folder / find_entry(name).place
    if _is_there(name, place):
        return place
    writers: dict[str, Callable[[], None]] = {
        "bert-base-uncased": partial(_write_bert, place, narrow),
        "clip-vit-large-patch14": partial(_write_clip, place, seed, narrow),
        "clap-htsat-unfused": partial(_write_clap, place, seed, narrow),
        "vggish": partial(_write_vggish, place, seed)}
    for kind in ("panns_16k", "panns_32k", "panns_events"):
        writers[kind] = partial(_write_panns, place, kind, seed)
    for kind in ("owlv2-base-patch16-ensemble", "owlv2-large-patch14-ensemble"):
        writers[kind] = partial(_write_owlv2, place, kind, seed, narrow)
    for kind in ("siglip2-base-patch16-224", "siglip2-so400m-patch14-384"):
        writers[kind] = partial(_write_siglip, place, kind, seed, narrow)
    for kind in ("sam2.1-hiera-tiny", "sam2.1-hiera-large"):
        writers[kind] = partial(_write_sam2, place, kind, seed, narrow)
    for size in ("vit_b", "vit_l", "vit_h"):
        writers[f"sam_{size}"] = partial(_write_segmenter, place, size, seed)
    for kind in ("swint_ogc", "swinb_cogcoor"):
        writers[f"groundingdino_{kind}"] = partial(_write_detector, place, kind, seed, narrow)
    if name not in writers:
        raise InputError(f"random weights can't be made for {name!r}; they can for {', '.join(writers)}")
    place.parent.mkdir(parents=True, exist_ok=True)
    writers[name]()
    return place


def randomise(module: M, seed: int, std: float = 0.02) -> M:
    """Draw *every* parameter from N(0, std): the packages are born with zeros in layers, which would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, std, generator=generator)
    return module


def _write_detector(path: Path, name: str, seed: int, narrow: bool) -> None:
    from ..perception.grounding_dino import empty_detector_network

    bert = write_random("bert-base-uncased", path.parent, seed, narrow)  # which decides the size of its language model
    state = randomise(empty_detector_network(name, bert), seed).state_dict()
    with atomic_path(path) as temporary:  # the official file was saved from a wrapper that puts a word before each key
        torch.save({"model": {f"module.{key}": value for key, value in state.items()}}, temporary)


def _write_segmenter(path: Path, name: str, seed: int) -> None:
    from segment_anything import sam_model_registry

    with atomic_path(path) as temporary:
        torch.save(randomise(sam_model_registry[name](), seed).state_dict(), temporary)


def _write_sam2(folder: Path, name: str, seed: int, narrow: bool) -> None:
    """SAM 2 in transformers' layout."""
    from transformers import Sam2HieraDetConfig, Sam2VideoConfig, Sam2VideoModel, Sam2VisionConfig
    from transformers.models.sam2_video.configuration_sam2_video import Sam2VideoPromptEncoderConfig

    wide = name == "sam2.1-hiera-large"
    width, side = 8 if narrow else 144 if wide else 96, 128 if narrow else 1024
    widths = [width * 2**stage for stage in range(4)]
    backbone: dict[str, Any] = {"hidden_size": width, "embed_dim_per_stage": widths, "image_size": [side, side]}
    if wide and not narrow:
        backbone |= {"num_attention_heads": 2, "num_attention_heads_per_stage": [2, 4, 8, 16],
                     "blocks_per_stage": [2, 6, 36, 4], "global_attention_blocks": [23, 33, 43],
                     "window_size_per_stage": [8, 4, 16, 8]}
    elif narrow:
        backbone |= {"blocks_per_stage": [1, 1, 2, 1], "global_attention_blocks": [3]}
    vision = Sam2VisionConfig(backbone_config=Sam2HieraDetConfig(**backbone), backbone_channel_list=widths[::-1],
                              backbone_feature_sizes=[[side // stride] * 2 for stride in (4, 8, 16)])
    config = Sam2VideoConfig(
        vision_config=vision, prompt_encoder_config=Sam2VideoPromptEncoderConfig(image_size=side), image_size=side,
        memory_attention_rope_feat_sizes=[side // 16] * 2, memory_attention_num_layers=1 if narrow else 4)
    model: Any = Sam2VideoModel(config)
    randomise(model, seed, std=0.05 if narrow else 0.02).save_pretrained(folder, safe_serialization=True)


def _write_bert(folder: Path, narrow: bool) -> None:
    """BERT's config, and a WordPiece tokenizer of letters and a few words."""
    from transformers import BertConfig, BertTokenizerFast

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "?", "-", *letters, *(f"##{c}" for c in letters)]
    write_text(folder / "vocab.txt", "\n".join(dict.fromkeys([*pieces, *WORDS])) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=True).save_pretrained(folder)
    thin = {"hidden_size": 64, "intermediate_size": 128, **_NARROW} if narrow else {}
    BertConfig(vocab_size=len(set(pieces) | set(WORDS)) if narrow else 30_522, **thin).save_pretrained(folder)


def _write_clip(folder: Path, seed: int, narrow: bool) -> None:
    """CLIP in transformers' layout, with a byte-pair tokenizer of single characters."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    words = _write_clip_tokenizer(folder, 77)
    side = 32 if narrow else 224
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    thin = {"hidden_size": 32, "intermediate_size": 64, **_NARROW}
    vision = {**thin, "image_size": side, "patch_size": 8} if narrow else {  # config.json of the released ViT-L/14
        **_LARGE, "image_size": side, "patch_size": 14}
    text = {**thin, "vocab_size": len(words)} if narrow else {**_BASE, "vocab_size": 49_408}
    config = CLIPConfig(projection_dim=24 if narrow else 768, vision_config=vision, text_config={**text, **ends})
    # two thin layers need wider weights for their answers to differ by more than rounding
    model: Any = CLIPModel(config)
    randomise(model, seed, std=0.2 if narrow else 0.02).save_pretrained(folder, safe_serialization=True)
    CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(folder)


def _write_clip_tokenizer(folder: Path, tokens: int, whole: Sequence[str] = (), **special: str) -> list[str]:
    """A byte-pair tokenizer of single characters ⇒ its vocabulary, which ends with the marks of start and end.

    Args:
        folder: to write to.
        tokens: that its model reads at most.
        whole: words that are one token each.
        special: further settings of transformers' tokenizer.
    """
    from transformers import CLIPTokenizerFast
    from transformers.models.clip.tokenization_clip import bytes_to_unicode

    characters = list(bytes_to_unicode().values())
    merges = []
    for word in whole:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        merges += [("".join(pieces[:i]), pieces[i]) for i in range(1, len(pieces))]
    merges = list(dict.fromkeys(merges))
    words = [*characters, *(f"{c}</w>" for c in characters), *dict.fromkeys("".join(pair) for pair in merges),
             "<|startoftext|>", "<|endoftext|>"]
    write_text(folder / "vocab.json", json.dumps({word: i for i, word in enumerate(words)}))
    write_text(folder / "merges.txt", "".join(["#version: 0.2\n", *(f"{first} {then}\n" for first, then in merges)]))
    tokenizer = CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=tokens,
                                  **special)
    tokenizer.save_pretrained(folder)
    return words


def _write_owlv2(folder: Path, name: str, seed: int, narrow: bool) -> None:
    """OWLv2 in transformers' layout. Words of its usual template are one token each, since it reads 16."""
    from transformers import Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor

    whole = ["photo", "of", *(word for word in WORDS if word.isalpha() and len(word) > 1)]
    words = _write_clip_tokenizer(folder, 16, whole, pad_token="!")
    thin = {"hidden_size": 32, "intermediate_size": 64, **_NARROW}
    large = name == "owlv2-large-patch14-ensemble"
    side, patch = (48, 8) if narrow else (1008, 14) if large else (960, 16)
    vision = thin if narrow else _LARGE if large else _BASE
    text = {**thin, "vocab_size": len(words)} if narrow else {
        "num_hidden_layers": 12, **({"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12} if large
                                    else {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8})}
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": 0}
    config = Owlv2Config(projection_dim=text["hidden_size"], text_config={**text, **ends},
                         vision_config={**vision, "image_size": side, "patch_size": patch})
    model: Any = Owlv2ForObjectDetection(config)
    randomise(model, seed, std=0.2 if narrow else 0.02).save_pretrained(folder, safe_serialization=True)
    Owlv2ImageProcessor(size={"height": side, "width": side}).save_pretrained(folder)


def _write_siglip(folder: Path, name: str, seed: int, narrow: bool) -> None:
    """SigLIP 2 in transformers' layout, with Gemma's tokenizer of single characters and bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import GemmaTokenizerFast, SiglipConfig, SiglipImageProcessor, SiglipModel
    from transformers.image_utils import PILImageResampling

    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁",
              *(chr(code) for code in range(33, 127))]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>",
                                     fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    GemmaTokenizerFast(tokenizer_object=tokenizer, add_bos_token=False, add_eos_token=True, padding_side="right",
                       model_input_names=["input_ids"]).save_pretrained(folder)
    so400m = name == "siglip2-so400m-patch14-384"
    side, patch = (32, 8) if narrow else (384, 14) if so400m else (224, 16)
    tower = {"hidden_size": 32, "intermediate_size": 64, **_NARROW} if narrow else _SO400M if so400m else _BASE
    config = SiglipConfig(
        text_config={**tower, "projection_size": tower["hidden_size"],
                     "vocab_size": len(pieces) if narrow else 256_000},
        vision_config={**tower, "image_size": side, "patch_size": patch})
    model: Any = SiglipModel(config)
    randomise(model, seed, std=0.2 if narrow else 0.02).save_pretrained(folder, safe_serialization=True)
    size = {"height": side, "width": side}
    SiglipImageProcessor(size=size, resample=PILImageResampling.BILINEAR).save_pretrained(folder)


def _write_vggish(path: Path, seed: int) -> None:
    from ..metrics.backbones import VGGish

    with atomic_path(path) as temporary:
        torch.save(randomise(VGGish(), seed).state_dict(), temporary)


def _write_panns(path: Path, name: str, seed: int) -> None:
    from ..metrics.backbones import FRONT_ENDS, Cnn14

    front = FRONT_ENDS[name]
    network = randomise(Cnn14(front), seed, std=0.05)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.add_(1)  # fourteen normalisations by next to nothing would leave no sound
    # the released file also holds the Fourier matrices of its front end
    size = (front.fft_samples // 2 + 1, 1, front.fft_samples)
    extra = {f"spectrogram_extractor.stft.conv_{part}.weight": torch.zeros(size) for part in ("real", "imag")}
    with atomic_path(path) as temporary:
        torch.save({"model": {**extra, **network.state_dict()}}, temporary)


def _write_clap(folder: Path, seed: int, narrow: bool) -> None:
    """CLAP in transformers' layout, with a byte-pair tokenizer of single characters."""
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, RobertaTokenizerFast
    from transformers.models.clip.tokenization_clip import bytes_to_unicode

    words = ["<s>", "<pad>", "</s>", "<unk>", *bytes_to_unicode().values(), "<mask>"]
    write_text(folder / "vocab.json", json.dumps({word: i for i, word in enumerate(words)}))
    write_text(folder / "merges.txt", "#version: 0.2\n")
    tokenizer = RobertaTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=64)
    tokenizer.save_pretrained(folder)
    text = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": len(words), **_NARROW} if narrow else {}
    audio = {"patch_embeds_hidden_size": 16, "hidden_size": 128, "depths": [1, 1, 1, 1],
             "num_attention_heads": [1, 2, 2, 4]} if narrow else {}
    config = ClapConfig(text_config=text, audio_config=audio, projection_dim=24 if narrow else 512)
    model: Any = ClapModel(config)
    randomise(model, seed, std=0.1 if narrow else 0.02).save_pretrained(folder, safe_serialization=True)
    ClapFeatureExtractor(truncation="rand_trunc").save_pretrained(folder)  # of the model without fusion
