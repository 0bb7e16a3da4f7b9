from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tests import forked

from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.packed import pack
from lowdim.models.disk.packed_header import lay_out
from lowdim.models.disk.writer import Writer, shard_name
from lowdim.runs.lock import OutputError

A, B = torch.arange(6.0), torch.ones(4, dtype=torch.bfloat16)


def fill(writer: Writer, value: float = 0.0) -> Path:
    writer.directory.write_json("config.json", {"value": value})
    for index, (name, tensor) in enumerate({"a": A + value, "b": B + value}.items(), start=1):
        if not writer.directory.has(shard_name(index, 2)):
            writer.write_shard(shard_name(index, 2), {name: tensor})
    return writer.finish()


def digest(path: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(path.iterdir())}


HEAD = """
import sys, torch
from pathlib import Path
from lowdim.models.disk.writer import *
out = Path(sys.argv[1])
"""


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return forked.run(forked.code, HEAD + textwrap.dedent(code), *arguments)


def test_a_result_appears_whole(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with Writer(out) as writer:
        writer.write_shard("model-00001-of-00002.safetensors", {"a": A}, {"who": "me"})
        assert not out.exists()
        writer.directory.state["step"] = 1
        writer.directory.save_state()
        writer.write_shard("model-00002-of-00002.safetensors", {"b": B})
        writer.directory.write_text("note.txt", "grüße")
        assert writer.finish() == out
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert sorted(path.name for path in out.iterdir()) == [
        *shards,
        "model.safetensors.index.json",
        "note.txt",
    ]
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index == {"metadata": {"total_size": 32}, "weight_map": {"a": shards[0], "b": shards[1]}}
    checkpoint = Checkpoint(out)
    assert torch.equal(checkpoint.read("a"), A)
    assert checkpoint.metadata == {"format": "pt", "who": "me"}


def test_a_single_shard_has_no_index(tmp_path: Path) -> None:
    with Writer(tmp_path / "out") as writer:
        writer.write_shard(shard_name(1, 1), {"a": A})
        writer.finish()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["a"], A)


def test_packed_shards_get_their_own_index(tmp_path: Path) -> None:
    with Writer(tmp_path / "out") as writer:
        for index, name in enumerate("ab", start=1):
            writer.write_shard(shard_name(index, 2, "packed"), {name: A})
        writer.finish()
    assert (tmp_path / "out" / "packed.safetensors.index.json").exists()


def test_hashes_cover_everything_but_the_record(tmp_path: Path) -> None:
    with Writer(tmp_path / "out") as writer:
        writer.directory.write_json("lowdim.json", {})
        writer.directory.save_state()
        writer.directory.write_json("config.json", {"a": 1})
        for index, name in enumerate("ab", start=1):
            writer.write_shard(shard_name(index, 2), {name: A})
        hashes = writer.hashes()
        writer.finish()
    found = digest(tmp_path / "out")
    del found["lowdim.json"]
    assert hashes == found
    assert "model.safetensors.index.json" in hashes


def test_two_shards_with_one_name_are_refused(tmp_path: Path) -> None:
    with Writer(tmp_path / "out") as writer:
        for index in (1, 2):
            writer.write_shard(shard_name(index, 2), {"a": A})
        with pytest.raises(OutputError, match="a tensor of the same name"):
            writer.finish()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../x.json", "/x.json", "a/b.json", ""])
def test_names_stay_in_the_directory(tmp_path: Path, name: str) -> None:
    with Writer(tmp_path / "out") as writer, pytest.raises(ValueError, match="plain file name"):
        writer.directory.write_json(name, {})


def test_a_shard_is_called_safetensors(tmp_path: Path) -> None:
    with Writer(tmp_path / "out") as writer, pytest.raises(ValueError, match=r"end with \.safetensors"):
        writer.write_shard("model.bin", {})


