#!/usr/bin/env bash
# The report is opened in a real browser. Where none can be had, the tests of it skip; in CI that is a failure.
set -uo pipefail
found() { for name in chromium chromium-browser google-chrome; do command -v "$name" && return 0; done; return 1; }
found && exit 0
as_root=()
((EUID == 0)) || as_root=(sudo -n)
if command -v apt-get >/dev/null && { ((EUID == 0)) || sudo -n true 2>/dev/null; }; then
  "${as_root[@]}" apt-get update -qq &&
    DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends chromium >/dev/null
  found && exit 0
fi
if [[ ${CI:-} == true ]]; then
  echo "No Chromium, and it could not be installed: CI refuses to skip the browser tests." >&2
  exit 1
fi
echo "WARNING: no Chromium, and it could not be installed: THE BROWSER TESTS WILL BE SKIPPED." >&2
