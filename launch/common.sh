# shellcheck shell=bash
# What the launchers share; sourced by them, never run. The only place that starts ranks.
#
# A phase goes: begin (an attempt is opened, what cannot run is refused) -> preflight (a process a node) -> ranks ->
# end (done, requeue or stop, with the reason). What has to be thought about is in tools/job.py; here processes are
# started, signals passed on, and Slurm is told. docs/hpc.md is the guide.

set -u -o pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
asked=0

say() { printf '%s launch: %s\n' "$(date +%H:%M:%S)${SLURMD_NODENAME:+ $SLURMD_NODENAME}" "$*" >&2; }
die() {
    say "ERROR: $*"
    exit 2
}
need() { # NAME WHAT: a variable that must be set
    [ -n "${!1:-}" ] || die "$1 is not set: it says $2. Set it in $cluster_env (launch/cluster.env.example shows how)"
}
quoted() { # a command as one can type it
    local line
    printf -v line '%q ' "$@"
    printf '%s\n' "${line% }"
}

case ${1:-} in
    -h | --help) # what the script says of itself at its top
        sed -n -e 1d -e '/^#SBATCH/d' -e '/^# shellcheck/d' -e '/^[^#]/q' -e 's/^# \{0,1\}//p' "$0"
        exit 0
        ;;
esac

# A job of a few minutes is signalled as soon as it begins, and would die of it while settings are read.
[ -z "${SLURM_JOB_ID:-}" ] || trap asked=1 USR1

cluster_env=${MOST_CLUSTER_ENV:-$root/launch/cluster.env}
if [ -r "$cluster_env" ]; then
    bash -n "$cluster_env" || die "$cluster_env: bash cannot read it, see above"
    ours=$root
    trap 'say "ERROR: $cluster_env ends whoever reads it: it calls exit, or one of its lines does"; exit 2' EXIT
    set +u # it is the user's: modules, and $LD_LIBRARY_PATH where that is not set
    # shellcheck source=/dev/null
    . "$cluster_env"
    set -u
    trap - EXIT
    IFS=$' \t\n'
    [ "$root" = "$ours" ] || die "$cluster_env sets root=$root: the launchers call their clone so; take another name"
elif [ -n "${MOST_CLUSTER_ENV:-}" ]; then
    die "MOST_CLUSTER_ENV=$MOST_CLUSTER_ENV: no such file, or it cannot be read"
fi

words=() dry=0 cancelled=0 srun_pid='' attempt='' ask_with=USR1 number=0

for name in MOST_WATCH_S MOST_GRACE_S MOST_SKEW_S MOST_FREE_GB MOST_LINK_FLOOR_GBPS MOST_LINK_MB MOST_LINKS_S \
    MOST_PREFLIGHT_S; do
    [ -z "${!name:-}" ] || [[ ${!name} =~ ^[0-9]+([.][0-9]+)?$ ]] ||
        die "$name=${!name}: not a number. Set it in $cluster_env (launch/cluster.env.example has its unit)"
done
for name in MOST_WATCH_S MOST_GRACE_S MOST_PREFLIGHT_S MOST_LINKS_S MOST_LINK_MB; do
    [[ ! ${!name:-1} =~ ^0+([.]0+)?$ ]] || die "$name=${!name}: give more than 0, or leave it out of $cluster_env"
done
[[ ${MASTER_PORT:-29500} =~ ^[0-9]+$ ]] ||
    die "MASTER_PORT=$MASTER_PORT: not a port; leave it out of $cluster_env, or give a number"
[[ ${MOST_PREFLIGHT:-1} == [01] ]] ||
    die "MOST_PREFLIGHT=$MOST_PREFLIGHT: give 1, or 0 to train without looking first, in $cluster_env"
[[ ${MOST_GRACE_S:-60} != *.* ]] || die "MOST_GRACE_S=$MOST_GRACE_S: srun takes whole seconds; set it in $cluster_env"

