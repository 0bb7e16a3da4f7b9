"""The command line is what scripts rely on: a change here is a change for every user."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from lowdim.cli import app

ROOT = Path(__file__).parents[2]

SURFACE = {
    "prune": """MODEL OUT --sparsity --method --repair --allocation --pattern --refine --quantize --true-sequential
        --calibration --samples --context --seed --storage --dtype --set --recipe --revision --resume
        --overwrite --dry-run --trust-remote-code --quiet -q --debug""",
    "recover": """MODEL OUT --teacher --minutes --stage --mask --method --quantize --calibration --samples --context
        --seed --storage --set --recipe --revision --resume --overwrite --dry-run --trust-remote-code --quiet -q
        --debug""",
    "finetune": """MODEL OUT --data --method --objective --epochs --steps --seed --set --recipe --trust-remote-code
        --resume --overwrite --dry-run --quiet -q --debug""",
    "pretrain": "--recipe --out --set --trust-remote-code --resume --overwrite --dry-run --quiet -q --debug",
    "search-decay": """--recipe --set --decays --steps --least --most --trust-remote-code --json --quiet -q --debug""",
    "distill-draft": """TARGET --draft --out --method --text --steps --tune --measure --seed --set --recipe
        --trust-remote-code --resume --overwrite --dry-run --quiet -q --debug""",
    "rank": """DATA --out --net --tune --method --text --label --id --size --skip-unreadable --limit --validation --seed
        --set --resume --overwrite --quiet -q --debug""",
    "train-sparse": """--recipe --out --data --net --method --sparsity --allocation --epochs --batch --lr --twins
        --objective --sampler --ranks --groups --seed --set --resume --overwrite --quiet -q --debug""",
    "plan-training": """MODEL --optimizer --rank --layerwise --batch --length --dtype --memory --revision
        --trust-remote-code --json --debug""",
    "evaluate": """MODEL --text --context --windows --tasks --limit --bos --seed --compute --revision --json
        --trust-remote-code --quiet -q --debug""",
    "front": """MODEL --out --recover --minutes --forms --budget-mb --text --windows --context --tasks --limit
        --bos --calibration --samples --tokens --seed --trust-remote-code --resume --json --quiet -q --debug""",
    "compose": """MODEL OUT --stages --orders --verify --text --windows --tasks --limit --seed --set --recipe
        --trust-remote-code --keep --resume --dry-run --json --quiet -q --debug""",
    "stress": """MODEL --out --grid --method --recover --tolerance --tasks --limit --text --windows --context --bos
        --calibration --samples --seed --set --recipe --trust-remote-code --keep --resume --json --quiet -q --debug""",
    "inspect": """MODEL --calibration --samples --context --outliers --alpha --layers --essential --junk-dna
        --difficulty --grid --text --windows --limit --bos --seed --compute --revision --json --quiet -q --debug
        --trust-remote-code""",
    "diagnose": """MODEL --text --windows --context --measures --probes --bos --seed --compute --revision
        --trust-remote-code --html --json --quiet -q --debug""",
    "sweep": "--recipe --out --jobs --index --dry-run --quiet -q --debug",
    "bench": """MODEL --shape --sparsity --dtype --cache --tokens --threads --text --bos --revision --json --quiet -q
        --debug --trust-remote-code""",
    "generate": """MODEL PROMPT --max-tokens --temperature --top-k --top-p --repetition-penalty --stop --seed
        --dtype --cache --threads --chat --system --revision --trust-remote-code --quiet -q --debug""",
    "serve": """MODEL --host --port --api-key-file --name --dtype --cache --cache-memory --threads --max-concurrent
        --queue --max-tokens --context --timeout --revision --trust-remote-code --debug""",
    "methods": "--kind --json --debug",
    "verify": "OUT --text --trust-remote-code --debug",
    "convert": "SOURCE OUT --storage --dtype --group --subnet --trust-remote-code --overwrite --debug",
    "report": "OUT --html --debug",
}


def surface() -> dict[str, set[str]]:
    program = typer.main.get_command(app)
    found = {}
    for name, command in program.commands.items():  # type: ignore[attr-defined]
        options = [option for parameter in command.params for option in parameter.opts if option.startswith("-")]
        arguments = [p.name.upper() for p in command.params if not p.opts[0].startswith("-")]
        found[name] = {*options, *arguments} - {"--help", "-h"}
    return found


def test_commands_and_flags_are_frozen() -> None:
    assert {name: sorted(flags) for name, flags in surface().items()} == {
        name: sorted(flags.split()) for name, flags in SURFACE.items()
    }


def test_every_command_explains_itself_and_every_flag(run) -> None:
    for name, flags in surface().items():
        done = run(name, "--help")
        assert done.exit_code == 0
        for flag in flags:
            assert flag in done.output
    for command in typer.main.get_command(app).commands.values():  # type: ignore[attr-defined]
        assert all(parameter.help for parameter in command.params)


def test_help_and_the_list_of_methods_import_no_torch() -> None:
    program = (
        "import sys; from lowdim.cli import app\n"
        "for arguments in (['--help'], ['prune', '--help'], ['methods'], ['methods', '--json']):\n"
        "    try: app(arguments)\n"
        "    except SystemExit as done: assert not done.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(sorted(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("chosen", [{}, {"KMP_BLOCKTIME": "1"}])
def test_threads_sleep_while_they_wait_unless_the_user_chose(chosen: dict[str, str]) -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    program = (
        "import os, sys; from lowdim.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules\n"
        f"print({{name: os.environ[name] for name in {names} if name in os.environ}})"
    )
    environment = {name: value for name, value in os.environ.items() if name not in names} | chosen
    done = subprocess.run(
        [sys.executable, "-c", program, "--version"], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.splitlines()[1] == str(chosen or {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"})


def test_what_the_readme_shows_after_the_demo_runs_with_what_the_demo_installs() -> None:
    makefile, readme = ((ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", "README.md"))
    assert re.search(r"^demo: \$\(VENV\)/\.installed ", makefile, re.MULTILINE)
    (extras,) = re.findall(
        r"--editable '?\.(.*?)'?$", makefile.partition("$(VENV)/.installed:")[2].partition("dev:")[0], re.M
    )
    assert "lowdim serve runs/demo" in readme
    assert extras == "[serve]"


def test_version(run) -> None:
    from importlib.metadata import version

    assert run("--version").output == f"lowdim {version('lowdim')}\n"


def test_no_arguments_show_the_help(run) -> None:
    assert "Commands" in run().output


DRY = [name for name, words in SURFACE.items() if "--dry-run" in words.split()]
IDLE = ("--resume", "--overwrite", "--keep", "--json")
NEEDED = {"MODEL": "m", "OUT": "o", "TARGET": "t", "--recipe": "r.yaml", "--out": "o"}


def parts_of(name: str) -> list[str]:
    """Return arguments that a command's parser takes, for things that are not there."""
    words = SURFACE[name].split()
    placed = [NEEDED[word] for word in words if word in NEEDED and word.isupper()]
    return [*placed, *(["--recipe", "r.yaml", "--out", "o"] if name == "sweep" else [])]


