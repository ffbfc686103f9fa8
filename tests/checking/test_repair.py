"""A repair names the author's line, and its patched source is right."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxnet.checking import check
from jaxnet.factors import Plain
from jaxnet.layer import Layer, leaf
from jaxnet.losses import pointwise
from jaxnet.registry import maker

QUICK = {"seeds": 1, "also": False, "shapes": False, "inside": False, "precise": False}


def layer(derivative):
    @jax.custom_vjp
    def dense_tanh(W, x):
        return jnp.tanh(W @ x)

    def forward(W, x):
        a = jnp.tanh(W @ x)
        return a, (W, x, a)

    dense_tanh.defvjp(forward, derivative)
    return dense_tanh


def repaired(derivative):
    report = check(layer(derivative), "float32[4,4], float32[4]", **QUICK)
    assert not report.ok
    return report


def test_the_line_and_the_patch_of_a_wrong_derivative():
    def backward(saved, d_out):
        W, x, a = saved
        delta = d_out * (1 - a)
        return jnp.outer(delta, x), W.T @ delta

    report = repaired(backward)
    assert report.repair is not None
    assert report.repair.patch == "- delta = d_out * (1 - a)\n+ delta = d_out * (1 - a * a)"
    assert f"test_repair.py:{report.repair.line}" in str(report)


def test_a_factor_that_every_use_lacks_is_a_new_line():
    def backward(saved, d_out):
        W, x, _a = saved
        return jnp.outer(d_out, x), W.T @ d_out

    patch = repaired(backward).repair.patch
    assert patch.startswith("+ d_out = d_out * (1 - ")
    assert "-" not in [line[0] for line in patch.splitlines()]


def test_two_mistakes_in_two_gradients():
    def backward(saved, d_out):
        W, a = saved[0], saved[2]
        delta = d_out * (1 - a**2)
        return jnp.outer(delta, delta), W @ delta

    repair = repaired(backward).repair
    added = " ".join(line for line in repair.patch.splitlines() if line.startswith("+"))
    assert "jnp.outer(delta, saved[1])" in added
    assert "W.T @ delta" in added or "saved[0].T" in added  # Wᵀ where it is used, or where W gets its name
    assert "; and " in repair.cause


def test_a_mistake_inside_a_loop():
    def forward(W, x):
        def step(h, x):
            h = jnp.tanh(W @ h + x)
            return h, h

        return lax.scan(step, jnp.zeros(len(W), x.dtype), x)[1]

    rnn = jax.custom_vjp(forward)

    def saving(W, x):
        h = forward(W, x)
        return h, (W, h)

    def backward(saved, d_out):
        W, h = saved
        before = jnp.concatenate([jnp.zeros_like(h[:1]), h[:-1]])

        def step(dh, at):
            d, h, before = at
            delta = (dh + d) * (1 - h**2)
            return delta, (jnp.outer(delta, before), delta)

        _, (dW, dx) = lax.scan(step, jnp.zeros(len(W), W.dtype), (d_out, h, before), reverse=True)
        return dW.sum(0), dx

    rnn.defvjp(saving, backward)
    repair = check(rnn, "float32[3,3], float32[4,3]", **QUICK).repair
    assert repair is not None
    assert repair.patch == "- delta = (dh + d) * (1 - h**2)\n+ delta = (dh @ W + d) * (1 - h**2)"


def test_a_jvp_rule():
    @jax.custom_jvp
    def soft(x):
        return jnp.log1p(jnp.exp(x))

    @soft.defjvp
    def _(primals, tangents):
        (x,), (dx,) = primals, tangents
        return soft(x), dx * jnp.exp(x) / (1 - jnp.exp(x))

    repair = check(soft, "float32[5]", **QUICK).repair
    assert repair is not None
    assert repair.patch.splitlines()[1] == "+ return soft(x), dx * jnp.exp(x) / (1 + jnp.exp(x))"


def test_a_pair_of_functions():
    def forward(W, x):
        return W @ x, (W, x)

    def backward(saved, d_out):
        W, x = saved
        return jnp.outer(x, d_out), W.T @ d_out

    report = check((forward, backward), "float32[3,3], float32[3]", **QUICK)
    assert report.repair.patch.splitlines()[1] == "+ return jnp.outer(x, d_out).T, W.T @ d_out"


def test_a_layer_of_ones_own():
    def forward(w, x, key=None, train=False):
        a = jnp.tanh(w * x)
        return a, (x, a)

    def backward(w, saved, d_out, read):
        x, a = saved
        dz = d_out * (1 - a)
        return w * dz, dz * x

    scale = Layer("scale", lambda key, x: jax.random.normal(key, x.shape, x.dtype), forward, backward)
    repair = check(scale, "float32[5]", **QUICK).repair
    assert repair is not None
    assert repair.patch == "- dz = d_out * (1 - a)\n+ dz = d_out * (1 - a * a)"


def test_a_layer_under_a_maker():
    """The maker keeps the layer's functions: these do not belong to the primal."""

    @maker
    def scaled_tanh() -> Layer:
        def forward(params, x, key=None, train=False):
            t = jnp.tanh(x)
            return params["gamma"] * t, t

        def backward(params, t, d_out):
            dx = params["gamma"] * d_out
            return dx, {"gamma": Plain(d_out * t)}

        return leaf("scaled_tanh", lambda key, x: {"gamma": jnp.ones_like(x)}, forward, backward)

    repair = check(scaled_tanh(), "float32[5]", **QUICK).repair
    assert repair is not None
    assert "t**2" in repair.patch


