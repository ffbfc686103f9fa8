"""Right rules of many kinds pass, and their wrong twins do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxnet.checking import CannotCheckError, check, points
from jaxnet.checking.reference import STEPS, extrapolated

X = jnp.asarray([0.4, -1.1, 1.7, 0.6])
WRONG = [False, True]
BOTH = pytest.mark.parametrize("wrong", WRONG, ids=["right", "wrong"])


@pytest.fixture(autouse=True)
def as_users_have_it():
    """Promotion as JAX has it by default."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def rule(primal, backward):
    """A custom_vjp function that saves its arguments."""
    function = jax.custom_vjp(primal)
    function.defvjp(lambda *args: (primal(*args), args), lambda args, g: backward(*args, g))
    return function


@BOTH
def test_complex_to_real(wrong):
    power = rule(lambda z: jnp.abs(z) ** 2, lambda z, g: (2 * g * (z if wrong else z.conj()),))
    assert check(power, X + 1j * X[::-1], diagnose=False).ok is not wrong


@BOTH
def test_real_to_complex(wrong):
    wave = rule(lambda x: jnp.exp(1j * x), lambda x, g: ((g * 1j * jnp.exp(1j * x)).real * (1.5 if wrong else 1),))
    assert check(wave, X, diagnose=False).ok is not wrong


@BOTH
def test_a_branch_at_a_single_point(wrong):
    product = jax.custom_jvp(lambda x, y: jnp.where(y == 0, 0.0, x * y))
    product.defjvp(lambda p, t: (product(*p), p[1] * t[0] + (0.5 if wrong else 1) * p[0] * t[1]))
    assert check(product, X, jnp.asarray([0.0, 1.0, 2.0, 0.0]), diagnose=False).ok is not wrong


@BOTH
def test_a_clipped_cotangent_as_declared(wrong):
    passed = rule(lambda x: x, lambda x, g: (jnp.clip(g, -0.5, 0.5),))
    limit = 0.7 if wrong else 0.5
    report = check(passed, X, intended=lambda x, g: (jnp.clip(g, -limit, limit),), diagnose=False)
    assert report.ok is not wrong
    undeclared = check(lambda x: jnp.tanh(3 * passed(x)), X, diagnose=False)
    assert not undeclared.ok


@BOTH
def test_a_surrogate_gradient_under_jit_as_declared(wrong):
    slope = 1.1 if wrong else 1.0

    @jax.jit
    @jax.custom_gradient
    def spike(x):
        return jnp.where(x > 0, 1.0, 0.0), lambda g: slope * g * (1 - jnp.tanh(x) ** 2)

    assert check(spike, X, intended=jnp.tanh, diagnose=False).ok is not wrong


@BOTH
def test_a_rule_inside_is_asked_for_the_gradients_that_are_used(wrong):
    # Its second argument is fixed data, for which it gives None.
    factor = 2 if wrong else 1
    loss = rule(
        lambda g, points: jax.nn.logsumexp(points @ g, axis=0),
        lambda g, points, d: (factor * d * points.T @ jax.nn.softmax(points @ g), None),
    )
    points = jnp.asarray([[0.3, 1.0], [-0.2, 0.5], [1.1, -0.7]])
    report = check(lambda g: loss(g, points), X[:2], diagnose=False)
    assert report.ok is not wrong
    assert [inner.passed_over for inner in report.inside] == [{"points": "no gradient is given for it"}]
    moving = check(lambda g: loss(g, points * g[None]), X[:2], diagnose=False)
    assert not moving.ok  # now the data depend on the argument, and None is wrong


