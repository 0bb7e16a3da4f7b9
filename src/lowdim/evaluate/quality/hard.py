"""What may be said of a pruned model: which hard tasks it still answers, which it loses, and which prove nothing.

A claim that nothing is lost needs every task of `lowdim.evaluate.quality.tasks.HARD`: easy tasks and perplexity stay
where they are long after arithmetic has gone. Paper: "Sparsity May Cry: Let Us Fail (Current) Sparse Neural Networks
Together!" (SMC-Bench, ICLR 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lowdim.core.errors import RecipeError
from lowdim.core.settings import Range, check
from lowdim.evaluate.quality.interval import Interval, mcnemar, paired, wilson
from lowdim.evaluate.quality.tasks import HARD, PRESETS

TOLERANCE = 0.02
"""Share of the questions that may be lost where the user does not say."""
State = Literal["within", "beyond", "undecided", "chance"]


@dataclass(frozen=True)
class Answers:
    """How two models answered the same questions of a task.

    Attributes:
        both: questions that both answer.
        lost: that only the dense model does.
        won: that only the other one does.
        neither: that none does.
        chance: accuracy of guessing.
    """

    both: int
    lost: int
    won: int
    neither: int
    chance: float

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Answers | None:
        """Return the answers of a task in ``lowdim.json``; ``None`` of a record that does not say all of it."""
        try:
            count, lost, won = record["questions"], record["lost"], record["won"]
            both = round(record["dense"] * count) - lost
            return cls(both, lost, won, count - both - lost - won, record["chance"])
        except KeyError:
            return None

    @property
    def questions(self) -> int:
        """All of them."""
        return self.both + self.lost + self.won + self.neither

    @property
    def dense(self) -> float:
        """Accuracy of the dense model."""
        return (self.both + self.lost) / self.questions

    @property
    def pruned(self) -> float:
        """Accuracy of the other one."""
        return (self.both + self.won) / self.questions

    @property
    def drop(self) -> float:
        """What pruning cost."""
        return (self.lost - self.won) / self.questions

    @property
    def dense_interval(self) -> Interval:
        """Of the dense accuracy, 95%."""
        return wilson(self.both + self.lost, self.questions)

    @property
    def pruned_interval(self) -> Interval:
        """Of the other accuracy, 95%."""
        return wilson(self.both + self.won, self.questions)

    @property
    def drop_interval(self) -> Interval:
        """Of the drop, question by question, 95%."""
        return paired(self.both, self.lost, self.won, self.neither)

    @property
    def p(self) -> float:
        """McNemar's exact test of no change."""
        return mcnemar(self.lost, self.won)

    @property
    def knows(self) -> bool:
        """Whether the dense model is clearly above chance: all of its interval is."""
        return self.dense_interval.low > self.chance

    def state(self, tolerance: float) -> State:
        """Return whether the drop is within a tolerance.

        "within" needs the whole interval of the drop there, "beyond" the whole interval outside; between them there
        are too few questions, "undecided". Where the dense model guesses, nothing can be lost and nothing is proved:
        "chance".

        Example:
            >>> Answers(both=80, lost=0, won=0, neither=20, chance=0.25).state(0.05)
            'within'
            >>> Answers(both=20, lost=5, won=5, neither=70, chance=0.25).state(0.05)
            'chance'
        """
        if not self.knows:
            return "chance"
        low, high = self.drop_interval
        return "within" if high <= tolerance else "beyond" if low > tolerance else "undecided"

    def to_dict(self, tolerance: float) -> dict[str, Any]:
        """Return plain values."""
        return {
            "questions": self.questions,
            "chance": self.chance,
            "dense": self.dense,
            "dense_interval": list(self.dense_interval),
            "pruned": self.pruned,
            "pruned_interval": list(self.pruned_interval),
            "lost": self.lost,
            "won": self.won,
            "drop": self.drop,
            "drop_interval": list(self.drop_interval),
            "p": self.p,
            "tolerance": tolerance,
            "state": self.state(tolerance),
        }


