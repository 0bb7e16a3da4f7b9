"""The recipe of a recovery: everything that decides what it writes, checked before anything is loaded."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from lowdim.core.errors import RecipeError
from lowdim.core.quantize import Grid
from lowdim.core.recipe import Count, Document, Section, Seed, method_field
from lowdim.core.settings import Moot
from lowdim.prune.recipe import Recipe
from lowdim.prune.recipe.schema import Calibration, Evaluation, Short
from lowdim.train.nm.base import MaskRule

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weighting = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Stage = Literal["blocks", "distill", "both"]


class Text(Calibration):
    """The text that is trained on; see `lowdim.prune.recipe.schema.Calibration`.

    Args:
        samples: sequences drawn; no token is drawn twice.
        held: share of them that is never trained on: what both stages judge themselves by.
    """

    samples: Count = 512
    context: Annotated[int, Field(ge=2)] | None = 512
    held: Annotated[float, Field(gt=0, lt=1)] = 0.05


class Blocks(Section):
    """The first stage: each block is trained to give what the dense one gives.

    Args:
        inputs: what a block is fed: the hidden states that the recovered blocks before it make, or the dense ones.
        targets: what it is to give: the dense block's outputs in the dense model, so that a block makes up for the
            errors of those before it, or the dense block's outputs on its own inputs.
        lr: Adam's rate at the start; a cosine takes it to zero.
        passes: over the text, for every block, where no time is given.
        patience: of the eight looks at the held-out text, how many without a gain end a block.
    """

    inputs: Literal["recovered", "dense"] = "recovered"
    targets: Literal["dense", "recovered"] = "dense"
    lr: Positive = 3e-4
    passes: Positive = 2.0
    patience: Count = 3

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if (self.inputs, self.targets) == ("dense", "recovered"):
            raise RecipeError(
                "blocks.targets='recovered' are the dense block's outputs on what the recovered blocks make, which "
                "blocks.inputs='dense' does not feed it. Take blocks.targets='dense', or blocks.inputs='recovered'."
            )
        return self


class Distill(Section):
    """The second stage: the whole model is trained to predict what the teacher predicts.

    Args:
        lr: Adam's rate at the start; it rises over a twentieth of the steps, then a cosine takes it to a tenth.
        sequences: in a step.
        passes: over the text, where no time is given.
        kl: weight of the forward KL divergence from the teacher, temperature^2 times that of the softened ones.
        ce: weight of the cross-entropy of the text's own next tokens.
        hidden: weight of the squared error of what the blocks give, each token's in shares of the teacher's energy.
        temperature: that softens both predictions for the divergence.
        clip: largest norm of a step's gradient.
        checkpointing: compute each block twice rather than keep its activations; less memory, a third more time.
        shard: cut the blocks of both models over the processes that torchrun started, instead of a copy in each.
    """

    moot: ClassVar[Moot] = {"temperature": ("kl", (0,))}

    lr: Positive = 2e-4
    sequences: Count = 8
    passes: Positive = 1.0
    kl: Weighting = 1.0
    ce: Weighting = 0.0
    hidden: Weighting = 0.0
    temperature: Positive = 1.0
    clip: Positive = 1.0
    checkpointing: bool = False
    shard: bool = False

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.kl + self.ce + self.hidden:
            raise RecipeError("distill.kl, distill.ce and distill.hidden are all 0, so there is nothing to train for.")
        return self


class Recovery(Document):
    """Everything that decides what a recovery writes.

    Args:
        stage: "blocks", "distill", or "both", one after the other.
        minutes: of training on this machine, shared between the stages; None trains the passes that they name.
        share: of the minutes that the blocks get where there are both stages.
        batch_tokens: tokens that are computed at once, and in a step of a block's training; fewer need less memory.
        save_seconds: between two states of the second stage that are written to be gone on from.
        masks: "fixed" keeps the zeros where they are; "ast", or ``{name: ast, decay: 1e-4}``, lets them move while the
            whole model is trained: pruned weights begin with the teacher's values and are trained too.
        teacher: the dense model; None is the one that ``lowdim.json`` says the model was made from.
        calibration: see `Text`.
        blocks: see `Blocks`.
        distill: see `Distill`.
        evaluation: see `lowdim.prune.recipe.schema.Evaluation`.
        quantize: "int8", "int4" or "int3": the last stage trains weights through the grid that they are stored on.
            Three bits are for models without pruned weights.
        quantize_group: columns of a row that share a scale, 64 or 128.
        storage: "dense" or "packed"; "auto" is packed where weights are rounded or have SLoRB, else as the model is.
        compute: of the forward and backward passes; what is trained is fp32 in any case.
        seed: of every draw.
        device: where it is computed.
        trust_remote_code: run the Python code that the models bring along, with all that you may do.

    Raises:
        RecipeError: an unknown key, a value of the wrong type or range, or a combination that cannot work.

    Example:
        >>> recipe = Recovery(stage="blocks", minutes=10)
        >>> recipe.blocks.targets, recipe.calibration.samples
        ('dense', 512)
    """

    stage: Stage = "both"
    minutes: Positive | None = None
    share: Annotated[float, Field(gt=0, lt=1)] = 0.25
    batch_tokens: Count = 2048
    save_seconds: Weighting = 180.0
    masks: Annotated[MaskRule, *method_field("masks")] = Field("fixed", validate_default=True)
    teacher: Annotated[str, Field(min_length=1)] | None = None
    calibration: Text = Text()
    blocks: Blocks = Blocks()
    distill: Distill = Distill()
    evaluation: Evaluation = Evaluation()
    quantize: Literal["none", "int8", "int4", "int3"] = "none"
    quantize_group: Literal[64, 128] = 64
    storage: Literal["auto", "dense", "packed"] = "auto"
    compute: Annotated[Literal["auto", "float32", "bfloat16"], Short] = "auto"
    seed: Seed = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    trust_remote_code: bool = False

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)

    @model_validator(mode="after")
    def _moving(self) -> Self:
        if self.masks.moves and self.stage == "blocks":
            raise RecipeError("masks move while the whole model is trained: take stage='distill' or 'both'.")
        if self.masks.moves and self.grid is not None:
            raise RecipeError(
                f"moving masks and quantize={self.quantize!r} each decide what the model computes with. Let the masks "
                "settle first, then recover the result with quantize and masks='fixed'."
            )
        return self

    @model_validator(mode="after")
    def _sharded(self) -> Self:
        if self.distill.shard and "distill" in self.stages and self.grid is not None:
            raise RecipeError(
                f"distill.shard cuts matrices over processes, and quantize={self.quantize!r} fits scales and tables to "
                "whole ones. Recover first, then round block by block: stage='blocks'."
            )
        if self.distill.shard and self.masks.beside():
            raise RecipeError("distill.shard does not cut what stands beside layers. Leave masks.slorb out.")
        return self

    @model_validator(mode="after")
    def _idle(self) -> Self:
        if self.share != 0.25 and self.stage != "both":
            raise RecipeError(
                f"share divides the minutes between two stages, and stage is {self.stage!r}. Leave it out, or take "
                "stage='both'."
            )
        if self.quantize_group != 64 and self.quantize == "none":
            raise RecipeError(
                f"quantize_group={self.quantize_group} says how many weights share a scale, and quantize='none' has "
                "none. Choose quantize='int8' or 'int4', or leave it out."
            )
        return self

    @model_validator(mode="after")
    def _stored(self) -> Self:
        if self.grid is not None and self.storage == "dense":
            raise RecipeError(
                f"quantize={self.quantize!r} stores codes, which storage='dense' does not. Leave storage out, or write "
                "the result again with lowdim convert --storage dense."
            )
        if self.masks.beside() and self.storage == "dense":
            raise RecipeError(
                "masks.slorb puts tensors beside layers, and storage='dense' has none. Leave storage out."
            )
        return self

    kinds = ("masks",)
    sections: ClassVar = {"calibration": Text, "blocks": Blocks, "distill": Distill, "evaluation": Evaluation}

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages in their order."""
        return ("blocks", "distill") if self.stage == "both" else (self.stage,)

    @property
    def grid(self) -> Grid | None:
        """What the weights are trained through; ``None`` if they are not rounded."""
        return None if self.quantize == "none" else Grid.of(self.quantize, self.quantize_group)

    def grid_of(self, stage: str) -> Grid | None:
        """Return what a stage trains its weights through: the last stage rounds, for what it writes is what remains."""
        return self.grid if stage == self.stages[-1] else None

    def seconds(self, stage: str) -> float | None:
        """Return the time of a stage."""
        if self.minutes is None:
            return None
        shares = {"blocks": self.share, "distill": 1 - self.share}
        return 60 * self.minutes * (shares[stage] if self.stage == "both" else 1.0)

    def writing(self, storage: str) -> Recipe:
        """Return the recipe of pruning that writes what recovery makes: no new zero, the same text and storage."""
        packs = self.grid is not None or self.masks.beside()
        return Recipe(
            sparsity=0.0,
            storage=self.storage.replace("auto", "packed" if packs else storage),
            compute=self.compute,
            calibration=self.calibration.model_dump(exclude={"held"}),
            evaluation=self.evaluation.model_dump(),
            seed=self.seed,
            device=self.device,
            trust_remote_code=self.trust_remote_code,
        )
