#!/bin/bash
# A run at a glance: status.sh RUN. State, step, time left, share of the time that counted, last error.
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh" || exit 2
[ $# = 1 ] || die "usage: status.sh RUN, the folder of a run (checkpoint.folder)"
if queue=$(squeue -h -o '%A|%T|%L|%r' 2> /dev/null); then
    job status "$1" --queue - <<< "$queue"
else
    job status "$1"
fi
