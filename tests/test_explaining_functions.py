"""Any JAX function is explained by its own lines, and by the chain rule through each of them."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

from jaxnet import cli
from jaxnet.explaining.expressions import latex, written
from jaxnet.explaining.functions import FunctionSubject, derivation_of_function
from jaxnet.explaining.notation import ExplainError, notation


def network(params, x, y):
    z1 = params["W1"] @ x + params["b1"]
    h = jnp.tanh(z1)
    z2 = params["W2"] @ h + params["b2"]
    p = jax.nn.sigmoid(z2)
    return 0.5 * jnp.sum((p - y) ** 2)


def over_rows(W, b, X, Y):
    Z = X @ W + b
    A = jax.nn.relu(Z)
    return jnp.mean((A - Y) ** 2)


def entropy(W, x, y):
    z = W @ x
    log_p = z - jax.nn.logsumexp(z)
    return -jnp.sum(y * log_p)


def sorted_loss(x):
    s = jnp.sort(x)
    return jnp.sum(s**2 / jnp.arange(1.0, 5.0))


def recurrent(params, xs, y):
    def cell(h, x):
        h = jnp.tanh(params["W"] @ x + params["U"] @ h)
        return h, h

    h, _ = jax.lax.scan(cell, jnp.zeros(3), xs)
    return 0.5 * jnp.sum((h - y) ** 2)


def at_every_step(params, xs, ys):
    def cell(h, x):
        h = jnp.tanh(params["W"] @ x + params["U"] @ h)
        return h, h

    _, hs = jax.lax.scan(cell, jnp.zeros(3), xs)
    return 0.5 * jnp.sum((hs - ys) ** 2)


def mapped(W, X, Y):
    P = jax.vmap(lambda x: jax.nn.sigmoid(W @ x))(X)
    return jnp.mean((P - Y) ** 2)


def picked(x):
    c = jnp.cumsum(x)
    m = jnp.max(c)
    return m**2


def looped(x):
    s = jax.lax.fori_loop(0, 3, lambda i, s: jnp.sin(s), x)
    return jnp.sum(s)


def shifted(x):
    c = x[1:] * x[:-1]
    return jnp.sum(c[::-1] * x[1:])


def classes(W, b, V, X, y):
    h = jax.nn.relu(X @ W + b)
    logp = jax.nn.log_softmax(h @ V)
    return -jnp.mean(logp[jnp.arange(5), y])


def attention(q, k, v, y):
    s = q @ k.T / jnp.sqrt(q.shape[-1])
    mask = jnp.tril(jnp.ones((3, 3), bool))
    s = jnp.where(mask, s, -jnp.inf)
    p = jax.nn.softmax(s)
    return jnp.sum((p @ v - y) ** 2)


def normed(gamma, x, y):
    mu = x.mean(axis=-1, keepdims=True)
    var = ((x - mu) ** 2).mean(axis=-1, keepdims=True)
    xhat = (x - mu) / jnp.sqrt(var + 1e-5)
    return jnp.sum((gamma * xhat - y) ** 2)


def lstm(W, x, y):
    def step(carry, xt):
        h, c = carry
        z = W @ jnp.concatenate([h, xt])
        i, f, o, g = jnp.split(z, 4)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), None

    (h, _), _ = jax.lax.scan(step, (jnp.zeros(2), jnp.zeros(2)), x)
    return jnp.sum((h - y) ** 2)


def carried(W, U, x):
    h = jax.lax.scan(lambda h, xt: (jnp.tanh(W @ h + U @ xt), None), jnp.zeros(3), x)[0]
    return jnp.sum(h**2)


def drawn(*shapes):
    return tuple(np.random.default_rng(i).standard_normal(each).astype(np.float32) for i, each in enumerate(shapes))


PARAMS = dict(zip(("W1", "b1", "W2", "b2"), drawn((3, 2), 3, (2, 3), 2), strict=True))
CASES = {
    "network": (network, (PARAMS, *drawn(2, 2))),
    "over_rows": (over_rows, drawn((4, 3), 3, (5, 4), (5, 3))),
    "entropy": (entropy, drawn((3, 2), 2, 3)),
    "sorted_loss": (sorted_loss, drawn(4)),
    "recurrent": (recurrent, (dict(zip("WU", drawn((3, 2), (3, 3)), strict=True)), *drawn((4, 2), 3))),
    "at_every_step": (at_every_step, (dict(zip("WU", drawn((3, 2), (3, 3)), strict=True)), *drawn((4, 2), (4, 3)))),
    "mapped": (mapped, drawn((3, 2), (5, 2), (5, 3))),
    "picked": (picked, drawn(4)),
    "looped": (looped, drawn(4)),
    "shifted": (shifted, drawn(4)),
    "classes": (classes, (*drawn((4, 3), 3, (3, 2), (5, 4)), np.array([0, 1, 1, 0, 1]))),
    "attention": (attention, drawn((3, 4), (3, 4), (3, 2), (3, 2))),
    "normed": (normed, drawn(4, (3, 4), (3, 4))),
    "lstm": (lstm, drawn((8, 5), (4, 3), 2)),
    "carried": (carried, drawn((3, 3), (3, 2), (4, 2))),
}


@pytest.fixture(scope="module")
def found():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return {
            name: derivation_of_function(FunctionSubject(function, args, name, 0), notation())
            for name, (function, args) in CASES.items()
        }


def said(derivation):
    return {f"{written(each.left)} = {written(each.right)}" for each in (*derivation.forward, *derivation.backward)}


def test_a_network_in_plain_jax_has_the_equations_of_backpropagation(found):
    assert {
        "z₁ = W₁x + b₁", "h = tanh(z₁)", "p = σ(z₂)", "C = 0.5 × Σ (p−y)²", "∂C/∂z₂ = ∂C/∂p ⊙ σ′(z₂)",
        "∂C/∂h = W₂ᵀ∂C/∂z₂", "∂C/∂z₁ = ∂C/∂h ⊙ tanh′(z₁)", "∂C/∂W₁ = ∂C/∂z₁ xᵀ", "∂C/∂b₂ = ∂C/∂z₂",
        "∂C/∂x = W₁ᵀ∂C/∂z₁", "∂C/∂p = p−y", "∂C/∂y = −(p−y)",
    } <= said(found["network"])  # fmt: skip


def test_two_minus_signs_are_none_and_a_matrix_of_one_row_keeps_its_shape():
    """Ng's output layer of one unit: W₂ is 1×3, and 1 − A₂ inside a minus is added."""

    def cost(W2, A1, Y):
        Z = W2 @ A1
        A2 = jax.nn.sigmoid(Z)
        return -jnp.mean(Y * jnp.log(A2) + (1 - Y) * jnp.log(1 - A2))

    args = tuple(jnp.asarray(np.random.default_rng(0).random(s), jnp.float32) for s in ((1, 3), (3, 5), (1, 5)))
    derivation = derivation_of_function(FunctionSubject(cost, args, "cost", 0), notation())
    assert "∂C/∂A₂ = −(Y ⊙ 1/A₂)/5 + ((1−Y) ⊙ 1/(1−A₂))/5" in said(derivation)
    assert [line.sizes for line in derivation.backward if written(line.left) == "∂C/∂W₂"] == ["1×5·5×3 → 1×3"]


