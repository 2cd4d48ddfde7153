#!/usr/bin/env bash
# Sets up, makes the shapes benchmark, evaluates the shipped tiny weights on novel classes, prints a
# table, draws a panel.
# bash scripts/demo.sh [OUT]     (OUT: results/demo)
set -euo pipefail
. "$(dirname "$0")/setup.sh"
out=${1:-results/demo}
data=$out/shapes
weight=$root/weight/tiny/shapes_fold0
episodes=${EPISODES:-600}

[ -d "$data/COCO2014" ] || "$PYTHON" -m diffews make-shapes out="$data" seed=1
for shots in 1 5; do # the same queries for both
  "$PYTHON" -m diffews eval weight="$weight" data="$data" shots=$shots drawn_shots=5 \
    episodes="$episodes" out="$out/${shots}shot" pictures=12 | tail -n 1
done
echo
"$PYTHON" -m diffews baselines weight="$weight" data="$data" drawn_shots=5 episodes="$episodes" \
  runs="$out/1shot,$out/5shot" out="$out/table.json"
echo
cat <<END
support (blue), query, prediction (red), truth (green) of novel classes: $out/1shot/pictures.png
train such a model from nothing, in about half an hour on two cores:  \
bash scripts/make_tiny.sh runs/tiny 0
END
