#!/usr/bin/env bash
# Evaluates a weight dir; the last line is the mIoU.
# bash scripts/eval.sh WEIGHT_DIR [key=value ...]
set -euo pipefail
. "$(dirname "$0")/setup.sh"
usage="usage: bash scripts/eval.sh WEIGHT_DIR [key=value ...]"
[ $# -ge 1 ] || { echo "$usage   (keys: python -m diffews eval --help)" >&2; exit 2; }
case $1 in -h | --help) exec "$PYTHON" -m diffews eval --help ;; esac
weight=$1
shift
exec "$PYTHON" -m diffews eval weight="$weight" "$@"
