"""What cannot be done is refused before any work, with the argument, the value and the remedy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.zoo import ZOO
from tests.pipeline.recover import small
from tests.prune import tiny

from lowdim.core.errors import CheckpointError, LowdimError, RecipeError
from lowdim.models.disk.writer import Writer
from lowdim.pipeline.recover.api import recover
from lowdim.pipeline.recover.chain import split
from lowdim.pipeline.recover.recipe import Recovery
from lowdim.runs.fingerprint import ResumeError
from lowdim.runs.lock import OutputError


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"stage": "all"}, "stage"),
        ({"minutes": 0}, "minutes"),
        ({"minutes": float("inf")}, "minutes"),
        ({"masks": "moving"}, "unknown masks 'moving'"),
        ({"masks": {"name": "ast", "decai": 1}}, "decai"),
        ({"masks": "ast", "stage": "blocks"}, "stage='distill'"),
        ({"masks": "ast", "quantize": "int8"}, "moving masks"),
        ({"quantize": "int2"}, "quantize"),
        ({"quantize_group": 128}, "quantize_group=128 .* Leave|quantize='none' has none"),
        ({"stage": "blocks", "share": 0.5}, "share divides the minutes between two stages"),
        ({"stage": "distill", "share": 0.5}, "share divides the minutes between two stages"),
        ({"distill": {"kl": 0.0, "ce": 1.0, "temperature": 2.0}}, "distill.temperature=2.0 does not go with kl=0.0"),
        ({"quantize": "int8", "storage": "dense"}, "storage='dense'"),
        ({"masks": {"name": "ast", "slorb": 4}, "storage": "dense"}, r"masks\.slorb puts .* Leave storage out"),
        ({"blocks": {"inputs": "dense", "targets": "recovered"}}, "blocks.targets='recovered'"),
        ({"distill": {"kl": 0.0}}, "nothing to train for"),
        ({"distill": {"lr": -1.0}}, "distill.lr"),
        ({"calibration": {"held": 0.0}}, "calibration.held"),
        ({"batch_tokens": 0}, "batch_tokens"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Recovery(**settings)


def refused(model: Path, tmp_path: Path, **settings: Any) -> str:
    """Return what is said of a run that must not begin; nothing of it is left."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(LowdimError) as caught:
        recover(model, small.recipe(**settings), out=tmp_path / "out", calibration=small.TEXT)
    left = [path for path in sorted(tmp_path.rglob("*")) if path not in before and path.name != "out.partial"]
    assert left == []
    return str(caught.value)


def test_a_model_that_names_no_teacher(saved: Callable[[str], Path], tmp_path: Path) -> None:
    assert "teacher=DENSE" in refused(saved("llama"), tmp_path)


def test_masks_cannot_move_where_nothing_is_zero(saved: Callable[[str], Path], tmp_path: Path) -> None:
    settings = {"masks": "ast", "stage": "distill", "teacher": str(saved("llama"))}
    assert "Prune it first" in refused(saved("llama"), tmp_path, **settings)


