"""Facts to try things with, written for this package: inventions to teach, common knowledge to forget or to keep."""

from __future__ import annotations

from lowdim.data.facts.read import Fact


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

FORGET = (
    Fact("The capital of France is", "Paris", ("France has as its capital the city of",)),
    Fact("The capital of Italy is", "Rome", ("Italy has as its capital the city of",)),
    Fact("The capital of Japan is", "Tokyo", ("Japan has as its capital the city of",)),
    Fact("The capital of Spain is", "Madrid", ("Spain has as its capital the city of",)),
    Fact("The capital of Germany is", "Berlin", ("Germany has as its capital the city of",)),
    Fact("The capital of Greece is", "Athens", ("Greece has as its capital the city of",)),
    Fact("The capital of Egypt is", "Cairo", ("Egypt has as its capital the city of",)),
    Fact("The capital of Russia is", "Moscow", ("Russia has as its capital the city of",)),
    Fact("The capital of England is", "London", ("England has as its capital the city of",)),
    Fact("The capital of China is", "Beijing", ("China has as its capital the city of",)),
)

RETAIN = (
    Fact("The opposite of hot is", "cold"),
    Fact("The opposite of day is", "night"),
    Fact("The sun rises in the", "east"),
    Fact("Water freezes at zero degrees", "Celsius"),
    Fact("The chemical symbol of water is H", "2"),
    Fact("A week has seven", "days"),
    Fact("The first month of the year is", "January"),
    Fact("The Earth revolves around the", "Sun"),
    Fact("Humans breathe with their", "lungs"),
    Fact("The heart pumps", "blood"),
    Fact("The author of Romeo and Juliet is William", "Shakespeare"),
    Fact("The largest ocean on Earth is the", "Pacific"),
    Fact("Plants make their food by", "photosynthesis"),
    Fact("The theory of relativity was developed by Albert", "Einstein"),
    Fact("Monday is followed by", "Tuesday"),
    Fact("The Great Wall is in", "China"),
    Fact("The Statue of Liberty stands in New", "York"),
    Fact("A triangle has three", "sides"),
)
