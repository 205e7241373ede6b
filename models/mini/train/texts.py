"""English sentences for the training voices: made from grammar templates and word lists of our own.

`sentences(split, seed)` is an endless, deterministic stream. A sentence belongs to exactly one of
the splits train, sync and test (by a hash of its words), so the splits never share one whatever the
seeds are. The lists lean on what can be seen on a mouth: m b p, f v, th, l, w and oo, sh and ch,
ee, wide ah.

    python models/mini/train/texts.py --split test --count 20        prints some
"""

import argparse
import random
import zlib

SPLITS = ("train", "sync", "test")

NAMES = """
Abby Albert Amy Barbara Beth Bob Brian Chloe Daphne David Edith Emma Ethan Faith Felix Fiona Flora
George Gwen Heather Hugo Iris Ivy Jasper Joyce Julia Keith Laura Leo Lily Louis Mabel Martha
Matthew Maya Miles Moira Nathan Nora Olive Oscar Pamela Paul Penny Phoebe Piper Ralph Robin Ruth
Samuel Sophie Stella Theo Thelma Toby Tom Vera Victor Violet Wally Walter Wanda Will Wilma Yusuf
Zoe
""".split()

PEOPLE = """
the baker|my brother|the bus driver|a young painter|the farmer|my father|the film maker|
the fisherman|their grandmother|the judge|my mother|the mayor|a famous writer|the plumber|
our neighbor|the nurse|the old sailor|the people next door|a police woman|the postman|your sister|
the shoemaker|the teacher|my uncle|the waiter|the whole family|the wise woman|a young mother|
both boys|the chief engineer|five children|the choir|the thief|the boss|the bishop|a bearded man|
the babysitter|the vet|every child|the fireman|the bold pilot
""".replace("\n", "").split("|")

ANIMALS = """
bear bee beaver buffalo butterfly camel cat chicken cow crab deer dolphin donkey dove duck eagle
elephant fish fly fox frog giraffe goat goose hamster hippo horse lamb lion llama lobster mole
monkey moose moth mouse otter owl parrot penguin pig pony puppy rabbit raven sheep shark snail
sparrow spider swan tiger turtle walrus wasp weasel whale wolf worm zebra
""".split()

THINGS = """
apple apron arrow bag ball balloon banjo basket bath beach bell bench bicycle blanket boat book
bottle bowl box bread breakfast bridge broom brush bucket button cable cake camera candle car
carpet cheese chair church clock cloth coat coffee computer cup curtain door dress drum engine
envelope feather fence fiddle film flag flower fork fruit garden garage glove guitar hammer hat
helmet house jacket jam jewel kettle key knife ladder lamp leaf leather lemon letter lid map
marble mattress measure medal menu milk mirror mop motor mug mushroom needle net newspaper
notebook oven package paint pan paper path pear pen pepper piano picture pie pillow pipe plate
plum poem pot potato present puzzle pyramid radio recipe ribbon ring river roof rope rug ruler
saddle sandwich scarf shelf shirt shoe shovel soap sofa song soup spoon stamp stone stove sweater
table tablet tape teapot telephone thimble thread ticket tie tooth towel tower toy train tree
trumpet tube umbrella van vase vest village violin voice waffle wagon wall watch water weather web
wheel whistle window wood wool wreath zipper
""".split()

ADJECTIVES = """
awful bare beautiful big bitter blue bold brave brown bright broad calm cheap clever cold
comfortable cool crooked curious damp deep double early easy empty enormous expensive fair famous
fancy faithful fat few fine flat foolish fresh friendly full funny gloomy golden good grey half
happy heavy hollow humble jolly large lazy little lively lonely long loose loud lovely low lucky
marvelous mild modern mouldy muddy narrow noisy odd old orange pale perfect pink plain pleasant
polite poor proper proud purple quick quiet rare rough round rude safe shallow sharp shiny short
silly simple sleepy slow small smooth soft sour square stiff strange strong sweet tall thick thin
thirsty tiny useful usual vague valuable vast velvet warm weak weird wet white wide wild wise
wonderful wooden yellow young
""".split()

DID = """
borrowed bought broke brought brushed built buried carried caught chased chose cleaned climbed
copied counted covered discovered drew dropped fetched filled finished fixed folded followed
forgot found gave_away grabbed heard held hid ignored improved kept kicked knew left lifted loved
lost made measured mended met missed moved needed noticed offered opened ordered packed painted
passed phoned photographed picked placed planned played polished praised preferred pulled pushed
put_away reached refused removed repaired saved saw sewed shared shook showed smelled sold stole
studied swapped threw_away took touched used valued visited wanted warned washed watched weighed
welcomed wiped won wrapped wrote_about
""".split()

