"""The page as text: it stands alone, it runs nothing, it shows what there is."""

import copy
import re
from html.parser import HTMLParser

import matplotlib as mpl
import pytest

from lowdim.report.pruning.page import render

EVIL = "<script>alert(1)</script>"
VOID = {"meta", "link", "br", "img", "input", "hr"}
LIMIT = 1_500_000


class Reader(HTMLParser):
    """Collects elements, attributes and text, and checks that elements are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def test_nothing_is_loaded(page):
    read = Reader(page)
    for tag, attributes in read.elements:
        for name, value in attributes.items():
            if name in ("src", "srcset", "data", "poster", "action", "formaction", "background"):
                pytest.fail(f"{tag} loads {value}")
            if name in ("href", "xlink:href"):
                outward = tag == "a" and re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{5}", value or "")
                assert outward or value.startswith("#") or value == "data:,", (tag, value)
    assert not read.all("script")
    assert not read.all("img")
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL).group(1)
    assert "@import" not in style
    assert "url(" not in style
    assert not re.search(r"url\((?!#)", page)


def test_policy_forbids_what_escaping_might_miss(page):
    policies = [m["content"] for m in Reader(page).all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policies[0].startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert "script" not in policies[0]


def test_papers_are_linked(page):
    links = {a["href"] for a in Reader(page).all("a")}
    assert "https://arxiv.org/abs/2301.00774" in links  # SparseGPT
    assert "https://arxiv.org/abs/2310.05175" in links  # OWL


def test_names_from_files_run_nothing(manifest, run, bench):
    layer = next(iter(manifest["layers"]))
    bad = f"model.layers.0.{EVIL}"
    manifest["layers"][bad] = manifest["layers"].pop(layer)
    manifest["hashes"]["masks"][bad] = EVIL
    manifest["model"] |= {"source": EVIL, "revision": EVIL, "files": {EVIL: EVIL}}
    manifest["recipe"]["calibration"] = EVIL
    manifest["recipe"]["score"] = {"name": EVIL}
    manifest["evaluation"]["tasks"][EVIL] = {"dense": 0.5, "sparse": 0.4, "stderr": 0.1}
    manifest["fallbacks"] += [{"layer": EVIL, "what": EVIL, "detail": EVIL}]
    manifest["skipped"] += [{"name": EVIL, "reason": EVIL}]
    manifest["probes"]["singular_values"] = {f"model.layers.1.{EVIL}": [3.0, 1.0]}
    manifest["probes"]["alpha"] |= {f"model.layers.1.{EVIL}": 3.0}
    manifest["allocation"]["name"] = EVIL
    run |= {"command": EVIL, "machine": {EVIL: EVIL}, "speed": {**run["speed"], "note": EVIL}}
    run["stages"] += [{"name": EVIL, "seconds": 9.0}]
    bench |= {"notes": [EVIL], "level": EVIL, "machine": {"cpu": EVIL, "threads": 2}}
    for row in [*bench["layers"], *bench["models"]]:
        row |= {"dtype": EVIL, "backend": EVIL, "kernels": {EVIL: 1}}
    page = render(manifest, run, bench=bench, problems=[EVIL], out=EVIL)
    assert "<script" not in page.lower()
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 20
    assert not Reader(page).all("script")


def test_mathematics_and_tricks_in_names_are_text(manifest, run):
    manifest["layers"] = {
        "model.layers.0.$\\frac{a$\u202e\x00_proj": {
            "numel": 4,
            "nonzeros": 2,
            "sparsity": 0.5,
            "block": 0,
            "error": 0.1,
        }
    }
    manifest["probes"] = {}
    assert "$\\frac{a$��_proj" in Reader(render(manifest, run)).text


def test_letters_that_no_font_has(manifest, run):
    run["stages"][0]["name"] = "読み込み \U0001fae0"
    assert "読み込み" in Reader(render(manifest, run)).text


def test_every_outline_renders(any_manifest, run):
    for sidecar in ({}, run):
        page = render(any_manifest, sidecar)
        Reader(page)
        assert len(page) < LIMIT
        assert "None" not in page
        assert "nan" not in Reader(page).text.split()


def without(source: dict, path: tuple[str, ...]) -> dict:
    changed = copy.deepcopy(source)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return changed


OPTIONAL = [
    ("evaluation",),
    ("evaluation", "perplexity"),
    ("evaluation", "tasks"),
    ("evaluation", "perplexity", "difference"),
    ("allocation",),
    ("probes",),
    ("data",),
    ("hashes",),
    ("versions",),
    ("recipe",),
    ("sparsity",),
    ("fallbacks",),
    ("skipped",),
    ("layers",),
]


@pytest.mark.parametrize("path", OPTIONAL, ids=".".join)
def test_what_is_missing_is_left_out(make, run, path):
    Reader(render(without(make(blocks=3), path), run))


@pytest.mark.parametrize("part", ["stages", "machine", "speed", "size", "command"])
def test_sidecar_may_lack_anything(small, run, part):
    Reader(render(small, without(run, (part,))))


def test_layers_outside_of_blocks_and_without_errors(manifest, run):
    for index, layer in enumerate(manifest["layers"].values()):
        layer["block"] = None if index % 2 else layer["block"]
        layer["error"] = None
    text = Reader(render(manifest, run)).text
    assert "What it cost" not in text
    assert "Where the zeros are" in text


def test_thousands_of_experts_fit(make, run):
    shapes = {f"mlp.experts.{e}.{kind}": (8, 8) for e in range(128) for kind in ("gate_proj", "up_proj", "down_proj")}
    manifest = make(blocks=48, shapes=shapes)
    manifest["fallbacks"] = [
        {"layer": name, "what": "left dense", "detail": "saw no token"} for name in manifest["layers"]
    ]
    page = render(manifest, run)
    text = Reader(page).text
    assert len(page) < LIMIT
    assert "17,232 more in lowdim.json" in text  # 48 * 128 * 3 less the 1,200 shown
    assert "17,932 more, listed in lowdim.json" in text  # of the 18,432 notices, 500 are shown
    assert "mlp.experts.*.up_proj" in text


def test_ids_are_unique_and_references_resolve(page):
    read = Reader(page)
    ids = [attributes["id"] for _, attributes in read.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    values = [value or "" for _, attributes in read.elements for value in attributes.values()]
    targets = {found for value in values for found in re.findall(r"url\(#([^)]+)\)|^#(.+)$", value)}
    assert {first or second for first, second in targets} <= set(ids)
    labels = {value for _, attributes in read.elements for key, value in attributes.items() if key == "aria-labelledby"}
    assert labels <= set(ids)


def test_recipe_on_the_page_is_the_recipe(page, manifest):
    from lowdim.core.recipe.text import load

    shown = re.search(r"<h2>Recipe</h2>\s*<pre>(.*?)</pre>", page, re.DOTALL).group(1)
    assert load(shown) == manifest["recipe"]


def test_how_to_repeat_it(page, run):
    text = Reader(page).text
    assert run["command"] in text
    assert "lowdim prune builtin:smollm2-135m owl60 --recipe recipe.yaml" in text


def test_odd_names_are_quoted_in_the_command(small):
    small |= {"recipe": {"sparsity": 0.5}, "model": {"source": "my models/tiny; rm -rf x"}}
    assert "lowdim prune 'my models/tiny; rm -rf x' OUT --recipe" in Reader(render(small, {})).text


def test_fingerprints_are_shown_in_full(page, manifest):
    text = Reader(page).text
    assert manifest["data"]["calibration"]["hash"] in text
    for hash_ in [*manifest["model"]["files"].values(), *manifest["hashes"]["files"].values()]:
        assert hash_ in text


def test_protocol_is_legible(page):
    text = Reader(page).text
    assert "tokenizer, tokens 49,152" in text
    assert r'join "\n\n"' in text
    assert "bos no" in text


def test_matplotlib_is_left_as_it_was(manifest, run):
    before = dict(mpl.rcParams)
    render(manifest, run)
    assert dict(mpl.rcParams) == before
