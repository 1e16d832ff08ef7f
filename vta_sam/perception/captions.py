"""Caption ⇒ the nouns of the things to ground in the pictures, and of those that it says are not there."""

from __future__ import annotations

import html
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

from ..clip import MAX_OBJECTS
from .tagging import PLURAL_FIRST, Token, fix_tags, tag, tagger_name, tokenize

__all__ = ["Nouns", "nouns", "singular", "tagger_name"]

# nouns of no visible thing: parts of scenes and times, amounts, events
_NO_THING = frozenset("""
    acceleration afternoon air anyone anything area back background beginning bit blast bottom burst center corner
    crash day defense direction distance edge end environment evening event everyone everything explosion field
    floor flyby foreground front game grass ground group hour impact kind kit landing launch left lot mid midday
    middle minute moment morning night noon nothing one other pace pair part pass perch piece place position
    repetition right road room scene second set setting shot show side sky something sort speed stage start street
    takeoff time top turn type use variety video view way while work yard
""".split())
# amounts: "a flock of geese"
_AMOUNTS = frozenset("bunch couple crowd flock herd lots number pack pile row series swarm team".split())
# sounds, which have no picture: "dog bow-wow", "baby laughter", "harpsichord music"
_SOUNDS = frozenset("""
    applause bang bark barking beat beep blare bleat bleep boom bow-wow bray buzz cackle call caw chant chat chatter
    cheep cheer chirp chirrup chorus chug clang clank clap clatter click clink clip-clop cluck clunk conversation
    coo cough crackle creak croak crunch cry ding ding-dong echo giggle gobble groan growl grunt gunfire gunshot
    gurgle heartbeat hiss honk hoot howl hum jingle knock laugh laughter melody meow moan moo murmur music neigh
    noise oink patter pitter-patter pop purr quack rattle rhythm ringtone roar rumble rustle scream screech shout
    sigh silence sizzle snarl snore snort sob song sound speech splash squawk squeak squeal static talk thud thump
    tick tick-tock tone toot trill tune tweet voice vroom wail whimper whine whir whisper whoosh woof yap yell yelp
    yip
""".split())
# games, which count only where nothing else is named
_GAMES = frozenset("badminton billiards golf gymnastics hockey lacrosse polo rugby soccer squash tennis".split())
_SIREN = "siren"  # out of sight, or a part of another thing: "ambulance siren"
_SAME_AS = {
    "auto": "car", "female": "woman", "folk": "person", "male": "man", "somebody": "person", "someone": "person",
}
_INSIDE = frozenset(("in", "inside", "within"))  # the noun after them is a place, not the source of the sound
# words in -s that are no plurals, or that name one thing by a plural
_KEEP = frozenset("""
    atlas binoculars canvas chaos christmas clothes debris gas gymnastics jeans lens molasses news pajamas pancreas
    pants pliers rhinoceros scissors series shears shorts species sports tennis thermos tongs trousers tweezers
""".split())
# what follows one of these is not there, up to the end of its noun phrase
_NEGATORS = frozenset("except excluding lacking minus neither no nor not without".split())
_WITHIN_PHRASE = ("DT", "JJ", "JJR", "JJS", "PRP$", "CD", "VBG", "VBN", "NN", "NNS", "NNP", "NNPS", "POS")
_BEGINS_PHRASE = frozenset("a an another one some the".split())
_TAG = re.compile(r"</?[a-zA-Z][^<>]{0,200}>")  # of HTML
# words of other languages that are none in English, by which a caption in them is known
_FOREIGN = {
    "German": "auf aus bei das dem den der ein eine einem einen einer eines für ist mit nicht oder sich und vom von "
              "wird über zu zum zur",
    "French": "au aux avec dans des du elle est et il la le les pour qui sous sur une",
    "Spanish": "con cerca del donde el en esta está las los mientras muy por que sobre una y",
    "Italian": "accanto che con della delle di gli il nel nella per piano sono sta suo un una",
    "Portuguese": "com da das do dos ele em está mais na nas no nos para que seu sua uma",
    "Dutch": "aan bij de een en het naar niet op te voor wordt zijn",
}
_FOREIGN_WORDS = {language: frozenset(words.split()) for language, words in _FOREIGN.items()}
_ENGLISH = frozenset("a an and are as at by from in is of on the to with while".split())
_LONGEST = 40  # letters; longer words are no English
_REAL_PLURALS = frozenset("bikinis emus gnus gurus kiwis menus rabbis safaris skis taxis tsunamis".split())


@dataclass(frozen=True)
class Nouns:
    """Object nouns of a caption.

    Attributes:
        words: in the order of the caption, singular, lower case, each once.
        dropped: number of nouns beyond the limit.
        negated: nouns of things that are not there ("no people", "without cars"), likewise.
        language: of a caption that is not in English, of which no noun is taken; else None.
    """

    words: list[str]
    dropped: int = 0
    negated: tuple[str, ...] = ()
    language: str | None = None


