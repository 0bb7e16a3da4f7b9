"""Log-probabilities in chunks: those of log_softmax, and their gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lowdim.core.errors import LowdimError
from lowdim.train.objectives.divergence import Side
from lowdim.train.objectives.likelihood import token_likelihood


def given(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    states, weight, bias = (torch.randn(*size, generator=source).to(dtype) for size in ((7, 5), (11, 5), (11,)))
    return states, weight, bias, torch.randint(11, (7,), generator=source)


@pytest.mark.parametrize("chunk", [1, 3, 128])
@pytest.mark.parametrize("parts", [(False, False), (True, False), (True, True)])
def test_it_is_log_softmax(chunk: int, parts: tuple[bool, bool]) -> None:
    states, weight, bias, labels = given()
    leaves = [states, *([weight] if parts[0] else []), *([bias] if parts[1] else [])]
    if not parts[0]:
        leaves = [(states @ weight.T).detach()]
    mine, plain = ([leaf.clone().requires_grad_() for leaf in leaves] for _ in range(2))
    coefficients = torch.linspace(-1, 2, 7)
    (token_likelihood(Side(*mine), labels, chunk=chunk) * coefficients).sum().backward()
    logits = plain[0] if len(plain) == 1 else torch.nn.functional.linear(*plain)
    wanted = logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]
    (wanted * coefficients).sum().backward()
    assert torch.allclose(token_likelihood(Side(*mine), labels, chunk=chunk), wanted, atol=1e-5)
    for one, other in zip(mine, plain, strict=True):
        assert one.grad is not None and other.grad is not None and torch.allclose(one.grad, other.grad, atol=1e-5)


def test_a_frozen_head_gets_no_gradient() -> None:
    states, weight, bias, labels = given(torch.bfloat16)
    states.requires_grad_()
    found = token_likelihood(Side(states, weight, bias), labels)
    found.sum().backward()
    assert found.dtype == torch.float32 and states.grad is not None and states.grad.dtype == torch.bfloat16
    assert weight.grad is None


def test_no_label_is_refused() -> None:
    with pytest.raises(LowdimError, match="from 0 to 3"):
        token_likelihood(Side(torch.zeros(1, 4)), torch.tensor([-100]))
