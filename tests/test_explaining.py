"""What is explained: equations, shapes, values and the answers to what people ask, against the network and autodiff."""

import dataclasses
import json
import re
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxnet as j
from jaxnet.checking.targets import shipped
from jaxnet.explaining import ExplainError, derive, notation, observe, to_dict
from jaxnet.explaining.derive import chain_of
from jaxnet.explaining.expressions import (
    BigSum,
    Call,
    Derivative,
    Entry,
    Fraction,
    Listed,
    Minus,
    Name,
    Number,
    Power,
    Product,
    SquaredNorm,
    Sum,
    Transposed,
    formula,
    written,
)  # fmt: skip
from jaxnet.explaining.formulas.formula_values import evaluate
from jaxnet.explaining.formulas.parse import parse
from jaxnet.explaining.formulas.quantities import near, scope_of
from jaxnet.explaining.guided_walk import walk_blocks, walk_steps
from jaxnet.explaining.layouts import cheapest_order, multiplications
from jaxnet.explaining.subjects import at, of_target
from jaxnet.explaining.terminal import overview, question_lines, steps
from jaxnet.explaining.ulp import ulps
from jaxnet.training.explain_target import config_subject
from tests.problems import LOSSES

CONFIG = Path(__file__).parent.parent / "configs" / "two_three_two.toml"


@pytest.fixture(scope="module")
def observed():
    subject = config_subject(CONFIG)
    return observe(subject.net, subject.loss, subject.params, subject.xs[0], subject.ys[0])


@pytest.fixture(scope="module")
def derivation(observed):
    return derive(observed)


def line(derivation, key):
    return next(each for each in (*derivation.forward, *derivation.backward) if each.key == key)


# Computed by hand, to the last digit that is shown.
BY_HAND = {
    "z2": [0.4, -0.3, 1.3],
    "a2": [0.4, 0, 1.3],
    "z3": [-1.13, 0.05],
    "a3": [0.2442, 0.5125],
    "delta3": [-0.1395, 0.1280],
    "dW3": [[-0.0558, 0, -0.1813], [0.0512, 0, 0.1665]],
    "da2": [-0.0407, -0.1768, 0.1361],
    "delta2": [-0.0407, 0, 0.1361],
    "dW2": [[-0.0407, -0.0814], [0, 0], [0.1361, 0.2721]],
}


@pytest.mark.parametrize("key", BY_HAND)
def test_two_three_two_is_as_by_hand(derivation, key):
    found = line(derivation, key)
    np.testing.assert_allclose(found.value, BY_HAND[key], atol=5.1e-5)
    assert found.shape == np.shape(BY_HAND[key])


SAID = """\
2 → 3 relu → 2 sigmoid   C = ½‖a³−y‖²   x = (1, 2)  y = (1, 0)   Nielsen's numbering: input is layer 1
z² = W²x + b²            3×2·2 → 3   ( .40 −.30 1.30)
unit 2 is off
C = .4170
δ³ = (a³−y) ⊙ σ′(z³)     2           (−.1395  .1280)
∇W³ = δ³a²ᵀ              2·3 → 2×3   (−.0558 0 −.1813 │ .0512 0 .1665)
∂C/∂a² = W³ᵀδ³           3×2·2 → 3   (−.0407 −.1768  .1361)
a²₁ + .001 → z³ + (.0002 −.0001), W³'s column 1 → C − .0000407
a²₁ reaches C by two:  δ³₁W³₁₁ + δ³₂W³₂₁ = −.0279 − .0128 = −.0407
W³₁₁ by one, no sum:   δ³₁a²₁ = −.0558
−.1395 × ( .2  .9 −.7) = (−.0279 −.1255  .0976)
.1280 × (−.1 −.4  .3) = (−.0128 −.0512  .0384)  + ↓
(−.0407 −.1768  .1361)
2×3 has no inverse; the pseudo-inverse gives (−3.57 −1.20 −2.37), 88° away.
Step .1 downhill: W³ᵀδ³ lowers C by .0228, pinv by .0008
δ: cost/z   W: z/a   Wᵀδ: cost/a
as a matrix relu′ = diag(1,0,1)
∇W² = δ²xᵀ               3·2 → 3×2   (−.0407 −.0814 │ 0 0 │ .1361 .2721)
row:    δ³ᵀ · W³ · diag   1×2·2×3·3×3 → 1×3
column: diag · W³ᵀ · δ³   3×3·3×2·2×1 → 3×1   the same, transposed: (AB)ᵀ = BᵀAᵀ
∂C/∂x from the loss 12 products, from the input 16 (⊙ not counted)
every line equals jax.grad within 1 ulp; ulp: unit in the last place; │ begins a row"""


