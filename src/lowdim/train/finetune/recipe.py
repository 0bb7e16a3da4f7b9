"""The recipe of a fine-tuning: everything that decides what it writes, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from lowdim.core import registry
from lowdim.core.errors import RecipeError, suggest
from lowdim.core.recipe import Count, Section, Strings, method_field
from lowdim.core.settings import Moot
from lowdim.train.optimizers.base import OptimizerRule
from lowdim.train.preference.base import Preference
from lowdim.train.pretrain.recipe import Data, Positive, Pretraining, Schedule, optional

METHODS: dict[str, dict[str, Any]] = {
    "lift": {"adapter": None, "optimizer": "lift"},
    "full": {"adapter": None, "optimizer": {"name": "adamw", "lr": 2e-5}},
    "lora": {"adapter": {"name": "lora"}, "optimizer": {"name": "adamw", "lr": 2e-4}},
    "dora": {"adapter": {"name": "dora"}, "optimizer": {"name": "adamw", "lr": 2e-4}},
    "random": {"adapter": None, "optimizer": {"name": "lift", "mask": "random"}},
    "magnitude": {"adapter": None, "optimizer": {"name": "lift", "mask": "magnitude"}},
    "smallest": {"adapter": None, "optimizer": {"name": "lift", "mask": "smallest"}},
}
"""What the words of ``method`` stand for."""

ANSWERS = "answers"
"""The objective that is no preference."""


def _method(word: Any) -> Mapping[str, Any]:
    if not isinstance(word, str) or word not in METHODS:
        raise RecipeError(f"unknown method {word!r}. {suggest(str(word), METHODS)}")
    return METHODS[word]


def _objective(word: Any) -> Mapping[str, Any]:
    return {"preference": None if word == ANSWERS else word}


def _tuned(value: Any) -> Any:
    """Give an optimizer that is named its settings for fine-tuning, where none are given."""
    given = {"name": value} if isinstance(value, str) else value
    if not isinstance(given, Mapping) or given.get("name") not in registry.names("optimizer"):
        return value  # settings that are an object are all given; what is unknown is refused later
    rule = registry.find("optimizer", given["name"]).load()
    return {**rule.fine_tuning(given), **given}


class Adapter(Section):
    """Low-rank factors of PEFT beside every linear layer of the blocks, merged into it at the end.

    LoRA (arXiv 2106.09685) computes W + s B A, s = alpha / rank; DoRA (arXiv 2402.09353) trains the length of every row
    of that apart. Of a pruned model B A is masked, in training and so in the merge. Needs the extra ``lora``.

    Args:
        name: "lora" or "dora".
        rank: rows of A.
        alpha: see above; None is twice the rank.
        dropout: share of a layer's inputs that the factors do not see in training.
    """

    name: Literal["lora", "dora"] = "lora"
    rank: Count = 16
    alpha: Positive | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Examples(Data):
    """What is trained on.

    Args:
        kind: "sft" reads chats (``messages``, or ``question`` and ``answer``) and predicts the tokens of the answers;
            "text" predicts every token; "preferences" reads pairs (``prompt``, ``chosen``, ``rejected`` and, for ties,
            ``tie``). None is "preferences" with an ``objective``, and else "sft".
        source: files or directories of JSON or JSON lines, or built-in sets: "builtin:arc_easy" and others of
            `lowdim.data.questions.CALIBRATION_SETS`; of preferences also "builtin:preferences".
        validation: share that is never trained on, or where such rows are. Chats with the same text and pairs with the
            same prompt stay on one side.
        tokenizer: has to be None: the model has its own.
        vocabulary: the same.
    """

    moot: ClassVar[Moot] = {
        **Data.moot,
        "pack": ("kind", ("sft", "preferences")),
        **dict.fromkeys(("streaming", "separator"), ("kind", ("preferences",))),
    }
    kind: Literal["sft", "text", "preferences"] | None = None  # type: ignore[assignment]
    source: Strings = ()
    validation: Annotated[float, Field(gt=0, lt=1)] | str = 0.1


class Finetuning(Pretraining):
    """Everything that decides what a fine-tuning writes.

    Keys that are not listed are those of `lowdim.Pretraining`. ``method`` is a word for two keys, ``optimizer`` and
    ``adapter``: "lift", "full", "lora", "dora", or a rival of LIFT: "random", "magnitude", "smallest".

    Args:
        model: a directory, a hub id or builtin:NAME. The zeros of a pruned one stay.
        placement: has to be None: norms stay where they are.
        optimizer: one of ``lowdim methods --kind optimizer``; with an adapter it trains that alone. Settings that are
            not given are those for fine-tuning, where the optimizer has such (GaLore, Q-GaLore, APOLLO).
        adapter: see `Adapter`; None trains the model's own weights.
        preference: what is learnt of pairs, one of ``lowdim methods --kind preference``; None learns answers. Also
            written ``objective``, where "answers" is None.
        from-scratch: has to be None: `lowdim recover` makes a model sparse that is there.
        sparse: has to be left out.
        rank: has to be None: the model keeps its form.
        factors: has to be left out.
        data: see `Examples`.
        epochs: passes over the rows; the run is as long as that, rounded down to whole steps.
        steps: of the optimizer, in the place of ``epochs``.
        tokens: the same; of rows of ``length``. None of the three is one pass.
        length: tokens of a row at most. Longer chats are cut at their end, prompts of longer pairs at their beginning.
        batch: rows, or pairs, of a step, over all processes.
        clip: largest norm of a step's gradient, over whole matrices where some entries are trained; None does not
            bound it.
        precision: "float32"; "bfloat16" computes in bfloat16, over fp32 copies of what is trained; "pure-bfloat16" has
            none, but for entries chosen by LIFT.
        parallel: has to be "ddp", what ``torchrun`` starts: every process has the whole model.
        evaluation: how it is judged on the rows held out; before the first step too.
        keep: has to be None: the last model alone is written.
        seed: of the order of the rows, of adapters and dropout.

    Raises:
        RecipeError: an unknown key, a value of the wrong type or range, or a combination that cannot work.

    Example:
        >>> recipe = Finetuning(model="builtin:smollm2-135m", method="full", data={"source": "rows.jsonl"})
        >>> recipe.optimizer.lr, recipe.data.kind, recipe.preference
        (2e-05, 'sft', None)
        >>> Finetuning.from_yaml(recipe.to_yaml()) == recipe
        True
    """

    model: str
    optimizer: Annotated[OptimizerRule, *method_field("optimizer"), BeforeValidator(_tuned)] = Field(
        "lift", validate_default=True
    )
    adapter: Annotated[Adapter | None, BeforeValidator(lambda v: {"name": v} if isinstance(v, str) else v)] = None
    preference: Annotated[Preference | None, *optional("preference")] = None
    data: Examples
    epochs: Positive | None = None
    length: Annotated[int, Field(ge=2)] = 512
    batch: Count = 16
    schedule: Annotated[Schedule, BeforeValidator(lambda v: {"name": v} if isinstance(v, str) else v)] = Schedule(
        warmup=0.03
    )

    keeps_zeros: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = ("optimizer", "preference", "decay", "sampling")
    sections: ClassVar[Mapping[str, type[Section]]] = {**Pretraining.sections, "data": Examples, "adapter": Adapter}
    aliases: ClassVar = {"method": _method, "objective": _objective}

    @field_validator("model")
    @classmethod
    def _model(cls, model: str | dict[str, Any]) -> str | dict[str, Any]:
        assert isinstance(model, str)
        if not any(c in model for c in "/:\\") and not Path(model).exists():
            raise RecipeError(
                f"there is no model {model!r}. Name a directory, a hub id such as owner/name, or builtin:NAME."
            )
        return model

    @model_validator(mode="before")
    @classmethod
    def _kind(cls, values: Any) -> Any:
        """Let the kind of the rows follow from what is learnt of them."""
        data = values.get("data", {})
        data = data.model_dump() if isinstance(data, Examples) else data
        if isinstance(data, Mapping) and data.get("kind") is None:
            kind = "sft" if values.get("preference") is None else "preferences"
            return {**values, "data": {**data, "kind": kind}}
        return values

    @model_validator(mode="after")
    def _fit_finetuning(self) -> Self:
        if (self.data.kind == "preferences") != (self.preference is not None):
            raise RecipeError(
                f"objective is {ANSWERS if self.preference is None else 'learnt from preferences'}, and data.kind is "
                f"{self.data.kind!r}. Leave data.kind out, or take the other objective."
            )
        if self.placement is not None:
            raise RecipeError("placement moves the norms of a model that was trained with them. Leave it out.")
        if self.keep is not None:
            raise RecipeError(
                "keep is for pre-training: of a fine-tuning the last model alone is written. Leave it out."
            )
        if self.from_scratch is not None or self.rank is not None:
            raise RecipeError(
                "from-scratch and rank are for models that are pre-trained: what is fine-tuned keeps its form. Leave "
                "them out; lowdim recover trains a pruned model whose masks move."
            )
        if self.sampling is not None and self.adapter is not None:
            raise RecipeError("sampling freezes blocks, which an adapter does anyway. Leave one of them out.")
        if self.parallel != "ddp":
            raise RecipeError("parallel has to be 'ddp': zeros, chosen entries and adapters need whole matrices.")
        if self.adapter is not None and not self.optimizer.alone:
            raise RecipeError(
                "an adapter is trained by one optimizer of torch, such as adamw, and this one acts on the model's own "
                "matrices. Set optimizer=adamw, or leave adapter out."
            )
        if sum(each is not None for each in (self.epochs, self.steps, self.tokens)) > 1:
            raise RecipeError("epochs, steps and tokens all say how long to train. Keep one of them.")
        return self

    def sized(self, sequences: int) -> int:
        """Return the steps of the run, where a pass has so many rows.

        Raises:
            RecipeError: the schedule does not fit in.
        """
        if self.epochs is None or not sequences:
            return super().sized(sequences)
        steps = max(1, int(self.epochs * sequences / self.batch))
        self.schedule.check(steps)
        return steps
