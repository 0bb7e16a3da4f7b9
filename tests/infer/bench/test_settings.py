"""Wrong settings are refused before anything heavy is imported, with the remedy."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lowdim.core.errors import RecipeError
from lowdim.infer.bench.settings import Settings
from lowdim.infer.bench.shapes import SHAPES

SHAPE = {"shape": "llama-7b", "sparsities": (0.7,)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "got neither"),
        ({"model": "m", **SHAPE}, "not both"),
        ({"shape": "lama-7b", "sparsities": (0.7,)}, "Did you mean 'llama-7b'"),
        ({"shape": "llama-7b"}, "--shape needs --sparsity"),
        ({**SHAPE, "dtypes": ("int5",)}, "unknown type 'int5'. Did you mean"),
        ({**SHAPE, "dtypes": ()}, "at least one of fp32, bf16"),
        ({**SHAPE, "sparsities": (70.0,)}, "Did you mean 0.7"),
        ({**SHAPE, "sparsities": (0.5, 1.0)}, "between 0 and 1, got 1"),
        ({**SHAPE, "tokens": 1}, "--tokens must be at least 2, got 1"),
        ({**SHAPE, "threads": 0}, "--threads must be at least 1, got 0"),
        ({**SHAPE, "text": "builtin"}, "--text needs a MODEL"),
        ({**SHAPE, "revision": "main"}, "--revision is of a MODEL"),
        ({"model": "m", "text": "builtin", "bos": "windows"}, "--bos: unknown policy 'windows'. Did you mean 'window'"),
        ({"model": "m", "bos": "none"}, "Give --text, or leave --bos out"),
    ],
)
def test_refusals(given, message):
    with pytest.raises(RecipeError, match=message.replace("(", r"\(")):
        Settings(**given)


def test_settings_and_shapes_cost_no_torch():
    code = (
        "import sys, lowdim.infer.bench.settings, lowdim.infer.bench.shapes; "
        "print(sorted({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "weights"), [("llama-7b", 6.738e9), ("llama-1b", 1.2358e9), ("smollm2-135m", 1.345e8)]
)
def test_shapes_have_the_published_sizes(name, weights):
    assert SHAPES[name].weights == pytest.approx(weights, rel=1e-3)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_those_of_the_model_that_transformers_builds(name):
    import torch
    from transformers import LlamaForCausalLM

    shape = SHAPES[name]
    with torch.device("meta"):
        model = LlamaForCausalLM(shape.config(layers=1))
    linears = {n.removeprefix("model.layers.0."): m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    head = linears.pop("lm_head")
    assert {n: tuple(m.weight.shape) for n, m in linears.items()} == shape.linears()
    assert tuple(head.weight.shape) == (shape.vocab, shape.hidden)
    assert (head.weight is model.model.embed_tokens.weight) == shape.tied
