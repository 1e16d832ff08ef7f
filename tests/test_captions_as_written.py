"""Captions as people write them: what they deny, how they look when copied from a page, and in other languages."""

import pytest
from models import SPEC, make_features

from vta_sam.generation.inputs import notes_on
from vta_sam.perception.captions import foreign_language, nouns
from vta_sam.perception.features import words_of


def rows(text):
    """A table "caption ⇒ noun; no noun" ⇒ [(caption, nouns, nouns of what is not there)]."""
    table = []
    for row in text.strip().splitlines():
        caption, found = row.strip().split(" ⇒ ")
        words = [] if found == "nothing" else found.split("; ")
        caption = caption.replace("\\n", "\n").replace("\\r", "\r")
        table.append((caption, [word for word in words if not word.startswith("no ")],
                      [word[3:] for word in words if word.startswith("no ")]))
    return table


DENIED = rows(r"""
    theres no dog, dont look for one ⇒ no dog
    this isnt a car ⇒ no car
    the man doesnt have a hat ⇒ man; no hat
    The cars arent visible ⇒ no car
    there is no dog in the street ⇒ no dog
    there are no cars, only birds ⇒ bird; no car
    there isn't a dog, but a cat meows ⇒ cat; no dog
    there aren't any people on the beach ⇒ beach; no person
    the man doesn't have a hat ⇒ man; no hat
    a dog that does not have a collar ⇒ dog; no collar
    the room has no windows ⇒ no window
    a street free of cars ⇒ no car
    a car-free street ⇒ no car
    a sugar-free drink on a table ⇒ drink; table; no sugar
    a cloudless sky ⇒ no cloud
    a driverless car passes ⇒ car; no driver
    a wireless phone rings ⇒ phone
    a homeless man plays the guitar ⇒ man; guitar
    a seamless window opens ⇒ window
    a dog but no cat ⇒ dog; no cat
    no dogs or cats ⇒ no dog; no cat
    no dogs and no cats, a bird sings ⇒ bird; no dog; no cat
    not only a dog but also a cat ⇒ dog; cat
    not just a dog, a cat too ⇒ dog; cat
    not a dog but a cat ⇒ cat; no dog
    it is not a dog, it is a cat ⇒ cat; no dog
    that isn't a dog ⇒ no dog
    this is not a car ⇒ no car
    nothing but a dog ⇒ dog
    there is nothing except a dog ⇒ dog
    nobody is there, a clock ticks ⇒ clock
    no one speaks, a dog barks ⇒ dog
    not far from the lake a dog barks ⇒ lake; dog
    a dog barks not far from a lake ⇒ dog; lake
    there are no longer any cars ⇒ no car
    the dog no longer barks ⇒ dog
    a man no longer plays the guitar ⇒ man; guitar
    never a dog, always a cat ⇒ cat; no dog
    a dog never barks ⇒ dog
    the man does not speak ⇒ man
    a dog that is not barking ⇒ dog
    a bird doesn't sing, a cat meows ⇒ bird; cat
    the man can't see the dog ⇒ man; dog
    a dog with no leash runs ⇒ dog; no leash
    a car without any driver ⇒ car; no driver
    no sound of cars ⇒ no car
    without the sound of traffic, a bird sings ⇒ bird; no traffic
    a band without a singer or a drummer ⇒ band; no singer; no drummer
    neither a dog nor a cat, but a bird ⇒ bird; no dog; no cat
    a man instead of a woman ⇒ man; no woman
    a cat rather than a dog ⇒ cat; no dog
    everything except the dog is quiet ⇒ no dog
    a kitchen minus the fridge ⇒ kitchen; no fridge
    the absence of people, a dog barks ⇒ dog; no person
    an absence of cars ⇒ no car
    a lack of birds ⇒ no bird
    a beach empty of people ⇒ beach; no person
    a bridge devoid of cars ⇒ bridge; no car
    no wind, no rain, just a dog ⇒ dog; no wind; no rain
    not one car ⇒ no car
    not a single person, only birds ⇒ bird; no person
    hardly any cars, a dog barks ⇒ car; dog
    a dog barks nonstop ⇒ dog
    a no-parking sign swings ⇒ sign
    a dog is barking at no one ⇒ dog
    without a doubt a dog barks ⇒ dog
    no doubt a dog barks ⇒ dog
    no matter what, the dog barks ⇒ dog
    a dog barks at nothing in particular ⇒ dog
    NO PEOPLE, A DOG BARKS ⇒ dog; no person
    there was no car on the bridge ⇒ bridge; no car
    there weren't any birds, only a dog ⇒ dog; no bird
    no dogs, cats or birds ⇒ no dog; no cat; no bird
    no people, a dog or a cat barks ⇒ dog; cat; no person
    a man with no dog or a woman with a cat ⇒ man; woman; cat; no dog
    the cars are not visible, a dog barks ⇒ dog; no car
    a dog that can't be seen barks ⇒ no dog
    the dog is missing ⇒ no dog
    a man doesn't wear a hat ⇒ man; no hat
    she isn't wearing glasses ⇒ no glass
    a woman who is not wearing a helmet rides a bike ⇒ woman; bike; no helmet
    a dog barks, with or without a leash ⇒ dog; leash
    a beach with neither people nor dogs ⇒ beach; no person; no dog
    a lake without boats ⇒ lake; no boat
    a bike without its bell ⇒ bike; no bell
    all but one dog barks ⇒ dog
    everyone but the dog ⇒ dog
    a piano, no drums ⇒ piano; no drum
    piano with no singer ⇒ piano; no singer
    not a car in sight ⇒ no car
    not a soul, just waves ⇒ wave; no soul
    a windless lake ⇒ lake; no wind
    people-free beach ⇒ beach; no person
    a hands-free phone rings ⇒ phone
    nothing moves, a clock ticks ⇒ clock
    more than a dog: a cat as well ⇒ dog; cat
    no fewer than three dogs bark ⇒ dog
    no more than two dogs bark ⇒ dog
    the engine is off, no sound ⇒ engine
    a train goes by without stopping ⇒ train
    without warning a bomb explodes ⇒ bomb
    a man, never without his hat ⇒ man; hat
    music without vocals, a guitar plays ⇒ guitar; no vocal
    an empty kitchen, no one around ⇒ kitchen
    cats, not dogs ⇒ cat; no dog
    this isn't an ambulance but a fire truck ⇒ truck; no ambulance
    it's not raining, a bird sings ⇒ bird
    a toilet that doesn't flush ⇒ toilet
    the phone is not ringing ⇒ phone
    no sign of people near the lake ⇒ lake; no person
    there's nobody in the boat ⇒ boat
    it's a dog, isn't it? ⇒ dog
    it was no dog that barked ⇒ no dog
    no animals were harmed: a horse runs ⇒ horse; no animal
    he does not like dogs ⇒ dog
    a bass and a piano, no guitar ⇒ bass; piano; no guitar
""")

