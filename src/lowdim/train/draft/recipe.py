"""The recipe of a draft model: everything that decides what is written, checked before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer, PlainValidator, field_validator, model_validator

from lowdim.core.errors import RecipeError, suggest
from lowdim.core.recipe import Count, Document, Section, Seed, Strings, families, method_field
from lowdim.core.settings import Moot
from lowdim.train.drafters.base import DraftObjective
from lowdim.train.optimizers.base import OptimizerRule
from lowdim.train.pretrain import configs
from lowdim.train.pretrain.recipe import Schedule

KIND = "drafter"
CUT = "target:"
"""How a draft begins its name that is the target with fewer blocks."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Steps = Annotated[int, Field(ge=0)]


class Text(Section):
    """What drafts, and a target that is tuned, are trained on; see `lowdim.train.pretrain.recipe.Data`.

    Args:
        kind: "text" counts every token; "sft" reads chats, and counts the tokens of the answers alone.
        source: "builtin", files or directories of text, JSON or JSON lines, or a list of these.
        validation: share of the documents that is never trained on, or where such documents are.
        separator: what stands between two documents of a text file; None takes a file for one document.
    """

    kind: Literal["text", "sft"] = "text"
    source: Strings = ("builtin",)
    validation: Annotated[float, Field(gt=0, lt=1)] | str = 0.02
    separator: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.source:
            raise RecipeError("data.source is empty. Write builtin, or name files or directories.")
        return self


class Tune(Section):
    """Fine-tuning of the target on the text, before anything is distilled from it.

    Args:
        steps: of the optimizer; 0 leaves the target as it is. A target that is tuned is written too, to OUT/target.
        lr: learning rate at its peak.
    """

    moot: ClassVar[Moot] = {"lr": ("steps", (0,))}
    steps: Steps = 0
    lr: Positive = 5e-5


class Reference(Section):
    """The reference of methods that ask for one: a draft that is distilled first.

    Args:
        steps: of the optimizer; None is as many as drafts have.
        lr: learning rate at its peak; None is that of drafts.
    """

    steps: Count | None = None
    lr: Positive | None = None


class Acceptance(Section):
    """How drafts are measured.

    Args:
        texts: "held", which is the held-out text; "builtin", files or directories; names of zero-shot tasks, of which
            the tokens of the right answers count.
        sequences: of each text, or questions, at most.
        prompts: of each text that a simulated speculative decoding goes on from.
        prompt: tokens of such a prompt; of chats and questions it is what stands before the answer.
        tokens: written after each; 0 simulates nothing.
        drafted: k, tokens that the draft proposes before each call of the target.
    """

    moot: ClassVar[Moot] = dict.fromkeys(("prompts", "prompt", "drafted"), ("tokens", (0,)))
    texts: Strings = ("held",)
    sequences: Count = 32
    prompts: Count = 8
    prompt: Count = 32
    tokens: Steps = 32
    drafted: Count = 4

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.texts:
            raise RecipeError("acceptance.texts is empty. Write held, or name texts or tasks.")
        return self


