"""Language models: GPT-2 against torch's and its published file format, what a model sees, and what it refuses."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxnet as jn
from jaxnet.layer import leaves
from jaxnet.models import char_lstm, gpt, gpt2
from jaxnet.models.gpt2_weights import WeightsError, from_arrays, load_gpt2, save_gpt2, to_arrays
from jaxnet.models.language import GPT2_SIZES
from tests.agreement import assert_agree, integers, normal
from tests.implementations import by_autodiff, read
from tests.problems import LANGUAGE_MODELS

VOCAB, POSITIONS, WIDTH, HEADS, DEPTH = 13, 7, 8, 2, 3


def published(seed: int = 0, prefix: str = "") -> dict[str, np.ndarray]:
    """Arrays of a small GPT-2 under their published names."""
    shapes = {"wte.weight": (VOCAB, WIDTH), "wpe.weight": (POSITIONS, WIDTH)}
    shapes |= {"ln_f.weight": (WIDTH,), "ln_f.bias": (WIDTH,)}
    for i in range(DEPTH):
        for name, shape in {
            "ln_1.weight": (WIDTH,),
            "ln_1.bias": (WIDTH,),
            "attn.c_attn.weight": (WIDTH, 3 * WIDTH),
            "attn.c_attn.bias": (3 * WIDTH,),
            "attn.c_proj.weight": (WIDTH, WIDTH),
            "attn.c_proj.bias": (WIDTH,),
            "ln_2.weight": (WIDTH,),
            "ln_2.bias": (WIDTH,),
            "mlp.c_fc.weight": (WIDTH, 4 * WIDTH),
            "mlp.c_fc.bias": (4 * WIDTH,),
            "mlp.c_proj.weight": (4 * WIDTH, WIDTH),
            "mlp.c_proj.bias": (WIDTH,),
        }.items():
            shapes[f"h.{i}.{name}"] = shape
    return {
        prefix + name: np.array(normal(100 * seed + i, shape, 0.5)) for i, (name, shape) in enumerate(shapes.items())
    }


def torch_gpt2(arrays: dict[str, np.ndarray], tokens: np.ndarray, heads: int = HEADS) -> tuple:
    """GPT-2's logits (batch, time, vocab) as its paper and code have them, and the weights, for their gradients."""
    torch = pytest.importorskip("torch", reason="torch comes with the extra `peers`")
    w = {name: torch.tensor(array, requires_grad=True) for name, array in arrays.items()}
    ids = torch.tensor(tokens, dtype=torch.long)
    time, width = ids.shape[1], w["wte.weight"].shape[1]

    def norm(x, name):
        return torch.nn.functional.layer_norm(x, (width,), w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-5)

    def affine(x, name):  # the published matrices are (in, out)
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    x = w["wte.weight"][ids] + w["wpe.weight"][:time]
    for i in range(DEPTH):
        q, k, v = affine(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn").split(width, dim=-1)
        q, k, v = (t.reshape(*t.shape[:2], heads, -1).transpose(1, 2) for t in (q, k, v))
        scores = q @ k.transpose(-1, -2) / (width // heads) ** 0.5
        scores = scores.masked_fill(torch.ones(time, time).triu(1).bool(), float("-inf"))
        o = (scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape)
        x = x + affine(o, f"h.{i}.attn.c_proj")
        hidden = torch.nn.functional.gelu(affine(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc"), approximate="tanh")
        x = x + affine(hidden, f"h.{i}.mlp.c_proj")
    return norm(x, "ln_f") @ w["wte.weight"].T, w


TOKENS = np.array(integers(3, (2, POSITIONS), VOCAB))
TARGETS = np.array(integers(4, (2, POSITIONS), VOCAB))


@pytest.fixture(scope="module")
def in_torch():
    """Logits, mean cross-entropy and gradients by the published names."""
    torch = pytest.importorskip("torch", reason="torch comes with the extra `peers`")
    logits, weights = torch_gpt2(published(), TOKENS)
    cost = torch.nn.functional.cross_entropy(logits.reshape(-1, VOCAB), torch.tensor(TARGETS).long().reshape(-1))
    cost.backward()
    return logits.detach().numpy(), cost.item(), {name: t.grad.numpy() for name, t in weights.items()}


@pytest.mark.peers
@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_published_weights_give_the_published_logits(tmp_path, in_torch, prefix):
    masks = {f"{prefix}h.0.attn.bias": np.ones((1, 1, POSITIONS, POSITIONS), np.float32)}
    head = {"lm_head.weight": published()["wte.weight"]}
    save_file(published(prefix=prefix) | masks | head, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"n_head": HEADS}))
    net, params = load_gpt2(tmp_path / "model.safetensors")
    logits = jax.jit(jn.predict(net))(params, jnp.asarray(TOKENS))
    np.testing.assert_allclose(logits, in_torch[0], rtol=1e-4, atol=1e-5)


@pytest.mark.peers
def test_gradients_of_gpt2_are_torchs(in_torch):
    _, cost, expected = in_torch
    net, params = from_arrays("here", published(), HEADS)
    gradient = jax.jit(jn.value_and_grad(net, jn.softmax_cross_entropy))
    value, grads = gradient(params, jnp.asarray(TOKENS), jnp.asarray(TARGETS))
    assert float(value) == pytest.approx(cost, rel=1e-5)
    found = to_arrays(grads)
    assert found.keys() == expected.keys()
    largest = max(np.abs(each).max() for each in expected.values())
    for name, each in expected.items():
        np.testing.assert_allclose(found[name], each, atol=1e-5 * largest, err_msg=name)


def test_weights_go_out_as_they_came_in(tmp_path):
    _, params = from_arrays("here", published(1), HEADS)
    save_gpt2(tmp_path / "again.safetensors", params)
    again = load_file(tmp_path / "again.safetensors")
    assert again.keys() == published().keys()
    for name, array in published(1).items():
        np.testing.assert_array_equal(again[name], array)


def test_the_small_net_is_gpt2_in_small():
    net, params = from_arrays("here", published(), HEADS)
    fresh = gpt2(vocab=VOCAB, positions=POSITIONS, width=WIDTH, heads=HEADS, depth=DEPTH)
    shapes = jax.eval_shape(fresh.init, jax.random.key(0), jax.ShapeDtypeStruct((POSITIONS,), np.int32))
    assert jax.tree.map(lambda t: (t.shape, t.dtype), shapes) == jax.tree.map(lambda t: (t.shape, t.dtype), params)
    assert [layer.name for layer in leaves(net)] == [layer.name for layer in leaves(fresh)]


@pytest.mark.parametrize(("size", "count"), [("124M", 124_439_808), ("1558M", 1_557_611_200)])
def test_the_published_sizes(size, count):
    net = gpt2(size)
    params = jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct((1024,), np.int32))
    assert sum(t.size for t in jax.tree.leaves(params)) == count
    assert GPT2_SIZES[size][0] % 64 == 0


@pytest.mark.peers
@pytest.mark.slow
def test_against_the_library_that_publishes_them(tmp_path):
    """Needs transformers: python -m pytest -m slow tests/test_language.py."""
    torch = pytest.importorskip("torch", reason="torch comes with the extra `peers`")
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=31, n_positions=16, n_embd=24, n_head=3, n_layer=2)
    theirs = GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path)
    tokens = np.array(integers(5, (2, 16), 31))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens).long()).logits.numpy()
    net, params = load_gpt2(tmp_path / "model.safetensors")
    np.testing.assert_allclose(jn.predict(net)(params, jnp.asarray(tokens)), expected, rtol=1e-4, atol=1e-5)
    save_gpt2(tmp_path / "model.safetensors", jax.tree.map(lambda t: 0.5 * t, params))
    changed = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        halved = changed(torch.tensor(tokens).long()).logits.numpy()
    net, params = load_gpt2(tmp_path / "model.safetensors")
    np.testing.assert_allclose(jn.predict(net)(params, jnp.asarray(tokens)), halved, rtol=1e-4, atol=1e-5)


