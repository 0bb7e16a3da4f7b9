"""The CPU runtime against torch, its own dense kernels, DeepSparse and llama.cpp, measured in turn in one run.

Prints a table of ratios with what each must reach. A peer that cannot be installed gives a row with the reason.

    python benchmarks/runtime.py --docs docs/runtime.md
    python benchmarks/runtime.py --only layers --only memory

All parts together are kept in the folder of this processor; the page shows every processor that has results.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from pages import by_processor, fill, heading, results
from peers import DEEPSPARSE, LLAMACPP, Peer, Unavailable, gguf
from torch.nn.functional import scaled_dot_product_attention

import lowdim
from lowdim.core.machine import machine
from lowdim.core.native import library
from lowdim.core.pattern.nm import NM
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
BASELINE = ("torch", "bf16", False)
EMULATED = "left out: torch emulates bf16 on this processor, and takes some ten times as long as in fp32"
BEST = {"bf16": {0.5: 1.4, 0.7: 2.0}, "int8": {0.5: 1.3, 0.7: 1.7}, "int4": {0.5: 1.05, 0.7: 1.3}}
"""What the best form of a layer must reach over the dense one of its dtype, by its share of zeros; on all threads."""


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
    """4096x4096 at batch 1, a scale for 64 columns, at every level that the processor has, on one thread and on all."""
    weight = torch.randn(4096, 4096, generator=torch.Generator().manual_seed(0)).bfloat16()
    kernels = library()
    assert kernels is not None
    best = kernels.level
    for level in (level for level in kernels.levels if level != "portable"):
        kernels.use(level)
        for count in sorted({1, CORES}):
            with threads(count):
                before = read_bandwidth()
                found = {about: in_form(made, about[0], before) for about, made in zeros_of(weight).items()}
                bandwidth = max(before, read_bandwidth())
            yield from _layer_rows(found, level, count, bandwidth)
    kernels.use(best)


def zeros_of(weight: torch.Tensor) -> dict[tuple[str, float], torch.Tensor]:
    """Return a weight with zeros of every kind, by the form that they can lie in and their share.

    At 70% a group of 16 keeps eight weights at most, which is 8:16 too; four of 16 are three quarters.
    """
    drawn = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1))
    eight, four = (NM(n, 16).mask(drawn, weight.numel() * n // 16) * weight for n in (8, 4))
    return {
        ("packed", 0.5): layers.drop(weight, 0.5),
        ("packed", 0.7): layers.drop(weight, 0.7),
        ("8:16", 0.5): eight,
        ("8:16", 0.7): eight.masked_fill(torch.rand(weight.shape, generator=torch.Generator().manual_seed(2)) < 0.4, 0),
        ("4:16", 0.75): four,
    }


def in_form(weight: torch.Tensor, form: str, bandwidth: float) -> dict[tuple[str, str, bool], LayerTime]:
    """Time a layer in a form, and beside it dense, whatever this machine would choose."""
    with patch.dict(os.environ, LOWDIM_FORM=form):
        rows = layers.measure(layers.Product(("4096x4096",), 1, weight), BEST, (), bandwidth, rounds=25)
    return {(r.engine, r.dtype, r.sparsity > 0): r for r in rows}


def _layer_rows(
    found: dict[tuple[str, float], dict[tuple[str, str, bool], LayerTime]], level: str, count: int, bandwidth: float
) -> Iterator[Row]:
    def row(measure: str, about: tuple[str, float], dtype: str, over: tuple[str, str, bool], required: float) -> Row:
        fast, slow = found[about]["lowdim", dtype, True], found[about][over]
        detail = {"microseconds": fast.microseconds, "over": slow.microseconds, "kernel": fast.kernel}
        return Row(f"{measure}, {level}", slow.microseconds / fast.microseconds, required, count, detail=detail)

    many = count > 1
    scattered = found["packed", 0.7]
    dense = scattered["lowdim", "bf16", False]
    share = dense.bytes / dense.microseconds * 1e6 / bandwidth
    detail = {"microseconds": dense.microseconds, "read_bandwidth_gb_s": round(bandwidth / 1e9, 2)}
    yield Row(f"own dense bf16, share of the read bandwidth, {level}", share, 0.85, count, detail=detail)
    yield row("bf16 layer 70% over torch bf16", ("packed", 0.7), "bf16", BASELINE, 0.0)
    for dtype, required in BEST.items():
        own = ("lowdim", dtype, False)
        for zeros, least in required.items():
            rows = {
                form: row(
                    f"{dtype} layer {zeros:.0%} in the best form, {form}, over own dense",
                    (form, zeros),
                    dtype,
                    own,
                    least * many,
                )
                for form in ("packed", "8:16")
            }
            if (dtype, level) == ("int8", "avx512"):
                yield replace(rows["packed"], measure=f"int8 layer {zeros:.0%} with a mask over own dense, {level}")
            yield max(rows.values(), key=lambda each: each.ratio or 0.0)
        yield row(f"{dtype} layer 75%, 4:16, over own dense", ("4:16", 0.75), dtype, own, 0.0)


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
        return Row(measure, None, 1.3, count, reason=str(error))
    expected = torch.tensor(answer["y"])
    detail = {
        "microseconds_per_layer": round(1e6 * statistics.median(ours) / len(matrices), 1),
        "over": round(1e6 * statistics.median(theirs) / len(matrices), 1),
        "largest_difference": float((y[0] - expected).abs().max() / expected.abs().max()),
    }
    return Row(measure, statistics.median(theirs) / statistics.median(ours), 1.3, count, detail=detail)


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
    """LLaMA-7B's shape with random weights, half and 70% of them zero: decoding, then prefill."""
    settings = Settings(shape="llama-7b", sparsities=(0.5, 0.7), dtypes=("bf16", "int8"))
    vocab = 32000
    with threads(CORES):
        base = models.random_base(settings)
        built = {who: models.build(base, who) for who in models.wanted(settings) if not models.emulated(who)}
        built |= {Contestant("lowdim 8:16", dtype, 0.5): in_eights(base, dtype) for dtype in settings.dtypes}
        decoders = {w: TorchDecoder(m) if w == TORCH else LowdimDecoder(m) for w, m in built.items()}
        steps = _medians(time_steps(decoders, tokens=16, vocab=vocab))
        some = {who: decoder for who, decoder in decoders.items() if who == TORCH or who.sparsity == 0.7}
        prefill = _medians(time_prefill(some, prompt=256, vocab=vocab)) if TORCH in some else {}
    detail: dict[str, Any] = {str(who): round(1 / seconds, 2) for who, seconds in steps.items()}
    detail |= {"unit": "tokens/s", "distinct_blocks": base.distinct}
    for dtype in settings.dtypes:
        half = min((who for who in steps if who.dtype == dtype and who.sparsity == 0.5), key=lambda who: steps[who])
        form = half.engine.removeprefix("lowdim").strip() or "scattered"
        ratio = steps[Contestant("lowdim", dtype)] / steps[half]
        yield Row(f"LLaMA-7B-shaped decode, {dtype} 50%, {form}, over own dense", ratio, 1.5, CORES, detail=detail)
        measure = f"LLaMA-7B-shaped decode, {dtype} 70%, over torch bf16"
        yield _over_torch(measure, steps, Contestant("lowdim", dtype, 0.7), 0.0, CORES, detail)
    yield from _prefill_rows("LLaMA-7B-shaped", prefill)


