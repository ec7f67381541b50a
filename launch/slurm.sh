#!/usr/bin/env bash
# Train on GPUs under SLURM, one process for each GPU. The job goes on after failures and, put into the queue again, after
# its time is up or it was preempted. The checkout, its .venv (launch/install.sh --extra cuda), data and run folder must be
# on storage that all nodes share.
#   --nodes N           (1)
#   --gpus N            GPUs of a node (8)
#   --time LIMIT        of one job, as SLURM writes it: 24:00:00, 2-00:00:00
#   --partition NAME    where the cluster needs one
#   --account NAME      where the cluster needs one
#   --sbatch WORDS ...  any other options of sbatch: --sbatch exclusive constraint=h100

set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

NODES=1 GPUS=8 TIME="" PARTITION="" ACCOUNT="" MORE=()
own_option() {
  case $1 in
    --nodes) value "$@" && NODES=$VALUE ;;
    --gpus) value "$@" && GPUS=$VALUE ;;
    --time) value "$@" && TIME=$VALUE ;;
    --partition) value "$@" && PARTITION=$VALUE ;;
    --account) value "$@" && ACCOUNT=$VALUE ;;
    --sbatch)
      value "$@"
      TAKEN=1
      while ((TAKEN < $#)) && [[ ${*:TAKEN+1:1} != --* ]]; do
        MORE+=("--${*:TAKEN+1:1}")
        TAKEN=$((TAKEN + 1))
      done
      ;;
    *) return 1 ;;
  esac
}
parse_options "$@"
require_number --nodes "$NODES" 1
require_number --gpus "$GPUS" 1
require --time "$TIME"
require_tool sbatch "run this on a login node of the cluster"

train_options
find_aromni
STEP=(
  srun --kill-on-bad-exit=1 --open-mode=append --output "$RUN_DIR/logs/worker-%t.log"
  "${AROMNI[@]}" train --distributed "${OPTIONS[@]}"
)
BATCH=$RUN_DIR/slurm.sh
JOB_OPTIONS=(
  --job-name "aromni-$(basename "$RUN_DIR")" --nodes "$NODES" --ntasks-per-node "$GPUS" --gpus-per-node "$GPUS"
  --time "$TIME" ${PARTITION:+--partition "$PARTITION"} ${ACCOUNT:+--account "$ACCOUNT"}
  --requeue --open-mode append --output "$RUN_DIR/logs/slurm-%j.log"
  --signal B:TERM@180 ${MORE[@]+"${MORE[@]}"}
)

batch_script() { # 180 seconds before the end TERM comes here, goes to all tasks, and they save
  cat <<EOF
#!/usr/bin/env bash
# Made by launch/slurm.sh; $(quote sbatch "${JOB_OPTIONS[@]}" "$BATCH")
. $(quote "$ROOT/launch/common.sh")
RUN_DIR=$(quote "$RUN_DIR") RESTARTS=$RESTARTS LOG_DIR=$(quote "$RUN_DIR/logs")
code=0
supervise $(quote "${STEP[@]}") || code=\$?
[[ -z \$STOPPED ]] || scontrol requeue "\$SLURM_JOB_ID"
exit "\$code"
EOF
}

run mkdir -p "$RUN_DIR/logs"
if [[ -n $DRY_RUN ]]; then
  echo "cat >$(quote "$BATCH") <<'END'"
  batch_script
  echo "END"
else
  batch_script >"$BATCH"
fi
run sbatch "${JOB_OPTIONS[@]}" "$BATCH"
note "output: $RUN_DIR/logs/worker-*.log of every task, slurm-JOB.log of the job itself"
