"""The choice between the native engine and Transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowdim.core.errors import LowdimError
from lowdim.data.calibration import check_context
from lowdim.infer.decode.backend import Backend, check_cache, check_sizes
from lowdim.infer.decode.families import Unsupported
from lowdim.infer.decode.hf_backend import HFBackend
from lowdim.infer.decode.native_backend import NativeBackend

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Opened:
    """A backend and how it came about.

    Attributes:
        backend: what runs the model.
        name: "native" or "transformers".
        reason: why it is not the native engine; empty where it is.
    """

    backend: Backend
    name: str
    reason: str = ""


def open_backend(
    model: PreTrainedModel, *, slots: int = 1, max_length: int | None = None, cache: str = "auto"
) -> Opened:
    """Make a model ready to generate, natively where its architecture and configuration allow.

    Args:
        model: a causal LM, dense or with `SparseLinear` layers.
        slots: sequences that may be open at a time.
        max_length: tokens that a sequence may hold; ``None`` for what the model was made for.
        cache: what keys and values are kept in: "fp32", "bf16", "int8" or "int4"; "auto" is fp32 where all weights
            are, else bf16.

    Raises:
        LowdimError: a number that makes no sense or is beyond the model's positions, a model without a cache, or a
            cache of a kind of its own for one that Transformers runs.
    """
    check_sizes(slots, max_length)
    check_cache(cache)
    if max_length is not None:
        check_context(max_length, model.config, "max_length")
    try:
        return Opened(NativeBackend(model, slots=slots, max_length=max_length, cache=cache), "native")
    except Unsupported as reason:
        if cache != "auto":
            raise LowdimError(
                f"cache: {cache!r} is the native engine's alone, which does not run this model: {reason}. Leave it out."
            ) from reason
        return Opened(HFBackend(model, slots=slots, max_length=max_length), "transformers", str(reason))
