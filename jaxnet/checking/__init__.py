"""Checking: is this backward pass right, and if not, where and why?

`check` gives a `Report`, `assert_backward` raises it where the backward pass is wrong.
"""

from jaxnet.checking.checks import assert_backward, check
from jaxnet.checking.compare import Leaf
from jaxnet.checking.properties import Property
from jaxnet.checking.report import Report
from jaxnet.checking.subject import CannotCheckError

__all__ = ["CannotCheckError", "Leaf", "Property", "Report", "assert_backward", "check"]
