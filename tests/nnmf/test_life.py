"""A fit's life: it is watched, stopped, killed, and goes on as if nothing had happened."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import time
import warnings
from contextlib import suppress

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from nnmf_cuda import NNMF
from nnmf_cuda.nnmf import checkpoint as checkpoint_module
from nnmf_cuda.nnmf.minimisation import CHECK_EVERY
from nnmf_cuda.nnmf.problem import Problem
from tests.helpers import DEVICES

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

OF_A_FIT = (
    "components_",
    "W_",
    "n_iter_",
    "converged_",
    "reconstruction_err_",
    "objective_history_",
    "objective_iterations_",
    "n_components_",
)


@pytest.fixture
def X(rng):
    return rng.random((21, 3)) @ rng.random((3, 33)) + 0.05 * rng.random((21, 33)) + 0.01


@pytest.fixture
def path(tmp_path):
    return tmp_path / "fit.safetensors"


def assert_same(ours, other, names=OF_A_FIT):
    for name in names:
        one, two = getattr(ours, name), getattr(other, name)
        np.testing.assert_array_equal(one, two, err_msg=name, strict=True)
        assert type(one) is type(two)


class Interrupted(Exception):
    """What stops a fit in these tests, without a kind of its own to be caught by."""


def interrupt_at(iteration):
    def callback(record):
        if record.iteration >= iteration:
            raise Interrupted

    return callback


def fit_by_pieces(model, X, path, iterations, **options):
    """Fit with an interruption at each of the iterations, each piece by a new estimator."""
    for iteration in iterations:
        with suppress(Interrupted):  # where it has ended there is nothing to interrupt
            clone(model).fit(
                X, checkpoint=path, callback=interrupt_at(iteration), checkpoint_every=0, **options
            )
        assert path.exists()
    return clone(model).fit(X, checkpoint=path, **options)


# --- a fit that goes on is the fit that was never stopped -----------------------------------------

SOLVERS = {
    "mu": ["frobenius", "kullback-leibler", "itakura-saito", 1.5, 0.5, 3],
    "accelerated-mu": ["frobenius", "kullback-leibler", 1.5],
    "hals": ["frobenius"],
}


@pytest.mark.parametrize(
    ("solver", "beta_loss"), [(s, loss) for s, losses in SOLVERS.items() for loss in losses]
)
@pytest.mark.parametrize("seed", range(3))
def test_resumed_fits_have_the_bits_of_uninterrupted_ones(path, solver, beta_loss, seed):
    rng = np.random.default_rng([seed, *map(ord, f"{solver} {beta_loss}")])
    n, f, k = (int(size) for size in rng.integers((5, 5, 1), (60, 90, 6)))
    X = rng.gamma(1, size=(n, k)) @ rng.gamma(1, size=(k, f)) + 0.1 * rng.random((n, f)) + 0.01
    kind = rng.choice(["float64", "float32", "uint8"])
    X = (X * 255 / X.max() + 1).clip(1, 255).astype("uint8") if kind == "uint8" else X.astype(kind)
    init = str(rng.choice(["random", "nndsvdar"])) if k <= min(n, f) else "random"
    model = NNMF(
        k,
        solver=solver,
        beta_loss=beta_loss,
        init=init,
        n_init=int(rng.integers(1, 6)),
        tol=float(rng.choice([0, 1e-3, 1e-5])),
        max_iter=int(rng.integers(15, 150)),
        alpha_W=float(rng.choice([0, 1e-3])),
        l1_ratio=0.5,
        random_state=seed,
    )
    whole = clone(model).fit(X)
    cuts = np.sort(rng.integers(0, whole.n_iter_ + 1, 3))
    assert_same(fit_by_pieces(model, X, path, cuts), whole)


@pytest.mark.parametrize("solver", ["mu", "accelerated-mu", "hals"])
def test_resumed_restarts_have_the_bits_of_uninterrupted_ones(X, path, solver):
    model = NNMF(3, solver=solver, beta_loss=2, n_init=6, tol=1e-3, max_iter=1000, random_state=1)
    running = {}

    def note(record):
        running[record.iteration] = record.running

    whole = clone(model).fit(X, callback=note)
    numbers = [len(now) for now in running.values()]
    assert numbers[0] == 6
    cut = next(i for i, now in running.items() if 0 < len(now) < 6)  # some have ended
    assert_same(fit_by_pieces(model, X, path, [0, 10, cut, cut, cut + 10]), whole)
    # The file of the end leads to the same at once.
    told = []
    assert_same(clone(model).fit(X, checkpoint=path, callback=told.append), whole)
    assert told == []


@pytest.mark.parametrize("solver", ["mu", "accelerated-mu", "hals"])
@pytest.mark.parametrize("when", range(7))
def test_what_breaks_off_amid_an_iteration_leaves_the_last_record(
    X, path, solver, when, monkeypatch
):
    model = NNMF(3, solver=solver, beta_loss=2, n_init=2, tol=0, max_iter=60, random_state=0)
    whole = clone(model).fit(X)
    method = {"mu": "updated", "accelerated-mu": "updated", "hals": "at"}[solver]
    calls, original = itertools.count(), getattr(Problem, method)
    # Calls by which `blocks` of the fit are whole: one of ten, and hals makes one at the start.
    blocks = when % 5
    last = {"mu": blocks, "hals": 1 + blocks, "accelerated-mu": 10 * blocks + when}[solver]

    def stopped(self, *args, **options):
        result = original(self, *args, **options)
        if next(calls) == last:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(Problem, method, stopped)
    with pytest.raises(KeyboardInterrupt):
        clone(model).fit(X, checkpoint=path)
    monkeypatch.undo()
    iterations = load_file(path)["iterations"].tolist()
    assert iterations[-1] == CHECK_EVERY * blocks
    assert_same(clone(model).fit(X, checkpoint=path), whole)


SCRIPT = """
import sys
import numpy as np
from nnmf_cuda import NNMF