runs=${MOST_RUNS:-$root/runs}
[[ $runs == /* ]] || die "MOST_RUNS=$runs: give the whole path; a part of one depends on where sbatch is called"
[[ $runs != *[{}]* ]] || die "MOST_RUNS=$runs: braces stand for a recipe's name there; give a folder without them"
# shellcheck disable=SC2034  # the launchers use them
stage1=${MOST_STAGE1_RECIPE:-stage1-asr-tts} stage2=${MOST_STAGE2_RECIPE:-stage2-instruct}
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} PYTHONUNBUFFERED=1 SLURM_EXPORT_ENV=ALL
unset SLURM_GPUS_PER_NODE # steps have all GPUs of the job, which --gres may have asked for: srun would take this one's
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$root/.cache/torch_extensions}
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$root/.cache/triton}
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$root/.cache/inductor}
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH

# How python is called: here (`python`), and by srun (`step_options`, then `step_python`).
step_options=()
case ${MOST_CONTAINER:-none} in
    none)
        python=("${MOST_PYTHON:-$root/.venv/bin/python}")
        command -v "${python[0]}" > /dev/null ||
            die "${python[0]}: no such program; MOST_PYTHON names the one with our packages: set it in $cluster_env"
        step_python=("${python[@]}")
        ;;
    apptainer)
        need MOST_IMAGE "which image file Apptainer runs"
        command -v apptainer > /dev/null ||
            die "apptainer: no such program here; load its module in $cluster_env, or set MOST_CONTAINER otherwise"
        python=(apptainer exec --nv --bind "$root${MOST_MOUNTS:+,$MOST_MOUNTS}" "$MOST_IMAGE" "${MOST_PYTHON:-python3}")
        step_python=("${python[@]}")
        ;;
    pyxis)
        need MOST_IMAGE "which image Pyxis runs"
        step_options=(--container-image="$MOST_IMAGE" --container-mounts="$root:$root${MOST_MOUNTS:+,$MOST_MOUNTS}")
        step_python=("${MOST_PYTHON:-python3}")
        python=(srun --overlap --nodes=1 --ntasks=1 "${step_options[@]}" "${step_python[@]}")
        ;;
    *) die "MOST_CONTAINER=$MOST_CONTAINER: not one of none, apptainer, pyxis" ;;
esac
if [ "${MOST_CONTAINER:-none}" != none ]; then # what it does not see, jobs would find out
    for name in MOST_DATA MOST_RUNS MOST_BACKBONE; do
        path=${!name:-} seen=0
        [[ $path == /* ]] || continue
        for bound in "$root" ${MOST_MOUNTS//,/ }; do
            [[ $path/ != "${bound%%:*}"/* ]] || seen=1
        done
        ((seen)) || say "$name=$path lies in none of MOST_MOUNTS: a container sees it only if your site mounts it"
    done
fi
read -r -a more_options <<< "${MOST_SRUN_OPTIONS:-}"

job() { "${python[@]}" "$root/tools/job.py" "$@"; }

# --- processes on nodes ---

# Ranks see all cores of their node: binding one task to one core would starve its data threads. Where one fails, the
# others end by themselves within seconds, and Slurm is left out of it for a minute: a signal that a busy node does not
# confirm in time is sent again a minute later, and then hits the step of the same number of the requeued job.
srun_line() { # one task for each rank | one for each node; sets the array `line`
    line=(srun --kill-on-bad-exit=0 --cpu-bind=none --nodes="$nodes")
    if [ "$1" = ranks ]; then
        line+=(--ntasks="$ranks" --ntasks-per-node="$per_node" --wait="${MOST_GRACE_S:-60}")
    else
        line+=(--ntasks="$nodes" --ntasks-per-node=1)
    fi
    if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then line+=(--cpus-per-task="$SLURM_CPUS_PER_TASK"); fi
    line+=("${more_options[@]}" "${step_options[@]}")
}

# Where only the network between two nodes is cut, srun is not told that its tasks are gone and waits for ever. Slurm
# itself knows: the job has no step any more. A controller that is away says nothing, and nothing is concluded.
watch_step() { # PID FLAG
    local seen=0 gone=0 steps
    while sleep "${MOST_WATCH_S:-10}" && kill -0 "$1" 2>/dev/null; do
        steps=$(squeue -h -s -j "$SLURM_JOB_ID" -o %i 2>/dev/null) || continue
        if grep -Eq "^$SLURM_JOB_ID\.[0-9]+$" <<< "$steps"; then
            seen=1 gone=0
        elif ((seen && ++gone >= 3)); then
            say "srun waits for a step that Slurm does not know any more (it knows: ${steps//$'\n'/ }); ending it"
            : > "$2"
            kill -KILL "$1"
            return
        fi
    done
}

wait_for() { # PID -> its code; `wait` also returns at every signal that is trapped
    local code
    while :; do
        wait "$1"
        code=$?
        kill -0 "$1" 2>/dev/null || return "$code"
    done
}

run_ranks() { # FOLDER COMMAND...: all ranks to their end; leaves `log`, `codes/`, and `lost` where srun was ended
    local folder=$1 code watcher
    shift
    srun_line ranks
    "${line[@]}" bash "$root/launch/rank.sh" "$folder/codes" "$@" >> "$folder/log" 2>&1 &
    srun_pid=$!
    watch_step "$srun_pid" "$folder/lost" &
    watcher=$!
    wait_for "$srun_pid"
    code=$?
    srun_pid=''
    kill "$watcher" 2>/dev/null
    return "$code"
}

on_usr1() {
    asked=1
    say "the time limit is near: asking the ranks to stop"
    # By a file too, for ranks that are still starting: they ignore the signal.
    [ -z "$attempt" ] || job ask --attempt "$attempt"
    [ -z "$srun_pid" ] || kill -"$ask_with" "$srun_pid" 2>/dev/null
}
on_term() {
    cancelled=1
    say "Slurm ends this job"
}

# --- the job itself ---

facts_of_job() {
    nodes=${SLURM_JOB_NUM_NODES:-$1}
    per_node=${SLURM_NTASKS_PER_NODE:-$2}
    per_node=${per_node%%(*}
    ranks=$((nodes * per_node))
    gpus=${SLURM_GPUS_ON_NODE:-0}
    job_id=${SLURM_JOB_ID:-0}
    restart=${SLURM_RESTART_COUNT:-0}
    nodelist=${SLURM_JOB_NODELIST:-NODES}
    port=${MASTER_PORT:-$((29500 + job_id % 2000))}
}

requeue() { # [NODES]: again, without these; nothing after it may matter
    local left=${1:-} before
    trap '' TERM # Slurm now ends this script, and scontrol with it, unless both ignore that
    before=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/.*ExcNodeList=\([^ ]*\).*/\1/p')
    scontrol requeue "$SLURM_JOB_ID" || die "Slurm does not requeue this job (see above); submit it again to go on"
    if [ -n "$left" ]; then
        if [ -n "$before" ] && [ "$before" != '(null)' ]; then left=$before,$left; fi
        scontrol update JobId="$SLURM_JOB_ID" ExcNodeList="$left" || say "ERROR: the bad nodes could not be excluded"
    fi
    exit 0
}

act_on() { # "ok ..." | "leave NODES"
    case $1 in
        ok*) return ;;
        leave*) say "again without ${1#leave }" && requeue "${1#leave }" ;;
        *) exit 2 ;;
    esac
}

