"""What the compiler made of csrc/: instructions and symbols that must not be there, read with binutils."""

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lowdim.core.native import FILE, FOLDER, runtime_info

LIBRARY = FOLDER / FILE
BUILT = [
    Path(__file__).parents[2] / "build" / name / "CMakeFiles/lowdim.dir/csrc" for name in ("native", "wheel-native")
]
"""Compiled for `make native` and editable installs, and for CI's wheel."""
X86 = ("x86_64", "amd64")
BEYOND = {"": "[yz]mm", "avx2": "zmm", "avx512": None, "neon": None}  # registers that a level may not use
EXPAND = re.compile(r"\tv(?:p?)expand(?:b|w|d|q|ps|pd)\s+(?P<operands>.*)")


def need(condition: object, otherwise: str) -> None:
    """Skip for want of a tool or a build, except in CI, where that is a failure."""
    if condition:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(otherwise)
    pytest.skip(otherwise)


def output(tool: str, *arguments: str | Path) -> list[str]:
    need(shutil.which(tool), f"{tool} is not installed")
    command = [tool, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def disassembly(binary: Path) -> list[str]:
    syntax = ("-M", "intel") if platform.machine().lower() in X86 else ()
    return output("objdump", "--disassemble", "--no-show-raw-insn", *syntax, binary)


def objects() -> dict[Path, str]:
    """The compiled files and the level of each; "" for those that every processor runs."""
    last = max(BUILT, key=lambda folder: folder.stat().st_mtime if folder.is_dir() else 0.0)
    found = sorted(last.glob("*.o"))
    need(found, f"no compiled objects in {last}: make native")
    names = {path: path.name.partition(".")[0].rpartition("_")[2] for path in found}
    return {path: name if name in BEYOND else "" for path, name in names.items()}


def test_no_expansion_reads_memory() -> None:
    # With a memory operand the instruction is microcoded and many times slower; compilers like to fold a load into it.
    need(LIBRARY.is_file(), "lowdim is installed without its kernels")
    if platform.machine().lower() not in X86:
        pytest.skip("this processor has no VPEXPAND")
    found = [match["operands"] for line in disassembly(LIBRARY) if (match := EXPAND.search(line))]
    if not found and "avx512" not in runtime_info().levels:
        pytest.skip("the compiler left the AVX-512 level out")
    assert found, "the AVX-512 level is compiled in and expands nothing: does this test still see its instructions?"
    assert [operands for operands in found if "[" in operands] == []


@pytest.mark.parametrize(
    ("line", "memory"),
    [
        ("    41d7:\tvpexpandd zmm2{k1}{z},zmm1", False),
        ("    41d7:\tvpexpandw zmm2{k1}{z},ZMMWORD PTR [rdi+rax*1]", True),
        ("    41d7:\tvexpandps zmm2{k1}{z},ZMMWORD PTR [rdi]", True),
    ],
)
def test_the_pattern_sees_both_forms(line: str, memory: bool) -> None:
    found = EXPAND.search(line)
    assert found is not None
    assert ("[" in found["operands"]) is memory


def test_only_the_c_interface_is_exported() -> None:
    need(LIBRARY.is_file(), "lowdim is installed without its kernels")
    symbols = output("nm", "--dynamic", "--defined-only", "--format=posix", LIBRARY)
    names = {line.split()[0] for line in symbols}
    assert {"ld_abi_version", "ld_linear"} <= names
    assert {name for name in names if not name.startswith(("ld_", "_init", "_fini"))} == set()


def test_files_of_a_level_share_no_function_with_others() -> None:
    # The linker keeps one copy of a weak function: the one with AVX-512 in it would run on processors without.
    for path, level in objects().items():
        weak = [line for line in output("nm", "--format=posix", path) if line.split()[1] in "WVu"]
        assert not level or [line for line in weak if not line.startswith("DW.ref.")] == [], path.name


def test_no_file_uses_registers_beyond_its_level() -> None:
    for path, level in objects().items():
        code = disassembly(path)
        assert code
        registers = BEYOND[level]
        assert not registers or [line for line in code if re.search(rf"\b{registers}\d", line)] == [], path.name