@pytest.mark.parametrize(("name", "flag"), [(n, f) for n in DRY for f in IDLE if f in SURFACE[n].split()])
def test_a_flag_of_a_run_is_refused_beside_a_plan(name: str, flag: str, run) -> None:
    done = run(name, *parts_of(name), "--dry-run", flag, *(["f.json"] if flag == "--json" else []))
    assert done.exit_code == 2
    assert f"{flag} changes nothing beside --dry-run" in done.output


@pytest.mark.parametrize("name", ["rank", "train-sparse"])
@pytest.mark.parametrize("flag", ["--resume", "--overwrite"])
def test_an_output_that_is_not_asked_for_is_neither_resumed_nor_replaced(name: str, flag: str, run) -> None:
    done = run(name, *(["digits"] if name == "rank" else []), flag)
    assert done.exit_code == 2
    assert f"{flag[2:]} is about an output" in done.output


def test_an_unknown_flag_is_a_usage_error_with_a_suggestion(run) -> None:
    done = run("prune", "a", "b", "--sparsty", "0.5")
    assert done.exit_code == 2
    assert "--sparsity" in done.output


def test_a_flag_of_the_wrong_type_is_a_usage_error(run) -> None:
    done = run("prune", "a", "b", "--samples", "many")
    assert done.exit_code == 2
    assert "--samples" in done.output


FILES = [(name, flag) for name, words in SURFACE.items() for flag in ("--json", "--html") if flag in words.split()]


@pytest.mark.parametrize(("name", "flag"), [pair for pair in FILES if pair != ("methods", "--json")])
@pytest.mark.parametrize("place", ["folder", "missing", "closed", "sealed"])
def test_a_file_that_cannot_be_written_is_refused_first(
    name: str, flag: str, place: str, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        os, "access", lambda path, mode: mode != os.W_OK or not {"closed", "sealed"} & set(Path(path).parts)
    )  # root may all
    (tmp_path / "folder").mkdir()
    (tmp_path / "closed").mkdir()
    (tmp_path / "sealed").touch()
    given, said = {
        "folder": ("folder", "is a folder. Name a file in it"),
        "missing": ("missing/x", "there is no folder"),
        "closed": ("closed/x", "may not be written"),
        "sealed": ("sealed", "may not be written"),
    }[place]
    done = run(name, *parts_of(name), flag, tmp_path / given)
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())
