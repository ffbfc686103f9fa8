"""Two recurrences over one sequence, one from each end: each step sees its past and its future.

out_t = (h_t, h′_t)    h from the first step on, h′ from the last step back
"""

import jax.numpy as jnp

from jaxnet.combinators import parallel
from jaxnet.layer import Layer, Static
from jaxnet.layers.recurrent.over_time import Piece
from jaxnet.registry import maker


@maker(examples={"bidirectional(gru(3), rnn(2, reverse=True))": "float32[5,6]"})
def bidirectional(*branches: Layer) -> Layer:
    """Two recurrences over one sequence, the second with `reverse`: (time, in) → (time, units of both).

    A `Piece` it takes too, its carry the pair of theirs, and gives (outputs, that pair). Parameters: likewise a pair.
    Raises `ShapeError` where one of the two does not take the sequence.
    Source: Schuster and Paliwal, Bidirectional Recurrent Neural Networks, 1997.

    >>> net, x = bidirectional(gru(3), rnn(2, reverse=True)), jnp.ones((5, 6))
    >>> params = net.init(jax.random.key(0), x)
    >>> out, back = vjp(net)(params, x)
    >>> grads, dx = back(jnp.ones_like(out))
    >>> out.shape, dx.shape, jax.tree.map(jnp.shape, grads)
    ((5, 5), (5, 6), ({'U': (9, 3), 'W': (9, 6), 'b': (9,), 'c': (3,)}, {'U': (2, 2), 'W': (2, 6), 'b': (2,)}))
    """
    if len(branches) != 2:
        raise ValueError(f"bidirectional takes two recurrences, the second with reverse=True, got {len(branches)}")
    whole = parallel(*branches, join="concatenate")

    def forward(params, x, key=None, train=False):
        if not isinstance(x, Piece):
            return whole.forward(params, x, key, train)
        carries = (None, None) if x.carry is None else x.carry
        pieces = [x._replace(carry=carry) for carry in carries]
        done = [layer.forward(p, piece, key, train) for layer, p, piece in zip(branches, params, pieces, strict=True)]
        outs, carries = zip(*(out for out, _ in done), strict=True)
        return (jnp.concatenate(outs, axis=-1), carries), (tuple(saved for _, saved in done), Static(outs[0].shape[-1]))

    def backward(params, saved, d_out, read):
        if not isinstance(d_out, tuple):
            return whole.backward(params, saved, d_out, read)
        (saved, width), (d_outs, d_carries) = saved, d_out
        pieces = jnp.split(d_outs, [width.value], axis=-1)
        (first, first_reading), (second, second_reading) = (
            layer.backward(p, s, (d, d_carry), read)
            for layer, p, s, d, d_carry in zip(branches, params, saved, pieces, d_carries, strict=True)
        )
        carries = None if first.carry is None else (first.carry, second.carry)
        return Piece(first.xs + second.xs, carries), (first_reading, second_reading)

    return Layer("bidirectional", whole.init, forward, backward, branches, bidirectional)
