#!/usr/bin/env bash
# Trains with the reference's recipe; keys override it.
# bash scripts/train.sh base=DIR data=DIR fold=0 shots=7 out=DIR
set -euo pipefail
. "$(dirname "$0")/setup.sh"
exec "$PYTHON" -m diffews train config="$root/configs/train.yaml" "$@"
