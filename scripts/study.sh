#!/usr/bin/env bash
# Trains the paper's variants on shapes, compares them, writes docs/study.md.   bash scripts/study.sh OUT [JOBS]
# The report alone, from what is finished, into docs/ or another folder:        bash scripts/study.sh OUT report [DOCS]
[ $# -ge 1 ] || { echo "usage: bash $0 OUT [JOBS at a time, one a core by default] | OUT report [DOCS]" >&2; exit 2; }
set -euo pipefail
. "$(dirname "$0")/setup.sh"
if [ "${2:-}" = report ]; then
  exec "$PYTHON" "$root/scripts/study/report.py" "$1" "${@:3}"
fi
exec "$PYTHON" "$root/scripts/study/run.py" "$@"
