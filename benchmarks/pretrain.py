"""A miniature about depth: which norms, decay and optimizer win at 12 and 24 blocks of width 64.

Every row is tuned over one grid of learning rates at 12 blocks, on the first seed, and then trained at its best rate on
the other seeds; the core rows again at 24 blocks with that rate. The plan comes first, in runs and hours, from a step
that is timed here; the tokens of a run are what fits into the hours. What is finished stays: the same command goes on.

    python benchmarks/pretrain_corpus.py ~/corpus
    python benchmarks/pretrain.py --text ~/corpus/corpus.jsonl --home ~/depth --hours 9
    python benchmarks/pretrain.py --home ~/depth --table
    python benchmarks/pretrain.py --text ~/corpus/corpus.jsonl --home ~/depth --mechanism

The last form diagnoses the models before and after, on the text that was held out: how the gradient's norm changes from
the first block to the last, and what the loss grows by when one block is left out, and says of both whether every seed
shows at 24 blocks what the papers say of LNS and Mix-LN.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from waiting import sleep_while_waiting

import lowdim
from lowdim.core.errors import RecipeError
from lowdim.core.machine import machine
from lowdim.data.corpus.split import Corpus
from lowdim.train.pretrain import network
from lowdim.train.pretrain.api import plan
from lowdim.train.pretrain.prepare import prepare

WIDTH, MLP, HEADS, VOCABULARY, LENGTH = 64, 172, 4, 4096, 128
HELD = 0.005  # share of the documents that is held out
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
DECAY = 0.1
SEEDS, DEPTHS = (0, 1, 2), (12, 24)
ADAMW: dict[str, Any] = {"name": "adamw", "weight_decay": DECAY}
ROWS: dict[str, dict[str, Any]] = {
    "Pre-LN": {},
    "Post-LN": {"placement": "post-ln"},
    "Sandwich": {"placement": "sandwich"},
    "DeepNorm": {"placement": "deepnorm"},
    "Mix-LN 1/8": {"placement": {"name": "mix-ln", "alpha": 0.125}},
    "Mix-LN 1/4": {"placement": {"name": "mix-ln", "alpha": 0.25}},
    "Mix-LN 1/2": {"placement": {"name": "mix-ln", "alpha": 0.5}},
    "LNS": {"placement": "lns"},
    "LNS, learned": {"placement": "lns-learned"},
    "GPAS on Pre-LN": {"placement": "gpas"},
    "GPAS on Mix-LN 1/4": {"placement": {"name": "gpas", "over": {"name": "mix-ln", "alpha": 0.25}}},
    "ProRes": {"placement": {"name": "prores", "steps": 0}},  # its steps follow from those of the run
    "Scaled init": {"placement": "scaled-init"},
    "QK-norm and Muon": {"model": {"qk_norm": True}, "optimizer": {"name": "muon", "weight_decay": DECAY}},
    "Decay 0.01": {"optimizer": {**ADAMW, "weight_decay": 0.01}},
    "Decay 0.3": {"optimizer": {**ADAMW, "weight_decay": 0.3}},
    "AlphaDecay": {"decay": "alphadecay"},
    "AlphaDecay 0.01": {"decay": "alphadecay", "optimizer": {**ADAMW, "weight_decay": 0.01}},
    "AlphaDecay 0.3": {"decay": "alphadecay", "optimizer": {**ADAMW, "weight_decay": 0.3}},
    "LNS and AlphaDecay": {"placement": "lns", "decay": "alphadecay"},
}
CORE = ("Pre-LN", "Mix-LN 1/4", "LNS", "GPAS on Pre-LN", "ProRes")
UNIFORM, ALPHA = ("Pre-LN", "Decay 0.01", "Decay 0.3"), ("AlphaDecay", "AlphaDecay 0.01", "AlphaDecay 0.3")
"""The same grid of decays, uniform and by AlphaDecay; what has no number has 0.1."""
TUNED = ("Pre-LN", "Mix-LN 1/4", "LNS")
CLAIMS = {
    "Mix-LN 1/4": "Mix-LN beats Pre-LN",
    "LNS": "LayerNorm Scaling beats Pre-LN",
    "GPAS on Pre-LN": "GPAS improves Pre-LN",
    "ProRes": "ProRes beats Pre-LN",
    "AlphaDecay": "AlphaDecay at its best decay beats uniform decay at its best",
}
MECHANISM = ("LNS", "Mix-LN 1/4")


class Job(NamedTuple):
    """One run."""

    row: str
    blocks: int
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """Of its directory."""
        row = "".join(c if c.isalnum() else "-" for c in self.row.lower())
        return f"{row}-{self.blocks}-{self.rate:g}-{self.seed}"


def recipe(job: Job, text: list[str], steps: int, batch: int) -> lowdim.Pretraining:
    """Return the recipe of a run."""
    settings = ROWS[job.row]
    placement = settings.get("placement")
    if isinstance(placement, dict) and placement.get("steps") == 0:  # the last block counts in full after a quarter
        placement = {**placement, "steps": max(1, steps // (4 * job.blocks))}
    model = {
        "name": "9m",
        "hidden_size": WIDTH,
        "intermediate_size": MLP,
        "num_hidden_layers": job.blocks,
        "num_attention_heads": HEADS,
    }
    return lowdim.Pretraining(
        model=model | settings.get("model", {}),
        placement=placement,
        optimizer={**settings.get("optimizer", ADAMW), "lr": job.rate},
        decay=settings.get("decay"),
        data={"source": text, "vocabulary": VOCABULARY, "validation": HELD},
        steps=steps,
        length=LENGTH,
        batch=batch,
        schedule={"name": "cosine", "warmup": 0.1},
        evaluation={"every": steps},
        seed=job.seed,
    )


def there() -> list[str]:
    """Return the rows that this version can train."""
    found = []
    for row in ROWS:
        try:
            recipe(Job(row, 12, 1e-3, 0), ["builtin"], 1000, 1)
        except RecipeError as error:
            print(f"{row}: left out, {error}")
            continue
        found.append(row)
    return found


def result(job: Job, given: argparse.Namespace, steps: int) -> dict[str, Any]:
    """Train, or find what was trained; return what is kept of it."""
    kept, begun = given.home / f"{job.name}.json", time.perf_counter()
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    made = lowdim.pretrain(recipe(job, given.text, steps, given.batch), out=given.home / job.name, resume=True)
    found = {
        **job._asdict(),
        "loss": made.loss,
        "diverged": made.diverged,
        "tokens": made.facts["tokens"],
        "seconds": round(time.perf_counter() - begun, 1),
    }
    kept.write_text(json.dumps(found))
    return found


def trained(given: argparse.Namespace, rows: list[str], steps: int) -> Iterator[dict[str, Any]]:
    """Train everything; yield each result. First the grids, then the other seeds, so that any part can be compared."""
    best: dict[str, float] = {}
    for row in rows:
        tuning = [result(Job(row, DEPTHS[0], rate, given.seeds[0]), given, steps) for rate in given.rates]
        yield from tuning
        stable = [each for each in tuning if each["diverged"] is None] or tuning
        best[row] = min(stable, key=lambda each: float(each["loss"]))["rate"]
    deep = [row for row in rows if row in given.deep]
    for place, seed in enumerate(given.seeds):
        shallow = [Job(row, DEPTHS[0], best[row], seed) for row in rows if place]
        for job in (*shallow, *(Job(row, DEPTHS[1], best[row], seed) for row in deep)):
            yield result(job, given, steps)
    for row in (row for row in rows if row in TUNED and given.chats):
        for seed in given.seeds:
            yield answered(Job(row, DEPTHS[0], best[row], seed), given)


def answered(job: Job, given: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune a checkpoint on questions and answers, each with the same budget; return the loss of the answers."""
    tuned = lowdim.Pretraining(
        model=str(given.home / job.name),
        data={"kind": "sft", "source": given.chats, "template": "plain", "validation": 0.1},
        optimizer={"name": "adamw", "lr": 5e-4},
        steps=200,
        length=LENGTH,
        batch=given.batch,
        seed=job.seed,
    )
    made = lowdim.pretrain(tuned, out=given.home / f"{job.name}-answers", resume=True)
    return {**job._asdict(), "row": f"{job.row}, fine-tuned", "loss": made.loss, "diverged": made.diverged}


