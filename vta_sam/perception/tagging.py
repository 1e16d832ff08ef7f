"""Text ⇒ words with their parts of speech (Penn Treebank tags), and corrections for the English of captions.

The tagger is NLTK's averaged perceptron where its data is installed (``python -m nltk.downloader
averaged_perceptron_tagger_eng``), else TextBlob's PatternTagger, which needs no data. Nothing is ever downloaded here.
Both were trained on newspapers. In captions of sounds they take rare animals for verbs ("a ferret is dooking"), verbs
for plurals ("a chicken crows") and gerunds for nouns ("toilet flushing"). :func:`fix_tags` corrects that.
"""

from __future__ import annotations

import re
import unicodedata
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from ..runtime.errors import InputError

MAX_CHARACTERS = 4000  # of a caption: some 700 words, several times the length of captioning models' texts
_NLTK = "averaged_perceptron_tagger_eng"
# a word with its hyphens and apostrophes; a number; the possessive's ending; any other sign
_TOKEN = re.compile(r"'s\b|[^\W\d_]+(?:[-'](?!s\b)[^\W\d_]+)*|\d+|[^\w\s]")
_LATIN = re.compile(r"[a-zß-öø-ɏ]")

_DETERMINERS = frozenset("""
    a an another any both each every her his its my no one our some the their these this those your
""".split())
_ONE = frozenset(("a", "an", "one", "each", "every", "another"))  # before a singular, so that a word in -s is a verb
_FINITE = ("VBZ", "VBP", "VBD", "MD")
# words that are always nouns in captions, though newspapers or their ending suggest otherwise
_NOUNS = frozenset("""
    badger cymbal dragonfly drum duckling female ferret gosling grouse housefly jackal male moped ostrich siren sled
    starling trimmer wrench
""".split())
_ING_NOUNS = frozenset("""
    awning building ceiling clothing crossing darling duckling dumpling earring evening gosling herring lightning
    morning nothing offspring painting pudding railing sapling sibling something starling viking wedding
""".split())
# third person singular, as captions of sounds use it: after a bare noun ("cat meows") these are verbs, not plurals
_VERBS = frozenset("""
    applauds bangs barks beats beeps bleats blows booms bounces brays breaks bursts buzzes cackles calls caws chats
    chatters chirps chuckles clangs clanks claps clatters clicks climbs clinks clucks coos coughs cracks crashes
    creaks cries croaks crows crunches cuts dings dooks drains drills drinks drips drives drones drums eats falls
    fires flies flows flushes gallops gobbles grinds growls grunts hammers hisses hits honks hoots howls hums idles
    jingles jumps kicks knocks laughs leaks leaps licks meows moans moos moves neighs oinks opens passes pecks peeps
    plays pops pounds pours pulls pumps purrs quacks rains rattles reverses revs rings roars rolls rubs rumbles runs
    rushes rustles scrapes scratches screams screeches scrubs shakes shouts shuts sighs sings sizzles skates skids
    skips slams slaps slides slips smashes snaps sneezes sniffs snores sounds speaks spins spits splashes splits
    squawks squeaks squeals starts stirs stops strikes strums sweeps swims swings talks taps throws thuds ticks
    toots tosses trills trots turns tweets types uses wails walks whimpers whines whirs whistles wipes works yawns
    yells yips
""".split())
PLURAL_FIRST = frozenset(("arms", "gas", "news", "sports"))  # plural in form, and yet the first part of a compound


@dataclass
class Token:
    """A word.

    Attributes:
        text: in lower case.
        tag: of the Penn Treebank.
        known: the entry of a vocabulary that the token stands for, or "". The tag of an entry is not corrected.
    """

    text: str
    tag: str
    known: str = ""

    @property
    def is_noun(self) -> bool:
        return self.tag.startswith("NN")

    @property
    def is_plural(self) -> bool:
        return self.tag in ("NNS", "NNPS")


_EDGE = Token("", ".")


