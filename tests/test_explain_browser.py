"""The page of `jaxnet explain --html` as a reader meets it: opened, read, and changed by mouse and keyboard."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnet
from jaxnet.explaining import live, observe
from jaxnet.explaining.formulas.formula_values import FUNCTIONS
from jaxnet.explaining.history import History, Moment
from jaxnet.explaining.notation import notation
from jaxnet.explaining.page import write_page
from jaxnet.layers import dense, elu, identity, leaky_relu, relu, sigmoid
from jaxnet.layers.activations import ACTIVATIONS
from jaxnet.losses import quadratic, softmax_cross_entropy
from jaxnet.readings import product
from tests.problems import LOSSES
from tests.test_explaining_formulas import FORMULAS

pytestmark = pytest.mark.peers

PEERS = "needs the extra `peers`: pip install -e '.[peers]'"
W2, b2 = [[-0.2, 0.2], [-0.8, 0.1], [-0.4, 0.7]], [0.2, 0.3, 0.3]
W3, b3 = [[0.2, 0.9, -0.7], [-0.1, -0.4, 0.3]], [-0.3, -0.3]
NET = jaxnet.serial(dense(3), relu, dense(2), sigmoid)
PARAMS = ({"W": jnp.asarray(W2), "b": jnp.asarray(b2)}, (), {"W": jnp.asarray(W3), "b": jnp.asarray(b3)}, ())
TRACE = jax.jit(jaxnet.trace(NET, quadratic))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The page of the 2-3-2 network with a run behind it, and that of a wide one."""
    folder = tmp_path_factory.mktemp("pages")
    small = observe(NET, quadratic, PARAMS, jnp.asarray([1.0, 2.0]), jnp.asarray([1.0, 0.0]))
    history = History(
        tuple(Moment(10 * i, i, jax.tree.map(lambda t, k=k: t * k, PARAMS)) for i, k in enumerate((0.5, 1.0))),
        ({"epoch": 1, "train_loss": 0.3, "test_accuracy": 0.75},),
    )
    write_page(folder / "small.html", small, notation(), source="two_three_two.toml", run=history)
    wide = jaxnet.serial(dense(200), relu, dense(10))
    params = jaxnet.initialize(wide, softmax_cross_entropy, jax.random.key(0), jnp.ones(20))
    write_page(
        folder / "wide.html", observe(wide, softmax_cross_entropy, params, jnp.ones(20), jnp.asarray(3)), notation()
    )
    square = jaxnet.serial(dense(8), relu, dense(8))
    params = jaxnet.initialize(square, quadratic, jax.random.key(0), jnp.ones(8))
    write_page(folder / "square.html", observe(square, quadratic, params, jnp.ones(8), jnp.zeros(8)), notation())
    return folder


@pytest.fixture(scope="module")
def opened(browser, files):
    """The small page, opened once: each test begins with the numbers as given."""
    tab = browser.new_page(viewport={"width": 1600, "height": 1000}, reduced_motion="reduce")
    tab.problems = []
    tab.on(
        "console", lambda message: tab.problems.append(message.text) if message.type in ("error", "warning") else None
    )
    tab.on("pageerror", lambda error: tab.problems.append(str(error)))
    tab.goto((files / "small.html").as_uri())
    return tab


@pytest.fixture
def tab(opened):
    yield opened
    opened.set_viewport_size({"width": 1600, "height": 1000})
    if opened.locator("#reset").is_visible():
        opened.locator("#reset").click()
    assert opened.problems == []


def values(tab, name):
    return np.asarray(tab.evaluate("name => window.jaxnet.values[name]", name), np.float64)


def shown(tab, name):
    """The text of an array or a number where it is first shown."""
    return tab.locator(f'[data-a="{name}"], [data-n="{name}"]').first.inner_text().replace("\n", " ")


