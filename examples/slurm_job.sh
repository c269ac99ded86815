#!/bin/bash
#SBATCH --job-name=scistream
#SBATCH --ntasks=1
#SBATCH --time=01:00:00
# A minute before the time is up Slurm sends SIGTERM to the tasks: time to save what there is. (With B: it would go to
# srun, which kills the tasks.)
#SBATCH --signal=TERM@60

# Run a consumer as a batch job: sbatch slurm_job.sh SESSION COMMAND...
# SESSION.consumer.key, which s2uc request --key-dir wrote, lies where the job is submitted from.
set -euo pipefail
session=$1
shift

# One Hello for the whole job, then a task on each of its nodes: all find the addresses in SCISTREAM_LISTENERS.
# At most ten minutes are waited for the way.
exec s2uc --timeout 10m run --role consumer --key-file "$session.consumer.key" "$session" -- srun "$@"
