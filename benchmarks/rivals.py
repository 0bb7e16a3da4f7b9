"""SmolLM2-135M in this runtime against llama.cpp's kinds of the same weights: one stream, eight at once, 512 tokens.

Everything is measured in turn. Half zeros are those of magnitude, without repair: speed alone is measured here, what
each form costs in quality is in docs/front.md. torchao's and OpenVINO's int8 and int4 of the same weights come with
their perplexity and ours on the same windows. Where an engine cannot be installed, its rows give the reason.

    python benchmarks/rivals.py --docs docs/runtime.md
    python benchmarks/rivals.py --only streams
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from pages import by_processor, fill, results
from peers import LLAMACPP, OPENVINO, SOURCE, TORCHAO, Peer, Unavailable, gguf
from runtime import CORES, EMULATED, SMOL, TORCH, Row, finish, options, packed_smol, table
from waiting import sleep_while_waiting

import lowdim
from lowdim.data.windows import windows
from lowdim.evaluate.quality.perplexity import perplexity
from lowdim.infer.bench import models
from lowdim.infer.bench.decode import MEMORY, TorchDecoder, tokens_of
from lowdim.infer.bench.timing import threads
from lowdim.infer.decode.open import open_backend
from lowdim.infer.decode.ready import open_ready
from lowdim.models.disk.source import resolve
from lowdim.models.load import load as load_dense
from lowdim.models.load import need_tokenizer

KINDS = ("Q8_0", "Q4_0", "Q4_K_M")
ROUNDED = {"torchao": TORCHAO, "openvino": OPENVINO}
WINDOWS, CONTEXT = 4, 256
"""Of the built-in text, for perplexities: few, since torchao reads a prompt hardly faster than it writes."""
PAIRS = (("int4", "Q4_0"), ("int8 50%", "Q4_0"), ("int8", "Q4_1"), ("int8", "Q4_K_M"), ("int8", "Q8_0"))
VOCAB, START, PROMPT = 49152, 16, 512
ROUNDS, TOKENS, STREAMS = 5, 48, 8


class Ours:
    """A model in this runtime.

    Args:
        model: whose layers are `SparseLinear`.
    """

    def __init__(self, model: Any) -> None:
        self.model, self._backends = model, dict[int, Any]()
        self.held = sum(tensor.nbytes for tensor in {t.data_ptr(): t for t in model.state_dict().values()}.values())

    def run(self, prompt: list[int], tokens: int, streams: int) -> dict[str, Any]:
        """Return the seconds of the prompts, and of every step that generates a token for each stream."""
        if streams not in self._backends:
            self._backends[streams] = open_backend(self.model, slots=streams, max_length=MEMORY).backend
        backend = self._backends[streams]
        slots = [backend.open() for _ in range(streams)]
        begun = time.perf_counter()
        chosen = [int(np.argmax(backend.prefill(slot, prompt))) for slot in slots]
        prefill, seconds = time.perf_counter() - begun, []
        for _ in range(tokens):
            begun = time.perf_counter()
            chosen = [int(np.argmax(logits)) for logits in backend.step(slots, chosen)]
            seconds.append(time.perf_counter() - begun)
        for slot in slots:
            backend.close(slot)
        return {"prefill": prefill, "seconds": seconds}


class Theirs:
    """Another engine in a process of its own."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def run(self, prompt: list[int], tokens: int, streams: int) -> dict[str, Any]:
        """See `Ours.run`."""
        return self._peer.ask(prompt=prompt, tokens=tokens, streams=streams)


class Torch:
    """Hugging Face's model in bf16, which reads prompts."""

    def __init__(self) -> None:
        self._decoder = TorchDecoder(load_dense(resolve(SMOL).path, dtype=torch.bfloat16))

    def run(self, prompt: list[int], tokens: int, streams: int) -> dict[str, Any]:
        """See `Ours.run`; one stream, and no step."""
        return {"prefill": self._decoder.prefill(prompt), "seconds": []}


