"""Ten rules for reporting sparse training, and what a run says to each of them.

After the topics of "Ten Lessons We Have Learned in the New Sparseland", arXiv 2302.02596; the wording is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lowdim.core import pattern as patterns
from lowdim.report.draw import words
from lowdim.report.training.facts import members, points

Json = Mapping[str, Any]
MET, PART, OPEN = "met", "in part", "not measured"


@dataclass(frozen=True)
class Rule:
    """A rule, whether the run keeps it, and what it says to it."""

    number: int
    rule: str
    state: str
    says: str


def rules(facts: Json) -> list[Rule]:
    """Return the ten rules with what a run's ``training.json`` says to each."""
    checks: tuple[tuple[str, Callable[[Json], tuple[str, str]]], ...] = (
        ("Compare with the same network dense, and with a dense one of as few parameters", _dense),
        ("Name the pattern, and claim no speed from a mask", _pattern),
        ("Say how the sparsity arose, not only where it ended", _arose),
        ("Count training apart from inference, over the whole schedule", _costs),
        ("Train random masks that stand still with the same trainer", _static),
        ("Keep masks in one form before, during and after training", _masks),
        ("State epochs, updates and arithmetic, so that budgets can be matched", _budget),
        ("Tell the gain of where weights are from that of how many each layer has", _ratios),
        ("Never time a simulation as if it were an execution", _execution),
        ("Look beyond accuracy", _beyond),
    )
    found = [(rule, *check(facts)) for rule, check in checks]
    return [Rule(n, rule, state, says[:1].upper() + says[1:]) for n, (rule, state, says) in enumerate(found, start=1)]


def _accuracy(member: Json) -> str:
    return words.percent(member["test"]["accuracy"], 2)


def _flops(member: Json) -> str:
    return f"{words.number(member['costs']['inference_flops'])} FLOPs per example"


def _dense(facts: Json) -> tuple[str, str]:
    found = members(facts)
    sparse = found["sparse"]
    said = [
        f"{name} {_accuracy(found[role])} ({found[role]['parameters']:,} parameters, {_flops(found[role])})"
        for role, name in (("dense", "dense"), ("small", "small dense"))
        if role in found
    ]
    state = (OPEN, PART, MET)[len(said)]
    text = "; ".join([*said, f"sparse {_accuracy(sparse)} ({sparse['kept']:,} kept, {_flops(sparse)})"])
    return state, f"{text}."


def _pattern(facts: Json) -> tuple[str, str]:
    pattern = patterns.parse(facts["recipe"].get("pattern", "unstructured"))
    name = f"Pattern: {words.clean(str(pattern))}; {pattern.runs_on}."
    if facts["execution"] == "csr":
        return MET, f"{name} Executed by lowdim's CSR layers on a CPU, which multiply kept weights alone."
    return MET, f"{name} Executed as masks over dense weights, which no device runs faster for their zeros."


def _arose(facts: Json) -> tuple[str, str]:
    sparse = members(facts)["sparse"]
    size = sum(layer["size"] for layer in sparse["layers"])
    start = sum(layer["initial"] for layer in sparse["layers"])
    counts = [sum(update["kept"].values()) for update in sparse["updates"] if "kept" in update]
    end = counts[-1] if counts else start
    peak = max([start, *counts])
    if start == size:
        return MET, f"From dense to {words.percent(1 - end / size)} zeros; all weights existed at the start."
    how = "throughout" if peak == end else f"at the end; at most {words.percent(peak / size)} of the weights at once"
    return MET, f"Sparse from the first step: {words.percent(1 - end / size)} zeros {how}."


def _costs(facts: Json) -> tuple[str, str]:
    found = members(facts)
    sparse = found["sparse"]["costs"]
    training = f"{words.number(sparse['training_flops'])} FLOPs to train"
    inference = f"{words.number(sparse['inference_flops'])} per example to run"
    if "dense" in found:
        dense = found["dense"]["costs"]
        training += f" ({sparse['training_flops'] / dense['training_flops']:.2f} of dense)"
        inference += f" ({sparse['inference_flops'] / dense['inference_flops']:.2f})"
    memory = sparse["training_bytes"]
    text = (
        f"{training}, {inference}. Peak training memory {words.size(memory['sparse']['total'])} if kept weights alone "
        f"are stored, {words.size(memory['masked']['total'])} as masks."
    )
    left = sparse["uncounted"]
    return (PART, f"{text} Not counted: {', '.join(map(words.clean, left))}.") if left else (MET, text)


