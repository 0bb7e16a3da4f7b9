"""A diagnosis against plain loops over the whole model, and what it refuses."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.evaluate.audit.test_dropping import bits, same
from tests.models.walk.test_survey import Hands, Net, Odd, halving, handing
from tests.models.zoo import VOCAB, ZOO
from tests.prune import tiny
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lowdim.core.errors import CheckpointError, LowdimError, NumericalError, RecipeError
from lowdim.data.errors import DataError
from lowdim.data.windows import Windows
from lowdim.evaluate.diagnose import api
from lowdim.evaluate.diagnose.api import diagnose
from lowdim.evaluate.diagnose.checkpoints import checkpoints
from lowdim.evaluate.diagnose.result import BlockFacts, Diagnosis
from lowdim.evaluate.quality.perplexity import perplexity
from lowdim.nn.placement import GPAS

TEXT = Windows(tiny.tokens(samples=6, context=12), {"source": "made up"})


@pytest.fixture(params=["llama", "gpt2", "gpt-neox"])
def model(request: pytest.FixtureRequest) -> Any:
    return ZOO[request.param]()


def blocks_of(model: Any) -> nn.ModuleList:
    found = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == model.config.num_hidden_layers]
    return found[0]


def states(model: Any, ids: Tensor) -> list[Tensor]:
    """What enters the first block and what leaves each, by hooks on one forward of the whole model."""
    seen: list[Tensor] = []
    hooks = []
    for index, block in enumerate(blocks_of(model)):
        if index == 0:
            hooks.append(
                block.register_forward_pre_hook(lambda m, a, k: seen.append((a or [*k.values()])[0]), with_kwargs=True)
            )
        hooks.append(
            block.register_forward_hook(lambda m, a, out: seen.append(out if isinstance(out, Tensor) else out[0]))
        )
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


def test_hidden_states_are_measured_as_a_plain_loop_does(model: Any) -> None:
    found, seen = diagnose(model, text=TEXT, measures=[]), states(model, TEXT.input_ids)
    assert found.entering == pytest.approx(float(seen[0].double().var(unbiased=False)))
    for block, before, after in zip(found.blocks, seen, seen[1:], strict=False):
        cosines = torch.cosine_similarity(before.double(), after.double(), dim=-1)
        assert block.variance == pytest.approx(float(after.double().var(unbiased=False)))
        assert block.typical == pytest.approx(float(after.double().var(-1, unbiased=False).median()))
        assert block.influence == pytest.approx(float(1 - cosines.mean()), abs=1e-7)
    assert [len(row) for row in found.angles] == [3, 2, 1]
    for start, row in enumerate(found.angles):
        for span, angle in enumerate(row, 1):
            cosines = torch.cosine_similarity(seen[start][:, -1].double(), seen[start + span][:, -1].double(), dim=-1)
            assert angle == pytest.approx(float((cosines.arccos() / math.pi).mean()), abs=1e-6)
    assert [block.angle for block in found.blocks] == [row[0] for row in found.angles]


def test_gradient_norms_are_those_of_one_backward_pass(model: Any) -> None:
    found = diagnose(model, text=TEXT, measures=["gradients"])
    logits = model(input_ids=TEXT.input_ids).logits
    cross_entropy(logits[:, :-1].flatten(0, 1), TEXT.input_ids[:, 1:].flatten()).backward()
    for index, block in enumerate(blocks_of(model)):
        norms = [float(parameter.grad.double().norm()) for parameter in block.parameters()]
        assert found.blocks[index].gradient == pytest.approx(math.hypot(*norms), rel=1e-4)
    for layer in found.layers:
        gradient = model.get_parameter(f"{layer.name}.weight").grad
        assert layer.gradient == pytest.approx(float(gradient.double().norm()), rel=1e-4)


def test_experts_and_their_biases_are_part_of_the_gradient() -> None:
    model = ZOO["mixtral"]()
    found = diagnose(model, text=TEXT, measures=["gradients"])
    logits = model(input_ids=TEXT.input_ids).logits
    cross_entropy(logits[:, :-1].flatten(0, 1), TEXT.input_ids[:, 1:].flatten()).backward()
    for index, block in enumerate(blocks_of(model)):
        norms = [float(parameter.grad.double().norm()) for parameter in block.parameters()]
        assert found.blocks[index].gradient == pytest.approx(math.hypot(*norms), rel=1e-4)


def test_without_a_block_is_the_model_without_it(model: Any) -> None:
    found = diagnose(model, text=TEXT, measures=["drop"])
    whole = perplexity(model, TEXT)
    assert found.perplexity == pytest.approx(whole.value, rel=1e-5)
    for index in range(3):
        short = copy.deepcopy(model)
        del blocks_of(short)[index]
        without = perplexity(short, TEXT)
        block = found.blocks[index]
        assert block.perplexity == pytest.approx(without.value, rel=1e-4)
        assert block.sensitivity == pytest.approx(math.log(without.value / whole.value), abs=1e-4)
        spread = (without.nll - whole.nll).std() / math.sqrt(6)
        assert block.error == pytest.approx(float(spread), rel=1e-2, abs=1e-6)


def test_the_jacobian_is_that_of_the_block() -> None:
    model = ZOO["llama"]()
    model.set_attn_implementation("eager")
    text = Windows(TEXT.input_ids[:1, :4], {})
    before = states(model, text.input_ids)
    found = diagnose(model, text=text, measures=["jacobian"], probes=400)
    rotary = model.model.rotary_emb(before[0], torch.arange(4)[None])
    for index, block in enumerate(model.model.layers):
        mask = torch.full((4, 4), -torch.inf).triu(1)[None, None]

        def run(x: Tensor, block: nn.Module = block, mask: Tensor = mask) -> Tensor:
            out = block(x, position_embeddings=rotary, attention_mask=mask)
            return out if isinstance(out, Tensor) else out[0]

        assert torch.allclose(run(before[index]), before[index + 1], atol=1e-5)
        jacobian = torch.func.jacrev(run)(before[index]).detach().reshape(128, 128).double()
        facts = found.blocks[index]
        assert facts.jacobian == pytest.approx(float((jacobian - torch.eye(128)).norm()) / math.sqrt(128), rel=0.03)
        assert facts.gain == pytest.approx(float(jacobian.norm()) / math.sqrt(128), rel=0.03)
        assert facts.trace == pytest.approx(float(jacobian.trace()) / 128, abs=0.05)


def test_an_identity_block_has_nothing_of_anything() -> None:
    model = ZOO["llama"]()
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        nn.init.zeros_(model.model.layers[1].get_submodule(name).weight)
    found = diagnose(model, text=TEXT, measures=["drop", "jacobian"])
    same_block, before = found.blocks[1], found.blocks[0]
    assert (same_block.influence, same_block.angle, same_block.sensitivity, same_block.error) == (0, 0, 0, 0)
    assert (same_block.jacobian, same_block.gain, same_block.trace) == (0, 1, 1)
    assert same_block.variance == before.variance
    assert same_block.perplexity == found.perplexity
    assert all(block.influence > 0 and block.jacobian > 0.1 for block in (found.blocks[0], found.blocks[2]))


@pytest.mark.filterwarnings("ignore:the model has been trained")
@pytest.mark.parametrize("gates", ["block", "branch"])
def test_gates_count_in_the_jacobian_and_not_in_the_gradient(gates: Any, tmp_path: Path) -> None:
    """Branches that add nothing, and gates: each block is y = (1 - g)(1 - h) x."""
    model, plain = ZOO["llama"](), ZOO["llama"]()
    GPAS(gates=gates).apply_(model)
    shares = []
    for index, block in enumerate(model.model.layers):
        nn.init.constant_(block.gpas.gate, 0.2 * (index + 1))
        nn.init.zeros_(block.self_attn.o_proj.weight), nn.init.zeros_(block.mlp.down_proj.weight)
        shares.append(0.2 * (index + 1) / (1 + math.exp(-0.2 * (index + 1))))
    model.save_pretrained(tmp_path)
    for given in (model, tmp_path):
        found = diagnose(given, text=TEXT, measures=["jacobian", "gradients"])
        for block, share in zip(found.blocks, shares, strict=True):
            kept = (1 - share) ** 2
            assert (block.jacobian, block.gain, block.trace) == pytest.approx((1 - kept, kept, kept), rel=1e-5)
    loss = model(input_ids=TEXT.input_ids, labels=TEXT.input_ids).loss
    gradient = torch.autograd.grad(loss, model.model.layers[0].self_attn.o_proj.weight)[0]
    layer = next(layer for layer in diagnose(model, text=TEXT).layers if layer.name.endswith("0.self_attn.o_proj"))
    assert layer.gradient == pytest.approx(float(gradient.norm()), rel=1e-4)
    GPAS(gates=gates).apply_(plain)  # at 0 it is what it was
    one, other = (diagnose(each, text=TEXT, measures=["jacobian"]) for each in (plain, ZOO["llama"]()))
    assert [block.jacobian for block in one.blocks] == [block.jacobian for block in other.blocks]
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_whose_variances_are_known() -> None:
    """Embeddings of +3 and -3, blocks that add nothing: 9 everywhere. Then one that doubles: 36."""
    model = ZOO["llama"]()
    signs = torch.tensor([3.0, -3.0]).repeat(16)
    model.model.embed_tokens.weight.data.copy_(signs.expand(VOCAB, 32))
    for block in model.model.layers:
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            nn.init.zeros_(block.get_submodule(name).weight)
    attention = model.model.layers[1].self_attn  # all tokens are alike, so attention returns their values
    model.model.layers[1].input_layernorm.weight.data.fill_(1.0)
    value = torch.zeros(16, 32)
    value[0, 0] = 1.0  # the normalised first entry, +1
    attention.v_proj.weight.data.copy_(value)
    attention.o_proj.weight.data.copy_(torch.outer(signs, torch.eye(32)[0]))
    found = diagnose(model, text=TEXT, measures=[])
    assert (found.entering, *found.series("variance")) == pytest.approx((9, 9, 36, 36), rel=1e-5)
    assert found.blocks[1].influence == pytest.approx(0, abs=1e-12)  # longer, in the same direction


def test_nothing_is_changed_and_a_checkpoint_is_as_its_model(tmp_path: Path) -> None:
    model = tiny.model()
    model.requires_grad_(False)
    before = bits(model)
    memory = diagnose(model, text=TEXT, seed=3)
    assert same(before, bits(model))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    disk = diagnose(tiny.save(tmp_path / "tiny"), text=TEXT, seed=3)
    for one, other in zip(memory.blocks, disk.blocks, strict=True):
        assert vars(one) == pytest.approx(vars(other), rel=1e-4, abs=1e-6)
    for one, other in zip(memory.layers, disk.layers, strict=True):
        assert one.name == other.name
        assert (one.gradient, one.alpha, one.entropy) == pytest.approx((other.gradient, other.alpha, other.entropy))


def test_each_measure_can_be_left_out_and_json_holds_all() -> None:
    model = tiny.model()
    given = {"drop": "sensitivity", "gradients": "gradient", "jacobian": "jacobian"}
    for measure in api.CHOICES:
        found = diagnose(model, text=TEXT, measures=[measure])
        assert {key for name, key in given.items() if found.blocks[0].__dict__[key] is not None} == {
            given.get(measure)
        } - {None}
        assert (found.layers[0].alpha is not None) == (measure == "spectra")
        assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["blocks"][2]["index"] == 2
        assert "perplexity" in found.summary()


def test_halves_are_medians_and_growth_is_a_factor_per_block() -> None:
    numbers = [4.0, 1.0, 2.0, 8.0, 16.0]
    blocks = [BlockFacts(i, 2.0**i, 3.0, 0.1, n / 100, sensitivity=n, gradient=n) for i, n in enumerate(numbers)]
    depth = Diagnosis("m", blocks, [], [], 1.0, 5.0, {}).depth()
    assert depth["halves"]["sensitivity"] == {"shallower": 2.0, "deeper": 12.0}
    assert depth["last_over_first"]["gradient"] == 4.0
    assert depth["growth"] == pytest.approx({"variance": 2, "typical": 1})
    assert "jacobian" not in depth["halves"]


def test_blocks_that_hand_on_more_are_measured_as_far_as_they_can_be() -> None:
    torch.manual_seed(0)
    net, text = Net([Hands(), Hands(), Hands()], handing), Windows(torch.arange(14).view(2, 7), {})
    found = diagnose(net, text=text)
    assert "hand each other more" in found.summary()
    assert found.blocks[0].influence > 0
    assert found.blocks[0].sensitivity is found.blocks[0].gradient is found.blocks[0].jacobian is None
    assert not diagnose(Net([Odd(), Odd()]), text=text).notes


class Scales(Odd):
    """Multiplies by a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        return hidden_states * self.factor