@BOTH
@pytest.mark.parametrize("kind", ["jvp", "vjp"])
def test_a_rule_inside_that_holds_a_table(kind, wrong):
    table, slope = np.asarray([0.3, -0.2, 0.5, 1.0], np.float32), np.asarray([0.9, -0.4, 0.5], np.float32)
    factor = 1.5 if wrong else 1

    def primal(x):
        return jnp.polyval(jnp.asarray(table), x)

    if kind == "jvp":
        by_table = jax.custom_jvp(primal)
        by_table.defjvp(lambda p, t: (primal(*p), factor * jnp.polyval(jnp.asarray(slope), p[0]) * t[0]))
    else:
        by_table = rule(primal, lambda x, g: (factor * jnp.polyval(jnp.asarray(slope), x) * g,))
    assert check(lambda x: 2 * by_table(x), X, diagnose=False).ok is not wrong


@BOTH
def test_integers_of_32_bits(wrong):
    # With float64 on, `arange` counts in 64 bits, and `lax.add` takes no two dtypes.
    def rolled(x):
        n = x.shape[0]
        return x[lax.rem(lax.add(jnp.arange(n), jnp.full((n,), 1, jnp.int32)), jnp.full((n,), n, jnp.int32))]

    assert check(rule(rolled, lambda x, g: (jnp.roll(g, 2 if wrong else 1),)), X, diagnose=False).ok is not wrong


@BOTH
def test_a_mask_drawn_inside_is_the_same_in_float64(wrong):
    def drop(key, x):
        return jnp.where(jax.random.bernoulli(key, 0.7, x.shape), x / 0.7, 0)

    def backward(key, x, g):
        kept = jax.random.bernoulli(key, 0.7, g.shape)
        return np.zeros(key.shape, jax.dtypes.float0), jnp.where(kept, g if wrong else g / 0.7, 0)

    report = check(rule(drop, backward), jax.random.PRNGKey(0), jnp.outer(X, X), diagnose=False, shapes=False)
    assert report.ok is not wrong
    assert not any("float64" in note for note in report.notes)
    assert max(leaf.allowed for leaf in report.leaves) < 1e-5


@BOTH
def test_a_rule_that_names_its_dtype(wrong):
    factor = 2 if wrong else 1
    look_up = rule(
        lambda w, i: w[i],
        lambda w, i, g: (jnp.zeros(w.shape, jnp.float32).at[i].add((factor * g).astype(jnp.float32)), None),
    )
    report = check(look_up, "float32[5,3], int32[8]<5", diagnose=False, shapes=False)
    assert report.ok is not wrong
    assert not any(held.name == "structure and dtypes" for held in report.properties)


@BOTH
def test_two_scalars_are_gradients_where_the_first_is_not_the_cost(wrong):
    def cost(m, c, x, y):
        return jnp.mean((m * x + c - y) ** 2)

    def grads(m, c, x, y):
        e = m * x + c - y
        return 2 * jnp.mean(e * x), (1 if wrong else 2) * jnp.mean(e)

    args = 0.3, -0.2, X, 3 * X + 1
    for function in (grads, lambda *args: list(grads(*args))):
        report = check(function, *args, reference=cost, diagnose=False)
        assert report.ok is not wrong
        assert [leaf.path for leaf in report.leaves if not leaf.forward] == ["∂m", "∂c"] or function is not grads


@BOTH
def test_an_implicit_derivative_of_a_bisection(wrong):
    # Its steps only compare, so autodiff gives zero; finite differences agree with the right rule.
    def root(c):
        def halve(_, ends):
            a, b = ends
            m = (a + b) / 2
            low = m**3 + m < c
            return jnp.where(low, m, a), jnp.where(low, b, m)

        a, b = lax.fori_loop(0, 40, halve, (0 * c - 3, 0 * c + 3))
        return (a + b) / 2

    factor = 1.01 if wrong else 1
    report = check(rule(root, lambda c, g: (factor * g / (3 * root(c) ** 2 + 1),)), X[:2], diagnose=False)
    assert report.ok is not wrong
    assert any("agrees with finite differences" in note for note in report.notes) is not wrong


