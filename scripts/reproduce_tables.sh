#!/usr/bin/env bash
# Evaluates whatever weights are there and prints the paper's tables 2 (strict) and 1 (in-context)
# beside the published figures. Interrupt it and start it again: it goes on.
# bash scripts/reproduce_tables.sh [weights=DIR] [data=DIR] [out=DIR] [key=value ...]
# Other keys go to `diffews eval`.
# Strict: weights/coco_fold0 .. coco_fold3.  In-context: weights/incontext.
set -euo pipefail
trap 'exit 130' INT
. "$(dirname "$0")/setup.sh"
weights=$root/weight data=$root/datasets out=results/tables keys=()
for word in "$@"; do
  case $word in
    weights=*) weights=${word#*=} ;;
    data=*) data=${word#*=} ;;
    out=*) out=${word#*=} ;;
    *) keys+=("$word") ;;
  esac
done
strict=() incontext=() missing=() failed=()
[ -d "$data/COCO2014" ] || missing+=("$data/COCO2014")

evaluate() { # evaluate WEIGHT BENCHMARK FOLD SHOTS: the folder of the run is left in $run
  run=$out/$(basename "$1")/$2_fold$3_$4shot
  echo "$2, fold $3, $4-shot, $1" >&2
  "$PYTHON" -m diffews eval weight="$1" data="$data" benchmark="$2" fold="$3" \
    shots="$4" out="$run" "${keys[@]}" | tail -n 1 >&2
}

for fold in 0 1 2 3; do
  weight=$weights/coco_fold$fold
  [ -d "$weight" ] || { missing+=("$weight"); continue; }
  [ -d "$data/COCO2014" ] || continue
  for shots in 1 5; do
    if evaluate "$weight" coco20i $fold $shots; then strict+=("$run"); else failed+=("$run"); fi
  done
done
if [ -d "$weights/incontext" ]; then
  for plan in COCO2014:coco20i:4 VOC2012:pascal5i:4 LVIS:lvis92i:10; do
    IFS=: read -r folder benchmark folds <<<"$plan"
    [ -d "$data/$folder" ] || { [ "$folder" = COCO2014 ] || missing+=("$data/$folder"); continue; }
    for ((fold = 0; fold < folds; fold++)); do
      for shots in 1 5; do
        if evaluate "$weights/incontext" $benchmark $fold $shots; then incontext+=("$run")
        else failed+=("$run"); fi
      done
    done
  done
else
  missing+=("$weights/incontext")
fi

show() { # show TITLE SETTING RUN ...
  local IFS=,
  printf '\n## %s\n\n' "$1"
  "$PYTHON" -m diffews table setting="$2" runs="${*:3}"
}
[ ${#strict[@]} -eq 0 ] || show "Table 2: strict few-shot" strict "${strict[@]}"
[ ${#incontext[@]} -eq 0 ] || show "Table 1: in-context" in-context "${incontext[@]}"
for name in "${missing[@]}"; do echo "missing, so left out: $name"; done
for name in "${failed[@]}"; do echo "failed, so left out: $name"; done
[ ${#strict[@]} -gt 0 ] || [ ${#incontext[@]} -gt 0 ] ||
  { echo "nothing to evaluate; see weight/README.md" >&2; exit 2; }
