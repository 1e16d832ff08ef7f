"""Caption ⇒ the nouns of the things to ground in the pictures, and of those that it says are not there."""

from __future__ import annotations

import html
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..clip import MAX_OBJECTS
from .tagging import MAX_CHARACTERS, PLURAL_FIRST, Token, fix_tags, tag, tagger_name, tokenize

__all__ = ["NOUN_RULES_VERSION", "Nouns", "noun_rules", "nouns", "singular", "tagger_name"]

# Of the rules here and in tagging.py: raised with every change after which a caption has other nouns. tests/golden has
# captions with the nouns of this version. 1: also what earlier releases did, which counted no versions.
NOUN_RULES_VERSION = 1

# nouns of no visible thing: parts of scenes and times, amounts, events
_NO_THING = frozenset("""
    acceleration afternoon air anyone anything area back background beginning bit blast bottom burst center corner
    crash day defense direction distance edge end environment evening event everyone everything explosion field
    floor flyby foreground front game grass ground group hour impact kind kit landing launch left lot mid midday
    middle minute moment morning night nobody none noon nothing one other pace pair part pass perch piece place
    position repetition right road room scene second set setting shot show side sight sky something sort speed stage
    start street takeoff time top turn type use variety video view way while work yard
    absence doubt lack longer matter shortage wonder
""".split())
# amounts: "a flock of geese"
_AMOUNTS = frozenset("bunch couple crowd flock herd lots number pack pile row series swarm team".split())
_SIGNS = frozenset("evidence glimpse hint sign trace".split())  # likewise where negated: "no sign of people"
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
# compounds that are no kind of their last word: the car must not be looked for where a cable car is
_WHOLE = (
    "bell pepper", "cable car", "computer mouse", "guinea pig", "hobby horse", "hot dog", "hour glass", "jelly fish",
    "lady bird", "lady bug", "magnifying glass", "pine cone", "prairie dog", "rocking horse", "rubber duck",
    "sea horse", "star fish", "teddy bear", "toy car", "toy dog", "toy gun", "toy train", "traffic light",
)
_INSIDE = frozenset(("in", "inside", "within"))  # the noun after them is a place, not the source of the sound
# words in -s that are no plurals, or that name one thing by a plural
_KEEP = frozenset("""
    atlas binoculars canvas chaos christmas clothes debris gas gymnastics jeans lens molasses news pajamas pancreas
    pants pliers rhinoceros scissors series shears shorts species sports tennis thermos tongs trousers tweezers
""".split())
# what follows one of these is not there, up to the end of its noun phrase
_NEGATORS = frozenset("""
    ain't aren't except excluding hasn't haven't isn't lacking lacks minus neither never no nor not wasn't weren't
    without
""".split())
_NEGATING_PAIRS = frozenset((
    "absence of", "devoid of", "empty of", "free from", "free of", "instead of", "lack of", "rather than",
    "shortage of",
))
# before one of these a negator says nothing of a thing: "not only a dog", "no doubt a dog barks", "a no entry sign"
_VOID = frozenset("""
    doubt entry exit far just less matter merely necessarily only parking simply smoking sooner to trespassing wonder
""".split())
_OTHER_THAN = frozenset("except excluding minus".split())
_NOBODY = frozenset("no nobody none nothing".split())  # "nothing except a dog": the dog is there
_HAVING = frozenset("contain contains feature features had has have include includes show shows wear wearing "
                    "wears".split())
# before these: "doesn't have a hat"
_NOT_HAVING = frozenset("aren't can't cannot didn't doesn't don't isn't never no not won't".split())
_BETWEEN = frozenset("actually currently even ever longer really yet".split())  # a negator and its phrase
_WITHIN_PHRASE = ("DT", "JJ", "JJR", "JJS", "PRP$", "CD", "VBG", "VBN", "NN", "NNS", "NNP", "NNPS", "POS")
_BEFORE_OF = _NO_THING | _SOUNDS | _AMOUNTS | _SIGNS  # "no sound of cars"
_BEGINS_PHRASE = frozenset("a an another her his its my one our some that the their these this those your".split())
# after a noun phrase: "a dog that isn't there"
_NOT_THERE = re.compile(
    r"(?:(?:that|which|who) )?(?:(?:(?:is|are|was|were) (?:no longer|never|not)|(?:is|are|was|were)n't) "
    r"(?:(?:actually|even|really|yet) )?(?:around|audible|heard|here|in sight|in view|present|seen|shown|there|visible)"
    r"|(?:is|are|was|were) (?:absent|missing|nowhere)|(?:can't|cannot|can not) be (?:heard|seen))\b")
