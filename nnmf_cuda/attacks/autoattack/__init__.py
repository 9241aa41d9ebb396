"""AutoAttack on feature vectors: the package's run, and loops of our own that equal it."""

from __future__ import annotations

from nnmf_cuda.attacks.autoattack.run import (
    AttackComparison,
    AttackResult,
    compare_attacks,
    run_autoattack,
)

__all__ = ["AttackComparison", "AttackResult", "compare_attacks", "run_autoattack"]