def test_the_overview_says_all_and_fits_a_screen(derivation):
    text = overview(derivation, width=110)
    for said in SAID.splitlines():
        assert said in text
    assert len(text.splitlines()) <= 36
    assert max(map(len, text.splitlines())) <= 110


def test_a_class_is_named_where_its_target_is_shown_in_part():
    net, x = j.serial(j.dense(10)), np.ones(3, "f")
    params = j.initialize(net, j.softmax_cross_entropy, jax.random.key(0), x)
    found = derive(observe(net, j.softmax_cross_entropy, params, x, np.asarray(2)))
    assert "y = (0 0 1.00 0 … 0 0), class 2" in overview(found)


def test_a_narrow_terminal_loses_nothing(derivation):
    lines = overview(derivation, width=80).splitlines()
    assert max(map(len, lines)) <= 80
    squeezed = "".join("".join(lines).split())
    for said in SAID.splitlines():
        if "Nielsen" not in said:
            assert "".join(said.split()) in squeezed


@pytest.mark.parametrize("weights", ["out-in", "in-out"])
@pytest.mark.parametrize("name", ["nielsen", "ng", "cs229"])
def test_every_equation_gives_its_value(observed, name, weights):
    symbols = notation(name, weights=weights)
    derivation = derive(observed, symbols)
    scope = scope_of(chain_of(observed, symbols), derivation)
    for each in (*derivation.forward, *derivation.backward):
        text = formula(each.right)
        assert near(evaluate(parse(text), scope), scope.values[each.key]), text


@pytest.mark.parametrize("weights", ["out-in", "in-out"])
@pytest.mark.parametrize("widths", [(1, 3, 1), (3, 1, 2), (1, 1, 1)])
def test_layers_of_one_unit_have_their_equations(widths, weights):
    """A product of one number and a matrix of one row is laid out as any other."""
    given, hidden, out = widths
    net, x, y = j.serial(j.dense(hidden), j.sigmoid, j.dense(out)), np.ones(given, "f"), np.ones(out, "f")
    observed = observe(net, j.quadratic, j.initialize(net, j.quadratic, jax.random.key(0), x), x, y)
    found = derive(observed, notation(weights=weights))
    lines = {line.key: written(line.right) for line in (*found.forward, *found.backward)}
    rows = weights == "in-out"
    assert (lines["z2"], lines["z3"]) == (("xW² + b²", "a²W³ + b³") if rows else ("W²x + b²", "W³a² + b³"))
    assert (lines["dx"], lines["da2"]) == (("δ²W²ᵀ", "δ³W³ᵀ") if rows else ("W²ᵀδ²", "W³ᵀδ³"))


def test_values_are_those_of_the_trace_and_of_the_gradient(observed, derivation):
    traced = j.trace(observed.net, observed.loss)(observed.params, observed.x, observed.y)
    for step, layer in zip(traced.steps, derivation.layers, strict=True):
        np.testing.assert_array_equal(step.out, layer.out)
        np.testing.assert_array_equal(step.delta, layer.delta)
    assert derivation.header.value == pytest.approx(float(traced.cost), abs=1e-7)