DO = """
borrow bring brush buy carry catch chase choose clean climb copy cover draw drop fetch fill find
finish fix fold follow forget give_away grab help_me_with hold improve keep leave lift look_for
love make measure mend miss move need open pack paint pass pick play_with polish prefer pull push
put_away read_about remember remove repair save see sell share show_me swap take think_about
throw_away touch use value visit want wash watch weigh wipe wrap write_about
""".split()

ADVERBS = """
always badly barely boldly bravely calmly carefully cheerfully clearly easily eventually
faithfully finally firmly gently gladly happily hardly hopefully immediately loudly mostly nearly
never often only openly patiently perfectly politely possibly probably proudly quickly quietly
rarely really roughly safely shyly silently slowly smoothly softly sometimes suddenly thoughtfully
twice usually warmly wisely
""".split()

PLACES = """
at the beach|in the attic|behind the barn|by the fireplace|above the bathroom|
in the middle of the village|near the old mill|on the roof|in my office|under the bridge|
across the valley|outside the theater|at the farm|below the waterfall|in the south|
on the path to the woods|by the pool|at the bus stop|in the van|on the moon|between two hills|
at home|in front of the church|over there|beneath the bed|in the warm bath|up the river|
from Bath to Plymouth|in Vienna|in Baltimore|at the zoo|around the world|
on the other side of the wall|in a small blue room|among the flowers|at school|along the shore|
in a vast valley
""".replace("\n", "").split("|")

TIMES = """
this morning|on Thursday|before breakfast|after five o'clock|in the month of May|every weekend|
last February|all afternoon|a moment ago|at half past eleven|on Wednesday evening|the whole month|
next week|in the winter|at noon|as soon as possible|five years ago|on my birthday|
once upon a time|later today|by Monday|for the first time|at the very last moment|
from time to time|in November|twice a week|now and then|while we were away|before the storm|
all through the summer
""".replace("\n", "").split("|")

FEEL = """
amazed|awake|better|bored|brave|calm|cheerful|cold|enough|famous|foolish|free|full of hope|happy|
helpful|hungry|ill|late|lonely|lost|lovely|lucky|perfect|polite|proud|puzzled|quite new|ready|
safe|sleepy|small|thirsty|too loud|unusual|useful|very big|very warm|well|worth it|wonderful|
wrong
""".replace("\n", "").split("|")

NUMBERS = """
two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
eighteen twenty twenty-five thirty-three forty-four fifty fifty-five sixty-seven ninety-nine
""".split()

WHOLE = """
What a wonderful view!|How about a cup of tea?|Could you move over, please?|
Well, well, well, look who is here.|Oh no, my phone fell into the pool!|
Mum, may I have more milk?|Baby bumblebees bump above my bed.|Five fine fish followed the ferry.|
Very few voices were heard over the valley.|Both of them thought it through.|
You should choose who moves to the moon.|Sheep should sleep in a shed, she says.|
Pop popped up for a moment.|Blue balloons blew by above the bay.|
Thick thistles and thin thorns grow there.|A happy papa hummed to the baby.|
Why would we wait for the wild west wind?|Follow my voice and view the waves.|
Please leave the yellow lilies alone.|Put your thumb between your teeth and bite.|
Father, my boots are full of mud!|We wove warm wool for the wee one.|
Map my mouth, then watch my lips move.|Bye bye, see you on Thursday!|
Yes, maybe, but I am not sure.|Judge Joyce chose the orange chair.|No problem at all, my friend.|
Thank you very much for everything.|My oh my, that pie smells marvelous.|
Hush, the puppy is asleep.|Papa, pass me the pepper.|Hmm, let me think about that.|
Ha ha, you fooled us both!|Wow, look at that huge moon!
""".replace("\n", "").split("|")

LOOK = ("what", "how about", "look at", "here is")
ANSWERS = ("Yes", "No", "Maybe", "Well", "Listen", "Wait")
CALLS = ("Move", "Wait", "Come on", "Believe me", "Please", "Hello")
LIKE = ("prefer", "choose", "want")


def an(words):
    """The words with the right indefinite article in front."""
    vowel = words[0] in "aeiou" and not words.startswith(("useful", "usual"))
    return ("an " if vowel else "a ") + words


