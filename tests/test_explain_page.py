"""The page of `jaxnet explain --html`: its numbers are the program's, and it needs nothing but itself."""

import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnet
from jaxnet.explaining import live
from jaxnet.explaining import observe as observed_of
from jaxnet.explaining.expressions import (
    BigSum,
    Call,
    Derivative,
    Fraction,
    Minus,
    Name,
    Number,
    Power,
    Product,
    SquaredNorm,
    Sum,
    Transposed,
    Words,
    entry,
)
from jaxnet.explaining.history import History, Moment
from jaxnet.explaining.mathml import math, mathml
from jaxnet.explaining.notation import notation
from jaxnet.explaining.page import page, write_page
from jaxnet.explaining.view import merged, varying
from jaxnet.layers import attention, conv2d, dense, flatten, relu, sigmoid, softmax
from jaxnet.losses import quadratic, softmax_cross_entropy

W2, b2 = [[-0.2, 0.2], [-0.8, 0.1], [-0.4, 0.7]], [0.2, 0.3, 0.3]
W3, b3 = [[0.2, 0.9, -0.7], [-0.1, -0.4, 0.3]], [-0.3, -0.3]


def two_three_two():
    """The 2-3-2 network of configs/two_three_two.toml."""
    net = jaxnet.serial(dense(3), relu, dense(2), sigmoid)
    layers = [{"W": jnp.asarray(W), "b": jnp.asarray(b)} for W, b in ((W2, b2), (W3, b3))]
    return net, quadratic, (layers[0], (), layers[1], ())


@pytest.fixture(scope="module")
def observed():
    return observed_of(*two_three_two(), jnp.asarray([1.0, 2.0]), jnp.asarray([1.0, 0.0]))


@pytest.fixture(scope="module")
def text(observed):
    return page(observed, notation(), source="configs/two_three_two.toml", example=0, seed=0)


class Cells(HTMLParser):
    """The arrays and numbers of a page: their names, the entries' texts, and what they are multiplied by."""

    def __init__(self, text):
        super().__init__()
        self.arrays, self.numbers, self.open, self.tags = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if tag in ("img", "meta", "input", "line", "circle", "polyline"):
            return
        if "data-a" in found:
            self.arrays.append({"name": found["data-a"], "ix": found.get("data-ix"), "power": "", "texts": []})
        if "data-n" in found:
            self.numbers.append([found["data-n"], ""])
        self.open.append((tag, found.get("class", ""), found))

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        if not self.open:
            return
        _, kind, found = self.open[-1]
        if kind == "c":
            self.arrays[-1]["texts"].append(data)
        elif kind == "pow":
            self.arrays[-1]["power"] = data
        elif "data-n" in found:
            self.numbers[-1][1] += data


POWERS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")


def read(text, power=""):
    """A number as the page writes it, and half of its last place."""
    plain = text.replace("−", "-")
    times = 10.0 ** int(power.removeprefix("10").split(" ")[0].translate(POWERS)) if power else 1.0
    decimals = len(plain.partition(".")[2])
    return float(plain) * times, 0.5 * 10.0**-decimals * times


def expected(observed):
    """The program's own values by the names that the page uses."""
    values = {"x": observed.x, "y": observed.target, "C": observed.cost, "err.-1": observed.items[0].dx}
    for i, item in enumerate(observed.items):
        values |= {f"out.{i}": item.out, f"err.{i}": item.d_out}
        if item.params:
            values |= {f"W.{i}": item.params["W"], f"b.{i}": item.params["b"]}
            values |= {f"dW.{i}": item.grads["W"], f"db.{i}": item.grads["b"]}
            values[f"sent.{i}"] = item.d_out[:, None] * item.params["W"]
            values[f"why.{i}.back"] = item.dx
            values[f"why.{i}.other"] = np.linalg.pinv(item.params["W"]) @ item.d_out
            values[f"why.{i}.column"] = item.params["W"][:, int(np.flatnonzero(item.x)[0])]
            values[f"why.{i}.total"] = item.dx[int(np.flatnonzero(item.x)[0])]
    return values


