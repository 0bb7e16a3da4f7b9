"""The CPU runtime against torch, its own dense kernels, DeepSparse and llama.cpp, measured in turn in one run.

Prints a table of ratios with what each must reach. A peer that cannot be installed gives a row with the reason.

    python benchmarks/runtime.py --docs docs/runtime.md
    python benchmarks/runtime.py --only layers --only memory

All parts together are kept in the folder of this processor; the page shows every processor that has results.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pages import by_processor, fill, heading, results
from peers import DEEPSPARSE, LLAMACPP, Peer, Unavailable, gguf
from torch.nn.functional import scaled_dot_product_attention

import lowdim
from lowdim.core.machine import machine
from lowdim.data import assets
from lowdim.infer.bench import layers, models
from lowdim.infer.bench.bandwidth import read_bandwidth
from lowdim.infer.bench.decode import LowdimDecoder, TorchDecoder, time_prefill, time_steps
from lowdim.infer.bench.result import Contestant, LayerTime
from lowdim.infer.bench.settings import Settings
from lowdim.infer.bench.timing import threads
from lowdim.infer.sparse.matrix import Matrix, multiplies_bf16
from lowdim.models.disk.source import resolve
from lowdim.models.load import load as load_dense
from lowdim.models.walk.attention import chunked_causal

CORES = os.cpu_count() or 1
SMOL = "builtin:smollm2-135m"
TORCH = Contestant("torch", "bf16")


@dataclass
class Row:
    """A ratio and what it must reach; where ``at_most``, what it must not surpass."""

    measure: str
    ratio: float | None
    required: float
    threads: int
    at_most: bool = False
    detail: dict[str, Any] = field(default_factory=dict)
    reason: str = ""

    @property
    def met(self) -> bool:
        """Whether the ratio is what it must be."""
        if self.ratio is None:
            return False
        return self.ratio <= self.required if self.at_most else self.ratio >= self.required


# ---------------------------------------------------------------- one layer


def time_layers() -> Iterator[Row]:
    """4096x4096 at batch 1, one scale per 128 columns, on one thread and on all."""
    weight = torch.randn(4096, 4096, generator=torch.Generator().manual_seed(0)).bfloat16()
    product = layers.Product(("4096x4096",), 1, weight)
    for count in sorted({1, CORES}):
        with threads(count):
            before = read_bandwidth()
            found = layers.measure(product, ("bf16", "int8", "int4"), (0.7, 0.9), before, rounds=25, group=128)
            bandwidth = max(before, read_bandwidth())
        yield from _layer_rows({(r.engine, r.dtype, r.sparsity): r for r in found}, count, bandwidth)


def _layer_rows(found: dict[tuple[str, str, float], LayerTime], count: int, bandwidth: float) -> Iterator[Row]:
    def row(measure: str, ours: tuple[str, float], theirs: tuple[str, str, float], required: float) -> Row:
        fast, slow = found["lowdim", *ours], found[theirs]
        detail = {"microseconds": fast.microseconds, "over": slow.microseconds, "kernel": fast.kernel}
        return Row(measure, slow.microseconds / fast.microseconds, required, count, detail=detail)

    many = count > 1
    dense = found["lowdim", "bf16", 0.0]
    share = dense.bytes / dense.microseconds * 1e6 / bandwidth
    yield row("bf16 layer 70% over torch bf16", ("bf16", 0.7), ("torch", "bf16", 0.0), 4.0)
    yield row("bf16 layer 70% over own dense bf16", ("bf16", 0.7), ("lowdim", "bf16", 0.0), 2.4 if many else 1.9)
    detail = {"microseconds": dense.microseconds, "read_bandwidth_gb_s": round(bandwidth / 1e9, 2)}
    yield Row("own dense bf16, share of the read bandwidth", share, 0.8, count, detail=detail)
    yield row("int8 layer 70% over own dense int8", ("int8", 0.7), ("lowdim", "int8", 0.0), 2.1 if many else 1.75)
    if many:
        yield row("int8 layer 70% over own dense int4", ("int8", 0.7), ("lowdim", "int4", 0.0), 1.1)
        yield row("int8 layer 90% over own dense int4", ("int8", 0.9), ("lowdim", "int4", 0.0), 1.4)
        yield row("int4 layer 70% over own dense int4", ("int4", 0.7), ("lowdim", "int4", 0.0), 1.25)


def time_attention() -> Iterator[Row]:
    """Attention of 512 bf16 tokens to themselves: by products of matrices over torch's kernel, in turn."""
    if not multiplies_bf16():
        reason = "torch's kernel is taken where the processor has no products of bf16"
        yield Row("attention of 512 tokens, products over torch's kernel", None, 1.0, CORES, reason=reason)
        return
    draw = torch.Generator().manual_seed(0)
    for heads, kv_heads, width in ((9, 3, 64), (32, 8, 64), (32, 32, 128)):
        q, k, v = (torch.randn(1, n, 512, width, generator=draw).bfloat16() for n in (heads, kv_heads, kv_heads))
        ways: dict[str, Callable[[], Any]] = {
            "products": lambda q=q, k=k, v=v: chunked_causal(q, k, v, q.shape[-1] ** -0.5),
            "torch": lambda q=q, k=k, v=v: scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True),
        }
        took: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(30):
            for name, way in ways.items():
                begun = time.perf_counter()
                way()
                if turn > 2:
                    took[name].append(time.perf_counter() - begun)
        ms = {name: 1e3 * statistics.median(each) for name, each in took.items()}
        measure = f"attention of 512 tokens, {heads} heads of {width}, {kv_heads} of keys, products over torch's kernel"
        detail = {name: round(value, 2) for name, value in ms.items()} | {"unit": "ms"}
        yield Row(measure, ms["torch"] / ms["products"], 1.0, torch.get_num_threads(), detail=detail)


