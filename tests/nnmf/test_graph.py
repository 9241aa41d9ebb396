"""Graph-regularised factorisation against its formulas in NumPy, and graphs against their edges."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import kneighbors_graph

from nnmf_cuda import ops
from nnmf_cuda.nnmf import neighbor_graph
from nnmf_cuda.nnmf.graph import Graph, graph_updates
from nnmf_cuda.nnmf.matrix import Dense
from tests.helpers import DEVICES


def rows(n: int, device: str = "cpu") -> Dense:
    """Return X of that many rows, of which graphs are made by hand or labels."""
    return Dense(torch.zeros(n, 1, device=device))


def weights_of(rng, n):
    """Draw symmetric weights of a third of the pairs; the last sample is joined to none."""
    A = np.triu(rng.random((n, n)) * (rng.random((n, n)) < 0.33), 1)
    A[:, -1] = 0
    return A + A.T


# --- graphs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["array", "csr", "csc", "coo_array", "tensor", "sparse tensor"])
def test_graphs_of_every_type_have_the_same_edges(rng, kind):
    A, W = weights_of(rng, 9), rng.random((2, 9, 3))
    matrix = {
        "array": A,
        "csr": scipy.sparse.csr_matrix(A),
        "csc": scipy.sparse.csc_array(A),
        "coo_array": scipy.sparse.coo_array(A),
        "tensor": torch.from_numpy(A),
        "sparse tensor": torch.from_numpy(A).to_sparse_csr(),
    }[kind]
    graph = Graph.of_matrix(matrix, rows(9), 1.5)
    np.testing.assert_allclose(graph.pull(torch.from_numpy(W)).numpy(), 1.5 * A @ W, rtol=1e-12)
    degrees = A.sum(1)[:, None]
    np.testing.assert_allclose(graph.hold(torch.from_numpy(W)), 1.5 * degrees * W, rtol=1e-12)


def test_the_penalty_is_a_sum_over_edges(rng):
    A, W = weights_of(rng, 12), rng.random((2, 12, 3))
    value = Graph.of_matrix(A, rows(12), 0.7).value_of_rows(torch.from_numpy(W))
    for start in range(2):
        pairs = ((W[start][:, None] - W[start][None]) ** 2).sum(2)
        assert value[start].item() == pytest.approx(0.7 / 4 * (A * pairs).sum(), rel=1e-12)


@pytest.mark.parametrize("as_words", [False, True])
def test_the_penalty_of_labels_is_the_scatter_within_classes(rng, as_words):
    y = np.array([3, 0, 0, 3, 7, 0, 3, 3])
    W = rng.random((1, 8, 2))
    labels = y.astype(str) if as_words else y
    value = Graph.of_labels(labels, rows(8), 2.0).value_of_rows(torch.from_numpy(W)).item()
    scatter = sum(((W[0][y == c] - W[0][y == c].mean(0)) ** 2).sum() for c in (0, 3, 7))
    assert value == pytest.approx(2.0 / 2 * scatter, rel=1e-12)


def test_samples_without_a_label_are_joined_to_none(rng):
    y = np.array([1, -1, 1, -1, 0, 0])
    W = torch.from_numpy(rng.random((1, 6, 2)))
    graph = Graph.of_labels(y, rows(6), 1.0)
    assert (graph.pull(W)[0, y == -1] == 0).all()
    assert graph.degrees.flatten().tolist() == [1, 0, 1, 0, 1, 1]
    assert Graph.of_labels(np.full(6, -1), rows(6), 1.0).value_of_rows(W).item() == 0


def test_many_samples_of_few_classes_take_little_memory():
    n = 200_000  # all pairs of a class would take 80 GB
    y = np.arange(n) % 4
    graph = Graph.of_labels(y, rows(n), 1.0)
    W = torch.ones(1, n, 1, dtype=torch.float64)
    torch.testing.assert_close(graph.pull(W), W)
    assert sum(len(factor.values()) for factor in graph.factors) == 2 * n


@pytest.mark.parametrize("n_neighbors", [1, 3, 6])
def test_neighbors_are_joined_where_either_is_near(rng, n_neighbors):
    X = rng.normal(size=(40, 4))
    directed = kneighbors_graph(X, n_neighbors).toarray()
    got = neighbor_graph(X, n_neighbors)
    np.testing.assert_array_equal(got.toarray(), np.maximum(directed, directed.T))
    assert got.dtype == np.float64


def test_equal_samples_are_neighbors_and_no_sample_is_its_own(rng):
    X = np.repeat(rng.normal(size=(5, 3)), 4, axis=0)
    got = neighbor_graph(X, 3).toarray()
    np.testing.assert_array_equal(got, np.kron(np.eye(5), np.ones((4, 4))) - np.eye(20))
    heat = neighbor_graph(X, 3, weights="heat").toarray()
    np.testing.assert_array_equal(heat, got)


@pytest.mark.parametrize("bandwidth", [None, 0.5])
def test_weights_of_heat_fall_with_the_distance(rng, bandwidth):
    X = rng.normal(size=(30, 4))
    squares = ((X[:, None] - X[None]) ** 2).sum(2)
    directed = kneighbors_graph(X, 5).toarray() > 0
    width = bandwidth or squares[directed].mean()
    want = np.where(directed | directed.T, np.exp(-squares / width), 0)
    got = neighbor_graph(X, 5, weights="heat", bandwidth=bandwidth)
    np.testing.assert_allclose(got.toarray(), want, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("sparse", [False, True])
def test_weights_of_cosine_are_those_between_the_nearest_in_angle(rng, sparse):
    X = rng.normal(size=(30, 4)) * rng.gamma(1, size=(30, 1))
    cosines = cosine_similarity(X)
    np.fill_diagonal(cosines, -2)
    near = np.argsort(-cosines, axis=1)[:, :5]
    directed = np.zeros((30, 30), dtype=bool)
    directed[np.arange(30)[:, None], near] = True
    want = np.where(directed | directed.T, cosines.clip(0), 0)
    data = scipy.sparse.csr_matrix(X) if sparse else torch.from_numpy(X)
    np.testing.assert_allclose(
        neighbor_graph(data, 5, weights="cosine").toarray(), want, rtol=1e-7, atol=1e-10
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_neighbors": 0}, r"n_neighbors must be an integer in \[1, 4\], got 0"),
        ({"n_neighbors": 5}, r"n_neighbors must be an integer in \[1, 4\], got 5"),
        ({"weights": "gauss"}, "weights='gauss' does not exist; choose one of binary, heat, cos"),
        ({"weights": "heat", "bandwidth": 0}, "bandwidth must be"),
    ],
)
def test_neighbor_graph_says_what_is_out_of_range(rng, options, message):
    with pytest.raises(ValueError, match=message):
        neighbor_graph(rng.random((5, 2)), **{"n_neighbors": 2} | options)


@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        (np.ones((3, 4)), ValueError, r"graph has shape \(3, 4\), but X has 4 samples: .*\(4, 4\)"),
        (np.ones((3, 3)), ValueError, r"graph has shape \(3, 3\), but X has 4 samples"),
        (-np.eye(4), ValueError, "finite weights >= 0.*got -1 between samples 0 and 0"),
        (np.full((4, 4), np.nan), ValueError, "graph must have finite weights >= 0"),
        (np.triu(np.ones((4, 4))), ValueError, r"symmetric: give graph.maximum\(graph.T\)"),
        (np.ones(4), TypeError, "graph must be one of 'neighbors', 'labels', None, or a matrix"),
        (object(), TypeError, "graph must be one of 'neighbors', 'labels', None, or a matrix"),
    ],
)
def test_graphs_that_are_none_are_refused(matrix, error, message):
    with pytest.raises(error, match=message):
        Graph.of_matrix(matrix, rows(4), 1.0)


@pytest.mark.parametrize("y", [np.ones(3), np.ones((4, 1))])
def test_labels_are_one_for_each_sample(y):
    with pytest.raises(ValueError, match="graph='labels' needs one label for each of the 4 sampl"):
        Graph.of_labels(y, rows(4), 1.0)


def test_digests_tell_graphs_apart(rng):
    A = weights_of(rng, 9)
    B = A.copy()
    B[0, 1] = B[1, 0] = 5
    first, again, other = (Graph.of_matrix(m, rows(9), 1.0).digest() for m in (A, A.copy(), B))
    assert first == again
    assert first != other


# --- updates --------------------------------------------------------------------------------------


def by_the_formulas(X, W, H, A, strength, beta_loss, n_iter, l1_W, l1_H, l2_W, l2_H):
    """Update W, then H: for Frobenius as Cai et al. have it, else each to its bound's minimum."""
    D = np.diag(A.sum(1))
    for _ in range(n_iter):
        if beta_loss == 2:
            up, down = X @ H.T + strength * A @ W, W @ H @ H.T + strength * D @ W
            W = W * up / (down + l1_W + l2_W * W)
            H = H * (W.T @ X) / (W.T @ W @ H + l1_H + l2_H * H)
            continue
        W_new, H_new = np.empty_like(W), np.empty_like(H)
        ratio = X / (W @ H)
        for i, t in np.ndindex(*W.shape):
            a = strength * D[i, i] + l2_W
            b = H[t].sum() + l1_W
            c = W[i, t] * (ratio[i] @ H[t]) + strength * W[i, t] * (A[i] @ W[:, t])
            W_new[i, t] = c / b if a == 0 else (np.sqrt(b * b + 4 * a * c) - b) / (2 * a)
        W = W_new
        ratio = X / (W @ H)
        for t, j in np.ndindex(*H.shape):
            b, c = W[:, t].sum() + l1_H, H[t, j] * (ratio[:, j] @ W[:, t])
            H_new[t, j] = c / b if l2_H == 0 else (np.sqrt(b * b + 4 * l2_H * c) - b) / (2 * l2_H)
        H = H_new
    return W, H


