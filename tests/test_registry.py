"""A layer says what it is: `made`, the registry of makers, and what follows from them."""

import copy
import importlib
import pickle
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnet
from jaxnet import Layer, Loss, dense, feedback, heads, losses, models, registry, sigmoid
from jaxnet.cli.layer_listing import listed
from jaxnet.layer import Static, leaf, no_params, summary
from jaxnet.registry import example, found, maker, makers
from tests.implementations import check_against_autodiff
from tests.problems import Problem

ALL = makers("layer", "model", "loss")
EXAMPLES = [(entry, call) for entry in ALL.values() for call in entry.examples]
MADE = {call: example(entry, call) for entry, call in EXAMPLES}


def pieces(thing) -> tuple:
    """A network and its loss, or what an example makes by itself."""
    return (thing,) if isinstance(thing, Layer | Loss) else thing


@maker(examples={"doubled()": "float32[6]"})
def doubled(times: int = 2, mask=None) -> Layer:
    """out = times · x."""
    return leaf(
        "doubled", no_params, lambda p, x, key=None, train=False: (times * x, ()), lambda p, s, d: (times * d, ())
    )


@maker
def gate(block: Layer, *, init: str = "lecun_normal") -> Layer:
    """out = x ⊙ block(x)."""
    return jaxnet.parallel(jaxnet.identity, block, join="product")


@pytest.mark.parametrize("call", MADE)
def test_a_layer_prints_as_the_call_that_makes_it_compares_by_it_and_comes_back_from_pickle(call):
    entry = next(entry for entry, each in EXAMPLES if each == call)
    for first, second in zip(pieces(MADE[call]), pieces(example(entry, call)), strict=True):
        assert repr(first) == repr(second)
        assert repr(first).startswith(first.made.by.title)
        if "lambda" in call:  # another function is another layer, and cannot be pickled
            assert first != second
            continue
        assert first == second
        assert hash(first) == hash(second)
        if "thirds" not in call:  # which no maker made
            assert pickle.loads(pickle.dumps(first)) == first
        assert copy.copy(first) == first == copy.deepcopy(first)


@pytest.mark.parametrize("room", [jaxnet, jaxnet.layers, losses, models, heads], ids=lambda room: room.__name__)
def test_whatever_is_public_and_makes_a_layer_is_in_the_registry(room):
    for name in getattr(room, "__all__", vars(room)):
        thing = getattr(room, name)
        returns = getattr(thing, "__annotations__", {}).get("return")
        if name == "activation_named":  # it looks a row up
            continue
        if isinstance(thing, Layer | Loss) or returns in (Layer, Loss, "Layer", "Loss"):
            entry = ALL.get(name)
            if isinstance(thing, Layer | Loss):
                assert thing.made.by is entry, name
            elif name not in ("on_leaves", "leaf", "pointwise", "deferred_head", "deferred_loss", "with_last"):
                assert entry.make is thing, name


def test_makers_have_examples():
    internal = {"deferred_head", "deferred_loss"}
    assert {name for name, entry in ALL.items() if not entry.examples} == internal


@pytest.mark.parametrize(
    ("thing", "shown"),
    [
        (jaxnet.serial(dense(30), sigmoid, dense(10, bias=False)), "serial(dense(30), sigmoid, dense(10, bias=False))"),
        (jaxnet.conv2d(6, 5, padding=((1, 2), (0, 0))), "conv2d(6, 5, padding=[[1, 2], [0, 0]])"),
        (jaxnet.models.mlp([16, 5], activation="tanh"), "mlp([16, 5], activation='tanh')"),
        (jaxnet.elu(), "elu()"),
        (jaxnet.flatten(), "flatten()"),
        (jaxnet.reshape(3, -1), "reshape(3, -1)"),
        (jaxnet.tied(dense(3), dense(3), where=(0, 1)), "tied(dense(3), dense(3), where=[0, 1])"),
        (dense(3, init=jax.nn.initializers.zeros), "dense(3, init=zeros)"),
        (jaxnet.attention(2, causal=False, mask=np.eye(3, dtype=bool)), "attention(2, causal=False, mask=bool[3, 3])"),
        (feedback.random(seed=5)(dense(3)), "feedback(dense(3), random(seed=5))"),
        (jaxnet.ignoring(jaxnet.losses.huber(0.5)), "ignoring(huber(threshold=0.5))"),
        (jaxnet.residual(dense(3)._replace(backward=print)), "residual(<dense 3, changed>)"),
        (Layer("mine", no_params, print, print), "<mine>"),
        (doubled(3), "doubled(times=3)"),
    ],
)  # fmt: skip
def test_repr(thing, shown):
    assert repr(thing) == shown


