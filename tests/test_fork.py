"""Processes forked after kernels have run on several threads compute, where they used to hang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from contextlib import suppress

import pytest

if not hasattr(os, "fork"):
    pytest.skip("this system does not fork", allow_module_level=True)

SETUP = """
import multiprocessing
import numpy as np
import torch
from nnmf_cuda import NNMF, ops

torch.set_num_threads(2)
X = np.random.default_rng(0).random((400, 300))
images, weights = torch.rand(8, 3, 64, 64), torch.rand(16, 3, 5, 5)

def fits(seed):
    results = []
    for solver, beta_loss in (("mu", 1), ("accelerated-mu", 1.5), ("hals", 2)):
        model = NNMF(5, solver=solver, beta_loss=beta_loss, random_state=seed, max_iter=20, tol=0)
        results += [model.fit_transform(X), model.components_]
    return results

def of_torch(seed):
    rows = torch.from_numpy(X).requires_grad_()
    ops.project(rows @ rows.T, rows[:5] @ rows.T).sum().backward()
    return [rows.grad.numpy(), torch.conv2d(images, weights).numpy()]

def everything(seed):
    return [torch.get_num_threads(), *fits(seed), *of_torch(seed)]

def check(results, wanted):
    for result, (_, *arrays) in zip(results, wanted, strict=True):
        assert result[0] == 1, result[0]
        # Threads of a convolution and of a product may add in another order.
        for ours, theirs in zip(result[1:], arrays, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    print("done")

wanted = [everything(seed) for seed in range(4)]
assert wanted[0][0] == 2
"""
WAYS = {
    "Pool": """
        with multiprocessing.get_context("fork").Pool(2) as pool:
            check(pool.map(everything, range(4)), wanted)
        assert torch.get_num_threads() == 2
        """,
    "child of a child": """
        context = multiprocessing.get_context("fork")

        def parent_of_another(queue):
            child = context.Process(target=lambda: queue.put([everything(0)]))
            child.start()
            child.join()

        queue = context.Queue()
        child = context.Process(target=parent_of_another, args=(queue,))
        child.start()
        check(queue.get(), wanted[:1])
        child.join()
        """,
    "joblib": """
        from joblib import Parallel, delayed

        with Parallel(n_jobs=2, backend="multiprocessing") as parallel:
            check(parallel(delayed(everything)(seed) for seed in range(4)), wanted)
        """,
    "DataLoader": """
        class Seeds(torch.utils.data.Dataset):
            def __len__(self):
                return 4

            def __getitem__(self, seed):
                return everything(seed)

        loader = torch.utils.data.DataLoader(
            Seeds(),
            batch_size=None,
            num_workers=2,
            multiprocessing_context="fork",
            collate_fn=lambda item: item,
        )
        check(list(loader), wanted)
        """,
    # Not a fork; the usual way to many fits at once must go on working.
    "GridSearchCV": """
        from sklearn.model_selection import GridSearchCV

        error = lambda model, X, y=None: -model.reconstruction_err_
        grid = {"n_components": [2, 3]}
        model = NNMF(random_state=0, max_iter=20, tol=0)
        search = GridSearchCV(model, grid, scoring=error, cv=2, n_jobs=2).fit(X)
        assert search.best_params_ == {"n_components": 3}
        print("done")
        """,
}


@pytest.mark.parametrize(
    "way",
    [pytest.param(way, marks=pytest.mark.slow if way == "GridSearchCV" else ()) for way in WAYS],
)
def test_processes_forked_from_one_with_two_threads_compute_the_same(way: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SETUP + textwrap.dedent(WAYS[way])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    try:
        said, complaint = process.communicate(timeout=120)
    finally:
        with suppress(ProcessLookupError):  # there are only some left where they hang
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, complaint
    assert said.strip() == "done"
