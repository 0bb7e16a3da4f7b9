"""Losses of preferences in the ``DPOTrainer`` of TRL, ties among them: ``pip install "lowdim[trl]"``."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cross_entropy
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from lowdim.core.errors import LowdimError
from lowdim.train.preference.base import Preference


class TieCollator(DataCollatorForPreference):  # type: ignore[misc]
    """TRL's collator of pairs, with their ``tie``: bool ``[pairs]``, false where a row has none."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return a batch."""
        ties = torch.tensor([bool(example.get("tie")) for example in examples])
        return {**super().torch_call(examples), "tie": ties}


class PreferenceTrainer(DPOTrainer):  # type: ignore[misc]
    """TRL's ``DPOTrainer`` with a loss of ours; rows, reference model, adapters and logs of the loss are TRL's.

    Args:
        preference: the loss, such as ``TODO()``; its ``beta`` counts, and no setting of TRL's losses.
        others: as of ``DPOTrainer``, with ``precompute_ref_log_probs=True`` in ``args``; rows may have a ``tie``.

    Raises:
        LowdimError: the reference is not computed beforehand, or a collator is not TRL's; in training, a row is a tie,
            and the loss leaves ties out.
    """

    def __init__(self, *others: Any, preference: Preference, **named: Any) -> None:
        super().__init__(*others, **named)
        if not self.precompute_ref_logps or type(self.data_collator) not in (DataCollatorForPreference, TieCollator):
            raise LowdimError(
                "PreferenceTrainer needs DPOConfig(precompute_ref_log_probs=True), and TRL's own collator."
            )
        self.preference = preference
        self.data_collator.__class__ = TieCollator

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = sorted({*vars(self)["_signature_columns"], "tie"})

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        """Return what the model says of the answers before it is trained."""
        return super().compute_ref_log_probs(model, {name: held for name, held in inputs.items() if name != "tie"})

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any) -> Any:
        """Return the mean loss of the pairs."""
        if self.preference.drops_ties and bool(inputs["tie"].any()):
            raise LowdimError("a row is a tie, which this loss has no place for. Leave it out, or take TODO().")
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)[:, 1:]
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        lost = cross_entropy(outputs.logits[:, :-1].float().transpose(1, 2), labels, reduction="none").sum(1)
        chosen, rejected = (-lost).chunk(2)
        ratio = chosen - inputs["ref_chosen_logps"] - (rejected - inputs["ref_rejected_logps"])
        loss = self.preference.losses(ratio, inputs["tie"]).mean()
        return (loss, outputs) if return_outputs else loss
