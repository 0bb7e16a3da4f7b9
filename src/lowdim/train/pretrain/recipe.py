"""The recipe of a pre-training: everything that decides what it writes, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer, PlainValidator, field_validator, model_validator

from lowdim.core.errors import RecipeError, suggest
from lowdim.core.recipe import Count, Document, Section, Seed, Strings, families, method_field
from lowdim.core.schedule import cooled, cosine, warmed
from lowdim.core.settings import Moot
from lowdim.nn.placement.base import Placement
from lowdim.train.lowrank.base import RankRule
from lowdim.train.nm.base import FromScratch
from lowdim.train.optimizers.base import OptimizerRule
from lowdim.train.pretrain import configs
from lowdim.train.riders.alphadecay import AlphaDecay
from lowdim.train.riders.sampling import Sampling

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Part = Annotated[float, Field(ge=0, le=1)]


class Data(Section):
    """What is trained on.

    Args:
        kind: "text" predicts every token; "sft" reads chats (``messages``, or ``question`` and ``answer``), writes them
            by the tokenizer's chat template, and predicts the tokens of the answers alone.
        source: "builtin" (half of the built-in Wikipedia slice), files or directories of text, JSON or JSON lines, or
            a list of these.
        validation: share of the documents that is never trained on, or where such documents are; "builtin" is the
            other half of the slice. Documents with the same text stay on one side.
        separator: what stands between two documents of a text file; None takes a file for one document.
        tokenizer: directory or hub id of a tokenizer; None takes that of a model that is trained on, or trains one.
        vocabulary: tokens of a tokenizer that is trained, byte-level BPE on the training documents; None takes as many
            as the embedding has rows.
        template: "tokenizer" is the tokenizer's own chat template. The others go to the output with the tokenizer:
            "plain" says who speaks, "question" asks as the zero-shot tasks do (Question: ... Answer: ...), "none"
            writes what is asked and what is answered one behind the other.
        streaming: encode the training text as it is read, and write no tokens of it: for text whose tokens the disk has
            no room for. Sequences are shuffled among some thousand neighbours; going on reads again what was read.
        pack: join the documents, an end-of-text token after each, and cut the stream into sequences; if not, every
            document is a sequence of its own, cut at ``length``, and what is missing to it does not count.
    """

    moot: ClassVar[Moot] = {"template": ("kind", ("text",)), "pack": ("kind", ("sft",))}
    kind: Literal["text", "sft"] = "text"
    source: Strings = ("builtin",)
    validation: Annotated[float, Field(gt=0, lt=1)] | str = 0.02
    separator: Annotated[str, Field(min_length=1)] | None = None
    tokenizer: Annotated[str, Field(min_length=1)] | None = None
    vocabulary: Annotated[int, Field(ge=257)] | None = None
    template: Literal["tokenizer", "plain", "question", "none"] = "tokenizer"
    streaming: bool = False
    pack: bool = True

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if not self.source:
            raise RecipeError("data.source is empty. Write builtin, or name files or directories.")
        if self.tokenizer is not None and self.vocabulary is not None:
            raise RecipeError(
                "data.tokenizer is a tokenizer that is there, and data.vocabulary the size of one that is trained. "
                "Leave one of them out."
            )
        if self.streaming and (self.kind == "sft" or not self.pack):
            raise RecipeError(
                "data.streaming cuts a stream of joined documents: it goes with data.kind=text and data.pack."
            )
        return self


class Schedule(Section):
    """How the learning rate goes, as a factor on that of the optimizer, by the step t of T.

    Args:
        name: "cosine" falls along half a cosine from the warm-up's end to T; "wsd" stays, then falls along a line.
        warmup: rises from 0, t / w: a share of the steps, or, as a whole number of 1 and more, w itself.
        floor: factor at T; None is 0.1 for cosine and 0 for wsd.
        cooldown: share of the steps in which wsd falls; None is a tenth.
    """

    moot: ClassVar[Moot] = {"cooldown": ("name", ("cosine",))}
    name: Literal["cosine", "wsd"] = "cosine"
    warmup: Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, lt=1)] = 0.1
    floor: Part | None = None
    cooldown: Annotated[float, Field(gt=0, le=1)] | None = None

    def warm(self, steps: int) -> float:
        """Return the steps of the warm-up, w."""
        return self.warmup if isinstance(self.warmup, int) else self.warmup * steps

    def check(self, steps: int) -> None:
        """Refuse a run that is over before the rate is at its peak.

        Raises:
            RecipeError: names the setting.
        """
        cool = (self.cooldown or 0.1) * steps if self.name == "wsd" else 0.0
        if self.warm(steps) + cool > steps or self.warm(steps) > steps - 1:
            raise RecipeError(
                f"schedule.warmup is {self.warm(steps):g} of the run's {steps} steps, so that the learning rate never "
                "gets to its peak and back. Take a smaller schedule.warmup, or train longer (steps)."
            )

    def factor(self, step: int, steps: int) -> float:
        """Return the factor on the learning rate for the step with an index, from 0.

        Example:
            >>> [round(Schedule(warmup=1000).factor(t, 10_000), 2) for t in (0, 500, 1000, 5500, 9999)]
            [0.0, 0.5, 1.0, 0.55, 0.1]
            >>> [Schedule(name="wsd", warmup=10).factor(t, 100) for t in (5, 50, 90, 95)]
            [0.5, 1.0, 1.0, 0.5]
        """
        warm = self.warm(steps)
        if step < warm:
            return warmed(step, warm)
        if self.name == "wsd":
            return cooled(step, steps, (self.cooldown or 0.1) * steps, self.floor or 0.0)
        return cosine(step - warm, steps - warm, 1.0, 0.1 if self.floor is None else self.floor)


class Evaluation(Section):
    """How the model is judged on the way: the mean loss of all tokens of the validation documents, each weighing alike.

    Args:
        every: steps between two evaluations; None looks ten times. There is one at the end in any case.
        batch: sequences that are computed at once; None is as many as training does.
    """

    every: Count | None = None
    batch: Count | None = None


class Layers(Section):
    """Which linear layers of the blocks are meant: globs on their names, or re:EXPRESSION.

    Args:
        include: a layer must match one of these; none given takes the feed-forward layers.
        exclude: a layer must match none of these.
    """

    include: Strings = ()
    exclude: Strings = ()


class Factors(Layers):
    """Which linear layers of the blocks are products of two thin matrices, by `rank`, and what becomes of these.

    Args:
        include: a layer must match one of these, a glob or re:EXPRESSION; none given takes all.
        exclude: a layer must match none of these.
        keep: of all directions of these layers, the share that is kept.
        init: "svd", the best approximation of the weights that there are, drawn or trained; "random", fresh factors.
        written: "dense", their products, as a stock model; "factors", as they are trained.
    """

    keep: Annotated[float, Field(gt=0, le=1)] = 0.25
    init: Literal["svd", "random"] = "svd"
    written: Literal["dense", "factors"] = "dense"


def optional(kind: str) -> tuple[PlainValidator, PlainSerializer]:
    """Return the annotations of a field that holds a method of a kind, or None."""
    return (
        PlainValidator(lambda value: None if value is None else families.build(kind, value)),
        PlainSerializer(lambda method: method and families.describe(kind, method)),
    )


class Pretraining(Document):
    """Everything that decides what a pre-training writes.

    Args:
        model: one of 9m, 20m, 35m, 60m, 71m, 130m, 250m, 350m and 1b (see `lowdim.train.pretrain.configs`); a mapping
            with such a ``name`` and fields of its config to replace, or with a ``model_type`` of Transformers and the
            fields of its config; or a directory, a hub id or builtin:NAME, which is then trained on. ``qk_norm`` puts
            norms on queries and keys, ``embedding_std`` is the deviation of fresh embeddings.
        placement: where the norms stand, one of ``lowdim methods --kind placement``; None leaves them where they are.
        optimizer: one of ``lowdim methods --kind optimizer``.
        decay: what sets the weight decay of each matrix while training, one of ``lowdim methods --kind decay``; None
            leaves it to the optimizer.
        sampling: which blocks train at a time, one of ``lowdim methods --kind sampling``; None trains all. What looks
            at data sees the batch of the first step.
        from-scratch: the rule by which layers compute with 2:4 weights while all of them train, one of ``lowdim methods
            --kind from-scratch``; None computes with dense ones.
        sparse: which layers `from-scratch` acts on, see `Layers`.
        rank: the rule that says how many directions each factorised layer has, one of ``lowdim methods --kind rank``;
            None factorises none.
        factors: which layers `rank` acts on, and how, see `Factors`.
        data: see `Data`.
        steps: of the optimizer.
        tokens: seen in training, in the place of ``steps``. Neither is one pass over the text.
        length: tokens of a sequence.
        batch: sequences of a step, over all processes.
        accumulate: parts that every process cuts its share of a step into, computed one after the other.
        clip: largest norm of a step's gradient over all weights; None does not bound it.
        schedule: see `Schedule`.
        precision: "float32"; "bfloat16" computes in bfloat16 over fp32 weights; "pure-bfloat16" has no others.
        checkpointing: compute each block twice rather than keep its activations; less memory, a third more time.
        parallel: how processes that ``torchrun`` starts share the work: "ddp" copies the model, "fsdp" shards it.
        evaluation: see `Evaluation`.
        save_seconds: between two states that a run can be resumed from, beside those after every tenth of the run, of
            at least ten steps; 0 saves after every step.
        keep: steps between two models that stay, each a directory that loads, in ``OUT/checkpoints/step-N``; ``lowdim
            diagnose OUT`` follows them. None keeps the last model alone.
        tensorboard: also write ``OUT.tensorboard/``, with the package ``tensorboard``.
        seed: of the weights, the order of the sequences and dropout.
        device: where it is computed; "auto" takes a GPU if there is one.
        trust_remote_code: run the Python code that a model brings along, with all that you may do.

    Raises:
        RecipeError: an unknown key, a value of the wrong type or range, or a combination that cannot work.

    Example:
        >>> recipe = Pretraining(model="20m", optimizer={"name": "adamw", "lr": 3e-3}, steps=200)
        >>> recipe.optimizer.lr, recipe.schedule.name, recipe.factor(0, 200)
        (0.003, 'cosine', 0.0)
        >>> Pretraining.from_yaml(recipe.to_yaml()) == recipe
        True
    """

    model: str | dict[str, Any] = "20m"
    placement: Annotated[Placement | None, *optional("placement")] = None
    optimizer: Annotated[OptimizerRule, *method_field("optimizer")] = Field("adamw", validate_default=True)
    decay: Annotated[AlphaDecay | None, *optional("decay")] = None
    sampling: Annotated[Sampling | None, *optional("sampling")] = None
    from_scratch: Annotated[FromScratch | None, *optional("from-scratch")] = Field(None, alias="from-scratch")
    sparse: Layers = Layers()
    rank: Annotated[RankRule | None, *optional("rank")] = None
    factors: Factors = Factors()
    data: Data = Data()
    steps: Count | None = None
    tokens: Count | None = None
    length: Annotated[int, Field(ge=2)] = 256
    batch: Count = 32
    accumulate: Count = 1
    clip: Positive | None = 1.0
    schedule: Annotated[Schedule, BeforeValidator(lambda v: {"name": v} if isinstance(v, str) else v)] = Schedule()
    precision: Literal["float32", "bfloat16", "pure-bfloat16"] = "float32"
    checkpointing: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    evaluation: Evaluation = Evaluation()
    save_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 180.0
    keep: Count | None = None
    tensorboard: bool = False
    seed: Seed = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    trust_remote_code: bool = False

    keeps_zeros: ClassVar[bool] = False
    """Whether the zeros of a pruned model stay."""

    kinds: ClassVar[tuple[str, ...]] = ("optimizer", "placement", "decay", "sampling", "from-scratch", "rank")
    sections: ClassVar[Mapping[str, type[Section]]] = {
        "sparse": Layers,
        "factors": Factors,
        "data": Data,
        "schedule": Schedule,
        "evaluation": Evaluation,
    }

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)

    @classmethod
    def keys(cls) -> list[str]:
        """Return the dotted keys of the recipe, of its sections and of a model of ours."""
        return [*super().keys(), *(f"model.{key}" for key in configs.KEYS)]

    @field_validator("model")
    @classmethod
    def _model(cls, model: str | dict[str, Any]) -> str | dict[str, Any]:
        if isinstance(model, dict):
            configs.check_mapping("model", model, "of ours", "35m")
            if "model_type" in model:
                return model
        name = model["name"] if isinstance(model, dict) else model
        somewhere = isinstance(name, str) and (any(c in name for c in "/:\\") or Path(name).exists())
        if str(name) not in configs.SIZES and (isinstance(model, dict) or not somewhere):
            raise RecipeError(f"unknown model {name!r}. {suggest(str(name), configs.SIZES)}")
        return model

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.steps is not None and self.tokens is not None:
            raise RecipeError("steps and tokens both say how long to train. Leave one of them out.")
        if self.batch < self.accumulate:
            raise RecipeError(
                f"a step of batch={self.batch} sequences cannot be cut into accumulate={self.accumulate} parts. Take "
                "a larger batch, or a smaller accumulate."
            )
        if self.continues and self.data.vocabulary is not None:
            raise RecipeError(
                f"data.vocabulary trains a tokenizer, and the model {self.model!r} has learnt its own. Leave it out."
            )
        if self.continues and self.data.tokenizer is not None:
            raise RecipeError(f"the model {self.model!r} has a tokenizer of its own. Leave data.tokenizer out.")
        if self.data.kind == "sft" and not self.continues and self.data.tokenizer is None:
            raise RecipeError("data.kind=sft learns no tokenizer. Name one (data.tokenizer), or a model to train on.")
        if self.decay is not None and not (self.optimizer.alone and self.optimizer.weight_decay):
            raise RecipeError(
                "decay spreads the weight_decay of one optimizer over the matrices, so that it goes with "
                "optimizer=adamw or adam and a weight_decay above 0. Set optimizer.weight_decay, or leave decay out."
            )
        if self.data.streaming and self.steps is None and self.tokens is None:
            raise RecipeError(
                "data.streaming does not know how long a pass is. Say how long to train: steps or tokens."
            )
        if self.steps is not None or self.tokens is not None:
            self.sized(0)
        return self

    @model_validator(mode="after")
    def _fit_layers(self) -> Self:
        """Hold what acts on blocks and layers to what goes together."""
        copies = (self.precision == "bfloat16" and self.parallel == "ddp") or self.from_scratch is not None
        self.optimizer.check_loop(self.accumulate, self.clip, copies)
        if self.parallel == "fsdp":
            self.optimizer.check_shards()
        if self.from_scratch is None and self.sparse != Layers():
            raise RecipeError("sparse names layers for from-scratch, which is not set. Set it, or leave sparse out.")
        if self.rank is None and self.factors != Factors():
            raise RecipeError("factors are made by rank, which is not set. Set it, or leave factors out.")
        if self.parallel == "fsdp" and self.from_scratch is not None:
            raise RecipeError(
                "parallel=fsdp cuts matrices over the processes, and from-scratch finds masks and scales of whole ones."
                " Take parallel=ddp, or leave from-scratch out."
            )
        if self.parallel == "fsdp" and self.sampling is not None:
            raise RecipeError(
                "parallel=fsdp decides in its first pass which weights get gradients, so that blocks cannot take turns "
                "as sampling has them. Take parallel=ddp, or leave sampling out."
            )
        if self.sampling is not None and self.from_scratch is not None and self.from_scratch.holds:
            raise RecipeError(
                "this from-scratch holds the optimizer's variance of every layer, and sampling lets go of that of "
                "frozen blocks. Leave one of them out."
            )
        if self.sampling is not None and self.optimizer.chooses:
            raise RecipeError(
                "this optimizer chooses what it trains by itself, and remembers it where sampling would let go of it. "
                "Take another optimizer, or leave sampling out."
            )
        return self

    @property
    def continues(self) -> bool:
        """Whether a model that is there is trained on."""
        return isinstance(self.model, str) and self.model not in configs.SIZES

    def sized(self, sequences: int) -> int:
        """Return the steps of the run, where a pass over the text has so many sequences.

        Raises:
            RecipeError: the schedule does not fit in, or masks would never move.
        """
        tokens, each = self.tokens, self.batch * self.length
        steps = self.steps or (-(-tokens // each) if tokens is not None else max(1, sequences // self.batch))
        if self.from_scratch is not None and "from-scratch" in self.kinds:
            self.from_scratch.check(steps)
        self.schedule.check(steps)
        if self.keep is not None and self.keep >= steps:
            raise RecipeError(
                f"keep={self.keep} is no less than the run's {steps} steps, so that no model would be kept but the "
                "last, which is the output. Keep more often, or leave keep out."
            )
        return steps

    def factor(self, step: int, steps: int) -> float:
        """Return the factor on the learning rate for the step with an index, from 0."""
        return self.schedule.factor(step, steps)
