#!/usr/bin/env bash
# Runs the named stages, or all of them in this order, and stops at the first that fails.
#   lint types imports docs wheel browser tests
set -uo pipefail
cd "$(dirname "$0")/.."
root=$PWD
bin=$root/.venv/bin
wheel_env=$root/build/wheel-env
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 NO_COLOR=1
export DISABLE_MKDOCS_2_WARNING=true NO_MKDOCS_2_WARNING=true

lint() {
  "$bin/ruff" format --check . && "$bin/ruff" check .
}

types() {
  "$bin/mypy"
}

imports() {
  "$bin/lint-imports"
}

docs() {
  "$bin/mkdocs" build --strict --quiet --site-dir build/site
}

# The environment of the tests: the wheel alone, beside the dependencies that .venv already holds. A path named in a
# .pth file is appended as it is and its own .pth files are not read, so the editable install stays out of sight.
wheel() {
  rm -rf build/dist "$wheel_env" &&
    "$bin/hatchling" build --directory build/dist >/dev/null &&
    "$bin/python" -m venv --without-pip "$wheel_env" &&
    "$bin/python" -m pip --python "$wheel_env/bin/python" install --quiet --no-deps build/dist/lowdim-*.whl &&
    "$bin/python" -c 'import site; print(*site.getsitepackages(), sep="\n")' \
      >"$("$wheel_env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dependencies.pth" &&
    cd / && "$wheel_env/bin/python" -c '
import sys, lowdim
assert lowdim.__file__.startswith(sys.prefix), f"lowdim comes from {lowdim.__file__}, not from the wheel"
print("lowdim", lowdim.__version__, "from the wheel")' &&
    "$wheel_env/bin/lowdim" --version
}

browser() {
  bash .ci/chromium.sh
}

# The tests and the doctests see the wheel, from a folder that holds nothing else.
tests() {
  rm -rf build/elsewhere && mkdir -p build/elsewhere && cd build/elsewhere || return 1
  export COVERAGE_FILE=$root/build/coverage.wheel PATH=$wheel_env/bin:$PATH
  "$wheel_env/bin/python" -m pytest -c "$root/pyproject.toml" --rootdir "$root" -n "${JOBS:-2}" \
    --cov --cov-config "$root/pyproject.toml" --cov-report= --pyargs "$root/tests" lowdim | tee "$root/build/pytest.log" || return 1
  export COVERAGE_FILE=$root/build/coverage
  cd "$root" && "$bin/coverage" combine --quiet build/coverage.wheel && "$bin/coverage" report
}

stages=("${@:-}")
[[ -n ${stages[0]} ]] || stages=(lint types imports docs wheel browser tests)
mkdir -p build
rows=()
for stage in "${stages[@]}"; do
  echo "── $stage"
  start=$SECONDS
  (set -e -o pipefail; "$stage")
  status=$?
  rows+=("$(printf '%-10s %5d s' "$stage" $((SECONDS - start)))")
  if ((status)); then
    echo "── $stage FAILED after $((SECONDS - start)) s" >&2
    exit $status
  fi
done
echo "── seconds per stage"
printf '%s\n' "${rows[@]}"
[[ " ${stages[*]} " != *" tests "* ]] || tail -n 1 build/pytest.log
