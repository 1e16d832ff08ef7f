"""Caption ⇒ the nouns that name things to look for in the pictures.

TextBlob's PatternTagger works without downloads, but was made for newspaper prose: in captions of sounds it takes rare
animals for verbs ("a ferret is dooking") and verbs for plurals ("a chicken crows"). The rules here mend that.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

from .clip import MAX_OBJECTS

# words that name no thing one could point at, and the settings that things stand in
_NO_THING = frozenset("""
    anyone anything area back background beat bottom call center chatter chorus clip corner cry day direction
    distance edge end environment everyone everything field floor foreground front grass ground group kind left lot
    melody middle minute moment morning music night noise nothing one pair part perch piece place rhythm right road
    room row scene second show side sky something song sort sound stage street time top tune type variety video view
    way while yard
""".split())
_SAME_AS = {"someone": "person", "somebody": "person", "folk": "person"}
# third person singular, as captions of sounds use it: after a bare noun ("cat meows") these are verbs, not plurals
_VERBS = frozenset("""
    bangs barks beats beeps bleats blows booms bounces brays bursts buzzes cackles calls caws chats chatters chimes
    chirps chuckles clangs clanks clatters clicks clinks clucks coos cracks creaks cries croaks crows crunches dings
    dooks drips drives drones drums falls flies flows flushes gallops growls grunts hammers hisses honks hoots howls
    hums idles jingles knocks laughs meows moos neighs oinks opens passes peeps plays pops purrs quacks rattles revs
    rings roars rolls rumbles runs rustles screams screeches shouts shuts sings sizzles slams snores sounds speaks
    splashes squawks squeaks squeals strikes strums talks taps thuds ticks toots trills turns tweets types walks
    whines whirs whistles yells yips
