#!/usr/bin/env bash
# Turns `pip freeze` into constraints: no torch (requirements/torch.txt says which), nothing of CUDA, no local files.
echo "# Versions that CI runs with; written by \`make pins\`. Users get the lower bounds of pyproject.toml instead."
grep -E '^[A-Za-z0-9._-]+==' | grep -viE '^(torch|triton|lowdim|pip|setuptools|wheel|nvidia-[a-z0-9-]*|cuda-[a-z0-9-]*)==' | LC_ALL=C sort -f
