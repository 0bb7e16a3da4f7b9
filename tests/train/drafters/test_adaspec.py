"""AdaSPEC and its rivals: the paper's numbers by hand, and the objectives that they become at their ends."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from lowdim.core.errors import RecipeError
from lowdim.train.drafters.adaspec import AdaSPEC, selected
from lowdim.train.drafters.base import Answers
from lowdim.train.drafters.cross_entropy import CrossEntropy
from lowdim.train.drafters.distillspec import DistillSpec
from lowdim.train.objectives.divergence import Side, divergences
from lowdim.train.objectives.rows import Scratch

TOKENS, WORDS = 40, 13


def side(seed: int, width: int = 6) -> Side:
    source = torch.Generator().manual_seed(seed)
    return Side(
        torch.randn(TOKENS, width, generator=source).requires_grad_(),
        torch.randn(WORDS, width, generator=source).requires_grad_(),
    )


def log_probabilities(made: Side) -> Tensor:
    assert made.weight is not None
    return log_softmax(made.states @ made.weight.t(), -1)


def each(student: Side, teacher: Side) -> Tensor:
    return kl_div(log_probabilities(student), log_probabilities(teacher), reduction="none", log_target=True).sum(-1)


def said() -> Answers:
    return Answers(side(0), torch.arange(TOKENS) % WORDS, side(1, 9), side(2))


def test_quantile_034_keeps_two() -> None:
    delta = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
    assert torch.quantile(delta, 0.6).item() == pytest.approx(0.34)
    assert selected(delta, 0.4).tolist() == [False, False, False, True, True]


def test_divergences_by_hand() -> None:
    half, far, near = (Side(torch.tensor([row]).log()) for row in ([0.5, 0.5], [0.9, 0.1], [0.25, 0.75]))
    assert divergences(far, half).item() == pytest.approx(0.5108, abs=5e-5)
    assert divergences(near, half).item() == pytest.approx(0.1438, abs=5e-5)


def test_the_token_at_which_the_draft_is_furthest_behind_is_the_one_that_counts() -> None:
    half = torch.tensor([[0.5, 0.5]] * 2).log()
    draft, reference = (torch.tensor(rows).log() for rows in ([[0.9, 0.1]] * 2, [[0.9, 0.1], [0.25, 0.75]]))
    given = Answers(Side(draft), torch.tensor([0, 0]), Side(half), Side(reference))
    # delta is 0 where the reference is as bad, and 0.5108 - 0.1438 where it is better
    assert AdaSPEC(keep=0.5).loss(given).item() == pytest.approx(0.5108, abs=5e-5)
    assert AdaSPEC(keep=0.5, over="all").loss(given).item() == pytest.approx(0.5108 / 2, abs=5e-5)


@pytest.mark.parametrize("keep", [0.1, 0.4, 0.75])
def test_loss_and_gradients_are_those_of_the_plain_formula(keep: float) -> None:
    one, other = said(), said()
    loss = AdaSPEC(keep=keep).loss(one)
    assert other.target is not None and other.reference is not None
    behind, ahead = each(other.draft, other.target), each(other.reference, other.target)
    kept = behind - ahead >= torch.quantile(behind - ahead, 1 - keep)
    plain = behind[kept].mean()
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    for found, wanted in zip(gradients(one, loss), gradients(other, plain), strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)


def gradients(given: Answers, loss: Tensor) -> list[Tensor]:
    assert given.draft.weight is not None
    return list(torch.autograd.grad(loss, [given.draft.states, given.draft.weight]))


def test_nothing_but_the_draft_gets_a_gradient() -> None:
    given = said()
    AdaSPEC().loss(given).backward()
    assert given.target is not None and given.reference is not None
    assert given.draft.states.grad is not None
    assert all(part.grad is None for part in (given.target.states, given.reference.states))


def test_all_tokens_make_it_distillspec() -> None:
    one, other = said(), said()
    losses = AdaSPEC(keep=1.0).loss(one), DistillSpec().loss(other)
    assert losses[0].item() == losses[1].item()
    for found, wanted in zip(gradients(one, losses[0]), gradients(other, losses[1]), strict=True):
        assert torch.equal(found, wanted)


def test_a_draft_that_is_the_reference_keeps_all_tokens() -> None:
    given = said()
    same = Answers(given.draft, given.tokens, given.target, given.draft)
    assert AdaSPEC(keep=0.1).loss(same).item() == DistillSpec().loss(same).item()


def test_cross_entropy_asks_no_one_and_distillspec_the_target_alone() -> None:
    given = said()
    alone = Answers(given.draft, given.tokens)
    wanted = cross_entropy(log_probabilities(given.draft), given.tokens)
    assert CrossEntropy().loss(alone).item() == pytest.approx(wanted.item(), rel=1e-6)
    assert (CrossEntropy.asks, DistillSpec.asks, AdaSPEC.asks) == ((), ("target",), ("target", "reference"))


def test_a_loss_that_is_no_number_is_told() -> None:
    given = said()
    broken = Answers(Side(given.draft.states * float("nan"), given.draft.weight), given.tokens, given.target, side(3))
    assert AdaSPEC().loss(broken).isnan()


def test_words_that_only_one_knows_are_cut_off() -> None:
    wide = side(5)
    with torch.no_grad():
        few, all_ = wide.words(7).logits(0, 4, "a", Scratch()), wide.logits(0, 4, "b", Scratch())
    assert torch.allclose(few, all_[:, :7], atol=1e-6)
    plain = Side(torch.randn(3, WORDS))
    assert plain.words(7).vocabulary == 7 and plain.words(WORDS) is plain


@pytest.mark.parametrize("wrong", [{"keep": 0.0}, {"keep": 1.5}, {"over": "some"}])
def test_bad_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        AdaSPEC(**wrong)  # type: ignore[arg-type]
