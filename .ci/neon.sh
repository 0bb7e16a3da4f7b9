#!/usr/bin/env bash
# The kernels for 64-bit Arm, compiled by a cross compiler and fuzzed in an emulator, on a machine of any kind.
# Debian: apt-get install g++-aarch64-linux-gnu qemu-user
set -euo pipefail
cd "$(dirname "$0")/.."
for tool in aarch64-linux-gnu-g++ qemu-aarch64; do
  command -v "$tool" >/dev/null || { echo "$tool is missing (Debian: apt-get install g++-aarch64-linux-gnu qemu-user)" >&2; exit 1; }
done
cmake=cmake
command -v cmake >/dev/null || cmake=.venv/bin/cmake
"$cmake" -S . -B build/neon -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DLOWDIM_WERROR=ON -DLOWDIM_SANITIZE=undefined
"$cmake" --build build/neon --parallel "${JOBS:-2}"
for program in fuzz fuzz_cache; do qemu-aarch64 -L /usr/aarch64-linux-gnu build/neon/$program neon; done
