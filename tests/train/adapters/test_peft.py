"""LoRA on a pruned model: what is trained is what is merged, and the merge keeps every zero."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.zoo import VOCAB, ZOO
from tests.train.adapters.trainers import tune
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

peft = pytest.importorskip("peft")

from lowdim.core.errors import LowdimError  # noqa: E402
from lowdim.core.masks import Masks  # noqa: E402
from lowdim.train import KeepZeros  # noqa: E402
from lowdim.train.adapters.huggingface import KeepZerosCallback  # noqa: E402
from lowdim.train.adapters.peft import mask_lora  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of PEFT's own
IDS = torch.randint(VOCAB, (4, 12), generator=torch.Generator().manual_seed(0))


def pruned(kind: str = "llama", dtype: torch.dtype = torch.float32) -> Any:
    model = ZOO[kind]().to(dtype)
    for number, (name, module) in enumerate(model.named_modules()):
        if isinstance(module, nn.Linear | Conv1D) and "head" not in name:
            source = torch.Generator().manual_seed(number)
            module.weight.data[torch.rand(module.weight.shape, generator=source) < 0.5] = 0.0
    return model


def adapted(model: Any, **settings: Any) -> Any:
    torch.manual_seed(0)
    given = {"r": 4, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    return peft.get_peft_model(model, peft.LoraConfig(**(given | settings)))


def loss(model: Any) -> Tensor:
    found: Tensor = model(input_ids=IDS, labels=IDS).loss
    return found


def train(model: Any, steps: int = 20) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(steps):
        loss(model).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def layer_by_hand() -> tuple[Any, Any]:
    """Return a model of one layer with W = [[1, 0], [0, 2]], B A = [[3, 4], [6, 8]] and scale 2, and that layer."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    model[0].weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    made = peft.get_peft_model(model, peft.LoraConfig(r=1, lora_alpha=2, target_modules=["0"]))
    layer = made.get_base_model()[0]
    layer.lora_A["default"].weight.data.copy_(torch.tensor([[3.0, 4.0]]))
    layer.lora_B["default"].weight.data.copy_(torch.tensor([[1.0], [2.0]]))
    return made, layer


def test_by_hand() -> None:
    model, layer = layer_by_hand()
    x = torch.tensor([[1.0, 10.0]])
    assert model(x).tolist() == [[1 + 2 * 43.0, 20 + 2 * 86.0]]  # W x + 2 B A x
    assert mask_lora(model)["0.weight"].tolist() == [[True, False], [False, True]]
    assert model(x).tolist() == [[7.0, 180.0]]  # W becomes [[1 + 6, 0], [0, 2 + 16]]
    model(x).sum().backward()
    # d(sum)/d(BA) = 2 M * [[1, 10], [1, 10]] = [[2, 0], [0, 20]]; dA = B^T of it, dB = it A^T
    assert layer.lora_A["default"].weight.grad.tolist() == [[2.0, 40.0]]
    assert layer.lora_B["default"].weight.grad.tolist() == [[6.0], [80.0]]
    merged = model.merge_and_unload()
    assert merged[0].weight.tolist() == [[7.0, 0.0], [0.0, 18.0]]


