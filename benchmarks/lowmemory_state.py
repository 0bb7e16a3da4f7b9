"""Rows of `lowmemory.py`: bytes of state, peak memory, the time of a step, of a refresh and of a search for masks."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peers import GALORE, PYTORCH_OPTIMIZER, Peer, Unavailable
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from lowdim.core.random import generator
from lowdim.data.windows import windows
from lowdim.models.disk.source import resolve
from lowdim.models.load import load, read_tokenizer
from lowdim.train.nm.transposable import tiles, transposable
from lowdim.train.optimizers.base import matrices
from lowdim.train.optimizers.galore import GaLore
from lowdim.train.optimizers.projectors import SVD, Power
from lowdim.train.optimizers.q_galore import QGaLore
from lowdim.train.pretrain.configs import SIZES, config

Ratio = tuple[str, float, str, float]
"""What it is of, its value, and the relation to a bound that it must have, "" for none."""
SIZE, RANK, GAP, TOKENS = "130m", 192, 200, 2048
BIG = (4096, 11008)


def network(dtype: torch.dtype = torch.float32) -> Any:
    """Return the model of 130 million weights."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config(SIZE, None, 256), dtype=dtype).train()


def now() -> tuple[float, float]:
    """Return the time, and that of all cores that this process has had."""
    return time.perf_counter(), time.process_time()


def turns(programs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Return by program the median seconds, by the clock and of all cores, of turns taken one after the other."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for turn in range(rounds):
        for name in list(programs)[:: 1 if turn % 2 else -1]:
            begun = now()
            programs[name]()
            end = now()
            found[name].append((end[0] - begun[0], end[1] - begun[1]))
    return {
        name: {unit: statistics.median(each[at] for each in kept) for at, unit in enumerate(("clock", "cores"))}
        for name, kept in found.items()
    }


def reachable(optimizer: Any) -> int:
    """Return the bytes of every tensor that an optimizer leads to, but weights and gradients, each storage once."""
    weights = {p for group in optimizer.param_groups for p in group["params"]}
    places = {p.untyped_storage().data_ptr() for p in weights if type(p) is nn.Parameter}
    places |= {p.grad.untyped_storage().data_ptr() for p in weights if p.grad is not None}
    sizes: dict[int, int] = {}
    seen: set[int] = set()
    left: list[Any] = [vars(optimizer)]
    while left:
        each = left.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, Tensor):
            held = each.untyped_storage()
            if each not in weights and held.data_ptr() not in places:
                sizes[held.data_ptr()] = held.nbytes()
        elif isinstance(each, dict):
            left += [*each.keys(), *each.values()]
        elif isinstance(each, list | tuple | set):
            left += list(each)
        elif type(each).__module__.startswith(("lowdim.", "torch.optim")):
            left += [vars(each)] if hasattr(each, "__dict__") else []
    return sum(sizes.values())


def state(given: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Take a step of each optimizer with gradients that are drawn, and count what it keeps."""
    held = {}
    numbers: dict[str, float] = {}
    for name in ("adamw", "galore", "q-galore"):
        model = network()
        weights, own = list(model.parameters()), {id(p) for p in matrices(model)}
        if not numbers:
            square = sum(p.numel() for p in weights if id(p) in own)
            rest = sum(p.numel() for p in weights) - square
            thin = sum(RANK * min(p.shape) for p in weights if id(p) in own)
            means = sum(2 * RANK * max(p.shape) for p in weights if id(p) in own)
            numbers = {  # r min(m, n) directions and 2 r max(m, n) means of a matrix; 2 m n in AdamW
                "adamw": 8.0 * (square + rest),
                "galore": 4.0 * (thin + means) + 8.0 * rest,
                "q-galore": 0.5 * thin + 1.0 * means + 2.0 * rest,
            }
        rules: dict[str, Any] = {"galore": GaLore(rank=RANK, projector="power")}
        rules["q-galore"] = QGaLore(rank=RANK, projector="power")
        optimizer = torch.optim.AdamW(weights) if name == "adamw" else rules[name].build(model)
        draw = generator(seed, "gradient")
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.randn(p.shape, generator=draw)
        optimizer.step()
        held[name] = reachable(optimizer)
        del model, optimizer, weights
    ratios: list[Ratio] = []
    for name in ("galore", "q-galore"):
        share, said = held[name] / held["adamw"], numbers[name] / numbers["adamw"]
        ratios.append((f"{name}, state over AdamW's", share, "", 0))
        ratios.append((f"{name}, apart from the formula", abs(share / said - 1), "<=", 0.05))
    return {"bytes": held, "formula": numbers, "ratios": ratios}


_PEAK = """
import json, sys
sys.path.insert(0, {here!r})
import torch, lowmemory_state as bench
from lowdim.train.optimizers.q_galore import QGaLore
name = {name!r}
small = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)).bfloat16()
def optimizer_of(model, rank):
    if name == "adamw":
        return torch.optim.AdamW(model.parameters(), fused=True)
    return QGaLore(rank=rank, projector="power", layerwise=True).build(model)
