#!/usr/bin/env bash
# Sets up, makes the shapes benchmark, evaluates the shipped tiny weights on novel classes (the
# paper's recipe, and ours: DiffewS+), prints a table, draws a panel.
# bash scripts/demo.sh [OUT]     (OUT: results/demo)
set -euo pipefail
. "$(dirname "$0")/setup.sh"
out=${1:-results/demo}
data=$out/shapes
tiny=$root/weight/tiny
episodes=${EPISODES:-600}

[ -d "$data/COCO2014" ] || "$PYTHON" -m diffews make-shapes out="$data" seed=1
keys=(data="$data" drawn_shots=5 episodes="$episodes") # the same queries for all
for shots in 1 5; do
  "$PYTHON" -m diffews eval weight="$tiny/shapes_fold0" shots=$shots "${keys[@]}" \
    out="$out/${shots}shot" pictures=12 | tail -n 1
done
"$PYTHON" -m diffews eval weight="$tiny/plus_fold0" "${keys[@]}" out="$out/plus_1shot" | tail -n 1

# the same queries, and each once more for a class that it does not hold
"$PYTHON" -m diffews eval weight="$tiny/shapes_fold0" "${keys[@]}" episodes=$(((episodes + 2) / 3)) \
  absent=true batch=10 out="$out/absent" > "$out/absent.txt"
echo
"$PYTHON" -m diffews baselines weight="$tiny/shapes_fold0" "${keys[@]}" \
  runs="$out/1shot,$out/5shot,$out/plus_1shot" \
  names="DiffewS 1-shot,DiffewS 5-shot,DiffewS+ 1-shot" out="$out/table.json"
echo
echo "is the class there at all? (docs/presence.md)"
grep -E "^(absent|gate)" "$out/absent.txt"
echo
cat <<END
DiffewS is the paper's recipe; DiffewS+ is ours, a second stage of training: docs/training.md
support (blue), query, prediction (red), truth (green) of novel classes: $out/1shot/pictures.png
train such a model from nothing, in about half an hour on two cores:  \
bash scripts/make_tiny.sh runs/tiny 0
END
