"""Column scales: the root mean square of what reaches a layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lowdim.core.errors import LowdimError, NumericalError
from lowdim.train.nm.scales import column_scales


def run(model: nn.Module, x: Tensor) -> Tensor:
    found: Tensor = model(x)
    return found


def test_they_are_root_mean_squares_over_all_tokens_of_all_batches() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.5), Conv1D(2, 5)).train()
    batches = [torch.randn(2, 4, 3), torch.randn(7, 3)]
    found = column_scales(model, ["0.weight", "2.weight"], batches, run, transposed={"2.weight"})
    x = torch.cat([each.reshape(-1, 3) for each in batches])
    with torch.no_grad():
        torch.testing.assert_close(found["0.weight"], x.square().mean(0).sqrt())
        torch.testing.assert_close(found["2.weight"], model[0](x).square().mean(0).sqrt())
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_what_cannot_be_measured_is_named() -> None:
    model = nn.ModuleDict({"used": nn.Linear(3, 3), "idle": nn.Linear(3, 3)})

    def part(model: nn.Module, x: Tensor) -> Tensor:
        return run(model.get_submodule("used"), x)

    with pytest.raises(LowdimError, match=r"no input reached idle\.weight"):
        column_scales(model, ["used.weight", "idle.weight"], [torch.ones(1, 3)], part)
    with pytest.raises(LowdimError, match=r"'used\.bias' is not the weight"):
        column_scales(model, ["used.bias"], [torch.ones(1, 3)], part)
    with pytest.raises(NumericalError, match=r"used\.weight hold NaN"):
        column_scales(model, ["used.weight"], [torch.full((1, 3), torch.nan)], part)