def test_a_wrong_backward_is_seen_by_the_check(observed):
    dense = observed.net.parts[2]
    wrong = dense._replace(backward=lambda *of: (-dense.backward(*of)[0], dense.backward(*of)[1]))
    net = j.serial(*observed.net.parts[:2], wrong, observed.net.parts[3])
    found = derive(observe(net, observed.loss, observed.params, observed.x, observed.y))
    assert not found.checked.ok
    assert "NOT EQUAL to jax.grad" in overview(found)
    assert [key for key, far in found.checked.by_key.items() if far > 256] == ["da2", "delta2", "dW2", "db2", "dx"]


# ------------------------------------------------------------------------------------------- what people ask

ASKED = {
    "inverse": "No: W³ is 2×3, so it has no inverse; its pseudo-inverse sends back (−3.57 −1.20 −2.37), 88° from W³ᵀδ³",
    "operator": "No: W³ᵀδ³ is numbers times numbers. The derivative has been taken: z³ is linear in a²",
    "dimensions": "No: the pseudo-inverse has the shape 3×2 as well, and what it sends back is 88° away",
    "columns": "Nothing is exchanged: δ³₁ = −.1395 returns along the whole row 1 of W³, (.2 .9 −.7), that made z³₁",
    "instead": "backward the first moves down a column, Σⱼ W³ⱼᵢ δ³ⱼ, since a²ᵢ reaches every z³ⱼ",
    "no-sum": "W³₁₁ enters z³₁ alone, so its gradient is δ³₁a²₁ = −.0558. A unit has 2:",
    "reverse": "It is one act: (AB)ᵀ = BᵀAᵀ. As a row the chain rule reads δ³ᵀW³",
    "input": "Yes: ∇W³ = δ³a²ᵀ is 2×1·1×3 → 2×3, the shape of W³",
    "shapes": "The first product: δ³ 2×1 ends in 1, W³ 2×3 begins with 2. W³ᵀ goes before it, 3×2·2×1, and relu′ is",
    "ones": "so the Jacobian is diag(1,0,1), 3×3, and multiplying by it is ⊙ with (1,0,1)ᵀ",
    "blame": "∇W³ = δ³a²ᵀ grows with a². The unit itself does not: W³ᵀδ³ holds no a²",
    "subscripts": "Here the first subscript is the unit that a weight leads to",
    "forward-transposed": "z = Wᵀa and the error goes back as Wδ",
    "layouts": "Denominator layout: the error is a column",
    "link": "δ³ is taken at this example's forward values; a² enters ∇W³ = δ³a²ᵀ, not W³ᵀδ³",
}


@pytest.mark.parametrize("key", ASKED)
def test_what_people_ask_is_answered(derivation, key):
    answer = next(each for each in derivation.answers if each.key == key)
    assert ASKED[key] in answer.answer
    printed = " ".join(" ".join(question_lines(derivation, 100)).split())
    assert answer.question in printed
    assert " ".join(ASKED[key].split()) in printed


@pytest.mark.parametrize("weights", ["out-in", "in-out"])
@pytest.mark.parametrize("name", ["nielsen", "ng", "cs229"])
def test_the_walk_holds_in_its_own_numbers(observed, name, weights):
    """Every sum adds up, and the network that is run again moves as the chain rule says."""
    symbols = notation(name, weights=weights)
    text = "\n".join(walk_blocks(walk_steps(observed, derive(observed, symbols), symbols), 1000))
    for title in ("One weight, one path", "One unit, several paths", "All units: the transpose", "relu′ is a gate",
                  "A batch", "The other layout", "Any layer"):  # fmt: skip
        assert f" of 10   {title}" in text
    plain = text.replace("−", "-").replace("× ", "*").replace("+ -", "-")
    sums = re.findall(r"unit \d: ([-.\d* +]+) = ([-.\d]+)", plain)
    assert len(sums) == 3
    for left, right in sums:
        assert sum(float(a) * float(b) for a, b in re.findall(r"(-?[\d.]+) \*(-?[\d.]+)", left)) == pytest.approx(
            float(right), abs=1e-4
        ), left
    again = re.findall(
        r"run again with \S+ raised by .001: [CJ] (\S \S+)\. The \S+(?: rule)? says [CJ] (\S \S+)\.", plain
    )
    assert len(again) == 2
    assert all(measured == said for measured, said in again)


