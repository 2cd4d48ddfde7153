#!/usr/bin/env bash
# Measures time and memory on this machine, and prints a table; json=FILE keeps every run.
# bash scripts/benchmark.sh [key=value ...]
set -euo pipefail
. "$(dirname "$0")/setup.sh"
exec "$PYTHON" -m diffews benchmark "$@"