preflight() { # ARGS of the recipe
    local found=$attempt/preflight.facts since answer smi='' step options=()
    if [ "$gpus" -gt 0 ] && { [ -n "${MOST_NVIDIA_SMI:-}" ] || [ "$on_cpu" = 0 ]; }; then
        smi=${MOST_NVIDIA_SMI:-nvidia-smi}
    fi
    [ -z "${MOST_FREE_GB:-}" ] || options+=(--free-gb "$MOST_FREE_GB")
    [ -z "$smi" ] || options+=(--gpus "$gpus")
    step=$(sed -n 's/.*"step": \([0-9]*\).*/\1/p' "$attempt/begin.json")
    since=$(date +%s.%N)
    srun_line nodes
    timeout --kill-after=10 "${MOST_PREFLIGHT_S:-300}" "${line[@]}" "${step_python[@]}" \
        "$root/tools/job.py" facts --attempt "$attempt" --step "$step" --port "$port" --nvidia-smi "$smi" -- "$@" \
        > "$found" 2> "$attempt/preflight.log" || cat "$attempt/preflight.log" >&2
    ((cancelled == 0)) || return # nodes were cut short: nothing they have not said is their fault
    answer=$(job preflight --attempt "$attempt" --found "$found" --nodes "$nodelist" --ranks "$ranks" \
        --since "$since" --skew "${MOST_SKEW_S:-5}" "${options[@]}" -- "$@") || exit 2
    act_on "$answer"
    [ "${answer#ok }" = "$port" ] || say "port $port is taken on the first node; ranks meet at ${answer#ok }"
    export MASTER_PORT=${answer#ok }
    if ((nodes > 1)) && [ -n "${MOST_LINK_FLOOR_GBPS:-}" ]; then
        : > "$attempt/links.jsonl"
        srun_line ranks
        timeout --kill-after=10 "${MOST_LINKS_S:-600}" "${line[@]}" "${step_python[@]}" "$root/tools/job.py" links \
            --megabytes "${MOST_LINK_MB:-64}" -- "$@" > "$attempt/links.jsonl" 2> "$attempt/links.log" ||
            tail -n 20 "$attempt/links.log" >&2
        ((cancelled == 0)) || return
        answer=$(job judge-links --attempt "$attempt" --found "$attempt/links.jsonl" --nodes "$nodelist" \
            --floor "$MOST_LINK_FLOOR_GBPS" -- "$@") || exit 2
        act_on "$answer"
    fi
}

train() { # ARGS of the recipe
    local code options=() answer command
    command=("${step_python[@]}" "$root/tools/train.py" "$@")
    if [ $dry = 1 ]; then
        srun_line nodes
        quoted "${line[@]}" "${step_python[@]}" "$root/tools/job.py" facts --attempt ATTEMPT --step STEP \
            --port "$port" -- "$@"
        srun_line ranks
        quoted "${line[@]}" bash "$root/launch/rank.sh" ATTEMPT/codes "${command[@]}"
        if [ "${MOST_CONTAINER:-none}" = pyxis ] && [ -z "${SLURM_JOB_ID:-}" ]; then
            say "the layout was not checked: with pyxis there is python in jobs alone"
            exit
        fi
        job plan --ranks "$ranks" -- "$@" >&2
        exit
    fi
    if ((on_cpu == 0 && gpus > 0 && per_node > gpus)); then
        die "$per_node ranks a node, and Slurm has granted $gpus GPUs: give sbatch --ntasks-per-node=$gpus too"
    fi
    trap on_usr1 USR1
    trap on_term TERM
    attempt=$(job begin --job "$job_id" --restart "$restart" --nodes "$nodelist" --ranks "$ranks" \
        --running - -- "$@" < <(squeue -h -t R,CG,PD -o %A 2>/dev/null))
    code=$?
    [ $code != 3 ] || exit 0
    [ $code = 0 ] || exit 2
    say "attempt ${attempt##*-} of job $job_id (restart $restart) on $nodelist: $ranks ranks; log: $attempt/log"
    [ "${MOST_PREFLIGHT:-1}" = 0 ] || preflight "$@"
    code=0
    if ((asked + cancelled == 0)); then
        run_ranks "$attempt" "${command[@]}"
        code=$?
    fi
    [ ! -e "$attempt/lost" ] || options+=(--lost)
    ((asked == 0)) || options+=(--asked)
    ((cancelled == 0)) || options+=(--cancelled)
    answer=$(job end --attempt "$attempt" --srun "$code" "${options[@]}") || {
        tail -n 20 "$attempt/log" >&2
        exit 2
    }
    case $answer in
        requeue*) requeue ;;
        done*) exit 0 ;;
    esac
    tail -n 20 "$attempt/log" >&2
    exit "${answer##* }"
}

