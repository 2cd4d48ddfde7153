#!/usr/bin/env bash
# Sets up, then runs the linter, the type checker and the tests.
# bash scripts/test.sh [pytest arguments]
set -euo pipefail
. "$(dirname "$0")/setup.sh"
cd "$root"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy

# one worker a core, whole files each, one thread a worker; then the five slowest tests
export OMP_NUM_THREADS=1
"$PYTHON" -m pytest -n auto --dist loadfile --durations=5 "$@"