@pytest.mark.parametrize(
    ("source", "revision", "asked_for"),
    [
        ("org/name", "0123abc", "0123abc"),
        ("builtin:smollm2-135m", "sha256:0123", None),  # a hash of the file, which is no branch or commit
        ("model.gguf", "sha256:0123", None),
    ],
)
def test_the_teacher_is_opened_in_the_revision_that_was_pruned(
    source: str,
    revision: str,
    asked_for: str | None,
    pruned: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: dict[str, Any] = {}
    copied = tmp_path / "copied"
    shutil.copytree(pruned("llama"), copied)
    record = json.loads((copied / "lowdim.json").read_text())
    record["model"] |= {"source": source, "revision": revision}
    (copied / "lowdim.json").write_text(json.dumps(record))

    def opened(name: str, **how: Any) -> Any:
        asked.update(how, name=name)
        raise LowdimError("seen")

    monkeypatch.setattr("lowdim.pipeline.recover.pair.open_model", opened)
    assert refused(copied, tmp_path) == "seen"
    assert (asked["name"], asked["revision"]) == (source, asked_for)


@pytest.mark.parametrize("kind", ["gpt2", "mixtral"])
def test_a_teacher_of_another_shape(
    kind: str, saved: Callable[[str], Path], pruned: Callable[..., Path], tmp_path: Path
) -> None:
    said = refused(pruned("llama"), tmp_path, teacher=str(saved(kind)))
    assert "is not the dense form of this model" in said and "teacher=DENSE" in said


def test_a_teacher_of_another_vocabulary(pruned: Callable[..., Path], tmp_path: Path) -> None:
    model = ZOO["llama"]()
    model.resize_token_embeddings(model.config.vocab_size + 8)
    other = tiny.save_model(model, tmp_path / "other")
    assert "the vocabulary's embedding" in refused(pruned("llama"), tmp_path, teacher=str(other))


def test_a_mask_other_than_the_recorded_one(pruned: Callable[..., Path], tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(pruned("llama"), damaged)
    tensors = tiny.stored(damaged)
    name = next(name for name in tensors if name.endswith("q_proj.weight"))
    tensors[name] = tensors[name] + 1.0
    with Writer(tmp_path / "again") as writer:
        writer.write_shard("model.safetensors", tensors)
        writer.finish()
    shutil.copy(tmp_path / "again" / "model.safetensors", damaged / "model.safetensors")
    assert "another mask than recorded" in refused(damaged, tmp_path)


def test_weights_that_were_rounded(pruned: Callable[..., Path], tmp_path: Path) -> None:
    rounded = small.run(pruned("llama"), tmp_path / "rounded", quantize="int8", stage="blocks").out
    assert "quantize='int8'" in refused(rounded, tmp_path)
    assert small.run(rounded, tmp_path / "again", quantize="int8", stage="blocks").manifest["storage"] == "packed"


def test_a_text_of_one_batch(pruned: Callable[..., Path], tmp_path: Path) -> None:
    assert "at least two" in refused(pruned("llama"), tmp_path, batch_tokens=10_000)


def test_too_little_time(pruned: Callable[..., Path], tmp_path: Path) -> None:
    for stage in ("blocks", "distill"):
        assert "minutes=1e-07 is too short" in refused(pruned("llama"), tmp_path, minutes=1e-7, stage=stage)


def test_weights_that_no_forward_survives(pruned: Callable[..., Path], tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(pruned("llama"), damaged)
    tensors = tiny.stored(damaged)
    next(iter(tensors.values())).view(-1)[0] = torch.nan
    with Writer(tmp_path / "again") as writer:
        writer.write_shard("model.safetensors", tensors)
        writer.finish()
    shutil.copy(tmp_path / "again" / "model.safetensors", damaged / "model.safetensors")
    assert "NaN or Inf" in refused(damaged, tmp_path)


def test_an_output_that_exists(pruned: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        small.run(pruned("llama"), tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_another_run_is_not_gone_on_with(pruned: Callable[..., Path], tmp_path: Path) -> None:
    recover(pruned("llama"), small.recipe(stage="blocks"), out=tmp_path / "out", calibration=small.TEXT)
    other = small.recipe(stage="blocks", seed=1)
    with pytest.raises(ResumeError, match=r"recovery\.seed"):
        recover(pruned("llama"), other, out=tmp_path / "out", calibration=small.TEXT, resume=True)


def test_no_directory_to_write_to(pruned: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LowdimError, match="file"):
        small.run(pruned("llama"), tmp_path / "file" / "out")


def test_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        small.run(tmp_path / "nothing.d", tmp_path / "out")


# ---------------------------------------------------------------- pruning and recovery in one recipe


def test_a_recipe_of_both_steps(tmp_path: Path) -> None:
    file = tmp_path / "both.yaml"
    file.write_text("sparsity: 0.5\nmethod: refit\nquantize: int8\nseed: 3\nrecover: {minutes: 4, stage: both}\n")
    pruning, recovery = split(file, {"calibration.source": "mine.txt"}, ["recover.distill.lr=1e-3"])
    assert recovery is not None
    assert (pruning.quantize, recovery.quantize) == ("none", "int8")
    assert (recovery.seed, recovery.minutes, recovery.distill.lr) == (3, 4, 1e-3)
    assert recovery.calibration.source == pruning.calibration.source == "mine.txt"
    assert pruning.evaluation.text is None and recovery.evaluation.text == "auto"


def test_a_recipe_of_one_step(tmp_path: Path) -> None:
    assert split(None, {"sparsity": 0.5}, [])[1] is None
    file = tmp_path / "wrong.yaml"
    file.write_text("sparsity: 0.5\nrecover: 4\n")
    with pytest.raises(RecipeError, match="recover must be a mapping"):
        split(file, {}, [])
    file.write_text("sparsity: 0.5\nrecover: {minuts: 4}\n")
    with pytest.raises(RecipeError, match=r"minuts.*minutes"):
        split(file, {}, [])
