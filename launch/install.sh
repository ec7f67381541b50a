#!/usr/bin/env bash
# Install this checkout into .venv beside it, with the versions of constraints.txt. The TPU scripts run it on every worker.
#   --extra NAMES   extras of setup.cfg, comma-separated: tpu, cuda, wandb ... (none)
#   --dry-run       print the exact commands and do nothing

set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

EXTRA=""
while (($#)); do
  TAKEN=1
  case $1 in
    --extra) value "$@" && EXTRA=$VALUE ;;
    --dry-run) DRY_RUN=1 ;;
    --help | -h) head_comment && exit 0 ;;
    *) die "unknown option $1 (--help lists them)" ;;
  esac
  shift "$TAKEN"
done

find_python() { # the first Python that is new enough
  local python
  for python in ${PYTHON:-} python3.12 python3.11 python3.13 python3; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$python"
      return
    fi
  done
}

FOUND=$(find_python)
if [[ -x $ROOT/.venv/bin/python ]]; then
  note "$ROOT/.venv is there already; only what is missing is installed"
elif [[ -n $FOUND ]]; then
  run "$FOUND" -m venv "$ROOT/.venv"
else # the images of TPU VMs have Python 3.10
  require_tool python3 "install Python 3.11 or newer, or set PYTHON"
  run python3 -m pip install --quiet --user uv
  run python3 -m uv venv --seed --python 3.12 "$ROOT/.venv"
fi
run "$ROOT/.venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  --constraint "$ROOT/constraints.txt" --editable "$ROOT${EXTRA:+[$EXTRA]}"
