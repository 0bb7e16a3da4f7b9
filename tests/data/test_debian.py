"""Debian packages: one built byte by byte, found installed, copied by hand, or downloaded."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from lowdim.data import assets, debian
from lowdim.data.catalog import ASSETS, Asset, Member
from lowdim.data.errors import AssetError

FILES = {"usr/share/tiny/a.bin": b"first file", "usr/share/tiny/b.bin": b"second file!"}


def build(folder: Path, compression: str = "xz") -> Path:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=f"w:{compression}") as archive:  # type: ignore[call-overload]
        for name, content in FILES.items():
            entry = tarfile.TarInfo(f"./{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    package = folder / "tiny-data_1.0-1_all.deb"
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": b"odd",
        f"data.tar.{compression}": data.getvalue(),
    }
    with package.open("wb") as stream:
        stream.write(b"!<arch>\n")
        for name, content in members.items():
            stream.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode())
            stream.write(content + b"\n" * (len(content) % 2))
    return package


def describe(package: Path) -> Asset:
    return Asset(
        "tiny-deb",
        "tiny-data",
        "1.0-1",
        package.stat().st_size,
        hashlib.sha256(package.read_bytes()).hexdigest(),
        "usr/share/tiny",
        tuple(
            Member(name.rpartition("/")[2], len(content), hashlib.sha256(content).hexdigest())
            for name, content in FILES.items()
        ),
        licence="none",
        about="for tests",
        client="apt",
        instead="mnist-5k",
    )


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    built = build(tmp_path)
    monkeypatch.setenv("LOWDIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LOWDIM_OFFLINE", raising=False)
    monkeypatch.setitem(ASSETS, "tiny-deb", describe(built))
    return built


@pytest.mark.parametrize("compression", ["xz", "gz"])
def test_reads_a_member_after_one_of_odd_length(tmp_path: Path, compression: str) -> None:
    with debian.opened(build(tmp_path, compression)) as read, read("usr/share/tiny/b.bin") as stream:
        assert stream.read() == b"second file!"


def test_a_package_copied_by_hand_is_used(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = package.parent / "cache" / "packages"
    kept.mkdir(parents=True)
    package.rename(kept / package.name)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    home = assets.path("tiny-deb")
    assert (home / "a.bin").read_bytes() == b"first file"
    assert assets.path("tiny-deb", verify=True) == home


def test_a_package_of_other_bytes_is_refused(package: Path) -> None:
    kept = package.parent / "cache" / "packages"
    kept.mkdir(parents=True)
    (kept / package.name).write_bytes(package.read_bytes() + b"\n")
    with pytest.raises(AssetError, match="apt-cache policy tiny-data"):
        assets.path("tiny-deb")


def test_downloads_with_apt_get(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], cwd: Path, **_: object) -> subprocess.CompletedProcess[str]:
        assert command == ["apt-get", "download", "--quiet", "tiny-data=1.0-1"]
        (cwd / package.name).write_bytes(package.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(debian.shutil, "which", lambda _: "/usr/bin/apt-get")
    monkeypatch.setattr(subprocess, "run", run)
    assert (assets.path("tiny-deb") / "b.bin").read_bytes() == b"second file!"


def test_apt_get_that_fails_is_quoted(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 100, "", "W: x\nE: Version '1.0-1' was not found\n")
    monkeypatch.setattr(debian.shutil, "which", lambda _: "/usr/bin/apt-get")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(AssetError, match=r"Version '1\.0-1' was not found.*apt-get update") as caught:
        assets.path("tiny-deb")
    assert "'mnist-5k', which comes with pip" in str(caught.value)


@pytest.mark.usefixtures("package")
def test_a_machine_without_apt_get_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian.shutil, "which", lambda _: None)
    with pytest.raises(AssetError, match=r"no apt-get.*copy the \.deb into .*mnist-5k"):
        assets.path("tiny-deb")


@pytest.mark.usefixtures("package")
def test_offline_says_where_to_put_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWDIM_OFFLINE", "1")
    with pytest.raises(AssetError, match=r"LOWDIM_OFFLINE.*copy the \.deb into"):
        assets.path("tiny-deb")


def test_installed_files_are_taken_and_checked(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = package.parent / "root"
    for name, content in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    found = debian.installed(ASSETS["tiny-deb"], root)
    assert found == root / "usr/share/tiny"
    assert debian.installed(ASSETS["tiny-deb"], package.parent) is None
    monkeypatch.setattr(debian, "installed", lambda _: found)
    assert (assets.path("tiny-deb") / "a.bin").read_bytes() == b"first file"


@pytest.mark.parametrize("content", [b"", b"!<arch>\n", b"PK\x03\x04" + bytes(100)], ids=["empty", "bare", "zip"])
def test_what_is_no_package_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.deb"
    file.write_bytes(content)
    with (
        pytest.raises(AssetError, match=r"x\.deb (is not a Debian package|holds no data)"),
        debian.opened(file),
    ):
        pass


def test_a_member_that_is_missing_is_named(tmp_path: Path) -> None:
    with debian.opened(build(tmp_path)) as read, pytest.raises(AssetError, match="'usr/none'"):
        read("usr/none")
