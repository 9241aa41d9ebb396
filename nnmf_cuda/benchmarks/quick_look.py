"""One look at every op: whether it is right here, and how many times as fast as plain torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from nnmf_cuda import ops
from nnmf_cuda.benchmarks.records import MEASURED, Record, Recorder, where
from nnmf_cuda.ops.show_config import served_by

logger = logging.getLogger(__name__)

Draw = Callable[..., Tensor]
"""``draw(*shape)`` gives uniform numbers in (0.1, 1.1)."""
_ROUNDS = 3
_SMOKE_SECONDS = 0.01
_TIMESTEP = 41


@dataclass(frozen=True)
class _Look:
    """One op on one problem."""

    op: str
    shape: Mapping[str, int]
    smoke_shape: Mapping[str, int]
    arguments: Callable[..., tuple[Any, ...]]  # of draw and the sizes of the shape
    call: Callable[..., Any]  # of the arguments
    tolerance: float  # largest error in float32, as a share of the largest true value


def _factors(draw: Draw, n_samples: int, n_features: int, n_components: int) -> tuple[Tensor, ...]:
    """Return X (n_samples, n_features), W and H."""
    X = draw(n_samples, n_features)
    return X, draw(n_samples, n_components), draw(n_components, n_features)


def _normal_equations(draw: Draw, n_samples: int, n_components: int) -> tuple[Tensor, Tensor]:
    """Return a Gram matrix and right-hand sides, of which about half of the solutions bind."""
    basis = draw(n_components, 4 * n_components)
    return basis @ basis.mT, (draw(n_samples, n_components) - 0.6) @ (basis @ basis.mT)


def _layers(draw: Draw, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Return weight and bias of each layer, of a scale that keeps activations near 1."""
    found = []
    for shape in shapes:
        fan_in = float(np.prod(shape[1:]))
        found += [(draw(*shape) - 0.6) * (6 / fan_in) ** 0.5, draw(shape[0]) - 0.6]
    return found


def _purification(
    draw: Draw, n_samples: int, n_features: int, n_draws: int, hidden: int
) -> tuple[Any, ...]:
    """Return x, noise, timestep, schedule, and the weights of a denoiser of two hidden layers."""
    x, noise = draw(n_samples, n_features), 3 * draw(1, n_samples, n_draws, n_features) - 1.8
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64, device=x.device)
    timesteps = torch.tensor([_TIMESTEP], device=x.device)
    widths = ((hidden, n_features + 32), (hidden, hidden), (n_features, hidden))
    return x, noise, timesteps, torch.cumprod(1 - betas, 0), _layers(draw, *widths)