def test_in_a_notebook_a_derivation_and_a_trace_are_tables(observed, derivation):
    shown = derivation._repr_html_()
    assert "<td>δ³ = (a³−y) ⊙ σ′(z³)</td><td>2</td><td>[-0.1395  0.128 ]</td>" in shown
    traced = j.trace(observed.net, observed.loss)(observed.params, observed.x, observed.y)._repr_html_()
    assert "<caption>C = 0.417</caption>" in traced
    assert "<td>relu</td><td>[0.4 0.  1.3]</td><td>[-0.0407 -0.1768  0.1361]</td>" in traced


def test_the_walk_measures_the_network(observed):
    """A wrong error is seen: what the network does is not what the chain rule says."""
    items = (*observed.items[:2], dataclasses.replace(observed.items[2], d_out=2 * observed.items[2].d_out))
    twisted = dataclasses.replace(observed, items=(*items, observed.items[3]))
    text = " ".join("\n".join(walk_blocks(walk_steps(twisted, derive(twisted), notation()))).split())
    assert "C − .0000558. The chain rule says C − .000112." in text


def test_the_walk_needs_a_dense_layer():
    net = j.serial(j.relu, j.sigmoid)
    seen = observe(net, j.quadratic, ((), ()), np.ones(2, np.float32), np.zeros(2, np.float32))
    with pytest.raises(ExplainError, match="--walk follows the error through a dense layer"):
        walk_steps(seen, derive(seen), notation())


def test_the_shapes_that_are_asked_about_are_the_networks(derivation):
    questions = {each.key: each.question for each in derivation.answers}
    assert questions["shapes"] == "What is wrong with 2×1·2×3·3×1·1×2?"
    assert questions["ones"] == "Why (1,1,1)ᵀ?"


def test_why_transpose_is_computed(derivation):
    why = derivation.why[0]
    np.testing.assert_allclose(why.nudge.dz / why.nudge.by, why.nudge.column, atol=1e-9)
    assert why.nudge.cost_moves == pytest.approx(why.nudge.predicted, rel=1e-3)
    assert why.paths.terms.sum() == pytest.approx(why.paths.total)
    np.testing.assert_allclose(why.rows.scaled.sum(0), why.back)
    assert why.adjoint.left == pytest.approx(why.adjoint.right)
    assert why.orthogonal.difference < 1e-12
    assert why.sent_back.inverse == "none"


def test_where_w_is_orthogonal_inverse_and_transpose_are_one():
    rotation = np.array([[0.6, -0.8], [0.8, 0.6]], np.float32)
    net = j.serial(j.dense(2), j.dense(2))
    params = ({"W": 2 * np.eye(2, dtype=np.float32), "b": np.zeros(2, np.float32)},
              {"W": rotation, "b": np.zeros(2, np.float32)})  # fmt: skip
    x, y = np.array([1, 2], np.float32), np.array([1, 0], np.float32)
    why = derive(observe(net, j.quadratic, params, x, y)).why
    assert [each.sent_back.inverse for each in why] == ["inverse", "inverse"]
    assert why[0].sent_back.angle == pytest.approx(0, abs=1e-3)
    np.testing.assert_allclose(why[0].sent_back.value, why[0].back, atol=1e-6)
    np.testing.assert_allclose(why[1].sent_back.value, why[1].back / 4)  # the direction, but not the length


# ---------------------------------------------------------------------------------------- layout and order


def test_layouts_are_products_of_jacobians(derivation):
    for layout in derivation.layouts:
        for factors, shape in ((layout.row, layout.row_shape), (layout.column, layout.column_shape)):
            for left, right in pairwise(factors):
                assert left.shape[1] == right.shape[0]
            assert (factors[0].shape[0], factors[-1].shape[1]) == shape
    assert [each.kind for each in derivation.layouts[1].row] == ["cost", "diagonal", "W", "diagonal"]