def test_a_loss_of_ones_own():
    """Its value and its δ stand in one function of the library's; the patch is in the author's."""

    def value(x, y):
        return jnp.sum(jnp.log(jnp.cosh(x - y)), axis=-1)

    def delta(x, y):
        return jnp.tanh(x + y)

    repair = check(pointwise("log_cosh", value, delta), "float32[3,4], float32[3,4]", **QUICK).repair
    assert repair is not None
    assert repair.patch == "- return jnp.tanh(x + y)\n+ return jnp.tanh(x - y)"


def test_a_rule_inside_a_function():
    def backward(saved, d_out):
        W, x, a = saved
        delta = d_out * (1 + a**2)
        return jnp.outer(delta, x), W.T @ delta

    dense_tanh = layer(backward)
    report = check(lambda W, x: jnp.sum(dense_tanh(W, x) ** 2), "float32[3,2], float32[2]", **{**QUICK, "inside": True})
    assert report.repair is not None
    assert report.repair.patch == "- delta = d_out * (1 + a**2)\n+ delta = d_out * (1 - a**2)"


def test_what_no_edit_mends_is_written_anew():
    def backward(saved, d_out):
        W, x, a = saved
        delta = jnp.cos(7 * d_out + a) * jnp.sin(3 * a * d_out)
        return jnp.outer(delta, x) * jnp.cos(W), jnp.sin(W.T @ delta * 5)

    repair = check(layer(backward), "float32[4,3], float32[3]", **QUICK, budget=6.0).repair
    assert repair is not None
    assert "jnp.sin(W.T @ delta * 5)" in repair.cause
    assert "@ W" in repair.patch


def test_a_missing_projection_is_written_in_the_authors_names():
    @jax.custom_vjp
    def unit(x):
        return x / jnp.sqrt((x * x).sum())

    def saving(x):
        n = jnp.sqrt((x * x).sum())
        return x / n, (x, n)

    unit.defvjp(saving, lambda saved, g: (g / saved[1],))
    repair = check(unit, "float32[5]", **QUICK).repair
    assert repair is not None
    assert repair.cause.startswith("a term is missing in g / saved[1]")
    assert "saved[0]" in repair.patch


def test_no_repair_is_shown_where_none_is_right():
    @jax.custom_vjp
    def widths(x):
        return jnp.linalg.eigvalsh(x @ x.T)

    widths.defvjp(lambda x: (widths(x), x), lambda x, g: (jnp.cos(x) * g.sum(),))
    report = check(widths, "float32[3,3]", **QUICK, budget=3.0)
    assert not report.ok
    assert report.repair.patch == ""  # the line is known, and no patch of it
    assert report.line.startswith("test_repair.py:")
    assert not report.exact
    assert "patch" not in str(report)
    assert report.line in str(report)


def test_a_search_that_fails_costs_the_repair_and_says_so(monkeypatch):
    def backward(saved, d_out):
        W, x, a = saved
        return jnp.outer(d_out, x), W.T @ (d_out * (1 - a**2))

    def broken(*args, **options):
        raise RuntimeError("out of order")

    monkeypatch.setattr("jaxnet.checking.repair.repair", broken)
    report = repaired(backward)
    assert [leaf.path for leaf in report.wrong] == ["∂W"]
    assert "no repair was looked for: RuntimeError: out of order" in report.notes


@pytest.mark.parametrize("times", [0.0, 3.0])
def test_a_gradient_of_zeros_or_a_multiple_is_called_so(times):
    def backward(saved, d_out):
        W, x, a = saved
        delta = d_out * (1 - a**2)
        return jnp.outer(delta, x), times * (W.T @ delta)

    report = check(layer(backward), "float32[4,3], float32[3]", **QUICK, diagnose=False)
    assert report.cause == ("∂x is zero" if not times else "∂x is 3 times what it should be")


def rms_norm_back(g, x_hat, r):
    """Without the part of g along x̂."""
    dx = g * r
    return dx


@jax.custom_vjp
def rms_norm(x):
    return x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-3)


def rms_norm_forward(x):
    r = 1 / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-3)
    return x * r, (x * r, r)


rms_norm.defvjp(rms_norm_forward, lambda saved, g: (rms_norm_back(g, *saved),))


@pytest.mark.parametrize("given", ["shapes", "arrays"])
def test_large_arrays_are_searched_at_a_smaller_shape(given):
    x = jax.random.normal(jax.random.key(0), (9, 300))
    report = check(rms_norm, "float32[9,300]" if given == "shapes" else x, **QUICK)
    assert not report.ok
    assert report.repair is not None
    assert "x_hat * (dx * x_hat).mean(-1, keepdims=True)" in report.repair.patch