def ours() -> dict[str, Any]:
    """Return this runtime's forms: dense, and with half of the weights zero."""
    found = {f"lowdim {dtype}": Ours(open_ready(SMOL, dtype=dtype)[0]) for dtype in ("bf16", "int8", "int4")}
    half = {f"lowdim {dtype} 50%": Ours(lowdim.load(packed_smol(), dtype=dtype)) for dtype in ("int8", "int4")}
    return found | half


Engines = dict[str, Callable[[int], Peer]]
"""Others by name; each begins to run on some threads."""


def llamacpp() -> Engines:
    """Return llama.cpp's kinds."""
    return {
        f"llama.cpp {kind}": lambda count, kind=kind: Peer(LLAMACPP, "peer_llamacpp.py", [gguf(kind)], count)  # type: ignore[misc]
        for kind in (SOURCE, *KINDS)
    }


def rounded() -> Engines:
    """Return what rounds weights to int8 and int4; numbers between are fp32 where torch emulates bf16."""
    dtype, path = "float32" if models.emulated(TORCH) else "bfloat16", resolve(SMOL).path
    return {
        f"{engine} {kind}": lambda count, given=(engine, path, kind, dtype): Peer(  # type: ignore[misc]
            ROUNDED[given[0]], "peer_rounded.py", given, count
        )
        for engine in ROUNDED
        for kind in ("int8", "int4")
    }


def in_turn(
    own: dict[str, Any], others: Engines, count: int, value: Callable[[dict[str, Any]], float], **question: Any
) -> tuple[dict[str, float], dict[str, str]]:
    """Return the median of each contestant's value over the rounds, and why others are missing, if they are."""
    with ExitStack() as stack, threads(count):
        contestants, reasons = dict(own), dict[str, str]()
        for name, begin in others.items():
            same = [reason for missing, reason in reasons.items() if missing.split()[0] == name.split()[0]]
            try:
                if same:
                    raise Unavailable(same[0])
                peer = stack.enter_context(begin(count))
                peer.ask(prompt=[1, 2], tokens=1)
                contestants[name] = Theirs(peer)
            except Unavailable as error:
                reasons[name] = str(error)
        found: dict[str, list[float]] = {name: [] for name in contestants}
        for turn in range(ROUNDS + 1):
            for name, contestant in contestants.items():
                took = value(contestant.run(**question))
                if turn:
                    found[name].append(took)
    return {name: statistics.median(values) for name, values in found.items()}, reasons


def step(answer: dict[str, Any]) -> float:
    """Return the seconds of a step."""
    return statistics.median(answer["seconds"])


def rows(
    measure: str, found: dict[str, float], reasons: dict[str, str], count: int, each: int, over: str = "llama.cpp"
) -> Iterator[Row]:
    """Yield what this runtime's forms are over another's, ``each`` tokens being made in a time."""
    detail: dict[str, Any] = {name: round(each / seconds, 1) for name, seconds in found.items()} | {"unit": "tokens/s"}
    for dtype, kind in PAIRS if over == "llama.cpp" else (("int8", "int8"), ("int4", "int4")):
        own, other, name = found[f"lowdim {dtype}"], found.get(f"{over} {kind}"), f"{over} {kind}"
        ratio = None if other is None else other / own
        required = 1.0 if (dtype, kind) == ("int4", "Q4_0") else 0.0
        reason = reasons.get(name, "")
        yield Row(f"{measure}, {dtype} over {name}", ratio, required, count, detail=detail, reason=reason)


def one_stream(own: dict[str, Any]) -> Iterator[Row]:
    """Decoding one sequence, on one thread and on all."""
    for count in sorted({1, CORES}):
        asked = {"prompt": tokens_of(START, VOCAB), "tokens": TOKENS, "streams": 1}
        yield from rows("decode, one stream", *in_turn(own, llamacpp(), count, step, **asked), count, 1)


