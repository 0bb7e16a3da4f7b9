"""Which form of a sparse layer is fastest on this machine: measured once, then remembered.

A layer with zeros can lie in memory in several forms, and which is fastest differs from processor to processor:

* ``packed``: a mask and the weights that are left, the fewest bytes, as files hold it;
* ``8:16``: eight values for every 16 columns and where they belong, where the mask allows it (8:16, 4:8, 2:4); or
  ``4:16``, four of them (4:16, 2:8, 1:4);
* ``dense``: without a mask; the same numbers, as int8 where the layer is of int4, which has no level 0.

Each kind is timed at the widths and the shares of zeros that a model has, with random weights that stream from memory,
in turn, the fastest turns counting, for at most two seconds of a process; times are kept in ``kernels/`` of the cache
directory, by processor, version and build. What was not timed follows a rule, see `rule`. ``LOWDIM_FORM`` forces a form
wherever it is possible.

Results in ``8:16`` and ``4:16`` differ from those in the other forms in their last bits, because sums run in another
order. Whoever needs the same bits on every machine forces a form, and an instruction set by ``LOWDIM_ISA``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from lowdim.core.errors import LowdimError, suggest
from lowdim.core.files import read_json, replace_json
from lowdim.core.machine import free_memory, machine
from lowdim.core.native import ABI_VERSION, chosen, library
from lowdim.core.packing.bits import pack_bits
from lowdim.core.packing.nibbles import pack_nibbles
from lowdim.core.random import generator
from lowdim.data.assets import cache_dir
from lowdim.infer.bench.timing import Deadline
from lowdim.infer.sparse.matrix import Matrix
from lowdim.infer.sparse.storage import QUANTISED, VALUES, offsets

VARIABLE = "LOWDIM_FORM"
FORMS = ("packed", "8:16", "4:16", "dense")
_RECORDS = ("4:16", "8:16")
REROUNDED = "dense int4"
SECONDS = 2.0
"""Most that a process spends on measuring."""
SMALLEST = 1 << 18
"""Weights of a layer below which its form makes no difference worth measuring."""
GAIN = 0.97
"""Share of the time that a form with more bytes has to stay below."""
_WEIGHTS, _STREAMED, _CALLS, _FEWEST, _TURN = 1 << 21, 40 << 20, 4, 5, 0.2
_left = [SECONDS]
_known: dict[str, dict[str, float]] = {}
_read: list[Path] = []


def settle(packed: Matrix, dense: Callable[[], Matrix] | None = None, exact: bool = True) -> Matrix:
    """Return a packed matrix in the form that is fastest here.

    Args:
        packed: with a mask.
        dense: makes the form without a mask; ``None`` where it must not be taken.
        exact: whether ``dense`` has the same numbers; int4 then takes 8 bits, else the weight was rounded anew.

    Raises:
        LowdimError: ``LOWDIM_FORM`` names no form.

    Example:
        >>> matrix = Matrix.from_dense(torch.eye(64), "int8")
        >>> settle(matrix).rows
        64
    """
    wanted = os.environ.get(VARIABLE) or None
    if wanted not in (None, *FORMS):
        raise LowdimError(f"{VARIABLE}={wanted!r} is no form of a layer. {suggest(wanted, FORMS)}")
    if library() is None:
        return packed
    allowed = dense is not None and _fits(packed)
    measured = wanted is None and packed.rows * packed.cols >= SMALLEST
    order = rule(packed.kind) if wanted is None else (wanted,)
    records = None
    if measured or not set(_RECORDS).isdisjoint(order):
        records = packed.in_records(int(wanted[0]) if wanted in _RECORDS else None)
    possible = ["packed", *([] if records is None else [records.form]), *(["dense"] if allowed else [])]
    where, why = packed.kind, f"{VARIABLE}={wanted}" if wanted else f"not measured below {SMALLEST:,} weights"
    if measured:
        where, why, order = _fastest(packed, 0 if records is None else records.kept, possible, exact)
    best = next((form for form in order if form in possible), "packed")
    chosen[where, best, why] += 1
    if best == "dense" and dense is not None:
        return dense()
    return packed if records is None or best == "packed" else records


def rule(kind: str) -> tuple[str, ...]:
    """Return the forms to take of what is not measured, the first that is possible.

    With a mask, except where expanding codes is known to be slow.

    Example:
        >>> rule("bf16")
        ('packed',)
    """
    found = library()
    slow = found is not None and found.level == "avx2" and kind in QUANTISED
    return (*_RECORDS, "dense") if slow else ("packed",)


def _fits(packed: Matrix) -> bool:
    """Whether half of the free memory holds what the dense form takes beyond the packed one."""
    free, weights = free_memory(), packed.rows * packed.cols
    size = weights * (1 if packed.kind in QUANTISED else VALUES[packed.kind].itemsize)
    return free is None or size - packed.nbytes < free // 2


def _fastest(packed: Matrix, kept: int, possible: list[str], exact: bool) -> tuple[str, str, tuple[str, ...]]:
    """Return what is asked, why, and the forms to take: that with the fewest bytes which no other one beats clearly."""
    found, share = library(), max(0.0, round(packed.sparsity, 1))
    assert found is not None
    where = f"{packed.kind}, {packed.cols} columns, {share:.0%} zeros{f', {kept}:16' if kept else ''}"
    key = f"{where}, group {packed.group}, {found.level}, {torch.get_num_threads()} threads"
    times = _times(key, packed, share, kept)
    if times is None:
        return where, "not measured, the time for it is up", rule(packed.kind)
    if not exact and REROUNDED in times:
        times = {**times, "dense": times[REROUNDED]}
    best = "packed"
    for form in possible:
        if form in times and times[form] < GAIN * times[best]:
            best = form
    told = {form: f"{form} {1e6 * times[form]:.0f} µs" for form in FORMS if form in times}
    return where, ", ".join(t if form in possible else f"{t} (not possible)" for form, t in told.items()), (best,)


def _times(key: str, packed: Matrix, share: float, kept: int) -> dict[str, float] | None:
    path = _path()
    if path not in _read:
        _known.clear()
        _known.update(_remembered(path))
        _read[:] = [path]
    if key not in _known:
        if _left[0] <= 0:
            return None
        clock = Deadline(_left[0])
        _known[key] = measure(packed.kind, packed.cols, packed.group, share, kept, min(_TURN, _left[0]))
        _left[0] = clock.left()
        _remember(path)
    return _known[key]


# ---------------------------------------------------------------- what is remembered


def _about() -> dict[str, Any]:
    found = library()
    here = machine()
    return {
        "lowdim": version("lowdim"),
        "kernels": ABI_VERSION,
        "build": "" if found is None else found.build,
        **{name: here[name] for name in ("cpu", "processor", "cores")},
    }


def _path() -> Path:
    digest = sha256(repr(sorted(_about().items())).encode()).hexdigest()[:16]
    return cache_dir() / "kernels" / f"{digest}.json"


def _remembered(path: Path) -> dict[str, dict[str, float]]:
    """Return the times of a file, none where it is missing, damaged or of another machine."""
    try:
        held = read_json(path)
    except LowdimError:
        return {}
    times = held.get("seconds")
    if held.get("about") != _about() or not isinstance(times, dict):
        return {}
    return {key: dict(one) for key, one in times.items() if _sound(one)}


def _sound(one: Any) -> bool:
    if not isinstance(one, dict) or "packed" not in one or not set(one) <= {*FORMS, REROUNDED}:
        return False
    return all(isinstance(t, float) and math.isfinite(t) and t > 0 for t in one.values())


def _remember(path: Path) -> None:
    """Write the times down, or leave it where the directory cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_json(path, {"about": _about(), "seconds": _known})
    except OSError:
        return