# ---------------------------------------------------------------- DeepSparse


def against_deepsparse() -> Iterator[Row]:
    """Eight pruned 4096x4096 matrices in fp32, with a ReLU after each, batch 1."""
    depth, width, generator = 8, 4096, torch.Generator().manual_seed(0)
    weights = torch.randn(depth, width, width, generator=generator).mul_((2 / (0.3 * width)) ** 0.5)
    for weight in weights:
        weight[torch.rand(width, width, generator=generator) < 0.7] = 0
    matrices = [Matrix.from_dense(weight, "fp32") for weight in weights]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.npy"
        np.save(file, weights.numpy())
        del weights
        for count in sorted({1, CORES}):
            yield _against_deepsparse(matrices, file, count)


def _against_deepsparse(matrices: list[Matrix], file: Path, count: int) -> Row:
    measure = "fp32 matrices 70% over DeepSparse 1.8.0"
    x = torch.linspace(-1, 1, matrices[0].cols)[None]
    theirs, ours = [], []
    try:
        with Peer(DEEPSPARSE, "peer_deepsparse.py", [file], count) as peer, threads(count):
            for turn in range(7):
                answer = peer.ask(passes=3, x=x[0].tolist())
                y, seconds = _stack(matrices, x)
                if turn:
                    theirs.append(statistics.median(answer["seconds"]))
                    ours.append(seconds)
    except Unavailable as error:
        return Row(measure, None, 3.0, count, reason=str(error))
    expected = torch.tensor(answer["y"])
    detail = {
        "microseconds_per_layer": round(1e6 * statistics.median(ours) / len(matrices), 1),
        "over": round(1e6 * statistics.median(theirs) / len(matrices), 1),
        "largest_difference": float((y[0] - expected).abs().max() / expected.abs().max()),
    }
    return Row(measure, statistics.median(theirs) / statistics.median(ours), 3.0, count, detail=detail)


def _stack(matrices: list[Matrix], x: torch.Tensor) -> tuple[torch.Tensor, float]:
    from time import perf_counter

    seconds = []
    for _ in range(3):
        y, begun = x, perf_counter()
        for matrix in matrices:
            y = matrix.linear(y).relu_()
        seconds.append(perf_counter() - begun)
    return y, statistics.median(seconds)


# ---------------------------------------------------------------- whole models


