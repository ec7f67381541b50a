#!/usr/bin/env bash
# Train on a TPU pod slice, or several: ask for it as a queued resource if it is not there, wait, send this checkout to
# every worker, install, start. Nothing is ever deleted. The run folder and the data must be on storage that all workers
# see (a bucket or NFS; mount it with --before).
#   --name NAME        of the queued resource
#   --type TYPE        of a slice: v5litepod-256, v5p-128, v6e-256 ...
#   --slices N         slices of that type (1)
#   --project PROJECT  or AROMNI_PROJECT in the environment
#   --zone ZONE        or AROMNI_ZONE
#   --runtime VERSION  software of the machines (the generation's usual one)
#   --spot             cheaper; may be taken away at any time
#   --reserved         from a reservation of the project
#   --before COMMAND   on every worker before the installation: mount the bucket, for example

set -euo pipefail
HERE=$(dirname "${BASH_SOURCE[0]}")
. "$HERE/common.sh"
. "$HERE/tpu_common.sh"

SLICES=1 RESERVED=""
own_option() {
  case $1 in
    --slices) value "$@" && SLICES=$VALUE ;;
    --reserved) RESERVED=1 ;;
    *) tpu_option "$@" ;;
  esac
}
parse_options "$@"
require_number --slices "$SLICES" 1
[[ -z $SPOT || -z $RESERVED ]] || die "--spot and --reserved exclude each other: choose one"
[[ $RUN_DIR == /* ]] || die "--run-dir $RUN_DIR: give an absolute path on storage that all workers share (--before mounts it)"
check_tpu_options

GROUP=(compute tpus queued-resources)
DESCRIBE=(gcloud "${GROUP[@]}" describe "$NAME" "${PLACE[@]}" "--format=value(state.state)")
NODES=(--node-id "$NAME")
((SLICES == 1)) || NODES=(--node-count "$SLICES" --node-prefix "$NAME")

if [[ -n $DRY_RUN ]]; then
  note "unless this finds it: $(quote "${DESCRIBE[@]}")"
fi
if [[ -n $DRY_RUN ]] || ! "${DESCRIBE[@]}" >/dev/null 2>&1; then
  run gcloud "${GROUP[@]}" create "$NAME" "${PLACE[@]}" --accelerator-type "$TYPE" --runtime-version "$RUNTIME" \
    "${NODES[@]}" ${SPOT:+--spot} ${RESERVED:+--reserved}
fi

wait_until_active() {
  local state before=""
  while true; do
    state=$("${DESCRIBE[@]}") || die "queued resource $NAME cannot be described any more: $(quote "${DESCRIBE[@]}")"
    [[ $state == "$before" ]] || note "$(date -u +%FT%TZ) $NAME: $state"
    before=$state
    case $state in
      ACTIVE) return ;;
      FAILED | SUSPENDED | SUSPENDING | DELETING)
        die "$NAME is $state; look with 'gcloud ${GROUP[*]} describe', delete it yourself and start again (a run goes on)"
        ;;
    esac
    sleep "${AROMNI_POLL_SECONDS:-60}"
  done
}

if [[ -n $DRY_RUN ]]; then
  note "wait until it says ACTIVE: $(quote "${DESCRIBE[@]}")"
else
  wait_until_active
fi
start_on_workers "${GROUP[@]}" -- --worker=all --node=all
