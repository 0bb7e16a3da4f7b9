"""Two and three ranks train the same masks as one process."""

from __future__ import annotations

import json

import pytest
import torch
from tests.ranks import finished
from tests.train import ranked


@pytest.fixture(scope="module", params=[2, 3])
def ranks(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, dict[str, object]]]:
    size, home = request.param, tmp_path_factory.mktemp(f"ranks{request.param}")
    done = finished(size, home, ranked.main)
    return [json.loads((done / f"{rank}.json").read_text()) for rank in range(size)]


def test_all_ranks_agree(ranks: list[dict[str, dict[str, object]]]) -> None:
    assert len(ranks[0]) == 3 * len(ranked.METHODS) + 2
    assert all(rank == ranks[0] for rank in ranks)


def test_a_pruned_model_keeps_its_zeros(ranks: list[dict[str, dict[str, object]]]) -> None:
    ddp, fsdp = ranks[0]["keep-ddp"], ranks[0]["keep-fsdp"]
    assert ddp["hashes"] == fsdp["hashes"] == [ddp["hashes"][0]] * ranked.STEPS  # type: ignore[index]
    assert ddp["zeros"] == fsdp["zeros"] == ddp["before"]
    assert 200 < int(str(ddp["before"])) < 300
    assert ddp["total"] == pytest.approx(fsdp["total"], rel=1e-5)
    assert "weights of 2.weight that the masks switch off are not zero" in str(fsdp["said"])
    assert ddp["said"] == fsdp["said"]


@pytest.mark.parametrize("method", ranked.METHODS, ids=lambda m: type(m).__name__)
def test_and_have_the_masks_of_one_process(method: object, ranks: list[dict[str, dict[str, object]]]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = ranked.run(ranked.model(0), method, slice(None), False)  # type: ignore[arg-type]
    torch.set_num_threads(threads)
    name = type(method).__name__
    assert len(set(alone["hashes"])) > 1
    for key in (f"ddp-{name}-False", f"ddp-{name}-True", f"fsdp-{name}"):
        assert ranks[0][key] == alone, key
