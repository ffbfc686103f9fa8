"""What every test runs under: eight CPU devices, float64 where asked for, strict dtypes and ranks."""

import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest


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
