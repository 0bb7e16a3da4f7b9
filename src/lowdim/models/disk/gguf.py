"""GGUF files: converted once into a stock directory in the cache, then read like any other checkpoint."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import filelock
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from lowdim.core.errors import CheckpointError
from lowdim.core.files import file_sha256
from lowdim.data import assets
from lowdim.models.disk.writer import Writer
from lowdim.models.load import quiet

DEFAULT_DTYPE = "bfloat16"


def convert_gguf(file: Path, dtype: str = DEFAULT_DTYPE) -> tuple[Path, str]:
    """Return a stock directory with a GGUF file's weights and tokenizer, and the file's SHA-256.

    Quantised values are expanded in float32 and rounded to ``dtype``: bfloat16 halves the size and changes
    values by at most 2^-9 of themselves, float32 keeps them exactly. The result stays in the cache, as
    ``converted/<sha256>-<dtype>``, and is made again only for other bytes or another dtype.

    Args:
        file: the GGUF file, in one part.
        dtype: ``"bfloat16"``, ``"float16"`` or ``"float32"``.

    Raises:
        CheckpointError: the file is not GGUF, is split, damaged, or of an unknown architecture.
    """
    _check(file)
    digest = file_sha256(file)
    home = assets.cache_dir() / "converted" / f"{digest}-{dtype}"
    home.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{home}.lock"):
        if not home.exists():
            _convert(file, home, getattr(torch, dtype))
    return home, digest


def _check(file: Path) -> None:
    if not file.is_file():
        raise CheckpointError(f"no GGUF file at {file}")
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise CheckpointError(f"{file} is not a GGUF file: it does not begin with the letters GGUF")
    if re.search(r"-\d{5}-of-\d{5}\.gguf$", file.name):
        raise CheckpointError(f"{file.name} is one part of a split GGUF. Join the parts: llama-gguf-split --merge.")


def _convert(file: Path, home: Path, dtype: torch.dtype) -> None:
    with Writer(home, overwrite=True) as writer, quiet():
        writer.directory.require_space(8 * file.stat().st_size)
        try:
            model = _plain(_dequantised(file, dtype))
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
        except Exception as error:  # a damaged file can trip the readers in any way
            raise CheckpointError(
                f"cannot convert {file}: {error}. It is damaged, or this version of Transformers "
                f"({transformers.__version__}) does not know its architecture."
            ) from error
        model.save_pretrained(writer.directory.partial)
        tokenizer.save_pretrained(writer.directory.partial)
        writer.finish()


def _dequantised(file: Path, dtype: torch.dtype) -> PreTrainedModel:
    # newer versions keep weights packed where they find a kernel for it, unless told not to
    config = getattr(transformers, "GgufConfig", None)
    options = {"quantization_config": config(dequantize=True)} if config else {}
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that no setting turns off
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=dtype, local_files_only=True, **options
        )
    return model


def _plain(loaded: PreTrainedModel) -> PreTrainedModel:
    """Move the weights into a model that does not count as quantised: no other can be saved."""
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = loaded.generation_config
    return model
