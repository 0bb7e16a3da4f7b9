"""What `lowdim.models.disk.verify` checks."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from lowdim.core.errors import CheckpointError
from lowdim.core.files import file_sha256
from lowdim.core.masks import Masks
from lowdim.models.disk import manifest, packed
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.convert import tensor_name
from lowdim.models.disk.files import inside
from lowdim.models.disk.manifest import Manifest

TOLERANCE = 2e-3
NEW_TOKENS = 10
Measure = Callable[[Any, Tensor, dict[str, Any]], float]


@dataclass(frozen=True)
class Check:
    """One thing that was checked; ``passed`` is ``None`` where there was nothing to compare with."""

    name: str
    passed: bool | None
    detail: str


class _Nothing(Exception):
    """There is nothing to compare with."""


def _check(name: str, run: Callable[[], str]) -> Check:
    try:
        return Check(name, True, run())
    except _Nothing as reason:
        return Check(name, None, str(reason))
    except Exception as error:  # a check that cannot be made has failed
        return Check(name, False, str(error) or type(error).__name__)


def run_checks(
    path: Path, tokens: Tensor | None = None, measure: str | None = None, trust_remote_code: bool = False
) -> list[Check]:
    """Make every check in this process."""
    checks = [_check("lowdim.json", lambda: f"is valid, schema {manifest.read(path).schema_version}")]
    checks.append(
        _check("opens", lambda: f"{len(Checkpoint(path).names())} tensors, stored {Checkpoint(path).storage}")
    )
    if not all(check.passed for check in checks):
        return checks
    record, checkpoint = manifest.read(path), Checkpoint(path)
    checks.append(_check("files", lambda: check_files(path, record)))
    checks += check_weights(checkpoint, record)
    checks += (
        [_check("factors", lambda: _check_ranks(checkpoint, record))] if record.factors or checkpoint.ranks else []
    )
    model: list[Any] = []
    dtype = None if tokens is None else (record.evaluation.get("perplexity") or {}).get("compute")
    checks.append(_check("generates", lambda: _generate(checkpoint, dtype, trust_remote_code, model)))
    checks.append(_check("perplexity", lambda: _perplexity(model, tokens, measure, record)))
    return checks


def check_files(path: Path, record: Manifest) -> str:
    """Compare every file with its recorded hash.

    Raises:
        CheckpointError: a file differs or is missing, or a weight file is not recorded.
    """
    recorded = record.hashes.files
    missing = sorted(name for name in recorded if not inside(path, name).is_file())
    changed = sorted(n for n in recorded if n not in missing and file_sha256(inside(path, n)) != recorded[n])
    unknown = sorted(set(Checkpoint(path).files) - recorded.keys())
    if missing or changed or unknown:
        found = {"missing": missing, "changed": changed, "not recorded": unknown}
        raise CheckpointError("; ".join(f"{what}: {', '.join(names)}" for what, names in found.items() if names))
    return f"{len(recorded)} hashes match"


def _check_ranks(checkpoint: Checkpoint, record: Manifest) -> str:
    if checkpoint.ranks != (record.factors or {}):
        raise CheckpointError(f"{len(checkpoint.ranks)} weights are products, of other ranks than are recorded")
    return f"{len(checkpoint.ranks)} weights are products, of the ranks that are recorded"


def check_weights(checkpoint: Checkpoint, record: Manifest) -> list[Check]:
    """Read every tensor once and compare nonzeros, masks and sparsity with the record; NaN and Inf fail."""
    layers: dict[str, str] = {}
    problems: dict[str, list[str]] = {"tensors": [], "nonzeros": [], "masks": []}
    for layer in record.layers:
        try:
            layers[tensor_name(checkpoint, layer)] = layer
        except CheckpointError as error:
            problems["nonzeros"].append(str(error))
    counts: dict[str, int] = {}
    for name in checkpoint.names():
        try:
            weight = checkpoint.read(name)
        except CheckpointError as error:
            problems["tensors"].append(str(error))
            continue
        if weight.is_floating_point() and not bool(torch.isfinite(weight.float()).all()):
            problems["tensors"].append(f"{name} holds NaN or Inf")
        if name in layers:
            counts[layers[name]] = _check_layer(layers[name], packed.kept(weight), record, problems)
    said = {
        "tensors": f"{len(checkpoint.names())} load and are finite",
        "nonzeros": f"{len(layers)} layers as recorded",
        "masks": f"{len(record.hashes.masks)} hashes match",
    }
    checks = [Check(name, not problems[name], "; ".join(problems[name][:3]) or said[name]) for name in said]
    return [*checks, _check("sparsity", lambda: _check_sparsity(counts, record))]


def _check_layer(layer: str, mask: Tensor, record: Manifest, problems: dict[str, list[str]]) -> int:
    part, nonzeros = record.layers[layer], int(mask.sum())
    if (mask.numel(), nonzeros) != (part.numel, part.nonzeros):
        problems["nonzeros"].append(
            f"{layer} has {nonzeros} nonzeros of {mask.numel()}, recorded are {part.nonzeros} of {part.numel}"
        )
    recorded = record.hashes.masks.get(layer)
    if recorded is not None and mask_hash(mask) != recorded:
        problems["masks"].append(f"{layer} has another mask than recorded")
    return nonzeros


def mask_hash(mask: Tensor) -> str:
    """Return the hash of one layer's mask, shaped as the weight is on disk, that ``lowdim.json`` records."""
    return Masks.from_dict({"mask": mask}).hash("mask")