# "a cloudless sky", "a car-free street"; of other nouns -less and -free say something else (wireless, hands-free)
_NONE_OF = re.compile(
    r"(bird|cloud|driver|leaf|moon|pilot|rider|roof|shirt|shoe|sleeve|star|tree|wind|window)less|"
    r"(car|cloud|crowd|dog|people|smoke|snow|sugar|traffic|tree|wind)-free")
_TAG = re.compile(r"</?[a-zA-Z][^<>]{0,200}>")  # of HTML
# addresses, names of accounts, and labels of speakers: no words of the caption
_NO_WORDS = re.compile(r"(?:https?://|www\.)\S+|[\w.+-]{0,64}@[\w.-]+|"
                       r"\b(?:announcer|host|interviewer|narrator|speaker|voice-?over)[ _]?\d*:", re.IGNORECASE)
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")  # soft hyphens, joiners, marks of direction
# "isnt", "theres": words that people write without their apostrophe
_CONTRACTED = re.compile(r"\b(are|ca|did|does|do|had|has|have|is|was|were|wo)nt\b|\b(there)s\b", re.IGNORECASE)
_BEFORE_HASHTAG = ("DT", "JJ", "PRP$", "IN", "CC", "CD")  # a word within a sentence: "a #dog barks"
# words of other languages by which a caption in them is known: small ones, and those of what captions tell
_FOREIGN = {
    "German": "auf aus bei das dem den der ein eine einem einen einer eines für ist mit nicht oder sich und vom von "
              "wird über zu zum zur auto bellt fährt frau hund hunde katze kind kinder leute läuft mann musik regen "
              "singt spielt spricht straße vogel vögel zug",
    "French": "au aux avec dans des du elle est et il la le les pour qui sous sur un une aboie chante chat chien "
              "chiens enfant enfants femme homme joue miaule musique oiseau oiseaux parle pluie rue voiture",
    "Spanish": "con cerca del donde el en esta está la las los mientras muy por que se sobre un una y caballo calle "
               "canta cantando coche gato guitarra habla hablando hombre ladra ladrando lluvia mujer música niña niño "
               "niños pájaro pájaros perro perros tocando tren",
    "Italian": "accanto che con della delle di gli il la nel nella per piano sono sta suo un una abbaia abbaiano "
               "bambini bambino cane cani canta donna gatto macchina parla pioggia strada suona treno uccelli uccello "
               "uomo",
    "Portuguese": "com da das dos ele em está mais na nas nos para que seu sua um uma cachorro cachorros caindo "
                  "cantando carro chuva criança crianças gato homem latindo mulher pássaro pássaros rua tocando trem "
                  "violão",
    "Dutch": "aan bij de een en het naar niet op te voor wordt zijn auto blaft hond honden kat kind kinderen praat "
             "regen speelt straat vogel vogels vrouw zingt",
    "Polish": "do i na nad nie obok po pod przez się w z ze deszcz dziecko gitarze gra jedzie kobieta kot mówi "
              "mężczyzna pies ptak ptaki samochód szczeka ulicy śpiewa",
    "Turkish": "bir bu da de gibi ile için ve var adam araba çalıyor çocuk gitar havlıyor kadın kedi köpek kuş kuşlar "
               "müzik sokakta söylüyor yağmur yağıyor",
    "Swedish": "att av den det en ett från har i inte med och om på som är till barn bil fågel fåglar gatan gitarr "
               "hund hundar katt kvinna regnet sjunger skäller spelar talar tåg",
    "Vietnamese": "các có của con cái đang một người những trên trong và với chó chơi đàn đường hát mèo mưa nhạc nói "
                  "ông phụ nữ sủa xe",
}
_FOREIGN_WORDS = {language: frozenset(words.split()) for language, words in _FOREIGN.items()}
# a few of these stand in English captions too, most of all in names: "Los Angeles", "El Paso", "la vie en rose"
_IN_NAMES = frozenset("""
    adam auto av barn bil cane chat com con da das de del den der des di do dos du el em en est et gra har i il kind
    la las le les los mit na no nos om on op per piano pies po pod rue se sta till un una van von w y z
""".split())
# letters of one of these languages alone
_LETTERS = {"German": "ß", "Polish": "ąćęłńśźż", "Turkish": "ğış", "Swedish": "å",
            "Vietnamese": "ạảấầẩẫậắằẳẵặẹẻẽếềểễệịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹđươ"}