def tell(record):
    print(record.iteration, flush=True)

model = NNMF(4, solver=sys.argv[3], beta_loss=2, n_init=3, tol=0, max_iter=10**6, random_state=3)
X, path = np.load(sys.argv[1]), sys.argv[2]
model.fit(X, callback=tell, checkpoint=path, checkpoint_every=0)
"""


def killed(X_path, path, solver, more):
    """Fit in another process, kill it some iterations later, return its first record."""
    command = [sys.executable, "-c", SCRIPT, X_path, path, solver]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            first = int(process.stdout.readline())
            next(line for line in process.stdout if int(line) >= first + more)
        finally:
            process.send_signal(signal.SIGKILL)
    return first


@pytest.mark.parametrize("solver", ["accelerated-mu"])  # the one with a memory of its own
def test_a_killed_process_goes_on_to_the_bits_of_one_that_was_not(X, path, tmp_path, solver):
    np.save(tmp_path / "X.npy", X)
    reached = -10
    for more in (50, 80):
        assert killed(tmp_path / "X.npy", path, solver, more) == reached + 10
        reached = load_file(path)["iterations"][-1].item()
        assert reached >= more - 10
    model = NNMF(4, solver=solver, beta_loss=2, n_init=3, tol=0, random_state=3)
    model.set_params(max_iter=reached + 35)
    assert_same(clone(model).fit(X, checkpoint=path), clone(model).fit(X))


@pytest.mark.parametrize("dtype", ["float64", "float32", "uint8"])
@pytest.mark.parametrize("seed", [None, 3, np.int64(3), "generator"])
def test_what_was_drawn_is_not_drawn_again(X, path, seed, dtype):
    X = (X * 80).astype(dtype)
    made = np.random.RandomState(3) if seed == "generator" else seed  # noqa: NPY002
    model = NNMF(3, tol=0, max_iter=40, random_state=made)
    with pytest.raises(Interrupted):
        model.fit(X, checkpoint=path, callback=interrupt_at(0))
    start = load_file(path)
    state = made.get_state()[2] if seed == "generator" else None
    model.fit(X, checkpoint=path)
    assert state is None or made.get_state()[2] == state
    custom = NNMF(3, tol=0, max_iter=40, init="custom")
    assert_same(model, custom.fit(X, W=start["at.W"][0], H=start["at.H"][0]))


@pytest.mark.parametrize("device", DEVICES)
def test_a_fit_of_a_tensor_goes_on_where_it_was(X, path, device):
    X = torch.from_numpy(X).to(device)
    model = NNMF(3, solver="accelerated-mu", n_init=3, tol=1e-4, max_iter=300, random_state=0)
    assert_same(fit_by_pieces(model, X, path, [30, 60]), clone(model).fit(X))
    features = clone(model).fit_transform(X, checkpoint=path)
    assert torch.equal(features, clone(model).fit_transform(X))


@pytest.mark.parametrize("solver", ["mu", "accelerated-mu", "hals"])
@pytest.mark.parametrize("dtype", ["float64", "uint8"])
def test_fits_with_fixed_parts_go_on_too(X, path, rng, solver, dtype):
    X = (X * 80).astype(dtype)
    H = rng.random((4, X.shape[1])) + 0.1
    model = NNMF(4, solver=solver, beta_loss=2, tol=0, max_iter=65, random_state=0)
    held = fit_by_pieces(model, X, path, [10, 40], H=H, update_H=False)
    assert_same(held, clone(model).fit(X, H=H, update_H=False))
    with pytest.raises(ValueError, match="H was .* and is None; update_H was False and is True"):
        clone(model).fit(X, checkpoint=path)
    path.unlink()
    model.set_params(fixed_components=H[:2], n_init=3)
    assert_same(fit_by_pieces(model, X, path, [10, 40]), clone(model).fit(X))
    with pytest.raises(ValueError, match="fixed_components was .* and is '"):
        clone(model).set_params(fixed_components=H[:3]).fit(X, checkpoint=path)


def test_a_warm_start_goes_on_too(X, path):
    first = NNMF(3, tol=0, max_iter=20, random_state=0, warm_start=True).fit(X)
    first.save(path.with_name("first"))
    with pytest.raises(Interrupted):
        NNMF.load(path.with_name("first")).fit(X, checkpoint=path, callback=interrupt_at(10))
    ours = NNMF.load(path.with_name("first")).fit(X, checkpoint=path)
    assert_same(ours, first.fit(X))
    # What is fitted now is another start, and so is none.
    for other, now in ((ours, "'"), (clone(ours), "None")):
        with pytest.raises(
            ValueError, match=f"components_ of the warm start was '.*' and is {now}"
        ):
            other.fit(X, checkpoint=path)


@pytest.mark.parametrize("solver", ["mu", "accelerated-mu", "hals"])
def test_a_fit_goes_further_with_a_larger_max_iter(X, path, solver):
    model = NNMF(3, solver=solver, beta_loss=2, n_init=4, tol=1e-3, random_state=1)
    for max_iter in (10, 25, 25, 60, 61, 200):  # blocks of 5 and of 1 are of the shorter fit alone
        model.set_params(max_iter=max_iter)
        assert_same(clone(model).fit(X, checkpoint=path), clone(model).fit(X))


def test_progress_goes_on_where_the_fit_does(X, path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    model = NNMF(3, tol=0, max_iter=50, random_state=0, verbose=1)
    with pytest.raises(Interrupted):
        clone(model).fit(X, checkpoint=path, callback=interrupt_at(30))
    before = capsys.readouterr().err
    assert "30/50" in before
    model.fit(X, checkpoint=path)
    after = capsys.readouterr().err
    assert "\r" in after
    assert "| 30/50 [" in after.split("\r")[1]  # the first that is shown
    assert "50/50" in after


# --- the callback ---------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["mu", "accelerated-mu", "hals"])
def test_the_callback_is_told_of_every_record(X, solver):
    model = NNMF(3, solver=solver, beta_loss=2, n_init=4, tol=1e-3, max_iter=5000, random_state=0)
    told = []
    watched = clone(model).fit(X, callback=told.append)
    assert_same(watched, clone(model).fit(X))
    assert [record.iteration for record in told][:4] == [0, 10, 20, 30]
    assert told[0].running == (0, 1, 2, 3)
    assert told[-1].running == ()
    assert all(record.objective == min(record.objectives) for record in told)
    assert told[-1].objective == watched.objective_history_[-1]
    # The kept start's history is what was told of it.
    best = told[-1].objectives.index(watched.objective_history_[-1])
    history = [record.objectives[best] for record in told]
    n = len(watched.objective_history_)
    np.testing.assert_array_equal(watched.objective_history_, history[:n])
    assert set(history[n:]) <= {history[n - 1]}
    assert [best in record.running for record in told] == [i < n - 1 for i in range(len(told))]


@pytest.mark.parametrize("true", [True, np.True_])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_callback_stops_the_fit(X, path, true, checkpointed):
    model = NNMF(3, n_init=3, tol=1e-9, max_iter=500, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stopped = clone(model).fit(
            X,
            callback=lambda record: true if record.iteration == 70 else None,
            checkpoint=path if checkpointed else None,
        )
    shorter = clone(model).set_params(max_iter=70)
    with pytest.warns(ConvergenceWarning):
        shorter.fit(X)
    assert_same(stopped, shorter)
    assert not stopped.converged_
    if checkpointed:  # and goes on as if it had not been stopped
        assert_same(clone(model).fit(X, checkpoint=path), clone(model).fit(X))


def test_a_stop_keeps_a_start_that_had_converged(X):
    model = NNMF(3, solver="accelerated-mu", n_init=6, tol=1e-3, max_iter=1000, random_state=1)
    told = []
    clone(model).fit(X, callback=told.append)
    first = next(record for record in told if 0 < len(record.running) < 6)
    stopped = clone(model).fit(X, callback=lambda record: record.iteration >= first.iteration)
    best = int(np.argmin(first.objectives))
    assert stopped.objective_history_[-1] == first.objective
    assert stopped.converged_ == (best not in first.running)


def test_a_stop_at_the_start_keeps_the_best_start(X):
    told = []
    model = NNMF(3, n_init=5, random_state=0)
    model.fit(X, callback=lambda record: told.append(record) or True)
    assert len(told) == 1
    assert model.n_iter_ == 0
    np.testing.assert_array_equal(model.objective_history_, [min(told[0].objectives)])
    assert model.transform(X).shape == (21, 3)


@pytest.mark.parametrize("answer", [1, "stop", np.zeros(2)])
def test_only_true_stops(X, answer):
    with pytest.raises(TypeError, match="callback must return True to stop, False or None"):
        NNMF(3).fit(X, callback=lambda record: answer)


def test_watching_is_checked_before_the_work(X, path):
    with pytest.raises(TypeError, match="callback must be a function of a FitRecord .* got 3"):
        NNMF(3).fit(X, callback=3)
    with pytest.raises(ValueError, match="checkpoint_every must be .* got -1"):
        NNMF(3).fit(X, checkpoint=path, checkpoint_every=-1)
    with pytest.raises(ValueError, match="there is no directory '.*nowhere'; create it first"):
        NNMF(3).fit(X, checkpoint=path.parent / "nowhere" / "fit.safetensors")
    with pytest.raises(ValueError, match="is a directory"):
        NNMF(3).fit(X, checkpoint=path.parent)


# --- what is written, and when --------------------------------------------------------------------


def test_the_checkpoint_is_written_at_the_start_in_time_and_at_the_end(X, path, monkeypatch):
    now, written = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def write(*args, original=checkpoint_module.write_tensors):
        written.append(now[0])
        original(*args)

    monkeypatch.setattr(checkpoint_module, "write_tensors", write)

    def takes_a_second(record):
        now[0] += 1

    model = NNMF(3, tol=0, max_iter=100, random_state=0)
    clone(model).fit(X, checkpoint=path, callback=takes_a_second, checkpoint_every=4)
    assert written == [1, 5, 9, 11]
    written.clear()
    clone(model).fit(X, checkpoint=path, callback=takes_a_second, checkpoint_every=4)
    assert written == []
    model.set_params(max_iter=120).fit(X, checkpoint=path, checkpoint_every=1000)
    assert written == [11]


def test_a_full_disk_is_an_error_at_the_start_and_a_warning_later(X, path, monkeypatch):
    def full(tensors, file, metadata):
        raise SafetensorError("No space left on device")

    model = NNMF(3, tol=0, max_iter=30, random_state=0)
    with monkeypatch.context() as patched:
        patched.setattr("safetensors.torch.save_file", full)
        with pytest.raises(OSError, match="No space left"):
            clone(model).fit(X, checkpoint=path)
    with pytest.raises(Interrupted):
        clone(model).fit(X, checkpoint=path, callback=interrupt_at(10))
    former = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr("safetensors.torch.save_file", full)
        with pytest.warns(RuntimeWarning, match="No space left"):
            ours = clone(model).fit(X, checkpoint=path, checkpoint_every=0)
    assert_same(ours, clone(model).fit(X))
    assert path.read_bytes() == former


# --- files that are not of this fit ---------------------------------------------------------------


@pytest.fixture
def begun(X, path):
    """A checkpoint at iteration 20, and its estimator."""
    model = NNMF(3, tol=1e-6, max_iter=200, n_init=2, random_state=5)
    with pytest.raises(Interrupted):
        clone(model).fit(X, checkpoint=path, callback=interrupt_at(20))
    return model


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"tol": 1e-7}, "tol was 1e-06 and is 1e-07"),
        ({"n_init": 3}, "n_init was 2 and is 3"),
        ({"n_components": 4}, "n_components was 3 and is 4"),
        ({"beta_loss": 1.5}, "beta_loss was 1.0 and is 1.5"),
        ({"solver": "accelerated-mu"}, "solver was 'mu' and is 'accelerated-mu'"),
        ({"init": "nndsvdar"}, "init was 'random' and is 'nndsvdar'"),
        ({"random_state": 6}, "random_state was 5 and is 6"),
        ({"random_state": None}, "random_state was 5 and is 'not an integer'"),
        ({"alpha_W": 0.1, "alpha_H": 0.2}, "alpha_H was 'same' and is 0.2; alpha_W was 0.0 and"),
        ({"max_iter": 10}, "is at iteration 20, above max_iter=10; raise max_iter"),
    ],
)
def test_other_parameters_are_refused(X, path, begun, changed, named):
    before = path.read_bytes()
    with pytest.raises(ValueError, match=named):
        begun.set_params(**changed).fit(X, checkpoint=path)
    assert path.read_bytes() == before


def test_parameters_that_do_not_matter_may_change(X, path, begun):
    whole = clone(begun).fit(X)
    begun.set_params(
        transform_solver="mu",
        transform_max_iter=3,
        forget_factor=0.1,
        fresh_restarts_max_iter=2,
        verbose=1,
        device="cpu",
        beta_loss=1,
        random_state=np.int32(5),
    )
    assert_same(begun.fit(X, checkpoint=path), whole)


def test_other_data_are_refused(X, path, begun):
    other = X.copy()
    other[-1, -1] = np.nextafter(other[-1, -1], 1)
    swapped = X[:, [1, 0, *range(2, X.shape[1])]]
    for data in (other, swapped, X.astype(np.float32), X[:-1], np.vstack((X, X))):
        with pytest.raises(
            ValueError, match=r"another fit: X was '.*' and is '.*'\. Set that back"
        ):
            clone(begun).fit(data, checkpoint=path)
    # The same data in another order of memory, as a tensor or a list, are the same.
    expected = clone(begun).fit(X)
    for data in (np.asfortranarray(X), torch.from_numpy(X), X.tolist()):
        path_of = path.with_name("copy.safetensors")
        path_of.write_bytes(path.read_bytes())
        model = clone(begun).fit(data, checkpoint=path_of)
        np.testing.assert_allclose(model.components_, expected.components_, rtol=1e-12)


def test_another_start_of_the_users_is_refused(X, path, rng):
    W, H = rng.random((21, 3)), rng.random((3, 33))
    model = NNMF(3, init="custom", tol=0, max_iter=40)
    with pytest.raises(Interrupted):
        model.fit(X, W=W, H=H, checkpoint=path, callback=interrupt_at(20))
    with pytest.raises(ValueError, match=r"H was '\(3, 33\) .*' and is '\(3, 33\) "):
        model.fit(X, W=W, H=H + 1, checkpoint=path)
    with pytest.raises(ValueError, match=r"W was '\(21, 3\) .*' and is None"):
        model.fit(X, H=H, checkpoint=path)
    assert_same(
        clone(model).fit(X, W=torch.from_numpy(W), H=H.tolist(), checkpoint=path),
        clone(model).fit(X, W=W, H=H),
    )


def test_parameters_of_a_subclass_are_compared_too(X, path):
    class Named(NNMF):
        def __init__(self, n_components=3, *, words=("a", 1), weights=None):
            super().__init__(n_components, max_iter=5, tol=0, random_state=0)
            self.words, self.weights = words, weights

    Named(weights=[1.0, 2.0]).fit(X, checkpoint=path)
    Named(weights=np.array([1.0, 2.0], dtype=np.float32)).fit(X, checkpoint=path)
    with pytest.raises(ValueError, match=r"weights was '\(2,\) .*' and is '\(2,\) .*'; words was"):
        Named(words=("b", 1), weights=[1.0, 2.5]).fit(X, checkpoint=path)
