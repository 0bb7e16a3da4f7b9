"""GaLore and APOLLO by name: the small model, the Trainer, ranks, and the official update written out."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.ranks import finished
from tests.train.optimizers import projections
from tests.train.optimizers.projections import llama, net, reachable_bytes, train, weights
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from lowdim.core.errors import LowdimError, RecipeError
from lowdim.core.recipe.families import build
from lowdim.train.optimizers.apollo import APOLLO
from lowdim.train.optimizers.galore import GaLore
from lowdim.train.optimizers.projected import Projected
from lowdim.train.optimizers.q_galore import QGaLore
from lowdim.train.pretrain.recipe import Pretraining


def test_the_matrices_of_the_blocks_are_projected_and_nothing_else() -> None:
    model = llama()
    optimizer = GaLore(rank=4).build(model)
    ids = torch.arange(12).view(2, 6)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    shapes = {name: tuple(optimizer.state[p]["exp_avg"].shape) for name, p in model.named_parameters()}
    assert shapes["model.layers.0.self_attn.q_proj.weight"] == (16, 4)
    assert shapes["model.layers.0.mlp.gate_proj.weight"] == (24, 4)
    assert shapes["model.layers.0.mlp.down_proj.weight"] == (4, 24)
    assert shapes["lm_head.weight"] == shapes["model.embed_tokens.weight"] == (40, 16)
    matrices = sum(4 * (min(p.shape) + 2 * max(p.shape)) for n, p in model.named_parameters() if "_proj" in n)
    rest = sum(2 * p.numel() for n, p in model.named_parameters() if "_proj" not in n)
    optimizer.zero_grad()
    assert reachable_bytes(optimizer, *model.parameters()) == pytest.approx(4 * (matrices + rest), rel=0.05)


def official(weight: Tensor, gradients: list[Tensor], rule: GaLore) -> Tensor:
    """The update of the authors' code, written out for a tall matrix."""
    first = second = torch.zeros(weight.shape[0], rule.rank)
    for step, gradient in enumerate(gradients):
        if step % rule.gap == 0:
            rows = torch.linalg.svd(gradient, full_matrices=False).Vh[: rule.rank]
            rows = rows * rows.gather(1, rows.abs().argmax(1, keepdim=True)).sign()
        small = gradient @ rows.T
        first = rule.beta1 * first + (1 - rule.beta1) * small
        second = rule.beta2 * second + (1 - rule.beta2) * small**2
        rate = rule.lr * math.sqrt(1 - rule.beta2 ** (step + 1)) / (1 - rule.beta1 ** (step + 1))
        weight = weight - rate * rule.scale * (first / (second.sqrt() + rule.eps)) @ rows
    return weight


def test_a_run_is_that_of_the_equations() -> None:
    layer = nn.Linear(5, 9, bias=False)
    rule = GaLore(rank=3, gap=4, eps=1e-9)
    gradients = [torch.randn(9, 5, generator=torch.Generator().manual_seed(i)) for i in range(10)]
    wanted, optimizer = official(layer.weight.detach().clone(), gradients, rule), rule.build(layer)
    for gradient in gradients:
        layer.weight.grad = gradient
        optimizer.step()
    assert torch.allclose(layer.weight, wanted, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        *({"side": side} for side in ("reverse_std", "left", "right", "full")),
        *({"inner": inner} for inner in ("adafactor", "sgd")),
        *(
            {name: value}
            for name, value in (("gap", 1), ("scale", 1.0), ("projector", "random"), ("weight_decay", 0.5))
        ),
    ],
    ids=str,
)
def test_every_setting_changes_the_run(changes: dict[str, Any]) -> None:
    ends = []
    for settings in ({}, changes):
        model = net()
        rule = build("optimizer", {"name": "galore", "rank": 2, **settings})
        train(model, rule.build(model), range(3))
        ends.append(weights(model))
    assert not torch.allclose(ends[0], ends[1], atol=1e-6)


def test_fine_tuning_has_defaults_of_its_own() -> None:
    tuned = GaLore.for_fine_tuning(rank=4)
    assert (tuned.lr, tuned.rank, tuned.scale, tuned.gap) == (3e-5, 4, 4.0, 500)
    assert (GaLore().lr, GaLore().scale, GaLore().gap) == (0.01, 0.25, 200)
    assert APOLLO.for_fine_tuning(lr=1e-4) == APOLLO(lr=1e-4, rank=32, scale=5.0)


