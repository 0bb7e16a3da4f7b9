"""Every causal LM class of Transformers against its own forward; see `every_causal_lm`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import transformers
from tests.models.every_causal_lm import Verdict, build, check, page, stock, sweep, tokens
from tests.models.independent import logits, wrong_masks
from tests.models.tiny_configs import TYPES
from tests.turns import turns

DOCS = Path(__file__).parents[2] / "docs" / "support.md"
SPREAD = {
    "llama": "dense",
    "gpt2": "Conv1D, absolute positions",
    "falcon": "parallel attention and MLP",
    "gemma2": "sliding windows and soft caps",
    "gemma3": "a vision tower beside the language model",
    "gemma3n_text": "4-D hidden states, keys and values shared by blocks",
    "granitemoe": "a mixture that takes use_cache in **kwargs",
    "deepseek_v32": "latent attention over chosen tokens, which asks for the name of its attention",
    "glm_moe_dsa": "blocks that hand on which tokens they chose",
    "jamba": "two classes of blocks, a state space",
    "qwen3_next": "linear attention",
    "rwkv": "recurrent, deaf to padding",
}


def written() -> dict[str, Verdict]:
    """Return the verdicts on the page of the docs."""
    rows = re.findall(r"^\| `([^`]+)` \| \w+ \| (exact|refused|not buildable)(?:: (.*))? \|$", DOCS.read_text(), re.M)
    return {kind: Verdict(kind, outcome, reason) for kind, outcome, reason in rows}


@pytest.mark.parametrize("kind", turns(list(SPREAD), of=2))
def test_a_spread_of_architectures_is_exact(kind: str, tmp_path: Path) -> None:
    assert check(kind, tmp_path) == Verdict(kind, "exact")


@pytest.mark.parametrize(("kind", "why"), [("zamba", "share the weight"), ("bert", "not a causal language model")])
def test_what_is_refused_says_why(kind: str, why: str, tmp_path: Path) -> None:
    found = check(kind, tmp_path)
    assert found.outcome == "refused"
    assert why in found.reason


@pytest.mark.nightly
def test_every_class_is_as_the_docs_say() -> None:
    found = {verdict.kind: verdict for verdict in sweep(TYPES)}
    assert {k: (v.outcome, v.reason) for k, v in found.items()} == {
        k: (v.outcome, v.reason) for k, v in written().items()
    }


def test_the_docs_list_every_class_of_this_transformers() -> None:
    text = DOCS.read_text()
    if f"Transformers {transformers.__version__}" not in text:
        pytest.skip("the page was made with another version of Transformers")
    verdicts = list(written().values())
    assert [verdict.kind for verdict in verdicts] == list(TYPES)
    assert text == page(verdicts)
    assert sum(verdict.outcome == "exact" for verdict in verdicts) >= 104


class TestTheChecksCanFail:
    def wrong(self, kind: str, name: str, path: Path) -> list[str]:
        """Return what is said of a model one layer of which lost its smallest weights, where Wanda was asked for."""
        model = build(kind, path)
        other = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        order = other[name].abs().sort(dim=-1).indices
        other[name].scatter_(-1, order[..., : order.shape[-1] // 2], 0.0)
        return wrong_masks(model, other, tokens())

    @pytest.mark.parametrize(
        ("kind", "name"),
        [
            ("llama", "model.layers.1.mlp.down_proj.weight"),
            ("gpt2", "transformer.h.1.mlp.c_fc.weight"),
            ("mixtral", "model.layers.1.mlp.experts.down_proj"),
        ],
    )
    def test_a_wrong_mask_is_named(self, kind: str, name: str, tmp_path: Path) -> None:
        [found] = self.wrong(kind, name, tmp_path)
        assert re.match(rf"{re.escape(name)}: \d+ of \d+ rows keep less than they drop", found)

    def test_nothing_pruned_is_wrong(self, tmp_path: Path) -> None:
        model = build("llama", tmp_path)
        same = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        assert wrong_masks(model, same, tokens()) == ["nothing was pruned"]

    def test_a_pruned_weight_without_an_input_is_wrong(self, tmp_path: Path) -> None:
        [found] = self.wrong("llama", "model.embed_tokens.weight", tmp_path)
        assert "no input reached it" in found


def test_plain_logits_of_a_saved_model_are_those_of_any_other_load(tmp_path: Path) -> None:
    model = build("mixtral", tmp_path)
    with torch.no_grad():
        usual = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)(input_ids=tokens()[0][None]).logits
    assert torch.allclose(logits(stock(tmp_path), tokens()[0][None]), usual, atol=1e-5)
    assert torch.equal(logits(model, tokens()[0][None]), logits(stock(tmp_path), tokens()[0][None]))
