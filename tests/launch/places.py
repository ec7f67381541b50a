"""Every script of launch/ with options that it accepts, and pretended tools for it to call."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
TRAINING = ["--config", "configs/reference.py:ar-omni", "--run-dir", "/mnt/runs/one"]
SETTINGS = ["--set", "data.path=/mnt/my data", "train.steps=10"]
CLOUD = ["--project", "mine", "--zone", "there-a"]
OPTIONS = {
    "local.sh": ["--processes", "2", "--tpu", "v6e"],
    "tpu_vm.sh": ["--name", "small", "--type", "v5litepod-8", *CLOUD],
    "tpu_pod.sh": ["--name", "big", "--type", "v6e-256", "--slices", "2", "--spot", "--before", "mount -a", *CLOUD],
    "gke.sh": ["--cluster", "c", "--image", "place/aromni:1", "--build", "--type", "v5p-128", *CLOUD],
    "slurm.sh": ["--nodes", "2", "--gpus", "4", "--time", "24:00:00", "--partition", "gpu", "--sbatch", "exclusive"],
    "docker.sh": ["--accelerator", "cuda"],
}


def call(script, *words, path=None, **environment):
    """Run a script; nothing of the caller's environment that the scripts read."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AROMNI_", "LIBTPU_", "SLURM_"))}
    kept |= {"PATH": f"{path}:{kept['PATH']}"} if path else {}
    return subprocess.run(
        [LAUNCH / script, *words], cwd=ROOT, env=kept | environment, capture_output=True, text=True, timeout=200
    )


_TOOL = """#!/usr/bin/env bash
{python} -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$(basename "$0")" "$@" >>{log}
case "$*" in
  *rev-parse*) echo 0123456789ab ;;
  *HEAD:/* | *tpu-vm*describe*) exit 1 ;;
  *describe*) echo "$AROMNI_STATE" ;;
esac
"""


class Tools:
    """Programs that only write down how they were called, found before the machine's own."""

    def __init__(self, folder):
        self.folder, self._log = folder / "bin", folder / "calls"
        self.folder.mkdir()
        for name in ("git", "gcloud", "docker", "xpk", "sbatch", "scontrol"):
            self.add(name, _TOOL.format(python=sys.executable, log=self._log))

    def add(self, name, text):
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    def calls(self):
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def call(self, script, *words, **environment):
        return call(script, *words, path=self.folder, **environment)

    def dry_run(self, script, *words):
        done = self.call(script, *TRAINING, *OPTIONS[script], *SETTINGS, *words, "--dry-run")
        assert done.returncode == 0, done.stderr
        return done.stdout


def commands(printed):
    """The commands of a dry run, as words, without comments and without the file that slurm.sh writes."""
    lines = re.sub(r"(?ms)^cat >.*?^END\n", "", printed).splitlines()
    return [shlex.split(line) for line in lines if not line.startswith("#")]
