#!/bin/bash
# One evaluation on two nodes of four GPUs each. Submit it again, with any number of nodes, until the result is there.
#SBATCH --job-name=robench
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@60

set -euo pipefail
MODEL=${1:?usage: sbatch slurm.sh MODEL PROTOCOL RUN_DIR}
PROTOCOL=${2:?a protocol, such as autoattack-linf}
RUN_DIR=${3:?a folder that all nodes see}
FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun torchrun \
  --nnodes "$SLURM_NNODES" --nproc-per-node 4 \
  --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$FIRST:29500" \
  -m robench evaluate "$MODEL" "$PROTOCOL" --data /data/imagenet/val --device cuda --run-dir "$RUN_DIR"