# tags, entities, addresses, hashtags, labels of speakers, times, line ends, capitals, and names from elsewhere
WRITTEN = rows(r"""
    dog &amp; cat ⇒ dog; cat
    the dog&#39;s bowl ⇒ dog; bowl
    the dog&amp;#39;s bowl ⇒ dog; bowl
    dog &amp;amp; cat ⇒ dog; cat
    a dog&nbsp;barks ⇒ dog
    &lt;b&gt;dog&lt;/b&gt; barks ⇒ dog
    a dog<br/>a cat ⇒ dog; cat
    🐶🔥 a dog barks 😂😂 ⇒ dog
    a dog barks :) ⇒ dog
    #dog #cat ⇒ dog; cat
    my dog barking #dogsofinstagram #fyp ⇒ dog
    #bassguitar a man plays ⇒ man
    a dog barks https://example.org/video/cat?v=3 ⇒ dog
    dog barking www.horses.com ⇒ dog
    cat@example.org sent a dog ⇒ dog
    @birdlover a dog barks ⇒ dog
    0:15 a dog barks ⇒ dog
    [00:01:02] a dog barks ⇒ dog
    00:00:01,000 --> 00:00:04,000 a dog barks ⇒ dog
    [Music] a dog barks ⇒ dog
    [Applause] ⇒ nothing
    [MUSIC PLAYING] A WOMAN SINGS ⇒ woman
    (dog barking) ⇒ dog
    ♪ guitar ♪ ⇒ guitar
    MAN: the dog barks ⇒ man; dog
    Speaker 1: the dog barks ⇒ dog
    >> a dog barks ⇒ dog
    A DOG BARKS AT A CAT ⇒ dog; cat
    TWO PEOPLE PLAY TENNIS WITH A RACKET ⇒ person; racket
    a dog barks\\nand a cat meows ⇒ dog; cat
    a dog\\r\\nbarks ⇒ dog
    a van in den haag passes ⇒ van
    a stop sign of metal ⇒ sign; metal
    a dog &quot;talks&quot; to a cat ⇒ dog; cat
    dog &lt;3 cat ⇒ dog; cat
    &#x1F436; a dog ⇒ dog
    WOMAN #1: a dog barks ⇒ woman; dog
    My #dog barks at my #cat! #funny #pets ⇒ dog; cat
    #Dog barks at a man ⇒ man
    [Music playing] (dog barks) ⇒ dog
    [BLANK_AUDIO] ⇒ nothing
    Narrator: a lion roars ⇒ lion
    12:34 - a car passes - 12:50 ⇒ car
    A Dog Barks At A Cat ⇒ dog; cat
""")
ENGLISH = rows(r"""
    AV receiver hums ⇒ receiver
    MIT students play drums ⇒ student; drum
    a man plays la guitarra in San Juan ⇒ man; guitarra
    a woman sings la vie en rose ⇒ woman
    the piñata breaks ⇒ piñata
    a man in El Paso ⇒ man
    jalapeño pops in a pan ⇒ jalapeño
    El Paso traffic ⇒ traffic
    Big Ben bell ⇒ bell
    com port of a computer ⇒ port; computer
    die hard fans cheer ⇒ fan
    an auto passes ⇒ car
    cane toad croaks ⇒ toad
    un-tuned piano ⇒ piano
    sushi chef in Tokyo ⇒ chef
""")