def compared(cells, values):
    """How many entries were compared with the program's, by name."""
    seen = {}
    for each in cells.arrays:
        if each["name"] not in values:
            continue
        flat = np.asarray(values[each["name"]], np.float64).reshape(-1)
        order = range(len(flat)) if each["ix"] is None else map(int, each["ix"].split(","))
        for shown, i in zip(each["texts"], order, strict=True):
            value, half = read(shown, each["power"])
            assert abs(value - flat[i]) <= half * 1.001 + 1e-7 * abs(flat[i]), (each["name"], i, shown, flat[i])
            seen[each["name"]] = seen.get(each["name"], 0) + 1
    for name, shown in cells.numbers:
        if name in values:
            value, half = read(shown)
            assert abs(value - float(values[name])) <= half * 1.001 + 1e-7, (name, shown, values[name])
            seen[name] = seen.get(name, 0) + 1
    return seen


def test_the_numbers_of_the_page_are_those_of_the_program(text, observed):
    """Forward, backward and Why Wᵀ?, parsed out of the page."""
    seen = compared(Cells(text), expected(observed))
    named = {f"out.{i}" for i in range(4)} | {f"err.{i}" for i in range(3)}
    named |= {f"{what}.{i}" for i in (0, 2) for what in ("W", "dW", "db", "sent")}
    named |= {f"why.{i}.{what}" for i in (0, 2) for what in ("back", "other", "column", "total")}
    assert seen.keys() >= named | {"x", "y", "C", "err.-1"}


def test_the_numbers_of_every_notation_are_those_of_the_program(text, observed):
    """What the script puts in for other notations; matrices lie the other way round where W is (in, out)."""
    data = data_of(text)
    assert len(data["variants"]["of"]) == 12
    cells = Cells("".join(data["variants"]["strings"]))
    seen = compared(cells, expected(observed))
    assert seen.keys() >= {"dW.0", "dW.2"}
    assert any(each["ix"] for each in cells.arrays)


def data_of(text):
    """The data that the page's script reads."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_the_script_gets_the_decimals_of_the_config(text):
    spec = data_of(text)["spec"]
    assert spec["layers"][0] == {"kind": "dense", "W": W2, "b": b2, "number": 1}
    assert (spec["x"], spec["y"], spec["loss"]) == ([1.0, 2.0], [1.0, 0.0], "quadratic")


def test_the_page_needs_nothing_but_itself(text):
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', text)
    assert not re.search(r"@import|url\(|https?:|<link|fetch\(|import\(", text)


def test_questions_notations_loops_and_checks_stand_in_the_page(text):
    for said in ("Why ", "has no inverse", "Is W³ᵀ the inverse of W³?", "Why transpose AND reverse", "(AB)ᵀ = BᵀAᵀ",
                 "12 products", "16 products", "moves, j stays", "equals jax.grad within 1 ulp", "BP4",
                 "unit 2 is off", "is a tensor, 2×2×3"):  # fmt: skip
        assert said in re.sub(r"</?span[^>]*>", "", text), said


def test_formulas_are_well_formed(text):
    found = re.findall(r"<math.*?</math>", text, re.DOTALL)
    assert len(found) > 100
    for each in found:
        ElementTree.fromstring(each)


W = Name("W", "3", key="W3")


@pytest.mark.parametrize(
    ("expression", "written"),
    [
        (Transposed(W), "W3T"),
        (Transposed(Name("x")), "xT"),
        (Transposed(Sum((Name("a"), Minus(Name("y"))))), "(a−y)T"),
        (Power(W, "−1"), "W3−1"),
        (Power(W, "+"), "W3+"),
        (Product((Sum((Name("a"), Minus(Name("y")))), Call(Name("σ′"), Name("z"))), "⊙"), "(a−y)⊙σ′(z)"),
        (Fraction(Number("1"), Number("2")), "12"),
        (Derivative(Name("a", "2"), Name("C")), "∂C∂a2"),
        (Derivative(W), "∇W3"),
        (Derivative(W, Name("J"), nabla=True), "∇W3J"),
        (SquaredNorm(Name("a")), "‖a‖2"),
        (BigSum("i", Sum((Name("a"), Name("b")))), "∑i(a+b)"),
        (Minus(Sum((Name("a"), Name("b")))), "−(a+b)"),
        (Words("diag < 1"), "diag < 1"),
        (Name("dz", "[3]"), "dz[3]"),
        (entry(W, 1, 12), "W1,123"),
    ],
    ids=str,
)
def test_mathml_of_every_kind_of_expression(expression, written):
    """What a reader of the elements' texts sees; brackets where an operand binds more loosely."""
    tree = ElementTree.fromstring(math(mathml(expression)))
    assert "".join(tree.itertext()) == written


