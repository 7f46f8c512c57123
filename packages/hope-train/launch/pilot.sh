#!/usr/bin/env bash
# HOPE, Titans and the Transformer at pilot scale on this machine's GPUs, at equal tokens for as long as it lasts:
#   packages/hope-train/launch/pilot.sh
# Every run gets EVERY steps (default 250) in turn. Stop it whenever; the same command goes on with the turn it was in.
# Shards and tokenizer must be there (`dvc repro data`, with scale: pilot in params.yaml); more overrides for
# `hope-train compose` may follow as arguments. After every turn reports/pilot/ holds each run's log, the curves, and a
# table with tokens/s and MFU.
# To try it without a GPU:  PROCESSES=2 SCALE=tiny EVERY=10 packages/hope-train/launch/pilot.sh
set -euo pipefail
here=$(dirname "$0")
processes=${PROCESSES:-$(nvidia-smi --list-gpus | wc -l)}
scale=${SCALE:-pilot}
every=${EVERY:-250}
runs=(hope titans transformer)
for run in "${runs[@]}"; do
  if [ -z "${PROCESSES:-}" ]; then hope-train plan --run "$run" --count "$processes" "scale=$scale" "$@"; fi
  hope-train compose --run "$run" --out "runs/$scale/$run/config.yaml" "scale=$scale" "$@"
done
steps=$(hope-train compose --run "${runs[0]}" --print steps "scale=$scale" "$@")
reached() { sed -n 's/^ *"step": \([0-9]*\).*/\1/p' "$1/checkpoint/meta.json" 2> /dev/null || echo 0; }
low=$steps
for run in "${runs[@]}"; do
  step=$(reached "runs/$scale/$run")
  low=$((step < low ? step : low))
done
trap 'exit 75' TERM INT
for ((until = low - low % every + every; until < steps + every; until += every)); do
  goal=$((until < steps ? until : steps))
  for run in "${runs[@]}"; do
    folder=runs/$scale/$run
    # torchrun turns 75 (stopped, saved) into 1: what counts is the checkpoint.
    torchrun --standalone --nproc-per-node "$processes" -m hope_train run "$folder/config.yaml" \
      --out "$folder" --until "$goal" || true
    hope-train verify "$folder/checkpoint"
    if (($(reached "$folder") < goal)); then exit 1; fi
    python "$here/curves.py" "runs/$scale" "reports/$scale"
  done
done
