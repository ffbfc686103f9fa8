"""A network as a pipeline takes it: layers, a block that is repeated, layers."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from jaxnet.combinators import Shared
from jaxnet.layer import Layer, Tree, split_key


class PipelineError(ValueError):
    """A network, mesh or batch that cannot be a pipeline."""


class Cut(NamedTuple):
    """A network as a pipeline takes it: layers, a block repeated, layers.

    `alone`: the network is the `repeat` itself. `shared`: the parameter that layers of a `tied` network share.
    """

    before: tuple[Layer, ...]
    block: Layer
    after: tuple[Layer, ...]
    alone: bool
    shared: Shared | None

    def apart(self, params: Tree) -> tuple[tuple, Tree, tuple]:
        """The parameters of the layers before, of the block, and of the layers after."""
        if self.alone:
            return (), params, ()
        return self.three(params if self.shared is None else self.shared.borrowed(params))

    def three(self, t: Sequence) -> tuple[tuple, Any, tuple]:
        """An entry for each layer, cut at the block."""
        at = len(self.before)
        return tuple(t[:at]), t[at], tuple(t[at + 1 :])

    def together(self, before: tuple, block: Tree, after: tuple) -> Tree:
        """The gradients of the network from those three."""
        if self.alone:
            return block
        grads = (*before, block, *after)
        return grads if self.shared is None else self.shared.added_up(grads)

    def keys(self, key: jax.Array | None) -> tuple[Sequence, jax.Array | None, Sequence]:
        """The keys of those three, as `serial` gives them to its layers."""
        if self.alone:
            return (), key, ()
        return self.three(split_key(key, len(self.before) + 1 + len(self.after)))


def cut(net: Layer) -> Cut:
    """The network's parts.

    Raises `PipelineError` for one that is not `serial(…, repeat(block, times), …)` or `tied(…)` with one `repeat`.
    """
    made = None if net.made is None else net.made.root
    alone = made is None or made.maker not in ("serial", "tied")
    layers = (net,) if alone else net.parts
    at = [i for i, layer in enumerate(layers) if layer.made is not None and layer.made.root.maker == "repeat"]
    shared = Shared.of(made.options["share"], made.options["where"]) if made and made.maker == "tied" else None
    if len(at) != 1 or (shared and at[0] in (shared.owner, *shared.borrowers)):
        raise PipelineError(
            "a pipeline takes serial(…, repeat(block, times), …) or tied(…) with one repeat, whose blocks the stages "
            f"share out, got {net!r}"
        )
    [block] = layers[at[0]].parts
    return Cut(layers[: at[0]], block, layers[at[0] + 1 :], alone, shared)