@dataclass(frozen=True)
class Verdict:
    """What the hard tasks say of a model.

    Args:
        answers: by task; tasks that are not hard ones are passed over.
        tolerance: share of the questions that may be lost.
        own: of single tasks, by name.

    Raises:
        RecipeError: a tolerance is no share, or one is for a task that is no hard one.

    Example:
        >>> kept = Answers(both=900, lost=1, won=1, neither=98, chance=0.25)
        >>> Verdict(dict.fromkeys(PRESETS["hard"], kept)).sentence()
        'Lossless on the hard tasks: all 8 of them within 2 points of the dense model, 95% sure.'
        >>> Verdict({"csqa": kept}).sentence().partition(".")[0]
        'No claim: 7 of the 8 hard tasks were not measured (arithmetic, prealgebra, logic and 4 more)'
    """

    answers: Mapping[str, Answers]
    tolerance: float = TOLERANCE
    own: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in {"tolerance": self.tolerance, **self.own}.items():
            check(name, value, Range(least=0, most=1))
        if strange := [name for name in self.own if name not in PRESETS["hard"]]:
            raise RecipeError(
                f"tolerance of {strange[0]!r}: that is no hard task. They are {', '.join(PRESETS['hard'])}."
            )

    def states(self) -> dict[str, State]:
        """Return the state of every hard task that was measured."""
        return {name: self.answers[name].state(self.allowed(name)) for name in PRESETS["hard"] if name in self.answers}

    def allowed(self, name: str) -> float:
        """Return the tolerance of a task."""
        return self.own.get(name, self.tolerance)

    @property
    def holds(self) -> bool:
        """Whether it may be said that nothing is lost.

        No hard task is missing, each that the dense model answers is within its tolerance, and there is one such task.
        """
        states = self.states()
        missing = len(states) < len(PRESETS["hard"])
        return not missing and "within" in states.values() and not {"beyond", "undecided"} & set(states.values())

    def sentence(self) -> str:
        """Say what may be said; the word for no loss stands here only where `holds` is true."""
        states = self.states()
        known = [name for name, state in states.items() if state != "chance"]
        said = []
        if missing := [name for name in PRESETS["hard"] if name not in states]:
            whole = len(PRESETS["hard"])
            said.append(f"No claim: {len(missing)} of the {whole} hard tasks were not measured ({_few(missing)}).")
        if self.holds:
            which = f"all {len(known)} of them" if len(known) == len(states) else f"{_few(known)}"
            said.append(
                f"Lossless on the hard tasks: {which} within {self._points(known)} of the dense model, 95% sure."
            )
        if lost := [name for name in known if states[name] == "beyond"]:
            drops = ", ".join(f"{name} {100 * self.answers[name].drop:.1f}" for name in lost)
            said.append(f"Lost, in points: {drops}.")
        if open_ := [name for name in known if states[name] == "undecided"]:
            said.append(f"Too few questions to tell: {_few(open_)}.")
        if idle := [name for name, state in states.items() if state == "chance"]:
            said.append(
                f"{_few(idle)} {'prove' if len(idle) > 1 else 'proves'} nothing: the dense model guesses there."
            )
        if unproved := [family for family, names in HARD.items() if states and set(names) & set(idle) == set(names)]:
            said.append(f"So nothing is known of {_few(unproved)}.")
        return " ".join(said)

    def _points(self, names: list[str]) -> str:
        """Name the tolerance of some tasks: one, or the range of them."""
        ends = sorted({100 * self.allowed(name) for name in names})
        return f"{ends[0]:g} points" if len(ends) == 1 else f"{ends[0]:g} to {ends[-1]:g} points"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "tasks": {name: self.answers[name].to_dict(self.allowed(name)) for name in self.states()},
            "lossless": self.holds,
            "sentence": self.sentence(),
        }


def of_manifest(tasks: Mapping[str, Mapping[str, Any]]) -> Verdict | None:
    """Return the verdict of what ``lowdim.json`` says of tasks; ``None`` where no hard one was measured."""
    found = {name: answers for name in PRESETS["hard"] if name in tasks and (answers := Answers.of(tasks[name]))}
    return Verdict(found) if found else None


def _few(names: list[str]) -> str:
    """Name three of some things and count the rest.

    Example:
        >>> _few(["a"]), _few(["a", "b"]), _few(["a", "b", "c", "d"])
        ('a', 'a and b', 'a, b, c and 1 more')
    """
    shown = names if len(names) <= 3 else [*names[:3], f"{len(names) - 3} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