def in_eights(base: models.Base, dtype: str) -> Any:
    """Return a random model half of whose weights are zero in 8:16, in the form that is fastest here."""
    model: Any = copy.deepcopy(base.model)
    for _, weight, is_head in models.linears(model):
        if not is_head:
            weight.mul_(NM(8, 16).mask(weight.float().abs(), weight.numel() // 2))
    lowdim.accelerate(model, dtype=dtype)
    assert base.shape is not None
    return models._deepened(model, base.shape, base.distinct)


def _over_torch(
    measure: str, seconds: dict[Contestant, float], who: Contestant, required: float, count: int, detail: dict[str, Any]
) -> Row:
    """Return how many times a contestant is as fast as torch in bf16, where that was measured."""
    if TORCH not in seconds:
        return Row(measure, None, required, count, reason=EMULATED)
    return Row(measure, seconds[TORCH] / seconds[who], required, count, detail=detail)


def _prefill_rows(name: str, seconds: dict[Contestant, float]) -> Iterator[Row]:
    count = torch.get_num_threads()
    if not seconds:
        yield Row(f"prefill of 256 tokens, {name}, over torch bf16", None, 1.0, count, reason=EMULATED)
    detail = {str(who): round(256 / value, 1) for who, value in seconds.items()} | {"unit": "tokens/s"}
    for who in seconds:
        if who.engine == "lowdim":
            measure = f"prefill of 256 tokens, {name}, {who.dtype} {who.sparsity:.0%}, over torch bf16"
            yield _over_torch(measure, seconds, who, 1.0, count, detail)


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
    ours, decoders = Contestant("lowdim", "int8", 0.5), dict[Contestant, Any]()
    if not models.emulated(TORCH):
        decoders[TORCH] = TorchDecoder(load_dense(resolve(SMOL).path, dtype=torch.bfloat16))
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
    prefill = _medians(time_prefill(decoders, prompt=256, vocab=vocab, rounds=5)) if TORCH in decoders else {}
    detail: dict[str, Any] = {str(who): round(1 / seconds, 1) for who, seconds in steps.items()} | {"unit": "tokens/s"}
    peer = next((seconds for who, seconds in steps.items() if who.engine == "llama.cpp"), None)
    name = "SmolLM2-135M decode, int8 50%"
    over = None if peer is None else peer / steps[ours]
    return [
        _over_torch(f"{name}, over HF generate bf16", steps, ours, 0.0, count, detail),
        Row(f"{name}, over llama.cpp Q8_0", over, 0.0, count, detail=detail, reason=reason),
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