def tagger_name() -> str:
    """Name of the tagger on this machine: "nltk-averaged_perceptron_tagger_eng" or "textblob-pattern".

    Nouns depend on it, so it has to be stored with them.
    """
    return _tagger()[0]


def tokenize(text: str) -> list[str]:
    """Text ⇒ its words and signs in lower case, of the first 4000 characters."""
    plain = unicodedata.normalize("NFKC", text[:MAX_CHARACTERS])  # it may be much longer than the text
    if max(len(text), len(plain)) > MAX_CHARACTERS:
        plain = plain[:MAX_CHARACTERS].rpartition(" ")[0]
    return _TOKEN.findall(plain.lower().replace("’", "'").replace("_", " "))


def tag(text: str) -> list[Token]:
    """Text ⇒ its words and signs with their tags, before :func:`fix_tags`.

    A sign has the tag "," or ".". A word of another alphabet has the tag FW.
    """
    words = tokenize(text)
    # all signs become commas and full stops: emoji are unknown to the taggers, and TextBlob has a meaning for slashes
    plain = [word if word[-1].isalnum() else "." if word in ".!?" else "," for word in words]
    return [Token(word, _tag_of(word, sign, tag)) for word, sign, tag in zip(words, plain, _tagger()[1](plain))]


def _tag_of(word: str, plain: str, tag: str) -> str:
    if plain in (",", "."):
        return plain
    if word == "'s":
        return "POS" if tag not in ("VBZ", "VBP") else tag
    if not word[0].isalpha():
        return "CD"
    return tag if _LATIN.match(word) else "FW"


@lru_cache(maxsize=1)
def _tagger() -> tuple[str, Callable[[list[str]], list[str]]]:
    """(name of the tagger, function from words to their tags). Raises InputError where NLTK's data is damaged."""
    from nltk.data import find
    from nltk.tag.perceptron import PerceptronTagger

    resource = f"taggers/{_NLTK}/"
    perceptron = PerceptronTagger(load=False)
    try:
        try:
            find(resource)
        except LookupError:
            return "textblob-pattern", _pattern_tags
        perceptron.load_from_json("eng")  # the JSON of this very resource, never the pickle of older releases
        perceptron.tag(["a", "dog"])
    except (OSError, ValueError, TypeError, AttributeError, LookupError, zipfile.BadZipFile) as error:
        raise InputError(f"NLTK's {resource} is installed but can't be read ({error}); remove it, or get it again with "
                         f"`python -m nltk.downloader --force {_NLTK}`") from error
    return f"nltk-{_NLTK}", lambda words: [tag for _, tag in perceptron.tag(words)]


def _pattern_tags(words: list[str]) -> list[str]:
    from textblob.en.taggers import PatternTagger  # takes a second to import

    return [tag for _, tag in PatternTagger().tag(" ".join(words), tokenize=False)] if words else []


def fix_tags(tokens: list[Token]) -> None:
    """Correct the tags, in place. Each rule runs over the whole text before the next one."""
    for rule in _RULES:
        for i, token in enumerate(tokens):
            if not token.known:
                token.tag = rule(tokens, i) or token.tag


def _around(tokens: list[Token], i: int) -> tuple[Token, Token]:
    """The tokens before and after token i."""
    return (tokens[i - 1] if i else _EDGE), (tokens[i + 1] if i + 1 < len(tokens) else _EDGE)


def _noun_by_name(tokens: list[Token], i: int) -> str | None:
    return "NN" if tokens[i].text in _NOUNS else None


def _gerund(tokens: list[Token], i: int) -> str | None:
    """A gerund is no noun: "toilet flushing", "owl hooting"."""
    token = tokens[i]
    is_gerund = re.search(r"[aeiouy].*ing$", token.text) and token.text not in _ING_NOUNS
    return "VBG" if is_gerund and token.tag in ("NN", "NNP", "JJ") else None


