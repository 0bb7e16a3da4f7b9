"""The kernel of distillation: torch's numbers at every level, inside its arrays, whatever the logits are."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import pytest
import torch
from tests.native.guard import guarded
from tests.native.matrices import Array, address
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from lowdim.core.native import Library
from lowdim.train.objectives.native import LogitsStruct, bound

OK, BAD_ARGUMENT = 0, 1
WORDS = [1, 2, 3, 15, 16, 17, 31, 64, 65, 130, 1000, 5000]
DTYPES = [torch.float32, torch.bfloat16]


def stored(values: Tensor, stride: int, side: str) -> Array:
    """Logits as the kernel takes them, rows ``stride`` apart and NaN between, at a page that must not be touched."""
    wide = torch.full((len(values), stride), math.nan, dtype=values.dtype)
    wide[:, : values.shape[1]] = values
    bits = wide.view(torch.int16 if values.dtype == torch.bfloat16 else torch.int32).numpy()
    return guarded(bits.reshape(-1)[: bits.size - (stride - values.shape[1])], side)


def logits(array: Array, dtype: torch.dtype, stride: int) -> LogitsStruct:
    return LogitsStruct(int(dtype == torch.bfloat16), address(array), stride)


def shown(array: Array, dtype: torch.dtype, shape: torch.Size, stride: int) -> Tensor:
    flat = torch.from_numpy(np.concatenate([array, np.zeros(stride - shape[1], array.dtype)])).view(dtype)
    return flat.view(shape[0], stride)[:, : shape[1]]


def run(
    library: Library,
    student: Tensor,
    teacher: Tensor | None,
    labels: list[int] | None = None,
    *,
    heat: float = 1.0,
    kl: float = 1.0,
    ce: float = 1.0,
    threads: int = 1,
    side: str = "behind",
    apart: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return KL, cross entropy and the gradient, fp32."""
    rows, words = student.shape
    stride = words + apart
    s = stored(student, stride, side)
    q = None if teacher is None else stored(teacher, stride, side)
    before = None if q is None else q.copy()
    told = None if labels is None else guarded(np.array(labels, np.int64), side)
    out = [guarded(np.full(rows, np.nan, np.float32), side) for _ in range(2)]
    given = [
        ctypes.byref(logits(s, student.dtype, stride)),
        None if q is None or teacher is None else ctypes.byref(logits(q, teacher.dtype, stride)),
        None if told is None else address(told),
    ]
    assert bound(library)(rows, words, *given, heat, kl, ce, address(out[0]), address(out[1]), threads) == OK
    assert q is None or before is None or np.array_equal(q, before)
    return (*map(torch.from_numpy, out), shown(s, student.dtype, student.shape, stride).float())  # type: ignore[return-value]


def plain(
    student: Tensor, teacher: Tensor | None, labels: list[int] | None, heat: float, kl: float, ce: float
) -> tuple[Tensor, Tensor, Tensor]:
    s = student.double().requires_grad_()
    apart, entropy = torch.zeros(len(s)), torch.zeros(len(s))
    if teacher is not None:
        log_s, log_q = log_softmax(s / heat, -1), log_softmax(teacher.double() / heat, -1)
        apart = (log_q.exp() * (log_q - log_s)).sum(-1)
    if labels is not None:
        entropy = cross_entropy(s, torch.tensor(labels), reduction="none")
    (kl * heat**2 * apart + ce * entropy).sum().backward()
    assert s.grad is not None
    return apart.detach().float(), entropy.detach().float(), s.grad.float()