def test_a_model_that_overflows_without_a_block_is_said_to() -> None:
    torch.manual_seed(0)
    net, text = Net([Scales(1e-25), Scales(1e20), Scales(1e-20)]), Windows(torch.arange(14).view(2, 7), {})
    net.embed_tokens.weight.data.mul_(1e25)
    found = diagnose(net, text=text, measures=["drop"])
    assert [block.perplexity is None for block in found.blocks] == [True, False, False]
    assert "Without block 0 the model computes NaN" in found.summary()


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model()
    with pytest.raises(RecipeError, match=r"unknown measure 'gradient'\. Did you mean 'gradients'"):
        diagnose(model, text=TEXT, measures=["gradient"])
    for name in ("windows", "probes"):
        with pytest.raises(RecipeError, match=f"{name} must be a whole number of at least 1; got 0"):
            diagnose(model, text=TEXT, **{name: 0})
    with pytest.raises(RecipeError, match="add jacobian to the measures"):
        diagnose(tmp_path, measures=["drop"], probes=4)
    with pytest.raises(DataError, match="context=200 is longer than the model's 128 positions"):
        diagnose(model, text=Windows(torch.ones(1, 200, dtype=torch.int64), {}))
    with pytest.raises(CheckpointError, match="no tokenizer beside its weights"):
        diagnose(tiny.save(tmp_path / "bare"))
    with pytest.raises(LowdimError, match="changes the hidden states between blocks 0 and 1"):
        diagnose(Net([Odd(), Odd()], halving), text=TEXT)
    with pytest.raises(LowdimError, match="no decoder blocks found in Net"):
        diagnose(Net([]), text=TEXT)
    monkeypatch.setattr(api, "free_memory", lambda: 1000)
    with pytest.raises(LowdimError, match=r"hidden states of 72 tokens take .* Take fewer windows"):
        diagnose(model, text=TEXT)


