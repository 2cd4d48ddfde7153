#!/usr/bin/env bash
# Proves that a change changed no number: this checkout against another commit, byte for byte.
# bash scripts/same.sh [REV] [--quick]     (what it does and how long it takes: --help)
set -euo pipefail
. "$(dirname "$0")/setup.sh"
exec "$PYTHON" "$root/scripts/same.py" "$@"
