from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from lowdim.core import registry


def test_the_table_has_every_method(run) -> None:
    out = run("methods").stdout
    for method in registry.methods():
        assert method.name in out
        assert method.arxiv in out


def test_json_holds_settings_with_their_defaults(run) -> None:
    rows = json.loads(run("methods", "--json").stdout)
    assert {(row["kind"], row["name"]) for row in rows} == {(m.kind, m.name) for m in registry.methods()}
    sparsegpt = next(row for row in rows if row["name"] == "sparsegpt")
    assert sparsegpt["settings"] == {"damping": 0.01, "block": 128}
    assert (sparsegpt["arxiv"], sparsegpt["year"]) == ("2301.00774", 2023)
    pools = next(row for row in rows if row["name"] == "lottery-pools")
    assert pools["settings"]["coefficients"][:2] == [0.05, 0.1]


def test_one_kind_alone(run) -> None:
    rows = json.loads(run("methods", "--json", "--kind", "repair").stdout)
    assert [row["name"] for row in rows] == registry.names("repair")


def test_an_unknown_kind_is_refused(run) -> None:
    done = run("methods", "--kind", "repairs")
    assert done.exit_code == 2
    assert "'repairs'" in done.stderr
    assert "Did you mean 'repair'?" in done.stderr


@pytest.mark.parametrize("kind", list(registry.KINDS))
def test_every_kind_has_methods(run, kind: str) -> None:
    assert json.loads(run("methods", "--json", "--kind", kind).stdout)


def test_what_is_registered_appears_everywhere() -> None:
    code = """
import sys
from lowdim.core import registry
registry.register("repair", "novel", "lowdim.prune.repair.none:NoRepair", title="A novel repair")
sys.path.insert(0, sys.argv[1])
from typer.testing import CliRunner
from lowdim.cli import app
run = CliRunner().invoke
print("novel" in run(app, ["methods"]).output, "novel" in run(app, ["prune", "--help"], env={"COLUMNS": "300"}).output)
if len(sys.argv) > 2:
    import hooks
    print("A novel repair" in hooks.methods())
"""
    docs = Path(__file__).parents[2] / "docs"
    with_docs = [] if importlib.util.find_spec("mkdocs") is None else ["docs"]
    done = subprocess.run([sys.executable, "-c", code, str(docs), *with_docs], capture_output=True, text=True)
    assert done.stdout.split() == ["True"] * (2 + len(with_docs)), done.stdout + done.stderr
