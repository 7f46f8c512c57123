#!/usr/bin/env bash
# HOPE, Titans and the Transformer at pilot scale on this machine's GPUs, at equal tokens for as long as it lasts:
#   packages/hope-train/launch/pilot.sh
# Every run gets EVERY steps (default 250) in turn. Stop it whenever; the same command goes on. Shards and
# tokenizer must be there (`dvc repro validate`, with scale: pilot in params.yaml); more overrides for `hope-train compose` may follow as arguments.
set -euo pipefail
gpus=$(nvidia-smi --list-gpus | wc -l)
every=${EVERY:-250}
runs=(hope titans transformer)
for run in "${runs[@]}"; do
  hope-train plan --run "$run" --count "$gpus" scale=pilot "$@"
  hope-train compose --run "$run" --out "runs/pilot/$run/config.yaml" scale=pilot "$@"
done
trap 'exit 75' TERM INT
for ((until = every; ; until += every)); do
  finished=0
  for run in "${runs[@]}"; do
    status=0
    torchrun --standalone --nproc-per-node "$gpus" --no-python hope-train run "runs/pilot/$run/config.yaml" \
      --out "runs/pilot/$run" --until "$until" --json "reports/metrics/pilot_$run.json" || status=$?
    # torchrun turns 75 (stopped, saved) into 1: what counts is the checkpoint.
    hope-train verify "runs/pilot/$run/checkpoint"
    [ "$status" = 0 ] && finished=$((finished + 1))
  done
  [ "$finished" = ${#runs[@]} ] && exit 0
done
