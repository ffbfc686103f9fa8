"""Pictures: the network, the steps of the walk as panels and as an animation, and the moments of a run."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import jaxnet
from jaxnet.cli import app
from jaxnet.explaining import derive, figures, notation, observe
from jaxnet.explaining.derive import chain_of
from jaxnet.explaining.drawing import drawing
from jaxnet.explaining.guided_walk import walk_steps
from jaxnet.explaining.history import History, Moment
from jaxnet.layers import dense, sigmoid
from jaxnet.losses import quadratic

CONFIG = Path(__file__).parent.parent / "configs" / "two_three_two.toml"


def run(*arguments):
    result = CliRunner().invoke(app, ["explain", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def durations(path):
    """The milliseconds of each picture of an animation."""
    found = []
    with Image.open(path) as moving:
        for n in range(moving.n_frames):
            moving.seek(n)
            found.append(moving.info["duration"])
    return found


def test_the_walk_as_panels_and_as_an_animation(tmp_path):
    run(CONFIG, "--walk", "--figure", tmp_path / "walk.png")
    with Image.open(tmp_path / "walk.png") as panels:
        assert panels.size == (2 * 200 * figures.SLIDE[0], 5 * 200 * figures.SLIDE[1])
    run(CONFIG, "--figure", tmp_path / "walk.gif")
    lasts = durations(tmp_path / "walk.gif")
    assert lasts.count(figures.ONE_STEP) == 10  # the steps; between them a picture for each further product
    assert lasts.count(figures.ONE_PATH) == len(lasts) - 10 == 11
    assert (tmp_path / "walk.gif").stat().st_size < 300_000


@pytest.fixture
def trained():
    """A network at two moments, its weights four times as large at the second."""
    params = [({"W": np.float32(k) * np.eye(2, dtype=np.float32), "b": np.zeros(2, np.float32)}, ()) for k in (1, 4)]
    net = jaxnet.serial(dense(2), sigmoid)
    observed = observe(net, quadratic, params[-1], np.ones(2, np.float32), np.zeros(2, np.float32))
    return observed, History(tuple(Moment(i, i, each) for i, each in enumerate(params)), ())


def test_a_run_moves_with_edges_of_one_scale(trained, tmp_path):
    observed, run = trained
    pictures = figures.pictures_of_run(observed, run, notation())
    assert [each.width for each in pictures] == [0.25, 1.0]
    for picture, params in zip(pictures, run.moments, strict=True):
        inputs = drawing(picture.chain.places).columns[0].units
        sent = params.params[0]["W"].T @ picture.chain.places[0].item.d_out
        np.testing.assert_allclose([unit.delta for unit in inputs], sent, rtol=1e-6)
    assert [each.said for each in pictures] == [
        "step 0, epoch 0   C = .5344", "step 1, epoch 1   C = .9644"
    ]  # fmt: skip
    figures.write_figure(tmp_path / "run.gif", pictures)
    assert durations(tmp_path / "run.gif") == [figures.ONE_MOMENT, figures.ONE_STEP]


def test_each_picture_lights_one_product_more_until_they_are_the_gradient(trained):
    observed, _ = trained
    steps = walk_steps(observed, derive(observed), notation())
    chain = chain_of(observed, notation())
    moving = [
        each for each in figures.pictures_of_walk(chain, steps, moving=True) if "runs along a column" in each.said
    ]
    assert [len(each.edges) for each in moving] == [1, 2, 3, 4]
    sent = [float(each.replace("−", "-")) for each in moving[-1].edges.values()]
    np.testing.assert_allclose(np.reshape(sent, (2, 2)).sum(1), observed.items[0].dx, rtol=1e-2)
