"""GPT-2's published weights, in safetensors, as parameters of `gpt2`, and back.

The files name a weight as `transformer.h.3.attn.c_attn.weight`, with or without `transformer.`; they hold its matrices
as (in, out), queries, keys and values side by side in one, and each block by itself, where `repeat` has them stacked.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxnet.layer import Layer, Tree
from jaxnet.layers import ACTIVATIONS
from jaxnet.models.language import gpt, gpt2

HEAD_WIDTH = 64  # of all published configurations
PREFIX = "transformer."
#               ours: layer of the block, parameter        theirs, and whether it is a matrix, (in, out) there
BLOCK = (
    ("norm_1", "gamma", "ln_1.weight", False),
    ("norm_1", "beta", "ln_1.bias", False),
    ("attention", "W_o", "attn.c_proj.weight", True),
    ("attention", "b_o", "attn.c_proj.bias", False),
    ("norm_2", "gamma", "ln_2.weight", False),
    ("norm_2", "beta", "ln_2.bias", False),
    ("first", "W", "mlp.c_fc.weight", True),
    ("first", "b", "mlp.c_fc.bias", False),
    ("second", "W", "mlp.c_proj.weight", True),
    ("second", "b", "mlp.c_proj.bias", False),
)
TOGETHER = ("q", "k", "v")  # side by side in attn.c_attn
HEAD = "lm_head.weight"
FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
PUBLISHED_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "swish": "silu"}
# keys of config.json: those that must have this value, and those that tell a size
FIXED = {
    "model_type": "gpt2",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
SIZES = {"vocab_size": "vocab", "n_positions": "positions", "n_embd": "width", "n_layer": "depth"}
MASKS = ("attn.bias", "attn.masked_bias")  # buffers beside the weights


class WeightsError(ValueError):
    """Weights that are not GPT-2's; the message has the requirement, the value given, and the repair."""


class GPT2Sizes(NamedTuple):
    """The options of `gpt2` for the sizes of these weights."""

    vocab: int
    positions: int
    width: int
    heads: int
    depth: int


def load_gpt2(path: str | Path, *, heads: int | None = None) -> tuple[Layer, Tree]:
    """The network of GPT-2's weights in safetensors, and its parameters.

    path: a file, the index of several files, or a folder with model.safetensors or model.safetensors.index.json.
    heads: how many; by default n_head of the config.json beside the file, else one for each 64 of the width.
    Raises WeightsError for files that cannot be read, arrays that are not GPT-2's, or a config.json that asks for
    another network.
    """
    path = Path(path)
    if path.is_dir():
        path = next((path / name for name in (FILE, INDEX) if (path / name).is_file()), path / FILE)
    config = config_beside(path)
    return from_arrays(str(path), arrays_of(path), heads or config.heads, config)


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, or of all files that an index names.

    Raises WeightsError.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    files = [path]
    if path.suffix == ".json":
        named = json_table(path).get("weight_map")
        if not isinstance(named, dict) or not named or not all(Path(str(name)).name == name for name in named.values()):
            raise WeightsError(f"{path}: weight_map must name files in the folder of the index, got {str(named)[:60]}")
        files = [path.with_name(name) for name in sorted(set(named.values()))]
    arrays: dict[str, np.ndarray] = {}
    for file in files:
        try:
            arrays |= load_file(file)
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{file} cannot be read as safetensors: {error}") from error
    return arrays