def test_copy_keeps_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(bytes(range(256)) * 9000)
    with Writer(tmp_path / "out") as writer:
        writer.directory.copy(tmp_path / "tokenizer.json")
        writer.directory.copy(tmp_path / "tokenizer.json", "again.json")
        with pytest.raises(OutputError, match="No such file"):
            writer.directory.copy(tmp_path / "gone.json")
        writer.finish()
    for name in ("tokenizer.json", "again.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


class TestExistingOutput:
    def test_is_refused(self, tmp_path: Path) -> None:
        fill(Writer(tmp_path / "out"))
        before = digest(tmp_path / "out")
        with pytest.raises(OutputError, match="exists and is not empty"):
            Writer(tmp_path / "out")
        assert digest(tmp_path / "out") == before
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_an_empty_directory_is_fine(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        fill(Writer(tmp_path / "out"))
        assert Checkpoint(tmp_path / "out").names() == ["a", "b"]

    def test_a_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "out").write_text("x")
        with pytest.raises(OutputError, match="is a file"):
            Writer(tmp_path / "out", overwrite=True)

    def test_stays_until_the_new_one_is_complete(self, tmp_path: Path) -> None:
        fill(Writer(tmp_path / "out"), 1.0)
        (tmp_path / "out" / "extra.txt").write_text("of the old one")
        with Writer(tmp_path / "out", overwrite=True) as writer:
            writer.write_shard("model.safetensors", {"a": A + 2})
            assert torch.equal(Checkpoint(tmp_path / "out").read("a"), A + 1)
            writer.finish()
        assert torch.equal(Checkpoint(tmp_path / "out").read("a"), A + 2)
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_a_directory_that_is_no_model_is_never_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("x")
        with pytest.raises(OutputError, match="does not hold a model"):
            Writer(tmp_path / "out", overwrite=True)
        assert (tmp_path / "out" / "thesis.tex").exists()

    def test_one_that_appears_meanwhile_is_not_replaced(self, tmp_path: Path) -> None:
        with Writer(tmp_path / "out") as writer:
            writer.write_shard("model.safetensors", {"a": A})
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "config.json").write_text("theirs")
            with pytest.raises(OutputError, match="not empty"):
                writer.finish()
        assert (tmp_path / "out" / "config.json").read_text() == "theirs"

    def test_comes_back_when_the_swap_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fill(Writer(tmp_path / "out"), 1.0)
        before = digest(tmp_path / "out")
        rename = os.rename

        def failing(source: Path, target: Path) -> None:
            if str(source).endswith(".partial"):
                raise OSError(errno.EIO, "Input/output error")
            rename(source, target)

        with Writer(tmp_path / "out", overwrite=True) as writer:
            writer.write_shard("model.safetensors", {"a": A})
            monkeypatch.setattr(os, "rename", failing)
            with pytest.raises(OutputError, match="Input/output error"):
                writer.finish()
        assert digest(tmp_path / "out") == before

    def test_comes_back_when_killed_in_the_swap(self, tmp_path: Path) -> None:
        fill(Writer(tmp_path / "out"), 1.0)
        before = digest(tmp_path / "out")
        os.rename(tmp_path / "out", tmp_path / "out.replaced")
        with pytest.raises(OutputError, match="exists and is not empty"):
            Writer(tmp_path / "out")
        assert digest(tmp_path / "out") == before

    def test_through_a_link(self, tmp_path: Path) -> None:
        fill(Writer(tmp_path / "real"), 1.0)
        (tmp_path / "out").symlink_to("real")
        fill(Writer(tmp_path / "out", overwrite=True), 2.0)
        assert (tmp_path / "out").is_symlink()
        assert torch.equal(Checkpoint(tmp_path / "real").read("a"), A + 2)


