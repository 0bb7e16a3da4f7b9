"""A checkpoint directory, dense or packed, as a stock Transformers model in ordinary memory."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from lowdim.core.errors import CheckpointError
from lowdim.core.recipe.families import build
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.packed_header import is_beside
from lowdim.models.factors import put_factors
from lowdim.models.slorb import fill_beside, put_beside
from lowdim.nn.placement.base import Placement
from lowdim.nn.residual.config import on_disk
from lowdim.nn.residual.mount import mount

_TOKENIZERS = ("tokenizer*", "tekken.json", "vocab.*", "*.tiktoken", "spiece.model", "sentencepiece*.model")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Transformers' progress bars and reports; what matters in them is raised as an error here."""
    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def load(
    path: str | Path,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device = "cpu",
    trust_remote_code: bool = False,
    factors: bool = False,
) -> PreTrainedModel:
    """Load a causal LM in evaluation mode.

    Weights are copied out of the files, decoded where they are packed: a model whose weights are mapped file
    pages can slow down eightfold when the system reclaims them. Tied weights stay tied. What stands beside layers
    (`lowdim.nn.slorb`) is put there again, and norms where they stood (`lowdim.nn.placement`).

    Args:
        path: a directory that `Checkpoint` accepts.
        dtype: of the parameters; ``None`` is that of most of the weights, whatever ``config.json`` says.
        device: where the model goes.
        trust_remote_code: run the modelling code that the checkpoint brings along.
        factors: whether weights that are stored as two factors are layers of two factors (`lowdim.nn.lowrank`); if
            not, they are their products.

    Raises:
        CheckpointError: the directory is damaged, or its weights are not those that its config asks for.
    """
    checkpoint = Checkpoint(path)
    beside = [name for name in checkpoint.names() if is_beside(name)]
    with quiet():
        config, placement = read_placed(checkpoint.path, trust_remote_code)
        model = _class_of(config, trust_remote_code)
        try:
            loaded, info = cast(Any, model).from_pretrained(
                None,
                config=config,
                state_dict={n: checkpoint.read(n) for n in checkpoint.names() if n not in beside},
                dtype=checkpoint.dtype if dtype is None else dtype,
                output_loading_info=True,
            )
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"the weights in {path} do not fit its config.json: {error}. Check that both come from the same model."
            ) from error
        if placement is None:
            _check_complete(checkpoint, info["missing_keys"], info)
        else:
            _place(loaded, placement, checkpoint, info)
        if factors:
            put_factors(loaded, checkpoint)
        put_beside(loaded, {name: checkpoint.info(name).shape for name in beside})
        fill_beside(loaded, ((name, checkpoint.read(name)) for name in beside))
        if (checkpoint.path / "generation_config.json").exists():
            loaded.generation_config = GenerationConfig.from_pretrained(checkpoint.path, local_files_only=True)
    loaded.config._name_or_path = str(path)
    result: PreTrainedModel = loaded.eval().to(device)
    return result


def read_tokenizer(path: Path, trust_remote_code: bool = False) -> Any | None:
    """Return the tokenizer that lies beside the weights; ``None`` where there is none."""
    if not any(found for pattern in _TOKENIZERS for found in path.glob(pattern)):
        return None
    try:
        config = None  # which Transformers reads itself, but for one with a placement, which it does not understand
        if (path / "config.json").exists():
            found, placement = read_placed(path, trust_remote_code)
            config = None if placement is None else found
        local = {"local_files_only": True, "trust_remote_code": trust_remote_code}
        return AutoTokenizer.from_pretrained(path, config=config, **local)
    except Exception as error:  # whatever a tokenizer's own code raises
        warnings.warn(f"the tokenizer in {path} cannot be read, so there is none: {error}", stacklevel=2)
        return None


def need_tokenizer(spec: str, path: Path, trust_remote_code: bool = False) -> Any:
    """Return the tokenizer that lies beside the weights.

    Raises:
        CheckpointError: there is none.
    """
    found = read_tokenizer(path, trust_remote_code)
    if found is None:
        raise CheckpointError(f"{spec} has no tokenizer beside its weights. Copy the tokenizer's files there.")
    return found


def read_config(path: Path, trust_remote_code: bool = False) -> Any:
    """Return the Transformers config of a directory whose model computes what its class says.

    Raises:
        CheckpointError: Transformers cannot make sense of ``config.json``, or the norms of the model stand elsewhere.
    """
    config, placement = read_placed(path, trust_remote_code)
    if placement is not None:
        raise CheckpointError(
            f"{path} has the placement {placement}, which only lowdim.load and what loads through it (evaluate, "
            "diagnose, generate, serve) compute. Where a stock model computes the same, fold it first: "
            "placement.fold_(model)"
        )
    return config


def read_placed(path: Path, trust_remote_code: bool = False) -> tuple[Any, Placement | None]:
    """Return the Transformers config of a directory, as a stock one, and the placement of its norms, if it has one.

    Raises:
        CheckpointError: Transformers cannot make sense of ``config.json``.
    """
    try:
        stock, placement = on_disk(PreTrainedConfig.get_config_dict(path, local_files_only=True)[0])
        if placement is None:
            config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, local_files_only=True)
        else:
            config = AutoConfig.for_model(**stock)
    except Exception as error:  # Transformers raises whatever a wrong value happens to trip over
        raise CheckpointError(f"Transformers cannot read {path / 'config.json'}: {error}") from error
    return config, None if placement is None else build("placement", placement)


def _place(model: PreTrainedModel, placement: Placement, checkpoint: Checkpoint, info: dict[str, Any]) -> None:
    """Give a model that was loaded as a stock one its placement, and what this adds to it."""
    stock = model.state_dict().keys()
    mount(model, placement, weights=False)
    state = model.state_dict()
    added, stored = state.keys() - stock, set(checkpoint.names())
    missing = [name for name in info["missing_keys"] if name in state] + [name for name in added if name not in stored]
    _check_complete(checkpoint, missing, info)
    with torch.no_grad():
        for name in added:
            state[name].copy_(checkpoint.read(name))


def _class_of(config: Any, trust_remote_code: bool) -> type[PreTrainedModel]:
    """Return the class that `AutoModelForCausalLM` picks; it takes an instance, here one without memory."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code)
    return type(model)


def _check_complete(checkpoint: Checkpoint, missing: Iterable[str], info: dict[str, Any]) -> None:
    """Refuse what Transformers would fill with random numbers."""
    if absent := sorted(missing):
        raise lacking(checkpoint.path, absent)
    wrong = [*map(str, info["mismatched_keys"]), *map(str, info.get("error_msgs") or [])]
    if wrong:
        raise CheckpointError(f"{checkpoint.path} does not fit its config.json: {'; '.join(wrong[:3])}")


def lacking(path: Path, missing: list[str]) -> CheckpointError:
    """Return the error that a checkpoint does not have all weights of the model that its config describes."""
    return CheckpointError(
        f"{path} lacks {len(missing)} of the model's weights, first {missing[0]!r}. Its config.json belongs to "
        "another model, or the checkpoint is incomplete."
    )