def table(found: list[dict[str, Any]]) -> str:
    """Return the table of the best rates, over the seeds, and a sentence for each claim."""
    lines = ["| row | blocks | rate | loss | perplexity of the mean | seeds |", "|---|---|---|---|---|---|"]
    means: dict[tuple[str, int], list[float]] = {}
    rates = sorted({each["rate"] for each in found})
    for row, blocks in dict.fromkeys((each["row"], each["blocks"]) for each in found):
        own = [each for each in found if (each["row"], each["blocks"]) == (row, blocks)]
        by_rate = {rate: [e for e in own if e["rate"] == rate] for rate in rates}
        best = max(
            (rate for rate in rates if by_rate[rate]), key=lambda rate: (len(by_rate[rate]), -_least(by_rate[rate]))
        )
        losses = [float(each["loss"]) for each in by_rate[best] if each["diverged"] is None]
        edge = " (edge of the grid)" if blocks == DEPTHS[0] and best in (rates[0], rates[-1]) and len(rates) > 1 else ""
        lost = len(by_rate[best]) - len(losses)
        if not losses:
            lines.append(f"| {row} | {blocks} | {best:g}{edge} | diverged | | {lost} |")
            continue
        means[row, blocks] = losses
        spread = f" ± {statistics.stdev(losses):.4f}" if len(losses) > 1 else ""
        note = f", {lost} diverged" if lost else ""
        mean = statistics.fmean(losses)
        lines.append(
            f"| {row} | {blocks} | {best:g}{edge} | {mean:.4f}{spread} | {math.exp(mean):.2f} | {len(losses)}{note} |"
        )
    return "\n".join([*lines, "", *claims(means)])