def _check_sparsity(counts: dict[str, int], record: Manifest) -> str:
    if record.sparsity is None or not record.layers:
        raise _Nothing("no sparsity is recorded")
    total = sum(part.numel for part in record.layers.values())
    found = 1 - sum(counts.values()) / total
    if abs(found - record.sparsity.prunable) > 1e-6:
        raise CheckpointError(f"{found:.6f} over the pruned layers, recorded is {record.sparsity.prunable:.6f}")
    return f"{found:.6f} over the pruned layers"


def _generate(checkpoint: Checkpoint, dtype: str | None, trust_remote_code: bool, keep: list[Any]) -> str:
    """Load the model, stock Transformers where it is stored dense, and continue a prompt greedily.

    ``dtype`` is what the perplexity that is to be compared was computed in; as stored where there is none.
    """
    from transformers import GenerationConfig

    from lowdim.models.load import load, quiet

    if checkpoint.storage == "packed":
        model: Any = load(checkpoint.path, dtype, trust_remote_code=trust_remote_code, factors=True)
    else:
        with quiet():
            model = _stock(checkpoint.path, dtype, trust_remote_code)
    model.generation_config = GenerationConfig()  # its own may ask for beams, or for an early end
    keep.append(model)
    tokenizer, prompt = _prompt(checkpoint, model, trust_remote_code)
    with torch.inference_mode(), quiet():
        out = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
    new = out[0, prompt.shape[1] :].tolist()
    if len(new) != NEW_TOKENS:
        raise CheckpointError(f"the model stopped after {len(new)} of {NEW_TOKENS} tokens")
    return repr(tokenizer.decode(new)) if tokenizer else str(new)


def _stock(path: Path, dtype: str | None, trust_remote_code: bool) -> Any:
    from transformers import AutoModelForCausalLM

    model, info = cast(Any, AutoModelForCausalLM).from_pretrained(
        path,
        dtype=dtype or "auto",
        local_files_only=True,
        output_loading_info=True,
        trust_remote_code=trust_remote_code,
    )
    if info["missing_keys"] or info["mismatched_keys"]:
        wrong = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        raise CheckpointError(f"Transformers does not find or cannot use {len(wrong)} weights, first {wrong[0]}")
    for parameter in model.parameters():  # out of the mapped file
        parameter.data = parameter.data.clone()
    return model.eval()


def _prompt(checkpoint: Checkpoint, model: Any, trust_remote_code: bool) -> tuple[Any, Tensor]:
    from lowdim.models.load import read_tokenizer

    tokenizer = read_tokenizer(checkpoint.path, trust_remote_code)
    if tokenizer is not None:
        return tokenizer, tokenizer("The meaning of life is", return_tensors="pt")["input_ids"]
    return None, torch.arange(1, 5)[None] % model.config.get_text_config().vocab_size


def _perplexity(model: list[Any], tokens: Tensor | None, measure: str | None, record: Manifest) -> str:
    """Measure again and compare with the record."""
    stated = record.evaluation.get("perplexity") or {}
    recorded = stated.get("sparse", stated.get("dense"))
    if recorded is None:
        raise _Nothing("none is recorded")
    recorded = float(recorded)
    if tokens is None:
        raise _Nothing(f"{recorded:.4f} is recorded; no text was given to measure it again")
    if not model:
        raise CheckpointError("the model did not load")
    found = _function(measure)(model[0], tokens, stated.get("protocol") or {})
    if not math.isclose(found, recorded, rel_tol=TOLERANCE):
        raise CheckpointError(f"{found:.4f}, recorded is {recorded:.4f}")
    return f"{found:.4f}, recorded is {recorded:.4f}"


def _function(measure: str | None) -> Measure:
    if measure is None:
        return perplexity
    module, _, name = measure.partition(":")
    return cast(Callable[[Any, Tensor, dict[str, Any]], float], getattr(importlib.import_module(module), name))


def perplexity(model: Any, tokens: Tensor, protocol: dict[str, Any]) -> float:
    """Return exp of the mean negative log-likelihood of tokens ``[samples, context]`` but each first one."""
    total, count = 0.0, 0
    with torch.inference_mode():
        for row in tokens:
            logits = model(row[None]).logits[0, :-1].float()
            total += float(torch.nn.functional.cross_entropy(logits, row[1:], reduction="sum"))
            count += len(row) - 1
    return math.exp(total / max(count, 1))