def _static(facts: Json) -> tuple[str, str]:
    found = members(facts)
    if "static" in found:
        gain = found["sparse"]["test"]["accuracy"] - found["static"]["test"]["accuracy"]
        return MET, f"Static {_accuracy(found['static'])}; this recipe {points(gain)} points."
    if facts["recipe"]["training"].get("name") == "static":
        return MET, "This run is the static one."
    return OPEN, "No static twin was trained. Add static to twins."


def _masks(facts: Json) -> tuple[str, str]:
    sparse = members(facts)["sparse"]
    return (
        MET,
        f"Saved as sparse.masks.safetensors, hash {sparse['masks'][:12]}; masks=Masks.load(...) starts another run "
        "from them, and they apply to any copy of the network.",
    )


def _budget(facts: Json) -> tuple[str, str]:
    found, steps = members(facts), facts["steps"]
    updates = sum("kept" in update for update in found["sparse"]["updates"])
    batches = (
        "the same batches for every network" if steps.get("alike", True) else "samples by each network's own losses"
    )
    text = (
        f"{facts['recipe']['epochs']} epochs, {steps['total']:,} steps, {batches}; "
        f"{words.plural(updates, 'mask update')}."
    )
    skipped = sum("skipped" in update for update in found["sparse"]["updates"])
    text += f" {words.plural(skipped, 'update')} skipped for gradients that were not finite." if skipped else ""
    if "dense" not in found:
        return PART, f"{text} No dense budget to match."
    spent, dense = (found[role]["costs"]["training_flops"] for role in ("sparse", "dense"))
    return (
        MET,
        f"{text} Epochs are equal, FLOPs are not: {spent / dense:.2f} of the dense ones were spent, "
        f"{words.number(spent)} of {words.number(dense)}, which would train it for "
        f"{facts['recipe']['epochs'] * dense / spent:.1f} epochs.",
    )


def _ratios(facts: Json) -> tuple[str, str]:
    found = members(facts)
    if "resampled" in found:
        gain = found["sparse"]["test"]["accuracy"] - found["resampled"]["test"]["accuracy"]
        return (
            MET,
            f"Random masks with as many weights in every layer {_accuracy(found['resampled'])}; the positions of this "
            f"recipe {points(gain)} points.",
        )
    if "static" not in found:
        return OPEN, "There is no random mask to compare with."
    counts = [{layer["name"]: layer["kept"] for layer in found[role]["layers"]} for role in ("static", "sparse")]
    if counts[0] == counts[1]:
        return MET, "The static twin keeps as many weights in every layer: the difference is one of positions alone."
    return (
        OPEN,
        "This network spreads its weights over the layers in another way than the static twin: positions and ratios "
        "are not told apart. Add resampled to twins, which trains its final ratios at random.",
    )


def _execution(facts: Json) -> tuple[str, str]:
    if facts["execution"] == "csr":
        return MET, "Execution: csr. Sparse networks were trained truly sparse, dense ones by torch; both are timed."
    return MET, "Execution: masked, a simulation. No time here is claimed as a gain."


def _beyond(facts: Json) -> tuple[str, str]:
    test = members(facts)["sparse"]["test"]
    said = [f"calibration error {words.percent(test['calibration_error'])}"]
    if "noisy_accuracy" in test:
        said.append(f"{words.percent(test['noisy_accuracy'])} right under noise")
    said.append(f"{words.percent(test['by_difficulty'][-1])} of the hardest third")
    if "unlike_auroc" not in test:
        return PART, f"{'; '.join(said)}. Data of another distribution: not measured."
    said.append(
        f"examples with shuffled features are told by its confidence with an AUROC of {test['unlike_auroc']:.3f}"
    )
    return (MET if "noisy_accuracy" in test else PART), f"{'; '.join(said)}."
