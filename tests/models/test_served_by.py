"""Who computes a network: an op, while that is the same and nobody watches, else its modules."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nnmf_cuda import ops
from nnmf_cuda.models.defended import DefendedClassifier
from nnmf_cuda.models.diffusion import DiffusionPurifier, NoiseSchedule
from nnmf_cuda.models.networks import FeatureCNN, FeatureDenoiser

ONE_SHOT = ((41,), 0.0)
CHAIN = ((60, 30, 5), 0.7)


def purifier_of(denoiser: nn.Module, chain=ONE_SHOT) -> DiffusionPurifier:
    timesteps, eta = chain
    return DiffusionPurifier(
        denoiser, NoiseSchedule.linear(), timesteps=timesteps, n_draws=3, eta=eta
    )


def defended(
    classifier: type[FeatureCNN] = FeatureCNN,
    denoiser: type[FeatureDenoiser] = FeatureDenoiser,
    chain=ONE_SHOT,
) -> DefendedClassifier:
    torch.manual_seed(0)
    purifier = purifier_of(denoiser(6, hidden=16, embedding_dim=8), chain)
    return DefendedClassifier(purifier, classifier(6, 3)).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(5, 6, generator=torch.Generator().manual_seed(1))


def by_hand(model: DefendedClassifier, x: Tensor, seed: int) -> Tensor:
    """Call the networks of a one-shot defence one after the other, as modules."""
    purifier = model.purifier
    noise = ops.philox_normal(seed, (1, len(x), 3, 6))[0]
    t = torch.full((len(x),), int(purifier.timesteps[0]))
    logits = [
        model.classifier(purifier.denoiser(purifier.schedule.q_sample(x, t, noise[:, k]), t))
        for k in range(3)
    ]
    return torch.stack(logits).mean(0)


def test_ops_serve_what_is_as_it_was_built():
    model = defended()
    for network, op in (
        (model, "defended_logits"),
        (model.purifier, "purify"),
        (model.classifier, "feature_cnn"),
    ):
        assert network.served_by() == f"ops.{op}"
        assert copy.deepcopy(network).double().served_by() == f"ops.{op}"
        with ops.reference_path():
            assert network.served_by() == "modules: inside ops.reference_path"


class Named(FeatureCNN):
    """Keeps the computation."""

    name = "named"

    def __init__(self, n_features: int, n_classes: int) -> None:
        super().__init__(n_features, n_classes)
        self.unused = nn.Linear(2, 2)


def test_a_subclass_that_keeps_the_computation_is_as_fast(x):
    model, plain = defended(Named), defended()
    plain.load_state_dict(model.state_dict(), strict=False)
    assert model.classifier.served_by() == "ops.feature_cnn"
    assert model.served_by() == "ops.defended_logits"
    assert torch.equal(model(x, noise=1), plain(x, noise=1))


class Scaled(FeatureCNN):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Shifted(FeatureCNN):
    def hidden(self, x: Tensor) -> Tensor:
        return super().hidden(x) + 1


class Halved(FeatureCNN):
    def weights(self) -> list[Tensor]:
        return [weight / 2 for weight in super().weights()]


class Mixin:
    def hidden(self, x: Tensor) -> Tensor:
        return super().hidden(x) - 1


class Mixed(Mixin, FeatureCNN):
    pass


class Tanh(FeatureCNN):
    def __init__(self, n_features: int, n_classes: int) -> None:
        super().__init__(n_features, n_classes)
        self.head[1] = nn.Tanh()


class Clipped(FeatureDenoiser):
    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return super().forward(x_t, t).clamp(0, 0.1)


class Untimed(FeatureDenoiser):
    def inputs(self, x_t: Tensor, t: Tensor) -> Tensor:
        return super().inputs(x_t, torch.zeros_like(t))


@pytest.mark.parametrize(
    ("classifier", "why"),
    [
        (Scaled, "Scaled overrides forward"),
        (Shifted, "Shifted overrides hidden"),
        (Halved, "Halved overrides weights"),
        (Mixed, "Mixed overrides hidden"),
        (Tanh, "layers of head were replaced"),
    ],
)
def test_a_classifier_that_computes_something_else_is_right_and_tells_why(classifier, why, x):
    model = defended(classifier)
    assert model.classifier.served_by() == f"modules: {why}"
    assert model.served_by() == f"modules: classifier: {why}"
    torch.testing.assert_close(model(x, noise=1), by_hand(model, x, 1))
    with ops.reference_path():
        torch.testing.assert_close(model(x, noise=1), by_hand(model, x, 1))
    layers = model.classifier
    units = layers.convolutions(x.unsqueeze(1)).flatten(1)
    units = layers.head[1](layers.head[0](units)) + {Shifted: 1, Mixed: -1}.get(classifier, 0)
    logits = layers.head[2](units) * (2 if classifier is Scaled else 1)
    torch.testing.assert_close(model.classifier(x), logits)


@pytest.mark.parametrize("denoiser", [Clipped, Untimed])
def test_a_denoiser_that_computes_something_else_is_called(denoiser, x):
    model = defended(denoiser=denoiser)
    assert model.purifier.served_by().startswith(f"modules: denoiser: {denoiser.__name__} over")
    assert model.served_by().startswith("modules: purifier: denoiser: ")
    torch.testing.assert_close(model(x, noise=1), by_hand(model, x, 1))
    assert not torch.allclose(model(x, noise=1), defended()(x, noise=1))
    with ops.reference_path():
        torch.testing.assert_close(model(x, noise=1), by_hand(model, x, 1))


class TwoHeads(DefendedClassifier):
    def classify(self, purified: Tensor) -> Tensor:
        return -super().classify(purified)


class Untouched(DiffusionPurifier):
    def forward(self, x: Tensor, **options: object) -> Tensor:
        return x.unsqueeze(1).expand(-1, 3, -1)


def test_other_defences_are_right(x):
    model = defended()
    other = TwoHeads(model.purifier, model.classifier)
    assert other.served_by() == "modules: TwoHeads overrides classify"
    torch.testing.assert_close(other(x, noise=1), -model(x, noise=1))
    still = Untouched(model.purifier.denoiser, NoiseSchedule.linear(), n_draws=3)
    none = DefendedClassifier(still, model.classifier)
    assert none.served_by() == "modules: purifier: Untouched overrides forward"
    torch.testing.assert_close(none(x), model.classifier(x))
    foreign = DefendedClassifier(model.purifier, nn.Linear(6, 3))
    assert foreign.served_by() == (
        "modules: classifier is a Linear, which ops.feature_cnn does not compute"
    )
    torch.testing.assert_close(foreign(x, noise=1), by_hand(foreign, x, 1))


class Counted(FeatureCNN):
    """Says that the op may stand for its own methods."""

    fused_by = "feature_cnn"

    def hidden(self, x: Tensor) -> Tensor:
        return super().hidden(x)


def test_a_subclass_may_declare_that_the_op_computes_it():
    assert defended(Counted).served_by() == "ops.defended_logits"


def test_hooks_on_every_part_fire(x):
    model = defended(chain=CHAIN)
    want = model(x, noise=1)
    parts = {name: part for name, part in model.named_modules() if name}
    assert len(parts) == 19
    for name, part in parts.items():
        calls: list[str] = []
        handle = part.register_forward_hook(lambda *_, name=name, calls=calls: calls.append(name))
        torch.testing.assert_close(model(x, noise=1), want)
        assert calls, name
        assert model.served_by().endswith("has a hook")
        handle.remove()
        assert model.served_by() == "ops.defended_logits"
    model.classifier.head[0].register_full_backward_hook(lambda *_: calls.append("backward"))
    leaf = x.clone().requires_grad_()
    model(leaf, noise=1).sum().backward()
    assert calls[-1] == "backward"


def test_hooks_of_the_network_itself_leave_it_fast(x):
    model, seen = defended(), []
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    model(x, noise=1)
    assert seen == [5]
    assert model.served_by() == "ops.defended_logits"


@pytest.mark.parametrize("where", ["convolutions", "head", "denoiser"])
def test_replaced_layers_are_right(where, x):
    model = defended()
    classifier = model.classifier
    if where == "convolutions":
        # Shapes are as before: an op would take it.
        classifier.convolutions[2] = nn.Conv1d(16, 32, 3, padding=2, dilation=2)
    elif where == "head":
        classifier.head = nn.Sequential(*classifier.head, nn.Softmax(1))
    else:
        model.purifier.denoiser.layers[1] = nn.Sigmoid()
    assert "were replaced" in model.served_by()
    got = model(x, noise=1)
    torch.testing.assert_close(got, by_hand(model, x, 1))
    assert not torch.allclose(got, defended()(x, noise=1))


def test_a_replaced_forward_is_called(x):
    model = defended()
    model.classifier.forward = lambda x: torch.ones(len(x), 3)
    assert model.served_by() == "modules: classifier has a hook"
    assert torch.equal(model(x), torch.ones(5, 3))
    model = defended()
    model.classifier.head[0].forward = lambda x: torch.zeros(len(x), 64)
    assert model.classifier.served_by() == "modules: head.0 has a hook"
    torch.testing.assert_close(model(x), model.classifier.head[2].bias.expand(5, 3))


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def test_parametrized_layers_are_right(x):
    model = defended()
    for layer in (model.classifier.head[0], model.purifier.denoiser.layers[0]):
        parametrize.register_parametrization(layer, "weight", Doubled())
    plain = defended()
    with torch.no_grad():
        plain.classifier.head[0].weight *= 2
        plain.purifier.denoiser.layers[0].weight *= 2
    torch.testing.assert_close(model(x, noise=1), plain(x, noise=1))
    torch.testing.assert_close(model(x, noise=1), by_hand(model, x, 1))
    model(x, noise=1).sum().backward()
    plain(x, noise=1).sum().backward()
    torch.testing.assert_close(
        model.classifier.head[0].parametrizations.weight.original.grad,
        2 * plain.classifier.head[0].weight.grad,
    )


@pytest.mark.parametrize("chain", [ONE_SHOT, CHAIN, ((60, 30, 5), 0.0)])
@pytest.mark.parametrize("noise", ["seed", "tensor"])
def test_a_chain_step_by_step_is_the_ops(chain, noise, x):
    model = defended(chain=chain).double()
    purifier, x = model.purifier, x.double().requires_grad_()
    given = 3 if noise == "seed" else torch.randn(purifier.noise_shape(x)).double()
    want = purifier(x, noise=given)
    purifier.denoiser.layers[0].register_forward_hook(lambda *_: None)
    got = purifier(x, noise=given)
    torch.testing.assert_close(got, want)
    (expected,), (gradient,) = (torch.autograd.grad(y.square().sum(), x) for y in (want, got))
    torch.testing.assert_close(gradient, expected)
    with pytest.raises(ValueError, match="noise must have shape"):
        purifier(x, noise=torch.zeros(4, 3, 6, dtype=torch.float64))


class Mean(nn.Module):
    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return x_t.mean(1, keepdim=True).expand_as(x_t)


def test_any_module_denoises(x):
    purifier = purifier_of(Mean())
    assert purifier.served_by() == (
        "modules: denoiser is a Mean, which ops.purify does not compute"
    )
    assert purifier(x, noise=0).std(-1).max() < 1e-6
    with pytest.raises(TypeError, match="a Mean has no weights"):
        purifier.weights()


def test_the_log_says_once_why_it_is_slower(x, caplog):
    class Slow(FeatureCNN):
        def hidden(self, x: Tensor) -> Tensor:
            return super().hidden(x)

    with caplog.at_level(logging.INFO, logger="nnmf_cuda"):
        model = Slow(6, 3)
        model(x)
        model(x)
    assert [record.getMessage() for record in caplog.records] == [
        "Slow is computed by its modules, which is slower: Slow overrides hidden"
    ]


@pytest.mark.parametrize("network", ["defended", "purifier", "classifier"])
def test_compiles_to_the_op(network, x):
    model = defended()
    function = {
        "defended": lambda x: model(x, noise=torch.zeros(5, 3, 6)),
        "purifier": lambda x: model.purifier(x, noise=torch.zeros(5, 3, 6)),
        "classifier": model.classifier,
    }[network]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), function(x))
