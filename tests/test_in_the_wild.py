"""Other people's rules are found, checked at their points, and told in a table."""

import jax
import jax.numpy as jnp

from experiments.in_the_wild import HEADINGS, Found, find, markdown, rows
from experiments.in_the_wild_points import POINTS, Point


def test_two_rules_of_an_installed_package():
    found, _ = find(("optax",))
    chosen = {each.name: each for each in found if each.name in POINTS}
    names = ("optax._src.utils._scale_gradient", "optax.losses._classification.weighted_logsoftmax")
    table = rows([chosen[name] for name in names])
    assert [row.verdict for row in table] == ["as declared", "right"]
    assert all(row.file.startswith("optax/") for row in table)


def test_a_wrong_rule_is_told_and_one_without_inputs_is_listed():
    @jax.custom_jvp
    def cube(x):
        return x**3

    cube.defjvp(lambda p, t: (cube(*p), 2 * p[0] ** 2 * t[0]))
    shout = jax.custom_jvp(lambda text: text.upper())
    wrong, unknown = Found("mine.cube", cube, "mine.py:1"), Found("mine.shout", shout, "mine.py:9")
    points = {"mine.cube": Point(lambda: (jnp.array([0.4, 1.1, -0.7]),))}
    table = rows([unknown, wrong], points)
    assert [(row.name, row.verdict) for row in table] == [("mine.cube", "WRONG"), ("mine.shout", "not asked")]
    assert "∂x" in table[0].cause
    lines = markdown(table).splitlines()
    assert lines[0] == f"| {' | '.join(HEADINGS)} |"
    assert len(lines) == 4


def test_inputs_are_guessed():
    root = jax.custom_jvp(lambda x, axis: jnp.sqrt(x).sum(axis), nondiff_argnums=(1,))
    root.defjvp(lambda axis, p, t: (root(p[0], axis), (t[0] / 2 / jnp.sqrt(p[0])).sum(axis)))
    (row,) = rows([Found("mine.root", root, "mine.py:3")], {})
    assert row.verdict == "right"
