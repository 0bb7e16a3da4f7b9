import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lowdim.core.errors import CheckpointError, LowdimError
from lowdim.report import build as module
from lowdim.report.build import build


def test_page_lies_beside_the_run(write, small, run):
    out = write(small, run, name="smol-v1.2")
    page = build(out)
    assert page == out.parent / "smol-v1.2.html"
    assert page.read_text().startswith("<!doctype html>")
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "smol-v1.2",
        "smol-v1.2.html",
        "smol-v1.2.run.json",
    ]


def test_page_goes_where_it_is_told(write, small, tmp_path):
    assert build(write(small), tmp_path / "elsewhere.html") == tmp_path / "elsewhere.html"
    assert (tmp_path / "elsewhere.html").is_file()
    assert not (tmp_path / "owl60.html").exists()


def test_relative_directory_with_dots(write, small, run, monkeypatch):
    out = write(small, run)
    monkeypatch.chdir(out)
    assert build(Path(".")) == out.parent / "owl60.html"


def test_page_can_be_read_by_others(write, small):
    previous = os.umask(0o022)
    try:
        mode = stat.S_IMODE(build(write(small)).stat().st_mode)
    finally:
        os.umask(previous)
    assert mode == 0o644


def test_same_run_same_bytes(write, manifest, run, tmp_path):
    """Also in another process, with another hash seed and another home."""
    out = write(manifest, run)
    first = build(out).read_bytes()
    code = f"from lowdim.report.build import build; build({str(out)!r}, 'again.html')"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "MPLCONFIGDIR": str(tmp_path / "mpl")}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "again.html").read_bytes() == first


def test_page_that_cannot_be_finished_leaves_the_old_one(write, small, run, monkeypatch):
    out = write(small, run)
    page = build(out)
    before = page.read_bytes()
    monkeypatch.setattr(module, "render", lambda *_, **__: "half a page")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(LowdimError, match=r"owl60.html: No space left on device.*--html"):
        build(out)
    assert page.read_bytes() == before
    assert not list(out.parent.glob(".*"))


def test_folder_that_is_not_there(write, small, tmp_path):
    with pytest.raises(LowdimError, match="cannot write the report"):
        build(write(small), tmp_path / "nowhere" / "page.html")


def test_directory_without_a_run(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no lowdim.json.*lowdim prune"):
        build(tmp_path)


def test_manifest_of_a_later_version(write, small):
    with pytest.raises(CheckpointError, match="schema 2"):
        build(write({**small, "schema": 2}))


def test_damaged_manifest(write, small):
    out = write(small)
    (out / "lowdim.json").write_text('{"schema": 1, "layers"')
    with pytest.raises(CheckpointError, match="not valid JSON"):
        build(out)
    assert not (out.parent / "owl60.html").exists()


@pytest.mark.parametrize("content", ["{", "[1]", "\xff"])
def test_damaged_sidecar_is_named_on_the_page(write, small, content):
    out = write(small)
    (out.parent / "owl60.run.json").write_bytes(content.encode("latin-1"))
    page = build(out).read_text()
    assert "times, sizes and speeds are missing: owl60.run.json" in page


def test_reading_the_package_draws_nothing():
    code = (
        "import sys, lowdim.report.build, lowdim.report.pruning.summary; "
        "print(sorted({'matplotlib', 'jinja2', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("room", ["front", "compose", "stress"])
def test_a_page_of_one_file_is_written_again(tmp_path, room):
    from importlib import import_module

    name = import_module(f"lowdim.pipeline.{room}.api").FILE
    assert module.PAGES[name] == room
    (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=f"is not what `lowdim {room}` writes"):
        build(tmp_path)


def test_every_page_is_of_a_room_that_is_there():
    from importlib import import_module

    assert all(callable(import_module(f"lowdim.report.{room}.page").page) for room in module.PAGES.values())


@pytest.mark.parametrize("held", [{}, {"rows": 3}, {"rows": []}, {"rows": [{}], "table": [{}], "dense": {}}])
@pytest.mark.parametrize("name", module.PAGES)
def test_a_foreign_file_of_the_same_name_is_damaged_or_another_version(tmp_path, name, held):
    import json

    base = {"sentence": "x", "lowdim": "0", "model": "m", "orders": {}, "fronts": {}, "protocol": {}, "machine": {}}
    (tmp_path / name).write_text(json.dumps(base | held))
    with pytest.raises(LowdimError):
        build(tmp_path)


@pytest.mark.parametrize("asked", ["out", "out.partial"])
def test_an_unfinished_run_is_called_so(tmp_path, asked):
    (tmp_path / "out.partial").mkdir()
    with pytest.raises(CheckpointError, match=r"out.partial is an unfinished one. Repeat its command"):
        build(tmp_path / asked)


def test_the_root_of_all_directories_holds_no_run():
    with pytest.raises(CheckpointError, match=r"holds no lowdim\.json"):
        build(Path("/"))


def test_a_page_of_a_long_name_is_written(write, small):
    out = write(small, name="x" * 240)
    assert build(out).name == "x" * 240 + ".html"
