"""The launch scripts, by dry run and with pretended tools: what is printed is what is done."""

import configparser
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.launch.places import CLOUD, LAUNCH, OPTIONS, ROOT, SETTINGS, TRAINING, Tools, call, commands


@pytest.fixture
def tools(tmp_path):
    return Tools(tmp_path)


def test_shellcheck():
    found = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
    assert found, "shellcheck is missing: pip install -e '.[test]'"
    scripts = sorted(LAUNCH.glob("*.sh"))
    options = ["--external-sources", "--source-path=SCRIPTDIR"]
    done = subprocess.run([found, *options, *scripts], capture_output=True, text=True)
    assert len(scripts) > 7 and done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", OPTIONS)
def test_a_dry_run_prints_commands_that_a_shell_can_read(script, tools):
    printed = tools.dry_run(script)
    subprocess.run(["bash", "-n"], input=printed, text=True, check=True)
    # Words with spaces arrive whole, also inside the command of another machine.
    words = [word for command in commands(printed) for word in command]
    inner = [word for text in words if "launch/local.sh" in text for word in shlex.split(text)]
    written = shlex.split(printed, comments=True) if script == "slurm.sh" else []
    assert "data.path=/mnt/my data" in [*words, *inner, *written]


@pytest.mark.parametrize("script", ["tpu_vm.sh", "tpu_pod.sh", "gke.sh", "docker.sh"])
def test_what_is_printed_is_what_is_done(script, tools):
    expected = commands(tools.dry_run(script))
    done = tools.call(script, *TRAINING, *OPTIONS[script], *SETTINGS, AROMNI_STATE="ACTIVE")
    assert done.returncode == 0, done.stderr
    asked = {"describe", "rev-parse", "status", "cat-file"}
    made = [command for command in tools.calls() if not asked & set(command)]
    # A queued resource that is there already is not asked for again.
    assert made == [command for command in expected if not (script == "tpu_pod.sh" and "create" in command)]
    assert expected and not [command for command in expected if "delete" in command]


def test_tpu_vm_creates_with_the_generations_own_software(tools):
    assert commands(tools.dry_run("tpu_vm.sh"))[0] == shlex.split(
        "gcloud compute tpus tpu-vm create small --project mine --zone there-a "
        "--accelerator-type v5litepod-8 --version v2-alpha-tpuv5-lite"
    )


def test_pods_are_asked_for_as_queued_resources_and_started_on_every_worker(tools):
    create, _, copy, install, start = commands(tools.dry_run("tpu_pod.sh"))
    assert create == shlex.split(
        "gcloud compute tpus queued-resources create big --project mine --zone there-a --accelerator-type v6e-256 "
        "--runtime-version v2-alpha-tpuv6e --node-count 2 --node-prefix big --spot"
    )
    for command in (copy, install, start):
        assert {"--worker=all", "--node=all"} <= set(command)
    assert install[-1].startswith("mount -a && mkdir") and "launch/install.sh --extra tpu" in install[-1]
    assert "launch/local.sh --distributed --tpu v6e --restarts 5 --log-dir logs --config" in start[-1]


def test_a_pod_that_was_taken_away_is_reported_and_not_deleted(tools):
    done = tools.call("tpu_pod.sh", *TRAINING, *OPTIONS["tpu_pod.sh"], AROMNI_STATE="SUSPENDED")
    assert done.returncode == 2 and "big is SUSPENDED; look with" in done.stderr
    assert not [command for command in tools.calls() if {"delete", "create", "ssh"} & set(command)]


def test_gke_restarts_all_pods_together(tools):
    *_, workload = commands(tools.dry_run("gke.sh"))
    assert workload[:3] == ["xpk", "workload", "create"]
    options = dict(zip(workload[3::2], workload[4::2], strict=True))
    assert options["--workload"] == "one" and options["--max-restarts"] == "5" and options["--tpu-type"] == "v5p-128"
    assert options["--command"].startswith("launch/local.sh --distributed --tpu v5p --restarts 0 --config")