def _least(runs: list[dict[str, Any]]) -> float:
    return min(float(each["loss"]) if each["diverged"] is None else 1e9 for each in runs)


def _best(rows: list[list[float]]) -> list[float]:
    return min(rows, key=statistics.fmean, default=[])


def claims(means: dict[tuple[str, int], list[float]]) -> Iterator[str]:
    """Yield a sentence for each claim: it holds here if the difference is more than twice its standard error."""
    for row, claim in CLAIMS.items():
        for blocks in DEPTHS:
            own, rival = [(row,), ("Pre-LN",)] if row != "AlphaDecay" else [ALPHA, UNIFORM]
            one, other = (_best([means[r, blocks] for r in rows if (r, blocks) in means]) for rows in (own, rival))
            if not one or not other:
                yield f"- {claim} ({blocks} blocks): not tested."
                continue
            change = statistics.fmean(one) - statistics.fmean(other)
            if len(one) < 2 or len(other) < 2:
                yield f"- {claim} ({blocks} blocks): {change:+.4f} nats on one seed, which says nothing."
                continue
            error = (statistics.variance(one) / len(one) + statistics.variance(other) / len(other)) ** 0.5
            word = "reproduced" if change < -2 * error else "not reproduced"
            yield f"- {claim} ({blocks} blocks): {word}, {change:+.4f} ± {error:.4f} nats."


