#!/usr/bin/env bash
# Makes .venv and installs what requirements.txt pins, once; with PYTHON=/path/to/python that
# environment is used as it is.
# Other scripts source this file and then call "$PYTHON".
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -z "${PYTHON:-}" ]; then
  PYTHON=$root/.venv/bin/python
  wanted=$(cksum <"$root/requirements.txt")
  if [ "$(cat "$root/.venv/installed" 2>/dev/null)" != "$wanted" ]; then
    echo "setting up $root/.venv" >&2
    "${PYTHON_FOR_VENV:-python3}" -m venv "$root/.venv" >&2
    "$PYTHON" -m pip install -q --disable-pip-version-check -r "$root/requirements.txt" >&2
    "$PYTHON" -m pip install -q --disable-pip-version-check --no-deps -e "$root" >&2
    echo "$wanted" >"$root/.venv/installed"
  fi
fi
export PYTHON PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
