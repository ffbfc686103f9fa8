"""Pipelines: gradients equal one device's, memory by the number of stages, products once; schedules as published."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from typer.testing import CliRunner

from jaxnet import (
    batch_norm,
    dense,
    dropout,
    relu,
    repeat,
    residual,
    serial,
    softmax_cross_entropy,
    tanh,
    value_and_grad,
)
from jaxnet.cli import app
from jaxnet.devices import SCHEDULES, PipelineError, ScheduleError, Times, pipeline, schedule
from jaxnet.devices.schedules import Task
from jaxnet.models import gpt
from tests.agreement import assert_agree, cast
from tests.test_mesh import collectives

KEY = jax.random.key(3)
BLOCK = residual(serial(dense(6), relu, dropout(0.2)))
MLP = serial(dense(6), dropout(0.3), repeat(BLOCK, 8), dense(5))
XS, YS = jax.random.normal(jax.random.key(0), (16, 4)), jnp.arange(16) % 5
TOKENS = jax.random.randint(jax.random.key(0), (16, 5), 0, 7)
GPTS = {
    "gpt": gpt(7, 8, 2, 8, 5, drop_rate=0.1),
    "gpt, tied": gpt(7, 8, 2, 8, 5, drop_rate=0.1, tied_head=True),
}


def mesh(type_=AxisType.Auto, **axes: int):
    """A mesh of the first devices."""
    count = int(np.prod(list(axes.values())))
    return jax.make_mesh(tuple(axes.values()), tuple(axes), (type_,) * len(axes), devices=jax.devices()[:count])


def agree(net, xs, ys, over, **options):
    """Value and gradients by a pipeline are those of one device: with dropout and weights, in float64."""
    params = cast(jax.jit(net.init)(jax.random.key(1), xs[0]), jnp.float64)
    weights = jnp.linspace(0.1, 1.0, len(xs), dtype=jnp.float64)[(...,) + (None,) * (ys.ndim - 1)]
    weights = jnp.broadcast_to(weights, ys.shape)
    given = {"key": KEY, "train": True, "weights": weights}
    expected = jax.jit(lambda p: value_and_grad(net, softmax_cross_entropy)(p, xs, ys, **given))(params)
    found = jax.jit(lambda p: pipeline(net, softmax_cross_entropy, over, **options)(p, xs, ys, **given))(params)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert_agree(found, expected)


@pytest.mark.parametrize(("name", "stages"), [*((name, 4) for name in SCHEDULES), ("1f1b", 2), ("zb-h2", 8)])
def test_gradients_equal_those_of_one_device(name, stages, x64):
    agree(MLP, XS.astype(jnp.float64), YS, mesh(stage=stages), microbatches=8, schedule_name=name)


@pytest.mark.parametrize(("net", "stages"), [("gpt", 2), ("gpt, tied", 8)])
def test_gradients_of_a_gpt(net, stages, x64):
    agree(GPTS[net], TOKENS, jnp.roll(TOKENS, -1, 1), mesh(stage=stages), microbatches=4)


def test_other_axes_share_out_the_examples(x64):
    over = mesh(data=2, stage=4)
    agree(MLP, XS.astype(jnp.float64), YS, over, microbatches=4)


def test_an_explicit_mesh(x64):
    over = mesh(AxisType.Explicit, data=2, stage=2)
    agree(MLP, XS.astype(jnp.float64), YS, over, microbatches=4)


def test_a_repeat_alone_on_another_axis(x64):
    net = repeat(residual(serial(dense(4), tanh)), 4)
    agree(net, XS.astype(jnp.float64), YS % 4, mesh(depth=2), microbatches=2, axis="depth")


def test_fewer_microbatches_than_stages(x64):
    agree(MLP, XS.astype(jnp.float64), YS, mesh(stage=8), microbatches=2, schedule_name="zb-h2")


DENSE = repeat(serial(dense(64), tanh), 8)


def compiled(name, microbatches, stages=4, net=DENSE, per_microbatch=2):
    """The program of each device."""
    xs = jax.ShapeDtypeStruct((microbatches * per_microbatch, 64), jnp.float32)
    ys = jax.ShapeDtypeStruct(xs.shape[:1], jnp.int32)
    params = jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct((64,), jnp.float32))
    batch = pipeline(net, softmax_cross_entropy, mesh(stage=stages), microbatches=microbatches, schedule_name=name)
    return jax.jit(batch).lower(params, xs, ys).compile()


def memory(name, microbatches):
    """Temporary bytes of each device, without the batch itself, that every device is given whole."""
    used = compiled(name, microbatches).memory_analysis()
    assert used is not None
    return used.temp_size_in_bytes - 4 * 64 * 2 * microbatches


def test_memory_of_1f1b_grows_with_stages_and_not_with_microbatches():
    growth = {name: memory(name, 24) - memory(name, 8) for name in SCHEDULES}
    of_one_microbatch = 4 * 64 * 2 * (8 // 4)
    assert growth["gpipe"] > 16 * of_one_microbatch
    assert max(growth["1f1b"], growth["zb-h1"], growth["zb-h2"]) < 4 * of_one_microbatch


@pytest.mark.parametrize("name", ["1f1b", "zb-h1"])
def test_two_exchanges_whatever_the_ticks(name):
    found = collectives(compiled(name, 8))
    assert found.pop("collective-permute") == 2
    assert sum(found.values()) <= 1  # value and gradients of what every stage has, at once


def test_a_backward_pass_in_two_parts_does_no_product_twice():
    """Of 8 dense layers F makes 8 products, B 8 and W 8; autodiff's split pass makes 23.1 for B and W."""
    net = repeat(serial(dense(64)), 8)

    def products(text):
        return text.count(" dot(")

    # One block is one scan's body: each of F, B and W makes one product for each layer of its stage.
    assert products(compiled("zb-h1", 8, net=net).as_text()) == 3
    assert products(compiled("1f1b", 8, net=net).as_text()) == 3


