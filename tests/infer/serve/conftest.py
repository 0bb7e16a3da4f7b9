from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.infer.serve.served import Served, make_tokenizer, serving
from tests.models.zoo import ZOO


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="session")
def tiny() -> Any:
    return ZOO["llama"]()


@pytest.fixture(scope="module")
def served(tiny: Any, tokenizer: Any) -> Iterator[Served]:
    """A quick server that the tests of a module share."""
    with serving(tiny, tokenizer) as server:
        yield server
