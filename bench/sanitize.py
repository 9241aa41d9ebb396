"""Call every CUDA op once on small awkward shapes; under compute-sanitizer, if that is asked for.

Usage: sanitize.py [--device cuda]                        the calls, each compared with the CPU
       sanitize.py --tools memcheck racecheck ... [--json FILE] [--seconds 90]
                                                          the same, once under each tool, at once
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

SHAPES = [(33, 70, 5), (61, 127, 15), (1, 67, 1), (67, 1, 2), (37, 131, 33), (19, 131, 128)]
# Samples, features, draws, hidden units, channels, hidden units of the classifier.
DEFENCES = [(1, 2, 1, 1, 1, 1), (33, 15, 3, 33, 5, 17), (5, 40, 8, 512, 12, 512)]
FOUND = 99  # exit code of compute-sanitizer where it has found something


def calls(device: str) -> Iterator[tuple[str, Callable[[], tuple[object, ...]]]]:
    """Give every op on every kind of input, the most used first."""
    import torch

    from nnmf_cuda import ops

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        if dtype == torch.uint8:
            return torch.randint(1, 256, shape, dtype=dtype).to(device)
        return (torch.rand(shape, dtype=dtype) + 0.1).to(device)

    def column_slice(X: torch.Tensor) -> torch.Tensor:
        wide = X.new_zeros(*X.shape[:-1], X.shape[-1] + 5)
        view = wide[..., 3:-2]
        return view.copy_(X)

    for n, f, k in SHAPES:
        for dtype in (torch.float32, torch.uint8, torch.float64):
            factors = torch.float64 if dtype == torch.float64 else torch.float32
            X, own = column_slice(draw(n, f, dtype=dtype)), draw(3, n, f, dtype=dtype)
            W, H = draw(3, n, k, dtype=factors), draw(3, k, f, dtype=factors)
            for beta_loss in (1.0, 2.0, 0.5):
                for name, data in (("shared", X), ("own", own)):
                    yield (
                        f"nnmf_mu beta {beta_loss} {dtype} {n}x{f}x{k} {name} X",
                        lambda d=data, w=W, h=H, b=beta_loss: ops.nnmf_mu(
                            d, w, h, beta_loss=b, n_iter=2, compute_divergence=True
                        ),
                    )
            yield (
                f"nnmf_hals {dtype} {n}x{f}x{k}",
                lambda d=own, w=W, h=H: ops.nnmf_hals(d, w, h, n_iter=2, compute_divergence=True),
            )
            active = torch.tensor([True, False, True], device=device)
            yield (
                f"nnmf_mu {dtype} {n}x{f}x{k} some problems",
                lambda d=own, w=W, h=H, a=active: ops.nnmf_mu(
                    d, w, h, n_iter=2, compute_divergence=True, active=a
                ),
            )
            yield (
                f"nnmf_divergence {dtype} {n}x{f}x{k}",
                lambda d=own, w=W, h=H: (ops.nnmf_divergence(d, w, h),),
            )
            if f > k:
                yield f"project {dtype} {n}x{f}x{k}", lambda d=X, h=H: (ops.project(d, h),)
    for k in (1, 5, 15, 33, 128):
        basis = draw(2, k, 3 * k, dtype=torch.float64).cpu()
        gram = (basis @ basis.mT).to(device)
        cross = ((torch.randn(2, 37, 3 * k, dtype=torch.float64) + 0.3) @ basis.mT).to(device)
        yield f"nnls {k}", lambda g=gram, c=cross: (ops.nnls(g, c),)
        h = ops.nnls(gram.cpu(), cross.cpu()).to(device)
        yield (
            f"nnls_backward {k}",
            lambda g=gram, h=h: (torch.ops.nnmf_cuda.nnls_backward(g, h, torch.ones_like(h)),),
        )
    for shape in ((1, 1, 1, 1), (2, 7, 3, 5), (3, 33, 5, 257)):
        for dtype in (torch.float32, torch.float64):
            yield (
                f"philox_normal {dtype} {shape}",
                lambda s=shape, d=dtype: (ops.philox_normal(0, s, dtype=d, device=device),),
            )
    yield from defence_calls(device)


def defence_calls(device: str) -> Iterator[tuple[str, Callable[[], tuple[object, ...]]]]:
    """Give the defence's ops with their gradients, drawing their noise or given it."""
    import torch

    from nnmf_cuda import ops

    def layer(*shape: int) -> list[torch.Tensor]:
        return [torch.randn(shape) / 4, torch.rand(shape[0])]

    for n, features, draws, hidden, channels, units in DEFENCES:
        denoiser = [*layer(hidden, features + 9), *layer(features, hidden)]
        classifier = [
            *layer(channels, 1, 3),
            *layer(2 * channels, channels, 3),
            *layer(units, 2 * channels * (features // 2)),
            *layer(3, units),
        ]
        for dtype in (torch.float32, torch.float64):
            own, theirs = (
                [w.to(device, dtype).requires_grad_() for w in weights]
                for weights in (denoiser, classifier)
            )
            x = torch.rand(n, features).to(device, dtype).requires_grad_()
            noise = torch.randn(2, n, draws, features).to(device, dtype).requires_grad_()
            chain = (
                torch.tensor([41, 20], device=device),
                torch.linspace(0.99, 0.01, 100, dtype=torch.float64, device=device),
            )
            for op, arguments, options, inputs in (
                ("purify", (x, noise, *chain, own), {"eta": 0.5}, [x, noise, *own]),
                ("feature_cnn", (x, theirs), {}, [x, *theirs]),
                (
                    "defended_logits",
                    (x, 3, *chain, own, theirs),
                    {"eta": 0.5, "n_draws": draws},
                    [x, *own, *theirs],
                ),
            ):
                yield (
                    f"{op} and gradients {dtype} {n}x{features}x{draws}",
                    lambda f=op, a=arguments, o=options, i=inputs: torch.autograd.grad(
                        getattr(ops, f)(*a, **o).square().sum(), i
                    ),
                )


def run_calls(device: str) -> int:
    """Call everything, and say what is not finite; the sanitizer says the rest."""
    import torch

    torch.manual_seed(0)
    bad = []
    done = 0
    for name, call in calls(device):
        outputs = call()
        if not all(output.cpu().isfinite().all() for output in outputs):
            bad.append(name)
        done += 1
        print(f"{done} {name}", flush=True)
    print(f"{done} calls, {len(bad)} with results that are not finite: {bad}")
    return int(bool(bad))


def find_sanitizer() -> str | None:
    """Return the path of compute-sanitizer, which need not be on PATH."""
    cuda = os.environ.get("CUDA_HOME", "")
    places = os.pathsep.join([os.environ.get("PATH", ""), f"{cuda}/bin", "/usr/local/cuda/bin"])
    return shutil.which("compute-sanitizer", path=places)


def run_tools(
    tools: list[str], *, seconds: float, device: str, folder: Path
) -> list[dict[str, object]]:
    """Run the calls under each tool, all at once, and say what came of it."""
    sanitizer = find_sanitizer()
    if sanitizer is None:
        reason = "compute-sanitizer is not here"
        return [{"tool": t, "outcome": "skipped", "message": reason} for t in tools]
    # Each tensor has memory of its own, so that one byte too far is seen.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    running = []
    for tool in tools:
        output = (folder / f"{tool}.txt").open("w")
        command = [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "20"]
        command += [sys.executable, os.path.abspath(__file__), "--device", device]
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, start_new_session=True
        )
        running.append((tool, process, output))
    end = time.monotonic() + seconds
    found = []
    for tool, process, output in running:
        try:
            code = process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the program under the tool as well
            process.wait()
            code = None
        output.close()
        found.append(outcome(tool, code, (folder / f"{tool}.txt").read_text(errors="replace")))
    return found


def outcome(tool: str, code: int | None, text: str) -> dict[str, object]:
    """Return how a tool ended, with its own summary and how many calls it saw."""
    summary = re.findall(r"={3,}\s*((?:ERROR|RACECHECK) SUMMARY:.*)", text)
    n_calls = len(re.findall(r"^\d+ (?!calls)", text, re.MULTILINE))
    ended = {0: "passed", FOUND: "failed", None: "did not end"}.get(code, "broken")
    # A tool that names errors has found some, however it ended.
    if any(not re.search(r"SUMMARY: 0 (?:errors|hazards)", line) for line in summary):
        ended = "failed"
    last = (summary or text.strip().splitlines() or [""])[-1]
    return {"tool": tool, "outcome": ended, "calls": n_calls, "message": last[:300]}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tools", nargs="+")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("PART_SECONDS", 90)))
    options = parser.parse_args()
    if not options.tools:
        return run_calls(options.device)
    folder = options.json.parent if options.json else Path()
    found = run_tools(
        options.tools, seconds=options.seconds - 3, device=options.device, folder=folder
    )
    for line in found:
        print(json.dumps(line))
        if options.json:
            with options.json.open("a") as file:
                file.write(json.dumps(line) + "\n")
    return int(any(line["outcome"] not in ("passed", "skipped") for line in found))


if __name__ == "__main__":
    sys.exit(main())
