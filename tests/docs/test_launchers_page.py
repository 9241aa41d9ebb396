"""The script of docs/launchers.md runs, and its commands have options that there are."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from torch.distributed.run import get_args_parser

from nnmf_cuda import NNMF

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "launchers.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)


SCRIPT = blocks("python")[0]
CONSOLE = [line[2:] for block in blocks("console") for line in block.splitlines()]
SERVICE, JOB = yaml.safe_load_all(blocks("yaml")[0])
(CONTAINER,) = JOB["spec"]["template"]["spec"]["containers"]
COMMANDS = [*CONSOLE, blocks("bash")[0].replace("\\\n", " "), *CONTAINER["args"]]
TORCHRUN = [
    re.sub(r"\$\([^)]*\)", "0", found)
    for command in COMMANDS
    for found in re.findall(r"(?<!\w)torchrun (.*)", command)
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def test_two_machines_on_this_one_give_the_fit_of_one_process(tmp_path: Path) -> None:
    (command,) = (line for line in TORCHRUN if "node0" in line)
    address = f"localhost:{free_port()}"
    options = shlex.split(command.replace("node0:29400", address))
    # Two machines of one process: to start more takes as long again.
    options[options.index("--nproc-per-node=2")] = "--nproc-per-node=1"
    (tmp_path / "fit_job.py").write_text(SCRIPT, encoding="utf-8")
    X = np.random.default_rng(0).integers(1, 255, size=(41, 30)).astype(np.uint8)
    np.save(tmp_path / "images.npy", X)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    machines = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *options],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    said = [machine.communicate()[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    one = NNMF(4, solver="accelerated-mu", max_iter=50, tol=0, random_state=0).fit(X)
    features = np.concatenate([np.load(f) for f in sorted((tmp_path / "out").glob("*.npy"))])
    H = NNMF.load(tmp_path / "out" / "model.safetensors").components_
    assert features.shape == (41, 4)
    np.testing.assert_allclose(W_H(features, H), W_H(one.transform(X), one.components_), atol=2e-3)


def W_H(W: np.ndarray, H: np.ndarray) -> np.ndarray:
    return W @ H


@pytest.mark.parametrize("command", TORCHRUN, ids=lambda command: command[:40])
def test_torchrun_has_these_options(command: str) -> None:
    known = get_args_parser().parse_args(shlex.split(command))
    assert known.training_script in ("fit_job.py", "nnmf_cuda", "/data/fit_job.py")
    assert known.module == (known.training_script == "nnmf_cuda")
    if not known.standalone:
        assert known.rdzv_backend == "c10d"
        assert known.rdzv_endpoint.endswith(":29400")


def test_every_option_that_the_text_names_is_torchruns() -> None:
    assert len(TORCHRUN) == 6
    known = {option for action in get_args_parser()._actions for option in action.option_strings}
    text = re.sub(r"^```.*?^```", "", PAGE, flags=re.M | re.S)
    named = set(re.findall(r"`(--[a-z-]+)", text))
    of_slurm = {"--cpus-per-task", "--gpus-per-node"}
    assert "--max-restarts" in named
    assert named - of_slurm <= known


def test_the_job_of_slurm_is_a_script(tmp_path: Path) -> None:
    (script,) = blocks("bash")
    path = tmp_path / "job.sh"
    path.write_text(script, encoding="utf-8")
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    directives = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", script, re.M))
    assert directives["ntasks-per-node"] == "1"  # one torchrun a machine
    assert f"--nproc-per-node={directives['gpus-per-node']} " in script


def test_the_pods_of_kubernetes_find_each_other() -> None:
    spec = JOB["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"]
    assert SERVICE["spec"] == {
        "clusterIP": "None",
        "selector": {"job-name": JOB["metadata"]["name"]},
    }
    name, service = JOB["metadata"]["name"], SERVICE["metadata"]["name"]
    assert spec["template"]["spec"]["subdomain"] == service
    (run,) = CONTAINER["args"]
    assert f"--rdzv-endpoint={name}-0.{service}:29400" in run
    assert f"--nnodes={spec['completions']} " in run
    assert f"--nproc-per-node={CONTAINER['resources']['limits']['nvidia.com/gpu']} " in run
    # Only the pod with index 0 is the host of the others.
    for index, host in (("0", "1"), ("3", "0")):
        choice = re.findall(r"is_host=(\$\(.*?\))", run)[0]
        said = subprocess.run(
            ["sh", "-c", f"echo {choice}"],
            env={"JOB_COMPLETION_INDEX": index, "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=True,
        )
        assert said.stdout.strip() == host


def test_the_page_says_what_has_not_run() -> None:
    for launcher in ("Slurm", "Kubernetes", "torchx", "Ray"):
        (row,) = (line for line in PAGE.splitlines() if line.startswith("|") and launcher in line)
        assert "**not run**" in row