def time_llama() -> Iterator[Row]:
    """LLaMA-7B's shape with random weights, 70% of them zero: decoding, then prefill."""
    settings = Settings(shape="llama-7b", sparsities=(0.7,), dtypes=("bf16", "int8"))
    vocab = 32000
    with threads(CORES):
        base = models.random_base(settings)
        built = {who: models.build(base, who) for who in models.wanted(settings)}
        decoders = {w: TorchDecoder(m) if w == TORCH else LowdimDecoder(m) for w, m in built.items()}
        steps = _medians(time_steps(decoders, tokens=16, vocab=vocab))
        some = {who: decoder for who, decoder in decoders.items() if who == TORCH or who.sparsity}
        prefill = _medians(time_prefill(some, prompt=256, vocab=vocab)) if multiplies_bf16() else {}
    detail: dict[str, Any] = {str(who): round(1 / seconds, 2) for who, seconds in steps.items()}
    detail |= {"unit": "tokens/s", "distinct_blocks": base.distinct}
    for dtype, required in (("bf16", 3.5), ("int8", 6.0)):
        ratio = steps[TORCH] / steps[Contestant("lowdim", dtype, 0.7)]
        yield Row(f"LLaMA-7B-shaped decode, {dtype} 70%, over torch bf16", ratio, required, CORES, detail=detail)
    yield from _prefill_rows("LLaMA-7B-shaped", prefill)


def _prefill_rows(name: str, seconds: dict[Contestant, float]) -> Iterator[Row]:
    if not seconds:
        reason = "torch emulates bf16 on this processor"
        yield Row(f"prefill of 256 tokens, {name}, over torch bf16", None, 0.9, torch.get_num_threads(), reason=reason)
    detail = {str(who): round(256 / value, 1) for who, value in seconds.items()} | {"unit": "tokens/s"}
    for who in seconds:
        if who.engine == "lowdim":
            measure = f"prefill of 256 tokens, {name}, {who.dtype} {who.sparsity:.0%}, over torch bf16"
            yield Row(measure, seconds[TORCH] / seconds[who], 0.9, torch.get_num_threads(), detail=detail)


def _medians(seconds: dict[Contestant, list[float]]) -> dict[Contestant, float]:
    return {who: statistics.median(values) for who, values in seconds.items()}


def packed_smol() -> Path:
    """Return SmolLM2-135M with the half of its weights that is smallest dropped, packed; made once."""
    from lowdim.prune.recipe import Recipe

    out = assets.cache_dir() / "peers" / "smollm2-135m-50"
    if not out.exists():
        recipe = Recipe(sparsity=0.5, score="magnitude", storage="packed", evaluation={"text": None})
        lowdim.prune(SMOL, recipe, out=out)
    return out


class LlamaCpp:
    """llama.cpp in its own process, timed as the others are."""

    backend, reason = "llama.cpp", ""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer

    def prefill(self, ids: Iterable[int]) -> float:
        """Return the seconds of a prompt."""
        return float(self.peer.ask(prompt=list(ids), tokens=0)["prefill"])

    def decode(self, ids: Iterable[int], tokens: int) -> list[float]:
        """Return the seconds of each token."""
        seconds: list[float] = self.peer.ask(prompt=list(ids), tokens=tokens)["seconds"]
        return seconds


def time_smol() -> Iterator[Row]:
    """SmolLM2-135M end to end, on one thread and on all, against Hugging Face and llama.cpp."""
    ours, dense = Contestant("lowdim", "int8", 0.5), load_dense(resolve(SMOL).path, dtype=torch.bfloat16)
    decoders: dict[Contestant, Any] = {TORCH: TorchDecoder(dense)}
    decoders[ours] = LowdimDecoder(lowdim.load(packed_smol(), dtype="int8"))
    for count in sorted({1, CORES}):
        with threads(count):
            try:
                with Peer(LLAMACPP, "peer_llamacpp.py", [gguf("Q8_0")], count) as peer:
                    yield from _smol_rows(decoders | {Contestant("llama.cpp", "Q8_0"): LlamaCpp(peer)}, ours, count)
            except Unavailable as error:
                yield from _smol_rows(decoders, ours, count, str(error))