def test_rows_of_examples_stand_as_the_author_wrote_them(found):
    assert {
        "Z = XW + b", "A = relu(Z)", "∂C/∂A = (2 × (A−Y))/15", "∂C/∂Z = ∂C/∂A ⊙ relu′(Z)", "∂C/∂W = Xᵀ∂C/∂Z",
        "∂C/∂b = Σₜ ∂C/∂Zₜ",
    } <= said(found["over_rows"])  # fmt: skip
    assert {"h = relu(XW + b)", "logp = log_softmax(hV)", "∂C/∂logp = −onehot(y)/5",
            "∂C/∂W = Xᵀ(∂C/∂h ⊙ relu′(XW + b))", "∂C/∂X = (∂C/∂h ⊙ relu′(XW + b))Wᵀ",
            "∂C/∂b = Σₜ ∂C/∂hₜ ⊙ relu′(WᵀXₜ + b)"} <= said(found["classes"])  # fmt: skip
    index = next(line for line in found["over_rows"].backward if "Σₜ" in written(line.right))
    assert index.remarks == ("Zₜ is row t of Z, as a column",)


def test_attention_and_normed_rows_have_lines_throughout(found):
    assert {
        "s = where(mask, qkᵀ/√4, −∞)", "p = softmax(s)", "∂C/∂sₜ = pₜ ⊙ (∂C/∂pₜ − Σ pₜ ⊙ ∂C/∂pₜ)",
        "∂C/∂q = ((∂C/∂s ⊙ mask)/√4)k", "∂C/∂k = ((∂C/∂s ⊙ mask)/√4)ᵀq",
    } <= said(found["attention"])  # fmt: skip
    assert {"μₜ = mean(xₜ)", "xhat = (x−μ)/√(var+10⁻⁵)",
            "∂C/∂x = ∂C/∂xhat/√(var+10⁻⁵) + (∂C/∂var ⊙ (x−μ))/2 + ∂C/∂μ/4"} <= said(found["normed"])  # fmt: skip
    for name in ("attention", "normed", "classes", "lstm", "carried"):
        assert not any("jax.grad" in each for each in said(found[name])), name