def without(name: str) -> dict[str, np.ndarray]:
    return {key: array for key, array in published().items() if key != name}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (without("wte.weight"), "begin with wte.weight, wpe.weight and h.0.ln_1.weight, got"),
        ({}, "got none"),
        (without("h.1.mlp.c_fc.bias"), "has h.1.mlp.c_fc.bias of shape (32,), got nothing"),
        (published() | {"ln_f.bias": np.ones(3, np.float32)}, "has ln_f.bias of shape (8,), got shape (3,)"),
        (published() | {"h.0.attn.rotary": np.ones(3)}, "holds arrays that GPT-2 has not: h.0.attn.rotary"),
        (published() | {"lm_head.weight": np.ones((VOCAB, WIDTH))}, "lm_head.weight differs from wte.weight"),
    ],
)
def test_weights_that_are_not_gpt2s(arrays, message):
    with pytest.raises(WeightsError, match=re.escape(message)):
        from_arrays("here", arrays, HEADS)


def test_files_that_are_no_weights(tmp_path):
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        load_gpt2(tmp_path / "nowhere.safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        load_gpt2(tmp_path / "model.safetensors")
    save_file(published(), tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="3 heads do not divide the width 8"):
        load_gpt2(tmp_path / "model.safetensors", heads=3)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json must be a JSON table"):
        load_gpt2(tmp_path / "model.safetensors")


def logits_of(path: Path) -> np.ndarray:
    net, params = load_gpt2(path)
    return np.asarray(jn.predict(net)(params, jnp.asarray(TOKENS)))


def test_a_folder_with_several_files_and_a_head_alone(tmp_path):
    arrays = without("wte.weight") | {"lm_head.weight": published()["wte.weight"]}
    (tmp_path / "config.json").write_text(json.dumps({"n_head": HEADS}))
    save_file(published(), tmp_path / "model.safetensors")
    expected = logits_of(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    names = sorted(arrays)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, inside in parts.items():
        save_file({name: arrays[name] for name in inside}, tmp_path / file)
    index = {"weight_map": {name: file for file, inside in parts.items() for name in inside}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    np.testing.assert_array_equal(logits_of(tmp_path), expected)
    np.testing.assert_array_equal(logits_of(tmp_path / "model.safetensors.index.json"), expected)
    for bad in ({"weight_map": {"wte.weight": "../a.safetensors"}}, {"weight_map": {}}, {}):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(bad))
        with pytest.raises(WeightsError, match="weight_map must name files in the folder of the index"):
            load_gpt2(tmp_path)


def test_the_activation_that_a_config_names(tmp_path):
    save_file(published(), tmp_path / "model.safetensors")
    params = from_arrays("here", published(), HEADS)[1]
    for named, ours in {"gelu_new": "gelu_tanh", "gelu": "gelu", "relu": "relu", "swish": "silu"}.items():
        (tmp_path / "config.json").write_text(json.dumps({"n_head": HEADS, "activation_function": named}))
        net = gpt(VOCAB, WIDTH, HEADS, DEPTH, POSITIONS, activation=ours, tied_head=True)
        np.testing.assert_array_equal(logits_of(tmp_path), jn.predict(net)(params, jnp.asarray(TOKENS)))


def test_the_epsilon_that_a_config_names(tmp_path):
    """Each norm has it: out = γ (x − μ)/√(variance + ε) + β; the first one's x is known."""
    arrays = published()
    save_file(arrays, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"n_head": HEADS, "layer_norm_epsilon": 0.5}))
    net, params = load_gpt2(tmp_path)
    steps = jn.trace(net, jn.softmax_cross_entropy)(params, jnp.asarray(TOKENS[0]), jnp.asarray(TARGETS[0])).steps
    norms = [step for step in steps if step.layer.value.startswith("layer_norm")]
    x = arrays["wte.weight"][TOKENS[0]] + arrays["wpe.weight"]
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 0.5)
    expected = arrays["h.0.ln_1.weight"] * normed + arrays["h.0.ln_1.bias"]
    np.testing.assert_allclose(norms[0].out[0], expected, rtol=1e-4, atol=1e-5)
    assert str(net.parts).count("layer_norm(epsilon=0.5)") == len(norms) == 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"layer_norm_epsilon": -1}, "layer_norm_epsilon must be a number of at least 0, got -1"),
        ({"layer_norm_epsilon": "small"}, 'layer_norm_epsilon must be a number of at least 0, got "small"'),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx must be false, as in GPT-2"),
        ({"scale_attn_weights": False}, "scale_attn_weights must be true"),
        ({"activation_function": "quick_gelu"}, "activation_function must be one of gelu_new, "),
        ({"activation_function": 3}, "got 3"),
        ({"n_head": -1}, "n_head must be a whole number of at least 1, got -1"),
        ({"n_head": True}, "n_head must be a whole number of at least 1, got true"),
        ({"n_layer": 7}, f"the weights have depth {DEPTH}, config.json says 7"),
        ({"model_type": "gptj"}, 'model_type must be "gpt2"'),
        ([], "must be a JSON table, got []"),
    ],
)
def test_a_config_that_asks_for_another_network_is_refused(tmp_path, config, message):
    save_file(published(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"n_head": HEADS} | config if config else config))
    with pytest.raises(WeightsError, match=re.escape(message)):
        load_gpt2(tmp_path)


