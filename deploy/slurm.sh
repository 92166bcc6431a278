#!/usr/bin/env bash
# A sweep on Slurm. From the folder of the checkout, whose .venv every node sees:
#
#   sbatch deploy/slurm.sh --study composition --scale paper --store /shared/rayexp
#
# When the time is up, the same command goes on from the store.
#SBATCH --job-name=rayexp
#SBATCH --nodes=2
#SBATCH --exclusive
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --time=12:00:00
#SBATCH --output=rayexp-%j.log
set -euo pipefail

# Tokens, for other people's processes reach the ports of these nodes. Ray keeps the token in the home folder, which the
# nodes share.
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
source .venv/bin/activate
[ -f ~/.ray/auth_token ] || (umask 077 && ray get-auth-token --generate > /dev/null)

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(getent ahostsv4 "$head" | awk 'NR == 1 {print $1}'):6379

# One head and its workers, the sweep on the head, and an end to all of it. RAY_ADDRESS tells the sweep to use this
# cluster: without it, it starts one of its own on one node. All cores of a node are Ray's, also where Slurm would bind
# a task to one of them.
srun --cpu-bind=none --cpus-per-task="$SLURM_CPUS_ON_NODE" \
  ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" -- \
  env RAY_ADDRESS="$address" python jobs/sweep.py "$@"
