# shellcheck shell=bash
# What the scripts of this folder share: options, quoting, dry runs, the supervisor. Sourced; bash 3.2 is enough.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CONFIG="" RUN_DIR="" DRY_RUN="" RESTARTS=5
SETTINGS=()

die() { # one line that says what, where and what to do; exit code 2 = bad usage, as everywhere
  echo "$(basename "$0"): $*" >&2
  exit 2
}

head_comment() { sed -n '2,/^$/{s/^# \{0,1\}//;p;}' "$0"; }

usage() { # the head of the script is its help
  head_comment
  cat <<EOF
every script:
  --config FILE[:NAME]   what to train (configs/*.py)
  --run-dir DIR          new run, or one to go on with
  --set KEY=VALUE ...    config values to change
  --restarts N           failures in a row without a new checkpoint before it is given up (5)
  --dry-run              print the exact commands and do nothing
EOF
}

value() { # value OPTION VALUE...: the option's value into VALUE
  [[ $# -ge 2 && $2 != --* ]] || die "$1 needs a value (--help lists the options)"
  VALUE=$2
  TAKEN=2
}

parse_options() { # calls own_option of the script for what is not common; that sets TAKEN, the words it took
  while (($#)); do
    TAKEN=1
    case $1 in
      --config) value "$@" && CONFIG=$VALUE ;;
      --run-dir) value "$@" && RUN_DIR=$VALUE ;;
      --restarts) value "$@" && RESTARTS=$VALUE ;;
      --set)
        value "$@"
        TAKEN=1
        while ((TAKEN < $#)) && [[ ${*:TAKEN+1:1} != --* ]]; do
          SETTINGS+=("${@:TAKEN+1:1}")
          TAKEN=$((TAKEN + 1))
        done
        ;;
      --dry-run) DRY_RUN=1 ;;
      --help | -h) usage && exit 0 ;;
      *) own_option "$@" || die "unknown option $1 (--help lists them)" ;;
    esac
    shift "$TAKEN"
  done
  require --config "$CONFIG"
  require --run-dir "$RUN_DIR"
  require_number --restarts "$RESTARTS" 0
}

require() { # require OPTION VALUE [ENVIRONMENT VARIABLE]
  [[ -n $2 ]] || die "$1 is missing${3:+: give it, or set $3}"
}

require_number() { # require_number OPTION VALUE LEAST
  if ! [[ $2 =~ ^[0-9]+$ ]] || (($2 < $3)); then die "$1 $2: expected a whole number from $3"; fi
}

require_name() { # names of cloud resources, which also become part of commands on other machines
  [[ $2 =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || die "$1 $2: use lower-case letters, digits and hyphens, a letter first"
}

require_tool() { # require_tool TOOL WHERE FROM; a dry run needs none
  [[ -n $DRY_RUN ]] || command -v "$1" >/dev/null || die "$1 is not installed here: $2"
}

quote() { # words so that a shell reads them back
  local word words="" escaped="'\\''"
  for word in "$@"; do
    if [[ $word =~ ^[-A-Za-z0-9_./:=,@%+]+$ ]]; then words+=" $word"; else words+=" '${word//\'/$escaped}'"; fi
  done
  echo "${words# }"
}

run() { # shows the command; runs it unless this is a dry run
  if [[ -n $DRY_RUN ]]; then
    quote "$@"
  else
    echo "+ $(quote "$@")" >&2
    "$@"
  fi
}

note() { # a line for people; a dry run prints it as a comment between the commands
  if [[ -n $DRY_RUN ]]; then echo "# $*"; else echo "$*" >&2; fi
}

train_options() { # the common options again, as words in OPTIONS, for `aromni train` or another script of this folder
  OPTIONS=(--config "$CONFIG" --run-dir "$RUN_DIR")
  ((${#SETTINGS[@]} == 0)) || OPTIONS+=(--set "${SETTINGS[@]}")
}

find_aromni() { # the command as words in AROMNI
  if [[ -n ${AROMNI_PYTHON:-} ]]; then
    AROMNI=("$AROMNI_PYTHON" -m aromni_jax.cli.main)
  elif [[ -x $ROOT/.venv/bin/aromni ]]; then
    AROMNI=("$ROOT/.venv/bin/aromni")
  else
    require_tool aromni "run $ROOT/launch/install.sh, or activate the environment that has it"
    # shellcheck disable=SC2034 # the scripts that source this one use it
    AROMNI=(aromni)
  fi
}

tpu_generation() { # accelerator type or generation -> generation, as tpu_flags.txt and tpu_runtimes name it
  case $1 in
    v5e | v5litepod-*) echo v5e ;;
    v5p | v5p-*) echo v5p ;;
    v6e | v6e-*) echo v6e ;;
    *) die "TPU $1 is not known here: use v5e (v5litepod-N), v5p or v6e, or add it to aromni_jax/compile/tpu_flags.txt" ;;
  esac
}

tpu_flags() { # LIBTPU_INIT_ARGS of a generation, on one line
  awk -v generation="$1" '$1 ~ "(^|,)" generation "(,|$)" { printf "%s%s", sep, $2; sep = " " }' \
    "$ROOT/aromni_jax/compile/tpu_flags.txt"
}

newest_step() { # of the checkpoints in the run folder; nothing if there is none
  local folder steps=""
  for folder in "$RUN_DIR"/checkpoints/*/; do
    folder=$(basename "$folder")
    [[ $folder =~ ^[0-9]+$ ]] && steps+="$folder"$'\n'
  done
  sort -n <<<"$steps" | tail -n 1
}

# supervise COMMAND...: again and again until it succeeds. `aromni train` goes on from its newest checkpoint by itself.
# Bad usage (2) is not tried again, nor what failed RESTARTS times in a row without getting as far as a new checkpoint.
# TERM and INT go to the command, which saves and ends; then that is the end (STOPPED is set).
supervise() {
  local code failures=0 before after pause=${AROMNI_RESTART_PAUSE:-10}
  STOPPED=""
  CHILD=""
  trap 'STOPPED=TERM; pass_on' TERM
  trap 'STOPPED=INT; pass_on' INT
  while true; do
    before=$(newest_step)
    "$@" &
    CHILD=$!
    code=0
    wait "$CHILD" || code=$?
    while alive "$CHILD"; do # a signal ends `wait` early
      code=0
      wait "$CHILD" || code=$?
    done
    after=$(newest_step)
    if ((code == 0)); then return 0; fi
    if [[ -n $STOPPED ]] || ((code == 2)); then return "$code"; fi
    [[ $before == "$after" ]] || failures=0
    failures=$((failures + 1))
    if ((failures > RESTARTS)); then
      echo "$(basename "$0"): given up after $failures failures without a new checkpoint (exit code $code); see" \
        "${LOG_DIR:-the logs}" >&2
      return "$code"
    fi
    echo "$(basename "$0"): exit code $code at $(date -u +%FT%TZ), checkpoint ${after:-none}; again in $pause s" \
      "($failures of $RESTARTS)" >&2
    sleep "$pause" &
    wait $! || true
    if [[ -n $STOPPED ]]; then return "$code"; fi
  done
}

alive() { # alive PID: a child of this shell that still runs, not whoever has its number by now
  [[ $'\n'$(jobs -pr)$'\n' == *$'\n'"$1"$'\n'* ]]
}

pass_on() {
  [[ -z $CHILD ]] || kill -TERM "$CHILD" 2>/dev/null || true
}