def test_what_is_trained_is_what_is_merged_and_without_it_is_not() -> None:
    plain, aware = adapted(pruned()), adapted(pruned())
    masks = mask_lora(aware)
    assert masks == Masks.of(pruned())
    assert loss(plain).item() == loss(aware).item()  # B is zero
    for model in (plain, aware):
        before = loss(model).item()
        train(model)
        assert loss(model).item() < before - 0.5

    before = loss(aware).item()
    merged = aware.merge_and_unload(safe_merge=True)
    assert loss(merged).item() == pytest.approx(before, abs=1e-5)
    assert Masks.of(merged) == masks

    before = loss(plain).item()
    late = copy.deepcopy(plain)
    lost = plain.merge_and_unload()
    assert loss(lost).item() == pytest.approx(before, abs=1e-5)
    assert not any((lost.get_parameter(name) == 0).any() for name in masks)
    mask_lora(late)
    cut = late.merge_and_unload()
    assert Masks.of(cut) == masks
    assert loss(cut).item() > before + 0.1


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {"use_rslora": True}),
        ("llama", {"lora_dropout": 0.3}),
        ("llama", {"use_dora": True}),
        ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "use_dora": True}),
        ("llama-untied-bias", {"lora_bias": True, "bias": "all", "target_modules": ["q_proj", "up_proj"]}),
        ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    ],
    ids=["rslora", "dropout", "dora", "dora-conv1d", "bias", "conv1d"],
)
@pytest.mark.parametrize("safe", [False, True])
def test_kinds_of_lora(kind: str, settings: dict[str, Any], safe: bool) -> None:
    base = pruned(kind)
    masks, model = Masks.of(base), adapted(base, **settings)
    changed = mask_lora(model, masks)
    train(model, 5)
    before = loss(model).item()
    merged = model.merge_and_unload(safe_merge=safe)
    assert loss(merged).item() == pytest.approx(before, abs=1e-5)
    assert set(changed) <= set(masks)
    assert Masks.of(merged) == masks
    assert all((merged.get_parameter(n) != pruned(kind).get_parameter(n)).any() for n in changed)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_without_zeros_masked_dora_is_that_of_peft(dropout: float) -> None:
    """Where all is kept, outputs, gradients and merges are PEFT's own."""
    plain, aware = (adapted(ZOO["llama"](), use_dora=True, lora_dropout=dropout) for _ in range(2))
    layers = {n: torch.ones_like(p, dtype=torch.bool) for n, p in ZOO["llama"]().named_parameters() if "proj" in n}
    mask_lora(aware, layers)
    for model in (plain, aware):
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
        model.train()
        torch.manual_seed(1)
        loss(model).backward()
    for (name, one), other in zip(plain.named_parameters(), aware.parameters(), strict=True):
        if one.requires_grad:
            assert torch.allclose(one.grad, other.grad, atol=1e-6), name
    one, other = (model.eval().merge_and_unload() for model in (plain, aware))
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)


def test_a_row_that_is_pruned_as_a_whole_stays_zero_under_dora() -> None:
    base = pruned()
    base.model.layers[0].mlp.up_proj.weight.data[3] = 0.0
    masks, model = Masks.of(base), adapted(base, use_dora=True)
    mask_lora(model)
    train(model, 5)
    merged = model.merge_and_unload()
    assert Masks.of(merged) == masks and all(bool(p.isfinite().all()) for p in merged.parameters())


