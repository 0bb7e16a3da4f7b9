from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lowdim
from lowdim.core import native
from lowdim.core.errors import LowdimError

COMPILED = native.library() is not None
needs_kernels = pytest.mark.skipif(not COMPILED, reason="installed without a compiler")


def run(code: str, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "user.py"
    script.write_text(code)
    clean = {k: v for k, v in os.environ.items() if k != native.VARIABLE}
    command = [sys.executable, "-W", "default", str(script)]
    return subprocess.run(command, capture_output=True, text=True, env=clean | environment, check=False)


def test_what_runs_is_told() -> None:
    info = lowdim.runtime_info()
    assert info.threads == torch.get_num_threads()
    if COMPILED:
        assert info.level == info.levels[0] or info.level in info.levels
        assert info.levels[-1] == "portable"
        assert Path(info.path).is_file()
        assert info.build and not info.reason
    else:
        assert (info.level, info.levels, info.path) == ("torch", (), "")
        assert info.reason


@needs_kernels
def test_the_variable_forces_a_level(monkeypatch: pytest.MonkeyPatch) -> None:
    found = native.library()
    assert found is not None
    try:
        for level in found.levels:
            monkeypatch.setenv(native.VARIABLE, level)
            native._find.cache_clear()
            assert native.runtime_info().level == level
        monkeypatch.setenv(native.VARIABLE, "")
        native._find.cache_clear()
        assert native.runtime_info().level == found.levels[0]
    finally:
        native._find.cache_clear()


def test_a_level_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.VARIABLE, "avx51")
    native._find.cache_clear()
    try:
        with pytest.raises(LowdimError, match="LOWDIM_ISA='avx51'") as caught:
            lowdim.runtime_info()
    finally:
        native._find.cache_clear()
    said = str(caught.value)
    assert "Did you mean 'avx512'?" in said
    if COMPILED:
        assert "portable" in said.partition("Available here: ")[2]


@needs_kernels
def test_a_level_that_this_machine_lacks() -> None:
    found = native.library()
    assert found is not None
    absent = next(level for level in native.LEVELS if level not in found.levels)
    before = found.level
    with pytest.raises(LowdimError, match=f"'{absent}' is not compiled in, or this processor lacks it"):
        found.use(absent)
    assert found.level == before


@needs_kernels
def test_a_library_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "ABI_VERSION", native.ABI_VERSION + 1)
    with pytest.raises(LowdimError, match=r"built for another version.*make native"):
        native.Library(native.FOLDER / native.FILE)


def test_a_library_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / native.FILE).write_bytes(b"not a library")
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    monkeypatch.delenv(native.VARIABLE, raising=False)
    native._find.cache_clear()
    try:
        info = native.runtime_info()
    finally:
        native._find.cache_clear()
    assert info.level == "torch"
    assert "cannot be loaded" in info.reason


def test_an_install_without_kernels_says_so_once_at_the_users_line(tmp_path: Path) -> None:
    code = (
        "import warnings, torch\n"
        "from lowdim import SparseLinear\n"
        "from lowdim.core import native\n"
        "native.FOLDER = native.FOLDER / 'absent'\n"
        "def mine():\n"
        "    return SparseLinear.from_linear(torch.nn.Linear(64, 2), dtype='int8')\n"
        "mine(), mine()\n"
        "print(mine().kernel)\n"
    )
    done = run(code, tmp_path)
    assert done.stdout.strip() == "packed int8, torch", done.stderr
    assert done.stderr.count("NoKernelsWarning") == 1
    assert "user.py:6" in done.stderr
    assert "C++ compiler" in done.stderr


def test_forcing_a_level_without_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    monkeypatch.setenv(native.VARIABLE, "portable")
    native._find.cache_clear()
    try:
        with pytest.raises(LowdimError, match=r"no compiled kernels here.*without a C"):
            native.library()
    finally:
        native._find.cache_clear()


@needs_kernels
def test_one_pool_of_threads(tmp_path: Path) -> None:
    """A second one would spin against torch's. (Other packages may bring theirs into the process of the tests.)"""
    if not Path("/proc/self/maps").exists():
        pytest.skip("no /proc")
    code = """
import torch
from pathlib import Path
from lowdim.infer.sparse.matrix import Matrix

Matrix.from_dense(torch.randn(256, 256)).linear(torch.randn(256))
mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/lib" in line}
print(sum(any(name in path for name in ("libgomp", "libomp", "libiomp")) for path in mapped))
"""
    done = run(code, tmp_path)
    assert (done.returncode, done.stdout.strip()) in ((0, "0"), (0, "1")), done.stderr