# --------------------------------------------------------------------------------------- the backward passes


@pytest.mark.parametrize("problem", LANGUAGE_MODELS, ids=lambda p: p.id)
def test_models_agree_with_autodiff(problem, x64):
    """As they are trained: what they are composed of is held against autodiff in all other ways."""
    both = jax.jit(lambda *inputs: (read(problem, *inputs), by_autodiff(problem, *inputs)))
    assert_agree(*both(*problem.inputs(jnp.float64)))


def test_the_program_of_a_step_does_not_grow_with_the_depth():
    """So compiling takes no longer: `repeat` is one scan."""

    def length(depth: int) -> int:
        net = gpt(VOCAB, 8, 2, depth, POSITIONS, remat=True)
        tokens = jnp.asarray(TOKENS)
        params = jax.eval_shape(net.init, jax.random.key(0), tokens[0])
        step = jax.jit(jn.value_and_grad(net, jn.softmax_cross_entropy))
        return len(step.lower(params, tokens, tokens).as_text().splitlines())

    assert length(2) == length(48)


# --------------------------------------------------------------------------------------------- what is seen


@pytest.mark.parametrize(
    "net", [gpt(VOCAB, 8, 2, 2, POSITIONS), gpt(VOCAB, 8, 2, 2, 99, rotary=True), char_lstm(VOCAB, 8, 2)],
    ids=["gpt", "rotary", "char_lstm"],
)  # fmt: skip
def test_no_later_token_is_seen_and_every_earlier_one_is(net):
    params = jax.jit(net.init)(jax.random.key(0), jnp.asarray(TOKENS[0]))
    forward = jax.jit(lambda params, tokens: net.forward(params, tokens)[0])
    tokens = jnp.asarray(TOKENS[0])
    before = forward(params, tokens)
    for place in (0, 3, POSITIONS - 1):
        after = forward(params, tokens.at[place].set((tokens[place] + 1) % VOCAB))
        changed = np.abs(np.array(after - before)).max(axis=1) > 1e-7
        np.testing.assert_array_equal(changed, np.arange(POSITIONS) >= place)


def test_models_refuse_what_they_cannot_take(unchecked):
    with pytest.raises(ValueError, match='a norm is one of layer_norm, rms_norm, got "batch"'.replace('"', "'")):
        gpt(VOCAB, 8, 2, 2, 4, norm="batch")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="GPT-2 was published as 124M, 355M, 774M, 1558M, got '1M'"):
        gpt2("1M")  # pyright: ignore[reportArgumentType]
    with pytest.raises(jn.ShapeError, match="positional_embedding 4 has 4 positions, got a sequence of 7"):
        gpt(VOCAB, 8, 2, 2, 4).init(jax.random.key(0), jnp.asarray(TOKENS[0]))
    with pytest.raises(jn.ShapeError, match="takes a width that 3 heads divide, got 8"):
        gpt(VOCAB, 8, 3, 2, 7).init(jax.random.key(0), jnp.asarray(TOKENS[0]))