# ---------------------------------------------------------------- measuring


def measure(kind: str, cols: int, group: int, share: float, kept: int, seconds: float) -> dict[str, float]:
    """Return the seconds of one token's product, by form, of random weights with this share of zeros.

    Example:
        >>> sorted(measure("int8", 256, 64, 0.5, 8, 0.01)) if library() else ["8:16", "dense", "packed"]
        ['8:16', 'dense', 'packed']
    """
    packed = sample(kind, cols, group, share, kept)
    forms = {"packed": packed, "dense": packed.dense(), f"{kept}:16": packed.in_records(kept) if kept else None}
    source = generator(0, "choose", "inputs")
    if kind == "int4":
        codes = torch.randint(256, (packed.rows // 2, cols), generator=source, dtype=torch.uint8)
        forms[REROUNDED] = replace(packed, values=codes, mask=None, row_ptr=None)
    x = torch.randn(1, cols, generator=source)
    few = {form: m for form, m in forms.items() if m is not None}
    return race({form: runs(m, x, max(2, _STREAMED // max(m.nbytes, 1))) for form, m in few.items()}, seconds)


def race(runs: Mapping[str, list[Callable[[], object]]], seconds: float) -> dict[str, float]:
    """Return the seconds per call in each form's fastest turn of a few calls, taken in turn.

    The fastest, not the median: what else a machine does only ever makes a turn longer, and there is little time.

    Example:
        >>> sorted(race({"a": [lambda: None], "b": [lambda: None]}, 0.0))
        ['a', 'b']
    """
    best, turns = dict.fromkeys(runs, math.inf), {form: cycle(calls) for form, calls in runs.items()}
    clock, number = Deadline(seconds), 0
    while number < _FEWEST or clock.left():
        number += 1
        for form, calls in turns.items():
            begun = perf_counter()
            for _ in range(_CALLS):
                next(calls)()
            best[form] = min(best[form], (perf_counter() - begun) / _CALLS)
    return best


def runs(matrix: Matrix, x: Tensor, copies: int) -> list[Callable[[], object]]:
    """Return a product with each of some copies of a matrix, in memory of their own."""
    parts: Mapping[str, Any] = matrix.tensors()
    clones = [replace(matrix, **{name: part.clone() for name, part in parts.items()}) for _ in range(copies)]
    return [lambda m=m: m.linear(x) for m in clones]  # type: ignore[misc]


def sample(kind: str, cols: int, group: int, share: float, few: int) -> Matrix:
    """Return random packed weights, some two million of them; ``few``: at most so many of every 16 are kept, or 0."""
    rows = max(16, _WEIGHTS // max(cols, 1) // 16 * 16)
    source = generator(0, "choose", "weights")
    if few:
        order = torch.rand(256, 16, generator=source).argsort(1)
        patterns = order < (few if kind == "int4" else max(1, min(few, round(16 * (1 - share)))))
        keep = patterns[torch.randint(256, (rows, cols // 16), generator=source)].reshape(rows, cols)
    else:
        keep = torch.rand(rows, cols, generator=source) >= share
    counts = keep.sum(1).numpy()
    if kind == "int4":
        values = pack_nibbles(torch.randint(16, keep.shape, generator=source, dtype=torch.uint8), keep)
    elif kind == "int8":
        values = torch.randint(1, 127, (int(counts.sum()),), generator=source, dtype=torch.int8)
    else:
        values = torch.randn(int(counts.sum()), generator=source).to(VALUES[kind])
    scales = torch.ones(rows, -(-cols // group), dtype=torch.bfloat16) if group else None
    table = torch.tensor([*range(-8, 0), *range(1, 9)], dtype=torch.int8) if kind == "int4" else None
    mask = pack_bits(keep)[:, : -(-cols // 64)].contiguous()
    return Matrix(kind, rows, cols, group, values, mask, offsets(counts, kind), scales, table)
