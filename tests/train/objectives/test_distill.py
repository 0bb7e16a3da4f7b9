"""A distiller: the mean over real tokens of the parts that its settings name, for networks of every kind of head."""

from __future__ import annotations

import re
from copy import deepcopy
from typing import Any

import pytest
import torch
from tests.models.tiny_configs import randomise, tiny_config
from tests.models.zoo import ZOO
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from transformers import AutoModelForCausalLM, PreTrainedModel

from lowdim.core.errors import LowdimError, RecipeError
from lowdim.data.batch import Batch
from lowdim.models.walk.logits import linear_head
from lowdim.train.loop import Loop
from lowdim.train.objectives.distill import Distillation, Distiller
from lowdim.train.objectives.predictor import PlainLogitsWarning

FULL = Batch(torch.arange(3, 23).view(2, 10))
PADDED = Batch(
    torch.tensor([[0, 0, 5, 6, 7, 8], [9, 10, 11, 12, 0, 0], [1, 2, 3, 4, 5, 6]]),
    torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]),
)


def made(kind: str, **changed: Any) -> PreTrainedModel:
    config = tiny_config(kind)
    for name, value in changed.items():
        setattr(config, name, value)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    randomise(model)
    return model.eval()


def moved(model: PreTrainedModel) -> PreTrainedModel:
    """A student: the teacher with other weights."""
    student = deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return student


def plain(student: nn.Module, teacher: nn.Module, batch: Batch, settings: Distillation) -> Tensor:
    """The same loss, text by text without padding, from whole logits."""
    total, tokens = torch.zeros(()), 0
    mask = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask
    for ids, real in zip(batch.input_ids, mask.bool(), strict=True):
        ids = ids[real][None]
        out, aim = (model(ids, output_hidden_states=True) for model in (student, teacher))
        s, q = (log_softmax(x.logits[0] / settings.temperature, -1) for x in (out, aim))
        total = total + settings.kl * settings.temperature**2 * kl_div(s, q, reduction="sum", log_target=True)
        total = total + settings.ce * cross_entropy(out.logits[0, :-1], ids[0, 1:], reduction="sum")
        for h, t in zip(out.hidden_states[1:], aim.hidden_states[1:], strict=True):
            parts = (h - t).square().sum(-1) / t.square().sum(-1)
            total = total + settings.hidden * parts.sum() / (len(out.hidden_states) - 1)
        tokens += ids.numel()
    return total / tokens