def test_rounding_to_eight_bits_is_no_reference():
    def rounded(x, s):
        return (x / s).astype(jnp.float8_e4m3fn).astype(x.dtype) * s

    args = jnp.outer(X, X), jnp.float32(0.7)
    ones = rule(rounded, lambda x, s, g: (jnp.ones_like(g), s + 3))
    report = check(ones, *args, diagnose=False)
    assert not report.ok
    assert "could not be judged" in report.cause
    through = rule(rounded, lambda x, s, g: (g, jnp.zeros_like(s)))
    assert check(through, *args, intended=lambda x, s, g: (g, jnp.zeros_like(s)), diagnose=False).ok
    assert not check(ones, *args, intended=lambda x, s, g: (g, jnp.zeros_like(s)), diagnose=False).ok


def test_outputs_of_different_shapes_and_a_gradient_of_another_shape():
    two = rule(lambda x, w: (x @ w, x.sum()), lambda x, w, g: (g[0] @ w.T + g[1], 2 * x.T @ g[0]))
    report = check(two, "float32[4,3], float32[3,2]", shapes=False)
    assert [leaf.path for leaf in report.wrong] == ["∂w"]

    def cost(p, x):
        return jnp.sum(jnp.tanh(p["W"] @ x + p["b"]) ** 2) / 2

    def grads(p, x):
        a = jnp.tanh(p["W"] @ x + p["b"])
        dz = a * (1 - a)
        return {"W": dz @ x.T, "b": dz.sum(1)}

    params = {"W": jnp.outer(X, X[:2]), "b": jnp.zeros((4, 1))}
    report = check(grads, params, jnp.outer(X[:2], X), reference=cost)
    assert not report.ok
    assert "the gradient of p['b'] has shape (4,); it must have p['b']'s, (4, 1)" in str(report)


@BOTH
def test_a_rule_inside_shard_map(wrong):
    square = rule(lambda x: x * x, lambda x, g: ((4 if wrong else 2) * x * g,))
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("d")

    def sharded(x):
        return jax.shard_map(square, mesh=mesh, in_specs=spec, out_specs=spec)(x)

    report = check(sharded, jnp.outer(X, X), diagnose=False)
    assert report.ok is not wrong
    assert [inner.name for inner in report.inside] == [square.__name__]
    assert not report.inside[0].problems


def test_a_wrong_rule_in_the_forward_pass_of_a_right_one_is_a_warning():
    wrong = rule(lambda x: x**2, lambda x, g: (3 * x * g,))
    right = rule(lambda x: wrong(x) * x, lambda x, g: (3 * x**2 * g,))
    report = check(right, X, diagnose=False)
    assert report.ok
    assert any("nothing differentiates it" in note for note in report.notes)
    report = check(lambda x: right(2 * x), X, diagnose=False)
    assert report.ok
    assert not check(lambda x: right(2 * x) + wrong(x), X, diagnose=False).ok


def test_a_rule_inside_that_raises_is_told_once_and_no_reference_goes_through_it():
    raising = rule(lambda x: x**2, lambda x, g: 2 * x * g)  # of one argument, a tuple is asked for
    right = rule(lambda x: raising(x) * x, lambda x, g: (3 * x**2 * g,))
    report = check(right, X, diagnose=False)
    assert report.ok
    assert "no forward mode" not in str(report)  # it is held against differences
    right = rule(lambda x: rule(jnp.sin, lambda x, g: (g * jnp.cos(x),))(x), lambda x, g: (g * jnp.cos(x),))
    assert "a custom_vjp inside has no forward mode" in str(check(right, X, diagnose=False))
    assert str(check(lambda x: 2 * raising(x), X)).count("raises TypeError") == 1


def tanh_layer(W, x, b):
    a = np.tanh(W @ x + b)
    return a, (W, x, a)