def test_a_shape_stands_below_its_factor():
    product = Product((Transposed(W), Name("δ", "3")))
    tree = ElementTree.fromstring(math(mathml(product, {Transposed(W): "3×2", Name("δ", "3"): "2×1"})))
    below = [(each[0].itertext(), each[1].text) for each in tree.iter("munder")]
    assert [("".join(over), shape) for over, shape in below] == [("W3T", "3×2"), ("δ3", "2×1")]


def test_bodies_are_merged_where_they_differ():
    body = {name: f"<p>{varying(name)} {varying('same')} {varying(name, 'tspan')}</p>" for name in ("a", "b")}
    text, variants = merged(body, "a")
    assert text == "<p><span data-s=0>a</span> <span>same</span> <tspan data-s=1>a</tspan></p>"
    assert [variants["strings"][i] for i in variants["of"]["b"]] == ["b", "b"]
    with pytest.raises(RuntimeError, match="outside of the marked places"):
        merged({"a": "<p>1</p>", "b": "<p>2</p>"}, "a")


# ------------------------------------------------------------------------------------------ other networks


def page_of(net, loss, x, y, **options):
    params = jaxnet.initialize(net, loss, jax.random.key(0), x)
    return page(observed_of(net, loss, params, x, y), notation(), **options)


def test_a_wide_network_says_that_it_is_not_drawn_and_shows_the_rest():
    text = page_of(jaxnet.serial(dense(64), relu, dense(10)), softmax_cross_entropy, jnp.ones(64), jnp.asarray(3))
    assert "4,736 weights between layers of up to 64 units are too many to be drawn" in text
    assert "<svg" not in text
    assert data_of(text)["spec"] is None
    assert text.count('class="heat"') > 10
    assert "Why backwards?" in text
    assert "heat map of 10×64 numbers" in text
    captions = re.findall(r"<figcaption>.*?</figcaption>", text, re.DOTALL)
    assert sum("<mfrac>" in each for each in captions) == 1, "the error at relu's output is ∂C/∂a, not a product"


def test_heat_maps_of_a_composed_layer_have_the_names_of_its_layers():
    net = jaxnet.serial(jaxnet.repeat(jaxnet.residual(jaxnet.serial(jaxnet.layer_norm(), jaxnet.attention(2))), 2))
    text = page_of(net, quadratic, jnp.arange(60.0).reshape(5, 12) % 7, jnp.zeros((5, 12)))
    assert "<h3>block 2 of 2: attention 2</h3>" in text
    assert "<h3>block 2 of 2: layer_norm</h3>" in text


def test_a_convolution_is_shown_by_its_source_and_heat_maps():
    net = jaxnet.serial(conv2d(2, 3), relu, flatten(), dense(3), softmax)
    text = page_of(net, quadratic, jax.random.normal(jax.random.key(1), (5, 5, 1)), jnp.eye(3)[0])
    assert "Only dense layers and activations of vectors are drawn" in text
    assert "jaxnet/layers/conv.py:" in text
    assert "def backward" in text
    assert "heat map of 3×3×2 numbers" in text


