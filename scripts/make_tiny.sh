#!/usr/bin/env bash
# Trains the tiny weights from nothing: shapes, VAE, and the UNet of each fold, by the paper's recipe
# and by ours (DiffewS+, a second stage); then measures them on other shapes. weight/tiny was made by  bash scripts/make_tiny.sh runs/tiny
# bash scripts/make_tiny.sh OUT [FOLD ...]     (all four folds)
[ $# -ge 1 ] || { echo "usage: bash $0 OUT [FOLD ...]" >&2; exit 2; }
set -euo pipefail
. "$(dirname "$0")/setup.sh"
out=$1
shift
diffews() { "$PYTHON" -m diffews "$@"; }

[ -d "$out/shapes_seed0" ] || diffews make-shapes out="$out/shapes_seed0" seed=0 # to train on
[ -d "$out/shapes_seed1" ] || diffews make-shapes out="$out/shapes_seed1" seed=1 # to test on
[ -d "$out/base" ] || diffews make-tiny-base data="$out/shapes_seed0" out="$out/base"
[ -d "$out/decoder" ] || diffews distill-decoder base="$out/base" out="$out/decoder" device=cpu
for fold in ${*:-0 1 2 3}; do
  diffews train config="$root/configs/tiny.yaml" base="$out/base" \
    data="$out/shapes_seed0" fold="$fold" cache="$out/cache_fold$fold" \
    out="$out/train_fold$fold" resume=latest
  [ -d "$out/shapes_fold$fold" ] ||
    diffews export weight="$out/train_fold$fold" out="$out/shapes_fold$fold"

  diffews train config="$root/configs/tiny_plus.yaml" base="$out/base" \
    init="$out/shapes_fold$fold" decoder="$out/decoder" data="$out/shapes_seed0" fold="$fold" \
    cache="$out/cache_fold$fold" out="$out/plus_train_fold$fold" resume=latest
  [ -d "$out/plus_fold$fold" ] ||
    diffews export weight="$out/plus_train_fold$fold" out="$out/plus_fold$fold"

  # whether a query holds the class at all: a head on each, and its measures
  for name in shapes plus; do
    [ -d "$out/${name}_fold$fold/presence" ] ||
      diffews train-presence weight="$out/${name}_fold$fold" data="$out/shapes_seed0" \
        queries=3000 device=cpu
    diffews eval weight="$out/${name}_fold$fold" data="$out/shapes_seed1" absent=true \
      episodes=300 batch=10 out="$out/eval_absent_${name}_fold$fold" | grep -E "^(absent|gate)"
  done

  for name in shapes plus; do
    for shots in 1 5; do
      diffews eval weight="$out/${name}_fold$fold" data="$out/shapes_seed1" shots=$shots \
        drawn_shots=5 episodes=600 out="$out/eval_${name}_fold$fold/${shots}shot" | tail -n 1
    done
  done
  diffews baselines weight="$out/shapes_fold$fold" data="$out/shapes_seed1" drawn_shots=5 \
    episodes=600 runs="$out/eval_shapes_fold$fold/1shot,$out/eval_shapes_fold$fold/5shot" \
    out="$out/eval_shapes_fold$fold/table.json"
done
