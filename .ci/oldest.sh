#!/usr/bin/env bash
# An environment of its own with every lower bound of pyproject.toml turned into "==", except torch, and the tests in it.
set -euo pipefail
cd "$(dirname "$0")/.."
env=build/oldest-env
rm -rf "$env"
.venv/bin/python -m venv "$env"
"$env/bin/python" - <<'PY' >build/oldest.txt
import re, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extras = project["optional-dependencies"]
for line in project["dependencies"] + extras["data"] + extras["serve"]:
    name, floor = re.match(r"([\w.-]+)>=([\w.]+)", line).groups()
    if name != "torch":
        print(f"{name}=={floor}.*")
PY
cat build/oldest.txt
"$env/bin/python" -m pip install --quiet -r requirements/torch.txt
"$env/bin/python" -m pip install --quiet --constraint build/oldest.txt '.[test]'
# Old releases warn about new ones: here a warning is no error.
OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 "$env/bin/python" -m pytest -W default -n "${JOBS:-2}" tests