def _noun_by_verb(tokens: list[Token], i: int) -> str | None:
    """Of two verbs the first is a noun: "a spray can is", "an electric saw cuts", "barn swallow calling"."""
    before, after = _around(tokens, i)
    verb = tokens[i].tag in ("VB", "VBP", "VBD", "MD") and (before.tag in ("NN", "JJ") or before.text in _DETERMINERS)
    return "NN" if verb and (after.tag in ("VBZ", "VBG") or after.text in ("are", "can", "was", "were")) else None


def _noun_by_place(tokens: list[Token], i: int) -> str | None:
    """A word is a noun where nothing else fits: "a wrench", "fly, housefly", "saw cuts", "vacuum cleaner"."""
    token = tokens[i]
    before, after = _around(tokens, i)
    acts = after.tag in _FINITE or (after.text in _VERBS and after.tag != "VBG")
    ends = after.tag in (".", ",", "CC", "IN", "TO", "POS")
    plain_verb = token.tag in ("VB", "VBP", "MD", "UH")
    if before.text in _DETERMINERS or before.tag == "POS":
        if plain_verb or token.tag == "FW" and _LATIN.match(token.text):
            return "NN"
        if token.tag in ("JJ", "JJR", "RB", "VBN", "VBD"):  # "the loud bangs" is not about a loud
            closes = after.tag in (*_FINITE, ".", ",") or (acts and before.text in ("a", "an"))
            return "NN" if closes or (token.tag == "VBD" and after.tag in ("IN", "VBG")) else None
    if before.tag in (".", ",", "CC", "IN") and (plain_verb or token.tag == "VBD"):
        single = before.tag in (".", ",") and after.tag in (".", ",")
        return "NN" if acts or single or (plain_verb and after.tag == "VBG") else None
    if before.is_noun and token.tag == "JJR" and token.text.endswith("er") and (ends or after.tag.startswith("VB")):
        return "NN" if after.text != "than" else None
    return None


def _verb_by_subject(tokens: list[Token], i: int) -> str | None:
    """A noun is a verb after a pronoun ("a dog that barks", "it rings") or before its object ("strike a match")."""
    before, after = _around(tokens, i)
    if not tokens[i].is_noun:
        return None
    if i == 0 and tokens[i].tag == "NN" and after.text in _DETERMINERS:
        return "VB"
    if before.text in ("he", "it", "she", "which", "who") or (before.text == "that" and tokens[i].text in _VERBS):
        return "VBZ" if tokens[i].is_plural else None
    return "VB" if before.tag == "MD" else None


def _verb_in_compound(tokens: list[Token], i: int) -> str | None:
    """A noun after another is a verb where the number fits a verb: "a chicken crows", "cat meows", "birds chirp"."""
    token = tokens[i]
    before, after = _around(tokens, i)
    if not token.is_noun or not before.is_noun:
        return None
    if token.is_plural and token.text not in PLURAL_FIRST:
        if token.text in _VERBS or (not before.is_plural and (after.is_plural or _one_before(tokens, i))):
            return "VBZ"
    elif not token.is_plural and before.is_plural and before.text not in PLURAL_FIRST:
        if not after.is_noun and after.tag != "VBG":  # "people nose blowing"
            return "VB"
    return None


def _noun_as_object(tokens: list[Token], i: int) -> str | None:
    """A bare verb after a verb that takes an object is a noun: "playing drum", "cuts paper"."""
    before, after = _around(tokens, i)
    bare = tokens[i].tag in ("VB", "VBP", "MD") and not after.tag.startswith("VB")
    return "NN" if bare and (before.tag == "VBG" or (before.tag == "VBZ" and before.text in _VERBS)) else None


def _one_before(tokens: list[Token], i: int) -> bool:
    """Whether the noun phrase before token i opens with a singular determiner."""
    while i > 0 and (tokens[i - 1].is_noun or tokens[i - 1].tag in ("JJ", "VBG", "VBN")):
        i -= 1
    return i > 0 and tokens[i - 1].text in _ONE


_RULES = (_noun_by_name, _gerund, _noun_by_verb, _noun_by_place, _verb_by_subject, _verb_in_compound, _noun_as_object)