def test_the_tensor_collapses_to_the_outer_product(derivation):
    tensor = derivation.tensors[0]
    assert tensor.value.shape == (2, 2, 3)
    np.testing.assert_array_equal(tensor.value[1, 1], tensor.a)
    np.testing.assert_array_equal(tensor.value[1, 0], 0)
    np.testing.assert_allclose(tensor.collapsed, line(derivation, "dW3").value, rtol=1e-6)


def test_order_of_evaluation():
    found = multiplications((784, 30, 10))
    assert (found.from_loss, found.from_input) == (23_820, 243_040)
    assert (found.cheapest, found.bracketing) == (23_820, "(δᵀ W3) W2")
    assert multiplications((2, 3, 2)).from_input == 16
    assert multiplications((5, 4)).from_loss == multiplications((5, 4)).from_input == 20


def test_the_cheapest_order_may_be_another():
    # Source: Cormen et al., Introduction to Algorithms, §15.2: 15,125 for these sizes.
    cost, brackets = cheapest_order((30, 35, 15, 5, 10, 20, 25), ["A1", "A2", "A3", "A4", "A5", "A6"])
    assert (cost, brackets) == (15_125, "(A1 (A2 A3)) ((A4 A5) A6)")


# -------------------------------------------------------------------------------------------- notation, batch


def test_notations_name_the_same_quantities(observed):
    ng = derive(observed, notation("ng"))
    assert written(line(ng, "dW2").left) + " = " + written(line(ng, "dW2").right) == "dW[2] = dz[2]a[1]ᵀ"
    cs229 = derive(observed, notation("cs229", numbering=0, weights="in-out"))
    assert written(line(cs229, "dW2").left) + " = " + written(line(cs229, "dW2").right) == "∇_W⁽²⁾ J = a⁽¹⁾ᵀδ⁽²⁾"
    assert line(cs229, "dW2").value.shape == (3, 2)
    assert "row:    δ⁽²⁾ · W⁽²⁾ᵀ · diag" in overview(cs229)
    assert "3×2 has no inverse" in overview(cs229)
    assert "J + " not in overview(cs229, width=120)
    assert "J − .0000407" in overview(cs229, width=120)
    assert cs229.header.numbering == "CS229's symbols: input is layer 0"
    rows = {row.what: row.names for row in ng.notations}
    assert rows["BP4, weights"]["nielsen"] == "∇W³ = δ³a²ᵀ"
    assert rows["BP2, one layer back"]["nielsen"] == "δ² = W³ᵀδ³ ⊙ σ′(z²)"
    assert [loop.moving for loop in ng.loops] == ["i", "j", ""]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"name": "bourbaki"}, "one of nielsen, ng, cs229"),
        ({"numbering": 2}, "as 0 or as 1"),
        ({"weights": "up"}, "out-in or in-out"),
    ],
)
def test_no_such_notation(wrong, words):
    with pytest.raises(ExplainError, match=words):
        notation(**wrong)


def test_a_batch_is_the_sum_of_outer_products(observed):
    subject = config_subject(CONFIG, batch=3)
    found = derive(observed, batch=(subject.xs, subject.ys), layer=3).batch
    grads = j.value_and_grad(subject.net, subject.loss)(subject.params, subject.xs, subject.ys)[1]
    assert [each.layer for each in found] == ["3", "2"]
    np.testing.assert_array_equal(found[0].gradient, grads[2]["W"])
    np.testing.assert_allclose(found[0].outers.sum(0) / 3, grads[2]["W"], atol=1e-7)
    assert found[0].ulp < 16


def test_another_layer_and_none(observed):
    assert derive(observed, layer=2).why[0].layer == "2"
    with pytest.raises(ExplainError, match="one of 2, 3; there is no layer 7"):
        derive(observed, layer=7)


# ------------------------------------------------------------------------------------------------ all that ships

# A few of each kind are enough for every day; all of them by `pytest -m "slow or not slow" tests/test_explaining.py`.
QUICK = {"dense(4)", "dropout(0.4)", "softmax", "layer_norm(bias=False)", "max_pool(2)", "embedding(9, 4)",
         "tied(dense(6), tanh, dense(6), where=(0, 2))"}  # fmt: skip


