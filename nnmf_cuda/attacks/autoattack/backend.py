"""AutoAttack as either of its two packages ships it, behind one interface."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from nnmf_cuda import ops
from nnmf_cuda.attacks.autoattack.apgd import apgd_attack
from nnmf_cuda.attacks.autoattack.square import square_attack
from nnmf_cuda.attacks.balls import Threat

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AttackSettings:
    """What is attacked and how hard; the names of `run_autoattack`."""

    threat: Threat
    attacks: tuple[str, ...]
    n_classes: int
    seed: int
    device: torch.device
    batch_size: int
    n_iter: int
    n_restarts: int
    n_queries: int
    eot_iter: int


class WarningLog:
    """Stands in for AutoAttack's logger: keeps its warnings, passes the rest on as debug.

    pyautoattack calls the methods of `logging.Logger`, fra31's package `log` with a prefix.
    """

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def debug(self, message: str) -> None:
        """Pass a message on."""
        logger.debug(message)

    info = debug

    def warning(self, message: str) -> None:
        """Keep a warning."""
        self.warnings.append(message)

    def log(self, message: str) -> None:
        """Sort a message by its prefix."""
        if message.startswith("Warning: "):
            self.warning(message.removeprefix("Warning: "))
        else:
            self.debug(message)


class Meter:
    """Counts rows, seconds and model calls of each attack, and may show a bar on a terminal.

    The device is synchronised at the edges of every measurement; `expected_calls` are the most
    model calls that one batch of an attack can take, for the bar.
    """

    def __init__(
        self, device: torch.device, expected_calls: dict[str, int], *, progress: bool
    ) -> None:
        self.rows: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        self._device = device
        self._expected_calls = expected_calls
        self._progress = progress
        self._bar: Any = None

    @contextmanager
    def measure(self, attack: str, n_rows: int) -> Iterator[None]:
        """Time one batch of an attack."""
        self._bar = tqdm(
            total=self._expected_calls.get(attack),
            desc=f"{attack} on {n_rows} samples",
            unit="call",
            disable=None if self._progress else True,
        )
        start = self._now()
        try:
            yield
        finally:
            self.rows[attack] = self.rows.get(attack, 0) + n_rows
            self.seconds[attack] = self.seconds.get(attack, 0.0) + self._now() - start
            self._bar.close()
            self._bar = None

    def count_call(self) -> None:
        """Count one call of the model."""
        if self._bar is not None:
            self._bar.update()

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class AutoAttackBackend:
    """AutoAttack's custom version on a model of images (N, M, 1, 1) or features (N, M).

    The package, of name `package`, drives: it checks the defence, runs one attack after the other
    on the samples that are left, and counts; its warnings are in `log`. APGD on the cross-entropy
    and Square are our own loops, which give the package's points at less cost a step, except inside
    `nnmf_cuda.ops.reference_path`; its other attacks are the package's everywhere.
    """

    def __init__(self, model: nn.Module, settings: AttackSettings, meter: Meter) -> None:
        self.log = WarningLog()
        self.package, attack_class = _import_autoattack()
        # The two packages differ in names: this one is keyword-only, with `attacks`.
        names = "attacks" if self.package == "pyautoattack" else "attacks_to_run"
        quiet = {} if self.package == "pyautoattack" else {"verbose": False}
        self._settings = settings
        self._auto = attack_class(
            model,
            norm=settings.threat.norm,
            eps=settings.threat.single_eps,
            seed=settings.seed,
            device=settings.device,
            version="custom",
            **{names: list(settings.attacks)},
            **quiet,
        )
        self._auto.logger = self.log
        self._configure(model)
        if not ops.is_reference_path():
            self._use_own_loops(model)
        self._instrument(meter)

    def run(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Attack (N, C, H, W); return the points and the labels the model gave them.

        A point keeps its clean position, and its right label, where no attack succeeded.
        """
        # Counts of earlier runs would flag every later model as dynamic.
        counts = importlib.import_module(f"{self.package}.checks").funcs
        counts.update(dict.fromkeys(counts, 0))
        if self.package == "pyautoattack":
            options = {"batch_size": self._settings.batch_size}
        else:
            options = {"bs": self._settings.batch_size, "return_labels": True}
        x_adv, y_adv = self._auto.run_standard_evaluation(x, y, **options)
        return x_adv, y_adv

    def _configure(self, model: nn.Module) -> None:
        s, auto = self._settings, self._auto
        # Built anew because APGD derives its step-size checkpoints from n_iter when it is made.
        common = {
            "n_iter": s.n_iter,
            "norm": s.threat.norm,
            "eps": s.threat.single_eps,
            "seed": s.seed,
            "eot_iter": s.eot_iter,
            "device": s.device,
            "logger": self.log,
        }
        n_targets = min(9, s.n_classes - 1)
        auto.apgd = type(auto.apgd)(model, n_restarts=s.n_restarts, **common)
        auto.apgd_targeted = type(auto.apgd_targeted)(
            model, n_restarts=1, n_target_classes=n_targets, **common
        )
        auto.fab.n_iter = s.n_iter
        auto.fab.n_target_classes = n_targets
        auto.square.n_queries = s.n_queries

    def _use_own_loops(self, model: nn.Module) -> None:
        s, auto = self._settings, self._auto
        package_apgd = auto.apgd.perturb

        def apgd(images: Tensor, y: Tensor) -> Tensor:
            if auto.apgd.loss != "ce":
                points: Tensor = package_apgd(images, y)
                return points
            points = apgd_attack(
                model,
                images.flatten(1),
                y,
                attack_eps=s.threat.single_eps,
                norm=s.threat.norm,
                loss=auto.apgd.loss,
                n_iter=s.n_iter,
                n_restarts=s.n_restarts,
                eot_iter=s.eot_iter,
                seed=s.seed,
            )
            return points.view_as(images)

        def square(images: Tensor, y: Tensor) -> Tensor:
            points = square_attack(
                model,
                images.flatten(1),
                y,
                attack_eps=s.threat.single_eps,
                n_queries=s.n_queries,
                seed=s.seed,
            )
            return points.view_as(images)

        auto.apgd.perturb = apgd
        auto.square.perturb = square

    def _instrument(self, meter: Meter) -> None:
        auto = self._auto
        _measured(auto.apgd, lambda: f"apgd-{auto.apgd.loss}", meter)
        _measured(auto.apgd_targeted, lambda: "apgd-t", meter)
        _measured(auto.fab, lambda: "fab-t" if auto.fab.targeted else "fab", meter)
        _measured(auto.square, lambda: "square", meter)


def expected_calls(n_iter: int, n_restarts: int, n_queries: int, eot_iter: int) -> dict[str, int]:
    """Most model calls of one batch, for the attacks where that is known beforehand."""
    apgd = 1 + n_restarts * (n_iter + 1) * eot_iter
    return {"apgd-ce": apgd, "apgd-dlr": apgd, "square": n_queries + 3}


def _measured(attack: Any, name: Callable[[], str], meter: Meter) -> None:
    """Have `attack.perturb` measured; the name is asked for at the call."""
    perturb = attack.perturb

    def measured_perturb(x: Tensor, y: Tensor) -> Tensor:
        with meter.measure(name(), len(x)):
            x_adv: Tensor = perturb(x, y)
        return x_adv

    attack.perturb = measured_perturb


def _import_autoattack() -> tuple[str, Any]:
    for package in ("pyautoattack", "autoattack"):
        try:
            return package, importlib.import_module(package).AutoAttack
        except (ImportError, AttributeError):  # the second: a folder of that name, no package
            continue
    raise ImportError("attacks need AutoAttack: run `pip install pyautoattack`")
