"""Fine-tuning: a run that begins with the trained parameters of an earlier one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnet.training.build import parameter_names
from jaxnet.training.checkpoint import leaves_sha256, plain
from jaxnet.training.config import ConfigError
from jaxnet.training.session import Session
from jaxnet.training.trained_network import restore


class Start(NamedTuple):
    """Trained values by dotted parameter name, their source run, and the parameters that are initialised anew."""

    given: dict[str, np.ndarray]
    source: dict[str, Any]
    anew: list[str]

    def line(self) -> str:
        """The message at the start."""
        rest = f"; initialised anew: {', '.join(self.anew)}" if self.anew else ""
        return f"begins with {len(self.given)} parameters of {self.source['run']}, step {self.source['step']:,}{rest}"


def trained_start(session: Session, data_dir: Path | None = None) -> Start | None:
    """The parameters of the run `start_from` that match a name and shape of this network.

    None where the config names no run.
    Raises ConfigError where no parameter fits, and as `trained_network.restore` does for the run.
    """
    source = session.config.start_from
    if source is None:
        return None
    trained = restore(Path(source), data_dir=data_dir)
    values, shapes = dict(by_name(plain(trained.params))), dict(by_name(session.params()))
    given = {
        name: values[name].astype(wanted.dtype)
        for name, wanted in shapes.items()
        if name in values and values[name].shape == wanted.shape
    }
    if not given:
        raise ConfigError(
            f"start_from: no parameter of {source} has the name and shape of one of this network: "
            f"it has {names_and_shapes(values)}, this network {names_and_shapes(shapes)}"
        )
    about = {"run": source, "step": trained.step, "params_sha256": leaves_sha256(trained.params)}
    return Start(given, about, [f"{name} {wanted.shape}" for name, wanted in shapes.items() if name not in given])


def by_name(tree: Any) -> Iterator[tuple[str, Any]]:
    """Each leaf with its dotted place."""
    return zip(jax.tree.leaves(parameter_names(tree)), jax.tree.leaves(tree), strict=True)


def names_and_shapes(arrays: dict[str, Any], most: int = 6) -> str:
    """Names and shapes, the first few."""
    names = [f"{name} {array.shape}" for name, array in arrays.items()]
    return ", ".join([*names[:most], *(["…"] if len(names) > most else [])])