def marked(target):
    return pytest.param(target, id=target.name, marks=[] if target.name in QUICK else [pytest.mark.slow])


@pytest.mark.parametrize("target", [marked(each) for each in shipped()])
def test_every_layer_that_ships_has_its_steps(target):
    subject = of_target(target)
    observed = observe(subject.net, subject.loss, subject.params, at(subject.xs, 0), subject.ys[0])
    derivation = derive(observed)
    assert derivation.checked.ok, derivation.checked
    assert set(derivation.checked.by_key) == {each.key for each in derivation.backward}
    names = {path for item in observed.items for path, _ in jax.tree_util.tree_leaves_with_path(item.grads)}
    assert len([each for each in derivation.backward if each.kind in ("dW", "db")]) >= len(names)
    for each in derivation.forward:
        if each.quoted is not None:
            assert "def " in each.quoted.forward or "lambda" in each.quoted.forward
            assert "def " in each.quoted.backward or "lambda" in each.quoted.backward
            assert (
                each.quoted.equations
                or "elementwise" in each.quoted.backward
                or "backward(params, saved, da)" in each.quoted.backward
            )
    blocks = steps(derivation)
    assert len(blocks) == 1 + len(derivation.forward) + len(derivation.backward)
    assert "".join(derivation.header.title.split()) in "".join(overview(derivation).split())
    json.dumps(to_dict(derivation), allow_nan=False)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_the_slope_of_a_loss_is_the_equation_shown(name):
    net = j.serial(j.dense(3), j.sigmoid)
    x, y = np.array([0.3, -0.7], np.float32), np.array([0.2, 0.5, 0.9], np.float32)
    params = ({"W": np.array([[0.5, -0.4], [0.3, 0.8], [-0.9, 0.1]], np.float32), "b": np.zeros(3, np.float32)}, ())
    observed = observe(net, LOSSES[name], params, x, y)
    derivation = derive(observed)
    scope = scope_of(chain_of(observed, notation()), derivation)
    text = formula(line(derivation, "delta2").right)
    assert near(evaluate(parse(text), scope), scope.values["delta2"])
    assert scope.draws > 1


# ------------------------------------------------------------------------------------------------- small things


def test_ulps():
    one = np.float32(1)
    assert ulps(one, one) == 0
    assert ulps(np.nextafter(one, np.float32(2)), one) == 1
    assert np.isnan(ulps(np.float32(np.inf), one))
    assert ulps(np.float32(1e-9), np.float32(3e-9), beside=1.0) < 1
    assert ulps(np.float32(1e-9), np.float32(3e-9)) > 1e6


def test_expressions_as_text_and_as_formulas():
    W, a = Name("W", "3", key="W3"), Name("a", "2", key="a2")
    table = {
        "(W³a²)ᵀ": Transposed(Product((W, a))),
        "W³⁺a²": Product((Power(W, "+"), a)),
        "(W³ + a²b)/2": Fraction(Sum((W, Product((a, Name("b"))))), Number("2")),
        "−Σ (a²−W³)": Minus(BigSum("", Sum((a, Minus(W))))),
        "W³∂C/∂a² a²": Product((W, Derivative(a, Name("C")), a)),
        "∂‖a²‖²/∂W³": Derivative(W, SquaredNorm(a)),
        "∇_W³ J": Derivative(W, Name("J"), nabla=True),
        "σ(a² ⊙ (1−a²))": Call(Name("σ"), Product((a, Sum((Number("1"), Minus(a)))), "⊙")),
    }
    assert {text: written(expression) for text, expression in table.items()} == {text: text for text in table}
    assert formula(Transposed(Product((W, a)))) == "(W3 @ a2).T"
    assert written(Call(Name("clip"), Listed((a, Number("1"))))) == "clip(a², 1)"
    assert written(Entry(Name("W", "2.3"), Name("x", below="t"))) == "W²·³[xₜ]"
    with pytest.raises(ValueError, match="no form in a formula"):
        formula(BigSum("j", a))