def test_the_rank_is_held_to_the_model() -> None:
    with pytest.raises(LowdimError, match=r"rank=128 exceeds the smaller side of a weight of shape \(16, 16\)"):
        GaLore().build(llama())


@pytest.mark.parametrize("channels", ["channel", "tensor"])
@pytest.mark.parametrize("shape", [(9, 5), (5, 9)])
def test_apollo_gives_the_gradient_the_lengths_of_adam(channels: Any, shape: tuple[int, int]) -> None:
    layer = nn.Linear(*shape[::-1], bias=False)
    optimizer = APOLLO(lr=0.1, rank=3, scale=4.0, channels=channels, eps=1e-12).build(layer)
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    before = layer.weight.detach().clone()
    layer.weight.grad = gradient
    optimizer.step()
    held = {k.removeprefix("projector."): v for k, v in optimizer.state[layer.weight].items() if "projector" in k}
    small = optimizer.projector.project(gradient, held)
    axis = 1 if shape[0] > shape[1] else 0
    if channels == "tensor":
        factor = small.sign().norm() / small.norm()  # Adam's first step is the sign
    else:
        factor = small.sign().norm(dim=axis, keepdim=True) / small.norm(dim=axis, keepdim=True)
    assert torch.allclose(layer.weight - before, -0.1 * 2.0 * gradient * factor, atol=1e-5)


def test_no_step_of_apollo_is_much_longer_than_the_last() -> None:
    layer = nn.Linear(5, 9, bias=False)
    optimizer, lengths = APOLLO(lr=0.1, rank=3, beta1=0.0).build(layer), []
    for step in range(12):
        optimizer.param_groups[0]["lr"] = 0.0 if step == 0 else 0.01 * step  # the warm-up itself is no growth
        before = layer.weight.detach().clone()
        layer.weight.grad = torch.randn(9, 5, generator=torch.Generator().manual_seed(step)) * 1.5**step
        optimizer.step()
        lengths.append(float((layer.weight.detach() - before).norm()) / (0.01 * step or 1.0))
    assert lengths[0] == 0
    growth = [b / a for a, b in pairwise(lengths[1:])]
    assert max(growth) == pytest.approx(1.01, rel=1e-3)


# ---------------------------------------------------------------- other people's loops