class Drafting(Document):
    """Everything that decides what a training of drafts writes.

    Args:
        target: the model that is drafted for: a directory, a hub id, a GGUF file or builtin:NAME.
        draft: what the draft begins as: a model like the target's (a pruned or smaller one, whose zeros stay zeros);
            target:N, the target with N of its blocks; one of ``lowdim pretrain``'s sizes or a mapping for one; or a
            config.json, which begins at random.
        drafter: what the draft is trained for, one of ``lowdim methods --kind drafter``.
        rivals: the same of drafts that are trained and measured beside it, from the same start on the same batches.
        data: see `Text`.
        tune: see `Tune`.
        reference: see `Reference`.
        acceptance: see `Acceptance`.
        steps: of the optimizer, for every draft; None is one pass over the text.
        length: tokens of a sequence.
        batch: sequences of a step.
        accumulate: parts that a step is cut into, computed one after the other; methods that choose tokens choose
            among those of a part.
        clip: largest norm of a step's gradient; None does not bound it.
        optimizer: of drafts, one of ``lowdim methods --kind optimizer``.
        schedule: see `lowdim.train.pretrain.recipe.Schedule`.
        precision: "float32", or "bfloat16", in which all networks compute; what is trained is kept in fp32.
        save_seconds: between two states that a run can be resumed from.
        seed: of the weights, the order of the sequences and all draws.
        device: where it is computed.
        trust_remote_code: run the Python code that models bring along, with all that you may do.

    Raises:
        RecipeError: an unknown key, a value of the wrong type or range, or a combination that cannot work.

    Example:
        >>> recipe = Drafting(draft="target:6", rivals=["distillspec"])
        >>> recipe.drafter.keep, recipe.names
        (0.4, ['adaspec', 'distillspec'])
        >>> Drafting.from_yaml(recipe.to_yaml()) == recipe
        True
    """

    target: Annotated[str, Field(min_length=1)] = "builtin:smollm2-135m"
    draft: str | dict[str, Any]
    drafter: Annotated[DraftObjective, *method_field(KIND)] = Field("adaspec", validate_default=True)
    rivals: Annotated[
        tuple[DraftObjective, ...],
        PlainValidator(lambda value: tuple(families.build(KIND, each) for each in _listed(value))),
        PlainSerializer(lambda value: [families.describe(KIND, each) for each in value]),
    ] = ()
    data: Text = Text()
    tune: Tune = Tune()
    reference: Reference = Reference()
    acceptance: Acceptance = Acceptance()
    steps: Count | None = None
    length: Annotated[int, Field(ge=2)] = 128
    batch: Count = 16
    accumulate: Count = 1
    clip: Positive | None = 1.0
    optimizer: Annotated[OptimizerRule, *method_field("optimizer")] = Field(
        {"name": "adamw", "lr": 3e-4}, validate_default=True
    )
    schedule: Annotated[Schedule, BeforeValidator(lambda v: {"name": v} if isinstance(v, str) else v)] = Schedule()
    precision: Literal["float32", "bfloat16"] = "float32"
    save_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 180.0
    seed: Seed = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    trust_remote_code: bool = False

    kinds = (KIND, "optimizer")
    sections: ClassVar = {
        "data": Text,
        "tune": Tune,
        "reference": Reference,
        "acceptance": Acceptance,
        "schedule": Schedule,
    }

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)

    @field_validator("draft")
    @classmethod
    def _known(cls, draft: str | dict[str, Any]) -> str | dict[str, Any]:
        if isinstance(draft, dict):
            configs.check_mapping("draft", draft, "of lowdim pretrain's sizes", "20m")
            if "name" in draft and draft["name"] not in configs.SIZES:
                raise RecipeError(f"unknown draft {draft['name']!r}. {suggest(str(draft['name']), configs.SIZES)}")
            return draft
        if draft.startswith(CUT) and not draft.removeprefix(CUT).isdecimal():
            raise RecipeError(f"draft={draft!r} must be {CUT}N, the target with N of its blocks; write {CUT}4.")
        somewhere = any(c in draft for c in "/:\\") or Path(draft).exists()
        if draft not in configs.SIZES and not somewhere:
            raise RecipeError(f"unknown draft {draft!r}. {suggest(draft, configs.SIZES)} Or name a model.")
        return draft

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if len(set(self.names)) < len(self.names):
            raise RecipeError(f"{', '.join(self.names)} name a method twice. A rival is another method.")
        if self.batch < self.accumulate:
            raise RecipeError(
                f"a step of batch={self.batch} sequences cannot be cut into accumulate={self.accumulate} parts. Take "
                "a larger batch, or a smaller accumulate."
            )
        if self.reference != Reference() and not any(each.reference() for each in self.methods):
            raise RecipeError(
                f"reference is asked for by none of {', '.join(self.names)}. Leave it out, or add adaspec."
            )
        self.optimizer.check_loop(self.accumulate, self.clip, self.precision == "bfloat16")
        for steps in (self.steps, self.tune.steps, self.reference.steps):
            if steps:
                self.schedule.check(steps)
        return self

    @property
    def methods(self) -> tuple[DraftObjective, ...]:
        """All that drafts are trained for, the one whose draft is written first."""
        return (self.drafter, *self.rivals)

    @property
    def names(self) -> list[str]:
        """The names of `methods`."""
        return [str(families.name_of(KIND, each)) for each in self.methods]


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