class TestLock:
    def test_a_second_writer_is_refused_with_the_pid(self, tmp_path: Path) -> None:
        with Writer(tmp_path / "out"), pytest.raises(OutputError, match=f"pid {os.getpid()}"):
            Writer(tmp_path / "out", overwrite=True, resume=True)

    def test_another_process_is_refused(self, tmp_path: Path) -> None:
        with Writer(tmp_path / "out") as writer:
            writer.directory.write_json("config.json", {})
            other = python("Writer(out, resume=True)", tmp_path / "out")
            assert f"pid {os.getpid()}" in other.stderr
            assert writer.directory.has("config.json")

    def test_a_dead_holder_is_taken_over(self, tmp_path: Path) -> None:
        dead = python(
            "import os; print(os.getpid(), flush=True); Writer(out).directory.write_text('a', 'a'); os._exit(9)",
            tmp_path / "out",
        )
        assert dead.returncode == 9
        lock = tmp_path / "out.partial" / ".lock"
        assert lock.read_text().strip() == dead.stdout.strip()
        with Writer(tmp_path / "out", resume=True) as writer:
            assert lock.read_text().strip() == str(os.getpid())
            assert writer.directory.has("a")

    def test_is_gone_afterwards(self, tmp_path: Path) -> None:
        def interrupted() -> None:
            with Writer(tmp_path / "out") as writer:
                writer.directory.write_json("config.json", {})
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert [path.name for path in (tmp_path / "out.partial").iterdir()] == ["config.json"]
        fill(Writer(tmp_path / "out", resume=True))
        assert ".lock" not in digest(tmp_path / "out")

    def test_nothing_is_left_of_nothing(self, tmp_path: Path) -> None:
        with Writer(tmp_path / "out"):
            pass
        assert list(tmp_path.iterdir()) == []


STEPS = ["write_shard", "save_state", "copy", "write_index", "finish"]


