"""How a platform runs an operation best: layouts, chunks, operands in bfloat16, each with its reason and its figure.

The layers hold the equations; this room holds the same operations in other forms, chosen when a program is lowered.
"""

from jaxnet.lowering.op import Form, Op, compiling_for, form, op, op_name, plain_forms

__all__ = ["Form", "Op", "compiling_for", "form", "op", "op_name", "plain_forms"]