# --------------------------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize(("p", "m"), [(2, 3), (4, 8), (8, 16), (8, 32), (4, 12)])
def test_bubbles_are_the_published_ones(p, m):
    for name, wait in {"gpipe": p - 1, "1f1b": p - 1, "zb-h1": (p - 1) / 3, "zb-h2": 0}.items():
        assert schedule(name, p, m).played().bubble == pytest.approx(wait / m, abs=1e-12), name


@pytest.mark.parametrize(("p", "m"), [(4, 8), (8, 32)])
def test_microbatches_kept_are_the_published_ones(p, m):
    for name, kept in {"gpipe": m, "1f1b": p, "zb-h1": p, "zb-h2": 2 * p - 1}.items():
        assert max(schedule(name, p, m).played().kept) == kept, name


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("p", "m"), [(1, 1), (1, 5), (3, 1), (5, 3), (4, 9)])
def test_every_task_is_done_once_and_after_what_it_needs(name, p, m):
    table = schedule(name, p, m).table()
    done = {}
    for tick, row in enumerate(table):
        for stage, (task, i) in enumerate(row):
            for letter in Task(task).name if task else "":
                assert (letter, stage, i) not in done
                done[letter, stage, i] = tick
    assert len(done) == 3 * p * m
    for (letter, stage, i), tick in done.items():
        if letter == "F" and stage:
            assert done["F", stage - 1, i] < tick
        if letter == "B":
            assert done["F", stage, i] < tick
            assert stage + 1 == p or done["B", stage + 1, i] < tick
        if letter == "W":
            assert done["B", stage, i] <= tick


def test_times_and_transfers_lengthen_a_schedule():
    plan = schedule("1f1b", 4, 8)
    assert plan.played(Times(2, 2, 2)).duration == 2 * plan.played().duration
    assert plan.played(Times(transfer=0.5)).bubble > plan.played().bubble


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("net", "over", "options", "message"),
    [
        (serial(dense(4), dense(5)), {"stage": 2}, {}, "takes serial.* with one repeat"),
        (MLP, {"stage": 4}, {"axis": "depth"}, "no axis 'depth': it has stage"),
        (serial(repeat(BLOCK, 6), dense(5)), {"stage": 4}, {}, "4 stages do not divide the 6 blocks.*take 1, 2, 3, 6"),
        (MLP, {"stage": 2}, {"microbatches": 3}, "multiple of 3 microbatches, got 16"),
        (MLP, {"data": 4, "stage": 2}, {"microbatches": 8}, "multiple of 8 microbatches × 4 devices.*got 16"),
        (serial(batch_norm(), repeat(BLOCK, 2), dense(5)), {"stage": 2}, {}, "without state"),
        (serial(dense(6), repeat(serial(dense(6), relu, dense(6)), 2)), {"stage": 2}, {"schedule_name": "zbh1"},
         'did you mean "zb-h1"'),
    ],
)  # fmt: skip
def test_errors(net, over, options, message):
    xs = jnp.zeros((16, 6))
    params = net.init(jax.random.key(1), xs[0])
    with pytest.raises((PipelineError, ScheduleError), match=message):
        pipeline(net, softmax_cross_entropy, mesh(**over), **{"microbatches": 2} | options)(params, xs, YS)


def test_the_command_shows_schedules_beside_what_is_published(tmp_path):
    picture = tmp_path / "pipeline.png"
    shown = CliRunner().invoke(app, ["pipeline", "1f1b", "zb-h1", "--figure", str(picture)])
    assert shown.exit_code == 0
    assert "1f1b        0.375      0.375     4    33" in shown.output
    assert ".. .. .. F0 B0 F1 B1 F2 B2 F3 B3 W0 F4" in shown.output
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--times", "1,0,1"], "three or four numbers above 0"),
        (["--times", "1,nan,1"], "three or four numbers above 0"),
        (["--stages", "0"], "at least one stage"),
        (["zb"], "no schedule 'zb'"),
        (["--figure", "picture.doc"], "ends in .png, .svg or .pdf"),
    ],
)
def test_what_the_command_refuses(arguments, message):
    shown = CliRunner().invoke(app, ["pipeline", *arguments])
    assert shown.exit_code == 2
    assert message in shown.stderr
