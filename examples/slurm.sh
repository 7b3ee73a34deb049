#!/bin/bash
# One artifact on a Slurm cluster: a job array with a GPU a task, and one job that finishes.
#
#     bash examples/slurm.sh CARD /shared/folder/of/the/artifact [SHARDS]
#
# Add what your cluster asks for (--partition, --account) to OPTIONS. Submitting it again goes on.
set -euo pipefail

card=$1 out=$2 shards=${3:-8}
OPTIONS=${OPTIONS:---gpus=1 --cpus-per-task=8 --mem=64G --time=12:00:00}

# shellcheck disable=SC2086 - options are words
array=$(sbatch --parsable $OPTIONS --job-name=ptmech --array="1-$shards" --requeue <<JOB
#!/bin/bash
exec ptmech build "$card" --out "$out" --shard "\$SLURM_ARRAY_TASK_ID/$shards"
JOB
)

# afterany: a task that failed or was cut off leaves only its own units to this one.
# shellcheck disable=SC2086
sbatch $OPTIONS --job-name=ptmech-last --dependency="afterany:${array%%;*}" --requeue <<JOB
#!/bin/bash
exec ptmech build "$card" --out "$out"
JOB