def test_every_process_of_a_local_run_has_its_number(tools):
    starts = [command for command in commands(tools.dry_run("local.sh")) if "train" in command]
    assert [command[-1] for command in starts] == ["0", "1"]
    assert starts[0][-6:-3:2] == ["--coordinator", "--processes"] and starts[0][:-1] == starts[1][:-1]


def test_slurm_has_one_task_for_each_gpu(tools):
    printed = tools.dry_run("slurm.sh")
    job = next(command for command in commands(printed) if command[0] == "sbatch")
    assert {"--exclusive", "--requeue"} <= set(job) and job[-1] == "/mnt/runs/one/slurm.sh"
    assert job[job.index("--ntasks-per-node") + 1] == job[job.index("--gpus-per-node") + 1] == "4"


def test_the_batch_job_restarts_the_step_and_goes_back_into_the_queue(tmp_path, tools):
    """The first step fails; the second, when its time is up (TERM comes), saves, and the job is queued again."""
    run = tmp_path / "run"
    tools.add(
        "srun",
        f"#!/usr/bin/env bash\nif [[ ! -e {tmp_path}/failed ]]; then touch {tmp_path}/failed; exit 1; fi\n"
        "trap 'echo saved; exit 130' TERM; kill -TERM $PPID\nwhile true; do sleep 0.05 & wait $!; done\n",
    )
    words = ["--config", "configs/numbers.py:tiny", "--run-dir", str(run), "--time", "1:00:00"]
    assert tools.call("slurm.sh", *words).returncode == 0
    environment = {**os.environ, "PATH": f"{tools.folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "77"}
    job = subprocess.run(
        ["bash", run / "slurm.sh"], env=environment | {"AROMNI_RESTART_PAUSE": "0"}, capture_output=True, text=True,
        timeout=200,
    )  # fmt: skip
    assert job.returncode == 130 and job.stdout == "saved\n"
    assert "exit code 1" in job.stderr and "(1 of 5)" in job.stderr
    assert tools.calls()[-1] == ["scontrol", "requeue", "77"]


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        ("local.sh", ["--run-dir", "r"], "--config is missing"),
        ("local.sh", ["--config", "c", "--run-dir"], "--run-dir needs a value"),
        ("local.sh", ["--config", "c", "--run-dir", "r", "--steps", "3"], "unknown option --steps"),
        ("local.sh", [*TRAINING, "--restarts", "many"], "--restarts many: expected a whole number from 0"),
        ("local.sh", [*TRAINING, "--processes", "0"], "--processes 0: expected a whole number from 1"),
        ("local.sh", [*TRAINING, "--processes", "2", "--distributed"], "leave --processes out"),
        ("local.sh", [*TRAINING, "--tpu", "v3"], "TPU v3 is not known here: use v5e"),
        ("tpu_vm.sh", [*TRAINING, "--type", "v6e-8", *CLOUD], "--name is missing"),
        ("tpu_vm.sh", [*TRAINING, *OPTIONS["tpu_vm.sh"][:4]], "--project is missing: give it, or set AROMNI_PROJECT"),
        ("tpu_vm.sh", [*TRAINING, *OPTIONS["tpu_vm.sh"][:6]], "--zone is missing: give it, or set AROMNI_ZONE"),
        ("tpu_vm.sh", [*TRAINING, *OPTIONS["tpu_vm.sh"], "--name", "a; b"], "--name a; b: use lower-case letters"),
        ("tpu_vm.sh", [*TRAINING, *OPTIONS["tpu_vm.sh"], "--config", "/tmp/c.py"], "is not in the last commit"),
        ("tpu_pod.sh", [*TRAINING, *OPTIONS["tpu_pod.sh"], "--reserved"], "--spot and --reserved exclude each other"),
        ("tpu_pod.sh", [*TRAINING, *OPTIONS["tpu_pod.sh"], "--run-dir", "r"], "--run-dir r: give an absolute path"),
        ("gke.sh", [*TRAINING, *CLOUD, "--cluster", "c", "--type", "v6e-8"], "--image is missing"),
        ("slurm.sh", TRAINING, "--time is missing"),
        ("docker.sh", [*TRAINING, "--accelerator", "gpu"], "--accelerator gpu: use cpu, tpu or cuda"),
    ],
)
def test_bad_usage_is_one_line(script, words, message, tools):
    done = tools.call(script, *words, "--dry-run")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"{script}: ") and message in done.stderr and done.stderr.count("\n") == 1