def attend(q, k, v):
    return jax.nn.softmax(q @ k.T / jnp.sqrt(q.shape[-1])) @ v


@jax.custom_vjp
def attention(q, k, v):
    return attend(q, k, v)


def attention_forward(q, k, v):
    p = jax.nn.softmax(q @ k.T / jnp.sqrt(q.shape[-1]))
    return p @ v, (q, k, v, p)


def attention_backward(saved, g):
    q, k, v, p = saved
    dp = g @ v.T
    ds = p * (dp - (dp * p).sum(-1, keepdims=True))
    return ds @ k, ds.T @ q, p.T @ g


attention.defvjp(attention_forward, attention_backward)


def test_a_number_is_written_as_the_primal_writes_it():
    report = check(attention, *["float32[12,6]"] * 3, **QUICK)  # where q and g have the same shape
    assert report.repair is not None
    assert report.repair.patch.endswith("/ jnp.sqrt(q.shape[-1])")


@jax.custom_vjp
def gated(z):
    a, b, c = jnp.split(z, 3)
    return a * b + c


def gated_forward(z):
    return gated(z), jnp.split(z, 3)[:2]


def gated_backward(saved, g):
    a, b = saved
    return (jnp.concatenate([g * b, g * a * b, g]),)


gated.defvjp(gated_forward, gated_backward)


def test_shapes_that_the_primal_refuses_are_passed_over():
    report = check(gated, "float32[24]", **QUICK)
    assert report.repair is not None
    assert report.repair.patch.endswith("+ return (jnp.concatenate([g * b, g * a, g]),)")


@jax.custom_vjp
def pooled(x):
    return x.mean(0)


pooled.defvjp(lambda x: (x.mean(0), x), lambda x, g: (jnp.broadcast_to(g, x.shape),))


def test_a_size_of_given_arrays_is_written_by_its_name():
    report = check(pooled, jax.random.normal(jax.random.key(0), (6, 4)), **QUICK)
    assert report.repair is not None
    assert "/ len(x)" in report.repair.patch


@jax.custom_vjp
def squares(x):
    return (x * x).sum(1)


squares.defvjp(lambda x: (squares(x), x), lambda x, g: (x * g.reshape(6, 1),))


def test_a_rule_for_one_shape_alone_is_mended_there():
    report = check(squares, jax.random.normal(jax.random.key(0), (6, 4)), **QUICK)
    assert report.repair is not None
    assert "2" in report.repair.patch


@jax.custom_vjp
def scaled_sine(scale, x):
    return scale * jnp.sin(x)


def scaled_sine_backward(saved, g):
    scale, x = saved
    return g * jnp.sin(x), 2 * g * scale * jnp.cos(x)


scaled_sine.defvjp(lambda scale, x: (scale_of_sine(scale, x), (scale, x)), scaled_sine_backward)


def scale_of_sine(scale, x):
    return scale * jnp.sin(x)


def test_a_factor_too_much_is_taken_away():
    report = check(scaled_sine, *["float32[3]"] * 2, **QUICK)
    assert report.repair is not None
    assert report.repair.patch.endswith("+ return g * jnp.sin(x), g * scale * jnp.cos(x)")


@jax.custom_vjp
def softmax(x):
    return jax.nn.softmax(x)


def softmax_forward(x):
    p = jax.nn.softmax(x)
    return p, p


softmax.defvjp(softmax_forward, lambda p, d: (d * (1 - p),))


def test_a_common_factor_stands_in_front():
    report = check(softmax, "float32[3,5]", **QUICK)
    assert report.repair is not None
    assert report.repair.after == "p * (d - (p * d).sum(-1, keepdims=True))"


def test_a_variable_that_is_made_of_itself():
    def primal(W, x):
        x = x - x.mean()
        return jnp.tanh(W @ x)

    @jax.custom_vjp
    def normal_tanh(W, x):
        return primal(W, x)

    def backward(saved, d_out):
        out, pull = jax.vjp(primal, *saved)
        dW, dx = pull(d_out * out)
        return dW, dx

    normal_tanh.defvjp(lambda W, x: (primal(W, x), (W, x)), backward)
    report = check(normal_tanh, "float32[4,4], float32[4]", **QUICK)
    assert not [note for note in report.notes if "no repair was looked for" in note]
    assert report.repair is not None


def delayed(x):
    return jnp.concatenate([jnp.zeros(1, x.dtype), x[:-1]])


def test_entries_one_step_off_are_shifted():
    report = check((lambda x: (delayed(x), ()), lambda saved, g: (g,)), "float32[6]", **QUICK)
    assert report.repair.patch.endswith('lambda saved, g: (jnp.pad(g, (0, 1))[1:],)), "float32[6]", **QUICK)')
    assert report.cause == "the entries of g stand one step off"
