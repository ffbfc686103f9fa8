"""Correct code raises no alarm: over 3,000 trials, each with other inputs, parameters and cotangents."""

import jax
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import jaxnet as j
from jaxnet.checking import check
from jaxnet.checking.targets import in_dtype, shipped
from tests.checking.rules import layer_norm

QUICK = {"also": False, "shapes": False, "diagnose": False}
SEEDS = {"float32": 40, "bfloat16": 10, "float16": 10, "float64": 5}
WIDE = j.models.mlp([256, 256, 10]), j.softmax_cross_entropy
NETWORKS = {
    "784-256-256-10 at 128": (WIDE, "float32[128,784], int32[128]<10", 20),
    "784-30-10 at 10": (
        (j.models.mlp([30, 10], activation="sigmoid", out="sigmoid"), j.quadratic),
        "float32[10,784], int32[10]<10",
        60,
    ),
    "64-64-10 at 1": ((j.models.mlp([64, 10]), j.softmax_cross_entropy), "float32[1,64], int32[1]<10", 60),
    "residual, 6 deep": (
        (j.models.residual_mlp(32, 6, 10), j.softmax_cross_entropy),
        "float32[16,32], int32[16]<10",
        60,
    ),
    "12 deep": ((j.models.mlp([24] * 11 + [4]), j.softmax_cross_entropy), "float32[7,24], int32[7]<4", 60),
    **{
        f"norm [{rows},{width}]": (layer_norm(), f"float32[{rows},{width}], float32[{width}], float32[{width}]", 60)
        for rows, width in ((1, 3), (8, 127), (8, 128), (8, 129), (64, 512))
    },
}
EXAMPLES, SEEDS_DRAWN = 30, 4


@pytest.fixture(autouse=True)
def as_users_have_it():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_there_are_3000():
    of_shipped = len(shipped()) * sum(SEEDS.values())
    assert of_shipped + sum(seeds for *_, seeds in NETWORKS.values()) + EXAMPLES * SEEDS_DRAWN >= 3000


@pytest.mark.slow
@pytest.mark.parametrize("dtype", SEEDS)
@pytest.mark.parametrize("target", shipped(), ids=lambda target: target.name)
def test_what_is_shipped(target, dtype):
    precise = dtype == "float32"  # in float64 too, as by default
    report = check(target.rule, *in_dtype(target.args, dtype), seeds=SEEDS[dtype], precise=precise, **QUICK)
    assert report.ok, str(report)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_many_sizes(name):
    rule, inputs, seeds = NETWORKS[name]
    report = check(rule, inputs, seeds=seeds, **QUICK)
    assert report.ok, str(report)


ACTIVATIONS = st.sampled_from([j.sigmoid, j.tanh, j.relu, j.softplus, j.silu, j.gelu, j.layers.gelu_tanh, j.elu(0.7)])


@st.composite
def networks(draw):
    """Two to five blocks: dense layers, activations, residuals, branches and repetitions."""
    layers = []
    for _ in range(draw(st.integers(2, 5))):
        width, act = draw(st.integers(1, 9)), draw(ACTIVATIONS)
        block = {
            "dense": lambda w=width, a=act: [j.dense(w), a],
            "residual": lambda w=width, a=act: [j.dense(w), j.residual(j.serial(a, j.dense(w)))],
            "repeat": lambda w=width, a=act: [j.dense(w), j.repeat(j.residual(j.serial(j.dense(w), a)), 3)],
            "parallel": lambda w=width, a=act: [j.parallel(j.dense(w), j.serial(j.dense(w), a))],
            "remat": lambda w=width, a=act: [j.remat(j.serial(j.dense(w), a))],
        }[draw(st.sampled_from(["dense", "residual", "repeat", "parallel", "remat"]))]
        layers += block()
    return j.serial(*layers)


@pytest.mark.slow
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],  # a shrunk network is not worth its compilations
)
@given(
    networks(), st.integers(1, 12), st.integers(1, 9), st.integers(0, 10**6), st.sampled_from(["float32", "bfloat16"])
)
def test_drawn_networks(net, width, batch, seed, dtype):
    report = check(net, f"{dtype}[{batch},{width}]", seed=seed, seeds=SEEDS_DRAWN, precise=False, **QUICK)
    assert report.ok, str(report)
