"""KL and cross entropy from states and heads: worked out by hand, then against autograd of the plain formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, log_softmax

from lowdim.core.errors import LowdimError
from lowdim.train.objectives import native
from lowdim.train.objectives.divergence import Side, divergence
from lowdim.train.objectives.rows import Scratch


@pytest.fixture(autouse=True, params=["kernel", "torch"])
def _computed_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test runs with the compiled kernel, if there is one, and in plain torch."""
    if request.param == "torch":
        monkeypatch.setattr(native, "library", lambda: None)
    elif native.library() is None:
        pytest.skip("lowdim is installed without its kernels")


HALF, TENTH = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()


def plain(student: Side, teacher: Side, labels: Tensor | None, kl: float, ce: float, heat: float) -> Tensor:
    s, q = (linear(x.states, x.weight, x.bias).double() for x in (student, teacher))
    log_s, log_q = log_softmax(s / heat, -1), log_softmax(q / heat, -1)
    loss = kl * heat**2 * (log_q.exp() * (log_q - log_s)).sum(-1).mean()
    return loss if labels is None else loss + ce * cross_entropy(s, labels, reduction="sum") / len(labels)


def sides(dtype: torch.dtype, tokens: int = 11, words: int = 37, bias: bool = False) -> tuple[Side, Side, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    def side(width: int) -> Side:
        return Side(draw(tokens, width), draw(words, width), draw(words) if bias else None)

    labels = torch.randint(words, (tokens,), generator=generator)
    labels[3] = -100
    return side(8), side(5), labels


def leaf(side: Side) -> Side:
    parts = (side.states, side.weight, side.bias)
    return Side(*(part if part is None else part.clone().requires_grad_() for part in parts))  # type: ignore[arg-type]


def gradients(side: Side, loss: Tensor) -> list[Tensor]:
    wanted = [part for part in (side.states, side.weight, side.bias) if part is not None]
    return list(torch.autograd.grad(loss, wanted))


# ---------------------------------------------------------------- by hand


def test_worked_examples() -> None:
    assert float(divergence(Side(TENTH), Side(HALF))) == pytest.approx(0.5108, abs=1e-4)
    quarter = torch.tensor([[0.25, 0.75]]).log()
    assert float(divergence(Side(quarter), Side(HALF))) == pytest.approx(0.1438, abs=1e-4)
    three = Side(torch.tensor([[0.0, math.log(2.0), math.log(5.0)]]))  # 1/8, 2/8, 5/8
    even = Side(torch.zeros(1, 3))
    expected = math.log(8 / 3) - math.log(10) / 3
    assert float(divergence(three, even)) == pytest.approx(expected, rel=1e-6)
    ce = divergence(three, None, torch.tensor([2]), kl=0.0, ce=2.0)
    assert float(ce) == pytest.approx(2 * math.log(8 / 5), rel=1e-6)


def test_the_gradient_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(2.0), math.log(5.0)]], requires_grad=True)
    (kl,) = torch.autograd.grad(divergence(Side(logits), Side(torch.zeros(1, 3))), logits)
    assert torch.allclose(kl, torch.tensor([[1 / 8 - 1 / 3, 2 / 8 - 1 / 3, 5 / 8 - 1 / 3]]))
    (ce,) = torch.autograd.grad(divergence(Side(logits), None, torch.tensor([1]), kl=0.0, ce=3.0), logits)
    assert torch.allclose(ce, torch.tensor([[3 / 8, 3 * (2 / 8 - 1), 15 / 8]]))


def test_temperature_divides_the_logits_and_its_square_multiplies_the_divergence() -> None:
    student, teacher = torch.tensor([[0.0, 1.0, 4.0]]), torch.tensor([[2.0, -1.0, 0.5]])
    hot = divergence(Side(student), Side(teacher), temperature=2.0)
    assert float(hot) == pytest.approx(4 * float(divergence(Side(student / 2), Side(teacher / 2))), rel=1e-5)
    label = torch.tensor([0])
    both = divergence(Side(student), Side(teacher), label, ce=1.0, temperature=2.0)
    alone = divergence(Side(student), None, label, kl=0.0, ce=1.0)
    assert float(both) == pytest.approx(float(hot + alone), rel=1e-6)


# ---------------------------------------------------------------- against the plain formula

CASES = [(1.0, 0.0, 1.0), (1.0, 0.0, 2.0), (0.7, 0.3, 1.0), (0.7, 0.3, 2.0), (0.0, 1.0, 1.0)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("kl", "ce", "heat"), CASES)
def test_loss_and_gradients_are_those_of_the_plain_formula(kl: float, ce: float, heat: float, bias: bool) -> None:
    student, teacher, labels = sides(torch.float32, bias=bias)
    one, two = leaf(student), leaf(student)
    loss = divergence(one, teacher if kl else None, labels if ce else None, kl=kl, ce=ce, temperature=heat, chunk=4)
    expected = plain(two, teacher, labels if ce else None, kl, ce, heat)
    assert loss.item() == pytest.approx(expected.item(), rel=2e-6)
    for found, wanted in zip(gradients(one, loss), gradients(two, expected), strict=True):
        assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("heat", [1.0, 2.0])
