"""From logits to the next token: repetition penalty, temperature, top-k, top-p, one draw."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowdim.core.errors import LowdimError, NumericalError
from lowdim.core.random import derive_seed

_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_EXP = [
    np.float32(c) for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
]
_ONE = float(1 << 40)  # the weight of the best token
_HOTTEST = float(np.finfo(np.float32).max)
_STRONGEST = 2.0**100  # a penalty beyond which fp32 overflows, long after nothing changes any more


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen and when a text ends.

    The steps and their order are those of Transformers: each token that occurs in the text so far has its logit
    divided (if negative: multiplied) by ``repetition_penalty``; logits are divided by ``temperature``; the ``top_k``
    best stay (ties with the last stay too); of these, the fewest whose probabilities reach ``top_p``. The arithmetic
    is fp32: a temperature so low that a quotient overflows takes the best token, as 0 does.

    Args:
        max_tokens: most tokens to generate.
        temperature: 0 takes the best token; 1 draws from the model's own distribution.
        top_k: 0 keeps all.
        top_p: 1 keeps all.
        repetition_penalty: 1 for none; above 1 discourages, below 1 encourages repetition.
        seed: of the draws; ``None`` for another text every time. A draw depends on the seed and on the position in
            the text alone, whatever else is computed beside it.
        stop: strings that end the text; they are not part of it.

    Raises:
        LowdimError: a value out of range.

    Example:
        >>> Sampling(temperature=-1.0)
        Traceback (most recent call last):
        lowdim.core.errors.LowdimError: temperature must be a number of at least 0, got -1.0.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise LowdimError(f"max_tokens must be at least 1, got {self.max_tokens}.")
        if not (0 <= self.temperature < math.inf):
            raise LowdimError(f"temperature must be a number of at least 0, got {self.temperature}.")
        if self.top_k < 0:
            raise LowdimError(f"top_k must be at least 0, where 0 keeps all tokens, got {self.top_k}.")
        if not (0 < self.top_p <= 1):
            raise LowdimError(f"top_p must lie in (0, 1], got {self.top_p}.")
        if not (0 < self.repetition_penalty < math.inf):
            raise LowdimError(f"repetition_penalty must be above 0, got {self.repetition_penalty}.")
        if isinstance(self.stop, str) or not all(self.stop):
            raise LowdimError(f"stop must be a sequence of strings that are not empty, got {self.stop!r}.")


class Sampler:
    """Chooses the tokens of one text.

    Example:
        >>> Sampler(Sampling()).pick(np.array([0.5, 2.0, 1.0], dtype=np.float32), [1])
        1
        >>> Sampler(Sampling(repetition_penalty=4.0)).pick(np.array([0.5, 2.0, 1.0], dtype=np.float32), [1])
        2
    """

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        self._seen: set[int] = set()
        self._counted = 0

    def pick(self, logits: np.ndarray, history: Sequence[int]) -> int:
        """Return the next token.

        Args:
            logits: float32 [vocab]; not changed.
            history: all tokens of the text so far, the prompt's included; only ever longer from call to call.

        Raises:
            NumericalError: the logits hold NaN or infinity, or rule every token out.
        """
        scores = self._penalised(logits, history)
        temperature = min(self.sampling.temperature, _HOTTEST)
        if np.float32(temperature) == 0:
            return _best(scores)
        draw = derive_seed(self._seed, "draw", len(history)) / 2.0**63
        return choose(scores, temperature, self.sampling.top_k, self.sampling.top_p, draw)

    def _penalised(self, logits: np.ndarray, history: Sequence[int]) -> np.ndarray:
        penalty = np.float32(min(max(self.sampling.repetition_penalty, 1 / _STRONGEST), _STRONGEST))
        if penalty == 1:
            return logits
        self._seen.update(history[self._counted :])
        self._counted = len(history)
        seen = np.fromiter(self._seen, dtype=np.int64, count=len(self._seen))
        seen = seen[seen < len(logits)]
        scores = logits.copy()
        found = logits[seen]
        scores[seen] = np.where(found < 0, found * penalty, found / penalty)
        return scores


def _best(scores: np.ndarray) -> int:
    """Return the first of the best tokens."""
    best = int(scores.argmax())
    if not math.isfinite(scores[best]):
        raise NumericalError("the logits hold NaN or infinity: the model's weights or its arithmetic are broken.")
    return best


def choose(scores: np.ndarray, temperature: float, top_k: int, top_p: float, draw: float) -> int:
    """Draw a token from a softmax, truncated.

    Weights are ``exp(score - best)`` as multiples of 2^-40, whose sums are exact in whatever order they are made.
    Ties are ordered by token. Where the best score divided by the temperature is no number of fp32, it is the best.

    Args:
        scores: float32 [vocab].
        temperature: what scores are divided by, above 0 in fp32.
        top_k: 0 keeps all.
        top_p: 1 keeps all.
        draw: in [0, 1): where in the kept tokens' distribution, in the order of their numbers.

    Raises:
        NumericalError: NaN or infinity among the scores, or no finite one.

    Example:
        >>> choose(np.log(np.array([0.1, 0.2, 0.3, 0.4], dtype=np.float32)), 1.0, 2, 1.0, 0.5)
        3
    """
    draw_native = _native()
    if draw_native is None:
        return _choose(scores, temperature, top_k, top_p, draw)
    scores = np.ascontiguousarray(scores, dtype=np.float32)
    token = int(draw_native(scores.ctypes.data, len(scores), temperature, min(top_k, len(scores)), top_p, draw))
    if token == -1:
        return _best(scores)
    assert token >= 0, "the library refused what Sampling allows"
    return token


def _native() -> Any:
    """Return ``ld_sample``; ``None`` without compiled kernels."""
    from lowdim.core.native import library
    from lowdim.infer.decode.engine import bind_sample

    found = library()
    return None if found is None else bind_sample(found)


def _choose(scores: np.ndarray, temperature: float, top_k: int, top_p: float, draw: float) -> int:
    """Do what ``ld_sample`` does, to the bit."""
    with np.errstate(over="ignore"):
        scaled = scores / np.float32(temperature)
    best = scaled.max()
    if not math.isfinite(best):
        return _best(scores)
    weights = np.rint(_exp(scaled - best).astype(np.float64) * _ONE).astype(np.int64)
    if 0 < top_k < len(scores):
        weights[scaled < np.partition(scaled, -top_k)[-top_k]] = 0
    if top_p < 1:
        order = np.argsort(-scaled, kind="stable")
        before = np.cumsum(weights[order]) - weights[order]
        weights[order[before >= math.ceil(top_p * float(weights.sum()))]] = 0
    sums = np.cumsum(weights)
    place = min(int(draw * float(sums[-1])), int(sums[-1]) - 1)
    return int(np.searchsorted(sums, place, side="right"))


def _exp(x: np.ndarray) -> np.ndarray:
    """Return e^x of float32 at most 0 by the operations of ``csrc/steps_body.h``, hence the same bits."""
    x = np.maximum(x, np.float32(-87.0))
    n = np.rint(x * np.float32(1.44269504088896341))
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = np.full_like(r, _EXP[0])
    for c in _EXP[1:]:
        p = p * r + c
    power = ((n.astype(np.int32) + 127) << 23).view(np.float32)
    found: np.ndarray = (p * (r * r) + r + np.float32(1.0)) * power
    return found
