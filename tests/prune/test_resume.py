from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.evaluate.conftest import build_tokenizer
from tests.prune import tiny

from lowdim.models.disk import manifest
from lowdim.models.disk.writer import Writer
from lowdim.prune import run
from lowdim.prune.api import PruneResult, prune
from lowdim.runs.fingerprint import ResumeError
from lowdim.runs.lock import OutputError

RECIPE: dict[str, Any] = {"method": "sparsegpt", "allocation": {"name": "owl", "m": 2}}


class Stopped(Exception):
    pass


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record which blocks are pruned."""
    pruned: list[int] = []
    real = run.prune_block

    def recorded(engine: Any, block: Any, *rest: Any) -> Any:
        pruned.append(block.index)
        return real(engine, block, *rest)

    monkeypatch.setattr(run, "prune_block", recorded)
    return pruned


def stopped(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, at: int = 2, **settings: Any) -> None:
    """Leave a run that stopped before block ``at``."""
    real = run.prune_block

    def stop(engine: Any, block: Any, *rest: Any) -> Any:
        if block.index == at:
            raise Stopped
        return real(engine, block, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(run, "prune_block", stop)
        with pytest.raises(Stopped):
            go(source, out, **settings)
    assert out.with_name(f"{out.name}.partial").exists()


def go(source: Path, out: Path, data: Any = None, **settings: Any) -> PruneResult:
    options = {name: settings.pop(name) for name in ("resume", "overwrite") if name in settings}
    given = tiny.tokens() if data is None else data
    return prune(str(source), tiny.recipe(**RECIPE | settings), calibration=given, out=out, **options)


@pytest.fixture
def source(saved: Callable[[str], Path]) -> Path:
    return saved("llama")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.mark.parametrize("form", [{"storage": "dense"}, {"storage": "packed"}, {"quantize": "int4"}], ids=str)
def test_finished_blocks_are_not_computed_again(
    form: dict[str, str],
    source: Path,
    out: Path,
    tmp_path: Path,
    blocks: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go(source, tmp_path / "whole", **form)
    stopped(source, out, monkeypatch, **form)
    assert blocks == [0, 1, 2, 0, 1]
    result = go(source, out, resume=True, **form)
    assert blocks[5:] == [2]
    assert result.manifest == manifest.read(tmp_path / "whole").to_dict()
    assert tiny.digest(out) == tiny.digest(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "out",
        "out.run.json",
        "whole",
        "whole.run.json",
    ]


def test_without_an_earlier_run_resume_starts_one(source: Path, out: Path, tmp_path: Path) -> None:
    go(source, out, resume=True)
    go(source, tmp_path / "whole")
    assert tiny.digest(out) == tiny.digest(tmp_path / "whole")


def test_an_unfinished_run_is_not_taken_up_unasked(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(source, out, monkeypatch)
    with pytest.raises(OutputError, match=r"holds an unfinished run\. Resume it, overwrite it"):
        go(source, out)


def test_overwriting_starts_over(
    source: Path, out: Path, tmp_path: Path, blocks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(source, out, monkeypatch, sparsity=0.3, storage="packed")
    go(source, out, overwrite=True)
    assert blocks == [0, 1, 0, 1, 2]
    go(source, tmp_path / "whole")
    assert tiny.digest(out) == tiny.digest(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"sparsity": 0.61}, r"recipe\.sparsity"),
        ({"seed": 7}, r"recipe\.seed"),
        ({"storage": "packed"}, r"recipe\.storage"),
        ({"quantize": "int8"}, r"recipe\.quantize"),
        ({"allocation": {"name": "owl", "m": 3}}, r"recipe\.allocation\.m"),
        ({"method": "wanda"}, r"recipe\.score\.name"),
        ({"calibration": {"padding": "right"}}, r"recipe\.calibration\.padding"),
        ({"data": tiny.tokens(seed=3)}, "data"),
        ({"compute": "bfloat16"}, r"recipe\.compute"),
    ],
    ids=str,
)
def test_another_recipe_or_data_is_refused_and_named(
    change: dict[str, Any], field: str, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(source, out, monkeypatch)
    before = tiny.digest(out.with_name("out.partial"))
    with pytest.raises(
        ResumeError, match=rf"cannot resume: the unfinished run .* differs in .*{field}.*overwriting it"
    ):
        go(source, out, resume=True, **change)
    assert tiny.digest(out.with_name("out.partial")) == before
    go(source, out, resume=True)
    with pytest.raises(ResumeError, match=rf"cannot resume: the finished run .* differs in .*{field}"):
        go(source, out, resume=True, **change)


@pytest.mark.parametrize("what", ["text", "tasks"])
def test_what_is_measured_on_may_change_in_between(
    what: str, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny.save(tmp_path / "in")
    build_tokenizer().save_pretrained(source)
    file = tmp_path / ("eval.txt" if what == "text" else "eval.jsonl")
    settings: dict[str, Any] = {"evaluation": {"text": None} | {what: str(file), "context": 16}}

    def write(word: str) -> None:
        rows = [json.dumps({"question": f"{word} {i}", "choices": ["a", "b"], "label": 0}) for i in range(3)]
        file.write_text(f"{word} cat. " * 99 if what == "text" else "\n".join(rows))

    write("the")
    stopped(source, out, monkeypatch, **settings)
    write("a")
    result = go(source, out, resume=True, **settings)
    assert result.manifest == go(source, tmp_path / "whole", **settings).manifest
    assert go(source, out, resume=True, **settings).manifest == result.manifest
    write("one")  # what is finished is not measured again
    with pytest.raises(ResumeError, match=r"finished run .* differs in evaluation\.(text|questions\..*eval\.jsonl)\."):
        go(source, out, resume=True, **settings)


def test_another_model_is_refused_and_its_file_named(
    source: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(source, out, monkeypatch)
    model = tiny.model("llama")
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1
    other = tiny.save_model(model, tmp_path / "other")
    with pytest.raises(ResumeError, match=r"differs in model\.model\.safetensors"):
        go(other, out, resume=True)


def test_another_version_of_a_library_is_refused_and_named(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(source, out, monkeypatch)
    monkeypatch.setattr("lowdim.runs.fingerprint.installed", lambda name: "9" if name == "transformers" else "?")
    with pytest.raises(ResumeError, match=r"differs in versions\..*versions\.transformers"):
        go(source, out, resume=True)


def test_a_finished_run_is_found_and_nothing_is_done(
    source: Path, out: Path, blocks: list[int], tmp_path: Path
) -> None:
    first = go(source, out)
    before = tiny.digest(tmp_path)
    again = go(source, out, resume=True)
    assert blocks == [0, 1, 2]
    assert again.manifest == first.manifest
    assert tiny.digest(tmp_path) == before
    with pytest.raises(OutputError, match="exists and is not empty"):
        go(source, out)
    assert tiny.digest(tmp_path) == before


@pytest.mark.parametrize("there", [True, False])
def test_an_output_that_is_a_link_appears_where_it_leads(
    there: bool, source: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tmp_path / "elsewhere" / "real"
    (real if there else real.parent).mkdir(parents=True)
    out.symlink_to(real)
    with monkeypatch.context() as patch:
        patch.setattr(run, "prune_block", lambda *_: (_ for _ in ()).throw(Stopped))
        with pytest.raises(Stopped):
            go(source, out)
    assert real.with_name("real.partial").is_dir()
    go(source, out, resume=True)
    assert out.is_symlink() and out.with_name("out.run.json").is_file()
    assert sorted(path.name for path in real.parent.iterdir()) == ["real"]
    go(source, tmp_path / "whole")
    assert tiny.digest(out) == tiny.digest(tmp_path / "whole")
    assert go(source, out, resume=True).out == out


def test_overwriting_a_finished_run_gives_the_same_bytes(source: Path, out: Path, blocks: list[int]) -> None:
    go(source, out)
    before = tiny.digest(out)
    go(source, out, overwrite=True)
    assert tiny.digest(out) == before
    assert blocks == [0, 1, 2] * 2


def test_files_without_a_record_of_their_origin_are_not_used(
    source: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(source, out, monkeypatch, storage="packed", sparsity=0.2)
    (out.with_name("out.partial") / "state.json").unlink()
    go(source, out, resume=True)
    go(source, tmp_path / "whole")
    assert tiny.digest(out) == tiny.digest(tmp_path / "whole")


def test_a_damaged_state_is_refused(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(source, out, monkeypatch)
    (out.with_name("out.partial") / "state.json").write_text('{"fingerprint": ')
    with pytest.raises(OutputError, match=r"cannot resume from .* Overwrite it instead"):
        go(source, out, resume=True)


def test_two_writers_are_refused(source: Path, out: Path) -> None:
    with (
        Writer(out),
        pytest.raises(OutputError, match=f"being written by another process .pid {os.getpid()}"),
    ):
        go(source, out, overwrite=True)
    go(source, out)


def test_a_target_that_cannot_be_made_is_refused_before_any_work(
    source: Path, tmp_path: Path, blocks: list[int]
) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match=r"cannot write .*file"):
        go(source, tmp_path / "file" / "out")
    with pytest.raises(OutputError, match="is a file"):
        go(source, tmp_path / "file", overwrite=True)
    assert (tmp_path / "file").read_text() == "mine"
    assert blocks == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_target_is_refused(source: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(OutputError, match=r"cannot write .*Permission denied"):
        go(source, tmp_path / "out")
    tmp_path.chmod(0o755)


def test_a_read_only_file_system_is_refused(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, blocks: list[int]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(OutputError, match=r"cannot write .*out\.partial: Read-only file system"):
        go(source, out)
    assert blocks == []


def test_too_little_room_is_told_before_the_work(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, blocks: list[int]
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OutputError, match=r"has 1,000 bytes free, and [\d,]+ are needed"):
        go(source, out)
    assert blocks == []
    assert not list(out.parent.iterdir())


@pytest.mark.parametrize("at", [0, 4, 12, 22, 31])
def test_a_full_disk_costs_neither_the_old_result_nor_what_is_finished(
    at: int, source: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(source, out, method="magnitude", allocation="uniform")
    old, left, real = tiny.digest(out), [at], os.fsync

    def full(file: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match=r"No space left on device\. What is finished stays in .*resume"):
            go(source, out, overwrite=True)
    assert tiny.digest(out) == old
    go(source, out, overwrite=True, resume=True)
    go(source, tmp_path / "whole")
    assert tiny.digest(out) == tiny.digest(tmp_path / "whole")


def test_a_limit_on_the_size_of_files_is_met_in_the_middle_of_a_shard(source: Path, out: Path, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OutputError, match=r"cannot write .*-00002-of-00004\.safetensors .* File too large"):
            go(source, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not out.exists()
    assert [path.name for path in out.with_name("out.partial").glob("*.tmp")] == []
    go(source, out, resume=True)
    go(source, tmp_path / "whole")
    assert tiny.digest(out) == tiny.digest(tmp_path / "whole")
