#!/usr/bin/env bash
# Train on this machine. The other scripts start this one on every host, so it also restarts what fails and keeps the logs.
#   --processes N      N processes, as if they were hosts (1)
#   --distributed      this is one host of several (TPU pod, GKE, SLURM); JAX finds the others
#   --tpu GENERATION   compiler flags for v5e, v5p or v6e (aromni_jax/compile/tpu_flags.txt); your own LIBTPU_INIT_ARGS come after them;
#                      and the run is saved and ended when Google Cloud announces maintenance of this machine
#   --log-dir DIR      logs of every process (RUN_DIR/logs)

set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

PROCESSES=1 DISTRIBUTED="" TPU="" LOG_DIR=""
GRACE=20 # seconds for the other processes of this machine after one has failed
own_option() {
  case $1 in
    --processes) value "$@" && PROCESSES=$VALUE ;;
    --distributed) DISTRIBUTED=1 ;;
    --tpu) value "$@" && TPU=$VALUE ;;
    --log-dir) value "$@" && LOG_DIR=$VALUE ;;
    *) return 1 ;;
  esac
}
parse_options "$@"
require_number --processes "$PROCESSES" 1
[[ -z $DISTRIBUTED || $PROCESSES == 1 ]] || die "--distributed is one process of several hosts: leave --processes out"
LOG_DIR=${LOG_DIR:-$RUN_DIR/logs}

find_aromni

if [[ -n $TPU ]]; then
  GENERATION=$(tpu_generation "$TPU")
  FLAGS="$(tpu_flags "$GENERATION")${LIBTPU_INIT_ARGS:+ $LIBTPU_INIT_ARGS}"
  run export LIBTPU_INIT_ARGS="$FLAGS"
fi
run export PYTHONUNBUFFERED=1 # a log that ends where the process ended
run mkdir -p "$LOG_DIR"

train_options
COMMAND=("${AROMNI[@]}" train "${OPTIONS[@]}")

log_of() { # log_of INDEX: hosts write under their name
  if [[ -n $DISTRIBUTED ]]; then
    echo "$LOG_DIR/$(hostname).log"
  else
    echo "$LOG_DIR/worker-$1.log"
  fi
}

free_port() { # on this machine, where all of the processes are
  local port
  for port in $(seq $((20000 + $$ % 10000)) 30999); do
    (: >"/dev/tcp/127.0.0.1/$port") 2>/dev/null || {
      echo "$port"
      return
    }
  done
}

attempt() { # all processes of this machine once; the first one's output is shown, every one's kept
  local index log port code=0 end="" running=() one told=-9
  trap tell_all TERM
  trap '' INT # of the whole group by Ctrl-C: the supervisor makes one TERM of it, which several processes can agree on
  port=$(free_port)
  for ((index = 0; index < PROCESSES; index++)); do
    log=$(log_of "$index")
    echo "== $(date -u +%FT%TZ) $(hostname): $(quote "${COMMAND[@]}")" >>"$log"
    start_one "$index" "$port" "$log" &
    running+=($!)
  done
  while ((${#running[@]})); do
    for index in "${!running[@]}"; do
      if ! alive "${running[index]}"; then
        one=0
        wait "${running[index]}" || one=$?
        unset "running[index]"
        if ((one && !code)); then code=$one end=$((SECONDS + GRACE)); fi
      fi
    done
    # One that was killed tells the others nothing: they would wait for it for minutes.
    if [[ -n $end ]] && ((SECONDS >= end)); then kill -KILL ${running[@]+"${running[@]}"} 2>/dev/null || true; fi
    sleep 0.2 &
    wait $! || true
  done
  return "$code"
}

tell_all() { # once: a signal to all processes of this script comes here twice, and the second TERM would end the work
  if ((SECONDS - told > 2)); then kill -TERM ${running[@]+"${running[@]}"} 2>/dev/null || true; fi
  told=$SECONDS
}

watch_maintenance() { # the announcement comes a minute ahead; to this script it is a TERM
  local place=http://metadata.google.internal/computeMetadata/v1/instance/maintenance-event event
  while sleep "${AROMNI_MAINTENANCE_POLL:-10}"; do
    event=$(curl -fs --max-time 5 -H 'Metadata-Flavor: Google' "$place") || continue
    if [[ $event == *_ON_HOST_MAINTENANCE ]]; then
      echo "$(basename "$0"): maintenance of $(hostname) is announced ($event): the run is saved and ended" >&2
      kill -TERM $$
      return
    fi
  done
}

start_one() { # start_one INDEX PORT LOG
  local more=()
  if ((PROCESSES > 1)); then
    more=(--coordinator "127.0.0.1:$2" --processes "$PROCESSES" --process-id "$1")
  elif [[ -n $DISTRIBUTED ]]; then
    more=(--distributed)
  fi
  # Into the log by a process substitution, so that a signal meets the program itself.
  if (($1 == 0)); then
    exec "${COMMAND[@]}" ${more[@]+"${more[@]}"} > >(trap '' TERM INT && exec tee -a "$3") 2>&1
  else
    exec "${COMMAND[@]}" ${more[@]+"${more[@]}"} >>"$3" 2>&1
  fi
}

if [[ -n $DRY_RUN ]]; then
  for ((index = 0; index < PROCESSES; index++)); do
    if ((PROCESSES > 1)); then
      run "${COMMAND[@]}" --coordinator "127.0.0.1:$(free_port)" --processes "$PROCESSES" --process-id "$index"
    else
      run "${COMMAND[@]}" ${DISTRIBUTED:+--distributed}
    fi
  done
  LAST=$(log_of $((PROCESSES - 1)))
  note "output in $(log_of 0)$( ((PROCESSES == 1)) || echo " ... $LAST"); after a failure again, up to $RESTARTS times"
else
  if [[ -n $TPU ]]; then
    watch_maintenance &
    WATCHER=$!
    trap 'kill "$WATCHER" 2>/dev/null || true' EXIT
  fi
  supervise attempt
fi
