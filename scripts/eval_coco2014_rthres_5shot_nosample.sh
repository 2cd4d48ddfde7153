#!/usr/bin/env bash
# The reference's name: COCO-20i, 5-shot, relative threshold;
# the fold is read from the weight dir's name.
[ $# -ge 1 ] || { echo "usage: bash $0 WEIGHT_DIR [key=value ...]" >&2; exit 2; }
exec bash "$(dirname "$0")/eval.sh" "$1" shots=5 "${@:2}"
