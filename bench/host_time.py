"""What the host does for a step of an attack, of training and of a fit: time, operations, waits.

    python -m bench.host_time --against FOLDER > bench/results/host-time-2-cores.json

On a GPU a small step takes as long as the host needs to ask for it. That time does not depend on
the device, so it is measured on the CPU, on one row, where the arithmetic takes next to nothing: as
CPU time of the one thread, the least of several rounds. FOLDER is another tree of this repository,
built, with which each round takes turns; the other lines are of this one.

Of a step that is recorded the line "replayed" is what is left of it on the host where the replay
itself does nothing: the launch of the graph comes on top, on a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nnmf_cuda import ops
from nnmf_cuda.attacks import vector_apgd, vector_square
from nnmf_cuda.attacks.autoattack import square
from nnmf_cuda.attacks.autoattack.apgd import apgd_attack
from nnmf_cuda.attacks.balls import BALLS
from nnmf_cuda.attacks.gradient_ascent import pgd
from nnmf_cuda.attacks.objectives import margin_loss
from nnmf_cuda.models.defended import DefendedClassifier
from nnmf_cuda.models.diffusion import DiffusionPurifier, NoiseSchedule
from nnmf_cuda.models.networks import FeatureCNN, FeatureDenoiser
from nnmf_cuda.nnmf.matrix import Dense
from nnmf_cuda.nnmf.minimisation import all_runs
from nnmf_cuda.nnmf.problem import Objective, Penalty, Problem
from nnmf_cuda.training import epochs, loop, train_robust_classifier

ROUNDS = 7
STEPS = 100  # of APGD from a start
WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select")
"""Operations whose result a GPU's host waits for."""
N_FEATURES, N_DRAWS = 15, 8


@dataclass(frozen=True)
class Case:
    """Something of many steps."""

    name: str
    run: Callable[[int], object]  # makes so many times `n_steps` steps
    few: int  # between this number and
    many: int  # this one the difference is taken
    n_steps: int = 1
    recorded: bool = True  # as a CUDA graph, on a GPU
    blocks: bool = False  # may look at the device once in 16 steps


@dataclass(frozen=True)
class Line:
    """What one step asks of the host."""

    case: str
    way: str
    few_us: float  # of the smaller number of steps
    many_us: float
    n_steps: int  # by which they differ
    operations: float
    waits: float


def cases() -> list[Case]:
    """Return what is measured: one row, the paper's networks."""
    torch.manual_seed(0)
    classifier = FeatureCNN(N_FEATURES, 2)
    denoiser = FeatureDenoiser(N_FEATURES)
    purifier = DiffusionPurifier(denoiser, NoiseSchedule.linear(), n_draws=N_DRAWS)
    defended: nn.Module = DefendedClassifier(purifier, classifier)
    defended.eval().requires_grad_(False)
    x = torch.rand(1, N_FEATURES)
    y = classifier(x).argmax(1)
    small: dict[str, Any] = {"attack_eps": 1e-4}  # nothing breaks

    def climbed(model: nn.Module, n: int) -> Tensor:
        return vector_apgd(model, x, y, n_iter=STEPS, n_restarts=n, **small)

    def searched(n: int) -> Tensor:
        return vector_square(classifier, x, y, n_queries=n, **small)

    def stepped(n: int) -> Tensor:
        has_graphs = "asked" in inspect.signature(pgd).parameters
        asked = {"asked": classifier} if has_graphs else {}

        def objective(points: Tensor) -> Tensor:
            return margin_loss(classifier(points), y)

        return pgd(objective, BALLS["Linf"](x, 1e-4), x, n_iter=n, **asked)

    def trained(n: int) -> object:
        rows = x.repeat(4, 1)
        labels = torch.arange(4) % 2
        return train_robust_classifier(
            rows, labels, rows, labels, n_classes=2, epochs=n, batch_size=4, n_steps=5
        )

    X = torch.rand(1, 2) + 0.1
    W, H = torch.rand(1, 1, 1) + 0.1, torch.rand(1, 1, 2) + 0.1
    problem = Problem(Dense(X), Objective(1.0, Penalty()))

    def fitted(solver: str, n: int) -> object:
        return list(all_runs(problem, W, H, solver=solver, max_iter=10 * n, tol=0))

    noise = torch.randn(1, 1, N_DRAWS, N_FEATURES)
    weights = purifier.weights(), classifier.weights()
    chain = noise, purifier.timesteps, purifier.alphas_cumprod

    def repeated(call: Callable[[], object]) -> Callable[[int], None]:
        def run(n: int) -> None:
            for _ in range(n):
                call()

        return run

    def with_gradient(x: Tensor, noise: Tensor) -> object:
        leaf = x.detach().requires_grad_()
        logits = ops.defended_logits(leaf, noise, *chain[1:], *weights)
        return torch.autograd.grad(logits.sum(), leaf)

    def alone() -> object:
        with torch.no_grad():
            return ops.defended_logits(x, *chain, *weights)

    mu = partial(ops.nnmf_mu, X, W, H, n_iter=1)
    return [
        Case("APGD, a step, CNN", partial(climbed, classifier), 1, 4, STEPS),
        Case("APGD, a step, defended", partial(climbed, defended), 1, 4, STEPS),
        Case(
            "AutoAttack's APGD, a step, CNN",
            lambda n: apgd_attack(classifier, x, y, n_iter=STEPS, n_restarts=n, **small),
            1,
            4,
            STEPS,
        ),
        Case(
            "AutoAttack's Square, a query, CNN",
            lambda n: square.square_attack(classifier, x, y, n_queries=n, **small),
            40,
            200,
            recorded=False,  # what it looks at would not be there
            blocks=True,
        ),
        Case("Square, a query, CNN", searched, 20, 120),
        Case("PGD, a step, CNN", stepped, 20, 120),
        Case("trades, an epoch of one batch", trained, 3, 13),
        Case("NNMF, ten iterations, mu", partial(fitted, "mu"), 5, 45),
        Case("NNMF, ten iterations, accelerated-mu", partial(fitted, "accelerated-mu"), 5, 45),
        Case("ops.defended_logits, 8 draws", repeated(alone), 0, 200, recorded=False),
        Case(
            "the same and its gradient",
            repeated(partial(with_gradient, x, noise)),
            0,
            200,
            recorded=False,
        ),
        Case(
            "the same and its gradient, no row",
            repeated(partial(with_gradient, x[:0], noise[:, :0])),
            0,
            200,
            recorded=False,
        ),
        Case("ops.nnmf_mu, an iteration", repeated(mu), 0, 200, recorded=False),
    ]


