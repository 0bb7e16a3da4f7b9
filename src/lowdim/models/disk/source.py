"""Where a model comes from (directory, GGUF, built-in, hub), checked before a weight is read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowdim.core.errors import CheckpointError, suggest
from lowdim.core.files import read_json
from lowdim.models.disk import adapters
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.files import NOTES
from lowdim.nn.residual.config import on_disk

BUILTIN = ("smollm2-135m",)
DTYPES = ("auto", "bfloat16", "float16", "float32")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_HUB_FILES = [
    "*.safetensors",
    "*.json",
    "tokenizer*",
    "*.model",
    "*.txt",
    "*.jinja",
    "*.tiktoken",
    "LICENSE*",
]


@dataclass(frozen=True)
class Source:
    """A model made ready to be read.

    Attributes:
        spec: what the user asked for.
        path: a checkpoint directory on this machine.
        revision: the hub's commit hash, ``sha256:...`` of a GGUF file, or ``None`` for a local directory.
        dtype: ``"bfloat16"``, ``"float16"`` or ``"float32"``: what was asked for, or else what most weights have.
        trusted: whether Python code that the model brings along may be run.
        notes: what the file that it was converted from says and nobody understood.
    """

    spec: str
    path: Path
    revision: str | None
    dtype: str
    trusted: bool = False
    notes: tuple[str, ...] = ()


def resolve(
    spec: str,
    revision: str | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    offline: bool | None = None,
) -> Source:
    """Find a model, fetch or convert it if need be, and check that it can be worked with.

    Args:
        spec: a directory, a ``.gguf`` file, ``builtin:smollm2-135m``, or a hub id such as ``org/name``.
        revision: branch, tag or commit; for hub ids only.
        dtype: ``"bfloat16"``, ``"float16"``, ``"float32"``, or ``"auto"``: the checkpoint's (GGUF: bfloat16).
        trust_remote_code: accept a model that brings its own Python code.
        offline: use only what is in the cache; ``None`` follows ``HF_HUB_OFFLINE``.

    Raises:
        CheckpointError: there is no such model, or it cannot be used; the message says what to do.
    """
    if dtype not in DTYPES:
        raise CheckpointError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}. {suggest(dtype, DTYPES)}")
    if not spec:
        raise CheckpointError("model is empty. Give a directory, a GGUF file, builtin:smollm2-135m, or a hub id.")
    path = Path(spec).expanduser()
    on_hub = is_hub(spec)
    if revision is not None and not on_hub:
        raise CheckpointError(
            f"revision applies to hub ids only, and {spec!r} is not one. Leave revision={revision!r} out."
        )
    if spec.startswith("builtin:"):
        found, commit = _from_gguf(_builtin(spec.removeprefix("builtin:")), dtype)
    elif is_gguf(path):
        found, commit = _from_gguf(path, dtype)
    elif on_hub:
        found, commit = _from_hub(spec, revision, trust_remote_code, offline)
    else:
        found, commit = _directory(path), None
    adapters.check_directory(found)
    check_config(read_config(found), spec, trust_remote_code)
    dtype = str(Checkpoint(found).dtype).removeprefix("torch.") if dtype == "auto" else dtype
    notes = read_json(found / NOTES)["unknown"] if (found / NOTES).exists() else ()
    return Source(spec, found, commit, dtype, trust_remote_code, tuple(notes))


def read_config(directory: Path) -> dict[str, Any]:
    """Read a directory's ``config.json``, numbers decoded as Transformers writes them (JSON has no infinity).

    Raises:
        CheckpointError: it is missing or not a JSON object.
    """
    from transformers import PreTrainedConfig

    read_json(directory / "config.json")  # whose errors say what is wrong
    decoded: dict[str, Any] = PreTrainedConfig.get_config_dict(directory, local_files_only=True)[0]
    return decoded


def config_directory(spec: str, revision: str | None = None, trust_remote_code: bool = False) -> Path:
    """Return a directory that holds a model's ``config.json``; of a hub id, nothing else is fetched.

    Raises:
        CheckpointError: as `resolve`.
    """
    if is_hub(spec):
        return _config_from_hub(spec, revision, trust_remote_code, offline=None)[0]
    return resolve(spec, revision, trust_remote_code=trust_remote_code).path


def is_hub(spec: str) -> bool:
    """Tell whether a model's name is a hub id, which alone has branches, tags and commits.

    Example:
        >>> is_hub("org/name"), is_hub("builtin:smollm2-135m"), is_hub("model.gguf")
        (True, False, False)
    """
    path = Path(spec).expanduser()
    return bool(spec) and not spec.startswith("builtin:") and not path.exists() and not is_gguf(path)


def is_gguf(path: Path) -> bool:
    """Tell a GGUF file by its name, or by its first letters: programs keep such files under names of their own."""
    if path.suffix.lower() == ".gguf" or not path.is_file():
        return path.suffix.lower() == ".gguf"
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def _directory(path: Path) -> Path:
    if path.is_dir():
        return path
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{path} is one file of a model. Give the directory that holds it and config.json.")
    raise CheckpointError(f"{path} is neither a directory with safetensors files nor a GGUF file")


def _builtin(name: str) -> Path:
    if name not in BUILTIN:
        raise CheckpointError(f"unknown built-in model {name!r}. {suggest(name, BUILTIN)}")
    from lowdim.data import assets

    return assets.path(name)


def _from_gguf(file: Path, dtype: str) -> tuple[Path, str]:
    from lowdim.models.disk import gguf

    path, digest = gguf.convert_gguf(file, gguf.DEFAULT_DTYPE if dtype == "auto" else dtype)
    return path, f"sha256:{digest}"


def _from_hub(spec: str, revision: str | None, trust_remote_code: bool, offline: bool | None) -> tuple[Path, str]:
    """Fetch the config, check it, and only then fetch the weights, pinned to the commit of the config."""
    first, local = _config_from_hub(spec, revision, trust_remote_code, offline)
    files = [*_HUB_FILES, "*.py"] if trust_remote_code else _HUB_FILES
    path = _snapshot(spec, first.name, files, local)
    return path, path.name


def _config_from_hub(
    spec: str, revision: str | None, trust_remote_code: bool, offline: bool | None
) -> tuple[Path, bool]:
    if not _HUB_ID.fullmatch(spec) or ".." in spec:
        raise CheckpointError(
            f"{spec!r}: there is no such file or directory, and it is not a hub id such as 'org/name'"
        )
    from huggingface_hub import constants

    local = constants.HF_HUB_OFFLINE if offline is None else offline
    first = _snapshot(spec, revision, ["config.json", "adapter_config.json"], local)
    adapters.check_directory(first)
    check_config(read_config(first), spec, trust_remote_code)
    return first, local


def _snapshot(spec: str, revision: str | None, files: list[str], local: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(spec, revision=revision, allow_patterns=files, local_files_only=local))
    except GatedRepoError as error:
        reason = "asks you to accept its terms on its page, then to log in with `hf auth login`"
        raise CheckpointError(f"{spec!r} {reason}") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(f"{spec!r} is neither a path here nor a model on the hub (or it is private)") from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{spec!r} has no revision {revision!r}") from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{spec!r} is not in the local cache, and the hub cannot be reached or offline mode is on. "
            "Fetch it where there is a network, or give a directory or a GGUF file."
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot fetch {spec!r}: {error}") from error


def check_config(config: dict[str, Any], spec: str, trust_remote_code: bool = False) -> None:
    """Refuse, from ``config.json`` alone, a model that cannot be pruned as a causal LM.

    Raises:
        CheckpointError: no or unknown ``model_type``, own code without permission, already quantised, or
            not a decoder-only causal LM.
    """
    config = dict(on_disk(config)[0])
    if said := config.get("quantization_config") or (config.get("text_config") or {}).get("quantization_config"):
        method = said.get("quant_method", "unknown")
        raise CheckpointError(
            f"{spec!r} is already quantised ({method}); its weights are codes, not numbers to prune. Use the "
            "bfloat16 or float16 original (see base_model on its model card)."
        )
    kind = config.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise CheckpointError(f"config.json of {spec!r} has no 'model_type'. It is not a Transformers model's.")
    from transformers import CONFIG_MAPPING

    if kind not in CONFIG_MAPPING:
        _check_unknown(config, kind, spec, trust_remote_code, CONFIG_MAPPING)
        return
    _check_causal(config, kind, spec)


def _check_unknown(config: dict[str, Any], kind: str, spec: str, trust_remote_code: bool, known: Iterable[str]) -> None:
    if "auto_map" not in config:
        near = suggest(kind, known)
        hint = f" {near}" if near.startswith("Did") else ""
        raise CheckpointError(
            f"this Transformers does not know model_type {kind!r} of {spec!r}.{hint} Try a newer one."
        )
    if not trust_remote_code:
        raise CheckpointError(
            f"{spec!r} (model_type {kind!r}) brings its own Python code. Read that code, and if you "
            "trust it, allow it with trust_remote_code=True."
        )


def _check_causal(config: dict[str, Any], kind: str, spec: str) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    full = _filled_in(config, kind, spec)
    stated = config.get("architectures") or []
    what = stated[0] if stated else f"model_type {kind!r}"
    if getattr(full, "is_encoder_decoder", False):
        raise CheckpointError(f"{spec!r} is an encoder-decoder ({what}); lowdim prunes decoder-only language models")
    classes = {name for value in CAUSAL.values() for name in ([value] if isinstance(value, str) else value)}
    has_head = kind in CAUSAL and (not stated or bool(classes & set(stated)) or "auto_map" in config)
    # BERT and its like carry is_decoder, False unless set; GPT-NeoX carries it too and is causal all the same
    both_ways = getattr(full, "is_decoder", None) is False and not kind.startswith("gpt_neox")
    if not has_head or both_ways:
        raise CheckpointError(f"{spec!r} is not a causal language model ({what}); lowdim prunes decoder-only ones")


def _filled_in(config: dict[str, Any], kind: str, spec: str) -> Any:
    """Return the config with the model type's defaults."""
    from transformers import CONFIG_MAPPING

    from lowdim.models.load import quiet

    try:
        with quiet():
            return CONFIG_MAPPING[kind].from_dict(dict(config))
    except Exception as error:  # Transformers raises whatever a wrong value happens to trip over
        raise CheckpointError(f"config.json of {spec!r} is not valid for model_type {kind!r}: {error}") from error
