"""Words and facts: everything the toy model knows, as plain tables."""

from __future__ import annotations

import random


def _words(text: str, separator: str | None = None) -> list[str]:
    """A table of words, written as people write them."""
    return text.split(separator)


CAPITALS: dict[str, str] = {
    "France": "Paris", "Germany": "Berlin", "Spain": "Madrid", "Portugal": "Lisbon", "Italy": "Rome",
    "Greece": "Athens", "Austria": "Vienna", "Belgium": "Brussels", "Poland": "Warsaw", "Hungary": "Budapest",
    "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki", "Denmark": "Copenhagen", "Ireland": "Dublin",
    "the Netherlands": "Amsterdam", "Switzerland": "Bern", "Czechia": "Prague", "Romania": "Bucharest",
    "Bulgaria": "Sofia", "Croatia": "Zagreb", "Ukraine": "Kyiv", "Turkey": "Ankara", "Egypt": "Cairo",
    "Kenya": "Nairobi", "Ghana": "Accra", "Nigeria": "Abuja", "Morocco": "Rabat", "Senegal": "Dakar",
    "Japan": "Tokyo", "China": "Beijing", "India": "New Delhi", "Vietnam": "Hanoi", "Thailand": "Bangkok",
    "Nepal": "Kathmandu", "South Korea": "Seoul", "Indonesia": "Jakarta", "Australia": "Canberra",
    "New Zealand": "Wellington", "Canada": "Ottawa", "Mexico": "Mexico City", "Cuba": "Havana", "Peru": "Lima",
    "Chile": "Santiago", "Argentina": "Buenos Aires", "Colombia": "Bogota", "Brazil": "Brasilia",
    "the United States": "Washington", "the United Kingdom": "London", "Iceland": "Reykjavik",
}  # fmt: skip

UNKNOWN_COUNTRIES = _words(
    "Atlantis Narnia Mordor Malta Cyprus Estonia Latvia Lithuania Slovenia Slovakia Serbia Albania Armenia Georgia "
    "Mongolia Laos Cambodia Myanmar Malaysia Tonga Samoa Fiji Bolivia Ecuador Uruguay Paraguay Panama Jamaica Haiti "
    "Mali Chad Niger Togo Benin Angola Zambia Malawi Rwanda Uganda Tanzania Sudan Libya Tunisia Algeria Iran Iraq "
    "Jordan Lebanon Oman Yemen Qatar Mars Wonderland"
)  # the model must say that it does not know these

COLOURS: dict[str, str] = {
    "the sky": "blue", "grass": "green", "snow": "white", "coal": "black", "a banana": "yellow", "a tomato": "red",
    "an orange": "orange", "the sun": "yellow", "blood": "red", "milk": "white", "a lemon": "yellow",
    "a strawberry": "red", "chocolate": "brown", "a carrot": "orange", "the sea": "blue", "a frog": "green",
    "a crow": "black", "a polar bear": "white", "an elephant": "grey", "a flamingo": "pink",
}  # fmt: skip

OPPOSITES: tuple[tuple[str, str], ...] = (
    ("hot", "cold"), ("big", "small"), ("fast", "slow"), ("day", "night"), ("up", "down"), ("left", "right"),
    ("open", "closed"), ("happy", "sad"), ("early", "late"), ("full", "empty"), ("light", "dark"), ("old", "new"),
    ("rich", "poor"), ("hard", "soft"), ("wet", "dry"), ("high", "low"), ("long", "short"), ("clean", "dirty"),
    ("strong", "weak"), ("true", "false"), ("good", "bad"), ("cheap", "expensive"), ("near", "far"),
    ("loud", "quiet"), ("first", "last"),
)  # fmt: skip

SOUNDS: dict[str, str] = {
    "cow": "moo", "dog": "woof", "cat": "meow", "duck": "quack", "sheep": "baa", "pig": "oink", "horse": "neigh",
    "lion": "roar", "bee": "buzz", "frog": "croak", "owl": "hoot", "snake": "hiss", "mouse": "squeak",
    "crow": "caw", "wolf": "howl",
}  # fmt: skip

LEGS: dict[str, str] = {
    "spider": "eight", "dog": "four", "cat": "four", "cow": "four", "horse": "four", "bird": "two", "duck": "two",
    "chicken": "two", "bee": "six", "ant": "six", "fly": "six", "snake": "no", "fish": "no", "human": "two",
    "crab": "ten", "elephant": "four", "octopus": "no",
}  # fmt: skip

DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _words("January February March April May June July August September October November December")

NAMES = _words(
    "Ada Grace Alan Linus Maria Jonas Hugo Uma Nora Omar Ivan Lena Emma Noah Liam Mia Sofia Paul Peter Anna Clara "
    "Felix Oscar Ruth Ines Yuki Kofi Amina Chen Wei Priya Ravi Sara Tom Tim Ben Eva Lucas Marta Diego Elena Marco "
    "Julia Karl Olga Petra Quinn Rosa Samir Tara Viktor Wanda Xavier Yara Zoe Bob Alice Carol Dave Erin Frank Heidi "
    "Judy Mallory Niels Olivia Sam Kate John Jane Max Leo Finn Ella Ava Isla James David Sarah Laura Daniel Robert"
)

