"""Text from a trained network: each token is drawn from the network's distribution for the next one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.layer import Layer, Tree, output
from jaxnet.training import devices
from jaxnet.training.data import Dataset, Split
from jaxnet.training.data.dataset import Text
from jaxnet.training.data.text import encode, shown
from jaxnet.training.program_cache import keep_compiled
from jaxnet.training.run_folder import VOCABULARY, Run
from jaxnet.training.trained_network import NEWEST, CheckpointChoice, restore


class SampleError(ValueError):
    """A sample cannot be drawn."""


class TokenDraw(NamedTuple):
    """How tokens are drawn: p ∝ exp(z / temperature) among the `top_k` likeliest (None: all); at 0 the likeliest."""

    temperature: float = 0.8
    top_k: int | None = None
    seed: int = 0


def sample(
    folder: Path,
    prompt: str,
    *,
    length: int = 500,
    drawing: TokenDraw | None = None,
    reading: CheckpointChoice = NEWEST,
) -> Iterator[str]:
    """`length` characters that a run's network puts after a prompt, one by one.

    Raises SampleError for a run of something else than a text, a prompt that is empty or has characters that the run's
    text had not, or numbers out of their range; and as `trained_network.restore` does for the run.
    """
    drawing = drawing or TokenDraw()
    characters, window = vocabulary(folder)
    tokens = prompt_tokens(prompt, characters)
    checked(length, drawing, len(characters))
    keep_compiled()
    trained = restore(folder, dataset=stand_in(characters, window), reading=reading)
    net, params = trained.session.recipe.net, trained.net_params
    fits(net, params, window, len(characters))
    with devices.precision(trained.config.precision):
        for token in continued(net, params, tokens, window, length, drawing, len(characters)):
            yield characters[token]


def vocabulary(folder: Path) -> tuple[str, int]:
    """The characters of a run's tokens, and the window that it was trained on."""
    found = Run.open(folder).vocabulary()
    if found is None:
        raise SampleError(
            f"{folder} has no {VOCABULARY}, so it was not trained on a text: give a run of data = "
            '"tinyshakespeare" or of a .txt file, such as configs/char_gpt.toml'
        )
    return found


def prompt_tokens(prompt: str, characters: str) -> np.ndarray:
    """The prompt's tokens."""
    if not prompt:
        raise SampleError("a prompt must have at least one character for the network to go on from, got an empty one")
    strange = "".join(sorted(set(prompt) - set(characters)))
    if strange:
        raise SampleError(f"the prompt has {shown(strange)}, but the run's text has only {shown(characters, most=200)}")
    return encode(prompt, characters)


def checked(length: int, drawing: TokenDraw, vocab: int) -> None:
    """Raises SampleError for numbers out of their range."""
    temperature, top_k, seed = drawing
    for name, value, holds, must in (
        ("length", length, length >= 1, "at least 1"),
        ("temperature", temperature, np.isfinite(temperature) and temperature >= 0, "at least 0 and finite"),
        ("top-k", top_k, top_k is None or 1 <= top_k <= vocab, f"from 1 to the {vocab} characters there are"),
        ("seed", seed, 0 <= seed < 2**32, "from 0 to 2³² - 1"),
    ):
        if not holds:
            raise SampleError(f"{name} must be {must}, got {value}")


def stand_in(characters: str, window: int) -> Dataset:
    """A data set of the shapes of the run's own: it is not needed again."""
    nothing = np.zeros((1, window), np.int32)
    split = Split(nothing, nothing)
    text = Text(np.zeros(window + 1, np.int32), characters)
    return Dataset("text", split, split, split, len(characters), text=text)


def fits(net: Layer, params: Tree, window: int, vocab: int) -> None:
    """Raises SampleError for a network that does not give a number for each character at each place."""
    out: Any = output(net, params, jax.ShapeDtypeStruct((window,), np.int32))
    if out.ndim != 2 or out.shape[0] != window or out.shape[1] < vocab:
        raise SampleError(
            f"the run's network must give a number for each of {vocab} characters after each of {window}, so an output "
            f"of shape {(window, vocab)} or wider, got {out.shape}"
        )


# --------------------------------------------------------------------------------------------- drawing


def continued(
    net: Layer, params: Tree, tokens: np.ndarray, window: int, length: int, drawing: TokenDraw, vocab: int
) -> Iterator[int]:
    """`length` tokens after the given ones, one by one.

    The network goes over the last `window` tokens anew for each, always in one compiled program of that length.
    """
    temperature, top_k, seed = drawing

    @jax.jit
    def following(params, held, last, key):
        """The token after place `last` of the window; the network sees nothing beyond it."""
        z = jax.lax.dynamic_index_in_dim(net.forward(params, held)[0], last, keepdims=False)[:vocab]
        z = z.astype(jnp.float32)
        if temperature == 0:
            return jnp.argmax(z)
        if top_k is not None:
            z = jnp.where(z >= jax.lax.top_k(z, top_k)[0][-1], z, -jnp.inf)
        return jax.random.categorical(key, z / jnp.float32(temperature))

    held = np.zeros(window, np.int32)
    count = min(window, len(tokens))
    held[:count] = tokens[len(tokens) - count :]
    key = jax.random.key(seed)
    for i in range(length):
        token = int(following(params, held, np.int32(count - 1), jax.random.fold_in(key, i)))
        yield token
        if count == window:
            held, count = np.roll(held, -1), window - 1
        held[count] = token
        count += 1