# --- a command that is one process ---

# Options of sbatch that none of our tools has: behind the script's name they would not reach sbatch.
of_sbatch=(--account --array --constraint --cpus-per-task --dependency --exclude --exclusive --export --gpus
    --gpus-per-node --gpus-per-task --gres --job-name --mail-type --mail-user --mem --nodelist --ntasks --partition
    --qos --requeue --no-requeue --reservation --signal --time -A -C -J -N -d -n -p -q -t -w -x)

take_dry_run() { # ARGS: all but --dry-run, and the sizes it shall be of, as sbatch takes them, go to the array `words`
    local word sizes=()
    words=()
    for word in "$@"; do
        case $word in
            --dry-run) dry=1 ;;
            --nodes=* | --ntasks-per-node=*) sizes+=("$word") ;;
            --nodes | --ntasks-per-node)
                die "$word is an option of sbatch: it goes before the script's name, as $word=N"
                ;;
            *)
                [[ " ${of_sbatch[*]} " != *" ${word%%=*} "* ]] ||
                    die "$word is an option of sbatch: it goes before the script's name"
                words+=("$word")
                ;;
        esac
    done
    for word in "${sizes[@]}"; do
        [ $dry = 1 ] || die "$word is an option of sbatch: it goes before the script's name"
        [[ $word =~ =[1-9][0-9]*$ ]] || die "$word: a dry run wants one number"
        case $word in
            --nodes=*) SLURM_JOB_NUM_NODES=${word#*=} ;;
            *) SLURM_NTASKS_PER_NODE=${word#*=} ;;
        esac
    done
}

check_words() { # TOOL WORDS: what the tool would refuse of them
    if [ "${MOST_CONTAINER:-none}" = pyxis ] && [ -z "${SLURM_JOB_ID:-}" ]; then
        say "the words of $1 were not checked: with pyxis there is python in jobs alone"
        return
    fi
    "${python[@]}" "$root/tools/check_words.py" "$@" >&2 || exit 2
}

run_one() { # SCRIPT ARGS...: in the batch script itself; told to end, it is, and goes on when it is started again
    if [ $dry = 1 ]; then
        check_words "$(basename "$1" .py)" "${@:2}"
        quoted "${python[@]}" "$@"
        exit
    fi
    [ -n "${SLURM_JOB_ID:-}" ] || die "this is a batch script: sbatch $0 ... ; --dry-run shows what it would run"
    exec "${python[@]}" "$@"
}

