"""The values of two programs at several points, and the imports that a patch needs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxnet.checking import patches
from jaxnet.checking.alignment import aligned
from jaxnet.checking.author import Change, changed_text, imports_of, source_of
from jaxnet.checking.execution import Execution
from jaxnet.checking.rules import subject_of
from jaxnet.program import graph_of
from jaxnet.program.numpy_evaluation import padded


def test_draws_outside_of_the_domain_are_moved_near_the_first():
    subject = subject_of((lambda x: (jnp.sqrt(x[1:] - x[:-1]), x), lambda x, g: (0 * x,)), (jnp.arange(4.0),))
    shuffled = jnp.asarray([2.0, 1.0, 3.0, 0.0])
    with jax.numpy_dtype_promotion("standard"), np.errstate(invalid="ignore"):
        found = aligned(subject, [((x,), jnp.ones(3)) for x in (jnp.arange(4.0), shuffled, shuffled)], [])
    assert all(jnp.all(jnp.isfinite(out)) for outs in found.right for out in outs)
    assert not jnp.allclose(found.points[0].args[0], found.points[1].args[0])


def test_values_equal_at_one_point_alone_are_two_values():
    graph = graph_of(jax.make_jaxpr(lambda x: (x + 1, x * 2))(1.0))
    assert len(Execution.of(graph, [[jnp.float32(1)]]).floats) == 2
    assert len(Execution.of(graph, [[jnp.float32(1)], [jnp.float32(3)]]).floats) == 3


def test_a_patch_imports_what_it_needs():
    source = source_of(patches.__file__)
    change = Change(source, len(source.text), len(source.text), "jax.lax.cumsum(x)")
    [added] = imports_of([change])
    assert added.text == "import jax\n"
    assert changed_text(source, [added]).decode().index("import jax\n") > source.text.decode().index("__future__")
    assert not imports_of([change._replace(source=source_of(__file__))])


@pytest.mark.parametrize("config", [((1, 2, 0), (0, 0, 1)), ((-1, 3, 2), (2, -2, 1))])
def test_pad_in_numpy(config):
    a, fill = jnp.arange(12.0).reshape(3, 4), jnp.float32(7)
    assert jnp.array_equal(padded({"padding_config": config}, np.asarray(a), 7.0), lax.pad(a, fill, config))
