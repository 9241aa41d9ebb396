from __future__ import annotations

import sys
import types

import pyautoattack
import pyautoattack.checks
import pytest
import torch
from torch import Tensor

from nnmf_cuda.attacks import run_autoattack

QUICK = {"n_iter": 10, "n_restarts": 2, "n_queries": 50}


class _PrintingLogger:
    """As fra31's: prints whatever it is told."""

    def log(self, message: str) -> None:
        print(message)


class _FraAutoAttack(pyautoattack.AutoAttack):
    """pyautoattack's attacks behind the signatures of fra31's autoattack package."""

    def __init__(
        self,
        model,
        norm="Linf",
        eps=0.3,
        seed=None,
        verbose=True,
        attacks_to_run=(),
        version="standard",
        is_tf_model=False,
        device="cuda",
        log_path=None,
    ):
        super().__init__(
            model,
            attacks=attacks_to_run,
            device=device,
            eps=eps,
            norm=norm,
            seed=seed,
            version=version,
        )
        self.verbose = verbose
        self.logger = _PrintingLogger()

    def run_standard_evaluation(self, x_orig, y_orig, bs=250, return_labels=False):
        if self.verbose:
            print("using custom version")
        logger = self.logger
        # fra31's package writes warnings through `log`, with a prefix.
        self.logger = types.SimpleNamespace(
            debug=logger.log,
            info=logger.log,
            warning=lambda message: logger.log(f"Warning: {message}"),
        )
        x_adv, y_adv = super().run_standard_evaluation(x_orig, y_orig, batch_size=bs)
        return (x_adv, y_adv) if return_labels else x_adv


@pytest.fixture
def fra31(monkeypatch):
    """Make fra31's package the one that is installed."""
    module = types.ModuleType("autoattack")
    module.AutoAttack = _FraAutoAttack
    module.checks = pyautoattack.checks
    monkeypatch.setitem(sys.modules, "autoattack", module)
    monkeypatch.setitem(sys.modules, "autoattack.checks", pyautoattack.checks)
    monkeypatch.setitem(sys.modules, "pyautoattack", None)


def test_fra31s_package_gives_the_same_result(classifier, samples, request, capsys):
    expected = run_autoattack(classifier, *samples, attack_eps=0.05, **QUICK)
    assert expected.package == "pyautoattack"
    request.getfixturevalue("fra31")
    result = run_autoattack(classifier, *samples, attack_eps=0.05, **QUICK)
    assert result.package == "autoattack"
    assert torch.equal(result.x_adv, expected.x_adv)
    assert torch.equal(result.robust_flags, expected.robust_flags)
    assert result.accuracy_after == expected.accuracy_after
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("fra31")
def test_fra31s_warnings_are_kept(classifier, samples, capsys):
    class Noisy(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return classifier(x + 0.05 * torch.randn_like(x))

    result = run_autoattack(Noisy(), *samples, **QUICK)
    assert any(w.startswith("it seems to be a randomized defense") for w in result.warnings)
    assert capsys.readouterr().out == ""


def test_without_either_package_the_remedy_is_named(classifier, samples, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    monkeypatch.setitem(sys.modules, "autoattack", None)
    with pytest.raises(ImportError, match="run `pip install pyautoattack`"):
        run_autoattack(classifier, *samples, **QUICK)