def _classifier(draw: Draw, n_features: int) -> list[Tensor]:
    """Return the weights of the paper's classifier of two classes."""
    return _layers(draw, (16, 1, 3), (32, 16, 3), (64, 32 * (n_features // 2)), (2, 64))


def _classification(draw: Draw, n_samples: int, n_features: int) -> tuple[Any, ...]:
    return draw(n_samples, n_features), _classifier(draw, n_features)


def _defence(draw: Draw, **sizes: int) -> tuple[Any, ...]:
    return *_purification(draw, **sizes), _classifier(draw, sizes["n_features"])


def _bounded(draw: Draw, n_samples: int, n_features: int) -> tuple[Any, ...]:
    """Return boxes around features, a classifier, and its margin as an objective."""
    x, margin = draw(n_samples, n_features), torch.tensor([[1.0, -1.0]]).repeat(n_samples, 1)
    return x, x + 0.05, _classifier(draw, n_features), margin.to(x.device)


def _bound(low: Tensor, high: Tensor, weights: list[Tensor], margin: Tensor) -> Tensor:
    """Return bounds; boxes are float64 whatever else is."""
    return ops.crown_bounds(low.double(), high.double(), weights, margin.double()).bound


_PAPER = {"n_samples": 1500, "n_features": 128 * 128, "n_components": 15}
_TINY = {"n_samples": 33, "n_features": 129, "n_components": 5}
_SOLVED, _TINY_SOLVED = (
    {"n_samples": 2145, "n_components": 15},
    {"n_samples": 33, "n_components": 5},
)
_PROJECTED = {**_PAPER, "n_samples": 215}
_CLASSIFIED, _TINY_CLASSIFIED = (
    {"n_samples": 1720, "n_features": 15},
    {"n_samples": 9, "n_features": 5},
)
_BOXES, _TINY_BOXES = (
    {"n_samples": 256, "n_features": 15},
    {"n_samples": 5, "n_features": 5},
)
_ATTACKED = {"n_samples": 215, "n_features": 15, "n_draws": 8, "hidden": 128}
_TINY_ATTACKED = {"n_samples": 9, "n_features": 5, "n_draws": 3, "hidden": 16}
_LOOKS = (
    _Look("nnmf_mu", _PAPER, _TINY, _factors, lambda *a: ops.nnmf_mu(*a, n_iter=2)[:2], 1e-4),
    _Look("nnmf_hals", _PAPER, _TINY, _factors, lambda *a: ops.nnmf_hals(*a, n_iter=2)[:2], 1e-3),
    _Look("nnmf_divergence", _PAPER, _TINY, _factors, ops.nnmf_divergence, 1e-5),
    _Look("nnls", _SOLVED, _TINY_SOLVED, _normal_equations, ops.nnls, 1e-4),
    _Look("project", _PROJECTED, _TINY, lambda *a, **n: _factors(*a, **n)[::2], ops.project, 1e-3),
    _Look("purify", _ATTACKED, _TINY_ATTACKED, _purification, ops.purify, 1e-5),
    _Look("feature_cnn", _CLASSIFIED, _TINY_CLASSIFIED, _classification, ops.feature_cnn, 1e-5),
    _Look("crown_bounds", _BOXES, _TINY_BOXES, _bounded, _bound, 1e-8),
    _Look("defended_logits", _ATTACKED, _TINY_ATTACKED, _defence, ops.defended_logits, 1e-5),
)
OPS_LOOKED_AT = tuple(look.op for look in _LOOKS)
"""The ops of `run_quick_look`."""


def run_quick_look(
    *,
    cases: Iterable[str] | None = None,
    device: str | torch.device = "cpu",
    min_run_seconds: float = 1.0,
    smoke: bool = False,
    json_path: str | Path | None = None,
    progress: bool = False,
) -> list[Record]:
    """Compare every op with its reference in plain torch: first the results, then the times.

    The op's float32 result is compared with the reference's in float64. One that is further off
    than is allowed is recorded as failed and not timed. Then both are timed in turns.

    `min_run_seconds` are spent on each of the two; `smoke` takes tiny sizes. Returns two records an
    op (``impl`` "ours" and "reference") of the suite "kernels", and appends each to `json_path`;
    what is not measured here, such as memory, is None.
    """
    from tqdm import tqdm

    from nnmf_cuda.pipeline.environment import resolve_device

    if not min_run_seconds > 0:
        raise ValueError(f"min_run_seconds={min_run_seconds}; need a positive number of seconds")
    chosen = OPS_LOOKED_AT if cases is None else tuple(cases)
    if unknown := [op for op in chosen if op not in OPS_LOOKED_AT]:
        raise ValueError(
            f"there is no benchmark case {unknown}; choose from {', '.join(OPS_LOOKED_AT)}, or see"
            " the folder bench of the source tree"
        )
    on = resolve_device(str(device))
    recorder = Recorder("kernels", device=on, smoke=smoke, json_path=json_path)
    looks = [look for look in _LOOKS if look.op in chosen]
    for look in tqdm(looks, desc="bench", unit="op", disable=None if progress else True):
        shape = look.smoke_shape if smoke else look.shape
        seconds = _SMOKE_SECONDS if smoke else min_run_seconds
        for impl, found in _look(look, shape, on, seconds).items():
            recorder.add(
                op=look.op,
                size="smoke" if smoke else "quick look",
                impl=impl,
                served_by=served_by(look.op, on.type) if impl == "ours" else "reference",
                shape=dict(shape),
                dtype="float32",
                options={},
                **found,
            )
    return recorder.records


def _look(
    look: _Look, shape: Mapping[str, int], device: torch.device, seconds: float
) -> dict[str, Record]:
    """Verify the op, and time it and the reference in turns."""
    arguments = look.arguments(_drawer(device), **shape)
    found = {impl: {**MEASURED, "tolerance": look.tolerance} for impl in ("reference", "ours")}
    try:
        with ops.reference_path():
            truth = look.call(*_doubled(arguments))
        error = _largest_error(look.call(*arguments), truth)
        reason = f"wrong: error {error:.2g} above {look.tolerance:.2g}"
    except Exception as failure:  # one broken op must not hide the others
        logger.exception("a look at %s", look.op)
        error, reason = np.inf, f"{type(failure).__name__}: {failure}".splitlines()[0]
    if not error <= look.tolerance:
        found["ours"].update(status="failed", reason=reason)
        found["reference"].update(status="skipped", reason="nothing to compare with")
        return found
    found["ours"]["max_err"] = error
    n_iter = 2 if look.op in ("nnmf_mu", "nnmf_hals") else None
    for impl, values in _samples(look.call, arguments, seconds).items():
        p25, median, p75 = (1e3 * float(v) for v in np.percentile(values, (25, 50, 75)))
        found[impl].update(
            status="ok",
            median_ms=median,
            p25=p25,
            p75=p75,
            iteration_ms=None if n_iter is None else median / n_iter,
            n=len(values),
            timer="torch.utils.benchmark",
        )
    return found


def _samples(
    call: Callable[..., Any], arguments: tuple[Any, ...], seconds: float
) -> dict[str, list[float]]:
    """Return seconds a call of the reference and of the op, which take turns."""

    def on_reference() -> Any:
        with ops.reference_path():
            return call(*arguments)

    calls: dict[str, Callable[[], Any]]
    calls = {"reference": on_reference, "ours": lambda: call(*arguments)}
    samples: dict[str, list[float]] = {impl: [] for impl in calls}
    for _ in range(_ROUNDS):
        for impl, function in calls.items():
            timer = Timer("call()", globals={"call": function}, num_threads=torch.get_num_threads())
            samples[impl] += timer.blocked_autorange(min_run_time=seconds / _ROUNDS).times
    return samples


def _drawer(device: torch.device) -> Draw:
    generator = torch.Generator(device).manual_seed(0)
    return lambda *shape: torch.rand(shape, generator=generator, device=device) + 0.1


def _doubled(value: Any) -> Any:
    """Return tensors of floats in float64, also inside lists and tuples."""
    if isinstance(value, (list, tuple)):
        return type(value)(_doubled(item) for item in value)
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _largest_error(found: Any, truth: Any) -> float:
    """Return the largest error of all outputs, each as a share of its largest true value."""
    pairs = zip(*(v if isinstance(v, tuple) else (v,) for v in (found, truth)), strict=True)
    errors = [float(((a.double() - b).abs().max() / b.abs().max()).cpu()) for a, b in pairs]
    return float(np.max(errors))  # NaN stays NaN


def quick_look_table(records: Sequence[Record]) -> str:
    """Return a line an op: median of both, how many times as fast ours is, and its error."""
    from tabulate import tabulate

    pairs: dict[str, dict[str, Record]] = {}
    for record in records:
        pairs.setdefault(record["op"], {})[record["impl"]] = record
    rows = []
    for op, pair in pairs.items():
        ours, reference = pair["ours"], pair["reference"]
        shape = " x ".join(map(str, ours["shape"].values()))
        if ours["status"] != "ok":
            rows.append([op, shape, ours["served_by"], "failed", "", "", ours["reason"]])
            continue
        speed = reference["median_ms"] / ours["median_ms"]
        times = [f"{r['median_ms']:.3f} ms" for r in (ours, reference)]
        # Tiny problems measure overheads only.
        shown = "" if ours["smoke"] else f"{speed:.2f} x"
        rows.append([op, shape, ours["served_by"], *times, shown, f"{ours['max_err']:.1e}"])
    header = ["op", "problem", "served by", "ours", "reference", "speed", "error"]
    aligned = ("left", "left", "left", "right", "right", "right", "left")
    table = tabulate(rows, header, disable_numparse=True, colalign=aligned if rows else None)
    return f"{table}\n\n{where(records)}" if rows else "no records"