def test_the_trainer_takes_it_and_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    rows = [{"input_ids": (ids := list(range(i, i + 6))), "labels": ids} for i in range(16)]

    def trained(home: str, steps: int, resume: bool = False) -> Tensor:
        model = llama()
        arguments = TrainingArguments(
            str(tmp_path / home), max_steps=steps, save_steps=2, per_device_train_batch_size=2,
            gradient_accumulation_steps=2, lr_scheduler_type="constant", report_to=[], use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        optimizer = GaLore.for_fine_tuning(rank=4, lr=1e-2, gap=3).build(model)
        Trainer(model, arguments, train_dataset=rows, optimizers=(optimizer, None)).train(resume_from_checkpoint=resume)  # type: ignore[arg-type]
        assert isinstance(optimizer, Projected)
        assert int(optimizer.state[model.model.layers[0].mlp.up_proj.weight]["projector.step"]) == steps
        return weights(model)

    whole = trained("whole", 4)
    trained("parts", 2)
    assert torch.equal(whole, trained("parts", 4, True))


LAYERWISE = [GaLore(rank=4, layerwise=True), APOLLO(rank=4, layerwise=True), QGaLore(rank=4, layerwise=True)]


@pytest.mark.parametrize("rule", LAYERWISE, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("given", [{}, {"max_grad_norm": 0.5}, {"max_grad_norm": 0.0}], ids=["default", "0.5", "none"])
def test_a_trainer_that_would_clip_what_is_gone_is_refused(rule: Any, given: dict[str, float], tmp_path: Path) -> None:
    rows = [{"input_ids": (ids := list(range(i, i + 6))), "labels": ids} for i in range(4)]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True, disable_tqdm=True,
        save_strategy="no", **given,  # type: ignore[arg-type]
    )  # fmt: skip
    model = llama()
    before = weights(model)
    trainer = Trainer(model, arguments, train_dataset=rows, optimizers=(rule.build(model), None))  # type: ignore[arg-type]
    if given.get("max_grad_norm") == 0:
        trainer.train()
        assert trainer.state.global_step == 2
        return
    limit = given.get("max_grad_norm", 1.0)
    with pytest.raises(RecipeError, match=f"max_grad_norm={limit:g} clips gradients .* Say max_grad_norm=0"):
        trainer.train()
    if not isinstance(rule, QGaLore):
        assert torch.equal(weights(model), before)


@pytest.mark.filterwarnings("ignore:.*(dataloader|num_workers|log_every|callbacks used|isinstance.treespec)")
@pytest.mark.parametrize("limit", [None, 0.5])
def test_lightning_that_would_clip_what_is_gone_is_refused(limit: float | None, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def training_step(self, batch: Tensor, index: int) -> Tensor:
            return self.net(batch).square().mean()

        def configure_optimizers(self) -> Any:
            return GaLore(rank=2, layerwise=True).build(self.net)

    trainer = lightning.Trainer(
        default_root_dir=tmp_path, max_steps=2, gradient_clip_val=limit, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    width = next(p.shape[1] for p in net().parameters() if p.dim() == 2)
    rows = torch.utils.data.DataLoader(torch.ones(4, width), batch_size=2)
    if limit is None:
        trainer.fit(Module(), rows)
        return
    with pytest.raises(RecipeError, match=r"gradient_clip_val=0\.5 clips .* Say gradient_clip_val=None"):
        trainer.fit(Module(), rows)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    home = tmp_path_factory.mktemp("projected")
    done = finished(2, home, projections.ranked)
    return [json.loads((done / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", projections.PROJECTORS)
def test_two_ranks_train_what_one_process_does(name: str, ranks: list[dict[str, Any]]) -> None:
    model = net()
    inner = projections.adamw(model)
    targets = [p for p in model.parameters() if p.dim() == 2]
    train(model, Projected(inner, projections.PROJECTORS[name], targets), range(projections.STEPS))
    for key in (f"ddp-{name}", f"fsdp-{name}"):
        assert ranks[0][key] == ranks[1][key]
        assert torch.allclose(torch.tensor(ranks[0][key]), weights(model), atol=1e-4), key


def test_layerwise_ranks_are_refused(ranks: list[dict[str, Any]]) -> None:
    assert "before the ranks have averaged" in ranks[0]["layerwise"]


def test_adafactor_refuses_shards_before_any_step(ranks: list[dict[str, Any]]) -> None:
    for name in ("adafactor", "built"):
        assert "a weight that fully_shard has cut" in ranks[0][name] and "Take AdamW or SGD" in ranks[0][name]
    for name in ("galore", "q-galore"):
        values: dict[str, Any] = {
            "model": "9m",
            "data": {"source": "rows.jsonl"},
            "optimizer": {"name": name, "inner": "adafactor"},
        }
        with pytest.raises(RecipeError, match=r"optimizer.inner=adafactor .* parallel=fsdp .* or parallel=ddp"):
            Pretraining(**values, parallel="fsdp")
        Pretraining(**values)


def test_ranks_agree_on_int8_weights(ranks: list[dict[str, Any]]) -> None:
    model = net()
    train(model, QGaLore(rank=3, gap=2).build(model), range(projections.STEPS))
    assert ranks[0]["ddp-int8"] == ranks[1]["ddp-int8"]
    assert torch.allclose(torch.tensor(ranks[0]["ddp-int8"]), weights(model), atol=0.02)  # a few steps of the grid
    assert "rows 0 to 7 of an INT8 weight of 14 x 6 cut a group of 256 codes" in ranks[0]["cut"]
    assert "Call int8_ before fully_shard" in ranks[0]["late"]


def test_shards_of_int8_weights_train_as_one_process_does_and_resume(ranks: list[dict[str, Any]]) -> None:
    model = projections.square()
    train(model, projections.INT8.build(model), range(projections.STEPS), batches=projections.long)
    found, held, gathered = ranks[0]["fsdp-int8"]
    assert ranks[1]["fsdp-int8"] == ranks[0]["fsdp-int8"]
    apart = (torch.tensor(found) - weights(model)).abs()
    assert float(apart.max()) < 0.02  # a few steps of the grid, and for few
    assert float((apart > 1e-5).float().mean()) < 0.02
    assert held == ["Int8Weight", "Tensor", "Int8Weight", "Tensor"]
    assert gathered == [256]  # codes, not floats