def test_two_carries_of_a_scan_meet_in_one_step(found):
    assert {
        "zₜ = W(hₜ₋₁, xₜ)", "∂C/∂zₜ = (∂C/∂iₜ, ∂C/∂fₜ, ∂C/∂oₜ, ∂C/∂gₜ)", "∂C/∂hₜ₋₁ = (Wᵀ∂C/∂zₜ)[1…2]",
        "∂C/∂cₜ = ∂C/∂hₜ ⊙ σ(oₜ) ⊙ tanh′(cₜ) + ∂C/∂cₜ₊₁ ⊙ σ(fₜ₊₁)", "∂C/∂xₜ = (Wᵀ∂C/∂zₜ)[3…5]",
    } <= said(found["lstm"])  # fmt: skip
    assert {"hₜ = tanh(Whₜ₋₁ + Uxₜ)", "∂C/∂hₜ₋₁ = Wᵀ(∂C/∂hₜ ⊙ tanh′(Whₜ₋₁ + Uxₜ))"} <= said(found["carried"])


def test_a_number_that_moves_every_entry_gets_their_sum(found):
    assert "∂C/∂z = ∂C/∂log_p − (Σ ∂C/∂log_p) ⊙ 1/(Σ exp(z)) ⊙ exp(z)" in said(found["entropy"])


def test_a_scan_is_backpropagation_through_time(found):
    assert {
        "hₜ = tanh(Wxsₜ + Uhₜ₋₁)", "∂C/∂h₄ = h₄−y", "∂C/∂hₜ₋₁ = Uᵀ(∂C/∂hₜ ⊙ tanh′(Wxsₜ + Uhₜ₋₁))",
        "∂C/∂U = Σₜ (∂C/∂hₜ ⊙ tanh′(Wxsₜ + Uhₜ₋₁))hₜ₋₁ᵀ", "∂C/∂W = Σₜ (∂C/∂hₜ ⊙ tanh′(Wxsₜ + Uhₜ₋₁))xsₜᵀ",
        "∂C/∂xsₜ = Wᵀ(∂C/∂hₜ ⊙ tanh′(Wxsₜ + Uhₜ₋₁))",
    } <= said(found["recurrent"])  # fmt: skip


def test_the_error_of_every_step_is_carried_back(found):
    assert {
        "∂C/∂U = Σₜ (∂C/∂hₜ ⊙ tanh′(Wxsₜ + Uhₜ₋₁))hₜ₋₁ᵀ",
        "∂C/∂hₜ = hₜ − ysₜ + Uᵀ(∂C/∂hₜ₊₁ ⊙ tanh′(Wxsₜ₊₁ + Uhₜ))",
    } <= said(found["at_every_step"])
    assert not any("jax.grad" in each for each in said(found["at_every_step"]))


def test_a_function_that_is_mapped_has_the_equation_of_one_example(found):
    assert {"Pₜ = σ(WXₜ)", "∂C/∂W = Σₜ (∂C/∂Pₜ ⊙ σ′(WXₜ))Xₜᵀ", "∂C/∂Xₜ = Wᵀ(∂C/∂Pₜ ⊙ σ′(WXₜ))"} <= said(found["mapped"])


@pytest.mark.parametrize(
    ("name", "equation", "words"),
    [
        ("sorted_loss", "∂C/∂x = (∂s/∂x)ᵀ∂C/∂s", "∂s/∂x: a permutation"),
        ("picked", "∂C/∂x = (∂c/∂x)ᵀ∂C/∂c", "∂c/∂x: a 1 wherever an entry is added"),
        ("looped", "∂C/∂x = (∂s/∂x)ᵀ∂C/∂s", "∂s/∂x: diagonal"),
    ],
)
def test_where_no_rule_reaches_the_error_goes_back_by_the_jacobian(found, name, equation, words):
    assert equation in said(found[name])
    assert any(words in remark for line in found[name].backward for remark in line.remarks)


def test_a_cost_that_is_no_equation_has_values_alone(found):
    assert "∂C/∂x = jax.grad(C)" in said(found["shifted"])