""".split())
_ONE = frozenset(("a", "an", "one", "each", "every", "another"))  # what follows is singular, so a later -s is a verb
_INSIDE = frozenset(("in", "inside", "at", "within"))  # what follows is where it happens, not what makes the sound
_NO_COMPOUND = frozenset(("sports", "arms", "news", "gas"))  # plural in form, yet the first half of a compound


@dataclass(frozen=True)
class Nouns:
    """words: object nouns in the order of the caption, singular, lower case, each once. dropped: how many more than the
    limit there were."""

    words: list[str]
    dropped: int = 0


@dataclass
class _Token:
    text: str
    tag: str  # Penn Treebank
    known: str = ""  # the vocabulary's entry that starts here

    @property
    def is_noun(self) -> bool:
        return self.tag.startswith("NN")


def nouns(caption: str, limit: int = MAX_OBJECTS, vocabulary: Collection[str] = ()) -> Nouns:
    """The things that a caption names.

    A compound counts as its last word ("race car" ⇒ car), unless ``vocabulary`` holds it ("racing car"); entries of the
    vocabulary are also found where the rules would pass over them. Places ("in a pan") are left out unless nothing else
    is named. No nouns ⇒ no words.
    """
    tokens = _merge_known(_tag(caption.lower()), vocabulary)
    _mend(tokens)
    things: list[str] = []
    places: list[str] = []
    for start, run in _runs(tokens):
        word = _head(run)
        if word:
            place = _is_place(tokens, start) and not any(token.known for token in run)
            (places if place else things).append(word)
    words = list(dict.fromkeys(things or places))
    return Nouns(words[:limit], max(0, len(words) - limit))


def _tag(text: str) -> list[_Token]:
    return [_Token(word, tag) for word, tag in _tagger().tag(text, tokenize=True)]


@lru_cache(maxsize=1)
def _tagger():
    from textblob.en.taggers import PatternTagger  # takes a second to import

    return PatternTagger()


@lru_cache(maxsize=4096)
def _singular(word: str) -> str:
    from textblob import Word

    # the rules of textblob take the s off "bus", "glass" and "tennis"
    return word if word.endswith(("ss", "us", "is")) else str(Word(word).singularize())


def _merge_known(tokens: list[_Token], vocabulary: Collection[str]) -> list[_Token]:
    """Join the tokens of the longest vocabulary entry at each place into one noun."""
    entries = {tuple(entry.lower().split()): entry for entry in vocabulary}
    longest = max(map(len, entries), default=0)
    merged, i = [], 0
    while i < len(tokens):
        for length in range(longest, 0, -1):
            span = [token.text for token in tokens[i:i + length]]
            entry = entries.get(tuple(span)) or entries.get((*span[:-1], _singular(span[-1])))
            if entry and len(span) == length:
                plural = entries.get(tuple(span)) is None
                merged.append(_Token(" ".join(span), "NNS" if plural else "NN", entry))
                i += length
                break
        else:
            merged.append(tokens[i])
            i += 1
    return merged


def _mend(tokens: list[_Token]) -> None:
    """Correct the tagger where captions differ from prose; see the rules below."""
    for i, token in enumerate(tokens):
        before = tokens[i - 1] if i else None
        after = tokens[i + 1] if i + 1 < len(tokens) else None
        opens_clause = before is None or before.tag in ("CC", "IN", ",", ":", ".")
        follows = after is not None and (after.tag.startswith(("VB", "MD")) or after.text in _VERBS)
        if before is not None and before.tag in ("DT", "PRP$") and token.tag[:2] in ("VB", "MD", "FW", "UH"):
            if token.tag != "VBG" or follows or after is None:  # "a ferret"; but "a barking dog"
                token.tag = "NN"
        elif before is not None and before.tag == "DT" and token.tag == "JJ" and (follows or after is None):
            token.tag = "NN"  # a rare word taken for an adjective: what else could a determiner belong to?
        elif opens_clause and token.tag in ("VB", "VBP", "JJ") and follows:
            token.tag = "NN"  # "ferret dooks"
    for i, token in enumerate(tokens[1:], 1):
        before = tokens[i - 1]
        after = tokens[i + 1] if i + 1 < len(tokens) else None
        if token.known or not token.is_noun or not before.is_noun or (after is not None and after.is_noun):
            continue
        if token.tag == "NNS" and before.tag != "NNS" and (token.text in _VERBS or _one_before(tokens, i)):
            token.tag = "VBZ"  # "a chicken crows", "cat meows"
        elif token.tag == "NN" and before.tag == "NNS" and before.text not in _NO_COMPOUND:
            token.tag = "VB"  # "birds chirp"


def _one_before(tokens: list[_Token], i: int) -> bool:
    """Whether the noun phrase before token i opens with a word that makes it singular."""
    while i > 0 and (tokens[i - 1].is_noun or tokens[i - 1].tag in ("JJ", "VBG", "VBN")):
        i -= 1
    return i > 0 and tokens[i - 1].text in _ONE


def _runs(tokens: list[_Token]) -> list[tuple[int, list[_Token]]]:
    """Stretches of nouns ⇒ (index of the first, tokens). A known entry is a run of its own."""
    runs: list[tuple[int, list[_Token]]] = []
    open_run = False
    for i, token in enumerate(tokens):
        if token.is_noun and open_run and not token.known and not runs[-1][1][-1].known:
            runs[-1][1].append(token)
        elif token.is_noun:
            runs.append((i, [token]))
        open_run = token.is_noun
    return runs


def _head(run: list[_Token]) -> str:
    """The noun that a run of nouns names: its last that names a thing ("harpsichord music" ⇒ harpsichord), or ""."""
    for token in reversed(run):
        if token.known:
            return token.known
        word = _singular(token.text) if token.tag in ("NNS", "NNPS") else token.text
        if word.isalpha() or "-" in word:
            word = _SAME_AS.get(word, word)
            if word not in _NO_THING and len(word) > 1:
                return word
    return ""


def _is_place(tokens: list[_Token], start: int) -> bool:
    i = start
    while i > 0 and tokens[i - 1].tag in ("DT", "JJ", "PRP$", "CD", "VBG", "VBN"):
        i -= 1
    return i > 0 and tokens[i - 1].text in _INSIDE