def test_dora_is_unmerged() -> None:
    model = adapted(pruned(), use_dora=True)
    mask_lora(model)
    train(model, 3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.merge_adapter()
    model.unmerge_adapter()
    assert all(torch.allclose(before[name], p, atol=1e-5) for name, p in model.named_parameters())


def test_bf16_keeps_zeros_to_the_bit() -> None:
    base = pruned(dtype=torch.bfloat16)
    masks, model = Masks.of(base), adapted(base)
    mask_lora(model)
    train(model, 5)
    merged = model.merge_and_unload()
    for name, mask in masks.items():
        assert not merged.get_parameter(name)[~mask].view(torch.int16).any()


def test_several_adapters() -> None:
    model = adapted(pruned())
    masks = mask_lora(model)
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    assert mask_lora(model) == masks
    train(model, 5)
    outputs = {}
    for name in ("default", "second"):
        model.set_adapter(name)
        outputs[name] = loss(model).item()
    with torch.no_grad():
        mixed = model(input_ids=IDS, adapter_names=["default", "second", "default", "__base__"]).logits
        alone = model(input_ids=IDS).logits
    assert torch.allclose(mixed[1], alone[1], atol=1e-5)
    with model.disable_adapter():
        assert loss(model).item() == pytest.approx(loss(pruned()).item(), abs=1e-6)
    for name in ("second", "default"):
        model.merge_adapter([name])
        assert loss(model).item() == pytest.approx(outputs[name], abs=1e-5)
        masks.check(plain(model))
        with pytest.raises(LowdimError, match=r"is merged with .*call unmerge_adapter first"):
            mask_lora(model)
        model.unmerge_adapter()
    merged = model.merge_and_unload(adapter_names=["default", "second"])
    assert Masks.of(merged) == masks


def plain(model: Any) -> dict[str, Tensor]:
    return {n.replace(".base_layer", ""): p for n, p in model.get_base_model().named_parameters()}


def test_an_adapter_from_disk(tmp_path: Path) -> None:
    model = adapted(pruned())
    masks = mask_lora(model)
    train(model, 5)
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(pruned(), tmp_path)
    mask_lora(again, masks)
    assert loss(again).item() == loss(model).item()
    native = pruned()
    native.load_adapter(str(tmp_path))
    assert mask_lora(native) == masks
    assert loss(native).item() == pytest.approx(loss(model).item(), abs=1e-6)


@pytest.mark.parametrize("way", ["checkpointing", "autocast"])
def test_around_it(way: str) -> None:
    model, other = adapted(pruned()), adapted(pruned())
    for each in (model, other):
        mask_lora(each)
        for name, p in each.named_parameters():
            if "lora_B" in name:
                p.data.normal_(std=0.02, generator=torch.Generator().manual_seed(0))
    if way == "checkpointing":
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
        model.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        loss(model).backward()
    loss(other).backward()
    bound = 0.05 if way == "autocast" else 1e-5
    for mine, its in zip(model.parameters(), other.parameters(), strict=True):
        if its.grad is not None and mine.requires_grad:
            assert (mine.grad - its.grad).norm() <= bound * its.grad.norm() + 1e-6


def test_compiled() -> None:
    model, layer = layer_by_hand()
    mask_lora(model)
    compiled = torch.compile(model, backend="aot_eager")
    compiled(torch.tensor([[1.0, 10.0]])).sum().backward()
    assert compiled(torch.tensor([[1.0, 10.0]])).tolist() == [[7.0, 180.0]]
    assert layer.lora_A["default"].weight.grad.tolist() == [[2.0, 40.0]]


def test_layers_without_zeros_are_plain() -> None:
    base = pruned()
    base.model.layers[0].self_attn.q_proj.weight.data.fill_(0.01)
    model = adapted(base, target_modules=["q_proj", "embed_tokens"])
    assert list(mask_lora(model)) == [
        f"model.layers.{i}.self_attn.q_proj.weight" for i in range(1, len(base.model.layers))
    ]
    assert not model.get_base_model().model.layers[0].self_attn.q_proj.lora_variant


def conv() -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    for layer in (model[0], model[2]):
        layer.weight.data[torch.rand_like(layer.weight) < 0.5] = 0.0
    return model


def attention() -> Any:
    model = nn.Sequential(nn.MultiheadAttention(4, 1))
    model[0].in_proj_weight.data[::2] = 0.0
    return model


def merged() -> Any:
    model = adapted(pruned())
    model.merge_adapter()
    return model


def unfrozen() -> Any:
    model = adapted(pruned())
    model.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight.requires_grad_(True)
    return model


def coded() -> Any:
    model = adapted(pruned())
    layer = model.get_base_model().model.layers[0].mlp.up_proj.base_layer
    layer.weight = nn.Parameter((10 * layer.weight).to(torch.int8), requires_grad=False)
    return model


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "alora": (
        lambda: adapted(pruned(), alora_invocation_tokens=[1]),
        r"is ALoraLinearVariant, neither LoRA nor DoRA.*use_dora and use_rslora may stay",
    ),
    "ia3": (
        lambda: peft.get_peft_model(pruned(), peft.IA3Config(task_type="CAUSAL_LM")),
        "ia3.* zeros are kept for LoRA",
    ),
    "none": (pruned, r"LlamaForCausalLM has no layer with LoRA"),
    "conv": (
        lambda: adapted(conv(), target_modules=["0", "2"], task_type=None),
        r"0\.weight is held by .*Conv2d over Conv2d",
    ),
    "attention": (
        lambda: adapted(attention(), target_modules=["0"], task_type=None),
        r"0\.weight is held by .*MultiheadAttention",
    ),
    "dense": (lambda: adapted(ZOO["llama"]()), r"was not pruned.*init_lora_weights"),
    "pissa": (lambda: adapted(pruned(), init_lora_weights="pissa"), r"was not pruned.*init_lora_weights \(pissa"),
    "copy": (
        lambda: adapted(pruned(), target_modules=["q_proj"], modules_to_save=["down_proj"]),
        r"modules_to_save trains a copy of model\.layers\.0\.mlp\.down_proj\.weight",
    ),
    "merged": (merged, r"q_proj is merged with \['default'\].*call unmerge_adapter first"),
    "unfrozen": (unfrozen, r"layers\.0\.mlp\.up_proj\.weight is trained itself"),
    "coded": (coded, r"layers\.0\.mlp\.up_proj\.weight is held by .*load the model unquantised"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name_before_anything_changes(case: str) -> None:
    make, match = REFUSED[case]
    model = make()
    before = {name: dict(m.lora_variant) for name, m in model.named_modules() if hasattr(m, "lora_variant")}
    with pytest.raises(LowdimError, match=match):
        mask_lora(model)
    assert before == {name: dict(m.lora_variant) for name, m in model.named_modules() if hasattr(m, "lora_variant")}


@pytest.mark.parametrize(
    ("masks", "match"),
    [
        ({"model.layers.0.mlp.up_proj": torch.zeros(2, 2).bool()}, r"has shape \(2, 2\)"),
        ({"model.layers.9.mlp.up_proj": torch.zeros(2, 2).bool()}, r"no weight is named 'model\.layers\.9"),
        (Masks.of(pruned("llama-untied-bias")), r"switch off are not zero|no weight is named|has shape"),
    ],
    ids=["shape", "name", "other"],
)
def test_masks_that_are_not_of_these_weights(masks: Any, match: str) -> None:
    base = pruned()
    for parameter in base.parameters():
        parameter.data[parameter == 0] = 0.1
    with pytest.raises(LowdimError, match=match):
        mask_lora(adapted(base), masks)


def test_a_trained_copy_of_what_has_a_mask_and_full_training() -> None:
    base = pruned()
    masks, model = Masks.of(base), adapted(base, target_modules=["q_proj"], modules_to_save=["lm_head"])
    assert len(mask_lora(model, masks)) == len(base.model.layers)
    with pytest.raises(LowdimError, match=r"has adapters of PEFT.*mask_lora\(model\)"):
        KeepZeros(model, torch.optim.AdamW(model.parameters()))
    copied = adapted(pruned(), target_modules=["q_proj"], modules_to_save=["up_proj"])
    with pytest.raises(LowdimError, match=r"trains a copy of model\.layers\.0\.mlp\.up_proj\.weight"):
        mask_lora(copied, masks)


def test_in_a_trainer_that_loads_its_best(tmp_path: Path) -> None:
    base = pruned()
    masks, model = Masks.of(base), adapted(base)
    mask_lora(model)
    home = tmp_path / "run"
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    trainer = tune(home, model, None, eval_strategy="steps", eval_steps=3, **best)
    assert trainer.state.best_model_checkpoint == str(home / "checkpoint-3")
    tune(home, model, None, str(home / "checkpoint-3"))
    model.eval()
    before = loss(model).item()
    merged = model.merge_and_unload()
    assert loss(merged).item() == pytest.approx(before, abs=1e-5)
    assert Masks.of(merged) == masks
    with pytest.raises(LowdimError, match=r"mask_lora\(model\) instead"):
        tune(home, adapted(pruned()), KeepZerosCallback())
