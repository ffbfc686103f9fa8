"""An operation: its plain equation, and other forms of it for the platforms where they are measured to be faster.

The form is chosen when a program is lowered, so the compiled program holds one form and no conditional.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

from jaxnet.lowering.sharding import shares

PREFIX = "op_"  # before the operation's name, in the jaxpr; a space would end the name there

PLATFORMS = {"gpu": ("cuda", "rocm"), "tpu": ("tpu",)}  # of a backend of JAX

plain_only = jax.make_user_context(default_value=False)
target = jax.make_user_context(default_value="cpu")


@contextmanager
def plain_forms() -> Iterator[None]:
    """Inside, every operation is its plain equation: for recording, explaining, and exports for several platforms.

    >>> import jax, jax.numpy as jnp
    >>> from jaxnet.lowering import form, op, plain_forms
    >>> double = op(lambda x: 2 * x, cpu=form(lambda x: x + x))
    >>> with plain_forms():
    ...     print(jax.make_jaxpr(double)(1.0).eqns[0].primitive)
    mul
    """
    with plain_only(True):
        yield


@contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Inside, operations have their forms for this platform too: for compiling ahead of time, without the device."""
    with target(platform):
        yield


def reached(platform: str) -> bool:
    """Whether a program that is traced here can run on a platform. Forms for others would be traced for nothing."""
    return platform in ("cpu", target.value, *PLATFORMS.get(jax.default_backend(), ()))


@dataclass(frozen=True)
class Form:
    """Another form of an operation.

    - `f(*arrays, **options)`: gives the plain equation's result, with the same shapes and dtypes.
    - `when(*arrays, **options) -> bool`: whether to use it, by shapes and dtypes alone; None for always.
    - `manual`: whether it may be traced under the manual mesh axes of `shard_map`.
    - `axes`: how it is cut on a mesh, as `Shares.on_each` takes it; None where the compiler can share it out.
    """

    f: Callable[..., Any]
    when: Callable[..., bool] | None = None
    manual: bool = False
    axes: str | None = None

    def serves(self, arrays: tuple, options: dict[str, Any]) -> bool:
        """Whether this form is used here for these arguments."""
        own = self.axes is not None and shares.value is not None  # each device's share, whatever else is manual
        if not (self.manual or own) and jax.sharding.get_abstract_mesh().manual_axes:
            return False
        return self.when is None or self.when(*arrays, **options)

    def of(self, arrays: tuple, options: dict[str, Any]) -> Callable:
        """The form with its options; on a mesh of each device's share, where the compiler cannot tell."""
        f = partial(self.f, **options)
        return f if shares.value is None or self.axes is None else shares.value.on_each(f, self.axes, arrays)


def form(
    f: Callable[..., Any],
    *,
    when: Callable[..., bool] | None = None,
    manual: bool = False,
    axes: str | None = None,
) -> Form:
    """A form of an operation for one platform, as `Form` says."""
    return Form(f, when, manual, axes)


class Op:
    """An operation: call it as its plain equation, with arrays by position and static options by name."""

    def __init__(self, plain: Callable[..., Any], forms: dict[str, Form]):
        self.plain = plain
        self.forms = forms
        self.__name__ = plain.__name__
        self.__doc__ = plain.__doc__
        self.__wrapped__ = plain  # where its source and signature are looked for

    def __repr__(self) -> str:
        return f"<op {self.__name__}: {', '.join(['plain', *self.forms])}>"

    def __call__(self, *arrays: Any, **options: Any) -> Any:
        for name, value in options.items():
            if not isinstance(value, Hashable):
                raise TypeError(
                    f"{self.__name__} takes options that are hashable and hold no array, got {type(value).__name__} "
                    f"for {name}: give arrays by position"
                )
        plain = partial(self.plain, **options)
        if plain_only.value:
            return plain(*arrays)
        served = {
            platform: each.of(arrays, options)
            for platform, each in self.forms.items()
            if reached(platform) and each.serves(arrays, options)
        }
        if not served:
            return plain(*arrays)

        def chosen(*arrays):
            return jax.lax.platform_dependent(*arrays, default=plain, **served)

        # vmap takes a rule's results to have their batch axis where the operation's have it, and does not check (seen
        # in jax 0.10 and 0.12). A choice puts it first, so the rule is a choice as well.
        def everywhere(*arrays):
            return jax.lax.platform_dependent(*arrays, default=plain, **dict.fromkeys(served, plain))

        # Every branch would be differentiated on every platform; the plain equation's derivative serves them all.
        chosen.__name__ = chosen.__qualname__ = f"{PREFIX}{self.__name__}"
        operation = jax.custom_jvp(chosen)
        operation.defjvp(partial(jax.jvp, everywhere))
        return operation(*arrays)


def op(plain: Callable[..., Any], **forms: Form) -> Op:
    """The operation of a plain equation, with other forms for platforms: `op(plain, cpu=form(f), cuda=form(g))`.

    Arrays, or trees of them, are given by position, static options by name: hashable, and without arrays inside.
    Its derivative, of every order, is that of the plain equation.
    Raises `TypeError` for anything but a form, and when called with an option that has no hash.

    >>> import jax.numpy as jnp
    >>> from jaxnet.lowering import form, op
    >>> total = op(lambda x: x.sum(), cpu=form(jnp.sum))
    >>> float(total(jnp.ones(3)))
    3.0
    """
    for platform, each in forms.items():
        if not isinstance(each, Form):
            raise TypeError(f"op takes form(f) for each platform, got {each!r} for {platform}: write form(f)")
    return Op(plain, forms)


def op_name(equation: Any) -> str | None:
    """The name of the operation that an equation of a jaxpr is; None for any other equation."""
    if equation.primitive.name != "custom_jvp_call":
        return None
    name = equation.params["call_jaxpr"].jaxpr.debug_info.func_name
    return name.removeprefix(PREFIX) if name.startswith(PREFIX) else None