def steps(model, call, rank, count):
    optimizer = optimizer_of(model, rank)
    for _ in range(count):
        call(model).backward()
        optimizer.step()
        optimizer.zero_grad()
ids = torch.arange(256)[None]
steps(small, lambda m: m(torch.ones(1, 64).bfloat16()).float().sum(), 8, 1)  # what is loaded on first use
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")
before = bench.resident("VmRSS")
steps(bench.network(torch.bfloat16), lambda m: m(input_ids=ids, labels=ids).loss, bench.RANK, 3)
print(json.dumps(bench.resident("VmHWM") - before))
"""


def resident(what: str) -> int:
    """Return a line of this process's memory, in bytes."""
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith(what)).split()[1]) * 1024


def peak(given: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train 1 x 256 tokens for three steps in a process each: peak less what was resident after the imports."""
    held = {}
    for name in ("adamw", "q-galore"):
        script = _PEAK.format(here=str(Path(__file__).parent), name=name)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        held[name] = json.loads(done.stdout.strip().splitlines()[-1])
    return {"bytes": held, "ratios": [("Q-GaLore over AdamW, bf16", held["q-galore"] / held["adamw"], "<=", 0.6)]}


def step(given: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Time a pass of 2,048 tokens, the optimizers' parts of a step, and the choice of directions, amortised."""
    model = network()
    ids = torch.randint(32_000, (TOKENS // 256, 256), generator=generator(seed, "ids"))

    def forward() -> None:
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()

    forward()
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    ours = {kind: GaLore(rank=RANK, lr=1e-6, projector=kind).build(model) for kind in ("svd", "power")}  # type: ignore[arg-type]
    refresh = {}
    for name, optimizer in ours.items():
        begun = now()
        optimizer.step()
        refresh[name] = now()[1] - begun[1]
    programs = {"pass": forward, "adamw": adamw.step, **{name: each.step for name, each in ours.items()}}
    found = turns(programs, given.rounds)
    whole = found["pass"]["cores"] + found["adamw"]["cores"]
    cost = {name: found["pass"]["cores"] + found[name]["cores"] + refresh[name] / GAP for name in ours}
    ratios: list[Ratio] = [
        (f"GaLore ({name}) over AdamW, a step", each / whole, "<=", 1.15) for name, each in cost.items()
    ]
    left = ""
    shapes = [list(p.shape) for p in matrices(model)]
    for peer in (GALORE, PYTORCH_OPTIMIZER):
        try:
            with Peer(peer, "peer_galore.py", ["--peer", peer[0]], torch.get_num_threads()) as other:
                answer = other.ask(shapes=shapes, rank=RANK, gap=GAP, rounds=given.rounds)
        except Unavailable as error:
            left += f"{peer[0]}: {error}. "
            continue
        theirs = found["adamw"]["cores"] - answer["adamw"]  # of the weights that no one projects
        ratio = (found["pass"]["cores"] + theirs + answer["step"] + answer["refresh"] / GAP) / whole
        ratios.append((f"{peer[0]} over AdamW, a step", ratio, "", 0))
    return {"seconds": found, "refresh": refresh, "ratios": ratios, "left_out": left.strip()}


def _mixed(matrix: Tensor, draw: torch.Generator) -> Tensor:
    """Turn the rows of a matrix by an orthogonal map: drawn signs and Hartley's transform, twice."""
    for _ in range(2):
        signs = torch.randint(0, 2, (len(matrix), 1), generator=draw) * 2.0 - 1.0
        found = torch.fft.fft(matrix * signs, dim=0, norm="ortho")
        matrix = found.real - found.imag
    return matrix


def _synthetic(spectrum: Tensor, draw: torch.Generator) -> Tensor:
    """Return a matrix [11008, 4096] of some singular values, in directions that are drawn."""
    matrix = torch.zeros(BIG[1], BIG[0])
    matrix[: BIG[0]].diagonal().copy_(spectrum)
    return _mixed(_mixed(matrix, draw).T.contiguous(), draw).T.contiguous()


def _pairs(model: Any, text: Tensor, steps: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return gradients of the matrices of a block, which alone trains, at first and after so many steps."""
    chosen = {n: p for n, p in model.named_parameters() if p.dim() == 2 and ".15." in n}
    model.requires_grad_(False)
    for p in chosen.values():
        p.requires_grad_(True)
    optimizer = torch.optim.AdamW(chosen.values(), lr=1e-5)
    kept: dict[str, list[Tensor]] = {name: [] for name in chosen}
    for index in range(steps + 1):
        ids = text[index % len(text)][None]
        model(input_ids=ids, labels=ids).loss.backward()
        for name in chosen if index in (0, steps) else ():
            kept[name].append(chosen[name].grad.detach().clone())
        optimizer.step()
        optimizer.zero_grad()
    return {name: (each[0], each[-1]) for name, each in kept.items()}


def _captured(matrix: Tensor, right: Tensor) -> float:
    return float((matrix @ right.T).square().sum())


def refresh(given: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Choose directions of the gradients of a block anew, after 200 steps: from the last ones, and exactly."""
    model, text = _embedded()
    shares, cost = [], {"power": 0.0, "svd": 0.0}
    for name, pair in _pairs(model, text, GAP).items():
        first, last = (m if m.shape[0] >= m.shape[1] else m.T for m in pair)
        power, exact = Power(rank=first.shape[1] // 4), SVD(rank=first.shape[1] // 4)
        old = power.basis(first, None, generator(seed, name))
        begun = now()
        warm = power.basis(last, old, generator(seed, name, "warm"))
        middle = now()
        best = exact.basis(last, None, generator(seed, name))
        cost["power"] += middle[1] - begun[1]
        cost["svd"] += now()[1] - middle[1]
        shares.append(_captured(last, warm) / _captured(last, best))
    ratios: list[Ratio] = [
        ("full SVD over a warm refresh", cost["svd"] / cost["power"], "", 0),
        ("least energy over the exact one's", min(shares), ">=", 0.99),
    ]
    return {"cores": cost, "shares": shares, "ratios": ratios}


def big(given: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Do the same for a matrix of 4096 x 11008 with the spectrum of such a gradient, seven tenths of it new."""
    model, text = _embedded()
    pairs = _pairs(model, text, 0)
    spectrum = torch.linalg.svdvals(next(first for name, (first, _) in pairs.items() if "gate_proj" in name))
    del model, pairs
    draw, rank = generator(seed, "synthetic"), BIG[0] // 4
    wide = nn.functional.interpolate(spectrum[None, None], BIG[0], mode="linear", align_corners=True)[0, 0]
    power, exact = Power(rank=rank), SVD(rank=rank)
    first, fresh = _synthetic(wide, draw), _synthetic(wide, draw)
    old = power.basis(first, None, draw)
    matrix = 0.5**0.5 * (first + fresh)
    del first, fresh
    begun = now()
    warm = power.basis(matrix, old, draw)
    middle = now()
    best = exact.basis(matrix, None, draw)
    end = now()
    took = {"power": [b - a for a, b in zip(begun, middle, strict=True)]}
    took["svd"] = [b - a for a, b in zip(middle, end, strict=True)]
    share = _captured(matrix, warm) / _captured(matrix, best)
    ratios: list[Ratio] = [
        ("rank 1024: full SVD over a warm refresh", took["svd"][1] / took["power"][1], ">=", 10),
        ("energy over the exact one's", share, ">=", 0.99),
    ]
    return {"seconds": took, "ratios": ratios}


def _embedded() -> tuple[Any, Tensor]:
    path = resolve("builtin:smollm2-135m").path
    text = windows("builtin", read_tokenizer(path), 64, limit=64).input_ids
    return load(path, torch.float32).train(), text


def patterns(given: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Choose the tiles of a 4096 x 4096 weight, and enumerate those of a part of it."""
    weight = torch.randn(4096, 4096, generator=generator(seed, "weight"))
    transposable(weight)
    took = []
    for _ in range(20):
        begun = now()
        transposable(weight)
        took.append(tuple(b - a for a, b in zip(begun, now(), strict=True)))
    best, cores = (min(each) for each in zip(*took, strict=True))
    part = weight[:256]
    cut = part.abs().view(64, 4, 1024, 4).transpose(1, 2).reshape(-1, 1, 16)
    kept = transposable(part).view(64, 4, 1024, 4).transpose(1, 2).reshape(-1, 16)
    least = (cut * tiles().view(1, 90, 16)).double().sum(2).amax(1) - (cut[:, 0] * kept).double().sum(1)
    ratios: list[Ratio] = [
        ("ms of two cores, were they idle: the time of all cores, halved", 500 * cores, "<=", 60),
        ("ms by the clock, least of 20", 1000 * best, "", 0),
        ("largest loss against enumeration", float(least.max()), "<=", 1e-6),
    ]
    return {"threads": torch.get_num_threads(), "ratios": ratios}


ROWS = (
    ("state", 2, state),
    ("peak", 2, peak),
    ("patterns", 0.2, patterns),
    ("refresh.embedded", 2, refresh),
    ("refresh.big", 3, big),
    ("step", 8, step),
)
assert SIZES[SIZE].hidden // 4 == RANK
