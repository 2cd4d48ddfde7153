#!/usr/bin/env bash
# The name of the reference's script: COCO-20i, 1-shot, of one fold.
[ $# -ge 2 ] || { echo "usage: bash $0 MODEL_DIR FOLD [key=value ...]" >&2; exit 2; }
exec bash "$(dirname "$0")/eval.sh" "$1" shots=1 fold="$2" "${@:3}"
