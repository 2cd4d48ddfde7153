#!/usr/bin/env bash
# Measures time, memory and arithmetic on this machine; the last line is JSON.
# bash scripts/benchmark.sh [key=value ...]
set -euo pipefail
. "$(dirname "$0")/setup.sh"
exec "$PYTHON" -m diffews benchmark "$@"
