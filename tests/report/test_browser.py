"""The page in a real browser: it opens without a complaint, shows its charts, and runs nothing."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.report.diagnose.test_page import made
from tests.report.pretrain import made as pretrained
from tests.report.ranking import made as ranked
from tests.report.sweep import made as swept

from lowdim.report.build import build
from lowdim.report.diagnose.page import write as write_diagnosis

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None and os.environ.get("CI") != "true", reason="no Chromium"),
]


@pytest.fixture
def browse(tmp_path):
    def browse(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--force-device-scale-factor=1",
        ]
        home = [f"--user-data-dir={tmp_path / 'profile'}", "--no-first-run", "--disable-extensions"]
        log = ["--enable-logging=stderr", "--v=0", "--virtual-time-budget=2000"]
        done = subprocess.run(
            [str(BROWSER), *flags, *home, *log, *options, page.as_uri()],
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        assert complaints == []
        return done

    return browse


@pytest.fixture
def picture(browse, tmp_path):
    def picture(page: Path, width: int, height: int, *options: str) -> np.ndarray:
        file = tmp_path / "page.png"
        browse(page, f"--window-size={width},{height}", f"--screenshot={file}", *options)
        return np.asarray(Image.open(file).convert("RGB"))

    return picture


def colours(image: np.ndarray) -> set[str]:
    numbers = np.unique(image.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32))
    return {f"#{number:06x}" for number in numbers}


def test_document(browse, write, manifest, run):
    document = browse(build(write(manifest, run)), "--dump-dom").stdout
    assert re.search(r"<title>builtin:smollm2-135m at [\d.]+% sparsity", document)
    assert document.count("<svg") == 7
    assert document.count("block 0, q_proj:") == 2  # the browser kept the texts of both heatmaps
    assert "Not done as asked" in document


def test_a_diagnosis_opens(browse, tmp_path):
    document = browse(write_diagnosis([made(blocks=3)], tmp_path / "page.html"), "--dump-dom").stdout
    assert document.count("<svg") == 8
    assert "block 0, n = 1:" in document


def test_a_ranking_sheet_shows_the_pictures_of_both_ends(browse, picture, tmp_path):
    page = build(ranked.pictures(tmp_path / "ranks"))
    document = browse(page, "--dump-dom").stdout
    for head in ("cats", "Every class", "Ranks by class", "could not be read", "When samples were learnt"):
        assert head in document, head
    assert document.count("<svg") == 2
    assert {"#{:02x}{:02x}{:02x}".format(*tone) for tone in (ranked.RED, ranked.BLUE)} <= colours(
        picture(page, 1280, 2600)
    )


@pytest.mark.parametrize("write", [pretrained.write, swept.write, ranked.pictures, ranked.texts])
@pytest.mark.parametrize(("width", "options"), [(1280, ()), (500, ()), (1280, ("--force-dark-mode",))])
def test_pages_of_training_open_and_nothing_runs_off(picture, tmp_path, write, width, options):
    image = picture(build(write(tmp_path / "run")), width, 2600, *options)
    assert len(colours(image)) > 100
    assert (image.mean() > 200) == (not options)
    assert (image[:, -8:] == image[0, -1]).all()


def test_evil_names_run_nothing(browse, write, manifest, run):
    """Were the name not escaped, the script would replace the page."""
    manifest["model"]["source"] = "<script>document.body.textContent='taken over'</script><img src=x onerror=alert(1)>"
    document = browse(build(write(manifest, run)), "--dump-dom").stdout
    assert "Dense against sparse" in document
    assert "&lt;script&gt;document.body" in document


@pytest.mark.parametrize("width", [1280, 500])
def test_light(picture, write, manifest, run, width):
    image = picture(build(write(manifest, run)), width, 2400)
    assert image.shape == (2400, width, 3)
    assert len(colours(image)) > 200
    assert image.mean() > 200  # mostly paper


def test_dark(picture, write, manifest, run):
    image = picture(build(write(manifest, run)), 1280, 1600, "--force-dark-mode")
    assert len(colours(image)) > 200
    assert image.mean() < 60


def test_charts_are_drawn_in_their_colours(picture, write, manifest, run):
    seen = colours(picture(build(write(manifest, run)), 1280, 2400))
    assert {"#0c2f5e", "#e9f1fa", "#6b2503", "#fdf0e3"} <= seen  # both ends of both ramps


def test_nothing_runs_off_a_narrow_page(picture, write, any_manifest, run):
    """The rightmost pixels are bare paper, top to bottom."""
    any_manifest["model"]["source"] = "a-very-long-name-of-a-model/" + "x" * 200
    image = picture(build(write(any_manifest, run)), 500, 3000)
    assert (image[:, -8:] == image[0, -1]).all()