def test_equality_takes_defaults_arrays_and_functions():
    assert dense(3) == dense(3, bias=True, init="lecun_normal") != dense(3, bias=False)
    assert dense(units=3) == dense(3) != dense(4)
    mask = np.tri(4, dtype=bool)
    assert jaxnet.attention(2, mask=mask) == jaxnet.attention(2, mask=mask.copy())
    assert jaxnet.attention(2, mask=mask) != jaxnet.attention(2, mask=mask | True)
    assert jaxnet.models.mlp([3, 2]) == jaxnet.models.mlp((3, 2))
    assert dense(3, init=jnp.zeros) == dense(3, init=jnp.zeros) != dense(3, init=jnp.ones)
    assert len({dense(3), dense(3), dense(4), sigmoid, jaxnet.elu(), jaxnet.elu(1.0)}) == 4
    assert dense(3) != ("dense", 3)
    assert dense(3) != jaxnet.quadratic


def test_an_option_given_as_a_list_does_not_change_with_it():
    widths = [3, 2]
    net = jaxnet.models.mlp(widths)
    widths.append(9)
    assert net == jaxnet.models.mlp([3, 2])


def test_a_changed_layer_has_no_maker():
    changed = dense(3)._replace(backward=print)
    assert changed.made is None
    assert changed == copy.copy(changed) != dense(3)
    assert changed != dense(3)._replace(backward=print)
    assert copy.deepcopy(changed) is changed
    assert dense(3)._replace(name="first").made == dense(3).made
    inside = jaxnet.serial(changed, sigmoid)
    assert inside.made.options["layers"] == (changed, sigmoid) != (dense(3), sigmoid)
    for net in (changed, inside):
        with pytest.raises(TypeError, match=r"pickle takes a layer made by a maker .* got <dense 3, changed>"):
            pickle.dumps(net)


def test_a_model_says_of_what_combination_it_is():
    assert jaxnet.models.mlp([3, 2]).made.maker == "mlp"
    assert jaxnet.models.mlp([3, 2]).made.root.maker == "serial"
    assert jaxnet.models.gpt2(vocab=5, width=4, heads=2, depth=1).made.root.maker == "tied"
    assert jaxnet.leaky_relu(0.1).made.root.options["activation"].g(-1.0) == pytest.approx(-0.1)
    assert dense(3).made.root == dense(3).made


def test_feedback_is_made_of_the_way_and_the_net():
    net = jaxnet.serial(dense(3), sigmoid)
    fed = feedback.feedback(net, "random", seed=5)
    assert fed == feedback.random(seed=5)(net) != feedback.random(seed=4)(net)
    assert fed.made.options["block"] == net
    assert pickle.loads(pickle.dumps(fed)) == fed
    assert feedback.watched(fed) != fed
    with pytest.raises(ValueError, match='path = "inverse" takes no seed: leave it out'):
        feedback.feedback(net, "inverse", seed=1)
    with pytest.raises(ValueError, match=r"a feedback path is one of transpose, .* got 'sing'"):
        feedback.feedback(net, "sing")
    with pytest.raises(ValueError, match="has its options already, got scale beside it"):
        feedback.feedback(net, feedback.sign(), scale=2.0)


def test_a_maker_of_ones_own():
    assert doubled(3).made.maker == "tests.test_registry:doubled"
    assert found("layer", "tests.test_registry:doubled")({"times": 3}) == doubled(3)
    assert pickle.loads(pickle.dumps(jaxnet.serial(doubled(3)))) == jaxnet.serial(doubled(3))
    assert "tests.test_registry:doubled" not in ALL

    def here() -> Layer:
        return leaf("here", no_params, print, print)

    first = maker(here)
    assert found("layer", first().made.maker).make is first
    second = maker(here)
    assert found("layer", second().made.maker).make is second
    assert second() != first()
    with pytest.raises(TypeError, match=r"takes makers that can be imported, got .*here: define it at the top"):
        pickle.dumps(first())
    with pytest.raises(
        TypeError, match=r"takes a function that is annotated to return Layer, Loss, FeedbackPath, got .*lambda"
    ):
        maker(lambda: dense(3))
    with pytest.raises(LookupError, match=r"there is no layer .*gone"):
        found("layer", "tests.test_registry:gone")


