"""What a machine, and a container on it, says of its memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowdim.core.machine import free_memory

GB = 2**30


def write(root: Path, files: dict[str, object]) -> Path:
    for name, content in ({"proc/meminfo": f"MemTotal: 99 kB\nMemAvailable:   {60 * GB >> 10} kB\n"} | files).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")
    return root


def held(place: str, limit: object, used: int, files: int, v1: bool = False) -> dict[str, object]:
    """Return a control group's files; what the kernel remembers of files is in two halves."""
    names = ("limit_in_bytes", "usage_in_bytes", "total_") if v1 else ("max", "current", "")
    stat = f"anon {used - files}\n{names[2]}inactive_file {files // 2}\n{names[2]}active_file {files - files // 2}"
    said = {names[0]: limit, names[1]: used, "stat": stat}
    return {f"sys/fs/cgroup/{place}memory.{name}": content for name, content in said.items()}


def test_a_machine_alone(tmp_path: Path) -> None:
    assert free_memory(write(tmp_path, {})) == 60 * GB
    assert free_memory(tmp_path / "elsewhere") is None
    assert free_memory() is None or free_memory() > 0  # type: ignore[operator]


@pytest.mark.parametrize("name", ["/", "/kubepods/pod1/one"])
def test_a_container_has_what_its_limit_leaves(name: str, tmp_path: Path) -> None:
    own = {"proc/self/cgroup": f"0::{name}"}
    assert free_memory(write(tmp_path, own | held("", "max", 9 * GB, GB))) == 60 * GB
    write(tmp_path, held(f"{name.strip('/')}/".lstrip("/"), 4 * GB, 3 * GB, 2 * GB))
    assert free_memory(tmp_path) == 3 * GB


def test_the_narrowest_of_the_groups_around_counts(tmp_path: Path) -> None:
    inner, outer = held("a/b/", 8 * GB, GB, 0), held("a/", 4 * GB, 2 * GB, 0)
    assert free_memory(write(tmp_path, {"proc/self/cgroup": "0::/a/b"} | inner | outer)) == 2 * GB
    assert free_memory(write(tmp_path, held("a/", 4 * GB, 5 * GB, 0))) == 0


def test_version_one_whose_path_is_that_of_the_host(tmp_path: Path) -> None:
    said = {"proc/self/cgroup": "12:cpu,cpuacct:/docker/1f\n5:memory:/docker/1f\n0::/docker/1f"}
    assert free_memory(write(tmp_path, said | held("memory/", 4 * GB, 3 * GB, GB, v1=True))) == 2 * GB
    write(tmp_path, held("memory/", 2**63 - 4096, 3 * GB, GB, v1=True))
    assert free_memory(tmp_path) == 60 * GB


def test_files_that_may_not_be_read_say_nothing(tmp_path: Path) -> None:
    write(tmp_path, {"proc/self/cgroup": "0::/", **held("", 4 * GB, GB, 0)})
    (tmp_path / "sys/fs/cgroup/memory.current").unlink()
    (tmp_path / "sys/fs/cgroup/memory.current").mkdir()
    assert free_memory(tmp_path) == 60 * GB
