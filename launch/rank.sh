#!/bin/bash
# One task of a step: runs a rank and leaves the code it ended with, which srun does not tell. rank.sh CODES COMMAND...
codes=$1
shift
trap '' USR1 # a rank listens once it trains; before that the signal must not end it
trap : TERM  # the rank saves and leaves; this shell waits for its code
"$@"
code=$?
case $code in
    0 | 1 | 75) [ "$SLURM_PROCID" != 0 ] || : > "$codes/0.$code" ;;
    *) : > "$codes/$SLURM_PROCID.$code" ;; # by name: on a full disk a file can be made and not be filled
esac
[ $code != 75 ] || code=0 # stopped on request: nothing that should end the other tasks
exit $code