def test_installed_packages_enter_their_makers(tmp_path, monkeypatch):
    (tmp_path / "nice_layers.py").write_text(
        "from jaxnet import Layer, registry, dense\n\n\n@registry.maker\ndef squeeze(units: int) -> Layer:\n"
        "    return dense(units)\n\n\n@registry.maker\ndef relu() -> Layer:\n    return dense(1)\n"
    )
    info = tmp_path / "nice_layers-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nice-layers\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[jaxnet.makers]\nsqueeze = nice_layers:squeeze\nrelu = nice_layers:relu\nlost = nice_layers:dense\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(registry, "_makers", dict(registry._makers))
    importlib.invalidate_caches()
    registry.load_entry_points.cache_clear()
    try:
        with pytest.warns(UserWarning, match="nice_layers") as warned:
            layers = makers("layer")
        assert layers["squeeze"]({"units": 3}).made.maker == "nice_layers:squeeze"
        assert layers["relu"].make is jaxnet.relu
        told = sorted(str(each.message) for each in warned)
        assert told[0].startswith("a layer relu is known already")
        assert told[1].startswith("the entry point lost = nice_layers:dense names no function under @maker")
    finally:
        monkeypatch.delitem(sys.modules, "nice_layers", raising=False)
        registry.load_entry_points.cache_clear()


def test_a_failure_says_what_the_checker_finds_wrong(x64):
    """A mean whose backward lacks 1/n."""
    wrong = leaf(
        "mean_of_all",
        no_params,
        lambda params, x, key=None, train=False: (x.mean(), Static(x.shape)),
        lambda params, shape, d_out: (jnp.broadcast_to(d_out, shape.value), ()),
    )
    with pytest.raises(AssertionError, match=r"the factor \(1 / 6\) is missing in d_out"):
        check_against_autodiff(Problem("mean_of_all", wrong, (6,)))


def test_the_registry_is_listed():
    lines = list(listed())
    kinds = [line for line in lines if line.isupper()]
    assert kinds == ["LAYER", "MODEL", "LOSS", "FEEDBACK"]
    said = {line.partition("(")[0] for line in lines if line and not line.startswith(" ")} - set(kinds)
    assert said == {*ALL, *makers("feedback")} - {"deferred_head", "deferred_loss"}
    assert "dense(units, *, bias=True, init='lecun_normal', weights=None, biases=None)" in lines
    assert "serial(*layers)" in lines
    assert all(entry.about for entry in [*ALL.values(), *makers("feedback").values()])
    assert list(listed("quadratic"))[:4] == [
        *("LOSS", "", "quadratic", "    C = ½‖a − y‖², δ = a − y. Source: Nielsen, ch. 1, (6).")
    ]
    with pytest.raises(LookupError, match="no layer, model, loss or feedback 'dens': did you mean \"dense\"\\?"):
        list(listed("dens"))


def test_a_network_s_table():
    x = jax.ShapeDtypeStruct((16,), "int32")
    table = summary(jaxnet.models.gpt2(vocab=50, positions=16, width=8, heads=2, depth=2), x)
    assert [row.shape for row in table.rows] == [(16, 8)] * 4 + [(16, 50)]
    assert [row.parameters for row in table.rows] == [400, 128, 1744, 16, 0]
    assert str(table).splitlines()[-1].split() == ["total", "2,288"]
    shown = summary(jaxnet.serial(dense(3), sigmoid), jnp.zeros(4))._repr_html_()
    assert "<tr><td>dense(3)</td><td>(3,)</td><td>15</td></tr>" in shown
    assert "<tr><td>&lt;mine&gt;</td></tr>" in Layer("mine", no_params, print, print)._repr_html_()
    assert jaxnet.serial(dense(3), sigmoid)._repr_html_().count("<tr>") == 3
