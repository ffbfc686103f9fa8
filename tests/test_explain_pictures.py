"""Pictures on the page: their numbers are the program's, as they lie in the page and as the reader points at them."""

import base64
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnet
from jaxnet.explaining import observe
from jaxnet.explaining.derive import chain_of
from jaxnet.explaining.notation import notation
from jaxnet.explaining.numbers import one
from jaxnet.explaining.page import page
from jaxnet.explaining.page_pictures import InputKind, pictures_of
from jaxnet.layers import attention, conv1d, conv2d, dense, embedding, flatten, relu
from jaxnet.losses import quadratic, softmax_cross_entropy

TEXT = "to be, or not"
CHARACTERS = "".join(sorted(set(TEXT)))


def observed_of(net, loss, x, y):
    params = jaxnet.initialize(net, loss, jax.random.key(2), x)
    params = jax.tree.map(lambda t: t + 0.1 * jax.random.normal(jax.random.key(3), t.shape), params)
    return observe(net, loss, params, x, y)


def rows():
    x = jax.random.uniform(jax.random.key(0), (12,))
    return observed_of(jaxnet.serial(dense(5), relu, dense(3)), softmax_cross_entropy, x, 1), InputKind((3, 4))


def convolutions():
    x = jax.random.normal(jax.random.key(0), (6, 7, 1))
    strided = conv2d(3, 3, stride=2, dilation=(1, 2))
    net = jaxnet.serial(conv2d(2, (3, 2), padding=1), relu, strided, flatten(), dense(4))
    return observed_of(net, softmax_cross_entropy, x, 1), InputKind()


def text():
    tokens = jnp.asarray([CHARACTERS.index(each) for each in TEXT], jnp.int32)
    heads = jaxnet.residual(attention(2, kv_heads=1, rotary=True))
    net = jaxnet.serial(embedding(len(CHARACTERS), 8), heads, jaxnet.per_position(dense(len(CHARACTERS))))
    return observed_of(net, softmax_cross_entropy, tokens, jnp.roll(tokens, -1)), InputKind(None, CHARACTERS)


def data_of(text):
    """What the page's script reads, its arrays decoded."""
    data = json.loads(re.search(r'id="pictures-data">(.*?)</script>', text, re.DOTALL)[1])
    arrays = {name: np.frombuffer(base64.b64decode(of), "<f4").reshape(shape)
              for name, (shape, of) in data["arrays"].items()}  # fmt: skip
    return arrays, data["figures"]


def test_the_numbers_of_pictures_are_those_of_the_program():
    observed, kind = rows()
    arrays, figures = data_of(page(observed, notation(), kind=kind))
    item = observed.items[0]
    assert [each["kind"] for each in figures] == ["input", "rows"]
    np.testing.assert_array_equal(arrays["x.-1.0"].reshape(-1), observed.x)
    for name, expected in {"W": item.params["W"], "b": item.params["b"], "z": item.out, "delta": item.d_out}.items():
        np.testing.assert_array_equal(arrays[f"{name}.0.0"], expected)


def test_a_convolution_s_numbers_and_window():
    observed, kind = convolutions()
    arrays, figures = data_of(page(observed, notation(), kind=kind))
    assert [each["kind"] for each in figures] == ["input", "window", "window"]
    for i in (0, 2):
        item = observed.items[i]
        expected = {"a": item.x, "W": item.params["W"], "z": item.out, "delta": item.d_out, "da": item.dx}
        for name, each in expected.items():
            np.testing.assert_array_equal(arrays[f"{name}.{i}.0"], each)
    assert (figures[1]["stride"], figures[1]["before"]) == ([1, 1], [1, 1])
    assert (figures[2]["stride"], figures[2]["dilation"]) == ([2, 2], [1, 2])


def test_a_sequence_is_an_image_of_one_row():
    x = jax.random.normal(jax.random.key(0), (7, 2))
    observed = observed_of(conv1d(3, 3, padding=1), quadratic, x, jnp.zeros((7, 3)))
    found = pictures_of(chain_of(observed, notation()), InputKind())
    assert {name: each.shape for name, each in found.arrays.items()} == {
        "a.0.0": (1, 7, 2), "W.0.0": (3, 1, 3, 2), "z.0.0": (1, 7, 3), "delta.0.0": (1, 7, 3), "da.0.0": (1, 7, 2),
        "b.0.0": (3,),
    }  # fmt: skip
    assert found.figures[0].data["before"] == (0, 1)


