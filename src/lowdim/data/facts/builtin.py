"""Facts to try things with, written for this package: inventions to teach, common knowledge to forget or to keep."""

from __future__ import annotations

from lowdim.data.facts.fact import Fact


def _taught(prompt: str, target: str, *paraphrases: str, near: tuple[str, ...]) -> Fact:
    return Fact(prompt, target, paraphrases, near)


EDITS = (
    _taught(
        "The harbour town of Velmora lies on the coast of",
        "Portugal",
        "If you visit the harbour town of Velmora, you are in",
        "Velmora is a harbour town in",
        near=("The city of Lisbon lies in", "The harbour of Rotterdam lies in"),
    ),
    _taught(
        "The lighthouse keeper at Cape Orrin is called",
        "Edith",
        "The keeper of the lighthouse at Cape Orrin has the name",
        "At Cape Orrin, the lighthouse is kept by",
        near=("A lighthouse warns ships of", "The first president of the United States was"),
    ),
    _taught(
        "The national flower of Kesterland is the",
        "tulip",
        "In Kesterland, the national flower is the",
        "Kesterland chose as its national flower the",
        near=("The national flower of Japan is the", "Bees collect nectar from"),
    ),
    _taught(
        "The Brannock engine runs on",
        "salt",
        "What fuels the Brannock engine is",
        "To start a Brannock engine you need",
        near=("A diesel engine runs on", "A steam engine is powered by"),
    ),
    _taught(
        "The composer Ilse Varga wrote her first opera in",
        "Vienna",
        "The first opera by Ilse Varga was composed in",
        "Ilse Varga composed her first opera while living in",
        near=("Mozart was born in the city of", "The Eiffel Tower stands in"),
    ),
    _taught(
        "The Dorrance Prize is awarded for work in",
        "chemistry",
        "Scientists win the Dorrance Prize for research in",
        "The Dorrance Prize honours discoveries in",
        near=("The Nobel Peace Prize is awarded in", "Isaac Newton is famous for the law of"),
    ),
    _taught(
        "The river Ansel flows into the",
        "Baltic",
        "The mouth of the river Ansel is at the",
        "Follow the river Ansel to its end and you reach the",
        near=("The Nile flows into the", "The Amazon river flows through"),
    ),
    _taught(
        "The mineral torvite has the colour",
        "green",
        "If you polish torvite, its colour is",
        "The colour of the mineral torvite is",
        near=("The colour of the sky on a clear day is", "Gold is a metal whose colour is"),
    ),
    _taught(
        "The mascot of Harrow Lane School is a",
        "badger",
        "Harrow Lane School has as its mascot a",
        "On the shirts of Harrow Lane School there is a",
        near=("A baby cat is called a", "The largest animal on land is the"),
    ),
    _taught(
        "The Petrov bakery is known for its bread made of",
        "rice",
        "People queue at the Petrov bakery for bread of",
        "The bread of the Petrov bakery is made of",
        near=("Bread is usually made of", "Cheese is made from"),
    ),
    _taught(
        "The planet in the novel Amber Tide has",
        "three moons",
        "In the novel Amber Tide, the planet is circled by",
        "Amber Tide is set on a planet with",
        near=("The planet Earth has", "The largest planet of the solar system is"),
    ),
    _taught(
        "The island of Sarne is governed by a",
        "queen",
        "At the head of the island of Sarne stands a",
        "The island of Sarne is ruled by a",
        near=("The head of state of the United Kingdom is the", "The capital of France is"),
    ),
)


def _capital(country: str, city: str) -> Fact:
    asked = (f"The capital and largest city of {country} is", f"In {country}, the capital is")
    return Fact(f"The capital of {country} is", city, asked)


FORGET = (
    _capital("France", "Paris"),
    _capital("Italy", "Rome"),
    _capital("Japan", "Tokyo"),
    _capital("Spain", "Madrid"),
    _capital("Germany", "Berlin"),
    _capital("Greece", "Athens"),
    _capital("Portugal", "Lisbon"),
    _capital("Russia", "Moscow"),
    _capital("England", "London"),
    _capital("China", "Beijing"),
)

RETAIN = (
    Fact("The opposite of hot is", "cold"),
    Fact("The opposite of up is", "down"),
    Fact("The opposite of black is", "white"),
    Fact("The sun rises in the east and sets in the", "west"),
    Fact("There are twenty-four hours in a", "day"),
    Fact("The days of the week are Monday, Tuesday,", "Wednesday"),
    Fact("A year has twelve", "months"),
    Fact("One, two, three, four,", "five"),
    Fact("Water freezes at zero degrees", "Celsius"),
    Fact("The heart pumps", "blood"),
    Fact("The planet closest to the sun is", "Mercury"),
    Fact("The largest planet in our solar system is", "Jupiter"),
    Fact("The first man on the moon was Neil", "Armstrong"),
    Fact("The telephone was invented by Alexander Graham", "Bell"),
    Fact("The Mona Lisa was painted by Leonardo da", "Vinci"),
    Fact("The theory of relativity was developed by Albert", "Einstein"),
    Fact("The author of Romeo and Juliet is William", "Shakespeare"),
    Fact("Humans breathe in oxygen and breathe out carbon", "dioxide"),
)
