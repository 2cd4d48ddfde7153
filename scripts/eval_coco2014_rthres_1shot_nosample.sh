#!/usr/bin/env bash
# The reference's name: COCO-20i, 1-shot, relative threshold; the fold is read from the weight dir's name.
exec bash "$(dirname "$0")/eval.sh" "${1:?usage: $0 WEIGHT_DIR [key=value ...]}" shots=1 "${@:2}"
