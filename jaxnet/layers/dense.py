"""The dense layer.

    z = W a + b            W: (out, in)   a: (in,)   b, z: (out,)
    ∂C/∂a = Wᵀ δ           δ = ∂C/∂z: (out,)
    ∇_W C = δ aᵀ           (out, in)
    ∇_b C = δ              (out,)

Source: Nielsen, Neural Networks and Deep Learning, ch. 2, (BP2) to (BP4).
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxnet.factors import Outer, Plain
from jaxnet.layer import Layer, ShapeError, fits_input, leaf
from jaxnet.layers.initializers import Initializer, initializer, pinned
from jaxnet.lowering import form, op, products
from jaxnet.lowering.products import product
from jaxnet.registry import Count, maker


def times_plain(W: Float[Array, "out in"], a: Float[Array, "*positions in"]) -> Float[Array, "*positions out"]:
    """W a at each position, as the row a Wᵀ: multiplied in W's dtype, summed in float32 or better, in a's dtype.

    So bfloat16 weights make bfloat16 products of float32 activations and errors: where the hardware has units for
    them, these are fastest with a float32 result.
    """
    return product(a, W.T).astype(a.dtype)


times = op(times_plain, cpu=form(products.times, when=lambda W, a: products.can_be_laid_out(W), manual=True))


def transpose_times(W: Float[Array, "out in"], delta: Float[Array, "*positions out"]) -> Float[Array, "*positions in"]:
    """Wᵀ δ, in the same dtypes, as the row δᵀ W.

    Of rows the compiler makes rows: with W on the left it lays each result of a sequence out anew for all that follows,
    twice the time of a transformer's step. And Wᵀ on the left it cannot run in bfloat16 on a CPU.
    """
    return product(delta, W).astype(delta.dtype)


@maker(examples={"dense(4)": "float32[6]", "dense(6, bias=False)": "float32[6]"}, axes={"W": "out in", "b": "out"})
def dense(
    units: Count,
    *,
    bias: bool = True,
    init: str | Initializer | Callable = "lecun_normal",
    weights: Sequence[Sequence[float]] | None = None,
    biases: Sequence[float] | None = None,
) -> Layer:
    """z = W a + b, for one vector a; at each position of a sequence by `per_position`.

    `units`: the length of z. `bias`: whether there is a b. `init`: a name of `INITIALIZERS`, an `Initializer`, or a
    function `(key, shape, dtype)` for W. `weights`, `biases`: the numbers with which W and b begin, instead of it.
    Parameters: `{"W": (units, in), "b": (units,)}`.
    Raises `ShapeError` for an input that is no vector, or not of the length that W takes; `ValueError` for rows of
    weights of different lengths, or biases without a b.

    >>> net, x = dense(4), jnp.ones(6)
    >>> params = net.init(jax.random.key(0), x)
    >>> out, back = vjp(net)(params, x)
    >>> grads, dx = back(jnp.ones_like(out))
    >>> out.shape, dx.shape, jax.tree.map(jnp.shape, grads)
    ((4,), (6,), {'W': (4, 6), 'b': (4,)})
    """
    name = f"dense {units}"
    begin = initializer(init)
    if biases is not None and not bias:
        raise ValueError("biases are given where bias = false leaves them out: drop one of the two")
    if weights is not None and len({len(row) for row in weights}) > 1:
        raise ValueError(f"weights must be rows of one length, got lengths {[len(row) for row in weights]}")
    W_begins = begin.W if weights is None else pinned(weights)
    b_begins = begin.b if biases is None else pinned(biases)

    def accepts(a, params):
        if a.ndim != 1:
            raise ShapeError(
                f"{name} takes a vector, got shape {a.shape}: put flatten() before it, "
                f"or per_position({name.replace(' ', '(')})) for a sequence of vectors"
            )
        fits_input(name, params, "W", (units, len(a)), a)

    def new(key, a):
        dtype = a.dtype if jnp.issubdtype(a.dtype, jnp.floating) else jnp.float32
        W_key, b_key = jnp.unstack(jax.random.split(key))
        params = {"W": W_begins(W_key, (units, a.shape[0]), dtype)}
        return params | {"b": b_begins(b_key, (units,), dtype)} if bias else params

    def forward(params, a, key=None, train=False):
        z = times(params["W"], a)
        return z + params["b"] if bias else z, a.astype(params["W"].dtype)

    def backward(params, a, delta):  # z = W a + b
        factors = {"W": Outer(delta, a)}
        return transpose_times(params["W"], delta), factors | {"b": Plain(delta)} if bias else factors

    return leaf(name, new, forward, backward, accepts)
