"""Taggers: which one is used, what the corrections leave alone, and damaged data."""

import random

import nltk
import pytest
import test_captions
from nltk.tag.perceptron import PerceptronTagger

from vta_sam.perception import tagging
from vta_sam.perception.captions import nouns, tagger_name
from vta_sam.runtime.errors import InputError

RESOURCE = "averaged_perceptron_tagger_eng"
no_data = test_captions.no_data  # for every test here too


def test_of_a_very_long_caption_the_beginning_is_read():
    words = ["dog", "cat", "bird", "cow"]
    caption = " and ".join(f"a {word} calls" for word in words * 2500)
    assert len(caption.split()) > 30_000
    assert nouns(caption + " and a goat calls").words == words
    read = tagging.tokenize(caption)
    assert len(" ".join(read)) <= tagging.MAX_CHARACTERS and read == caption.split()[:len(read)]
    assert nouns("a goat calls " + "and a man talks " * 10_000).words == ["goat", "man"]


# captions as a linguist tags them, which is what a good tagger gives for text like this
TAGGED = [
    ("A/DT race/NN car/NN zooms/VBZ past/RB with/IN man/NN chatting/VBG in/IN the/DT background/NN", ["car", "man"]),
    ("popcorn/NN pops/VBZ in/IN a/DT pan/NN", ["popcorn"]),
    ("a/DT canary/NN calls/VBZ on/IN a/DT perch/NN", ["canary"]),
    ("two/CD people/NNS play/VBP badminton/NN with/IN a/DT racket/NN and/CC a/DT shuttlecock/NN",
     ["person", "racket", "shuttlecock"]),
    ("a/DT chicken/NN crows/VBZ in/IN the/DT yard/NN", ["chicken"]),
    ("a/DT ferret/NN is/VBZ dooking/VBG", ["ferret"]),
    ("a/DT dog/NN barks/VBZ", ["dog"]),
    ("church/NN bells/NNS toll/VBP in/IN the/DT distance/NN", ["bell"]),
    ("the/DT old/JJ man/NN 's/POS violin/NN", ["man", "violin"]),
    ("a/DT train/NN horn/NN blows/VBZ loudly/RB", ["horn"]),
    ("a/DT man/NN hammers/VBZ nails/NNS into/IN a/DT wooden/JJ board/NN", ["man", "nail", "board"]),
    ("a/DT pair/NN of/IN scissors/NNS cuts/VBZ paper/NN", ["scissors", "paper"]),
    ("ambulance/NN siren/NN", ["ambulance"]),
    ("a/DT clarinet/NN plays/VBZ fortissimo/RB", ["clarinet"]),
]


def pairs_of(line):
    return [tuple(word.rsplit("/", 1)) for word in line.split()]


@pytest.fixture
def perceptron(tmp_path, monkeypatch):
    """NLTK's tagger trained on TAGGED and installed as the download would be ⇒ its folder."""
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    folder = tmp_path / "taggers" / RESOURCE
    tagger = PerceptronTagger(load=False)
    sentences = [[(word.lower(), tag) for word, tag in pairs_of(line)] for line, _ in TAGGED]
    state = random.getstate()
    random.seed(0)  # its training shuffles
    tagger.train(sentences, nr_iter=20)
    random.setstate(state)
    tagger.save_to_json("eng", loc=str(folder))
    return folder


def test_nltks_tagger_is_used_where_its_data_is_installed(perceptron):
    assert tagger_name() == f"nltk-{RESOURCE}"
    assert nouns("a clarinet plays fortissimo").words == ["clarinet"]


@pytest.mark.parametrize("line, words", TAGGED, ids=[line.split("/")[0] + str(i) for i, (line, _) in enumerate(TAGGED)])
def test_rules_leave_good_tags_alone(perceptron, line, words):
    text = " ".join(word for word, _ in pairs_of(line)).replace(" 's", "'s")
    assert [token.tag for token in tagging.tag(text)] == [tag for _, tag in pairs_of(line)]  # it has learned them
    assert nouns(text).words == words


def test_without_it_textblobs_is_used():
    assert tagger_name() == "textblob-pattern"
    assert nouns("a clarinet plays fortissimo").words == ["clarinet", "fortissimo"]  # a word it does not know


def test_the_old_pickled_resource_is_never_read(tmp_path, monkeypatch):
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    old = tmp_path / "taggers" / "averaged_perceptron_tagger"
    old.mkdir(parents=True)
    (old / "averaged_perceptron_tagger.pickle").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    assert tagger_name() == "textblob-pattern" and nouns("a dog barks").words == ["dog"]


@pytest.mark.parametrize("part, content", [("weights", "{"), ("tagdict", "[1]"), ("classes", "5"), ("classes", None)])
def test_damaged_data_is_named(perceptron, part, content):
    file = perceptron / f"{RESOURCE}.{part}.json"
    file.write_text(content) if content is not None else file.unlink()
    with pytest.raises(InputError, match=f"{RESOURCE}.*can't be read.*nltk.downloader"):
        nouns("a dog barks")
