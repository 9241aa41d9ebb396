"""A fitted estimator in a file: what comes back is what was saved, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from nnmf_cuda import NNMF

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture
def X(rng):
    return rng.random((21, 3)) @ rng.random((3, 33)) + 0.05 * rng.random((21, 33)) + 0.01


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def assert_equal_estimators(ours, other):
    assert type(ours) is type(other)
    assert set(vars(ours)) == set(vars(other))
    for name, value in vars(ours).items():
        two = getattr(other, name)
        assert type(value) is type(two), name
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, two, err_msg=name, strict=True)
        elif not isinstance(value, np.random.RandomState):
            assert value == two, name


@pytest.mark.parametrize("dtype", ["float64", "float32", "uint8"])
def test_a_loaded_estimator_is_the_saved_one(X, path, dtype):
    X = (X * 80).astype(dtype)
    model = NNMF(
        np.int64(3),
        alpha_W=0.01,
        n_init=2,
        random_state=np.random.RandomState(0),  # noqa: NPY002
        device=torch.device("cpu"),
        transform_solver="mu",
        max_iter=35,
    ).fit(X)
    model.save(path)
    loaded = NNMF.load(str(path))
    model.n_components = 3  # numbers of NumPy's types come back as Python's
    assert_equal_estimators(loaded, model)
    np.testing.assert_array_equal(loaded.transform(X), model.transform(X))
    np.testing.assert_array_equal(loaded.inverse_transform(model.W_), model.W_ @ model.components_)
    # The generator goes on where it stood.
    assert_equal_estimators(loaded.fit(X), model.fit(X))
    assert loaded.random_state.randint(1 << 31) == model.random_state.randint(1 << 31)


@pytest.mark.parametrize("begin", ["partial_fit", "fit"])
@pytest.mark.parametrize("beta_loss", [2, 1, 0.5])
def test_a_stream_goes_on_from_a_file(rng, path, begin, beta_loss):
    batches = [rng.random((7, 4)) @ rng.random((4, 19)) + 0.01 for _ in range(6)]
    whole = NNMF(4, beta_loss=beta_loss, max_iter=20, random_state=0)
    getattr(whole, begin)(batches[0]).save(path)
    for batch in batches[1:]:
        whole.partial_fit(batch)
        NNMF.load(path).partial_fit(batch).save(path)
    loaded = NNMF.load(path)
    assert loaded.n_steps_ == len(batches) - (begin == "fit")
    assert_equal_estimators(loaded, whole)
    np.testing.assert_array_equal(loaded.transform(batches[0]), whole.transform(batches[0]))


def test_names_and_containers_come_back(X, path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=[f"gene {i}" for i in range(X.shape[1])])
    model = NNMF(3, tol=0, max_iter=10, random_state=0).set_output(transform="pandas").fit(frame)
    model.save(path)
    loaded = NNMF.load(path)
    assert_equal_estimators(loaded, model)
    pandas.testing.assert_frame_equal(loaded.transform(frame), model.transform(frame))


def test_a_subclass_comes_back_with_parameters_of_its_own(X, path):
    class Named(NNMF):
        def __init__(self, n_components=3, *, words=("a", 1), weights=None):
            super().__init__(n_components, max_iter=5, tol=0, random_state=0)
            self.words, self.weights = words, weights

    weights = np.arange(6.0).reshape(2, 3)
    model = Named(words=["a", 1, [2.5, None]], weights=weights).fit(X)
    model.save(path)
    loaded = Named.load(path)
    assert loaded.words == model.words
    np.testing.assert_array_equal(loaded.weights, weights)
    with pytest.raises(ValueError, match="holds a Named with the parameters weights, words, which"):
        NNMF.load(path)


def test_what_cannot_be_saved_is_named(X, path):
    model = NNMF(3, tol=0, max_iter=5, random_state=0)
    with pytest.raises(NotFittedError):
        model.save(path)
    model.fit(X)
    model.notes_ = {1: "keys are numbers"}
    with pytest.raises(TypeError, match="notes_={1: .* cannot be saved without pickle"):
        model.save(path)
    model.notes_ = print
    with pytest.raises(TypeError, match="notes_=.* cannot be saved without pickle"):
        model.save(path)
    assert not path.exists()
    with pytest.raises(FileNotFoundError):
        NNMF.load(path)


def test_a_place_that_cannot_be_written_is_named_with_a_remedy(X, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    model = NNMF(3, tol=0, max_iter=5, random_state=0).fit(X)
    expected = r"no directory 'nodir'; create it first, .*: 'nodir/m\.safetensors'$"
    with pytest.raises(FileNotFoundError, match=expected):
        model.save("nodir/m.safetensors")
    with pytest.raises(IsADirectoryError, match="Is a directory; give the name of a .*: 'folder'$"):
        model.save("folder")
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_the_file_is_plain_safetensors(X, path):
    model = NNMF(3, tol=0, max_iter=5, random_state=0).fit(X)
    model.save(path)
    np.testing.assert_array_equal(load_file(path)["components_"].numpy(), model.components_)


def test_a_pickle_older_than_some_parameters_has_their_defaults(X):
    model = NNMF(3, tol=0, max_iter=20, random_state=0).fit(X)
    state = dict(model.__getstate__())
    for younger in ("fixed_components", "warm_start", "_units"):
        del state[younger]
    old = NNMF.__new__(NNMF)
    old.__setstate__(state)
    assert repr(old) == repr(model)
    np.testing.assert_array_equal(old.transform(X), model.transform(X))
    clone(old).fit(X)
    old.partial_fit(X)
    assert old.fixed_components is None