def test_project_and_zone_may_come_from_the_environment(tools):
    words = [*TRAINING, *OPTIONS["tpu_vm.sh"][:4], "--dry-run"]
    done = tools.call("tpu_vm.sh", *words, AROMNI_PROJECT="mine", AROMNI_ZONE="there-a")
    assert commands(done.stdout)[0][6:10] == CLOUD


def test_a_missing_tool_is_named():
    """With an empty PATH but for what the script itself needs."""
    bash = shutil.which("bash")
    done = subprocess.run(
        [bash, "-c", f"dirname() {{ echo {LAUNCH}; }}; basename() {{ echo x.sh; }}; . {LAUNCH}/common.sh; "
         "require_tool gcloud 'install it'"],
        env={"PATH": ""}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and "gcloud is not installed here: install it" in done.stderr


@pytest.mark.parametrize("script", [*OPTIONS, "install.sh"])
def test_help_names_every_option(script):
    done = call(script, "--help")
    source = (LAUNCH / script).read_text() + ((LAUNCH / "tpu_common.sh").read_text() if script[:4] == "tpu_" else "")
    options = re.findall(r"^ +(--[a-z-]+)\)", source, re.MULTILINE)
    assert done.returncode == 0 and "--dry-run" in done.stdout
    assert options and all(f"\n  {option} " in f"\n{done.stdout}" for option in options), done.stdout


def test_installation_is_pinned():
    done = call("install.sh", "--extra", "tpu,wandb", "--dry-run")
    install = commands(done.stdout)[-1]
    assert install[1:4] == ["-m", "pip", "install"] and f"{ROOT}/constraints.txt" in install
    assert install[-1] == f"{ROOT}[tpu,wandb]"


def test_a_machine_with_an_old_python_gets_a_newer_one(tmp_path, tools):
    """As the images of TPU VMs are."""
    shutil.copytree(LAUNCH, tmp_path / "launch")
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        tools.add(name, "#!/bin/sh\nexit 1\n")
    done = subprocess.run(
        [tmp_path / "launch/install.sh", "--extra", "tpu", "--dry-run"],
        env={"PATH": f"{tools.folder}:/usr/bin:/bin"}, capture_output=True, text=True,
    )  # fmt: skip
    first, second, _ = commands(done.stdout)
    assert first == ["python3", "-m", "pip", "install", "--quiet", "--user", "uv"]
    assert second == ["python3", "-m", "uv", "venv", "--seed", "--python", "3.12", f"{tmp_path}/.venv"]


def test_every_extra_that_is_named_exists():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = set(setup["options.extras_require"])
    texts = {path.name: path.read_text() for path in [*LAUNCH.glob("*.sh"), LAUNCH / "Dockerfile"]}
    named = {
        name for text in texts.values() for group in re.findall(r"--extra ([a-z,]+)", text) for name in group.split(",")
    }
    assert named == {"tpu", "cuda"} <= extras
    cases = re.findall(r"^ +([a-z |]+)\) extras=", texts["Dockerfile"], re.MULTILINE)
    accelerators = {name for case in cases for name in case.split(" | ")}
    assert accelerators == {"cpu", "tpu", "cuda"} and accelerators - {"cpu"} <= extras


def test_the_dockerfile_copies_what_there_is_and_names_no_registry():
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("FROM")] == ["FROM python:${PYTHON}-slim"]
    copied = {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}
    assert copied and all((ROOT / name).exists() for name in copied)
    allowed = (ROOT / ".dockerignore").read_text()
    assert all(f"!{name.split('/')[0]}\n" in allowed for name in copied)
    assert not re.search(r"https?:|\w+\.(io|com|dev|org)\b", "\n".join(lines))


def test_no_script_deletes():
    for path in LAUNCH.glob("*.sh"):
        for line in path.read_text().splitlines():
            words = line.split("#")[0]
            assert not re.search(r"(?<!-)\brm\b|\bscancel\b", words), line
            assert "delete" not in words or line.lstrip().startswith(("note", "die")), line