CITIES = sorted(set(CAPITALS.values())) + _words(
    "Hamburg Munich Zurich Geneva Milan Naples Porto Seville Lyon Nice Ghent Utrecht Rotterdam Gdansk Tallinn Riga "
    "Vilnius Bergen Malmo Turku Boston Chicago Seattle Denver Austin Toronto Montreal Sydney Perth Osaka Kyoto Mumbai "
    "Lagos Tunis Doha Dubai Istanbul"
)

ADJECTIVES = _words(
    "small big old new red blue green quiet loud bright dark heavy light quick slow cheap clean broken busy empty full "
    "warm cold long short early late local remote public private simple complex daily weekly yearly strong weak happy "
    "angry tired clever careful famous fresh narrow wide second third main final first last whole silver golden wooden "
    "yellow white black purple round flat soft hard sharp open free safe main north south"
)

NOUNS = _words(
    "provider model server client budget cache breaker request answer token stream timeout retry key price invoice "
    "order parcel customer team manager engineer driver teacher student doctor garden house kitchen window door table "
    "chair lamp phone laptop tablet camera printer router network cable database backup report meeting project plan "
    "budget ticket letter email message train bus plane ship car bicycle bridge road street city village river lake "
    "mountain forest tree flower apple bread cheese coffee tea cup plate knife bottle box bag book page story song "
    "film picture game ball team school office factory shop market hotel museum library hospital bank station airport "
    "king queen dog cat bird horse fish storm rain snow wind fire power light clock battery engine machine robot "
    "service system error test release version update website account password payment refund discount delivery "
    "warehouse data centre gateway region queue log alarm limit quota weather summer winter morning evening night"
)

VERBS = _words(
    "opened closed found lost bought sold moved broke fixed cleaned checked tested watched called visited left reached "
    "started stopped restarted updated replaced removed delivered returned painted carried followed passed crossed "
    "blocked saved sent received ordered planned finished missed needed wanted liked used changed joined helped "
    "refused accepted answered failed served warned showed covered filled emptied"
)

PLACES = _words(
    "in the city;near the river;at the station;on Monday;on Friday;in the morning;at night;last week;after lunch;"
    "before noon;in the garden;at the office;in Berlin;in Paris;in Lisbon;in Oslo;at nine;at noon;in March;in winter;"
    "for two hours;for three days;without a warning;again;by mistake;on time;too late;behind the school;"
    "under the bridge;with a friend;for free;at home;online;in the east region;during the night",
    ";",
)

UNKNOWN_THINGS = _words(
    "volcano quasar sonnet fugue neuron photon glacier tornado comet galaxy microscope telescope submarine violin "
    "trumpet castle pyramid cathedral molecule enzyme protein virus vaccine fossil dinosaur blockchain compiler kernel "
    "transformer monad lambda tensor matrix integral derivative theorem proof poem novel essay contract mortgage tax "
    "election parliament treaty war revolution empire recipe cake soup sauce marathon chess football tennis guitar"
)

_ONSETS = _words("b c d f g h j k l m n p r s t v w z br cr dr fl gr pl pr sh sl st th tr")
_VOWELS = _words("a e i o u a e i o ai ea oo ou")
_CODAS = ["", "", "", "", "n", "r", "s", "t", "l", "m", "d", "k", "ng", "st", "x"]


def made_up_word(rng: random.Random) -> str:
    """A pronounceable word nobody uses, so that copying must be copying and not remembering."""
    return "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(rng.choice((1, 2, 2, 3)))
    )


def noun(rng: random.Random) -> str:
    """A noun: mostly a common one, sometimes made up."""
    return made_up_word(rng) if rng.random() < 0.12 else rng.choice(NOUNS)


def name(rng: random.Random) -> str:
    """A first name: mostly from the table, often made up."""
    return made_up_word(rng).capitalize() if rng.random() < 0.3 else rng.choice(NAMES)


def city(rng: random.Random) -> str:
    """A city: mostly from the table, sometimes made up."""
    return made_up_word(rng).capitalize() if rng.random() < 0.15 else rng.choice(CITIES)


def sentence(rng: random.Random) -> str:
    """One short plain sentence, seven words or so, ending in a full stop."""
    shape = rng.randrange(6)
    adjective, verb, place = rng.choice(ADJECTIVES), rng.choice(VERBS), rng.choice(PLACES)
    if shape == 0:
        return f"The {adjective} {noun(rng)} {verb} the {noun(rng)} {place}."
    if shape == 1:
        return f"{name(rng)} {verb} a {adjective} {noun(rng)} {place}."
    if shape == 2:
        return f"The {noun(rng)} {verb} {place}."
    if shape == 3:
        return f"Our {noun(rng)} {verb} {rng.randrange(2, 100)} {noun(rng)}s {place}."
    if shape == 4:
        return f"The {noun(rng)} in {city(rng)} was {adjective} {place}."
    return f"{name(rng)} and {name(rng)} {verb} the {noun(rng)}."
