# shellcheck shell=bash
# What tpu_vm.sh and tpu_pod.sh share: their options, and getting the code to every worker and started there. Sourced.

NAME="" TYPE="" RUNTIME="" BEFORE=""
# shellcheck disable=SC2034 # the scripts that source this one use it
SPOT=""
PROJECT=${AROMNI_PROJECT:-} ZONE=${AROMNI_ZONE:-}
FOLDER=aromni_jax # in the home of every worker
SENT=(aromni_jax configs launch constraints.txt setup.cfg pyproject.toml README.md LICENSE NOTICE)

tpu_option() {
  case $1 in
    --name) value "$@" && NAME=$VALUE ;;
    --type) value "$@" && TYPE=$VALUE ;;
    --project) value "$@" && PROJECT=$VALUE ;;
    --zone) value "$@" && ZONE=$VALUE ;;
    --runtime) value "$@" && RUNTIME=$VALUE ;;
    --before) value "$@" && BEFORE=$VALUE ;;
    --spot)
      # shellcheck disable=SC2034
      SPOT=1
      ;;
    *) return 1 ;;
  esac
}

check_tpu_options() {
  require --name "$NAME"
  require_name --name "$NAME"
  require --type "$TYPE"
  require --project "$PROJECT" AROMNI_PROJECT
  require --zone "$ZONE" AROMNI_ZONE
  GENERATION=$(tpu_generation "$TYPE")
  RUNTIME=${RUNTIME:-$(tpu_runtime "$GENERATION")}
  PLACE=(--project "$PROJECT" --zone "$ZONE")
  require_tool gcloud "install the Google Cloud CLI and log in, or look at what would be done with --dry-run"
  require_tool git "it packs what is sent"
  git -C "$ROOT" cat-file -e "HEAD:${CONFIG%%:*}" 2>/dev/null ||
    die "--config $CONFIG: is not in the last commit, which is what is sent: commit it, and give its path in the checkout"
  [[ -z $(git -C "$ROOT" status --porcelain --untracked-files=no -- "${SENT[@]}") ]] ||
    note "the last commit is sent; uncommitted changes are not"
}

tpu_runtime() { # the vendor's image for a generation, with plain JAX
  case $1 in
    v5e) echo v2-alpha-tpuv5-lite ;;
    v5p) echo v2-alpha-tpuv5 ;;
    v6e) echo v2-alpha-tpuv6e ;;
  esac
}

# start_on_workers COMMAND... -- FLAG...: COMMAND is gcloud's group of commands, FLAG chooses the workers
start_on_workers() {
  local group=() workers=() revision archive remote
  while [[ $1 != -- ]]; do
    group+=("$1")
    shift
  done
  shift
  workers=("$@")
  revision=$(git -C "$ROOT" rev-parse --short=12 HEAD)
  archive=${TMPDIR:-/tmp}/aromni_jax-$revision.tar.gz
  run git -C "$ROOT" archive --format tar.gz --output "$archive" HEAD -- "${SENT[@]}"
  run gcloud "${group[@]}" scp "$archive" "$NAME:" "${PLACE[@]}" "${workers[@]}"
  remote="mkdir -p $FOLDER && tar -xzf $(basename "$archive") -C $FOLDER && $FOLDER/launch/install.sh --extra tpu"
  on_workers "${BEFORE:+$BEFORE && }$remote"
  train_options
  remote=$(quote launch/local.sh --distributed --tpu "$GENERATION" --restarts "$RESTARTS" --log-dir logs "${OPTIONS[@]}")
  # The lock is held while it runs: a second start does nothing. All streams are cut off, or ssh would wait for its end.
  on_workers "cd $FOLDER && (setsid nohup flock --nonblock launch.lock $remote >>launch.log 2>&1 </dev/null &)"
  note "it runs on every worker, restarts there by itself, and keeps its logs in $FOLDER/logs. To run newer code stop it"
  note "first, then give the same command again. From here:"
  hint "watch" "tail -n 20 $FOLDER/launch.log"
  hint "all logs into DIR" "cat $FOLDER/logs/*.log" --output-directory DIR
  hint "stop, with a checkpoint" "pkill -TERM -f '[l]aunch/local.sh'"
  note "delete the machines (nothing here does): $(quote gcloud "${group[@]}" delete "$NAME" "${PLACE[@]}")"
}

on_workers() { run gcloud "${group[@]}" ssh "$NAME" "${PLACE[@]}" "${workers[@]}" --command "$1"; }

hint() { # hint WHAT COMMAND FLAG...
  note "$1: $(quote gcloud "${group[@]}" ssh "$NAME" "${PLACE[@]}" "${workers[@]}" --command "$2" "${@:3}")"
}
