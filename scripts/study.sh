#!/usr/bin/env bash
# Trains the paper's variants on shapes, compares them, writes docs/study.md.
# bash scripts/study.sh OUT [JOBS]          JOBS at a time, one a core by default
# bash scripts/study.sh OUT report [DOCS]   the report alone, from what is finished
[ $# -ge 1 ] || { echo "usage: bash $0 OUT [JOBS] | OUT report [DOCS]" >&2; exit 2; }
set -euo pipefail
. "$(dirname "$0")/setup.sh"
exec "$PYTHON" "$root/scripts/study/run.py" "$@"
