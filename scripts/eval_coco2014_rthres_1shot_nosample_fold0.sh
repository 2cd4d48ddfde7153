#!/usr/bin/env bash
# The name in the reference's README: COCO-20i, 1-shot, fold 0 unless another is given.
exec bash "$(dirname "$0")/eval.sh" "${1:?usage: $0 WEIGHT_DIR [key=value ...]}" shots=1 fold=0 "${@:2}"