def _smol_rows(decoders: dict[Contestant, Any], ours: Contestant, count: int, reason: str = "") -> list[Row]:
    vocab = 49152
    steps = _medians(time_steps(decoders, tokens=64, vocab=vocab, rounds=5))
    prefill = _medians(time_prefill(decoders, prompt=256, vocab=vocab, rounds=5)) if multiplies_bf16() else {}
    detail: dict[str, Any] = {str(who): round(1 / seconds, 1) for who, seconds in steps.items()} | {"unit": "tokens/s"}
    peer = next((seconds for who, seconds in steps.items() if who.engine == "llama.cpp"), None)
    name = "SmolLM2-135M decode, int8 50%"
    over = None if peer is None else peer / steps[ours]
    return [
        Row(f"{name}, over HF generate bf16", steps[TORCH] / steps[ours], 4.0, count, detail=detail),
        Row(f"{name}, over llama.cpp Q8_0", over, 1.0, count, detail=detail, reason=reason),
        *_prefill_rows("SmolLM2-135M", prefill),
    ]


# ---------------------------------------------------------------- memory


def measure_memory() -> Iterator[Row]:
    """What `lowdim.load` of a packed model holds after use, over the size of its file."""
    command = [sys.executable, Path(__file__).with_name("resident.py"), packed_smol()]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        yield Row(
            "resident memory of lowdim.load over the file",
            None,
            1.3,
            CORES,
            True,
            reason=done.stderr.strip().splitlines()[-1],
        )
        return
    found = json.loads(done.stdout.strip().splitlines()[-1])
    yield Row("resident memory of lowdim.load over the file", found["used"] / found["file"], 1.3, CORES, True, found)


PARTS: dict[str, Callable[[], Iterator[Row]]] = {
    "layers": time_layers,
    "attention": time_attention,
    "deepsparse": against_deepsparse,
    "llama": time_llama,
    "smollm2": time_smol,
    "memory": measure_memory,
}


def table(rows: list[Row], about: dict[str, Any], folder: str) -> str:
    """Return the rows as Markdown, under a line that says what they were measured on."""
    lines = [
        heading(folder, about),
        "",
        "| measure | threads | ratio | required |",
        "|---|---|---|---|",
    ]
    for row in rows:
        ratio = row.reason if row.ratio is None else f"{row.ratio:.2f}x" + ("" if row.met else " (not met)")
        limit = f"{'at most' if row.at_most else 'at least'} {row.required:g}x" if row.required else "reported"
        lines.append(f"| {row.measure} | {row.threads} | {ratio} | {limit} |")
    return "\n".join(lines)


def parser(doc: str | None, parts: Iterable[str]) -> argparse.ArgumentParser:
    """Return what reads the command line: parts to measure, and where the rows go."""
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--only", choices=parts, action="append", help="a part; may be repeated; all if not given")
    found.add_argument("--json", type=Path)
    found.add_argument("--docs", type=Path, help="page that the table goes into")
    return found


def options(doc: str | None, parts: Iterable[str]) -> argparse.Namespace:
    """Return what the command line asks for."""
    return parser(doc, parts).parse_args()


def finish(rows: list[Row], name: str, given: argparse.Namespace) -> str:
    """Return the table of all rows; write it and them where they were asked for."""
    info = lowdim.runtime_info()
    about = machine() | {"level": info.level, "build": info.build, "torch": torch.__version__}
    text = table(rows, about, about["processor"])
    if given.docs:
        fill(given.docs, name, text)
    if given.json:
        found = {"machine": about, "rows": [asdict(row) | {"met": row.met} for row in rows]}
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    return text


def every_table() -> Iterator[str]:
    """Yield the table of each processor that has results."""
    for folder, found in by_processor("runtime").items():
        rows = [Row(**{name: value for name, value in row.items() if name != "met"}) for row in found["rows"]]
        yield table(rows, found["machine"], folder)


def main() -> None:
    """Measure the parts that were asked for, print a table, write JSON."""
    given = options(__doc__, PARTS)
    rows = []
    print(f"{'measure':<62} {'threads':>7} {'ratio':>6} {'required':>8}")
    for name in given.only or PARTS:
        for row in PARTS[name]():
            rows.append(row)
            ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
            required = f"{'<=' if row.at_most else '>='}{row.required:g}"
            verdict = "" if row.met else f"  not met {row.reason}".rstrip()
            print(f"{row.measure:<62} {row.threads:>7} {ratio:>6} {required:>8}{verdict}", flush=True)
    if not given.only:
        given.json = given.json or results("runtime")
    docs, given.docs = given.docs, None
    finish(rows, "runtime", given)
    if docs:
        fill(docs, "runtime", "\n\n".join(every_table()))


if __name__ == "__main__":
    main()
