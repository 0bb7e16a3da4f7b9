"""Every causal LM of the installed Transformers runs under a rule that is not its own as it did, or is refused."""

from __future__ import annotations

import pytest
import torch
from tests.models.tiny_configs import TYPES, tiny_config
from transformers import AutoModelForCausalLM

from lowdim.core.errors import LowdimError
from lowdim.models.load import quiet
from lowdim.nn.placement import GPAS
from lowdim.nn.residual.block import is_placed

IDS = torch.arange(1, 7)[None]
KNOWN = ["gemma", "gemma2", "gemma3_text", "glm4", "gpt2", "gpt_neo", "llama", "mixtral", "olmo", "phi3", "qwen2"]
"""Some that must not be refused."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", sorted(TYPES))
def test_gates_of_0_change_nothing_or_the_class_is_refused(kind: str) -> None:
    torch.manual_seed(0)
    with quiet(), torch.no_grad():
        try:
            model = AutoModelForCausalLM.from_config(tiny_config(kind)).eval()
            before = model(input_ids=IDS, use_cache=False)[0]
        except Exception as error:
            pytest.skip(f"the stock model cannot be built tiny, or does not run alone: {error}")
        refused = ""
        try:
            GPAS().apply_(model)
        except LowdimError as error:
            refused = str(error)
        assert any(is_placed(module) for module in model.modules()) == (not refused)
        assert kind not in KNOWN or not refused
        assert torch.equal(model(input_ids=IDS, use_cache=False)[0], before)
