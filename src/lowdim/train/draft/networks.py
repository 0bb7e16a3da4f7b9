"""The networks of a run: the target, and what its draft begins as."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from lowdim.core.errors import LowdimError, RecipeError
from lowdim.core.files import read_json
from lowdim.core.random import derive_seed
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.packed_header import is_beside
from lowdim.models.disk.source import Source, resolve
from lowdim.models.load import load, quiet, read_placed, read_tokenizer
from lowdim.nn.blocks import find_blocks
from lowdim.train.draft.recipe import CUT, Drafting
from lowdim.train.pretrain import configs


@dataclass(frozen=True, eq=False)
class Start:
    """What the draft begins as, not yet made.

    Attributes:
        config: of the draft.
        source: the model on disk that its weights come from; None for weights that are drawn.
        blocks: how many blocks of the target it has, if it is the target cut short.
        tokenizer: of its own, if it brings one.
    """

    config: Any
    source: Source | None = None
    blocks: int | None = None
    tokenizer: Any = None

    def make(self, recipe: Drafting) -> PreTrainedModel:
        """Return the draft in fp32; the same weights every time."""
        if self.source is not None:
            model = load(self.source.path, torch.float32, "cpu", recipe.trust_remote_code)
            return model if self.blocks is None else shorten_(model, self.blocks)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(recipe.seed, "draft", "weights"))
            config = copy.deepcopy(self.config)
            code = recipe.trust_remote_code
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=code)  # type: ignore[no-any-return]

    def fingerprint(self) -> dict[str, Any]:
        """Return what it begins as: files, or the config of weights that are drawn."""
        if self.source is None:
            return {"config": json.loads(self.config.to_json_string())}
        return {"files": Checkpoint(self.source.path).fingerprint(), "blocks": self.blocks}


def start_of(recipe: Drafting, target: Source, config: Any, tokenizer: Any) -> Start:
    """Read what a recipe's draft stands for.

    Args:
        recipe: of the run.
        target: where the target is.
        config: of the target.
        tokenizer: of the target, which drafts without one of their own get.

    Raises:
        LowdimError: the draft cannot be read, or has more blocks than the target that it is cut from.
    """
    spec = recipe.draft
    if isinstance(spec, str) and spec.startswith(CUT):
        whole, wanted = config.get_text_config(decoder=True).num_hidden_layers, int(spec.removeprefix(CUT))
        if not 1 <= wanted < whole:
            raise RecipeError(
                f"draft={spec!r} must keep at least 1 and fewer than the target's {whole} blocks. Take for example "
                f"{CUT}{max(1, whole // 5)}."
            )
        refuse_beside(target, "draft")
        return Start(config, target, wanted)
    if isinstance(spec, str) and spec not in configs.SIZES and not _is_config(Path(spec)):
        source = resolve(spec, trust_remote_code=recipe.trust_remote_code)
        refuse_beside(source, "draft")
        own = read_placed(source.path, recipe.trust_remote_code)[0]
        return Start(own, source, tokenizer=read_tokenizer(source.path, recipe.trust_remote_code))
    rows = config.get_text_config(decoder=True).vocab_size
    made = _from_file(Path(spec)) if isinstance(spec, str) and spec not in configs.SIZES else None
    made = made or configs.config(spec, rows, recipe.length)
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos")}
    pad = tokenizer.pad_token_id  # the embedding of which gets no gradient: it may not be that of another token
    made.update({**ends, "pad_token_id": None if pad in ends.values() else pad})
    return Start(made)


def refuse_beside(source: Source, what: str) -> None:
    """Refuse to train a model with parts beside its layers, which a stock directory cannot hold.

    Raises:
        LowdimError: names the model.
    """
    if any(map(is_beside, Checkpoint(source.path).names())):
        raise LowdimError(
            f"{source.spec} has parts beside its layers (SLoRB), which a {what} as stock Transformers loads it cannot "
            "hold. Take the model that was saved without them."
        )


def _is_config(path: Path) -> bool:
    alone = path.is_dir() and (path / "config.json").exists() and not any(path.glob("*.safetensors"))
    return path.suffix == ".json" or alone


def _from_file(path: Path) -> Any:
    file = path / "config.json" if path.is_dir() else path
    read_json(file)  # whose errors say what is wrong
    try:
        with quiet():
            given = PreTrainedConfig.get_config_dict(file, local_files_only=True)[0]
            kind = given.pop("model_type", None)
            return AutoConfig.for_model(kind, **given)
    except Exception as error:  # each config has checks of its own
        raise RecipeError(f"draft: {path} is no config: {' '.join(str(error).split())[:300]}.") from error


def shorten_(model: PreTrainedModel, count: int) -> PreTrainedModel:
    """Keep so many of a model's blocks, spread evenly, the first and the last among them; return the model.

    Raises:
        LowdimError: the model cannot be saved and read with fewer blocks.

    Example:
        >>> kept(30, 4), kept(6, 1)
        ([0, 10, 19, 29], [0])
    """
    name, blocks = find_blocks(model)
    chosen, text = kept(len(blocks), count), model.config.get_text_config(decoder=True)
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, nn.ModuleList(blocks[index] for index in chosen))
    for place, block in enumerate(getattr(model.get_submodule(parent), attribute)):
        for module in block.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = place
    for key, value in text.to_dict().items():  # one entry for each block, such as its kind of attention
        if isinstance(value, list) and len(value) == len(blocks):
            setattr(text, key, [value[index] for index in chosen])
    text.num_hidden_layers = count
    with torch.device("meta"):
        other = type(model)(copy.deepcopy(model.config))
    if other.state_dict().keys() != model.state_dict().keys():
        raise LowdimError(
            f"{type(model).__name__} cannot be cut to {count} blocks: a model of that config has other weights. Give "
            "a smaller model as the draft."
        )
    return model


def kept(whole: int, count: int) -> list[int]:
    """Return which blocks stay."""
    return [round(place * (whole - 1) / max(1, count - 1)) for place in range(count)]


def check_vocabularies(start: Start, config: Any, tokenizer: Any) -> tuple[int, str]:
    """Return over how many words draft and target can be compared, and a sentence where one knows more than the other.

    Raises:
        LowdimError: they call one token by two numbers.
    """
    rows = [one.get_text_config(decoder=True).vocab_size for one in (start.config, config)]
    if start.tokenizer is not None:
        own, other = ({number: word for word, number in t.get_vocab().items()} for t in (start.tokenizer, tokenizer))
        shared = range(min(max(own), max(other)) + 1)
        wrong = next((number for number in shared if own.get(number) != other.get(number)), None)
        if wrong is not None:
            raise LowdimError(
                f"the draft has another vocabulary than the target: token {wrong} is {own.get(wrong)!r} to the one and "
                f"{other.get(wrong)!r} to the other. One may know more tokens than the other, at its end; take a draft "
                "of the target's family, or a config."
            )
    words = min(rows)
    if rows[0] == rows[1]:
        return words, ""
    longer = "draft" if rows[0] > rows[1] else "target"
    return words, (
        f"the {longer} has {max(rows):,} words and the other {words:,}, its first ones: they are compared over those, "
        "and no other is drafted"
    )
