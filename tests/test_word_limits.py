"""Each noun is asked for by its own tokens, whatever stands beside it; no text is cut in silence."""

import warnings
from itertools import permutations

import numpy as np
import pytest
import test_grounded_sam
import torch
from models import SPEC
from test_by_name import write_word_tokenizer
from test_extract import BrightnessEncoder, BrightnessGrounder, write_manifest
from test_grounded_sam import SMALL, detector_of, pictures, to_tensor
from transformers import AutoTokenizer, T5Config, T5EncoderModel

from vta_sam.dataset.extraction.extract import Extraction
from vta_sam.dataset.extraction.shard_folder import failures
from vta_sam.metrics.backbones import ClapBackbone
from vta_sam.perception.clip_encoder import CLIPEncoder, T5Encoder
from vta_sam.perception.features import Extractors, Words, features_of
from vta_sam.perception.grounding_dino import MAX_TOKENS, build_prompt
from vta_sam.runtime.errors import InputError

weights, network, lively, of_all_cells = (
    getattr(test_grounded_sam, name) for name in ("weights", "network", "lively", "of_all_cells"))
# nouns of which one holds another, as a word or as pieces of words
NESTED = ["car", "race car", "cable car", "fish", "fishing rod", "fisherman", "carpet", "scar"]


@pytest.fixture(scope="module")
def tokenizer(weights):
    return AutoTokenizer.from_pretrained(weights / "bert-base-uncased")


@pytest.mark.parametrize("turn", range(8))
def test_no_noun_owns_a_token_of_one_that_holds_it(tokenizer, turn):
    words = NESTED[turn:] + NESTED[:turn]
    prompt = build_prompt(words, tokenizer)
    ids, alone = tokenizer(prompt.text)["input_ids"], {word: tokenizer(word)["input_ids"][1:-1] for word in words}
    assert {word: [ids[i] for i in span] for word, span in zip(words, prompt.spans)} == alone
    owned = [i for span in prompt.spans for i in span]
    assert len(owned) == len(set(owned)), "a token has two owners"


@pytest.mark.slow
def test_a_probability_depends_on_no_order(of_all_cells):
    detector, frame = detector_of(of_all_cells, SMALL), to_tensor(pictures(1, SMALL, SMALL + 64))
    seen = {order: dict(zip(order, detector.detect(frame, detector.prompt(list(order))).probs[0].tolist()))
            for order in permutations(("car", "race car", "fish"))}
    first, *others = seen.values()
    assert len({round(prob, 5) for prob in first.values()}) == 3, "all nouns are alike"
    for other in others:
        assert other == pytest.approx(first, abs=1e-4)


def test_the_limit_of_the_detector_counts_tokens(tokenizer):
    fitting = ["dog"] * ((MAX_TOKENS - 2) // 2)  # a full stop after each, and two at the ends
    assert build_prompt(fitting, tokenizer).tokens == MAX_TOKENS
    with pytest.raises(InputError, match="128 objects make 258 tokens, and Grounding DINO reads at most 256; "
                                         "leave out dog$"):
        build_prompt([*fitting, "dog"], tokenizer)
    long = "q" * 90  # of rare letters every one is a token
    with pytest.raises(InputError) as refused:
        build_prompt(["dog", long, f"a{long}", f"b{long}", "cat"], tokenizer)
    assert str(refused.value).endswith(f"leave out b{'q' * 39}…"), "what comes after it fits in"


class Strict(BrightnessGrounder):
    fingerprint = "brightness-strict"

    def check_words(self, objects):
        if "dragon" in objects:
            raise InputError("leave out dragon")


def test_words_are_refused_before_a_video_is_opened(tmp_path):
    extractors = Extractors(Strict(), BrightnessEncoder())
    with pytest.raises(InputError, match="leave out dragon"):
        features_of(tmp_path / "nowhere.mp4", [Words("a dragon", ["dragon"])], extractors, SPEC)
    with pytest.raises(InputError, match="nowhere.mp4"):
        features_of(tmp_path / "nowhere.mp4", [Words("a dog", ["dog"])], extractors, SPEC)


def test_extraction_lists_a_clip_whose_words_are_refused(make_video, tmp_path):
    make_video(tmp_path / "v.mp4", sound=np.zeros(16_000) + 0.1)
    manifest = write_manifest(tmp_path / "m.csv", [
        {"id": word, "caption": f"a {word}", "path": "v.mp4", "duration": 0.4} for word in ("dog", "dragon")])
    Extraction(manifest, tmp_path, tmp_path / "out", Strict(), BrightnessEncoder(), 5.0, workers=1).run()
    [failed] = [entry for path in (tmp_path / "out").glob("*.failed.jsonl") for entry in failures(path)]
    assert failed["id"] == "dragon" and failed["reason"] == "leave out dragon"


def test_clip_refuses_a_noun_and_warns_of_a_caption_that_it_would_cut(random_weights):
    encoder = CLIPEncoder(weights=random_weights("clip-vit-large-patch14"), device="cpu")
    longest = next(n for n in range(1, 200) if len(encoder._ids("a photo of a " + "dog " * n)) > 77) - 1
    assert np.isfinite(encoder.encode_objects(["dog " * longest])).all()
    for ask in (encoder.check_words, encoder.encode_objects):
        with pytest.raises(InputError, match=r"the object dog dog .*… makes \d+ tokens in 'a photo of a \{\}', and "
                                             "CLIP reads at most 77"):
            ask(["cat", "dog " * 200])
    with pytest.warns(UserWarning, match="has .* tokens, of which the text encoder reads the first 77"):
        encoder.encode_caption("word " * 500)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode_caption("a dog barks")


def test_clap_warns_of_a_caption_that_it_cuts(random_weights):
    backbone = ClapBackbone(weights=random_weights("clap-htsat-unfused"), device="cpu")
    with pytest.warns(UserWarning, match="'dog dog .*…' has .* tokens, of which CLAP reads the first 64"):
        assert len(backbone.embed_text(["a dog barks", "dog " * 500])) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        backbone.embed_text(["a dog barks"])


def test_t5_warns_of_a_caption_that_it_cuts(tmp_path):
    config = T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    torch.manual_seed(0)
    T5EncoderModel(config).save_pretrained(tmp_path)
    write_word_tokenizer(tmp_path)
    encoder = T5Encoder(tmp_path, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(encoder.encode_caption("dog " * 511)) == 512
    with pytest.warns(UserWarning, match="'dog dog .*…' has 513 tokens, of which the text encoder reads the first 512"):
        assert len(encoder.encode_caption("dog " * 512)) == 512
