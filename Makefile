# Needs Python 3.11+, and a C++17 compiler for the kernels that make pruned models fast. Everything is installed into .venv;
# nothing outside this folder changes, except that `make test` installs Debian's chromium where it is missing and may.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v $$p; break; }; done)
VENV   := .venv
BIN    := $(VENV)/bin
JOBS   ?= 2
PIP    := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint requirements/constraints.txt

.PHONY: demo test lint format native docs serve-docs nightly coverage oldest neon bench pins clean help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:[^#]*## /\t/' | expand -t 14

demo: $(VENV)/.installed ## prune the embedded model, recover it, round it, measure it beside its rivals, check it
	$(BIN)/python -m lowdim prune builtin:smollm2-135m runs/demo --recipe examples/demo.yaml --overwrite
	$(BIN)/python -m lowdim verify runs/demo

test: $(VENV)/.installed-dev ## everything that CI runs: lint, types, imports, docs, the wheel, the tests
	JOBS=$(JOBS) bash .ci/stages.sh

lint: $(VENV)/.installed-dev ## format check, lint, types, direction of imports
	bash .ci/stages.sh lint types imports

format: $(VENV)/.installed-dev ## rewrite the sources in the house style
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

native: ## compile the C++ kernels again, after an edit in csrc/
	@test -x $(BIN)/python || $(MAKE) --no-print-directory $(VENV)/.installed
	@test -f build/native/cmake_install.cmake || { rm -rf build/native; $(PIP) --no-build-isolation --no-deps --editable .; }
	@test -f build/native/cmake_install.cmake || { echo "The kernels need a C++17 compiler; CMake finds none that works." >&2; exit 1; }
	@PATH="$(CURDIR)/$(BIN):$$PATH" && cmake --build build/native && cmake --install build/native

docs: $(VENV)/.installed-dev ## build the site into site/
	bash .ci/stages.sh docs

serve-docs: $(VENV)/.installed-dev ## the site at a local address, rebuilt on every save
	$(BIN)/mkdocs serve

nightly: $(VENV)/.installed-dev ## the slow tests, the kernels' under sanitizers, coverage, the oldest dependencies we claim, the kernels for Arm
	$(BIN)/python -m pytest -m "slow or nightly"
	JOBS=$(JOBS) bash .ci/stages.sh wheel native guarded
	$(MAKE) coverage oldest neon

coverage: $(VENV)/.installed-dev ## the tests again, and the lines and branches that none of them takes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --cov --cov-report=term-missing:skip-covered

oldest: $(VENV)/.installed-dev ## the tests with every dependency but torch at its lower bound
	bash .ci/oldest.sh

bench: $(VENV)/.installed-dev ## the tables of docs/benchmarks.md and docs/runtime.md, measured on this machine
	$(BIN)/python benchmarks/runtime.py
	$(BIN)/python benchmarks/curves.py
	$(BIN)/python benchmarks/prune.py
	$(BIN)/python benchmarks/quality.py

neon: $(VENV)/.installed-dev ## the kernels for 64-bit Arm, cross-compiled and fuzzed in an emulator (Debian: g++-aarch64-linux-gnu qemu-user)
	bash .ci/neon.sh

pins: $(VENV)/.installed-dev ## write what is installed now into requirements/constraints.txt
	$(BIN)/python -m pip freeze --all --exclude-editable | bash .ci/pins.sh > requirements/.new
	mv requirements/.new requirements/constraints.txt

clean: ## remove what the targets above made; the download cache stays
	rm -rf $(VENV) .venv-* build dist site .coverage* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# A torch that the machine already has (its CUDA build, say) is used as it is; without one, the pinned one is installed.
$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "lowdim needs Python 3.11 or newer; none was found (set PYTHON=/path/to/python3)." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || { echo "$(PYTHON) has no venv module (Debian: apt-get install python3-venv)." >&2; exit 1; }
	@echo "Making $(VENV) with $(PYTHON); the first time takes a few minutes."
	@$(PYTHON) -m venv $$($(PYTHON) -c 'import torch' 2>/dev/null && echo --system-site-packages) $(VENV)

$(VENV)/.installed: pyproject.toml requirements/constraints.txt requirements/torch.txt CMakeLists.txt $(wildcard csrc/*) | $(VENV)/bin/python
	@$(BIN)/python -c 'import torch' 2>/dev/null || { echo "Installing torch"; $(PIP) -r requirements/torch.txt; }
	@echo "Installing lowdim"
	@$(PIP) scikit-build-core
	@$(PIP) scikit-build-core $$($(BIN)/python -c 'import scikit_build_core.build as b; print(*b.get_requires_for_build_editable())')
	@rm -rf src/lowdim/_native
	@$(PIP) --no-build-isolation --editable '.[serve]'
	@ls src/lowdim/_native >/dev/null 2>&1 || echo "NOTICE: no C++17 compiler (or it failed: make native). lowdim is" \
		"installed without its kernels and computes with torch: the same numbers, no speed-up from sparsity." >&2
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing what the tests need"
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@
