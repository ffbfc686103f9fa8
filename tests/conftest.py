"""What every test runs under: eight CPU devices, float64 where asked for, strict dtypes and ranks, checked shapes."""

import os

# Tests run each small program once or twice: to compile it quickly is worth more than to run it quickly.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 "
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jaxtyping
import pytest

# The rooms that take arrays: there beartype holds every annotated argument, shapes among them. The rooms above check
# what users write by themselves, and their tests hand them the wrong things. An int is taken where a float is.
ROOMS = "layer factors readings layers losses combinators models backprop feedback quantities checking explaining"
TYPECHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
jaxtyping.install_import_hook([f"jaxnet.{room}" for room in ROOMS.split()], TYPECHECKER)


@pytest.fixture(autouse=True)
def strict_jax():
    """Strict dtype promotion and no silent rank promotion, in every test."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def x64():
    """Float64 for tests that hold gradients to float64 noise."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def unchecked():
    """Annotations not enforced: for what jaxnet itself says to a wrong argument."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
