#!/bin/bash
# A run at a glance: status.sh RUN. State, step, time left, share of the time that counted, last error.
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh" || exit 2
if [ "${MOST_CONTAINER:-none}" = pyxis ] && [ -z "${SLURM_JOB_ID:-}" ]; then
    python=(python3) # the login node's own, for it needs no package; srun would wait in the queue
    "${python[@]}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "with pyxis, status.sh needs a python3 of 3.11 or newer on the login node: load its module in $cluster_env"
fi
[ $# = 1 ] || die "usage: status.sh RUN, the folder of a run (checkpoint.folder)"
if queue=$(squeue -h -o '%A|%T|%L|%r' 2> /dev/null); then
    job status "$1" --queue - <<< "$queue"
else
    job status "$1"
fi