def holds(tab):
    """All that the page computes, against jaxnet at the page's own parameters; gives the cost."""
    spec = tab.evaluate("window.jaxnet.spec")
    params = tuple(
        {name: jnp.asarray(each[name], jnp.float32) for name in "Wb"} if each["kind"] == "dense" else ()
        for each in spec["layers"]
    )
    x, y = (jnp.asarray(spec[each], jnp.float32) for each in "xy")
    traced = TRACE(params, x, y)
    for i, step in enumerate(traced.steps):
        np.testing.assert_allclose(values(tab, f"out.{i}"), step.out, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(values(tab, f"err.{i}"), step.delta, rtol=2e-5, atol=1e-6)
    for i, taken in ((0, x), (2, traced.steps[1].out)):
        expected = np.outer(traced.steps[i].delta, taken)
        np.testing.assert_allclose(values(tab, f"dW.{i}"), expected, rtol=2e-5, atol=1e-6)
        back = np.asarray(params[i]["W"]).T @ np.asarray(traced.steps[i].delta)
        np.testing.assert_allclose(values(tab, f"why.{i}.back"), back, rtol=2e-5, atol=1e-6)
        other = np.linalg.pinv(np.asarray(params[i]["W"])) @ np.asarray(traced.steps[i].delta)
        np.testing.assert_allclose(values(tab, f"why.{i}.other"), other, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(values(tab, "C"), traced.cost, rtol=2e-5)
    return float(traced.cost)


def texts(tab):
    return tab.evaluate("[...document.querySelectorAll('[data-a], [data-n]')].map(each => each.textContent)")


def test_formulas_and_drawing_are_laid_out(tab):
    """Every formula that is not hidden has a size; so have the drawing's units and edges."""
    boxes = tab.evaluate(
        """[...document.querySelectorAll("math, .unit circle, .edge")].filter(each => !each.closest("[hidden]"))
        .map(each => [each.getBoundingClientRect().width, each.getBoundingClientRect().height])"""
    )
    assert len(boxes) > 100
    assert np.min(boxes) >= 0
    assert np.all(np.max(boxes, axis=1) > 4)
    fraction, letter = (
        tab.locator(f"#backward math:has({each})").first.bounding_box()["height"] for each in ("mfrac", "msup")
    )
    assert fraction > 1.25 * letter, "MathML is laid out as mathematics: a fraction stands higher than a letter"


def test_as_given_the_page_computes_what_jaxnet_did(tab):
    assert holds(tab) == pytest.approx(0.4170, abs=1e-4)


def test_dragging_an_edge_changes_the_numbers_to_jaxnet_s(tab):
    before = shown(tab, "out.3")
    edge = tab.locator('.edge[data-e="2"][data-k="0"]')
    box = edge.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    tab.mouse.move(x, y)
    tab.mouse.down()
    tab.mouse.move(x, y - 40, steps=4)
    tab.mouse.up()
    assert tab.evaluate("window.jaxnet.spec.layers[2].W[0][0]") == pytest.approx(0.6)
    cost = holds(tab)
    assert shown(tab, "C").removeprefix(".") == f"{cost:.4f}"[2:]
    assert shown(tab, "out.3") != before
    assert tab.locator("body.changed").count() == 1


def test_typing_and_arrow_keys_change_a_weight_and_an_input(tab):
    field = tab.locator('[data-f="W.0"][data-k="5"]')
    field.fill("-1.25")
    assert tab.evaluate("window.jaxnet.spec.layers[0].W[2][1]") == -1.25
    first = holds(tab)
    tab.locator('[data-f="x"][data-k="0"]').focus()
    tab.keyboard.press("ArrowUp")
    tab.keyboard.press("ArrowUp")
    assert tab.evaluate("window.jaxnet.spec.x[0]") == pytest.approx(1.1)
    assert holds(tab) != first


def test_the_slider_moves_the_chosen_weight_by_keyboard_and_mouse(tab):
    tab.locator('[data-f="W.2"][data-k="0"]').click()
    assert "W³₁₁ = .20" in tab.locator("#chosen").inner_text()
    slider = tab.locator("#slider")
    slider.focus()
    for _ in range(5):
        tab.keyboard.press("ArrowLeft")
    assert tab.evaluate("window.jaxnet.spec.layers[2].W[0][0]") == pytest.approx(0.15)
    by_keys = holds(tab)
    box = slider.bounding_box()
    tab.mouse.click(box["x"] + 0.2 * box["width"], box["y"] + box["height"] / 2)
    assert tab.evaluate("window.jaxnet.spec.layers[2].W[0][0]") < -0.5
    assert holds(tab) != by_keys


def test_what_is_said_of_units_follows_the_numbers(tab):
    """Which units are off, and the slopes as a matrix, at the numbers of now."""
    off, slopes = (tab.locator(f'[data-remark="{name}"]') for name in ("off.1", "slopes.1"))
    assert (off.inner_text(), slopes.inner_text()) == ("unit 2 is off", "as a matrix relu′ = diag(1,0,1)")
    tab.locator('[data-f="x"][data-k="0"]').fill("-2")
    on = values(tab, "out.1") > 0
    assert on.tolist() == [True, True, True]
    assert (off.text_content(), slopes.inner_text()) == ("", "as a matrix relu′ = diag(1,1,1)")
    for k, value in ((0, "-9"), (2, "-9")):
        tab.locator(f'[data-f="b.0"][data-k="{k}"]').fill(value)
    assert (off.inner_text(), slopes.inner_text()) == ("units 1, 3 are off", "as a matrix relu′ = diag(0,1,0)")


def test_a_step_downhill_applies_the_gradient(tab):
    """W − ½ ∇W and b − ½ ∇b of every layer: the cost falls, and the numbers are jaxnet's there."""
    first, dW, db = holds(tab), values(tab, "dW.2"), values(tab, "db.0")
    tab.locator("#step").click()
    np.testing.assert_allclose(tab.evaluate("window.jaxnet.spec.layers[2].W"), np.asarray(W3) - dW / 2, atol=1e-9)
    np.testing.assert_allclose(tab.evaluate("window.jaxnet.spec.layers[0].b"), np.asarray(b2) - db / 2, atol=1e-9)
    costs = [first, holds(tab)]
    for _ in range(5):
        tab.locator("#step").click()
        costs.append(holds(tab))
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < 0.9 * costs[0]
    assert tab.locator("#cost-now").inner_text().startswith("cost .4170 → .")


def test_an_edge_highlights_no_other(tab):
    """Hovering a weight in the drawing marks no weight of the same place in another layer."""
    tab.locator('.edge[data-e="2"][data-k="0"]').hover(force=True)
    assert tab.locator(".same").count() == 0


def test_dragging_a_field_changes_it(tab):
    field = tab.locator('[data-f="b.2"][data-k="1"]')
    field.scroll_into_view_if_needed()
    box = field.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    tab.mouse.move(x, y)
    tab.mouse.down()
    tab.mouse.move(x + 30, y, steps=3)
    tab.mouse.up()
    assert tab.evaluate("window.jaxnet.spec.layers[2].b[1]") == pytest.approx(0.0, abs=1e-6)
    holds(tab)


def test_the_script_writes_numbers_as_the_program_does(tab):
    """After a change and back all texts are what Python had written."""
    before = texts(tab)
    tab.locator('[data-f="x"][data-k="1"]').fill("3.5")
    assert texts(tab) != before
    tab.locator("#reset").click()
    after = texts(tab)
    assert [(a, b) for a, b in zip(before, after, strict=True) if a != b] == []


def test_the_layer_picker_works_by_keyboard_and_mouse(tab):
    def asked():
        return tab.locator("#why [data-layer]:not([hidden]) h2").inner_text()

    third = asked()
    tab.locator('input[name="layer"]:checked').focus()
    tab.keyboard.press("ArrowLeft")
    assert asked() != third
    assert tab.locator("#questions dl:not([hidden]) dt").first.inner_text() == "Is W²ᵀ the inverse of W²?"
    tab.locator('label:has(input[name="layer"][value="2"])').click()
    assert asked() == third


def test_notations_switch_the_symbols_and_keep_the_numbers(tab):
    before = shown(tab, "err.2")
    tab.locator('label:has(input[value="ng"])').click()
    assert tab.locator('input[name="numbering"]:checked').input_value() == "0"  # Ng's input is layer 0
    assert tab.locator("#formula").get_attribute("placeholder") == "W2.T @ delta2"
    assert tab.locator("#backward .eq").first.text_content().startswith("dz[2]")
    assert tab.locator(".unit .name").nth(2).text_content() == "a[1]₁"
    assert shown(tab, "err.2") == before
    tab.locator('label:has(input[value="in-out"])').click()
    assert shown(tab, "dW.2").split()[:2] == ["−.0558", ".0512"]
    tab.locator('[data-f="W.2"][data-k="2"]').fill("0.25")
    holds(tab)
    turned = values(tab, "dW.2").T.reshape(-1)
    assert [float(each.replace("−", "-")) for each in shown(tab, "dW.2").split()] == pytest.approx(turned, abs=6e-5)
    for value in ("nielsen", "out-in"):
        tab.locator(f'label:has(input[value="{value}"])').click()
    tab.locator('label:has(input[name="numbering"][value="1"])').click()


def test_the_drawing_shows_weights_error_and_blame(tab):
    def widths():
        return tab.evaluate("[...document.querySelectorAll('.edge')].map(each => getComputedStyle(each).strokeWidth)")

    seen = []
    for mode in ("error", "blame", "weights"):
        tab.locator(f'label:has(input[value="{mode}"])').click()
        seen.append(widths())
    assert seen[0] != seen[1] != seen[2] != seen[0]
    plain = ~np.asarray(
        tab.evaluate("[...document.querySelectorAll('.edge')].map(each => each.matches('.now, .lit, :hover'))")
    )
    blame = np.abs(np.concatenate([values(tab, "dW.0").reshape(-1), values(tab, "dW.2").reshape(-1)]))
    measured = [float(each.removesuffix("px")) for each in seen[1]]
    np.testing.assert_allclose(np.asarray(measured)[plain], (0.5 + 5 * blame / blame.max())[plain], atol=0.02)
    assert plain.sum() >= 10


def test_a_unit_s_paths_have_their_products_and_sum_and_a_weight_has_one(tab):
    said = tab.locator("#paths-said")
    tab.locator('.unit[data-z="0"][data-k="0"]').click()
    assert said.inner_text().endswith("−.139 × .200 + .128 × −.100 = −.041.")
    assert tab.locator(".product").all_text_contents() == ["−.028", "−.013"]
    assert tab.locator(".edge.lit").count() == 2
    tab.locator('.unit[data-z="0"][data-k="1"]').click()
    assert "Its gate is closed: g′ = 0" in said.inner_text()
    tab.locator('[data-f="W.2"][data-k="2"]').focus()
    assert said.inner_text().endswith("−.139 × 1.300 = −.181: no sum.")
    assert tab.locator(".product").all_text_contents() == ["−.139 × 1.300"]
    tab.locator('[data-f="x"][data-k="1"]').fill("3")  # what is lit follows the numbers
    tab.locator('[data-f="W.2"][data-k="2"]').focus()
    gradient = values(tab, "dW.2")[0, 2]
    assert float(said.inner_text().split(" = ")[1].split(":")[0].replace("−", "-")) == pytest.approx(gradient, abs=6e-4)
    tab.keyboard.press("Escape")
    assert tab.locator(".lit").count() == tab.locator(".product").count() == 0


def test_the_walk_lights_what_its_sentences_are_about(tab):
    tab.reload()
    seen = {}
    for _ in range(tab.locator("#walk li").count()):
        title = tab.locator("#walk li:not([hidden]) h3").inner_text()
        products = [
            float(each.replace("−", "-")) for each in tab.locator(".product").all_text_contents() if "×" not in each
        ]
        seen[title] = (tab.locator(".edge.lit").count(), tab.locator(".unit.lit").count(), products)
        if tab.locator("#walk-next").is_enabled():
            tab.locator("#walk-next").click()
    assert tab.locator("#walk-at").inner_text() == "10 of 10"
    assert seen["One weight, one path"][:2] == (1, 2)
    assert seen["All weights"][:2] == (6, 5)
    assert seen["relu′ is a gate"][:2] == (0, 3)
    back = values(tab, "why.2.back")
    edges, units, products = seen["One unit, several paths"]
    assert (edges, units) == (2, 3)
    assert sum(products) == pytest.approx(back[0], abs=2e-3)
    np.testing.assert_allclose(np.reshape(seen["The sum runs along a column"][2], (3, 2)).sum(1), back, atol=2e-3)
    tab.locator("#walk-back").click()
    assert tab.locator("#walk li:not([hidden]) h3").inner_text() == "The other layout"


@pytest.mark.parametrize("width", [360, 800])
def test_picture_and_sentence_are_seen_together_on_a_narrow_screen(tab, width):
    tab.set_viewport_size({"width": width, "height": 740})
    tab.reload()
    tab.locator("#walk-next").click()
    tab.locator("#walk li:not([hidden]) p").last.scroll_into_view_if_needed()
    for shown in (".drawing svg", "#walk li:not([hidden]) h3"):
        box = tab.locator(shown).bounding_box()
        assert box["y"] >= -1, shown
        assert box["y"] + box["height"] <= 741, shown


def test_the_error_goes_back_step_by_step(tab):
    said = tab.locator("#paths-said")
    tab.locator("#stage-next").click()
    assert said.inner_text() == "1 of 7. The error starts at the cost: ∂C/∂C = 1."
    assert tab.locator(".node.cost.lit").count() == 1
    assert tab.locator("#forward .line.cost.now").count() == 1
    tab.locator("#stage-next").click()
    slopes = values(tab, "err.3")
    assert [float(each.replace("−", "-")) for each in tab.locator(".product").all_text_contents()] == pytest.approx(
        slopes, abs=6e-4
    )
    assert tab.locator(".to-cost.lit").count() == 4
    for n, lit in enumerate(((2, 0), (2, 6), (5, 6), (5, 12), (7, 12)), 3):
        tab.locator("#stage-next").click()
        assert said.inner_text().startswith(f"{n} of 7. ")
        assert (tab.locator(".unit.lit").count(), tab.locator(".edge.lit").count()) == lit
    assert not tab.locator("#play").is_visible(), "motion is not wanted here"
    tab.locator("#stage").focus()
    tab.keyboard.press("Home")
    assert said.inner_text().startswith("1 of 7. ")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    assert tab.locator('#backward .line.now [data-k="delta3"]').count() > 0
    tab.locator('label:has(input[value="weights"])').click()
    tab.keyboard.press("Escape")


def test_the_error_plays_where_motion_is_welcome(browser, files):
    moving = browser.new_page(reduced_motion="no-preference")
    moving.goto((files / "small.html").as_uri())
    moving.locator("#play").click()
    assert moving.locator("#play").inner_text() == "Pause"
    moving.wait_for_function("document.querySelector('#paths-said').textContent.startsWith('2 of 7')")
    assert moving.evaluate("getComputedStyle(document.querySelector('.flowing')).animationName") == "flow"
    moving.emulate_media(reduced_motion="reduce")
    moving.wait_for_function("document.querySelector('#play').hidden")
    assert moving.locator(".flowing").count() == 0
    moving.close()


def test_cost_and_target_are_nodes(tab):
    """By mouse and keyboard: the slopes at the output, and the target dragged."""
    said = tab.locator("#paths-said")
    tab.locator(".node.cost").focus()
    tab.keyboard.press("Enter")
    assert said.inner_text().endswith("how fast it rises with that output: −.756, .512.")
    node = tab.locator('.node.target[data-k="0"]')
    box = node.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.7
    tab.mouse.move(x, y)
    tab.mouse.down()
    tab.mouse.move(x, y + 20, steps=4)
    tab.mouse.up()
    assert tab.evaluate("window.jaxnet.spec.y[0]") == pytest.approx(0.6)
    cost = holds(tab)
    assert node.locator(".act").text_content() == ".600"
    assert tab.locator(".node.cost .act").text_content() == f"{cost:.3f}"[1:]
    tab.locator('.unit[data-z="0"][data-k="0"]').focus()
    tab.keyboard.press(" ")
    assert "reaches the cost by 2 paths" in said.inner_text()
    tab.keyboard.press("Escape")


def test_a_link_holds_the_edited_numbers(browser, files):
    """Inputs, weights, biases and the target; the numbers of the page that it opens are jaxnet's."""
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"], reduced_motion="reduce")
    first = context.new_page()
    first.goto((files / "small.html").as_uri())
    for name, k, value in (("x", 0, "-2"), ("W.2", 2, "0.25"), ("b.0", 1, "1e-3"), ("y", 1, "0.5")):
        first.locator(f'[data-f="{name}"][data-k="{k}"]').fill(value)
    cost, shown_there = holds(first), texts(first)
    first.locator("#copy").click()
    first.wait_for_function("document.querySelector('#link-said').textContent.startsWith('Copied')")
    address = first.evaluate("navigator.clipboard.readText()")
    assert address.endswith("small.html#x.0=-2&b.0.1=0.001&W.2.2=0.25&y.1=0.5")
    second = context.new_page()
    second.goto(address)
    assert holds(second) == cost
    assert texts(second) == shown_there
    assert second.evaluate("window.jaxnet.spec") == first.evaluate("window.jaxnet.spec")
    assert second.locator("body.changed").count() == 1
    second.locator('nav a[href="#why"]').click()
    assert holds(second) == cost, "a link to a section keeps the numbers"
    second.locator("#reset").click()
    second.wait_for_function("!location.hash.includes('=')")
    second.locator('[data-f="x"][data-k="0"]').fill("3")  # not kept yet when the next address comes
    cost = holds(second)
    second.goto((files / "small.html").as_uri() + "#x.7=1")
    second.wait_for_function("document.querySelector('#link-said').textContent.includes('“x.7=1” fits no number')")
    second.wait_for_timeout(400)  # longer than numbers wait to be kept
    assert "“x.7=1” fits no number" in second.locator("#link-said").inner_text()
    assert holds(second) == cost
    context.close()


def test_the_exercise_is_graded_by_the_program_s_table(tab):
    """Every answer of the table, filled in: the right ones pass, a mistake gets the checker's hints in order."""
    tab.reload()
    tables = tab.evaluate("JSON.parse(document.getElementById('data').textContent).tasks")
    assert len(tables) == 7
    for i, table in enumerate(tables):
        form = tab.locator(f'[data-task="{i}"]')

        def answered(answer, form=form, table=table):
            if "value" in answer:
                for field, value in zip(form.locator("input").all(), answer["value"], strict=True):
                    field.fill(f"{value:.4f}".replace("-", "−"))
            else:
                form.locator("input").nth(table["answers"].index(answer)).check()
            form.locator("button").click()
            return form.locator(".verdict").inner_text()

        attempt = 0
        for answer in sorted(table["answers"], key=lambda each: not each["hints"]):
            for _ in answer["hints"][attempt:]:
                assert answered(answer) == answer["hints"][min(attempt, len(answer["hints"]) - 1)]
                attempt += 1
        right = next(each for each in table["answers"] if not each["hints"])
        assert answered(right).startswith("Right.")
    assert tab.locator("#score").inner_text() == "7 of 7 done, 0 right at once."


@pytest.mark.parametrize(
    ("formula", "verdict"),
    [
        ("W3.T @ delta3", "Right: this is da2, 3×1: (−.0407 −.1768 .1361)."),
        ("W3ᵀδ³ ⊙ relu′(z²)", "Right: this is delta2, 3×1: (−.0407 0 .1361)."),
        ("delta3 @ a2", "First misfit: 2×1 @ 3×1 does not fit: 1 column on the left, 3 rows on the right."),
        ("relu'(z2) * x", "First misfit: 3×1 * 2×1 does not fit: entry by entry (*) needs equal shapes."),
        ("delta3.T @ W3", "Right in row, or numerator, layout: its transpose is da2."),
        ("2 * delta3", "The shapes fit, but the value is 2.0000 times delta3."),
        ("W2.T @ W3.T @ delta3", "but the value is none of them"),
        ("(a3-y*y)*a3*(1-a3)", "This is delta3 here by chance, and not at other numbers."),
        ("W4 @ x", "The network has no W4: did you mean W2, W3"),
        ("detla3 @ x.T", "The network has no detla3: did you mean delta3?"),
        ("qqqqq @ x", "The network has no qqqqq: there are x, y, z2"),
        ("W3 @ (", "The formula ends where a factor should follow."),
        ("a2 $ y", "'$' has no meaning in a formula"),
    ],
)
def test_a_formula_is_judged_at_once(tab, formula, verdict):
    tab.locator("#formula").fill(formula)
    assert verdict in tab.locator("#verdict").inner_text()


def test_the_box_judges_every_formula_of_the_list_as_the_command_does(tab):
    script = "rows => rows.map(([text,,, lies, first]) => trying.judge(text, jaxnet.spec, first, lies === 'in-out'))"
    found = tab.evaluate(script, FORMULAS)
    wrong = [
        (text, each)
        for (text, verdict, quantity, *_), each in zip(FORMULAS, found, strict=True)
        if each["verdict"] != verdict or (verdict == "right" and each["quantity"] != quantity)
    ]
    assert wrong == []
    assert set(tab.evaluate("trying.functions")) == set(FUNCTIONS)


def test_the_run_s_slider_shows_each_moment(tab):
    slider = tab.locator("#moment")
    slider.focus()
    tab.keyboard.press("ArrowLeft")
    assert tab.locator("#moment-said").inner_text().startswith("step 0, epoch 0: C ")
    assert tab.evaluate("window.jaxnet.spec.layers[0].W[1][0]") == pytest.approx(-0.4)
    cost = holds(tab)
    assert f"C {cost:.4f}".replace("C 0.", "C .") in tab.locator("#moment-said").inner_text()
    box = slider.bounding_box()
    tab.mouse.click(box["x"] + box["width"] - 3, box["y"] + box["height"] / 2)
    assert tab.locator("#moment-said").inner_text() == "step 10, epoch 1: C .4170, accuracy 75.0 %"


def luminance(color):
    """Of "rgb(r, g, b)", as WCAG 2 has it."""
    shares = [int(each) / 255 for each in color.removeprefix("rgb(").removesuffix(")").split(", ")]
    linear = [each / 12.92 if each <= 0.03928 else ((each + 0.055) / 1.055) ** 2.4 for each in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def marked(tab):
    return set(tab.evaluate("[...document.querySelectorAll('.same')].map(each => each.dataset.k)"))


def test_a_symbol_is_highlighted_wherever_it_stands(tab):
    """By the mouse as long as it is over it; by a click or the list until another is chosen."""
    tab.locator('#forward .eq [data-k="W3"]').first.hover()
    assert marked(tab) == {"W3"}
    assert tab.locator(".same").count() == tab.locator('[data-k="W3"]').count() > 5
    tab.locator("h1").hover()
    assert marked(tab) == set()
    tab.locator("#mark").focus()
    tab.keyboard.press("ArrowDown")
    first = marked(tab)
    assert first == {"z2"}
    tab.locator('#backward .eq [data-k="delta3"]').first.click()
    tab.locator("h1").hover()
    assert marked(tab) == {"delta3"}
    for theme in ("light", "dark"):
        tab.emulate_media(color_scheme=theme)
        ink, paper = tab.evaluate(
            "(style => [style.color, style.backgroundColor])(getComputedStyle(document.querySelector('.same')))"
        )
        dark, light = sorted((luminance(ink), luminance(paper)))
        assert (light + 0.05) / (dark + 0.05) >= 4.5
    tab.emulate_media(color_scheme="light")
    tab.locator("#mark").select_option("")
    assert marked(tab) == set()


@pytest.mark.parametrize("name", ["small", "wide"])
def test_no_page_is_wider_than_its_window(browser, files, name):
    """360 and 1600 pixels, no error in the console."""
    tab = browser.new_page(viewport={"width": 360, "height": 800})
    problems = []
    tab.on("console", lambda message: problems.append(message.text))
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.goto((files / f"{name}.html").as_uri())
    for width in (360, 1600):
        tab.set_viewport_size({"width": width, "height": 800})
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.close()
    assert problems == []


@pytest.mark.parametrize("width", [1000, 1100, 1600])
def test_no_value_lies_on_its_remark(browser, files, width):
    """Matrices of eight columns among them."""
    tab = browser.new_page(viewport={"width": width, "height": 800})
    tab.goto((files / "square.html").as_uri())
    overlaps = tab.evaluate(
        """[...document.querySelectorAll(".line")].filter(line => line.querySelector(".remark")).map(line =>
        [Math.max(...[...line.querySelectorAll(".value *")].map(each => each.getBoundingClientRect().right)),
         line.querySelector(".remark").getBoundingClientRect().left])"""
    )
    tab.close()
    assert len(overlaps) > 8
    assert [each for each in overlaps if each[0] > each[1]] == []


@pytest.mark.parametrize(
    ("name", "width", "theme"), [("small", 360, "light"), ("small", 1600, "dark"), ("wide", 1600, "light")]
)
def test_axe_finds_nothing_serious(browser, files, name, width, theme):
    """Contrast AA in both themes among it."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=PEERS)
    tab = browser.new_page(viewport={"width": width, "height": 1000}, color_scheme=theme)
    tab.goto((files / f"{name}.html").as_uri())
    found = axe.Axe().run(tab).response["violations"]
    tab.close()
    said = [(each["id"], each["impact"], [node["target"] for node in each["nodes"]][:3]) for each in found]
    assert [each for each in said if each[1] in ("serious", "critical")] == []


# --------------------------------------------------------------------------------------- network.js alone


def computed(tab, layers, loss, x, y):
    spec = {"layers": layers, "loss": loss, "x": x, "y": y, "asked": []}
    return tab.evaluate("spec => network.compute(spec)", spec)


def test_the_script_knows_the_activations_and_losses_that_it_is_given(tab):
    assert set(tab.evaluate("Object.keys(network.ACTIVATIONS)")) == live.ACTIVATIONS
    assert set(tab.evaluate("Object.keys(network.LOSSES)")) == live.LOSSES


def test_the_script_s_activations_are_jaxnet_s(tab):
    z = [-2.5, -0.5, 0.25, 1.5, 4.5]
    layers = {**ACTIVATIONS, "identity": identity, "leaky_relu": leaky_relu(0.2), "elu": elu(0.7)}
    assert layers.keys() == live.ACTIVATIONS
    for name, layer in layers.items():
        option = {"leaky_relu": 0.2, "elu": 0.7}.get(name, 0.0)
        found = computed(tab, [{"kind": "activation", "name": name, "option": option}], "quadratic", z, [0.0] * 5)
        a, saved = layer.forward((), jnp.asarray(z))
        dx, _ = layer.backward((), saved, a, product)
        np.testing.assert_allclose(found["out.0"], a, rtol=1e-5, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(found["err.-1"], dx, rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_script_s_losses_are_jaxnet_s(tab):
    y = [0.0, 1.0, 0.25]
    for name in live.LOSSES:
        x = [0.2, 0.7, 0.4] if name == "binary_cross_entropy" else [0.2, -1.7, 2.4]
        found = computed(tab, [{"kind": "activation", "name": "identity", "option": 0}], name, x, y)
        cost, dx, _ = LOSSES[name].turn((), jnp.asarray(x), jnp.asarray(y), 1.0, product)
        np.testing.assert_allclose(found["C"], cost, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(found["err.-1"], dx, rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_script_s_softmax_is_jaxnet_s(tab):
    z, y = [0.2, -1.7, 2.4], [0.0, 1.0, 0.0]
    found = computed(tab, [{"kind": "softmax"}], "quadratic", z, y)
    p, saved = jaxnet.layers.softmax.forward((), jnp.asarray(z))
    dx, _ = jaxnet.layers.softmax.backward((), saved, p - jnp.asarray(y), product)
    np.testing.assert_allclose(found["out.0"], p, rtol=1e-5)
    np.testing.assert_allclose(found["err.-1"], dx, rtol=1e-5, atol=1e-6)