def test_bf16_is_near(heat: float) -> None:
    student, teacher, labels = sides(torch.bfloat16, tokens=64, words=200, bias=True)
    one, two = leaf(student), leaf(Side(*(x.float() for x in (student.states, student.weight, student.bias))))  # type: ignore[union-attr]
    wide = Side(*(x.float() for x in (teacher.states, teacher.weight, teacher.bias)))  # type: ignore[union-attr]
    loss = divergence(one, teacher, labels, ce=0.5, temperature=heat, chunk=24)
    expected = plain(two, wide, labels, 1.0, 0.5, heat)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=0.01)
    for found, wanted in zip(gradients(one, loss), gradients(two, expected), strict=True):
        assert found.dtype == torch.bfloat16
        assert float((found.float() - wanted).norm() / wanted.norm()) < 0.02


def test_fp64_to_the_last_digits() -> None:
    student, teacher, labels = sides(torch.float64, tokens=4, words=6)

    def loss(*parts: Tensor) -> Tensor:
        return divergence(Side(*parts), teacher, labels, ce=0.5, temperature=1.5, chunk=3)

    one = leaf(student)
    assert one.weight is not None
    assert torch.autograd.gradcheck(loss, (one.states, one.weight))


@pytest.mark.parametrize("chunk", [1, 4, 11, 100])
def test_chunks_change_nothing(chunk: int) -> None:
    def run(**given: Any) -> list[Tensor]:
        student, teacher, labels = sides(torch.float32)
        one = leaf(student)
        loss = divergence(one, teacher, labels, ce=0.5, **given)
        return [loss.detach(), *gradients(one, loss)]

    for found, wanted in zip(run(chunk=chunk), run(), strict=True):
        assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-7)


def test_logits_may_be_given_instead_of_states_and_a_head() -> None:
    student, teacher, labels = sides(torch.float32)
    assert student.weight is not None and teacher.weight is not None
    logits = (student.states @ student.weight.t()).requires_grad_()
    given = Side(logits), Side(teacher.states @ teacher.weight.t())
    loss = divergence(*given, labels, ce=0.5, chunk=4)
    assert loss.item() == pytest.approx(float(divergence(student, teacher, labels, ce=0.5)), rel=1e-6)
    (found,) = torch.autograd.grad(loss, logits)
    one = leaf(student)
    assert torch.allclose(
        found @ student.weight, gradients(one, divergence(one, teacher, labels, ce=0.5))[0], atol=1e-6
    )


def test_memory_is_taken_once() -> None:
    student, teacher, _ = sides(torch.float32)
    scratch = Scratch()
    first = float(divergence(student, teacher, scratch=scratch, chunk=4))
    places = {name: held.data_ptr() for name, held in scratch.held.items()}
    assert max(len(held) for held in scratch.held.values()) == 4 * 37
    assert float(divergence(student, teacher, scratch=scratch, chunk=4)) == first
    assert {name: held.data_ptr() for name, held in scratch.held.items()} == places


def test_what_needs_no_gradient_gets_none() -> None:
    student, teacher, _ = sides(torch.float32)
    assert not divergence(student, teacher).requires_grad
    states = student.states.clone().requires_grad_()
    divergence(Side(states, student.weight), teacher).backward()
    assert states.grad is not None and float(states.grad.abs().sum()) > 0
    assert not any(part is not None and part.grad is not None for part in (student.weight, teacher.states))


# ---------------------------------------------------------------- edges


def test_infinities_and_nan() -> None:
    never = torch.tensor([[0.0, 1.0, -math.inf]])
    logits = torch.tensor([[0.5, 0.5, 0.5]], requires_grad=True)
    loss = divergence(Side(logits), Side(never))
    (found,) = torch.autograd.grad(loss, logits)
    q = never.softmax(-1)
    expected = float((q[:, :2] * (q[:, :2].log() + math.log(3.0))).sum())
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert torch.allclose(found, 1 / 3 - q)
    assert float(divergence(Side(never), Side(never))) == 0.0
    assert float(divergence(Side(never), Side(logits.detach()))) == math.inf
    for wrong in (math.nan, math.inf):
        assert math.isnan(float(divergence(Side(torch.tensor([[0.0, wrong, 1.0]])), Side(never))))
        assert math.isnan(float(divergence(Side(never), Side(torch.tensor([[0.0, wrong, 1.0]])))))
    huge = Side(torch.tensor([[1e38, -1e38, 0.0]]))
    assert float(divergence(huge, huge)) == 0.0


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(LowdimError, match="student has a vocabulary of 2 and the teacher one of 3"):
        divergence(Side(HALF), Side(torch.zeros(1, 3)))
    with pytest.raises(LowdimError, match="no token"):
        divergence(Side(HALF[:0]), Side(HALF[:0]))
    with pytest.raises(LowdimError, match="1 tokens and teacher 2"):
        divergence(Side(HALF), Side(torch.zeros(2, 2)))
    for label in (2, -1):
        with pytest.raises(LowdimError, match="labels must be -100, for none, or from 0 to 1"):
            divergence(Side(HALF), None, torch.tensor([label]), kl=0.0, ce=1.0)


def test_there_is_no_second_derivative() -> None:
    logits = HALF.clone().requires_grad_()
    with pytest.raises(LowdimError, match="first derivatives only"):
        torch.autograd.grad(divergence(Side(logits), Side(TENTH)), logits, create_graph=True)