def objective(X, W, H, A, strength, beta_loss, l1_W, l1_H, l2_W, l2_H):
    WH = W @ H
    if beta_loss == 2:
        total = ((X - WH) ** 2).sum() / 2
    else:
        logs = np.where(X > 0, X * np.log(np.where(X > 0, X, 1) / WH), 0)
        total = (logs - X + WH).sum()
    pairs = ((W[:, None] - W[None]) ** 2).sum(2)
    total += strength / 4 * (A * pairs).sum() + l1_W * W.sum() + l1_H * H.sum()
    return total + l2_W * (W**2).sum() / 2 + l2_H * (H**2).sum() / 2


PENALTIES = [(0.0, 0.0, 0.0, 0.0), (0.2, 0.3, 0.4, 0.5), (0.3, 0.0, 0.0, 0.2)]


def drawn(rng, n=21, f=17, k=4, batch=2):
    X = rng.gamma(1, size=(n, k)) @ rng.gamma(1, size=(k, f)) * (rng.random((n, f)) < 0.8)
    return X, rng.random((batch, n, k)) + 0.1, rng.random((batch, k, f)) + 0.1, weights_of(rng, n)


def updated(X, W, H, A, strength, beta_loss, n_iter, penalties, device="cpu", **options):
    names = ("l1_reg_W", "l1_reg_H", "l2_reg_W", "l2_reg_H")
    graph = Graph.of_matrix(A, rows(len(A), device), strength)
    return graph_updates(
        Dense(X),
        W,
        H,
        graph,
        beta_loss=beta_loss,
        n_iter=n_iter,
        floor=1e-30,
        **dict(zip(names, penalties, strict=True)),
        **options,
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("penalties", PENALTIES)
@pytest.mark.parametrize("strength", [0.0, 0.6, 40.0])
@pytest.mark.parametrize("beta_loss", [1.0, 2.0])
def test_updates_are_those_of_the_formulas(rng, device, beta_loss, strength, penalties):
    X, W, H, A = drawn(rng)
    tensors = (torch.from_numpy(part).to(device) for part in (X, W, H))
    got = updated(*tensors, A, strength, beta_loss, 5, penalties, device)
    for start in range(len(W)):
        want = by_the_formulas(X, W[start], H[start], A, strength, beta_loss, 5, *penalties)
        for found, wanted in zip(got, want, strict=True):
            np.testing.assert_allclose(found[start].cpu().numpy(), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("beta_loss", [1.0, 2.0])
def test_a_graph_without_strength_leaves_plain_updates(rng, beta_loss):
    X, W, H, A = drawn(rng)
    X, W, H = (torch.from_numpy(part) for part in (X, W, H))
    penalties = (0.1, 0.2, 0.0, 0.0)
    got = updated(X, W, H, A, 0.0, beta_loss, 6, penalties)
    want = ops.nnmf_mu(X, W, H, beta_loss=beta_loss, n_iter=6, l1_reg_W=0.1, l1_reg_H=0.2)
    for found, wanted in zip(got, want[:2], strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("penalties", PENALTIES)
@pytest.mark.parametrize("strength", [0.3, 10.0])
@pytest.mark.parametrize("beta_loss", [1.0, 2.0])
@pytest.mark.parametrize("seed", range(2))
def test_no_iteration_raises_the_objective(seed, beta_loss, strength, penalties):
    rng = np.random.default_rng(seed)
    X, W, H, A = drawn(rng, batch=1)
    X_tensor, W, H = (torch.from_numpy(part) for part in (X, W, H))
    values = []
    for _ in range(60):
        at = (X, W[0].numpy(), H[0].numpy(), A, strength, beta_loss)
        values.append(objective(*at, *penalties))
        W, H = updated(X_tensor, W, H, A, strength, beta_loss, 1, penalties)
    values = np.array(values)
    assert (np.diff(values) <= 1e-12 * values[0]).all()
    assert values[-1] < 0.9 * values[1]


@pytest.mark.parametrize("beta_loss", [1.0, 2.0])
def test_float32_and_pixels_follow_float64(rng, beta_loss):
    X, W, H, A = drawn(rng)
    pixels = torch.from_numpy((X / X.max() * 255).astype(np.uint8))
    W, H = torch.from_numpy(W), torch.from_numpy(H)
    want = updated(pixels.double() / 255, W, H, A, 0.5, beta_loss, 4, PENALTIES[1])
    got = updated(pixels, W.float(), H.float(), A, 0.5, beta_loss, 4, PENALTIES[1])
    for found, wanted in zip(got, want, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("beta_loss", [1.0, 2.0])
def test_what_is_held_and_what_is_zero_stay(rng, beta_loss):
    X, W, H, A = drawn(rng)
    W[0, :, 3], H[0, 3] = 0, 0  # as a start of smaller rank in a batch
    H[1, 2] = 0
    tensors = [torch.from_numpy(part) for part in (X, W, H)]
    W1, H1 = updated(*tensors, A, 0.5, beta_loss, 4, PENALTIES[0], n_fixed=2)
    torch.testing.assert_close(H1[:, :2], tensors[2][:, :2], rtol=0, atol=0)
    assert (W1[0, :, 3] == 0).all()
    assert (H1[0, 3] == 0).all()
    assert bool(W1.isfinite().all())
    assert bool(H1.isfinite().all())
    W2, H2 = updated(*tensors, A, 0.5, beta_loss, 4, PENALTIES[0], update_H=False)
    assert torch.equal(H2, tensors[2])
    assert not torch.equal(W2, tensors[1])


def test_nan_is_no_label():
    with pytest.raises(ValueError, match="y contains NaN; the label of a sample without one is -1"):
        Graph.of_labels(np.array([0.0, 0.0, np.nan, np.nan]), rows(4), 1.0)


def test_a_graph_is_left_as_it_is():
    # Columns out of order, and one entry in two parts.
    parts = np.array([1.0, 0.5, 0.5, 1.0, 1.0]), np.array([2, 1, 1, 0, 0]), np.array([0, 3, 4, 5])
    for part in parts:
        part.flags.writeable = False
    given = scipy.sparse.csr_array(parts, shape=(3, 3))
    ordered = scipy.sparse.csr_array(given.toarray())
    ordered.data.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graphs = [Graph.of_matrix(matrix, rows(3), 1.0) for matrix in (given, ordered)]
    assert graphs[0].digest() == graphs[1].digest()
    np.testing.assert_array_equal(given.indices, [2, 1, 1, 0, 0])
