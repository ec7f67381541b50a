#!/usr/bin/env bash
# Train in a container on this machine: builds the image from launch/Dockerfile, then runs launch/local.sh in it. The
# current folder is the container's too, so relative paths mean the same inside.
#   --accelerator NAME  cpu, tpu or cuda (cpu)
#   --tpu GENERATION    compiler flags for v5e, v5p or v6e, with --accelerator tpu
#   --image NAME        of the image (aromni_jax:ACCELERATOR)

set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

ACCELERATOR=cpu IMAGE="" TPU=""
own_option() {
  case $1 in
    --accelerator) value "$@" && ACCELERATOR=$VALUE ;;
    --tpu) value "$@" && TPU=$VALUE ;;
    --image) value "$@" && IMAGE=$VALUE ;;
    *) return 1 ;;
  esac
}
parse_options "$@"
case $ACCELERATOR in
  cpu) DEVICES=(--user "$(id -u):$(id -g)") ;;
  cuda) DEVICES=(--user "$(id -u):$(id -g)" --gpus all) ;;
  tpu) DEVICES=(--privileged) ;; # the chips' device files belong to root
  *) die "--accelerator $ACCELERATOR: use cpu, tpu or cuda" ;;
esac
[[ -z $TPU || $ACCELERATOR == tpu ]] || die "--tpu goes with --accelerator tpu"
IMAGE=${IMAGE:-aromni_jax:$ACCELERATOR}
require_tool docker "install it, or train without a container: launch/local.sh"

train_options
run docker build --file "$ROOT/launch/Dockerfile" --build-arg "ACCELERATOR=$ACCELERATOR" --tag "$IMAGE" "$ROOT"
run docker run --rm --init --network host --shm-size 8g "${DEVICES[@]}" --volume "$PWD:/work" --workdir /work "$IMAGE" \
  /opt/aromni_jax/launch/local.sh --restarts "$RESTARTS" ${TPU:+--tpu "$TPU"} "${OPTIONS[@]}"