SETTINGS = [
    Distillation(),
    Distillation(temperature=2.0),
    Distillation(kl=0.3, ce=0.7),
    Distillation(kl=0.0, ce=1.0),
    Distillation(kl=0.0, hidden=1.0),
    Distillation(kl=0.5, ce=0.2, hidden=0.3, temperature=2.0),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("batch", [FULL, PADDED], ids=["full", "padded"])
def test_loss_and_gradients_are_those_of_whole_logits(settings: Distillation, batch: Batch) -> None:
    teacher = ZOO["llama"]()
    one, two = moved(teacher), moved(teacher)
    loss = Distiller(settings, one, teacher)(one, batch)
    expected = plain(two, teacher, batch, settings)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    expected.backward()
    for (name, found), wanted in zip(one.named_parameters(), two.parameters(), strict=True):
        assert found.grad is not None and wanted.grad is not None
        assert torch.allclose(found.grad, wanted.grad, rtol=1e-4, atol=1e-6), name


LINEAR = ["llama", "opt", "gpt2", "phi", "gpt_neox", "qwen3", "gemma", "mamba"]
"""Kinds whose logits are one product with the head."""
MORE: dict[str, dict[str, Any]] = {
    "gemma2": {},
    "cohere": {},
    "granite": {"logits_scaling": 8.0},
}
"""Kinds that cap or scale theirs."""


@pytest.mark.parametrize("kind", [*LINEAR, *MORE])
def test_every_kind_of_head(kind: str) -> None:
    teacher = made(kind, **MORE.get(kind, {}))
    student = moved(teacher)
    settings = Distillation(kl=0.5, ce=0.5, temperature=2.0)
    if kind in MORE:
        with pytest.warns(PlainLogitsWarning, match=type(teacher).__name__):
            distiller = Distiller(settings, student, teacher)
    else:
        distiller = Distiller(settings, student, teacher)
    assert distiller.chunked == dict.fromkeys(("student", "teacher"), kind in LINEAR)
    loss = distiller(student, FULL)
    assert loss.item() == pytest.approx(plain(student, teacher, FULL, settings).item(), rel=1e-4)


def test_a_cap_is_seen_where_small_logits_do_not_reach_it() -> None:
    capped = made("gemma2")
    with torch.no_grad():
        for parameter in capped.parameters():
            parameter.mul_(1e-3)
    assert linear_head(capped) is None
    capped.config.final_logit_softcapping = None
    assert linear_head(capped) is capped.get_output_embeddings()


def test_looking_at_a_head_leaves_the_network_as_it_was() -> None:
    model = made("llama").train()
    before = model.eval()(FULL.input_ids).logits
    model.train()
    assert linear_head(model) is model.get_output_embeddings()
    assert model.training and "forward" not in vars(model.get_output_embeddings())
    assert torch.equal(model.eval()(FULL.input_ids).logits, before)


def test_the_teacher_may_be_of_another_size_and_another_kind_of_head() -> None:
    teacher, student = made("gemma2"), made("llama", hidden_size=48, head_dim=12)
    settings = Distillation(temperature=2.0)
    with pytest.warns(PlainLogitsWarning, match="^Gemma2ForCausalLM does more"):
        distiller = Distiller(settings, student, teacher)
    assert distiller.chunked == {"student": True, "teacher": False}
    loss = distiller(student, FULL)
    s, q = (log_softmax(model(FULL.input_ids).logits / 2, -1).flatten(0, 1) for model in (student, teacher))
    assert loss.item() == pytest.approx(4 * kl_div(s, q, reduction="batchmean", log_target=True).item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
@pytest.mark.filterwarnings("ignore::lowdim.train.objectives.predictor.PlainLogitsWarning")
def test_what_the_teacher_says_can_be_kept(kind: str) -> None:
    teacher = made(kind)
    student = moved(teacher)
    distiller = Distiller(Distillation(ce=0.1), student, teacher)
    kept = distiller.teach(PADDED)
    assert kept.shape == (14, 32 if kind == "llama" else 64)
    expected = distiller(student, PADDED).item()
    with torch.no_grad():
        for parameter in teacher.model.parameters():
            parameter.zero_()  # it is not asked again
    assert distiller(student, PADDED, kept).item() == expected
    with pytest.raises(LowdimError, match="the student has 20 tokens and teacher 14"):
        distiller(student, FULL, kept)
    with pytest.raises(LowdimError, match="leave taught out"):
        Distiller(Distillation(hidden=1.0), student, teacher)(student, FULL, kept)


def test_the_teacher_runs_in_evaluation_mode_and_keeps_its_own() -> None:
    teacher = made("gpt2")
    student = moved(teacher)
    distiller = Distiller(Distillation(), student, teacher)
    expected = distiller(student, FULL).item()
    teacher.train()  # with dropout
    assert distiller(student, FULL).item() == expected
    assert teacher.training


def test_bf16_students_and_teachers() -> None:
    teacher = made("llama")
    student = moved(teacher)
    expected = plain(student, teacher, FULL, Distillation()).item()
    for networks in ((student.bfloat16(), teacher), (student, teacher.bfloat16())):
        loss = Distiller(Distillation(), *networks)(student, FULL)
        assert loss.item() == pytest.approx(expected, rel=0.1)
        loss.backward()
    assert all(parameter.grad is not None for parameter in student.parameters())


# ---------------------------------------------------------------- in a loop


def test_a_loop_weighs_every_token_alike() -> None:
    teacher = ZOO["llama"]()

    def trained(batches: list[Batch], **settings: Any) -> Tensor:
        student = moved(teacher)
        distiller = Distiller(Distillation(ce=0.5), student, teacher)
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        Loop(student, optimizer, loss=distiller, size=distiller.size, **settings).run(batches)
        return torch.cat([parameter.detach().flatten() for parameter in student.parameters()])

    assert PADDED.attention_mask is not None
    parts = [PADDED.rows(0, 1), PADDED.rows(1, 3)]
    assert torch.allclose(trained(parts, accumulate=2), trained([PADDED]), atol=1e-6)


def test_training_brings_the_student_nearer() -> None:
    teacher = ZOO["llama"]()
    student = moved(teacher)
    distiller = Distiller(Distillation(), student, teacher)
    loop = Loop(student, torch.optim.Adam(student.parameters(), lr=3e-3), loss=distiller, size=distiller.size)
    first, *_, last = (loop.run([FULL]) for _ in range(8))
    assert last < 0.5 * first


# ---------------------------------------------------------------- what is refused


def test_settings_out_of_range() -> None:
    for wrong, said in (({"kl": -1.0}, "kl must be"), ({"temperature": 0.0}, "temperature must be")):
        with pytest.raises(RecipeError, match=said):
            Distillation(**wrong)
    with pytest.raises(RecipeError, match="all 0"):
        Distillation(kl=0.0)


def test_pairs_that_cannot_be_compared() -> None:
    teacher, student = made("llama"), made("llama", vocab_size=96)
    with pytest.raises(LowdimError, match=re.escape("vocabulary of 96 and the teacher one of 64")):
        Distiller(Distillation(), student, teacher)
    wider = made("llama", hidden_size=48, head_dim=12)
    Distiller(Distillation(), wider, teacher)
    with pytest.raises(LowdimError, match="3 blocks of width 48 and 3 blocks of width 32"):
        Distiller(Distillation(hidden=1.0), wider, teacher)
    with pytest.raises(LowdimError, match="not the network"):
        Distiller(Distillation(), student, made("llama", vocab_size=96))(teacher, FULL)
