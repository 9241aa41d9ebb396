"""The script of docs/distributed.md that is killed, and goes on from its last checkpoint."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nnmf_cuda import NNMF
from nnmf_cuda.distributed import Shard
from tests.distributed.team import Team, team_group

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")

SECONDS = 300
"""For a run to end, which it does at once where the machine is not busy."""


def undisturbed(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit as the script does."""
    model = NNMF(4, solver="accelerated-mu", max_iter=1500, tol=0, random_state=0)
    model.fit(Shard.of_rows(X, team_group()))
    return model.W_, model.components_


def run(folder: Path, *, seed: int, n_kills: int) -> list[tuple[int, int]]:
    """Run the script and kill a rank so many times, at a moment after so many records.

    Returns the first and the last iteration that it told of, of each start.
    """
    code = (folder / "restart.py").read_text(encoding="utf-8")
    ((variable, value, words),) = re.findall(r"^# (\w+)=(\w+) torchrun (.*)$", code, re.M)
    command = words.split()
    command[0] = f"--max-restarts={n_kills}"
    rng, starts, killed = np.random.default_rng(seed), {}, 0
    last = 10 * int(rng.integers(20))
    with subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", variable: value},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                restart, iteration = map(int, line.split()[:2])
                first = starts.get(restart, (iteration, 0))[0]
                starts[restart] = first, iteration
                if restart == killed < n_kills and iteration - first >= last:
                    time.sleep(rng.uniform(0, 0.1))
                    os.kill(rank_of(process.pid, int(rng.integers(2))), signal.SIGKILL)
                    killed, last = killed + 1, 10 * int(rng.integers(20))
            assert process.wait(SECONDS) == 0
        finally:
            process.kill()
    assert sorted(starts) == list(range(n_kills + 1))
    return [starts[restart] for restart in sorted(starts)]


def rank_of(parent: int, rank: int) -> int:
    """Return the process that is this rank, of those that the parent has started."""
    for task in Path(f"/proc/{parent}/task").iterdir():
        for pid in (task / "children").read_text().split():
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if b"RANK=%d" % rank in environment:
                return int(pid)
    raise AssertionError(f"no process of {parent} is rank {rank}")


@pytest.mark.parametrize(
    ("seed", "n_kills"),
    [(0, 2), *(pytest.param(seed, 5, marks=pytest.mark.slow) for seed in (1, 2, 3, 4))],
)
def test_a_killed_fit_goes_on(team: Team, tmp_path: Path, seed: int, n_kills: int) -> None:
    (code,) = re.findall(r"^```python\n(# restart.py:\n.*?)^```", PAGE, re.M | re.S)
    assert "checkpoint_every=30" in code
    code = code.replace("checkpoint_every=30", "checkpoint_every=0")  # seconds pass too slowly
    (tmp_path / "restart.py").write_text(code, encoding="utf-8")
    X = np.random.default_rng(0).integers(1, 255, size=(41, 30)).astype(np.uint8)
    np.save(tmp_path / "images.npy", X)
    starts = run(tmp_path, seed=seed, n_kills=n_kills)
    print(starts)  # shown by pytest -s
    assert starts[0][0] == 0
    assert starts[-1][1] == 1500
    for (_, last), (first, _) in zip(starts, starts[1:], strict=False):
        # A record is told of before it is written; what goes on from the start tells of it again.
        assert max(first - 10, 0) in (max(last - 10, 0), last)
    H = NNMF.load(tmp_path / "model.safetensors").components_
    for rank, (expected_W, expected_H) in enumerate(team.run(undisturbed, X, X)):
        np.testing.assert_array_equal(np.load(tmp_path / f"W_{rank}.npy"), expected_W)
        np.testing.assert_array_equal(H, expected_H)
    assert len(list(tmp_path.glob("fit.safetensors*"))) == 2  # the index and one folder