def test_a_text_shorter_than_a_window_and_damaged_weights(tokenizer: Any) -> None:
    model = tiny.model()
    with pytest.raises(DataError, match="fewer than one window of 64; use a shorter context"):
        diagnose(model, text=["too short"], tokenizer=tokenizer, context=64)
    model.model.layers[2].mlp.up_proj.weight.data[1, 2] = torch.nan
    with pytest.raises(NumericalError, match=r"'model\.layers\.2\.mlp\.up_proj\.weight' holds NaN"):
        diagnose(model, text=TEXT)


def test_a_run_is_its_checkpoints_in_order(tmp_path: Path) -> None:
    for name in ("step-100", "step-9", "checkpoints/step-20"):
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / "config.json").write_text("{}")
    (tmp_path / "run" / "logs").mkdir()
    found = checkpoints([str(tmp_path / "run"), "builtin:x"])
    places = [(Path(name).name, step) for name, step in found]
    assert places == [("step-20", 20), ("step-9", 9), ("step-100", 100), ("builtin:x", None)]
    with pytest.raises(CheckpointError, match=r"holds no config\.json, and neither do its folders"):
        checkpoints([str(tmp_path / "run" / "logs")])


def prompted(net: Net, hidden: Tensor) -> Tensor:
    hidden = torch.cat([hidden[:, :2], hidden], 1)
    for block in net.layers:
        hidden = block(hidden)
    return hidden[:, 2:]


def stacked(net: Net, hidden: Tensor) -> Tensor:
    hidden = torch.stack([hidden, 2 * hidden])
    for block in net.layers:
        hidden = block(hidden)
    return hidden.mean(0)


@pytest.mark.parametrize("loop", [prompted, stacked], ids=["tokens of the model's own", "streams side by side"])
def test_hidden_states_of_other_shapes(loop: Any) -> None:
    torch.manual_seed(0)
    net, text = Net([Odd(), Odd()], loop), Windows(torch.arange(14).view(2, 7), {})
    found, seen = diagnose(net, text=text, measures=[]), states(net, text.input_ids)
    wide = [x.movedim(0, 2).flatten(2) if x.dim() == 4 else x for x in seen]
    for block, before, after in zip(found.blocks, wide, wide[1:], strict=False):
        cosines = torch.cosine_similarity(before.double(), after.double(), dim=-1)
        assert block.influence == pytest.approx(float(1 - cosines.mean()), abs=1e-7)
        assert block.angle == pytest.approx(float((cosines[:, -1].arccos() / math.pi).mean()), abs=1e-6)
