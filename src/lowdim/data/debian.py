"""Debian packages as the asset store needs them: installed, downloaded with apt-get, opened without dpkg."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from lowdim.data.catalog import Asset
from lowdim.data.errors import AssetError

_MAGIC = b"!<arch>\n"
_HEADER = 60  # bytes of a member's header in an ar archive: name 16, ..., size 10 at byte 48, end 2


def installed(asset: Asset, root: Path = Path("/")) -> Path | None:
    """Return the folder in which a package installed on this machine keeps the asset's files, if it does."""
    folder = root / asset.root
    return folder if all((folder / member.path).is_file() for member in asset.members) else None


def download(asset: Asset, folder: Path, kept: Path) -> Path:
    """Return the package as a file: the one somebody put into ``kept``, else what apt-get downloads into ``folder``.

    Raises:
        AssetError: there is no apt-get, or it cannot get this version.
    """
    if found := sorted(kept.glob(f"{asset.package}_*.deb")):
        return found[0]
    if shutil.which("apt-get") is None:
        raise AssetError(
            f"cannot fetch asset {asset.name!r}: it is a Debian package, and this machine has no apt-get. "
            f"{by_hand(asset, kept)}"
        )
    command = ["apt-get", "download", "--quiet", asset.requirement]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    packages = list(folder.glob("*.deb"))
    if done.returncode != 0 or len(packages) != 1:
        said = [line for line in done.stderr.splitlines() if line.startswith("E:")] or ["E: no reason given"]
        raise AssetError(
            f"cannot fetch asset {asset.name!r} ({asset.requirement}); apt-get says: {said[0][2:].strip()}. "
            f"Run `apt-get update`, or `apt-get install {asset.package}`: installed files are taken as they are. "
            f"{by_hand(asset, kept)}"
        )
    return packages[0]


def by_hand(asset: Asset, kept: Path) -> str:
    """Return what to do where nothing can be downloaded."""
    other = f" Or use {asset.instead!r}, which comes with pip." if asset.instead else ""
    return (
        f"Without it here: run 'apt-get download {asset.requirement}' on a Debian machine and copy the .deb "
        f"into {kept}.{other}"
    )


@contextlib.contextmanager
def opened(package: Path) -> Iterator[Callable[[str], BinaryIO]]:
    """Open a package and give a function from a path inside it to the file there.

    Raises:
        AssetError: the file is no Debian package, or lacks the path.
    """
    with tarfile.open(fileobj=io.BytesIO(_data(package))) as archive:

        def read(path: str) -> BinaryIO:
            try:
                found = archive.extractfile(f"./{path}")
            except KeyError:
                found = None
            if found is None:
                raise AssetError(f"{package.name} holds no file {path!r}")
            return found  # type: ignore[return-value]

        yield read


def _data(package: Path) -> bytes:
    """Return the archive of files inside a package, which is an ``ar`` archive of three members."""
    with package.open("rb") as stream:
        if stream.read(len(_MAGIC)) != _MAGIC:
            raise AssetError(f"{package.name} is not a Debian package")
        while len(header := stream.read(_HEADER)) == _HEADER:
            name, size = header[:16].decode().strip(), int(header[48:58])
            if name.startswith("data.tar"):
                return stream.read(size)
            stream.seek(size + size % 2, io.SEEK_CUR)  # members start at even bytes
    raise AssetError(f"{package.name} holds no data archive")
