"""Neural networks in JAX whose backward pass is written by hand."""

__version__ = "0.1.0"
