"""The same weights in other libraries, in float64: BackPACK, Opacus, kronfluence."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import dense, pair, per_example, product, serial, softmax_cross_entropy, squared_norm, tanh
from jaxnet.backprop import backpropagate
from jaxnet.quantities import curvature, kronecker
from jaxnet.quantities.gradient_statistics import gradient_moments
from jaxnet.quantities.influence import influence
from jaxnet.quantities.kept_factors import of_network
from jaxnet.quantities.privacy import clipped_sum, epsilon
from jaxnet.readings import Beside, second_moment
from tests.agreement import assert_agree, cast, integers, normal, random_like

torch = pytest.importorskip("torch", reason="torch comes with the extra `peers`")
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

BATCH, LOSS = 32, softmax_cross_entropy


def problem(bias=True):
    """A net with its batch, and the same in torch."""
    net = serial(dense(8, bias=bias), tanh, dense(6, bias=bias), tanh, dense(5, bias=bias))
    params = random_like(1, jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(7)))
    params, xs = cast((params, normal(2, (BATCH, 7))), jnp.float64)
    ys = integers(3, (BATCH,), 5)
    layers = [torch.nn.Linear(*W.shape[::-1], bias=bias, dtype=torch.float64) for W in (p["W"] for p in params[::2])]
    for layer, p in zip(layers, params[::2], strict=True):
        layer.load_state_dict({{"W": "weight", "b": "bias"}[k]: torch.tensor(np.asarray(v)) for k, v in p.items()})
    model = torch.nn.Sequential(layers[0], torch.nn.Tanh(), layers[1], torch.nn.Tanh(), layers[2])
    batch = torch.tensor(np.asarray(xs)), torch.tensor(np.asarray(ys)).long()
    return net, params, xs, ys, model, batch


def as_params(model, of):
    """A tree like the parameters, of each parameter in torch."""

    def leaf(p):
        return jax.tree.map(lambda t: jnp.asarray(t.detach().numpy()), of(p))

    linear = [m for m in model if isinstance(m, torch.nn.Linear)]
    named = [{"W": leaf(m.weight)} | ({} if m.bias is None else {"b": leaf(m.bias)}) for m in linear]
    return (named[0], (), named[1], (), named[2])


def pairs(blocks):
    """B and A of each parameter, as BackPACK lists them."""
    return jax.tree.map(lambda b: [b.B] if b.A is None else [b.B, b.A], blocks, is_leaf=kronecker.is_block)


def test_backpack(x64):
    backpack = pytest.importorskip("backpack", reason="BackPACK comes with the extra `peers`")
    net, params, xs, ys, model, (x, y) = problem()
    E, moments = backpack.extensions, gradient_moments(of_network(net, LOSS))
    backpack.extend(model)
    lossfunc = backpack.extend(torch.nn.CrossEntropyLoss())
    asked = (E.BatchGrad(), E.BatchL2Grad(), E.SumGradSquared(), E.Variance(), E.DiagGGNExact(), E.BatchDiagGGNExact(),
             E.SqrtGGNExact(), E.DiagHessian(), E.KFLR(), E.KFRA())  # fmt: skip
    with backpack.backpack(*asked):
        lossfunc(model(x), y).backward()

    @jax.jit
    def ours(params):
        _, (grads, norms) = per_example(net, LOSS, pair(product, squared_norm))(params, xs, ys)
        V = curvature.ggn_root(net, LOSS)(params, xs, ys)
        return {
            "grad_batch": jax.tree.map(lambda t: t / BATCH, grads),
            "batch_l2": jax.tree.map(lambda t: t / BATCH**2, norms),
            "sum_grad_squared": backpropagate(net, LOSS, second_moment)(params, xs, ys)[1],
            "variance": jax.tree.map(lambda t: t / BATCH**2, moments(params, xs, ys).variance),
            "diag_ggn_exact": curvature.ggn_diagonal(net, LOSS)(params, xs, ys),
            "diag_ggn_exact_batch": jax.tree.map(lambda t: jnp.square(t).sum(0), V),
            "sqrt_ggn_exact": V,
            "diag_h": curvature.hessian_diagonal(net, LOSS)(params, xs, ys),
            "kflr": pairs(kronecker.kronecker(net, LOSS, samples=None)(params, xs, ys)),
            "kfra": pairs(kronecker.kfra(net, LOSS)(params, xs, ys)),
        }

    for name, found in ours(params).items():
        assert_agree(found, as_params(model, lambda p, name=name: getattr(p, name)))


def test_opacus(x64):
    opacus = pytest.importorskip("opacus", reason="Opacus comes with the extra `peers`")
    net, params, xs, ys, model, (x, y) = problem()
    sampled = opacus.GradSampleModule(model, loss_reduction="sum")
    private = opacus.optimizers.DPOptimizer(
        torch.optim.SGD(sampled.parameters(), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=0.3,
        expected_batch_size=BATCH,
        loss_reduction="sum",
    )
    torch.nn.CrossEntropyLoss(reduction="sum")(sampled(x), y).backward()
    private.clip_and_accumulate()
    _, grads = jax.jit(clipped_sum(partial(per_example, net, LOSS), clip=0.3))(params, xs, ys)
    assert_agree(grads, as_params(model, lambda p: p.summed_grad), tolerance=2e-6)  # Opacus divides by ‖g‖ + 1e-6
    accountant = opacus.accountants.PRVAccountant()
    accountant.history = [(1.17, 1024 / 50000, 980)]
    ours = epsilon(noise_multiplier=1.17, rate=1024 / 50000, steps=980, delta=1e-5)
    assert accountant.get_epsilon(1e-5) == pytest.approx(ours, rel=0.01)


def test_kronfluence(tmp_path, x64):
    """EKFAC of the empirical Fisher matrix, and the influence of 32 examples on 5."""
    pytest.importorskip("kronfluence", reason="kronfluence comes with the extra `peers`")
    from kronfluence import Analyzer, FactorArguments, ScoreArguments, Task, prepare_model

    class Classification(Task):
        def compute_train_loss(self, batch, model, sample=False):
            return torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

    net, params, xs, ys, model, (x, y) = problem(bias=False)
    data, task = torch.utils.data.TensorDataset(x, y), Classification()
    analyzer = Analyzer("same", prepare_model(model, task), task, cpu=True, output_dir=str(tmp_path),
                        disable_tqdm=True, disable_model_save=True)  # fmt: skip
    in_float64 = {f"{name}_dtype": torch.float64 for name in ("activation_covariance", "gradient_covariance",
                  "eigendecomposition", "lambda", "per_sample_gradient")}  # fmt: skip
    analyzer.fit_all_factors("ekfac", data, per_device_batch_size=8,
                             factor_args=FactorArguments(use_empirical_fisher=True, **in_float64))  # fmt: skip
    score_args = ScoreArguments(damping_factor=1e-3, per_sample_gradient_dtype=torch.float64,
                                score_dtype=torch.float64, precondition_dtype=torch.float64)  # fmt: skip
    analyzer.compute_pairwise_scores("found", "ekfac", torch.utils.data.Subset(data, range(5)), data,
                                     per_device_query_batch_size=5, score_args=score_args)  # fmt: skip
    theirs = analyzer.load_pairwise_scores("found")["all_modules"].numpy()

    @jax.jit
    def ours(params):
        _, blocks = backpropagate(net, LOSS, kronecker.blocks)(params, xs, ys)
        axes = kronecker.axes(blocks, params)
        beside = jax.tree.map(Beside, params, axes)
        _, squares = backpropagate(kronecker.with_beside(net), LOSS, kronecker.along_axes)(beside, xs, ys)
        axes = jax.tree.map(lambda a, t: replace(a, lengths=BATCH * t), axes, squares, is_leaf=kronecker.is_axes)
        return influence(net, LOSS, damping=1e-3)(params, axes, xs, ys, xs[:5], ys[:5])

    assert_agree(ours(params), theirs, tolerance=1e-10)