FOREIGN = [row.strip().split(" ⇒ ") for row in """
    perro ladrando ⇒ Spanish
    un perro ladrando ⇒ Spanish
    chien qui aboie ⇒ French
    un chien aboie ⇒ French
    une femme chante ⇒ French
    Hund bellt ⇒ German
    ein Hund bellt ⇒ German
    Eine Katze miaut ⇒ German
    un cane che abbaia ⇒ Italian
    il cane abbaia ⇒ Italian
    un cachorro latindo ⇒ Portuguese
    o cachorro está latindo ⇒ Portuguese
    een hond blaft ⇒ Dutch
    de hond blaft ⇒ Dutch
    pies szczeka na ulicy ⇒ Polish
    kobieta śpiewa w domu ⇒ Polish
    mężczyzna gra na gitarze ⇒ Polish
    bir köpek havlıyor ⇒ Turkish
    adam gitar çalıyor ⇒ Turkish
    sokakta bir araba geçiyor ⇒ Turkish
    en hund skäller på gatan ⇒ Swedish
    en kvinna sjunger och spelar gitarr ⇒ Swedish
    con chó đang sủa ⇒ Vietnamese
    một người đàn ông chơi đàn ⇒ Vietnamese
    собака лает ⇒ another alphabet
    犬が吠える ⇒ another alphabet
    gato maullando ⇒ Spanish
    perros ladrando en la noche ⇒ Spanish
    el tren pasa ⇒ Spanish
    llueve en la ciudad ⇒ Spanish
    chat qui miaule ⇒ French
    la pluie tombe ⇒ French
    des oiseaux chantent ⇒ French
    Katze miaut ⇒ German
    Vögel zwitschern ⇒ German
    Regen fällt auf das Dach ⇒ German
    gatto che miagola ⇒ Italian
    la pioggia cade ⇒ Italian
    pássaros cantando ⇒ Portuguese
    chuva caindo no telhado ⇒ Portuguese
    kat miauwt ⇒ Dutch
    vogels fluiten in de tuin ⇒ Dutch
    pies szczeka ⇒ Polish
    ptaki śpiewają ⇒ Polish
    köpek havlıyor ⇒ Turkish
    kuşlar ötüyor ⇒ Turkish
    hund skäller ⇒ Swedish
    fåglar sjunger ⇒ Swedish
    chó sủa ⇒ Vietnamese
    tiếng mưa rơi ⇒ Vietnamese
    das Auto fährt ⇒ German
    der Hund ⇒ German
    le chien ⇒ French
""".strip().splitlines()]


def names(table):
    return [row[0] for row in table]


@pytest.mark.parametrize("caption, words, negated", DENIED, ids=names(DENIED))
def test_what_a_caption_denies(caption, words, negated):
    found = nouns(caption)
    assert (found.words, list(found.negated)) == (words, negated)


@pytest.mark.parametrize("caption, words, negated", WRITTEN + ENGLISH, ids=map(ascii, names(WRITTEN + ENGLISH)))
def test_a_caption_as_it_was_copied(caption, words, negated):
    found = nouns(caption)
    assert (found.words, list(found.negated), found.language) == (words, negated, None)


@pytest.mark.parametrize("sign", ["\u00ad", "\u200b", "\u200d", "\ufeff"], ids=ascii)
def test_signs_that_nobody_sees_part_no_words(sign):
    assert nouns(f"a do{sign}g barks").words == ["dog"]


@pytest.mark.parametrize("caption, language", FOREIGN, ids=names(FOREIGN))
def test_the_language_of_a_caption(caption, language):
    found = nouns(caption)
    assert (found.words, found.language) == ([], language)


def test_no_denial_makes_a_caption_foreign():
    assert [caption for caption in names(DENIED + WRITTEN + ENGLISH) if foreign_language(caption)] == []


def test_a_denied_entry_of_a_vocabulary_is_whole():
    found = nouns("no racing cars, a car passes", vocabulary=["racing car"])
    assert found.words == ["car"] and found.negated == ("racing car",)


def test_a_note_says_what_becomes_of_what_is_denied():
    denied, features = words_of("a dog barks without a cat", None), make_features("x", SPEC.duration_s, ("dog",))
    told = {negative: notes_on([denied, *([words_of(None, [negative])] if negative else [])], features, SPEC, True)
            for negative in ("cat", "rain", "")}
    assert told == {"cat": ["no cat: not looked for, and the sound is guided away from it"],
                    "rain": ["no cat: not looked for"], "": ["no cat: not looked for"]}
