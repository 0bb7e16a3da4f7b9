"""SmolLM2-135M in this runtime against llama.cpp's kinds of the same weights: one stream, eight at once, 512 tokens.

Everything is measured in turn. Half zeros are those of magnitude, without repair: speed alone is measured here, what
each form costs in quality is in docs/front.md. Where llama.cpp cannot be installed, its rows give the reason.

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
from peers import LLAMACPP, SOURCE, Peer, Unavailable, gguf
from runtime import CORES, SMOL, Row, finish, options, packed_smol, table
from waiting import sleep_while_waiting

import lowdim
from lowdim.infer.bench.decode import MEMORY, TorchDecoder, tokens_of
from lowdim.infer.bench.timing import threads
from lowdim.infer.decode.open import open_backend
from lowdim.infer.decode.ready import open_ready
from lowdim.models.disk.source import resolve
from lowdim.models.load import load as load_dense

KINDS = ("Q8_0", "Q4_0", "Q4_K_M")
VOCAB, START, PROMPT = 49152, 16, 512
ROUNDS, TOKENS, STREAMS = 5, 48, 8


class Ours:
    """A model in this runtime.

    Args:
        model: whose layers are `SparseLinear`.
    """

    def __init__(self, model: Any) -> None:
        self._model, self._backends = model, dict[int, Any]()

    def run(self, prompt: list[int], tokens: int, streams: int) -> dict[str, Any]:
        """Return the seconds of the prompts, and of every step that generates a token for each stream."""
        if streams not in self._backends:
            self._backends[streams] = open_backend(self._model, slots=streams, max_length=MEMORY).backend
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
    """llama.cpp in a process of its own."""

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


def in_turn(
    own: dict[str, Any], count: int, value: Callable[[dict[str, Any]], float], **question: Any
) -> tuple[dict[str, float], str]:
    """Return the median of each contestant's value over the rounds, and why llama.cpp is missing, if it is."""
    with ExitStack() as stack, threads(count):
        contestants, reason = dict(own), ""
        try:
            for kind in (SOURCE, *KINDS):
                peer = stack.enter_context(Peer(LLAMACPP, "peer_llamacpp.py", [gguf(kind)], count))
                contestants[f"llama.cpp {kind}"] = Theirs(peer)
        except Unavailable as error:
            reason = str(error)
        found: dict[str, list[float]] = {name: [] for name in contestants}
        for turn in range(ROUNDS + 1):
            for name, contestant in contestants.items():
                took = value(contestant.run(**question))
                if turn:
                    found[name].append(took)
    return {name: statistics.median(values) for name, values in found.items()}, reason


def step(answer: dict[str, Any]) -> float:
    """Return the seconds of a step."""
    return statistics.median(answer["seconds"])


def rows(measure: str, found: dict[str, float], reason: str, count: int, each: int) -> Iterator[Row]:
    """Yield what this runtime's forms are over llama.cpp's kinds, ``each`` tokens being made in a time."""
    detail: dict[str, Any] = {name: round(each / seconds, 1) for name, seconds in found.items()} | {"unit": "tokens/s"}
    pairs = (("int4", "Q4_0"), ("int8 50%", "Q4_0"), ("int8", "Q4_1"), ("int8", "Q4_K_M"), ("int8", "Q8_0"))
    for dtype, kind in pairs:
        own, other = found[f"lowdim {dtype}"], found.get(f"llama.cpp {kind}")
        ratio = None if other is None else other / own
        required = 1.0 if (dtype, kind) == ("int4", "Q4_0") else 0.0
        yield Row(f"{measure}, {dtype} over llama.cpp {kind}", ratio, required, count, detail=detail, reason=reason)


def one_stream(own: dict[str, Any]) -> Iterator[Row]:
    """Decoding one sequence, on one thread and on all."""
    for count in sorted({1, CORES}):
        found, reason = in_turn(own, count, step, prompt=tokens_of(START, VOCAB), tokens=TOKENS, streams=1)
        yield from rows("decode, one stream", found, reason, count, 1)


def streams(own: dict[str, Any]) -> Iterator[Row]:
    """Decoding eight sequences together, tokens of all counted."""
    for count in sorted({1, CORES}):
        found, reason = in_turn(own, count, step, prompt=tokens_of(START, VOCAB), tokens=TOKENS, streams=STREAMS)
        yield from rows(f"decode, {STREAMS} streams", found, reason, count, STREAMS)


def prompts(own: dict[str, Any]) -> Iterator[Row]:
    """Reading a prompt."""
    prompt = tokens_of(PROMPT, VOCAB)
    contestants = own | {"torch bf16": Torch()}
    for count in sorted({1, CORES}):
        found, reason = in_turn(
            contestants, count, lambda answer: answer["prefill"], prompt=prompt, tokens=0, streams=1
        )
        name = f"prompt of {PROMPT} tokens"
        made = list(rows(name, found, reason, count, PROMPT))
        yield from made
        ratio = found["torch bf16"] / found["lowdim int4"]
        yield Row(f"{name}, int4 over torch bf16", ratio, 1.0, count, detail=made[0].detail)


PARTS = {"one": one_stream, "streams": streams, "prompts": prompts}


def speeds(found: list[dict[str, Any]]) -> str:
    """Return the tokens per second of every contestant as a table."""
    told = {(row["measure"].rsplit(",", 1)[0], row["threads"]): row["detail"] for row in found}
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