def json_table(path: Path) -> dict[str, Any]:
    """The table of a JSON file.

    Raises WeightsError.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} must be a JSON table that can be read: {error}") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{path} must be a JSON table, got {str(found)[:40]}")
    return found


class Configuration(NamedTuple):
    """The options of a config.json: heads, the activation by our name, the ε of layer norms, sizes by its names."""

    heads: int | None = None
    activation: str = "gelu_tanh"
    norm_epsilon: float = 1e-5
    sizes: Mapping[str, int] = MappingProxyType({})


PLAIN = Configuration()


def config_beside(path: Path) -> Configuration:
    """The options of the config.json beside a file, if there is one.

    Raises WeightsError for an option that `gpt` does not have.
    """
    file = path.with_name("config.json")
    if not file.is_file():
        return PLAIN
    config = json_table(file)

    def refuse(key: str, must: str) -> WeightsError:
        return WeightsError(f"{file}: {key} must {must}, got {json.dumps(config[key])[:40]}")

    for key, only in FIXED.items():
        if config.get(key, only) != only:
            raise refuse(key, f"be {json.dumps(only)}, as in GPT-2")
    for key in (*SIZES, "n_head"):
        value = config.get(key, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise refuse(key, "be a whole number of at least 1")
    named = config.get("activation_function", "gelu_new")
    activation = PUBLISHED_ACTIVATIONS.get(named, named) if isinstance(named, str) else None
    if activation not in ACTIVATIONS:
        raise refuse("activation_function", f"be one of {', '.join((*PUBLISHED_ACTIVATIONS, *ACTIVATIONS))}")
    epsilon = config.get("layer_norm_epsilon", PLAIN.norm_epsilon)
    if not isinstance(epsilon, int | float) or isinstance(epsilon, bool) or not 0 <= epsilon < math.inf:
        raise refuse("layer_norm_epsilon", "be a number of at least 0")
    sizes = {ours: config[key] for key, ours in SIZES.items() if key in config}
    return Configuration(config.get("n_head"), activation, float(epsilon), sizes)


def from_arrays(
    where: str, arrays: Mapping[str, np.ndarray], heads: int | None = None, config: Configuration = PLAIN
) -> tuple[Layer, Tree]:
    """The network and its parameters, float32, from arrays by their published names.

    Raises WeightsError for one that is missing, of another shape, or unknown.
    """
    named = {name.removeprefix(PREFIX): array for name, array in arrays.items()}
    if HEAD in named:  # one matrix: files may hold it by either name, or by both
        named.setdefault("wte.weight", named[HEAD])
    sizes = sizes_of(where, named, heads)
    for name, said in config.sizes.items():
        if said != getattr(sizes, name):
            raise WeightsError(f"{where}: the weights have {name} {getattr(sizes, name)}, config.json says {said}")
    taken: set[str] = set()

    def take(name: str, *shape: int) -> Any:
        array = named.get(name)
        if array is None or array.shape != shape:
            came = "nothing" if array is None else f"shape {array.shape}"
            raise WeightsError(f"{where}: GPT-2 of this size has {name} of shape {shape}, got {came}")
        taken.add(name)
        return jnp.asarray(array, jnp.float32)

    def stacked(name: str, *shape: int) -> Any:
        return jnp.stack([take(f"h.{i}.{name}", *shape) for i in range(sizes.depth)])

    shapes = block_shapes(sizes.width)
    block: dict[str, dict[str, Any]] = {}
    for layer, parameter, name, matrix in BLOCK:
        array = stacked(name, *shapes[name])
        block.setdefault(layer, {})[parameter] = jnp.swapaxes(array, -1, -2) if matrix else array
    W = jnp.split(jnp.swapaxes(stacked("attn.c_attn.weight", sizes.width, 3 * sizes.width), -1, -2), 3, axis=-2)
    b = jnp.split(stacked("attn.c_attn.bias", 3 * sizes.width), 3, axis=-1)
    block["attention"] |= {f"W_{p}": w for p, w in zip(TOGETHER, W, strict=True)}
    block["attention"] |= {f"b_{p}": v for p, v in zip(TOGETHER, b, strict=True)}
    params = (
        {"W": take("wte.weight", sizes.vocab, sizes.width)},
        {"W": take("wpe.weight", sizes.positions, sizes.width)},
        in_place(block),
        {"gamma": take("ln_f.weight", sizes.width), "beta": take("ln_f.bias", sizes.width)},
        {},
    )
    head = named.get(HEAD)
    if head is not None and not np.array_equal(head, named["wte.weight"]):
        raise WeightsError(f"{where}: GPT-2's head is its embedding, but lm_head.weight differs from wte.weight")
    strange = [name for name in named.keys() - taken - {HEAD} if not name.endswith(MASKS)]
    if strange:
        raise WeightsError(f"{where}: holds arrays that GPT-2 has not: {', '.join(sorted(strange)[:5])}")
    published = {"activation": PLAIN.activation, "norm_epsilon": PLAIN.norm_epsilon}
    given = {"activation": config.activation, "norm_epsilon": config.norm_epsilon}
    if given == published:
        return gpt2(**sizes._asdict()), params
    return gpt(**sizes._asdict(), tied_head=True, **given), params


def sizes_of(where: str, named: Mapping[str, np.ndarray], heads: int | None) -> GPT2Sizes:
    """The sizes that arrays by their names, without prefix, tell."""
    for name in ("wte.weight", "wpe.weight", "h.0.ln_1.weight"):
        if name not in named or named[name].ndim != (1 if "ln" in name else 2):
            some = ", ".join(sorted(named)[:3]) or "none"
            raise WeightsError(
                f"{where}: GPT-2's weights begin with wte.weight, wpe.weight and h.0.ln_1.weight, got {some} …: "
                "give the file that is published as model.safetensors"
            )
    (vocab, width), positions = named["wte.weight"].shape, len(named["wpe.weight"])
    heads = heads or max(1, width // HEAD_WIDTH)
    if width % heads:
        raise WeightsError(f"{where}: {heads} heads do not divide the width {width}: say how many there are")
    blocks = {name.split(".")[1] for name in named if name.startswith("h.")}
    depth = 1 + max(int(number) for number in blocks if number.isdecimal())
    return GPT2Sizes(vocab, positions, width, heads, depth)


def block_shapes(width: int) -> dict[str, tuple[int, ...]]:
    """The shapes of one block's arrays as published, those of attn.c_attn aside."""
    return {
        **{f"{norm}.{which}": (width,) for norm in ("ln_1", "ln_2") for which in ("weight", "bias")},
        "attn.c_proj.weight": (width, width),
        "attn.c_proj.bias": (width,),
        "mlp.c_fc.weight": (width, 4 * width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (4 * width, width),
        "mlp.c_proj.bias": (width,),
    }


def in_place(block: Mapping[str, Any]) -> Tree:
    """A block's parameters, by the names of this module, in the structure that `gpt` has them in."""
    return (
        (block["norm_1"], block["attention"]),
        (block["norm_2"], (block["first"], ((), block["second"]))),
    )


def to_arrays(params: Tree) -> dict[str, np.ndarray]:
    """Parameters of `gpt2` without dropout as arrays by their published names, `transformer.` left out, float32."""
    tokens, positions, ((norm_1, attention), (norm_2, (first, (_, second)))), norm, _ = params
    block = {"norm_1": norm_1, "attention": attention, "norm_2": norm_2, "first": first, "second": second}
    arrays = {
        "wte.weight": tokens["W"],
        "wpe.weight": positions["W"],
        "ln_f.weight": norm["gamma"],
        "ln_f.bias": norm["beta"],
    }
    for i in range(len(norm_1["gamma"])):
        for layer, parameter, name, matrix in BLOCK:
            array = block[layer][parameter][i]
            arrays[f"h.{i}.{name}"] = array.T if matrix else array
        arrays[f"h.{i}.attn.c_attn.weight"] = jnp.concatenate([attention[f"W_{p}"][i] for p in TOGETHER]).T
        arrays[f"h.{i}.attn.c_attn.bias"] = jnp.concatenate([attention[f"b_{p}"][i] for p in TOGETHER])
    return {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}


def save_gpt2(path: str | Path, params: Tree) -> None:
    """Writes parameters of `gpt2` without dropout as a safetensors file, as `load_gpt2` and others read it."""
    from safetensors.numpy import save_file

    save_file(to_arrays(params), path, metadata={"format": "pt"})
