"""Quantities read from the backward pass: of jaxnet's networks, and of any JAX function.

Examples in docstrings assume `from jaxnet import *` and the names of their module.
"""
