#!/usr/bin/env bash
# The reference's training script. Despite its name it trains on fold 0 with at most
# 2 shots, for 20,000 steps.
exec bash "$(dirname "$0")/train.sh" fold=0 shots=2 steps=20000 "$@"
