#!/usr/bin/env bash
# Runs the named stages, or these in this order, and stops at the first that fails.
#   checks wheel bare native browser tests
# `checks` is lint, types, imports and docs, as many at a time as there are JOBS; `guarded` runs at night.
set -uo pipefail
cd "$(dirname "$0")/.."
root=$PWD
bin=$root/.venv/bin
wheel_env=$root/build/wheel-env
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 NO_COLOR=1
export DISABLE_MKDOCS_2_WARNING=true NO_MKDOCS_2_WARNING=true
unset PYTHONDONTWRITEBYTECODE # every worker of every stage would rewrite the tests' assertions anew

# Tests write thousands of small files durably: where memory holds them, that takes no time.
room=$(df --output=avail -B1G /dev/shm 2>/dev/null | tail -n 1)
((${room:-0} < 8)) || export PYTEST_DEBUG_TEMPROOT=/dev/shm

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

# Each says what it has to say at its end, in one piece.
checks() {
  printf '%s\n' lint types imports docs | xargs -P "${JOBS:-2}" -I{} bash -c \
    'bash "$0" {} >build/{}.log 2>&1; status=$?; cat build/{}.log; exit $status' "$root/.ci/stages.sh"
}

# `pip wheel` succeeds without the kernels too, and says what the compiler said only if it is asked to be verbose. Without
# --no-cache-dir it takes the wheel that it built from an sdist of the same name before.
build_wheel() {
  rm -rf "$1" && mkdir -p "$1"
  "$bin/python" -m pip wheel --verbose --no-cache-dir --no-build-isolation --no-deps --wheel-dir "$1" "${@:2}" \
    "$root"/build/dist/lowdim-*.tar.gz >"$1/log" 2>&1 || { cat "$1/log" >&2; return 1; }
}

# An environment with the wheel alone, beside the dependencies that .venv already holds. A path named in a .pth file is
# appended as it is and its own .pth files are not read, so the editable install stays out of sight.
install_wheel() {
  rm -rf "$1"
  "$bin/python" -m venv --without-pip "$1"
  "$bin/python" -m pip --python "$1/bin/python" install --quiet --no-deps "$2"/lowdim-*.whl
  "$bin/python" -c 'import site; print(*site.getsitepackages(), sep="\n")' \
    >"$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dependencies.pth"
  (cd / && "$1/bin/python" -c '
import sys, lowdim
assert lowdim.__file__.startswith(sys.prefix), f"lowdim comes from {lowdim.__file__}, not from the wheel"')
}

has_kernels() {
  ls "$1"/lib/python*/site-packages/lowdim/_native || { cat "$2/log" >&2; return 1; }
}

# The wheel is built from the sdist, so that a file missing there is noticed.
wheel() {
  rm -rf build/dist && mkdir -p build/dist
  "$bin/python" -c 'from scikit_build_core.build import build_sdist; build_sdist("build/dist")' >/dev/null
  SKBUILD_BUILD_DIR=$root/build/wheel-native CMAKE_ARGS=-DLOWDIM_WERROR=ON build_wheel build/wheel
  install_wheel "$wheel_env" build/wheel
  has_kernels "$wheel_env" build/wheel
  # `.ci/run` installs the checkout without kernels; it gets the wheel's, so that it computes as fast afterwards.
  ls src/lowdim/_native/liblowdim.* >/dev/null 2>&1 ||
    { mkdir -p src/lowdim/_native && cp "$wheel_env"/lib/python*/site-packages/lowdim/_native/liblowdim.* src/lowdim/_native/; }
  "$wheel_env/bin/lowdim" --version
}

# A machine without a compiler: the same sdist installs, says so, and computes with torch.
bare() {
  CXX=/nonexistent/c++ build_wheel build/bare
  grep '^ *NOTICE: ' build/bare/log
  install_wheel "$root/build/bare-env" build/bare
  pytest_in bare-env tests/infer --ignore "$root/tests/infer/serve" --ignore "$root/tests/infer/bench" \
    -W "ignore:Sparse layers run without compiled kernels"
}

cmake() {
  type -P cmake || echo "$bin/cmake"
}

# What this processor cannot run it cannot check, and those files take most of the time.
sanitized() {
  local levels=()
  ! grep -qs ^flags /proc/cpuinfo || grep -qs avx512_bf16 /proc/cpuinfo || levels=(-DLD_COMPILER_HAS_AVX512=OFF)
  "$(cmake)" -S . -B build/sanitized -DLOWDIM_SANITIZE=address,undefined "${levels[@]}"
  "$(cmake)" --build build/sanitized --parallel "${JOBS:-2}"
}

# The kernels with every access and every undefined operation checked, and fed by the fuzzers.
native() {
  flock build/.sanitized bash .ci/stages.sh sanitized >build/sanitized.log 2>&1 || { cat build/sanitized.log >&2; return 1; }
  CTEST_OUTPUT_ON_FAILURE=1 CTEST_PARALLEL_LEVEL=${JOBS:-2} "$(cmake)" --build build/sanitized --target test
}

# Their tests from Python with those checks (nightly: minutes): arrays of numpy and torch come from the checked allocator
# too. What Python itself never frees is not ours.
guarded() {
  local env=$root/build/sanitized-env
  rm -f build/sanitizer.*
  install_wheel "$env" build/wheel
  cp build/sanitized/liblowdim.* "$env"/lib/python*/site-packages/lowdim/_native/
  LD_PRELOAD="$(c++ -print-file-name=libasan.so) $(c++ -print-file-name=libstdc++.so)" PYTHONMALLOC=malloc \
    ASAN_OPTIONS=detect_leaks=0:log_path=$root/build/sanitizer pytest_in sanitized-env tests/native \
    --ignore "$root/tests/native/test_machine_code.py" || { cat build/sanitizer.* >&2; return 1; }
}

# pytest_in ENVIRONMENT TESTS [OPTIONS]
pytest_in() {
  (mkdir -p build/elsewhere && cd build/elsewhere && "$root/build/$1/bin/python" -m pytest -c "$root/pyproject.toml" --rootdir "$root" \
    -n "${JOBS:-2}" -q "${@:3}" "$root/$2")
}

browser() {
  bash .ci/chromium.sh
}

# The tests and the doctests see the wheel, from a folder that holds nothing else. One more than JOBS: tests of killed runs,
# servers and ranks wait for processes.
tests() {
  rm -rf build/elsewhere && mkdir -p build/elsewhere && cd build/elsewhere || return 1
  export PATH=$wheel_env/bin:$PATH
  "$wheel_env/bin/python" -m pytest -c "$root/pyproject.toml" --rootdir "$root" -n "$((${JOBS:-2} + 1))" \
    --pyargs "$root/tests" lowdim | tee "$root/build/pytest.log"
}

stages=("${@:-}")
[[ -n ${stages[0]} ]] || stages=(checks wheel bare native browser tests)
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
