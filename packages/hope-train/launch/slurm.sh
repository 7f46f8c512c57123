#!/usr/bin/env bash
# Several nodes under Slurm:  sbatch --nodes 4 packages/hope-train/launch/slurm.sh runs/hope/config.yaml
# The folder of the run must be seen by all nodes. Two minutes before the time limit the job is told to stop, saves,
# and queues itself again; the same happens after a node is lost.
#SBATCH --job-name=hope-train
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

config=$1
again() { echo "requeued" >&2; scontrol requeue "$SLURM_JOB_ID"; }
trap 'kill -TERM "$job"; wait "$job"; again; exit 0' TERM

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-8}" \
  --rdzv-backend c10d --rdzv-endpoint "$head:29500" --rdzv-id "$SLURM_JOB_ID" \
  -m hope_train run "$config" --out "$(dirname "$config")" &
job=$!
wait "$job"
