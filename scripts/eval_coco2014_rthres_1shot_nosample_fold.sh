#!/usr/bin/env bash
# The name of the reference's script: COCO-20i, 1-shot, of one fold.
exec bash "$(dirname "$0")/eval.sh" "${1:?usage: $0 MODEL_DIR FOLD [key=value ...]}" shots=1 fold="${2:?usage: $0 MODEL_DIR FOLD}" "${@:3}"