def drawn(rows: int, words: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student = 4 * torch.randn(rows, words, generator=generator)
    return student, student + torch.randn(rows, words, generator=generator)


@pytest.mark.parametrize("side", ["behind", "before"])
@pytest.mark.parametrize("words", WORDS)
def test_numbers_are_those_of_torch(library: Library, words: int, side: str) -> None:
    for heat in (1.0, 2.0):
        for one in DTYPES:
            for other in DTYPES:
                s, q = (x.to(dtype) for x, dtype in zip(drawn(3, words, words), (one, other), strict=True))
                labels = [words - 1, -100, words // 2]
                found = run(library, s, q, labels, heat=heat, kl=0.7, ce=0.3, side=side, apart=words % 5)
                expected = plain(s, q, labels, heat, 0.7, 0.3)
                close(found, expected, one)


def close(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    for i in (0, 1):
        assert torch.allclose(found[i], expected[i], rtol=2e-6, atol=2e-6)
    near = {"rtol": 5e-6, "atol": 2e-7} if dtype == torch.float32 else {"rtol": 2**-8, "atol": 1e-6}
    assert torch.allclose(found[2], expected[2], **near)


@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_alone(library: Library, dtype: torch.dtype) -> None:
    s, q = (x.to(dtype) for x in drawn(5, 333))
    labels = [0, 332, -100, 7, 16]
    close(run(library, s, q, None, heat=2.0), plain(s, q, None, 2.0, 1.0, 1.0), dtype)
    close(run(library, s, None, labels, heat=3.0, ce=2.0), plain(s, None, labels, 1.0, 1.0, 2.0), dtype)
    for found in run(library, s, None, None):
        assert not found.any()


def test_threads_change_nothing(library: Library) -> None:
    s, q = drawn(40, 3000)
    labels = list(range(40))
    for one, two in zip(*(run(library, s, q, labels, heat=2.0, threads=n) for n in (1, 2)), strict=True):
        assert torch.equal(one, two)


def test_one_distribution_is_not_apart_from_itself(library: Library) -> None:
    s, _ = drawn(4, 1000)
    kl, _, gradient = run(library, s, s.clone())
    assert not kl.any()
    assert not gradient.any()


def test_small_divergences_are_exact(library: Library) -> None:
    s, _ = drawn(4, 5000)
    q = s + 1e-2 * torch.randn(s.shape, generator=torch.Generator().manual_seed(1))
    kl, _, _ = run(library, s, q)
    assert torch.allclose(kl, plain(s, q, None, 1.0, 1.0, 1.0)[0], rtol=0.02, atol=0.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("words", [5, 40])
def test_extreme_logits(library: Library, words: int, dtype: torch.dtype) -> None:
    def row(**changed: float) -> Tensor:
        values = torch.linspace(-1.0, 1.0, words)
        for place, value in changed.items():
            values[int(place[1:])] = value
        return values[None].to(dtype)

    def kl(s: Tensor, q: Tensor) -> float:
        return run(library, s, q, [1], heat=2.0)[0].item()

    never = row(_0=-math.inf)
    for s, q in ((row(), never), (never, never), (row(_0=-1e38), never), (row(_2=3e38), row(_2=3e38))):
        expected = float((softmax(q) * (log(q) - log(s)).nan_to_num(0.0)).sum())
        assert kl(s, q) == pytest.approx(expected, abs=2e-6)
    assert kl(never, row()) == math.inf
    found = run(library, never, row(), [1])[2]
    assert torch.isfinite(found).all()
    for wrong in (math.nan, math.inf):
        for place in ("_0", f"_{words - 1}"):
            for s, q in ((row(**{place: wrong}), row()), (row(), row(**{place: wrong}))):
                assert math.isnan(kl(s, q))
                assert run(library, s, q, [1])[2].isnan().any()
    empty = torch.full((1, words), -math.inf, dtype=dtype)
    assert math.isnan(kl(empty, row()))
    assert math.isnan(kl(row(), empty))


def log(values: Tensor) -> Tensor:
    return log_softmax(values.double() / 2, -1)


def softmax(values: Tensor) -> Tensor:
    return log(values).exp()


def test_bad_arguments_are_refused(library: Library) -> None:
    s, out = torch.zeros(2, 3), torch.zeros(2, 2)
    good: dict[str, Any] = {
        "rows": 2,
        "words": 3,
        "student": LogitsStruct(0, s.data_ptr(), 3),
        "teacher": LogitsStruct(0, s.data_ptr(), 3),
        "labels": torch.tensor([2, -100]),
        "heat": 1.0,
        "kl": out[0].data_ptr(),
        "ce": out[1].data_ptr(),
        "threads": 1,
    }

    def status(**changed: Any) -> int:
        a = good | changed
        references = [None if a[name] is None else ctypes.byref(a[name]) for name in ("student", "teacher")]
        labels = a["labels"].data_ptr()
        found = bound(library)(
            *(a["rows"], a["words"], *references, labels, a["heat"], 1.0, 1.0, a["kl"], a["ce"], a["threads"])
        )
        return int(found)

    assert status() == OK
    assert status(teacher=None) == OK
    assert status(rows=0) == OK
    wrong: list[dict[str, Any]] = [
        *({"rows": -1}, {"words": 0}, {"threads": 0}, {"student": None}, {"kl": None}, {"ce": None}),
        *({"heat": heat} for heat in (0.0, -1.0, math.nan)),
        *({"labels": torch.tensor([0, label])} for label in (3, -1, -101, 2**40)),
    ]
    for name in ("student", "teacher"):
        wrong += [{name: LogitsStruct(*each)} for each in ((2, s.data_ptr(), 3), (0, None, 3), (0, s.data_ptr(), 2))]
        wrong.append({name: LogitsStruct(0, s.data_ptr(), 2**62)})
    for changed in wrong:
        assert status(**changed) == BAD_ARGUMENT, changed