def test_attention_is_shown_by_its_source_and_its_parameters():
    text = page_of(attention(2), quadratic, jax.random.normal(jax.random.key(1), (3, 4)), jnp.zeros((3, 4)))
    assert "jaxnet/layers/attention.py:" in text
    assert "def backward" in text
    assert "What people ask" not in text


def test_a_network_without_a_layer_to_ask_about_has_a_page():
    text = page_of(jaxnet.serial(relu, sigmoid), quadratic, jnp.asarray([1.0, -2.0]), jnp.zeros(2))
    assert "<svg" in text
    assert "Why <" not in text


def test_another_way_back_is_not_computed_in_the_page(observed):
    """The script sends Wᵀδ back: a dense layer that does not is left to jaxnet."""
    import dataclasses

    from jaxnet.explaining.derive import chain_of, derive

    chain, why = chain_of(observed, notation()), derive(observed).why
    assert live.specification(observed, chain.places, why) is not None
    twisted = dataclasses.replace(observed.items[2], dx=-observed.items[2].dx)
    other = dataclasses.replace(observed, items=(*observed.items[:2], twisted, observed.items[3]))
    assert live.specification(other, chain_of(other, notation()).places, why) is None


def test_the_page_opens_with_the_layer_and_the_notation_asked_for(observed):
    text = page(observed, notation("ng"), layer=1)
    assert data_of(text)["first"] == "ng 0 out-in"
    assert re.search(r'name="layer" value="0" checked', text)
    assert "Is W[1]ᵀ the inverse of W[1]?" in re.sub(r"</?span[^>]*>", "", text)


def test_a_batch_is_the_sum_of_its_outer_products(observed):
    xs, ys = jnp.asarray([[1.0, 2.0], [0.5, -1.0]]), jnp.asarray([[1.0, 0.0], [0.0, 1.0]])
    text = page(observed, notation(), batch=(xs, ys), examples=(4, 7))
    assert "example 4" in text
    assert "example 7" in text
    assert "the network's own gradient" in text


def test_over_a_run_the_slider_has_the_program_s_costs(observed, tmp_path):
    """Each moment's C, and of a small network its parameters for the script."""
    net, loss, params = two_three_two()
    moments = [jax.tree.map(lambda t, k=k: t * k, params) for k in (0.5, 0.8, 1.0)]
    history = History(
        tuple(Moment(10 * i, i, each) for i, each in enumerate(moments)),
        tuple({"epoch": i, "train_loss": 1.0 / i, "test_accuracy": 0.5 + i / 10, "delta_norms": [i]} for i in (1, 2)),
    )
    path = write_page(tmp_path / "made" / "page.html", observed, notation(), run=history)
    text = path.read_text(encoding="utf-8")
    frames = data_of(text)["run"]
    costs = [float(observed_of(net, loss, each, observed.x, observed.y).cost) for each in moments[:1]]
    assert frames[0]["said"] == f"step 0, epoch 0: C {costs[0]:.4f}".replace("C 0.", "C .")
    assert frames[2]["said"] == "step 20, epoch 2: C .4170, accuracy 70.0 %"
    assert np.allclose(frames[1]["params"]["2"]["W"], 0.8 * np.asarray(W3))
    assert frames[0]["maps"].keys() == {"run.W.0", "run.err.0", "run.W.2", "run.err.2"}
    assert "test accuracy, epoch by epoch" in text


@pytest.mark.slow
def test_every_layer_that_ships_has_a_page():
    """pytest -m slow tests/test_explain_page.py: a few minutes."""
    from jaxnet.checking.targets import shipped
    from jaxnet.explaining.subjects import at, of_target

    for target in shipped():
        subject = of_target(target)
        observed = observed_of(subject.net, subject.loss, subject.params, at(subject.xs, 0), subject.ys[0])
        assert "Is it right?" in page(observed, notation()), target.name