def nouns(caption: str, limit: int = MAX_OBJECTS, vocabulary: Collection[str] = ()) -> Nouns:
    """The things that a caption names.

    A compound counts as its last word ("race car" ⇒ car), unless ``vocabulary`` holds it ("racing car"). Entries of the
    vocabulary are also found where the rules would leave them out. Places ("in a pan"), games and sirens are left out
    unless nothing else is named. Only the beginning of a very long caption is read, see :func:`~.tagging.tokenize`. The
    words depend on the tagger, see :func:`tagger_name`.

    Args:
        caption: in English. Tags and entities of HTML are read as a browser shows them.
        limit: number of words that are kept.
        vocabulary: words and compounds that are kept whole.

    Raises:
        InputError: the tagger's data is damaged.
    """
    caption = html.unescape(_TAG.sub(" ", caption))
    if (language := foreign_language(caption)) is not None:
        return Nouns([], language=language)
    tokens = _merge_known(tag(caption), vocabulary)
    fix_tags(tokens)
    things: list[str] = []
    asides: list[str] = []
    negated: list[str] = []
    for start, run in _runs(tokens):
        word = _head(run)
        end = start + len(run)
        if word in _AMOUNTS and end < len(tokens) and tokens[end].text == "of":
            continue
        if word and _is_negated(tokens, start):
            negated.append(word)
        elif word:
            aside = not run[0].known and _is_aside(tokens, start, word)
            (asides if aside else things).append(word)
    words = list(dict.fromkeys(things or asides))
    absent = [word for word in dict.fromkeys(negated) if word not in words]
    return Nouns(words[:limit], max(0, len(words) - limit), tuple(absent[:limit]))


def foreign_language(caption: str) -> str | None:
    """The language of a caption that is not in English, by its small words or its alphabet; None: English, or too short
    to say."""
    words = tokenize(caption)
    letters = [letter for letter in caption if letter.isalpha()]
    if letters and sum(ord(letter) > 0x24F for letter in letters) > len(letters) / 2:
        return "another alphabet"
    english = sum(word in _ENGLISH for word in words)
    found = {language: sum(word in known for word in words) for language, known in _FOREIGN_WORDS.items()}
    language = max(found, key=lambda name: found[name])
    return language if found[language] > english and (found[language] > 1 or len(words) < 8) else None


def _is_negated(tokens: list[Token], start: int) -> bool:
    """Whether the noun phrase around ``start`` names a thing that is not there."""
    for place in range(start - 1, -1, -1):
        word = tokens[place].text
        if word in _NEGATORS:
            return True
        goes_on = word in ("or", "nor") or word == "and" and tokens[place + 1].text not in _BEGINS_PHRASE
        if not goes_on and tokens[place].tag not in _WITHIN_PHRASE:
            return False
    return False


@lru_cache(maxsize=1)
def _inflections():
    import inflect  # takes a second or two to import

    return inflect.engine()


@lru_cache(maxsize=4096)
def singular(plural: str) -> str:
    """A plural noun in lower case ⇒ its singular. Words in -s without a singular ("tennis", "scissors") stay."""
    if plural in _KEEP or (plural.endswith(("ss", "us", "is")) and plural not in _REAL_PLURALS):
        return plural
    return str(_inflections().singular_noun(plural) or plural)


def _merge_known(tokens: list[Token], vocabulary: Collection[str]) -> list[Token]:
    """The tokens, those of the longest vocabulary entry at each place joined into one noun."""
    entries = {tuple(tokenize(entry)): entry for entry in vocabulary}
    longest = max(map(len, entries), default=0)
    merged, i = [], 0
    while i < len(tokens):
        for length in range(min(longest, len(tokens) - i), 0, -1):
            span = [token.text for token in tokens[i:i + length]]
            exact = entries.get(tuple(span))
            entry = exact or entries.get((*span[:-1], singular(span[-1])))
            if entry:
                merged.append(Token(" ".join(span), "NN" if exact else "NNS", entry))
                i += length
                break
        else:
            merged.append(tokens[i])
            i += 1
    return merged


def _runs(tokens: list[Token]) -> list[tuple[int, list[Token]]]:
    """Noun compounds as (index of the first token, tokens). A known entry is one by itself, a plural ends one."""
    runs: list[tuple[int, list[Token]]] = []
    is_open = False
    for i, token in enumerate(tokens):
        if token.is_noun and is_open and not token.known:
            runs[-1][1].append(token)
        elif token.is_noun:
            runs.append((i, [token]))
        is_open = token.is_noun and not token.known and (not token.is_plural or token.text in PLURAL_FIRST)
    return runs


def _head(run: list[Token]) -> str:
    """The head of a compound, its last noun that names a thing ("harpsichord music" ⇒ harpsichord), or ""."""
    siren = ""
    for token in reversed(run):
        if token.known:
            return token.known
        word = singular(token.text) if token.is_plural else token.text
        word = _SAME_AS.get(word, word)
        if word == _SIREN:
            siren = word
        elif word not in _NO_THING and word not in _SOUNDS and 1 < len(word) <= _LONGEST:
            return word
    return siren


def _is_place(tokens: list[Token], start: int) -> bool:
    """Whether the noun phrase around ``start`` names a place."""
    while start > 0 and tokens[start - 1].tag in ("DT", "JJ", "PRP$", "CD", "VBG", "VBN"):
        start -= 1
    return start > 0 and tokens[start - 1].text in _INSIDE


def _is_aside(tokens: list[Token], start: int, word: str) -> bool:
    """Whether ``word`` counts only where nothing else is named: a siren, a game, the ball of a game ("playing
    football"), or a place."""
    played = start > 0 and tokens[start - 1].text in ("play", "played", "playing", "plays")
    return word == _SIREN or word in _GAMES or (played and word.endswith("ball")) or _is_place(tokens, start)