def other_engines(own: dict[str, Any]) -> Iterator[Row]:
    """Decoding one sequence beside torchao and OpenVINO, and the perplexity of each on the same windows."""
    few = {name: own[name] for name in ("lowdim int8", "lowdim int4")}
    for count in sorted({1, CORES}):
        asked = {"prompt": tokens_of(START, VOCAB), "tokens": TOKENS, "streams": 1}
        found, reasons = in_turn(few, rounded(), count, step, **asked)
        for engine in ROUNDED:
            yield from rows("decode beside others, one stream", found, reasons, count, 1, engine)
    text = windows("builtin", need_tokenizer(SMOL, resolve(SMOL).path), CONTEXT, limit=WINDOWS)
    told = {name: {"perplexity": perplexity(each.model, text).value, "bytes": each.held} for name, each in few.items()}
    for name, begin in rounded().items():
        if name not in reasons:
            with begin(CORES) as peer:
                told[name] = peer.ask(windows=text.input_ids.tolist())
    for name in told:
        engine, kind = name.split()
        if engine != "lowdim":
            detail = {
                who: f"{told[who]['perplexity']:.2f}, {told[who]['bytes'] / 1e6:.0f} MB"
                for who in (f"lowdim {kind}", name)
            }
            ratio = told[name]["perplexity"] / told[f"lowdim {kind}"]["perplexity"]
            measure = f"perplexity of {name} over lowdim {kind}: " + "; ".join(
                f"{who} {what}" for who, what in detail.items()
            )
            yield Row(measure, ratio, 0.0, CORES, detail=detail | {"unit": "perplexity, bytes held"})


def streams(own: dict[str, Any]) -> Iterator[Row]:
    """Decoding eight sequences together, tokens of all counted."""
    for count in sorted({1, CORES}):
        asked = {"prompt": tokens_of(START, VOCAB), "tokens": TOKENS, "streams": STREAMS}
        found, reasons = in_turn(own, llamacpp(), count, step, **asked)
        yield from rows(f"decode, {STREAMS} streams", found, reasons, count, STREAMS)


def prompts(own: dict[str, Any]) -> Iterator[Row]:
    """Reading a prompt."""
    prompt, name = tokens_of(PROMPT, VOCAB), f"prompt of {PROMPT} tokens"
    contestants = own if models.emulated(TORCH) else own | {"torch bf16": Torch()}
    for count in sorted({1, CORES}):
        asked = {"prompt": prompt, "tokens": 0, "streams": 1}
        found, reasons = in_turn(contestants, llamacpp(), count, lambda answer: answer["prefill"], **asked)
        made = list(rows(name, found, reasons, count, PROMPT))
        yield from made
        ratio = found["torch bf16"] / found["lowdim int4"] if "torch bf16" in found else None
        reason = "" if ratio else EMULATED
        yield Row(f"{name}, int4 over torch bf16", ratio, 1.0, count, detail=made[0].detail, reason=reason)


PARTS = {"one": one_stream, "streams": streams, "prompts": prompts, "others": other_engines}


def speeds(found: list[dict[str, Any]]) -> str:
    """Return the tokens per second of every contestant as a table."""
    fast = [row for row in found if row["detail"].get("unit") == "tokens/s"]
    told = {(row["measure"].rsplit(",", 1)[0], row["threads"]): row["detail"] for row in fast}
    names = list(dict.fromkeys(name for detail in told.values() for name in detail if name != "unit"))
    lines = [f"| tokens/s | threads | {' | '.join(names)} |", f"|{'---|' * (len(names) + 2)}"]
    for (measure, count), detail in told.items():
        lines.append(f"| {measure} | {count} | {' | '.join(str(detail.get(name, '')) for name in names)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure the parts that were asked for, print a table, write JSON."""
    sleep_while_waiting()
    given = options(__doc__, PARTS)
    own, made = ours(), []
    for name in given.only or PARTS:
        for row in PARTS[name](own):
            made.append(row)
            print(f"{row.measure:<60} {row.threads:>3} {row.ratio or float('nan'):.2f} {row.reason}", flush=True)
        print(made[-1].detail, flush=True)
    if not given.only:
        given.json = given.json or results("rivals")
    docs, given.docs = given.docs, None
    finish(made, "rivals", given)
    if docs:
        every = []
        for folder, found in by_processor("rivals").items():
            listed = [Row(**{key: value for key, value in row.items() if key != "met"}) for row in found["rows"]]
            every += [table(listed, found["machine"], folder), speeds(found["rows"])]
        fill(docs, "rivals", "\n\n".join(every))


if __name__ == "__main__":
    main()