class _Counted(TorchDispatchMode):
    def __init__(self, seen: Counter[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = seen

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


class _NoLaunch:
    """A recorder whose replay does nothing."""

    def __init__(self, device: torch.device) -> None: ...

    def make(self, function: Callable[[], Any]) -> Any:
        """Call it."""
        return function()

    def record(self, function: Callable[[], Any]) -> Any:
        """Call it: a graph would have its outputs' memory from that."""
        return function()

    def replay(self) -> None:
        """Do nothing."""


@contextlib.contextmanager
def _replayed() -> Iterator[None]:
    from nnmf_cuda import graphs

    with (
        mock.patch.dict(graphs.RECORDERS, cpu=_NoLaunch),
        mock.patch.object(loop, "epochs_of", epochs.GraphedEpochs),
    ):
        yield


@contextlib.contextmanager
def _looking_seldom() -> Iterator[None]:
    with mock.patch.object(square, "_queries_between_looks", return_value=16):
        yield


def ways(case: Case) -> dict[str, Callable[[], contextlib.AbstractContextManager[None]]]:
    """Return in which ways this tree makes a case's steps, by their names."""
    found: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
        "step by step": contextlib.nullcontext
    }
    if hasattr(square, "_queries_between_looks"):  # not so in older trees
        if case.recorded:
            found["replayed"] = _replayed
        if case.blocks:
            found["looking once in 16"] = _looking_seldom
    return found


def measured(case: Case, way: str) -> Line:
    """Measure what a step takes once."""

    def thread_us(n: int) -> float:
        began = time.thread_time_ns()
        case.run(n)
        return (time.thread_time_ns() - began) / 1e3

    def counted(n: int) -> Counter[str]:
        seen: Counter[str] = Counter()
        with _Counted(seen):
            case.run(n)
        return seen

    with ways(case)[way]():
        case.run(case.few)
        few_us, many_us = (min(thread_us(n) for _ in range(3)) for n in (case.few, case.many))
        seen = counted(case.many)
        seen.subtract(counted(case.few))
    n = (case.many - case.few) * case.n_steps
    waits = sum(seen[name] for name in WAITING)
    return Line(case.name, way, few_us, many_us, n, seen.total() / n, waits / n)


def this_tree(names: list[str] | None = None) -> list[Line]:
    """Measure every case in every way, once."""
    torch.set_num_threads(1)
    chosen = [case for case in cases() if names is None or case.name in names]
    return [measured(case, way) for case in chosen for way in ways(case)]


def in_turns(
    folders: dict[str, Path], n_rounds: int, names: list[str] | None
) -> list[dict[str, Any]]:
    """Measure trees in turns, each time in a process of its own."""
    least: dict[tuple[str, str, str], dict[str, Any]] = {}
    for _ in range(n_rounds):
        for tree, folder in folders.items():
            more = [] if names is None else ["--case", *names]
            answer = subprocess.run(
                [sys.executable, __file__, "--one", *more],
                env={**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
                cwd=folder,
                check=True,
                stdout=subprocess.PIPE,
            )
            for line in json.loads(answer.stdout):
                best = least.setdefault((line["case"], tree, line["way"]), {"tree": tree, **line})
                for name in ("few_us", "many_us"):
                    best[name] = min(best[name], line[name])
    order = {case.name: i for i, case in enumerate(cases())}
    lines = sorted(least.values(), key=lambda line: order[line["case"]])
    for line in lines:
        line["host_us"] = round((line.pop("many_us") - line.pop("few_us")) / line.pop("n_steps"), 2)
    return lines


def main() -> None:
    """Print the lines of all cases as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, help="another tree of this repository, built")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--case", nargs="+", help="only these cases")
    parser.add_argument("--one", action="store_true", help="measure this tree once")
    args = parser.parse_args()
    if args.one:
        print(json.dumps([asdict(line) for line in this_tree(args.case)]))
        return
    folders = {"this": Path(__file__).resolve().parents[1]}
    if args.against is not None:
        folders = {"before": args.against.resolve(), **folders}
    commits = {
        tree: subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout.strip()
        for tree, folder in folders.items()
    }
    lines = in_turns(folders, args.rounds, args.case)
    machine = {"torch": torch.__version__, "cpu_count": os.cpu_count(), "rounds": args.rounds}
    print('{\n"commits": ' + json.dumps(commits) + ",")
    print('"machine": ' + json.dumps(machine) + ',\n"lines": [')
    print(",\n".join(json.dumps(line) for line in lines) + "\n]\n}")


if __name__ == "__main__":
    main()