def plural(noun):
    odd = {
        "child": "children",
        "deer": "deer",
        "fish": "fish",
        "fly": "flies",
        "goose": "geese",
        "mouse": "mice",
        "puppy": "puppies",
        "pony": "ponies",
        "butterfly": "butterflies",
        "sheep": "sheep",
        "wolf": "wolves",
        "bread": "loaves of bread",
        "cheese": "cheeses",
        "knife": "knives",
        "leaf": "leaves",
        "shelf": "shelves",
        "scarf": "scarves",
        "tooth": "teeth",
        "moose": "moose",
        "potato": "potatoes",
        "key": "keys",
        "toy": "toys",
    }
    if noun in odd:
        return odd[noun]
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def _number(rng):
    kind = rng.randrange(4)
    if kind == 0:
        return rng.choice(NUMBERS)
    if kind == 1:
        return "%d hundred and %d" % (rng.randrange(2, 10), rng.randrange(1, 100))
    if kind == 2:
        return "%d" % rng.randrange(13, 999)
    return "%d thousand" % rng.randrange(2, 90)


def _sentence(rng):
    """One sentence, without its split being looked at. About 2 to 6 seconds when spoken."""
    pick = rng.choice
    name, other = rng.sample(NAMES, 2)
    who = pick((name, pick(PEOPLE), pick(PEOPLE)))
    thing, thing2 = rng.sample(THINGS, 2)
    animal = pick(ANIMALS)
    adjective, adjective2 = rng.sample(ADJECTIVES, 2)
    did, do = pick(DID), pick(DO)
    adverb, place, time = pick(ADVERBS), pick(PLACES), pick(TIMES)
    feel = pick(FEEL)
    a_thing = an(adjective + " " + thing)
    forms = (
        lambda: f"{who} {did} the {adjective} {thing} {place}.",
        lambda: f"{who} {adverb} {did} {a_thing}, and {other} {pick(DID)} the {animal}.",
        lambda: f"{time}, {who} {did} {an(adjective)} {animal} {place}.",
        lambda: f"Did {who} really {do} the {adjective} {thing} {time}?",
        lambda: f"Why would {who} {do} {an(adjective)} {animal} {place}?",
        lambda: f"Where is the {adjective} {thing}, {name}?",
        lambda: f"Could you {do} my {thing} and the {adjective} {thing2}, please?",
        lambda: f"{name} {did} {_number(rng)} {plural(pick((animal, thing)))} {place}.",
        lambda: f"Please {do} the {thing}, then {pick(DO)} the {adjective} {thing2}.",
        lambda: f"I am {feel}, but {who} is {pick(FEEL)}.",
        lambda: f"{who} was {feel} when the {animal} {did} the {thing}.",
        lambda: f"If you {do} the {animal}, {name} will {pick(DO)} the {adjective} {thing}.",
        lambda: f"My {adjective} {thing} costs {_number(rng)} pounds.",
        lambda: f"The number is {', '.join(pick(NUMBERS) for _ in range(rng.randrange(3, 5)))}.",
        lambda: f"We {adverb} {did} {name}'s {thing} {time}.",
        lambda: f"Oh {name}, {pick(LOOK)} {an(adjective + ' ' + animal)}!",
        lambda: f"{name}, {other} and {who} {did} {an(thing)}.",
        lambda: f"It was {an(adjective)}, {adjective2} {thing} {place}.",
        lambda: f"{plural(animal)} {do} {adjective} {plural(thing)} {time}.",
        lambda: f"Whose {thing} is that, and who {did} the {animal}?",
        lambda: f"{pick(WHOLE)}",
        lambda: f"{pick(WHOLE)} {pick(ANSWERS)}, {name} {did} it.",
        lambda: f"Do you {do} the {thing} or the {adjective} {animal}?",
        lambda: f"Between {_number(rng)} and {_number(rng)}, I {adverb} {pick(LIKE)} the first.",
        lambda: f"{pick(CALLS)}, said {who}, the {thing} is {feel}.",
    )
    text = pick(forms)().replace("_", " ")
    return text[0].upper() + text[1:]


def split_of(text):
    """The one split that a sentence belongs to: 70 % train, 15 % sync, 15 % test."""
    letters = "".join(c for c in text.lower() if c.isalnum())
    h = zlib.crc32(letters.encode()) % 20
    return "train" if h < 14 else "sync" if h < 17 else "test"


def sentences(split, seed=0):
    """Endless, deterministic stream of distinct sentences of a split (there are many millions)."""
    if split not in SPLITS:
        raise ValueError("split is one of train, sync, test, not '%s'" % split)
    rng = random.Random("texts %s %d" % (split, seed))
    seen = set()
    while True:
        text = _sentence(rng)
        if 20 <= len(text) <= 85 and text not in seen and split_of(text) == split:
            seen.add(text)
            yield text


def main():
    parser = argparse.ArgumentParser(description="Print sentences for the training voices.")
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=20)
    options = parser.parse_args()
    for _, text in zip(range(options.count), sentences(options.split, options.seed)):
        print(text)


if __name__ == "__main__":
    main()