@pytest.mark.parametrize("name", CASES)
def test_every_value_is_that_of_jax_grad(found, name):
    function, args = CASES[name]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        by = tuple(i for i, arg in enumerate(args) if np.asarray(jax.tree.leaves(arg)[0]).dtype.kind == "f")
        expected = jax.grad(function, argnums=by)(*args)
    by_shape = [np.asarray(leaf) for leaf in jax.tree.leaves(expected)]
    values = [line.value for line in found[name].backward]
    for leaf in by_shape:
        assert any(each.shape == leaf.shape and np.allclose(each, leaf, rtol=1e-5, atol=1e-6) for each in values)


SOURCE = "import jax.numpy as jnp\n\n\ndef loss(W, x):\n    z = W @ x\n    return jnp.sum(z**2)\n"


def run(*arguments):
    return CliRunner().invoke(cli.app, ["explain", *map(str, arguments)], prog_name="jaxnet", env={"COLUMNS": "110"})


def test_from_a_file_on_the_command_line(tmp_path):
    file = tmp_path / "my_net.py"
    file.write_text(SOURCE)
    shown = run(f"{file}:loss", "--inputs", "float32[3,2], float32[2]")
    assert shown.exit_code == 0, shown.output
    assert "∂C/∂W = ∂C/∂z xᵀ" in shown.stdout
    assert (
        "\\frac{\\partial C}{\\partial z} &= 2 \\times z"
        in run(f"{file}:loss", "--inputs", "float32[3,2], float32[2]", "--latex").stdout
    )
    written = run(f"{file}:loss", "--inputs", "float32[3,2], float32[2]", "--html", tmp_path / "loss.html")
    assert written.exit_code == 0, written.output
    page = (tmp_path / "loss.html").read_text()
    assert page.count('<li class="line') == len(re.findall(r"^  \S+ = ", shown.stdout, re.MULTILINE))
    assert "every line equals jax.grad" in page.lower()
    refused = run(f"{file}:loss", "--inputs", "float32[3,2], float32[2]", "--walk")
    assert refused.exit_code == 2
    assert "--walk is for networks" in refused.output
    as_json = json.loads(run(f"{file}:loss", "--inputs", "float32[3,2], float32[2]", "--json", "-").stdout)
    assert as_json["checked"]["ok"]


def test_a_number_among_the_inputs_is_said_to_be_fixed(tmp_path):
    file = tmp_path / "scaled.py"
    file.write_text("def loss(x, by):\n    return (x * by.astype(x.dtype)).sum()\n")
    shown = run(f"{file}:loss", "--inputs", "float32[3],4")
    assert "by: fixed by --inputs, so without ∂C; float32[] draws a number that has one" in shown.stdout
    assert "∂C/∂by" in run(f"{file}:loss", "--inputs", "float32[3],float32[]").stdout


CONFIG = Path(__file__).parent.parent / "configs" / "two_three_two.toml"


def test_equations_as_latex_and_the_network_as_a_picture(tmp_path):
    shown = run(CONFIG, "--latex", "--figure", tmp_path / "net.svg").stdout
    assert "\\delta^{2} &= {W^{3}}^\\top  \\delta^{3} \\odot \\mathrm{relu}'\\left(z^{2}\\right)" in shown
    assert "<svg" in (tmp_path / "net.svg").read_text()
    assert "--figure writes .svg, .png, .pdf" in run(CONFIG, "--figure", tmp_path / "net.txt").output
    larger = run("conv2d", "--figure", tmp_path / "layer.png")
    assert larger.exit_code == 0, larger.output
    assert (tmp_path / "layer.png").read_bytes().startswith(b"\x89PNG")


def test_latex_of_every_line_has_its_brackets_in_pairs(found):
    for each in (line for derivation in found.values() for line in derivation.backward):
        assert latex(each.right).count("{") == latex(each.right).count("}")
        assert latex(each.right).count("\\left") == latex(each.right).count("\\right")


def log_of_one(z, y):
    p = jax.nn.softmax(z)
    c = -jnp.log(p[y])
    return c


def test_a_label_out_of_range_is_told_with_the_range():
    subject = FunctionSubject(log_of_one, (jnp.array([0.2, 0.8]), jnp.array(5)), "log_of_one", 0)
    with pytest.raises(ExplainError, match=r"from 0 to 1, got 5: draw it among them, by --inputs with int32\[\]<2"):
        derivation_of_function(subject, notation())


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x if x[0] > 0 else -x, r"write jnp\.where or jax\.lax\.cond"),
        (lambda x: x, r"gives one number, f gives float32\[3\]"),
    ],
)
def test_a_function_that_cannot_be_explained_is_told_what_to_write(function, words):
    with pytest.raises(ExplainError, match=words):
        derivation_of_function(FunctionSubject(function, (jnp.ones(3),), "f", 0), notation())
