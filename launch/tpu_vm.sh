#!/usr/bin/env bash
# Train on one Cloud TPU VM: create it if it is not there, send this checkout, install, start. Nothing is ever deleted.
#   --name NAME        of the TPU VM
#   --type TYPE        v5litepod-8, v5p-8, v6e-8 ...
#   --project PROJECT  or AROMNI_PROJECT in the environment
#   --zone ZONE        or AROMNI_ZONE
#   --runtime VERSION  software of the machine (the generation's usual one)
#   --spot             cheaper; may be taken away at any time
#   --before COMMAND   on the machine before the installation: mount a bucket or a disk, for example

set -euo pipefail
HERE=$(dirname "${BASH_SOURCE[0]}")
. "$HERE/common.sh"
. "$HERE/tpu_common.sh"

own_option() { tpu_option "$@"; }
parse_options "$@"
check_tpu_options

GROUP=(compute tpus tpu-vm)
if [[ -n $DRY_RUN ]]; then
  note "unless this finds it: $(quote gcloud "${GROUP[@]}" describe "$NAME" "${PLACE[@]}")"
fi
if [[ -n $DRY_RUN ]] || ! gcloud "${GROUP[@]}" describe "$NAME" "${PLACE[@]}" >/dev/null 2>&1; then
  run gcloud "${GROUP[@]}" create "$NAME" "${PLACE[@]}" --accelerator-type "$TYPE" --version "$RUNTIME" ${SPOT:+--spot}
fi
start_on_workers "${GROUP[@]}" -- --worker=all