@BOTH
def test_a_pair_in_numpy(wrong):
    # JAX cannot trace it: it is called, and autodiff of it with `jax.numpy` is the reference.
    def backward(saved, d_out):
        W, x, a = saved
        dz = d_out * (1 - a**2)
        return np.outer(dz, x), (W if wrong else W.T) @ dz, dz

    report = check((tanh_layer, backward), "float32[3,3], float32[3], float32[3]", diagnose=False, shapes=False)
    assert report.ok is not wrong
    assert report.reference == "autodiff of its primal"
    assert [leaf.path for leaf in report.wrong] == (["∂x"] if wrong else [])
    known = check(
        (tanh_layer, backward),
        "float64[3,3], float64[3], float64[3]",
        reference=lambda W, x, b: jnp.tanh(W @ x + b),
        diagnose=False,
    )
    assert known.ok is not wrong


@BOTH
@pytest.mark.parametrize("cost_in", ["Python", "JAX"])
def test_a_gradient_in_plain_python(cost_in, wrong):
    def cost(W, x, y):
        if cost_in == "JAX":
            return jnp.sum((W @ x - y) ** 2)
        total = 0.0
        for row, target in zip(W, y, strict=True):
            if not np.isnan(target):
                total += (float(row @ x) - target) ** 2
        return total

    def gradient(W, x, y):
        dW = np.zeros_like(W)
        for i in range(len(y)):
            dW[i] = (1 if wrong else 2) * (W[i] @ x - y[i]) * x
        W[:] = np.nan  # arguments that are written to are copies
        return dW

    report = check(gradient, "float32[3,4], float32[4], float32[3]", reference=cost, diagnose=False, shapes=False)
    assert report.ok is not wrong


def test_a_pair_that_runs_neither_traced_nor_called_says_why():
    def backward(saved, d_out):
        raise RuntimeError("no such thing")

    with pytest.raises(CannotCheckError, match="RuntimeError: no such thing"):
        check((tanh_layer, backward), "float32[3,3], float32[3], float32[3]")


