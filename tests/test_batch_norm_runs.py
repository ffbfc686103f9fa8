"""Runs of a network with BatchNorm: its population is trained, saved, restored and used, and is no parameter."""

import jax
import numpy as np
import pytest

from jaxnet import predict
from jaxnet.training import loop
from jaxnet.training.checkpoint import leaves_sha256
from jaxnet.training.config import ConfigError
from jaxnet.training.data import load
from jaxnet.training.trained_network import evaluate, restore
from tests.runs import metrics, small, summary

MODEL = [{"dense": 8}, "batch_norm", "tanh", {"dense": 3}]
MONITORS = {"mean_delta": 20, "gradient_norms": True, "update_ratios": True, "delta_norms": True}


def test_a_run_keeps_its_population(tmp_path):
    # 103 examples in batches of 10: the last batch has 3.
    config = small("train.epochs=2", model=MODEL, monitor=MONITORS)
    run = loop.train(config, runs_dir=tmp_path)
    trained = restore(run)
    population = trained.params[1]["population"].value
    assert float(np.abs(population["mean"]).max()) > 0.1
    assert leaves_sha256(trained.params) == summary(run)["params_sha256"]
    assert all(len(line["gradient_norms"]) == 3 for line in metrics(run))
    test = load("tests.runs:blobs").test
    out = predict(trained.session.recipe.net)(trained.params, test.x)
    accuracy = float(np.mean(np.asarray(out).argmax(-1) == test.y))
    assert accuracy == summary(run)["test_accuracy"] == evaluate(run)["test_accuracy"] > 0.8
    kept = sum(leaf.size for leaf in jax.tree.leaves(trained.session.shapes().kept))
    assert kept == 16, "mean and variance of 8 channels"


def test_chunks_are_refused(tmp_path):
    config = small("train.epochs=1", "train.chunks=2", model=MODEL)
    with pytest.raises(ConfigError, match=r"train\.chunks = 2 takes a batch apart"):
        loop.train(config, runs_dir=tmp_path)
