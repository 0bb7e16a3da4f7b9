from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from lowdim.core.errors import RecipeError
from lowdim.infer.serve.keys import Keys, is_exposed, read_keys


def write(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_one_key_a_line_without_comments_and_blanks(tmp_path: Path) -> None:
    keys = read_keys(write(tmp_path / "keys", b"# of the team\n\n one \r\ntwo\n"))
    assert [keys.accepts(f"Bearer {key}") for key in ("one", "two", "# of the team", "")] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("Bearer one", True),
        ("bearer one", True),
        ("  Bearer   one ", True),
        ("one", False),
        ("Bearer", False),
        ("Bearer one two", False),
        ("Basic one", False),
        ("Bearer \xff", False),
        ("", False),
        (None, False),
    ],
)
def test_the_header(header: str | None, accepted: bool) -> None:
    assert Keys(["one"]).accepts(header) is accepted


def test_no_keys_accept_nothing() -> None:
    assert not Keys([])
    assert not Keys([]).accepts("Bearer ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no key"),
        (b"\n# only a comment\n", "holds no key"),
        (b"two words\n", "space in it"),
        ("schlüssel".encode(), "ASCII"),
        (b"k" * 70_000, "right file"),
    ],
)
def test_a_file_without_good_keys_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path / "keys", content)
    with pytest.raises(RecipeError, match=f"^--api-key-file: .*{re.escape(str(path))}.*{message}|{message}"):
        read_keys(path)


def test_a_file_that_is_not_there_or_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="No such file"):
        read_keys(tmp_path / "missing")
    with pytest.raises(RecipeError, match="not a regular file"):
        read_keys(tmp_path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="nothing is closed to this user")
def test_a_file_closed_to_us_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="Permission denied"):
        read_keys(write(tmp_path / "keys", b"one\n", 0o000))


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_permissions(tmp_path: Path) -> None:
    for mode in (0o620, 0o602):
        with pytest.raises(RecipeError, match="chmod 600"):
            read_keys(write(tmp_path / "keys", b"one\n", mode))
    for mode, exposed in ((0o600, False), (0o640, False), (0o644, True)):
        assert is_exposed(write(tmp_path / "keys", b"one\n", mode)) is exposed
        assert read_keys(tmp_path / "keys")