_ENGLISH = frozenset("""
    a an and are as at behind by for from has her his in into is it its near no of off on over some that the their
    there they this through to two under up while who with
    barking barks bird birds cat cats children dog dogs people playing plays rain singing sings speaking speaks street
    woman women
""".split())
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

    A compound counts as its last word ("race car" ⇒ car), unless it is another kind of thing ("cable car"), or
    ``vocabulary`` holds it ("racing car"). Entries of the vocabulary are also found where the rules would leave them
    out. Places ("in a pan"), games and sirens are left out unless nothing else is named. Only the beginning of a very
    long caption is read, see :func:`~.tagging.tokenize`. The words depend on the tagger, see :func:`tagger_name`.

    Args:
        caption: in English. Tags and entities of HTML are read as a browser shows them. Addresses are not read, and
            hashtags outside of a sentence only where nothing else is named.
        limit: number of words that are kept.
        vocabulary: words and compounds that are kept whole.

    Raises:
        InputError: the tagger's data is damaged.
    """
    caption = _as_shown(caption)
    if (language := foreign_language(caption)) is not None:
        return Nouns([], language=language)
    tokens = _merge_known(tag(caption), (*_WHOLE, *vocabulary))
    negated: list[tuple[int, str]] = []  # with the place in the caption
    for place, token in enumerate(tokens):
        if token.text.endswith("n't"):
            token.tag = "VBZ"
        if not token.known and (found := _NONE_OF.fullmatch(token.text)):
            token.tag = "JJ"
            negated.append((place, singular(found[1] or found[2])))
    fix_tags(tokens)
    things: list[str] = []
    asides: list[str] = []
    for start, run in _runs(tokens):
        word = _head(run)
        end = start + len(run)
        of = end < len(tokens) and tokens[end].text == "of"
        if of and word in _AMOUNTS:
            continue
        if word and (_is_negated(tokens, start) or _is_said_absent(tokens, end)):
            negated += [(start, word)] if not (of and word in _SIGNS) else []
        elif word:
            aside = not run[0].known and _is_aside(tokens, start, word)
            (asides if aside else things).append(word)
    words = list(dict.fromkeys(things or asides))
    absent = [word for word in dict.fromkeys(word for _, word in sorted(negated)) if word not in words]
    return Nouns(words[:limit], max(0, len(words) - limit), tuple(absent[:limit]))


def noun_rules() -> dict[str, Any]:
    """{"tagger": name, "rules": version}: on which the nouns of captions depend."""
    return {"tagger": tagger_name(), "rules": NOUN_RULES_VERSION}


def _as_shown(caption: str) -> str:
    """The text that a reader sees, without addresses, with apostrophes. Entities may have been escaped several times.
    """
    caption = caption[:4 * MAX_CHARACTERS]  # of which MAX_CHARACTERS of text are read
    for _ in range(3):
        caption, before = html.unescape(_TAG.sub(" ", caption)), caption
        if caption == before:
            break
    caption = _NO_WORDS.sub(" ", _INVISIBLE.sub("", _TAG.sub(" ", caption)))
    return _CONTRACTED.sub(lambda found: f"{found[1]}n't" if found[1] else f"{found[2]}'s", caption)


def foreign_language(caption: str) -> str | None:
    """The language of a caption that is not in English, by its words or its alphabet; None: English, or too short to
    say."""
    words = set(tokenize(caption))
    letters = [letter for letter in caption if letter.isalpha()]
    # Vietnamese has Latin letters beyond the first blocks
    other = sum(ord(letter) > 0x24F and not 0x1E00 <= ord(letter) < 0x1F00 for letter in letters)
    if letters and other > len(letters) / 2:
        return "another alphabet"
    english = sum(word in _ENGLISH for word in words)
    found = {language: sum(word in known or any(letter in word for letter in _LETTERS.get(language, ""))
                           for word in words) for language, known in _FOREIGN_WORDS.items()}
    language = max(found, key=lambda name: found[name])
    count, letters_of = found[language], _LETTERS.get(language, "")
    clear = any(word in _FOREIGN_WORDS[language] - _IN_NAMES or any(letter in word for letter in letters_of)
                for word in words) or count > 1 and 2 * count >= len(words)
    return language if clear and count > english and (count > 1 or len(words) < 8) else None


def _is_negated(tokens: list[Token], start: int) -> bool:
    """Whether the noun phrase around ``start`` follows words that say that its thing is not there."""
    begun = article = False  # a determiner has been passed; the phrase is a later one of a list, with an article
    for place in range(start - 1, -1, -1):
        word, before, after = tokens[place].text, tokens[place - 1].text if place else "", tokens[place + 1].text
        if word in _NEGATORS:
            return _negates(tokens, place) and not (article and word == "no")
        if f"{before} {word}" in _NEGATING_PAIRS:
            return True
        if word in _HAVING:
            return _is_not_having(tokens, place)
        if word in ("or", "and") and (after not in _BEGINS_PHRASE or word == "or"):
            begun, article = False, after in _BEGINS_PHRASE
        elif word == "," and _goes_on_to_or(tokens, place):
            begun = False
        elif word == "of" and before in _BEFORE_OF:
            begun = False
        elif word not in _BETWEEN:
            if begun or tokens[place].tag not in _WITHIN_PHRASE:
                return False
            begun = word in _BEGINS_PHRASE
    return False


def _negates(tokens: list[Token], place: int) -> bool:
    """Whether the negator at ``place`` says that a thing is not there."""
    word, before = tokens[place].text, [token.text for token in tokens[max(0, place - 3):place]]
    if tokens[place + 1].text in _VOID:
        return False
    if word == "without" and (before[-2:] == ["with", "or"] or before[-1:] in (["never"], ["not"])):
        return False
    return not (word in _OTHER_THAN and _NOBODY & set(before))


def _is_not_having(tokens: list[Token], verb: int) -> bool:
    """Whether a verb such as "have" is negated: "does not have", "no longer has"."""
    place = verb - 1
    while place > 0 and tokens[place].text in _BETWEEN:
        place -= 1
    return place >= 0 and tokens[place].text in _NOT_HAVING


def _goes_on_to_or(tokens: list[Token], comma: int) -> bool:
    """Whether a list with this comma ends in "or": "no dogs, cats or birds"."""
    place = comma + 1
    if place < len(tokens) and tokens[place].text in _BEGINS_PHRASE:
        return False
    while place < len(tokens) and (tokens[place].is_noun or tokens[place].tag in ("JJ", "CD") or
                                   tokens[place].text == ","):
        place += 1
    return place < len(tokens) and tokens[place].text in ("or", "nor")


def _is_said_absent(tokens: list[Token], end: int) -> bool:
    """Whether the words after a noun phrase say that its thing is not there: "cars are not visible"."""
    return _NOT_THERE.match(" ".join(token.text for token in tokens[end:end + 6])) is not None


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
    football"), a place, or a hashtag outside of a sentence."""
    if start > 0 and tokens[start - 1].text == "#":
        before = [token.text for token in tokens[max(0, start - 3):start - 1]]
        if before[:1] == ["#"] or not before or tokens[start - 2].tag not in _BEFORE_HASHTAG:
            return True
    played = start > 0 and tokens[start - 1].text in ("play", "played", "playing", "plays")
    return word == _SIREN or word in _GAMES or (played and word.endswith("ball")) or _is_place(tokens, start)
