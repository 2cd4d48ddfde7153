#!/usr/bin/env bash
# Fuzzes every command with damaged files and odd words; exit code 1 if one ends as none should.
# bash scripts/fuzz.sh [SEED] [--cases N] [--only INDEX ...]     (2,000 cases: 10 minutes on 2 cores)
set -euo pipefail
. "$(dirname "$0")/setup.sh"
export OMP_NUM_THREADS=1
exec "$PYTHON" "$root/tests/fuzz/fuzz.py" "$@"
