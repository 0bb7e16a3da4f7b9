"""Several ranks make the masks of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.prune import ranked, tiny
from tests.ranks import fork_ranks
from torch import Tensor

from lowdim.models import ranks
from lowdim.models.disk import manifest
from lowdim.prune import api

JOBS: dict[str, dict[str, Any]] = {
    "magnitude": {"kind": "llama", "settings": {"method": "magnitude", "allocation": "alpha"}},
    "wanda-owl": {"kind": "llama", "settings": {"method": "wanda", "allocation": {"name": "owl", "m": 2}}},
    "wanda-conv1d": {"kind": "gpt2", "settings": {"method": "wanda"}},
    "wanda-experts": {"kind": "mixtral", "settings": {"method": "wanda"}},
    "wanda-experts-true": {"kind": "mixtral", "settings": {"method": "wanda", "sequential": "true"}},
    "dsnot": {"kind": "llama", "settings": {"method": "wanda", "refine": "dsnot"}},
    "sparsegpt": {"kind": "llama", "settings": {"method": "sparsegpt"}},
    "sparsegpt-true": {"kind": "llama", "settings": {"method": "sparsegpt", "sequential": "true"}},
}
EXACT = [name for name in JOBS if not name.startswith("sparsegpt")]
# Of six samples of 16 tokens, two ranks get two batches of 32 and one, three ranks one batch of 96 and none and none.
BATCHES = {2: 32, 3: 96}


def jobs(saved: Callable[[str], Path], batch: int) -> list[dict[str, Any]]:
    return [job | {"batch": batch, "source": str(saved(job["kind"]))} for job in JOBS.values()]


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def ran(
    request: pytest.FixtureRequest, saved: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, Path]:
    """Run all jobs on several ranks once; return the number of ranks and where the results are."""
    size, home = request.param, tmp_path_factory.mktemp("ranks")
    fork_ranks(ranked.main, (size, str(home), jobs(saved, BATCHES[size])), size)
    return size, home


@pytest.fixture
def alone(ran: tuple[int, Path], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], api.PruneResult]:
    """Return what one process makes of a job."""
    monkeypatch.setattr(api, "TOKENS_PER_BATCH", BATCHES[ran[0]])

    def run(name: str) -> api.PruneResult:
        job = JOBS[name]
        return tiny.in_memory(tiny.model(job["kind"]), tiny.recipe(**job["settings"]), tiny.padded())

    return run


def results(ran: tuple[int, Path], name: str) -> list[dict[str, Tensor]]:
    size, home = ran
    at = home / str(list(JOBS).index(name))
    return [torch.load(at / f"{rank}.pt", weights_only=True) for rank in range(size)]


@pytest.mark.parametrize("name", EXACT)
def test_masks_are_those_of_one_process(
    name: str, ran: tuple[int, Path], alone: Callable[[str], api.PruneResult]
) -> None:
    expected = tiny.weights(alone(name))
    for found in results(ran, name):
        assert list(found) == list(expected)
        assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", [name for name in JOBS if name not in EXACT])
def test_weights_are_those_of_one_process_to_rounding(
    name: str, ran: tuple[int, Path], alone: Callable[[str], api.PruneResult]
) -> None:
    expected = tiny.weights(alone(name))
    total = sum(tensor.numel() for tensor in expected.values())
    for found in results(ran, name):
        same = sum(int(((found[key] != 0) == (expected[key] != 0)).sum()) for key in expected)
        assert same / total > 0.999
        for key, tensor in expected.items():
            assert float((found[key] - tensor).norm() / tensor.norm()) < 1e-3, key


@pytest.mark.parametrize("name", JOBS)
def test_all_ranks_agree_to_the_bit_and_only_the_first_writes(name: str, ran: tuple[int, Path]) -> None:
    first, *others = results(ran, name)
    for other in others:
        assert all(torch.equal(first[key], other[key]) for key in first)
    home = ran[1] / str(list(JOBS).index(name))
    made = manifest.read(home / "out")
    for rank in range(ran[0]):
        assert json.loads((home / f"{rank}.json").read_text()) == made.hashes.masks
    beside = {path.name for path in home.iterdir() if not path.name[0].isdigit()}
    assert beside == {"out", "out.run.json"}


def test_one_process_is_a_group_of_one() -> None:
    assert (ranks.active(), ranks.rank(), ranks.size()) == (False, 0, 1)
    assert ranks.share([1, 2, 3]) == [1, 2, 3]
    assert ranks.broadcast({"a": 1}) == {"a": 1}
    assert ranks.gathered(7) == [7]
    tensor, mapping = torch.ones(2), {"a": "b"}
    ranks.add_up([tensor])
    ranks.agree(mapping)
    assert torch.equal(tensor, torch.ones(2))
    assert mapping == {"a": "b"}


def test_shares_are_disjoint_and_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "size", lambda: 3)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        shares.append(ranks.share(range(7)))
    assert shares == [[0, 3, 6], [1, 4], [2, 5]]


@pytest.mark.parametrize("seen", [[{"a": "a"}, {"b": "a"}], [{}, {"b": "b", "a": "b"}], [{"x": "x"}, {"x": "x"}]])
def test_all_ranks_end_with_one_mapping_in_one_order(
    seen: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "active", lambda: True)
    monkeypatch.setattr(ranks, "gathered", lambda _: [dict(mapping) for mapping in seen])
    for mapping in seen:
        ranks.agree(mapping)
    assert list(seen[0].items()) == list(seen[1].items())
    assert {key for mapping in seen for key in mapping} == set(seen[0])


@pytest.mark.slow
def test_torchrun(saved: Callable[[str], Path], tmp_path: Path) -> None:
    save_file({"input_ids": tiny.tokens()}, tmp_path / "tokens.safetensors")
    common = [str(saved("llama")), "--method", "wanda", "--sparsity", "0.6", "--quiet"]
    common += ["--calibration", str(tmp_path / "tokens.safetensors"), "--samples", "6"]
    common += ["--set", "evaluation.text=null", "--set", "compute=float32"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    for name, command in (("one", [sys.executable]), ("two", launch)):
        call = [*command, "-m", "lowdim", "prune", common[0], str(tmp_path / name), *common[1:]]
        done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (manifest.read(tmp_path / name) for name in ("one", "two"))
    assert one.hashes.masks == two.hashes.masks
    assert one.hashes.files == two.hashes.files
