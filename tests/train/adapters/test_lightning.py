"""Lightning: masks hold, checkpoints resume to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.small import Counter, mlp
from torch import Tensor

lightning = pytest.importorskip("lightning.pytorch")

from lowdim.core.errors import LowdimError, RecipeError  # noqa: E402
from lowdim.core.masks import Masks  # noqa: E402
from lowdim.train import RigL, Static  # noqa: E402
from lowdim.train.adapters.lightning import KeepZerosCallback, RiderCallback, SparseTrainingCallback  # noqa: E402


class Net(lightning.LightningModule):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(16, 24, 3)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def train(
    home: Path, epochs: int, callbacks: list[Any], checkpoint: str | None = None, model: Net | None = None
) -> tuple[Net, Any]:
    source = torch.Generator().manual_seed(0)
    data = torch.utils.data.TensorDataset(
        torch.randn(40, 16, generator=source), torch.randint(3, (40,), generator=source)
    )
    trainer = lightning.Trainer(
        max_epochs=epochs,
        default_root_dir=home,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        gradient_clip_val=1.0,
        callbacks=callbacks,
    )
    model = model or Net()
    trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=8), ckpt_path=checkpoint)
    return model, trainer


def fit(home: Path, epochs: int, checkpoint: str | None = None) -> tuple[Net, SparseTrainingCallback, Any]:
    callback = SparseTrainingCallback(sparsity=0.7, method=RigL(every=3), total_steps=20)
    model, trainer = train(home, epochs, [callback], checkpoint)
    return model, callback, trainer


@pytest.mark.filterwarnings("ignore")
def test_masks_hold_and_a_checkpoint_resumes(tmp_path: Path) -> None:
    model, callback, _ = fit(tmp_path, 4)
    training = callback.training
    assert training is not None
    assert training.step == 20
    assert [entry["step"] for entry in training.history] == [3, 6, 9, 12]
    weights = dict(model.named_parameters())
    assert all(not weights[name][~mask].any() for name, mask in training.masks.items())

    _, _, trainer = fit(tmp_path, 2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    again, resumed, _ = fit(tmp_path, 4, checkpoint=str(tmp_path / "half.ckpt"))
    assert resumed.training is not None
    assert resumed.training.masks == training.masks
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore")
def test_any_rider_rides(tmp_path: Path) -> None:
    several = [RiderCallback(Counter, "one"), RiderCallback(Counter, "hundred", start=100)]
    _, trainer = train(tmp_path, 2, several)
    for callback, start in zip(several, (0, 100), strict=True):
        assert callback.training is not None
        assert callback.training.state_dict() == {"step": 10, "before": start + 10, "after": start + 10}
        assert callback.training.total_steps == 10

    trainer.save_checkpoint(tmp_path / "half.ckpt")
    again = RiderCallback(Counter, "hundred")
    train(tmp_path, 4, [again], str(tmp_path / "half.ckpt"))
    assert again.training is not None
    assert again.training.state_dict() == {"step": 20, "before": 120, "after": 120}


def pruned() -> Net:
    net = Net()
    for layer in (net.net[0], net.net[2]):
        layer.weight.data[torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5] = 0.0
    return net


@pytest.mark.filterwarnings("ignore")
def test_a_pruned_model_keeps_its_zeros(tmp_path: Path) -> None:
    masks = Masks.of(pruned())
    model, trainer = train(tmp_path, 2, [KeepZerosCallback(masks)], model=pruned())
    masks.check(model)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    whole, _ = train(tmp_path, 4, [KeepZerosCallback()], model=pruned())
    again, _ = train(tmp_path, 4, [KeepZerosCallback()], str(tmp_path / "half.ckpt"), model=pruned())
    masks.check(again)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    dense, _ = train(tmp_path, 1, [], model=pruned())
    with pytest.raises(LowdimError, match="are not zero"):
        masks.check(dense)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "settings", [{"method": RigL(every=3), "total_steps": 20}, {"method": Static()}], ids=["rigl", "static"]
)
def test_a_training_without_an_end_of_its_own(settings: dict[str, Any], tmp_path: Path) -> None:
    sparse, plain = SparseTrainingCallback(sparsity=0.7, **settings), RiderCallback(Counter, "plain")
    train(tmp_path, -1, [sparse, plain, Stop()])
    assert sparse.training is not None and plain.training is not None
    assert sparse.training.step == 10 and sparse.training.total_steps == settings.get("total_steps")
    assert plain.training.total_steps is None
    endless = SparseTrainingCallback(sparsity=0.7, method=RigL(every=3))
    with pytest.raises(RecipeError, match="give total_steps"):
        train(tmp_path, -1, [endless, Stop()])


class Stop(lightning.Callback):  # type: ignore[misc, name-defined]
    """Ends a training after its second pass."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.should_stop = trainer.current_epoch == 1