check() { # SCRIPT SIZES AND WORDS: what a dry run refuses need not wait in a queue to be refused
    bash "$root/launch/$1" --dry-run "${@:2}" > /dev/null || die "$1 would be refused, see above; nothing was submitted"
}

of_place() { # OPTIONS: those of sbatch that say where a job runs, in what, and who pays go to the array `placed`
    local word takes=0
    placed=()
    for word in "$@"; do
        if ((takes)); then
            placed+=("$word") takes=0
            continue
        fi
        case $word in
            --account | --chdir | --clusters | --constraint | --export | --partition | --qos | --reservation | \
                -[ACDMpq])
                placed+=("$word") takes=1
                ;;
            --account=* | --chdir=* | --clusters=* | --constraint=* | --export=* | --partition=* | --qos=* | \
                --reservation=* | -[ACDMpq]?*)
                placed+=("$word")
                ;;
        esac
    done
}

submit() { # OPTIONS AND WORDS OF SBATCH: leaves the job's number in `number`
    if [ $dry = 1 ]; then
        quoted sbatch --parsable "$@"
        number=JOB$((${number#JOB} + 1))
        return
    fi
    number=$(sbatch --parsable "$@") || return
    number=${number%%;*} # of a federation: NUMBER;CLUSTER
}

# --- arguments of a phase ---

given() { # FLAG WORDS...: whether the flag is among them
    local flag=$1 word
    shift
    for word in "$@"; do
        case $word in "$flag" | "$flag="*) return 0 ;; esac
    done
    return 1
}

value_of() { # FLAG WORDS...: prints what follows the flag, of several the last
    local flag=$1 value=''
    shift
    while [ $# -gt 0 ]; do
        case $1 in
            "$flag") value=${2:-} ;;
            "$flag="*) value=${1#*=} ;;
        esac
        shift
    done
    printf '%s\n' "$value"
}

datasets() { # TASK FLAG: adds --data.TASK.train and .valid of what lies in MOST_DATA to `args`
    local at=$MOST_DATA/$1 set train=() valid=()
    if [ -e "$at/train/dataset.json" ]; then
        train=("$at/train")
        [ ! -e "$at/valid/dataset.json" ] || valid=("$at/valid")
    else
        for set in "$at"/*/; do
            [ -e "$set/dataset.json" ] || continue
            case ${set%/} in
                *-dev | *-valid | *-dev-whole | *-valid-whole) valid+=("${set%/}") ;;
                *) train+=("${set%/}") ;;
            esac
        done
    fi
    [ ${#train[@]} -gt 0 ] ||
        die "no dataset of $1 in $at: MOST_DATA is the folder with one folder a task, as docs/data.md makes it"
    args+=("--data.$1.train" "${train[@]}")
    [ ${#valid[@]} = 0 ] || args+=("--data.$1.valid" "${valid[@]}")
}

phase() { # RECIPE "TASK ..." START: a phase from its launcher's arguments, which are in `words`
    local recipe=$1 tasks=$2 start=$3 word args=()
    words=("${words[@]/#--runtime.device/--device}") # as some write it
    if [ $dry = 0 ] && [ -z "${SLURM_JOB_ID:-}" ]; then
        die "this is a batch script: sbatch $0 ... ; --dry-run shows what it would run"
    fi
    if ! given --config "${words[@]}"; then
        args+=(--config "$recipe")
        need MOST_DATA "where the datasets are, one folder a task"
        for word in $tasks; do datasets "$word"; done
        if [ -e "$MOST_DATA/tokenizer/token_map.json" ]; then
            args+=(--tokens.backbone file --tokens.file "$MOST_DATA/tokenizer/token_map.json")
        fi
        if ! given --checkpoint.start-from "${words[@]}" && [ "$start" != none ]; then
            args+=(--checkpoint.start-from "$start")
            # Not refused: a job that is submitted before this one may make it.
            [ $dry = 0 ] || [ -e "$start" ] || say "$start, to begin with, is not there yet"
        fi
    fi
    given --checkpoint.folder "${words[@]}" || given --config "${words[@]}" ||
        args+=(--checkpoint.folder "$runs/{name}")
    on_cpu=0
    if given --device "${words[@]}"; then
        case " ${words[*]} " in *' --device cpu '* | *' --device=cpu '*) on_cpu=1 ;; esac
    else
        args+=(--device gpu) # granted and not seen is an error, not a run on a CPU
    fi
    train "${args[@]}" "${words[@]}"
}
