"""Other people's rules are found, asked at the arguments of a call, and counted in a table."""

import jax
import jax.numpy as jnp
import pytest

from experiments.in_the_wild import Found, find, markdown, place, read, recorded, row
from jaxnet.checking import CannotCheckError


def told(found: Found) -> tuple[str, str]:
    """The verdict on a rule, and where its inputs came from."""
    line = row("jax", found)
    return line["verdict"], line["inputs"]


def cube(slope):
    """The cube, with this derivative."""
    rule = jax.custom_jvp(lambda x: x**3)
    rule.defjvp(lambda p, t: (rule(*p), slope(*p) * t[0]))
    return rule


def test_two_rules_of_an_installed_package():
    found = {each.name: each for each in find("optax")[0]}
    names = ("optax._src.utils._scale_gradient", "optax.losses._classification.weighted_logsoftmax")
    assert [told(found[name])[0] for name in names] == ["as declared", "right"]
    assert all(found[name].file.startswith("optax/") for name in names)


@pytest.mark.parametrize(("slope", "verdict"), [(lambda x: 3 * x**2, "right"), (lambda x: 2 * x**2, "WRONG")])
def test_a_rule_is_asked_at_the_arguments_of_a_call(slope, verdict):
    rule, x = cube(slope), jnp.array([0.4, 1.1, -0.7])
    with recorded() as calls:
        jax.vmap(rule)(x)
        jax.grad(lambda x: rule(x).sum())(x)
    (call,) = calls.values()
    assert call.rule is rule
    assert jnp.array_equal(call.args[0], x)
    assert told(call) == (verdict, "call")


def test_what_a_call_does_not_differentiate_is_held():
    rule = jax.custom_vjp(lambda x, y: x * y)
    rule.defvjp(lambda x, y: (x * y, y), lambda y, d_out: (d_out * y, 7 * y))
    with recorded() as calls:
        jax.grad(rule)(2.0, 3.0)
    assert [told(call) for call in calls.values()] == [("right", "call")]


def test_inputs_are_guessed_and_where_none_fit_a_rule_is_not_asked():
    root = jax.custom_jvp(lambda x, axis: jnp.sqrt(x).sum(axis), nondiff_argnums=(1,))
    root.defjvp(lambda axis, p, t: (root(p[0], axis), (t[0] / 2 / jnp.sqrt(p[0])).sum(axis)))
    shout = jax.custom_jvp(lambda text: text.upper())
    assert told(Found("mine.root", root, place(root))) == ("right", "guess")
    assert told(Found("mine.shout", shout, place(shout)))[0] == "not asked"


@pytest.mark.parametrize(
    ("error", "verdict"), [(RuntimeError("no"), "CRASH"), (CannotCheckError("no"), "could not be checked")]
)
def test_a_check_that_fails_is_a_crash(monkeypatch, error, verdict):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr("experiments.in_the_wild.check", fails)
    assert told(Found("mine.cube", cube(lambda x: 3 * x**2), "mine.py:1", (jnp.ones(3),)))[0] == verdict


def test_the_table_counts_the_last_verdict_on_each_rule(tmp_path):
    file = tmp_path / "rows.jsonl"
    rule = '{"rule": "a.f", "file": "a.py:1", "version": "a 1", "verdict": "%s"}\n'
    file.write_text(rule % "CRASH" + rule % "right" + rule.replace("a.f", "a.g") % "WRONG")
    assert markdown(read([file])).splitlines() == [
        "| package | found | right | WRONG |",
        "| --- | --- | --- | --- |",
        "| a 1 | 2 | 1 | 1 |",
        "| all | 2 | 1 | 1 |",
    ]


def test_a_package_that_does_not_import_is_told_and_left_out(tmp_path, monkeypatch):
    (tmp_path / "of_another_day").mkdir()
    (tmp_path / "of_another_day" / "__init__.py").write_text("raise ImportError('an older jax is wanted')\n")
    monkeypatch.syspath_prepend(tmp_path)
    said = "of_another_day does not import: ImportError: an older jax is wanted"
    assert find("of_another_day") == ([], [said])
