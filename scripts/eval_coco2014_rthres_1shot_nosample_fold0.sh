#!/usr/bin/env bash
# The name in the reference's README: COCO-20i, 1-shot, fold 0 unless another is given.
[ $# -ge 1 ] || { echo "usage: bash $0 WEIGHT_DIR [key=value ...]" >&2; exit 2; }
exec bash "$(dirname "$0")/eval.sh" "$1" shots=1 fold=0 "${@:2}"
