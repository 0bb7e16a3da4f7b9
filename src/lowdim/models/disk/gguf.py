"""GGUF files: converted once into a stock directory in the cache, then read like any other checkpoint."""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from lowdim.core.errors import CheckpointError
from lowdim.core.files import file_sha256
from lowdim.data import assets
from lowdim.models.disk.files import NOTES
from lowdim.models.disk.gguf_facts import Facts, check_placed, complete, cut
from lowdim.models.disk.writer import Writer
from lowdim.models.load import quiet
from lowdim.models.save import save_model
from lowdim.runs.lock import OutputError

DEFAULT_DTYPE = "bfloat16"
_EDITION = 3  # of what a conversion makes of a file


def convert_gguf(file: Path, dtype: str = DEFAULT_DTYPE) -> tuple[Path, str]:
    """Return a stock directory with a GGUF file's weights and tokenizer, and the file's SHA-256.

    The config says all that the file says of its model, see `lowdim.models.disk.gguf_facts`. Quantised values are
    expanded in float32 and rounded to ``dtype``: bfloat16 halves the size and changes values by at most 2^-9 of
    themselves, float32 keeps them exactly. The result stays in the cache, as
    ``converted/<sha256>-<dtype>-<edition>``, and is made again only for other bytes or another dtype.

    Args:
        file: the GGUF file, in one part.
        dtype: ``"bfloat16"``, ``"float16"`` or ``"float32"``.

    Raises:
        CheckpointError: the file is not GGUF, is split, damaged, of an unknown architecture, or says what no config of
            Transformers can hold.
    """
    _check(file)
    digest = file_sha256(file)
    home = assets.cache_dir() / "converted" / f"{digest}-{dtype}-{_EDITION}"
    if not os.path.exists(home):  # it may be in a cache for reading alone
        try:
            with assets.locked(home):
                if not home.exists():
                    _convert(file, home, getattr(torch, dtype))
        except OutputError as error:
            wrong = f"{str(error).partition('. ')[0]}. Free some room, or set LOWDIM_CACHE to another disk."
            raise CheckpointError(f"cannot convert {file}, which is done once, in the cache: {wrong}") from error
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
            facts = Facts.read(file)
            config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
            unknown = complete(config, facts)
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
            unknown += cut(tokenizer, facts.split)
            model = _plain(_dequantised(file, dtype, config, facts))
        except CheckpointError as error:
            raise CheckpointError(f"cannot convert {file}: {error}.".replace("..", ".")) from error
        except Exception as error:  # a damaged file can trip the readers in any way
            raise CheckpointError(
                f"cannot convert {file}: {error}. It is damaged, or this version of Transformers "
                f"({transformers.__version__}) does not know its architecture."
            ) from error
        writer.directory.write_json(NOTES, {"unknown": unknown})
        save_model(model, tokenizer, writer.directory.partial)
        writer.finish()


def _dequantised(file: Path, dtype: torch.dtype, config: PreTrainedConfig, facts: Facts) -> PreTrainedModel:
    # newer versions keep weights packed where they find a kernel for it, unless told not to
    packed = getattr(transformers, "GgufConfig", None)
    options: dict[str, Any] = {"quantization_config": packed(dequantize=True)} if packed else {}
    options |= {"config": config, "output_loading_info": True}
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that no setting turns off
        model, info = cast(Any, AutoModelForCausalLM).from_pretrained(
            file.parent, gguf_file=file.name, dtype=dtype, local_files_only=True, **options
        )
    check_placed(model, facts, info)
    loaded: PreTrainedModel = model
    return loaded


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
