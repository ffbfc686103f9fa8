"""Equations of layers beside the dense ones: their numbers by hand, their text, and that a wrong one is seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnet as j
from jaxnet.explaining import derive, observe
from jaxnet.explaining.expressions import written
from jaxnet.explaining.notation import notation
from jaxnet.explaining.records import opened
from jaxnet.explaining.subjects import at, named
from jaxnet.explaining.terminal import overview
from jaxnet.registry import makers


def observed_of(net, x, loss=j.quadratic, y=None):
    params = j.initialize(net, loss, jax.random.key(1), x)
    out = net.forward(params, x)[0]
    return observe(net, loss, params, x, jnp.zeros(out.shape) if y is None else y)


def of(net, x, symbols=None, **options):
    return derive(observed_of(net, x, **options), symbols or notation())


def image(*shape):
    return jax.random.normal(jax.random.key(0), shape)


def lines(derivation):
    return {line.key: line for line in (*derivation.forward, *derivation.backward)}


def said(derivation):
    return [f"{written(each.left)} = {written(each.right)}" for each in (*derivation.forward, *derivation.backward)]


@pytest.fixture(scope="module")
def convolution():
    """A 2×2 kernel over a 3×3 image: four positions."""
    return of(j.conv2d(1, 2), jnp.arange(9.0).reshape(3, 3, 1))


def test_a_convolution_is_a_product_at_each_patch(convolution):
    found = lines(convolution)
    W, delta = convolution.layers[0].params["W"].reshape(4), found["delta2"].value.reshape(-1)
    patches = np.asarray([[0, 1, 3, 4], [1, 2, 4, 5], [3, 4, 6, 7], [4, 5, 7, 8]])
    np.testing.assert_allclose(found["z2"].value.reshape(-1), patches @ W, rtol=1e-5)
    np.testing.assert_allclose(found["dW2"].value.reshape(-1), delta @ patches, rtol=1e-5)
    np.testing.assert_allclose(found["dx"].value[1, 1, 0], delta @ W[::-1], rtol=1e-5)  # the kernel flipped
    assert {"z²ₚ = Σₖ W²ₖxₚ₊ₖ + b²", "∇W²ₖ = Σₚ δ²ₚxₚ₊ₖᵀ", "∂C/∂xₚ = Σₖ W²ₖᵀδ²ₚ₋ₖ"} <= set(said(convolution))
    assert found["dx"].remarks == ("a convolution again, the kernel flipped",)
    [paths] = found["dW2"].notes
    assert paths.startswith("a weight serves all 4 positions, one path by each; ")


def test_a_convolution_says_how_far_its_padding_reaches():
    found = of(j.conv1d(1, 3, padding=1), jnp.arange(4.0).reshape(4, 1))
    assert {"z²ₚ = Σₖ W²ₖxₚ₊ₖ₋₁ + b²", "∇W²ₖ = Σₚ δ²ₚxₚ₊ₖ₋₁ᵀ", "∂C/∂xₚ = Σₖ W²ₖᵀδ²ₚ₊₁₋ₖ"} <= set(said(found))
    W, delta, x = found.layers[0].params["W"].reshape(3), lines(found)["delta2"].value.reshape(4), np.arange(4.0)

    def at(values, place):
        return values[place] if 0 <= place < 4 else 0

    z = [sum(W[k] * at(x, p + k - 1) for k in range(3)) for p in range(4)]
    dx = [sum(W[k] * at(delta, p + 1 - k) for k in range(3)) for p in range(4)]
    np.testing.assert_allclose(lines(found)["z2"].value.reshape(4), z, rtol=1e-5)
    np.testing.assert_allclose(lines(found)["dx"].value.reshape(4), dx, rtol=1e-5)


def test_its_source_stands_with_it(convolution):
    [quoted] = [line.quoted for line in convolution.forward if line.quoted]
    assert "correlate(a, W, window, groups)" in quoted.forward
    assert "spread(delta, W_T" in quoted.backward


def test_the_winner_gets_all_and_an_average_is_spread():
    x = jnp.asarray([[1.0, 2.0], [4.0, 3.0]])[..., None]
    for pool, expected in ((j.max_pool(2), [[0, 0], [4, 0]]), (j.average_pool(2), [[0.625, 0.625], [0.625, 0.625]])):
        found = of(pool, x)
        np.testing.assert_allclose(lines(found)["dx"].value[..., 0], expected)
    assert lines(of(j.max_pool(2), x))["dx"].notes == (
        "channel 1, first window: (2,1) won and gets all of 4.0000, the others nothing",
    )


def test_a_norm_takes_off_what_changes_nothing():
    found = lines(of(j.layer_norm(), jnp.asarray([1.0, 2.0, 4.0, 9.0])))
    x_hat, dx = (np.asarray(found[key].value, np.float64) for key in ("x_hat2", "dx"))
    np.testing.assert_allclose([dx.sum(), dx @ x_hat], 0, atol=1e-4)
    assert "taken off: ⟨dx, 1⟩ = " in found["dx"].notes[0]


CELLS = {"rnn": j.rnn(2), "lstm": j.lstm(2), "gru": j.gru(2, reverse=True)}


@pytest.mark.parametrize("name", CELLS)
def test_an_error_is_carried_from_step_to_step(name):
    found = of(CELLS[name], image(3, 2))
    assert found.checked.ok
    assert found.checked.worst < 40
    values = lines(found)
    dh, da = values["dh2"].value, values["da2"].value
    last = 0 if name == "gru" else 2
    np.testing.assert_allclose(dh[last], da[last], rtol=1e-6)  # nothing comes from beyond the last step
    assert np.abs(dh[1] - da[1]).min() > 0


ATTENTION = [
    "q²ₜ = W_q²xₜ", "P²ₕₜ = exp(S²ₕₜ−L²ₕₜ)", "o²ₜₕⱼ = Σₛ P²ₕₜₛv²ₛₕⱼ", "a²ₜ = W_o²o²ₜ", "∂C/∂o²ₜ = W_o²ᵀ∂C/∂a²ₜ",
    "∂C/∂v²ₛₕⱼ = Σₜ P²ₕₜₛ∂C/∂o²ₜₕⱼ", "∂C/∂S²ₕₜ = P²ₕₜ ⊙ (∂C/∂P²ₕₜ − D²ₕₜ)", "∇W_q² = Σₜ ∂C/∂q²ₜ xₜᵀ",
    "∂C/∂xₜ = W_q²ᵀ∂C/∂q²ₜ + W_k²ᵀ∂C/∂k²ₜ + W_v²ᵀ∂C/∂v²ₜ",
]  # fmt: skip


def test_attention_is_written_with_the_indices_of_its_products():
    found = of(j.attention(2), image(3, 4))
    assert set(ATTENTION) <= set(said(found))
    assert found.checked.ok
    assert lines(found)["P2"].value.shape == (3, 3)  # of the first head
    assert any("takes most" in note for note in lines(found)["P2"].notes)


ROTARY = [
    "q′² = turned(q²)", "S²ᵣₜₛ = Σᵢ q′²ₜᵣᵢk′²ₛᵢ/√4", "D²ᵣₜ = Σⱼ ∂C/∂o²ₜᵣⱼ o²ₜᵣⱼ", "∂C/∂P²ᵣₜₛ = Σⱼ ∂C/∂o²ₜᵣⱼ v²ₛⱼ",
    "∂C/∂S²ᵣₜ = P²ᵣₜ ⊙ (∂C/∂P²ᵣₜ − D²ᵣₜ)", "∂C/∂k′²ₛᵢ = Σᵣₜ ∂C/∂S²ᵣₜₛ q′²ₜᵣᵢ/√4", "∂C/∂k² = turned(∂C/∂k′²)",
]  # fmt: skip


def test_grouped_heads_are_shown_one_by_one():
    """Of two key heads with two query heads each P is the matrix of the first, and its rows sum to 1."""
    found = of(j.attention(4, kv_heads=2), image(3, 8))
    P, S = (next(line for line in found.forward if line.key == key) for key in ("P2", "S2"))
    assert P.remarks[-1] == S.remarks[-1] == "h = 1 of 2, r = 1 of 2"
    assert P.shape == S.shape == (3, 3)
    np.testing.assert_allclose(P.value.sum(-1), 1, atol=1e-6)


@pytest.mark.parametrize("symbols", ["nielsen", "ng", "cs229"])
def test_rotary_attention_has_every_line_of_the_way_back(symbols):
    found = of(j.attention(2, causal=False, kv_heads=1, rotary=True), image(3, 8), notation(symbols))
    assert symbols != "nielsen" or set(ROTARY) <= set(said(found))
    by_name = {key.rstrip("0123456789_"): line for key, line in lines(found).items()}
    assert {"D", "dP", "dS", "dq", "dk", "dv"} <= by_name.keys()
    assert any("turned back" in each for each in by_name["dq"].remarks)
    assert found.checked.ok


LSTM = [
    "c²ₜ = f²ₜ ⊙ c²ₜ₋₁ + i²ₜ ⊙ g²ₜ", "∂C/∂h²ₜ = U²ᵀδ²ₜ₊₁ + ∂C/∂a²ₜ",
    "∂C/∂c²ₜ = ∂C/∂c²ₜ₊₁ ⊙ f²ₜ₊₁ + ∂C/∂h²ₜ ⊙ o²ₜ ⊙ (1 − tanh_c²ₜ²)", "δ_f²ₜ = ∂C/∂c²ₜ ⊙ c²ₜ₋₁ ⊙ f²ₜ ⊙ (1−f²ₜ)",
    "∇U² = Σₜ δ²ₜa²ₜ₋₁ᵀ",
]  # fmt: skip


def test_a_recurrence_is_written_step_by_step():
    assert set(LSTM) <= set(said(of(j.lstm(2), image(3, 2))))


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, each in makers("layer").items()
        if each.examples and name not in ("feedback", "dot_product_attention")
    ],
)
def test_every_layer_is_explained_by_its_lines(name):
    subject = named(name)
    derivation = derive(observe(subject.net, subject.loss, subject.params, at(subject.xs, 0), subject.ys[0]))
    assert derivation.checked.ok
    assert [written(each.left) for each in (*derivation.forward, *derivation.backward) if each.opaque] == []


# --------------------------------------------------------------------------------------- a wrong backward pass


def test_a_wrong_backward_inside_a_block_is_seen():
    right = j.dense(4)
    wrong = right._replace(backward=lambda *args: (lambda dx, reading: (2 * dx, reading))(*right.backward(*args)))
    assert of(j.residual(right), image(4)).checked.ok
    found = of(j.residual(j.serial(j.dense(4), wrong)), image(4))
    assert {"e2_1", "delta2_1"} & {key for key, far in found.checked.by_key.items() if not far <= 256}


# ----------------------------------------------------------------------------------------- what is inside


@pytest.fixture(scope="module")
def stack():
    """Three blocks x + dense(norm x) at the positions of a sequence, and a head."""
    block = j.residual(j.serial(j.layer_norm(), j.per_position(j.serial(j.dense(3), j.relu))))
    net = j.serial(j.embedding(5, 3), j.repeat(block, 3), j.per_position(j.dense(5, bias=False)))
    tokens = jnp.asarray([1, 4, 1], jnp.int32)
    return of(net, tokens, loss=j.softmax_cross_entropy, y=jnp.asarray([4, 1, 0], jnp.int32))


STACK = """\
3 tokens —embedding→ 3×3, 3 blocks —dense→ 3×5
a²ₜ = W²[xₜ]
a³·¹ = blocks 1 to 2(a²)
‖out‖ of each block:
block 3 of 3
3.2 layer_norm
3.3 dense 3 at every position
z³·³ₜ = W³·³a³·²ₜ + b³·³
a³·³ = relu(z³·³)
3.4 a sum of two ways
a³ = a³·¹+a³·³
z⁴ₜ = W⁴a³ₜ
δ³·³ = ∂C/∂a³·³ ⊙ relu′(z³·³)
∇W³·³ = Σₜ δ³·³ₜa³·²ₜᵀ
∂C/∂a³·¹ = ∂C/∂a³ + e³·²
two ways lead from here to C, so 2 errors add up
∂C/∂a² = blocks 2 to 1, back(∂C/∂a³·¹)
∇W² = Σₜ unit(xₜ)∂C/∂a²ₜᵀ
2 of 5 rows get an error, the others none"""


def test_a_stack_is_opened_at_its_last_block(stack):
    text = overview(stack, width=110)
    for each in STACK.splitlines():
        assert each in text, each
    assert stack.checked.ok
    assert max(map(len, text.splitlines())) <= 110


def test_errors_of_two_ways_add_up(stack):
    found = lines(stack)
    np.testing.assert_allclose(found["da3_1"].value, found["da3"].value + found["e3_2"].value, rtol=1e-5)


def test_every_notation_numbers_what_is_inside():
    observed = observed_of(j.residual(j.serial(j.dense(3), j.tanh)), image(3))
    ng = {written(line.left) for line in derive(observed, notation("ng", weights="in-out")).backward}
    assert {"dz[1.1]", "dW[1.1]", "dx"} <= ng
    assert len(opened(observed.items[0])) == 3


def test_one_weight_used_twice_has_the_sum_of_both_gradients():
    found = of(j.tied(j.dense(3), j.tanh, j.dense(3), where=(0, 2)), image(3))
    values = lines(found)
    np.testing.assert_allclose(values["dW2"].value, values["dW2_1"].value + values["dW2_2"].value, rtol=1e-5)
    assert found.checked.ok


def test_titles_say_what_changes_the_shape():
    titles = {
        "6×6×1 —conv2d 3×3→ 4×4×2 relu —max_pool 2→ 2×2×2 → 8 → 3": j.serial(
            j.conv2d(2, 3), j.relu, j.max_pool(2), j.flatten(), j.dense(3)
        ),
        "6×6×1, a block —global_average_pool→ 1": j.serial(j.repeat(j.residual(j.conv2d(1, 1)), 1),
                                                           j.global_average_pool()),
    }  # fmt: skip
    assert [of(net, image(6, 6, 1)).header.title for net in titles.values()] == list(titles)


@pytest.fixture(scope="module")
def normalised():
    """batch_norm over three examples, in training."""
    subject = named("batch_norm", inputs="float32[4]")
    return derive(observe(subject.net, subject.loss, subject.params, at(subject.xs, 0), subject.ys[0]))


def test_batch_norm_in_training_is_every_step_over_a_batch(normalised):
    equations = set(said(normalised))
    assert {
        "μ²·² = E(z²·¹)", "v²·² = E((z²·¹−μ²·²)²)", "σ²·² = √(v²·²+10⁻⁵)", "x̂²·²ᵢ = (z²·¹ᵢ−μ²·²)/σ²·²",
        "∂C/∂x̂²·²ᵢ = γ²·² ⊙ ∂C/∂a²ᵢ", "∇γ²·² = Σᵢ ∂C/∂a²ᵢ ⊙ x̂²·²ᵢ",
        "δ²·¹ᵢ = (∂C/∂x̂²·²ᵢ − E(∂C/∂x̂²·²) − x̂²·²ᵢ ⊙ E(∂C/∂x̂²·² ⊙ x̂²·²))/σ²·²",
    } <= equations  # fmt: skip
    found = lines(normalised)
    np.testing.assert_allclose(found["mu2_2"].value, found["z2_1"].value.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found["delta2_1"].value.sum(0), 0, atol=1e-6)  # the mean is taken off
    assert normalised.checked.ok


def test_softmax_with_cross_entropy_is_the_output_minus_the_class():
    subject = named("softmax_cross_entropy")
    found = derive(observe(subject.net, subject.loss, subject.params, at(subject.xs, 0), subject.ys[0]))
    assert "∂C/∂x = softmax(a²) − y" in said(found)
    assert found.header.y.sum() == 1
    assert "softmax's Jacobian turns −y/p, the slope by p, into p − y" in found.backward[0].remarks


def test_a_weight_of_attention_serves_every_position():
    found = of(j.attention(2), image(5, 6))
    [note] = lines(found)["dW_o2"].notes
    assert note.startswith("a weight serves all 5 positions, one path by each; ")