@pytest.fixture(scope="module")
def killed_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kill a run before each step, go on, and return where the results are."""
    home = tmp_path_factory.mktemp("killed")
    (home / "tokenizer.json").write_text("x")
    code = """
    import os, signal

    def run(out, fatal=None):
        writer = Writer(out, resume=True)
        writer.directory.write_json("config.json", {})
        for i in (1, 2, 3):
            if fatal and i == 2:
                owner = writer if hasattr(writer, fatal) else writer.directory
                setattr(owner, fatal, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            if not writer.directory.has(shard_name(i, 3)):
                writer.write_shard(shard_name(i, 3), {f"t{i}": torch.full((50,), float(i))})
            writer.directory.state["done"] = i
            writer.directory.save_state()
        writer.directory.copy(out.parent / "tokenizer.json")
        writer.finish()

    run(out / "uninterrupted")
    for step in sys.argv[2:]:
        child = os.fork()
        if not child:
            run(out / step, step)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        (out / f"{step}.killed").write_text(f"{code} {(out / step).exists()}")
        run(out / step)
    """
    done = python(code, home, *STEPS)
    assert done.returncode == 0, done.stderr
    return home


class TestResume:
    def test_unfinished_work_is_not_thrown_away_unasked(self, tmp_path: Path) -> None:
        with Writer(tmp_path / "out") as writer:
            writer.directory.write_json("config.json", {})
        with pytest.raises(OutputError, match=r"unfinished run\. Resume it"):
            Writer(tmp_path / "out")
        assert (tmp_path / "out.partial" / "config.json").exists()
        with Writer(tmp_path / "out", overwrite=True) as writer:
            assert not writer.directory.has("config.json")

    def test_the_state_comes_back(self, tmp_path: Path) -> None:
        with Writer(tmp_path / "out") as writer:
            writer.directory.state |= {"fingerprint": "abc", "done": [0, 1]}
            writer.directory.save_state()
        with Writer(tmp_path / "out", resume=True) as writer:
            assert writer.directory.state == {"fingerprint": "abc", "done": [0, 1]}
            writer.directory.reset()
            assert writer.directory.state == {}
            assert not writer.directory.has("state.json")

    def test_a_damaged_state_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "out.partial").mkdir()
        (tmp_path / "out.partial" / "state.json").write_text("{")
        with pytest.raises(OutputError, match=r"cannot resume .* Overwrite it instead"):
            Writer(tmp_path / "out", resume=True)

    def test_half_written_files_do_not_count(self, tmp_path: Path) -> None:
        (tmp_path / "out.partial").mkdir()
        (tmp_path / "out.partial" / ".model.safetensors.tmp").write_bytes(b"half")
        with Writer(tmp_path / "out", resume=True) as writer:
            assert list(writer.directory.partial.glob(".*.tmp")) == []
            assert not writer.directory.has("model.safetensors")

    @pytest.mark.parametrize("call", STEPS)
    def test_killed_before_any_step_it_ends_in_the_same_bytes(self, killed_runs: Path, call: str) -> None:
        assert (killed_runs / f"{call}.killed").read_text() == f"{-signal.SIGKILL.value} False"
        assert digest(killed_runs / call) == digest(killed_runs / "uninterrupted")
        assert "state.json" not in digest(killed_runs / call)

    def test_killed_in_the_middle_of_a_shard(self, tmp_path: Path) -> None:
        work = "Writer(out, resume=True).write_shard('model.safetensors', {'a': torch.ones(1 << 28)})"
        process = forked.Program(forked.code, HEAD + work, tmp_path / "out")
        temporary = tmp_path / "out.partial" / ".model.safetensors.tmp"
        deadline = time.monotonic() + 60
        while not (temporary.exists() and temporary.stat().st_size > 1 << 20):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
        process.wait()
        process.close()
        assert not (tmp_path / "out.partial" / "model.safetensors").exists()
        with Writer(tmp_path / "out", resume=True) as writer:
            assert not writer.directory.has("model.safetensors")
            assert not temporary.exists()


class TestConsolidate:
    def parts(self, writer: Writer, stem: str = "model") -> None:
        writer.directory.write_json("config.json", {})
        for index in (1, 2, 3, 4):
            writer.write_shard(shard_name(index, 4, stem), {f"t{index}": torch.full((100,), float(index))})
        writer.directory.save_state()

    def test_one_file_where_one_is_enough(self, tmp_path: Path) -> None:
        with Writer(tmp_path / "out") as writer:
            self.parts(writer)
            writer.write_index()  # as a run does that evaluates what it has written
            writer.consolidate()
            writer.directory.write_json("late.json", {})
            writer.directory.save_state()
            hashes = writer.hashes()
            writer.finish()
        found = digest(tmp_path / "out")
        assert list(found) == ["config.json", "late.json", "model.safetensors"]
        assert hashes == found
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        for name, tensor in Checkpoint(tmp_path / "out"):
            assert torch.equal(tensor, torch.full((100,), float(name[1])))

    def test_the_limit_holds(self, tmp_path: Path) -> None:
        with Writer(tmp_path / "out") as writer:
            self.parts(writer)
            writer.consolidate(1200)
            writer.finish()
        shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        assert Checkpoint(tmp_path / "out").files == ["model.safetensors.index.json", *shards]
        assert Checkpoint(tmp_path / "out").info("t2").file == shards[0]
        assert Checkpoint(tmp_path / "out").info("t3").file == shards[1]

    def test_the_same_bytes_as_written_at_once(self, tmp_path: Path) -> None:
        with Writer(tmp_path / "a") as writer:
            self.parts(writer)
            writer.consolidate()
            writer.finish()
        with Writer(tmp_path / "b") as writer:
            tensors = {f"t{index}": torch.full((100,), float(index)) for index in (1, 2, 3, 4)}
            writer.write_shard("model.safetensors", tensors)
            writer.finish()
        one, other = digest(tmp_path / "a"), digest(tmp_path / "b")
        assert one["model.safetensors"] == other["model.safetensors"]

    def test_packed_shards(self, tmp_path: Path) -> None:
        weight = torch.zeros(3, 64)
        weight[1, 5] = 2.0
        with Writer(tmp_path / "out") as writer:
            for index, name in enumerate(["a.weight", "b.weight", "norm"], start=1):
                tensors, metadata = lay_out({name: weight if name == "norm" else pack(weight)})
                writer.write_shard(shard_name(index, 3, "packed"), tensors, metadata)
            writer.consolidate()
            writer.finish()
        checkpoint = Checkpoint(tmp_path / "out")
        assert checkpoint.files == ["packed.safetensors"]
        assert [checkpoint.is_packed(name) for name in checkpoint.names()] == [True, True, False]
        assert all(torch.equal(tensor, weight) for _, tensor in checkpoint)

    def test_killed_meanwhile_the_parts_are_still_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        writer = Writer(tmp_path / "out")
        self.parts(writer)
        monkeypatch.setattr(writer, "write_index", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        writer.consolidate()
        with pytest.raises(KeyboardInterrupt), writer:
            writer.finish()
        assert not (tmp_path / "out").exists()
        with Writer(tmp_path / "out", resume=True) as again:
            assert not (again.directory.partial / ".final").exists()
            assert all(again.directory.has(shard_name(index, 4)) for index in (1, 2, 3, 4))
            again.consolidate()
            again.finish()
        assert list(digest(tmp_path / "out")) == ["config.json", "model.safetensors"]

    def test_without_room_the_parts_stay(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
        with Writer(tmp_path / "out") as writer:
            self.parts(writer)
            writer.consolidate()
            writer.finish()
        assert len(Checkpoint(tmp_path / "out").files) == 5

    def test_it_replaces_an_old_result(self, tmp_path: Path) -> None:
        fill(Writer(tmp_path / "out"), 1.0)
        with Writer(tmp_path / "out", overwrite=True) as writer:
            self.parts(writer)
            writer.consolidate()
            assert torch.equal(Checkpoint(tmp_path / "out").read("a"), A + 1)
            writer.finish()
        assert Checkpoint(tmp_path / "out").names() == ["t1", "t2", "t3", "t4"]
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


class TestDiskTrouble:
    def test_too_little_space_is_said_before_the_work(self, tmp_path: Path) -> None:
        with Writer(tmp_path / "out") as writer:
            writer.directory.require_space(1)
            with pytest.raises(OutputError, match="bytes free, and 1,152,921,504,606,846,976 are needed"):
                writer.directory.require_space(1 << 60)

    def test_what_lies_there_already_needs_no_more_space(self, tmp_path: Path) -> None:
        with Writer(tmp_path / "out") as writer, (writer.directory.partial / "done").open("wb") as file:
            needed = shutil.disk_usage(tmp_path).free + (1 << 30)
            with pytest.raises(OutputError, match="are needed"):
                writer.directory.require_space(needed)
            file.truncate(1 << 40)  # a hole, which takes no room itself
            writer.directory.require_space(needed)

    def test_no_parent_to_write_in(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(OutputError, match=r"cannot write .*: (Not a directory|File exists)"):
            Writer(tmp_path / "file" / "out")

    def test_a_read_only_parent(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(Path, "mkdir", refuse)  # root may write anywhere
        with pytest.raises(OutputError, match=r"cannot write .*: Permission denied"):
            Writer(tmp_path / "out")

    def test_a_full_disk_keeps_the_old_result_and_what_is_done(self, tmp_path: Path) -> None:
        """RLIMIT_FSIZE makes the kernel refuse the large shard half-way, as a full disk would."""
        fill(Writer(tmp_path / "out"), 1.0)
        before = digest(tmp_path / "out")
        full = python(
            """
            import resource
            writer = Writer(out, overwrite=True)
            writer.write_shard(shard_name(1, 2), {"a": torch.ones(8)})
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
            with writer:
                writer.write_shard(shard_name(2, 2), {"b": torch.ones(1 << 20)})
            """,
            tmp_path / "out",
        )
        message = full.stderr
        assert "OutputError: cannot write" in message
        assert "model-00002-of-00002.safetensors (4,194,304 bytes): File too large" in message
        assert "resume from there" in message
        assert digest(tmp_path / "out") == before
        kept = sorted(path.name for path in (tmp_path / "out.partial").iterdir())
        assert kept == ["model-00001-of-00002.safetensors"]
        with Writer(tmp_path / "out", overwrite=True, resume=True) as writer:
            assert writer.directory.has(shard_name(1, 2))
            writer.write_shard(shard_name(2, 2), {"b": torch.ones(8)})
            writer.finish()
        assert Checkpoint(tmp_path / "out").info("b").shape == (8,)

    def test_enospc_at_the_sync(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with Writer(tmp_path / "out") as writer:
            monkeypatch.setattr(os, "fsync", full)
            with pytest.raises(OutputError, match=r"\(24 bytes\): No space left on device"):
                writer.write_shard("model.safetensors", {"a": A})
            assert not writer.directory.has("model.safetensors")


def test_the_same_writes_give_the_same_bytes(tmp_path: Path) -> None:
    assert digest(fill(Writer(tmp_path / "a"))) == digest(fill(Writer(tmp_path / "b")))