def mechanism(given: argparse.Namespace, found: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Diagnose every row before its first step and at its best rate, seed by seed; yield gradients and sensitivity.

    Both are of the text that was held out: the norm of the last block's gradient over that of the first, and what the
    loss grows by without one block, the median over each half of the blocks.
    """
    held: Path = given.home / "held.txt"
    if not held.exists():
        texts = (document.text for document in Corpus(given.text, HELD).split().validation())
        held.write_text("\n\n".join(texts), encoding="utf-8")
    for row, blocks, seed in itertools.product(given.rows, DEPTHS, given.seeds):
        what = {"row": row, "blocks": blocks, "seed": seed}
        fresh = prepare(recipe(Job(row, blocks, given.rates[0], seed), given.text, 1000, given.batch))
        model = network.make(fresh.recipe, fresh.config, None, fresh.device)[0]
        yield {**what, "steps": 0, **diagnosed(model, held, fresh.tokenizer)}
        own = [e for e in found if (e["row"], e["blocks"], e["seed"]) == (row, blocks, seed)]
        best = min((e for e in own if e["diverged"] is None), key=lambda e: float(e["loss"]), default=None)
        if best is not None:
            place = given.home / Job(row, blocks, best["rate"], seed).name
            steps = best["tokens"] // (given.batch * LENGTH)
            yield {**what, "steps": steps, **diagnosed(place, held)}


def verdicts(told: list[dict[str, Any]], seeds: Sequence[int]) -> Iterator[str]:
    """Yield a sentence for each part of the mechanism: it is there if every seed shows it at the larger depth."""
    trained = {(e["row"], e.get("seed", seeds[0])): e for e in told if e["blocks"] == DEPTHS[1] and e["steps"]}
    for row in MECHANISM:
        pairs = [(trained.get((row, seed)), trained.get(("Pre-LN", seed))) for seed in seeds]
        both = [(one, other) for one, other in pairs if one and other]
        parts = {
            "gradient norm of the last block over the first nearer 1": [
                abs(math.log(one["gradient"])) < abs(math.log(other["gradient"])) for one, other in both
            ],
            "more lost without a block of the deeper half": [one["deeper"] > other["deeper"] for one, other in both],
        }
        for part, seen in parts.items():
            word = "not tested in all seeds" if len(seen) < len(seeds) else "in all seeds"
            word = word if all(seen) else "not reproduced here"
            known = f"{sum(seen)} of the {len(seen)} tested"
            yield f"- {row} against Pre-LN at {DEPTHS[1]} blocks, {part}: {word} ({known})."


def diagnosed(model: Any, held: Path, tokenizer: Any = None) -> dict[str, float]:
    """Return the ratio of gradients and the sensitivity of both halves of a model."""
    kinds = ("drop", "gradients")
    made = lowdim.diagnose(model, text=held, tokenizer=tokenizer, windows=16, context=LENGTH, measures=kinds)
    depth = made.to_dict()["depth"]
    return {"gradient": depth["last_over_first"]["gradient"], **depth["halves"]["sensitivity"]}


def main() -> None:
    """Print the plan; train what is left of it; write the results; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs="+", default=["builtin"], help="what is trained on")
    parser.add_argument("--chats", nargs="*", default=[], help="questions and answers to fine-tune the core rows on")
    parser.add_argument("--home", type=Path, required=True, help="where runs and results are kept")
    parser.add_argument("--hours", type=float, default=9.0, help="of all runs together")
    parser.add_argument("--steps", type=int, help="of every run, in the place of what fits into the hours")
    parser.add_argument("--batch", type=int, default=32, help="sequences of a step")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW")
    parser.add_argument("--deep", nargs="*", default=CORE, choices=list(ROWS), metavar="ROW", help="at 24 blocks too")
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--plan", action="store_true", help="stop after the plan")
    parser.add_argument("--table", action="store_true", help="print the table of what is there")
    parser.add_argument("--mechanism", action="store_true", help="diagnose what is there")
    given = parser.parse_args()
    file: Path = given.home / "results.json"
    if given.table:
        kept = json.loads(file.read_text())
        print(table(kept["runs"]), *verdicts(kept.get("mechanism", []), given.seeds), sep="\n")
        return
    if given.mechanism:
        kept, told = json.loads(file.read_text()), list[dict[str, Any]]()
        for each in mechanism(given, kept["runs"]):
            told.append(each)
            print(json.dumps(each), flush=True)
            file.write_text(json.dumps({**kept, "mechanism": told}, indent=1) + "\n")
        print(*verdicts(told, given.seeds), sep="\n")
        return
    sleep_while_waiting()
    given.home.mkdir(parents=True, exist_ok=True)
    rows = [row for row in there() if row in given.rows]
    steps, hours = planned(given, rows)
    print(
        f"{len(rows)} rows; {steps:,} steps of {given.batch} x {LENGTH} tokens a run; about {hours:.1f} h in all",
        flush=True,
    )
    if given.plan:
        return
    found: list[dict[str, Any]] = []
    for each in trained(given, rows, steps):
        found.append(each)
        print(json.dumps(each), flush=True)
        file.write_text(json.dumps({"machine": machine(), "steps": steps, "runs": found}, indent=1) + "\n")
    print(table(found))


def planned(given: argparse.Namespace, rows: list[str]) -> tuple[int, float]:
    """Return the steps of a run and the hours of all, those of an earlier call where there was one."""
    kept: Path = given.home / "plan.json"
    if kept.exists():
        earlier = json.loads(kept.read_text())
        return earlier["steps"], earlier["hours"]
    trial = 100
    shallow, deep = (plan(recipe(Job("Pre-LN", blocks, 1e-3, 0), given.text, trial, given.batch)) for blocks in DEPTHS)
    each = [(one.seconds or 0.0) / trial for one in (shallow, deep)]
    core = [row for row in rows if row in given.deep]
    runs = len(rows) * (len(given.rates) + len(given.seeds) - 1), len(core) * len(given.seeds)
    seconds = sum(count * time_ for count, time_ in zip(runs, each, strict=True)) * 1.1  # evaluations
    most = shallow.sequences // given.batch  # one pass
    steps = given.steps or max(10, min(most, int(3600 * given.hours / seconds)))
    hours = steps * seconds / 3600
    print(
        f"{runs[0]} runs at {DEPTHS[0]} blocks, {runs[1]} at {DEPTHS[1]}; a step takes {each[0]:.2f}, {each[1]:.2f} s"
    )
    kept.write_text(json.dumps({"steps": steps, "hours": hours}))
    return steps, hours


if __name__ == "__main__":
    main()
