#!/usr/bin/env bash
# Train on TPU slices of a GKE cluster, as an xpk workload that GKE restarts when a pod fails (--restarts times in all).
# The run folder and the data must be on storage that the cluster mounts into every pod (xpk storage attach).
#   --cluster NAME     of the cluster
#   --workload NAME    of this run (the run folder's name)
#   --image IMAGE      made from launch/Dockerfile with ACCELERATOR=tpu, where the cluster can pull it
#   --build            build and push the image first
#   --type TYPE        of a slice: v5litepod-256, v5p-128, v6e-256 ...
#   --slices N         slices of that type (1)
#   --project PROJECT  or AROMNI_PROJECT in the environment
#   --zone ZONE        or AROMNI_ZONE

set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

CLUSTER="" WORKLOAD="" IMAGE="" BUILD="" TYPE="" SLICES=1
PROJECT=${AROMNI_PROJECT:-} ZONE=${AROMNI_ZONE:-}
own_option() {
  case $1 in
    --cluster) value "$@" && CLUSTER=$VALUE ;;
    --workload) value "$@" && WORKLOAD=$VALUE ;;
    --image) value "$@" && IMAGE=$VALUE ;;
    --build) BUILD=1 ;;
    --type) value "$@" && TYPE=$VALUE ;;
    --slices) value "$@" && SLICES=$VALUE ;;
    --project) value "$@" && PROJECT=$VALUE ;;
    --zone) value "$@" && ZONE=$VALUE ;;
    *) return 1 ;;
  esac
}
parse_options "$@"
WORKLOAD=${WORKLOAD:-$(basename "$RUN_DIR" | tr 'A-Z_.' 'a-z--')}
require --cluster "$CLUSTER"
require_name --workload "$WORKLOAD"
require --image "$IMAGE"
require --type "$TYPE"
require_number --slices "$SLICES" 1
require --project "$PROJECT" AROMNI_PROJECT
require --zone "$ZONE" AROMNI_ZONE
[[ $RUN_DIR == /* ]] || die "--run-dir $RUN_DIR: give an absolute path on storage that every pod mounts"
[[ -f $ROOT/${CONFIG%%:*} ]] || die "--config $CONFIG: give its path in the checkout, which the image is made from"
GENERATION=$(tpu_generation "$TYPE")
require_tool xpk "pip install xpk"

if [[ -n $BUILD ]]; then
  require_tool docker "install it, or build the image elsewhere and leave --build out"
  run docker build --file "$ROOT/launch/Dockerfile" --build-arg ACCELERATOR=tpu --tag "$IMAGE" "$ROOT"
  run docker push "$IMAGE"
fi
train_options
# GKE restarts all pods together, as one alone could not go on; hence no restarts inside.
run xpk workload create --cluster "$CLUSTER" --workload "$WORKLOAD" --project "$PROJECT" --zone "$ZONE" \
  --tpu-type "$TYPE" --num-slices "$SLICES" --docker-image "$IMAGE" --max-restarts "$RESTARTS" \
  --command "$(quote launch/local.sh --distributed --tpu "$GENERATION" --restarts 0 "${OPTIONS[@]}")"
note "logs of every pod: in $RUN_DIR/logs, and kubectl logs --selector jobset.sigs.k8s.io/jobset-name=$WORKLOAD --prefix"
