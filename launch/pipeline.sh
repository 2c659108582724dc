#!/bin/bash
# Submits the chain of phases, each once the one before it is done: pipeline.sh [OPTIONS OF SBATCH] [-- FIELDS]
#
#     bash launch/pipeline.sh --nodes=6
#     bash launch/pipeline.sh --nodes=2 -- --train.micro-batch-size 2
#     MOST_STAGES="convert stage1 stage2" bash launch/pipeline.sh
#
# FIELDS, of tools/train.py, go to every phase. Where one fails, those behind it are cancelled. A phase that is done
# already ends at once. Prints a line for each job: its number and name.
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh" || exit 2

options=()
while [ $# -gt 0 ]; do
    word=$1
    shift
    [ "$word" != -- ] || break
    options+=("$word")
done
before=''
for stage in ${MOST_STAGES:-stage1 stage2}; do
    words=("$@") own=("${options[@]}")
    case $stage in
        convert) script=convert.sh words=() own=() ;;
        stage1) script=stage1_asr_tts.sh ;;
        stage2) script=stage2_instruct.sh ;;
        *) die "MOST_STAGES: no stage $stage; there are convert, stage1, stage2" ;;
    esac
    wait=()
    [ -z "$before" ] || wait=(--dependency="afterok:$before" --kill-on-invalid-dep=yes)
    before=$(sbatch --parsable "${wait[@]}" "${own[@]}" "$root/launch/$script" "${words[@]}") ||
        die "$stage was not accepted"
    before=${before%%;*} # of a federation: NUMBER;CLUSTER
    printf '%s %s\n' "$before" "$stage"
done