@pytest.mark.peers
@BOTH
@pytest.mark.parametrize("reference_in", ["PyTorch", "JAX"])
def test_a_function_of_pytorch(reference_in, wrong):
    torch = pytest.importorskip("torch")

    class TanhOfProduct(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return torch.tanh(x @ w)

        @staticmethod
        def backward(ctx, g):
            x, w = ctx.saved_tensors
            h = torch.tanh(x @ w)
            d = g * (1 - (h if wrong else h**2))
            return d @ w.mT, x.mT @ d

    def reference(x, w):
        return torch.tanh(x @ w) if reference_in == "PyTorch" else jnp.tanh(x @ w)

    inputs = "float32[4,3], float32[3,2]"
    report = check(TanhOfProduct, inputs, reference=reference, diagnose=False, shapes=False)
    assert report.ok is not wrong
    assert {leaf.path for leaf in report.wrong} == ({"∂x", "∂w"} if wrong else set())
    with pytest.raises(CannotCheckError, match="give `reference=`"):
        check(TanhOfProduct, inputs)


def test_inputs_of_a_shape_string():
    (params, x), (pair,) = (
        points.expand(["{W: float32[3,4], 'b': float32[3]>0}, int32[2]<5"]),
        points.expand(["(2, key)"]),
    )
    assert str(params["W"]) == "float32[3,4]"
    assert params["b"].above == 0
    assert (x.shape, x.below) == ((2,), 5)
    assert pair[0] == 2
    with pytest.raises(CannotCheckError, match="a dict of inputs is written"):
        points.expand(["{float32[3]}"])
    layer = rule(lambda p, x: p["W"] @ x + p["b"], lambda p, x, g: ({"W": jnp.outer(g, x), "b": g}, p["W"].T @ g))
    assert check(layer, "{W: float32[3,4], b: float32[3]}, float32[4]", diagnose=False, shapes=False).ok


@BOTH
def test_a_row_of_zeros_is_tried(wrong):
    # The rule divides by the length of a row, and where that is 0 it gives NaN.
    def guarded(x):
        n = jnp.sqrt(jnp.sum(x * x, -1, keepdims=True))
        return jnp.where(n > 0, n, 1)

    def unit(x):
        positive = jnp.sum(x * x, -1, keepdims=True) > 0
        n = jnp.sqrt(jnp.sum(jnp.where(positive, x, 1) ** 2, -1, keepdims=True))
        return jnp.where(positive, x / n, 0.0)

    def backward(x, g):
        n = jnp.sqrt(jnp.sum(x * x, -1, keepdims=True)) if wrong else guarded(x)
        d = (g - x * (x * g).sum(-1, keepdims=True) / n**2) / n
        return (d if wrong else jnp.where(jnp.sum(x * x, -1, keepdims=True) > 0, d, 0.0),)

    report = check(rule(unit, backward), "float32[4,5]", diagnose=False)
    assert report.ok is not wrong
    assert any("a row of zeros" in note for note in report.notes) or wrong
    assert not wrong or "a row of zeros" in report.wrong[0].dtype


@BOTH
def test_a_sum_carried_in_half_precision(wrong):
    # Terms of one sign make a sum in bfloat16 stop growing: half of the terms are lost.
    carried = jnp.bfloat16 if wrong else jnp.float32

    def backward(w, x, g):
        def step(total, each):
            return (total + jnp.outer(*each).astype(carried)).astype(carried), None

        total, _ = lax.scan(step, jnp.zeros(w.shape, carried), (x, g))
        return total.astype(w.dtype), g @ w.T

    product = rule(lambda w, x: x @ w, backward)
    w = jnp.outer(X, X[:3]).astype(jnp.bfloat16)
    x = (jax.random.normal(jax.random.key(0), (2048, 4)) + 1).astype(jnp.bfloat16)
    report = check(product, w, x, diagnose=False)
    assert report.ok is not wrong
    assert [leaf.path for leaf in report.wrong] == (["∂w"] if wrong else [])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_a_right_rule_that_loses_precision_is_imprecise_and_fails(dtype):
    """A sum over 2,048 rows that is carried in bfloat16, in float32 too."""

    def backward(W, x, g):
        def add(total, row):
            return (total + jnp.outer(*row)).astype(jnp.bfloat16), None

        return lax.scan(add, jnp.zeros(W.shape, jnp.bfloat16), (x, g))[0].astype(W.dtype), g @ W.T

    product = rule(lambda W, x: x @ W, backward)
    rng = np.random.default_rng(0)
    report = check(
        product, jnp.asarray(rng.uniform(1, 2, (4, 3)), dtype), jnp.asarray(rng.uniform(1, 2, (2048, 4)), dtype)
    )
    assert (report.ok, report.verdict, [leaf.path for leaf in report.wrong]) == (False, "imprecise", ["∂W"])
    assert "times what rounding allows" in report.cause
    assert report.repair is None is report.planted


@pytest.mark.parametrize(
    ("saved", "out", "also", "ok"),
    [(1, 1, True, True), (1.5, 1, True, False), (1, 2, True, False), (1, 1, False, True), (1.5, 1, False, False)],
)
def test_a_rule_that_is_run_again_under_checkpoint(saved, out, also, ok):
    """`defremat`: a right rule for the forward pass and a second one for its recomputation."""

    def backward(args, g):
        return 2 * args[1] * args[0] * g, (args[0] ** 2 * g).sum()

    def square(x, n):
        return n * x * x

    function = rule(square, lambda x, n, g: backward((x, n), g)) if also else jax.custom_vjp(square)
    again = lambda *args: (square(*args), ()), lambda _, x, n: (out * square(x, n), (saved * x, n)), backward
    vars(function)["remat_rules"] = (*again, False)  # as `defremat` of newer releases of JAX does
    assert check(function, X, jnp.float32(0.7), diagnose=False).ok is ok


@pytest.mark.parametrize(
    ("primal", "slope"),
    [
        (lambda x: jnp.sqrt(x * x), jnp.sign),  # autodiff gives NaN at 0
        (lambda x: lax.stop_gradient(x) ** 2, lambda x: 2 * x),
    ],
    ids=["root of a square", "held constant"],
)
@BOTH
def test_differences_decide_where_autodiff_is_no_reference(primal, slope, wrong):
    x = jnp.asarray([0.0, 0.7, -1.3])
    function = rule(primal, lambda x, g: (g * slope(x) + (0.3 * g if wrong else 0),))
    report = check(function, x, diagnose=False)
    assert report.ok is not wrong
    who = "agree with neither the rule nor autodiff" if wrong else "autodiff of the primal does not"
    assert any("finite differences" in note and who in note for note in report.notes)


def test_a_wrong_rule_is_told_apart_from_autodiff_by_differences():
    report = check(rule(jnp.sin, lambda x, g: (g * jnp.sin(x),)), X, diagnose=False)
    assert "∂x: autodiff agrees with finite differences, the rule does not" in report.notes


def test_inputs_that_are_all_zero_stand_at_the_kink():
    assert check(lambda x: jax.nn.relu(x - x) + x, X, diagnose=False).ok


def test_extrapolated_differences():
    """sin at 0.3 to 1e-13, where plain central differences give 1e-10 at best; at a kink the change stays large."""
    steps = np.asarray(STEPS)
    slope, levels = extrapolated(((np.sin(0.3 + steps) - np.sin(0.3 - steps)) / (2 * steps))[:, None])
    assert abs(slope[0] - np.cos(0.3)) < 1e-13
    assert levels == sorted(levels, reverse=True)
    _, levels = extrapolated(((np.abs(0.001 + steps) - np.abs(0.001 - steps)) / (2 * steps))[:4, None])
    assert min(levels) > 1e-3


def test_a_rule_that_raises_is_told_with_its_line_and_its_whole_message():
    def backward(x, g):
        raise KeyError("no table for this size:\nsizes are 3 and 4")

    report = check(rule(jnp.sin, backward), X, diagnose=False)
    (problem,) = report.problems
    assert problem.startswith("the rule raises KeyError: no table for this size:\nsizes are 3 and 4 (")
    assert f"{__file__}:{backward.__code__.co_firstlineno + 1})" in problem
    assert "        sizes are 3 and 4" in str(report)


def test_a_mistake_beyond_a_block_is_wrong_and_no_loss_of_precision():
    def backward(x, g):
        return ((2 * x * g).at[128:].set(0),)

    report = check(rule(jnp.square, backward), "float32[100,2]", seeds=1, also=False, diagnose=False)
    assert report.verdict == "WRONG"
    assert report.wrong[0].index[0] == 128


def test_a_row_wholly_masked_is_tried():
    def softmax(s, mask):
        top = jnp.where(mask, s, -1e9)
        return jax.nn.softmax(top, -1) * mask.any(-1, keepdims=True)

    def backward(s, mask, g):
        e = jnp.exp(s - s.max(-1, keepdims=True)) * mask
        p = e / e.sum(-1, keepdims=True)  # 0/0 in such a row
        return p * (g - (p * g).sum(-1, keepdims=True)), None

    assert "a row of zeros" in check(rule(softmax, backward), "float32[4,5], bool[4,5]", diagnose=False).wrong[0].dtype


def test_a_static_string_is_no_list_of_inputs():
    product = jax.custom_jvp(jnp.einsum, nondiff_argnums=(0,))
    product.defjvp(lambda to, x, dx: (product(to, *x), product(to, dx[0], x[1]) + product(to, x[0], dx[1])))
    assert check(product, "ij,jk->ki", jnp.outer(X[:2], X[:3]), jnp.outer(X[:3], X), seeds=1, also=False).ok