def test_attention_has_the_text_at_its_rows_and_columns():
    observed, kind = text()
    arrays, [figure] = data_of(page(observed, notation(), kind=kind))
    assert "".join(figure["labels"]) == TEXT
    P, dS = (next(each for name, each in arrays.items() if name.startswith(of)) for of in ("P", "dS"))
    assert P.shape == dS.shape == (2, len(TEXT), len(TEXT))
    np.testing.assert_allclose(P.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(dS.sum(-1), 0, atol=1e-7)
    item = observed.items[1]
    params, x, d_out = jax.tree.map(lambda t: np.asarray(t, np.float64), (item.params, item.x, item.d_out))

    def cost(shift):  # of one more on each score: the derivative by S
        def turned(t):
            at = np.arange(len(x))[:, None] * 10_000.0 ** -(np.arange(2) / 2)
            u, v = t[..., :2], t[..., 2:]
            at = at.reshape(len(x), *(1,) * (t.ndim - 2), 2)
            return jnp.concatenate([u * np.cos(at) - v * np.sin(at), u * np.sin(at) + v * np.cos(at)], -1)

        q, k = turned((x @ params["W_q"].T).reshape(len(x), 2, 4)), turned(x @ params["W_k"].T)
        S = jnp.einsum("thi,si->hts", q, k) / 2 + shift
        weights = jax.nn.softmax(jnp.where(np.tril(np.ones(S.shape[1:], bool)), S, -jnp.inf), axis=-1)
        o = jnp.einsum("hts,sj->thj", weights, x @ params["W_v"].T).reshape(len(x), -1)
        return jnp.sum(o @ params["W_o"].T * d_out), weights

    with jax.enable_x64(True):
        slope, weights = jax.grad(cost, has_aux=True)(jnp.zeros(P.shape))
    np.testing.assert_allclose(P, weights, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(dS, slope, rtol=1e-4, atol=1e-7)


def test_pictures_that_are_too_many_numbers_are_left_out():
    x = jax.random.normal(jax.random.key(0), (40, 40, 1))
    net = jaxnet.serial(conv2d(40, 3), relu, flatten(), dense(2))
    chain = chain_of(observed_of(net, softmax_cross_entropy, x, 1), notation())
    assert [each.kind for each in pictures_of(chain, InputKind()).figures] == ["input"]
    bare = page(observed_of(dense(2), quadratic, jnp.ones(3), jnp.ones(2)), notation())
    assert data_of(bare) == ({}, [])
    assert "Pictures" not in bare


# ------------------------------------------------------------------------------------------------ in the browser


@pytest.fixture(scope="module")
def opened(browser, tmp_path_factory):
    """A function that opens a page, at a width and in a theme."""
    folder = tmp_path_factory.mktemp("pictures")
    problems = []

    def open_(made, width=1600, theme="light"):
        file = folder / f"{made.__name__}.html"
        if not file.exists():
            observed, kind = made()
            file.write_text(page(observed, notation(), kind=kind), encoding="utf-8")
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
        tab.on("console", lambda message: problems.append(message.text))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.goto(file.as_uri())
        return tab

    yield open_
    assert problems == []


def point(tab, holder, shape, row, column):
    """Moves the mouse to a cell of a map."""
    canvas = tab.locator(f"{holder} canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y = ((at + 0.5) / count for at, count in ((column, shape[1]), (row, shape[0])))
    tab.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])


def grids(tab, holder):
    """The numbers of the small grids in a part of the page."""
    found = tab.locator(f"{holder} .taps").all()
    texts = [each.locator("span").all_inner_texts() for each in found]
    return [[float(each.replace("−", "-").replace("—", "0")) for each in grid] for grid in texts]


@pytest.mark.peers
def test_under_the_pointer_a_convolution_s_patch_and_on_the_way_back_the_flipped_kernel(opened):
    observed, _ = convolutions()
    tab = opened(convolutions)
    item, figure = observed.items[2], '[data-figure="2"]'
    tab.locator(f"{figure} select").nth(0).select_option("1")
    tab.locator(f"{figure} select").nth(1).select_option("2")
    forward, back = f"{figure} [data-way=forward]", f"{figure} [data-way=back]"
    point(tab, f"{forward} [data-map=z]", item.out.shape, 1, 1)
    patch, kernel, products = grids(tab, forward)
    np.testing.assert_allclose(patch, np.asarray(item.x)[2:5, 2:7:2, 1].reshape(-1), atol=1e-4)
    np.testing.assert_allclose(kernel, np.asarray(item.params["W"])[2, :, :, 1].reshape(-1), atol=1e-4)
    np.testing.assert_allclose(products, np.multiply(patch, kernel), atol=2e-4)
    said = tab.locator(f"{forward} .said").inner_text()
    assert said.startswith("At 2, 2 they add up to ")
    assert said.endswith(f": {one(float(item.out[1, 1, 2]))}.")
    row, column = 4, 3
    point(tab, f"{back} [data-map=da]", item.x.shape, row, column)
    _, kernel, products = grids(tab, back)
    flipped = np.asarray(item.params["W"])[2, ::-1, ::-1, 1]
    np.testing.assert_allclose(kernel, flipped.reshape(-1), atol=1e-4)
    total = 0.0
    for u in range(3):
        for v in range(3):
            p, q = (row - u) / 2, (column - 2 * v) / 2
            if p in range(item.out.shape[0]) and q in range(item.out.shape[1]):
                total += item.d_out[int(p), int(q), 2] * item.params["W"][2, u, v, 1]
    np.testing.assert_allclose(np.sum(products), total, atol=3e-4)
    assert tab.locator(f"{back} .said").inner_text().endswith(f": {one(float(item.dx[row, column, 1]))}.")
    tab.close()


@pytest.mark.peers
def test_rows_of_w_say_their_weight_product_and_gradient(opened):
    observed, _ = rows()
    item = observed.items[0]
    tab = opened(rows)
    tile = '[data-figure="1"] .tiles figure:nth-child(3) .map'
    point(tab, tile, (3, 4), 1, 2)
    w, x, delta = float(item.params["W"][2, 6]), float(observed.x[6]), float(item.d_out[2])
    said = tab.locator('[data-figure="1"] .said').inner_text()
    assert said.startswith(f"Row 3, pixel 2, 3: weight {one(w)} × input {one(x)} = {one(w * x)}; all 12 such products")
    assert f"add up to z = {one(float(item.out[2]))}." in said
    assert said.endswith(f"δ {one(delta)} × input {one(x)} = {one(float(item.grads['W'][2, 6]))}.")
    tab.locator(f"{tile} canvas").focus()
    tab.keyboard.press("ArrowRight")
    assert "Row 3, pixel 2, 4:" in tab.locator('[data-figure="1"] .said').inner_text()
    for mode, head in {"products": f"3 z {one(float(item.out[2]))}", "gradient": f"3 δ {one(delta)}"}.items():
        tab.locator(f'[data-figure="1"] input[value={mode}]').check(force=True)
        assert tab.locator('[data-figure="1"] .tiles figcaption').nth(2).inner_text() == head
    tab.close()


@pytest.mark.peers
def test_attention_names_the_characters_that_look_at_each_other(opened):
    tab = opened(text)
    observed, kind = text()
    arrays, _ = data_of(page(observed, notation(), kind=kind))
    P, dS = (next(each for name, each in arrays.items() if name.startswith(of)) for of in ("P", "dS"))
    tab.locator('[data-figure="0"] select').select_option("1")
    point(tab, '[data-figure="0"] [data-map=P]', P.shape[1:], 9, 2)
    expected = f"Query 10 “␣” looks at key 3 “␣”: {one(float(P[1, 9, 2]))} of the whole; "
    expected += f"the error at its score is {one(float(dS[1, 9, 2]))}."
    assert tab.locator('[data-figure="0"] .said').inner_text() == expected
    assert tab.locator('[data-figure="0"] .across').first.inner_text().split() == [*"to␣be,␣or␣not"]
    tab.close()


@pytest.mark.peers
@pytest.mark.parametrize("made", [rows, convolutions, text])
@pytest.mark.parametrize(("width", "theme"), [(360, "light"), (1600, "dark")])
def test_pages_with_pictures_fit_and_axe_finds_nothing_serious(opened, made, width, theme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the extra `peers`")
    tab = opened(made, width, theme)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    found = axe.Axe().run(tab).response["violations"]
    tab.close()
    said = [(each["id"], [node["target"] for node in each["nodes"]][:3]) for each in found
            if each["impact"] in ("serious", "critical")]  # fmt: skip
    assert said == []
