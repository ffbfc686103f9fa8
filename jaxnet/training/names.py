"""The names that a config may use, and the options of each, as its signature has them.

Layers, losses, models and feedback come from the registry; optimizers and schedules are optax's; K-FAC,
Shampoo and SOAP are jaxnet's.
"""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, get_args

import optax

from jaxnet.layer import Layer
from jaxnet.quantities.preconditioners import kfac, shampoo, soap
from jaxnet.registry import Kind, Maker, makers


def offered(kind: Kind) -> Mapping[str, Maker]:
    """The makers of a kind that a config may name."""
    return MappingProxyType({name: entry for name, entry in makers(kind).items() if entry.configs})


# The first option of each is its argument: { dense = 30 } is { dense = { units = 30 } }.
LAYERS = offered("layer")
"""The layers for `model = [...]`."""

LOSSES = offered("loss")
"""The losses."""

FEEDBACK = offered("feedback")
"""The feedback paths."""

MODELS = offered("model")
"""The models for `model.name`."""

# lbfgs and polyak_sgd need the cost beside the gradient, noisy_sgd a random key, which no file can give;
# optimistic_adam is deprecated; the scale_by_* are parts of optimizers.
NOT_OFFERED = ("lbfgs", "polyak_sgd", "noisy_sgd", "optimistic_adam", "scale_by_learning_rate", "scale_by_rprop")
OPTIMIZERS: Mapping[str, Callable[..., optax.GradientTransformation]] = MappingProxyType(
    {
        name: function
        for name, function in vars(optax).items()
        if inspect.isfunction(function)
        and not name.startswith("_")
        and "learning_rate" in inspect.signature(function).parameters
        and name not in NOT_OFFERED
    }
    | {"kfac": kfac, "shampoo": shampoo, "soap": soap}
)
"""The optimizers for `train.optimizer.name`: optax's, K-FAC, Shampoo and SOAP."""

SCHEDULES: Mapping[str, Callable[..., optax.Schedule]] = MappingProxyType(
    {
        name: function
        for name, function in vars(optax).items()
        if inspect.isfunction(function)
        and name.endswith(("_schedule", "exponential_decay", "join_schedules"))
        and not name.startswith(("scale_by_", "inject_"))
    }
)
"""The schedules for `learning_rate.schedule`, from optax, counted in steps."""


def parameters(of: Maker | Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The options of a maker, or the parameters of a function, with their annotations evaluated."""
    return of.options if isinstance(of, Maker) else inspect.signature(of, eval_str=True).parameters


def layers_in(option: inspect.Parameter) -> Literal["none", "one", "several"]:
    """Whether an option is a layer, or several of them."""
    if option.annotation is Layer or Layer in get_args(option.annotation):
        return "several" if option.kind is option.VAR_POSITIONAL else "one"
    return "none"


def is_own(name: Any) -> bool:
    """Whether this is the name of your own object, `"package.module:object"`."""
    if not isinstance(name, str):
        return False
    module, colon, attribute = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in (*module.split("."), *attribute.split(".")))


def gives_options(of: Maker, value: Any) -> bool:
    """Whether a layer's table holds options, rather than being the inner layer that is its argument."""
    one_layer = isinstance(value, dict) and len(value) == 1 and (next(iter(value)) in LAYERS or is_own(*value))
    return isinstance(value, dict) and not (one_layer and layers_in(next(iter(of.options.values()))) == "one")
