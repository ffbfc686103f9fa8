"""Configs: read, written and read again; each way in which one can be wrong; overrides; the schema for editors."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from jaxnet.layers import INITIALIZERS
from jaxnet.training.config import Config, ConfigError, dump_toml, json_schema, load_config, make_config
from jaxnet.training.names import LAYERS, OPTIMIZERS, SCHEDULES
from jaxnet.training.overrides import apply, parse
from tests.problems import LOSSES
from tests.runs import small

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.toml"))
RECIPES = [
    "char_gpt",
    "char_lstm",
    "digits",
    "dp_mnist",
    "kfac_mnist",
    "lenet5",
    "mlp",
    "modular_addition",
    *(
        f"nielsen_ch{which}"
        for which in ["1_100", "1_30", "3_100", "3_30", "3_98", "5_1", "5_2", "5_3", "5_4", "5_speeds"]
    ),
    *(f"nielsen_ch6_{which}" for which in ["conv", "dropout", "expanded", "relu", "two_conv"]),
    "residual_cnn_digits",
    "residual_cnn_mnist",
    "two_three_two",
]
SMALL = """
loss = "quadratic"
model = [{ dense = 30 }, "sigmoid", { dropout = 0.1 }]
[train]
epochs = 1
optimizer = { name = "sgd", learning_rate = 3 }
"""


def config(*overrides: str) -> Config:
    return make_config(tomllib.loads(SMALL), overrides)


def refused(message: str, *overrides: str) -> str:
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        config(*overrides)
    return str(error.value)


# ------------------------------------------------------------------------------------ read and written


def test_the_recipes_are_there():
    assert [path.stem for path in CONFIGS] == RECIPES


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_written_config_is_the_same_config(path, tmp_path):
    first = load_config(path)
    assert first.name == path.stem
    assert f"# jaxnet train configs/{path.name}" in path.read_text().splitlines()[0]
    copy = tmp_path / "another.toml"
    copy.write_text(dump_toml(first))
    assert load_config(copy) == first
    assert dump_toml(load_config(copy)) == dump_toml(first)


EVERY_LAYER = [
    "sigmoid",
    {"dense": 30},
    {"dense": {"units": 3, "bias": False, "init": "orthogonal"}},
    {"dense": {"units": 2, "weights": [[0.1, -0.2, 1]], "biases": [0, 1]}},
    {"dropout": 0.2},
    "leaky_relu",
    {"leaky_relu": 0.1},
    {"reshape": [28, 28]},
    "flatten",
    {"residual": ["relu", {"dense": 3}]},
    {"residual": "relu"},
    {"residual": {"dense": {"units": 3}}},
    {"residual": {"block": {"dense": 3}}},
    {"repeat": {"times": 4, "block": [{"residual": [{"dense": 3}]}]}},
    {"parallel": {"branches": [["relu"], ["tanh"]], "join": "concatenate"}},
    {"per_position": [{"dense": 2}]},
    {"remat": ["relu"]},
    {"tied": {"layers": [{"dense": 3}, {"dense": 3}], "share": "W", "where": [0, 1]}},
    "package.module:object",
    {"package.module:object": {"heads": 4, "deep": [{"a": 1}]}},
]


def test_every_form_of_a_layer_survives_writing_and_reading():
    wanted = Config.model_validate(tomllib.loads(SMALL) | {"model": EVERY_LAYER})
    assert wanted.model == EVERY_LAYER
    assert Config.model_validate(tomllib.loads(dump_toml(wanted))) == wanted


def test_numbers_become_what_the_field_says():
    made = config("train.l2=5", "train.optimizer.learning_rate=3")
    assert made.train.l2 == 5.0
    assert isinstance(made.train.l2, float)
    assert isinstance(made.train.optimizer["learning_rate"], float)


def test_a_config_never_changes():
    with pytest.raises(ValueError, match="frozen"):
        config().seed = 3  # pyright: ignore[reportAttributeAccessIssue]


# --------------------------------------------------------------------------------------------- refused

WRONG = [
    # overrides, what the message says
    (["train.epocs=3"], 'train: unknown key "epocs": did you mean "epochs"?'),
    (["sed=3"], 'unknown key "sed": did you mean "seed"?'),
    (["monitor.delta_norm=true"], 'monitor: unknown key "delta_norm": did you mean "delta_norms"?'),
    (["train.epochs=many"], 'train.epochs: must be a whole number, got "many"'),
    (["train.epochs='3'"], 'train.epochs: must be a whole number, got "3": write 3, without quotes'),
    (["train.epochs=3.5"], "train.epochs: must be a whole number, got 3.5"),
    (["train.epochs=true"], "train.epochs: must be a whole number, got true"),
    (["train.epochs=-1"], "train.epochs: must be at least 0, got -1"),
    (["train.batch=0"], "train.batch: must be at least 1, got 0"),
    (["train.batch=10,20"], 'train.batch: must be a whole number, got "10,20": the values of a sweep stand in'),
    (["train.shuffle=True"], 'train.shuffle: must be true or false, got "True": write true, without quotes'),
    (["train.l2=.5"], 'train.l2: must be a number, got ".5": write 0.5, without quotes'),
    (["train.l2=nan"], "train.l2: must be a finite number, got nan"),
    (["train.clip_norm=0"], "train.clip_norm: must be above 0, got 0"),
    (["train=3"], "train: must be a table, got 3"),
    (["train.chunks=5"], "train.batch must be a multiple of train.chunks = 5, got 32"),
    (["mesh.data=5"], "train.batch must be a multiple of mesh.data = 5, got 32"),
    (["precision=half"], "precision: must be 'float32', 'bfloat16', 'float16' or 'float64', got \"half\""),
    (["name=../up"], 'name: must match ^(\\w[\\w.+-]*)?$, got "../up"'),
    (["seed=4294967296"], "seed: must be below 4294967296"),
    (["promise.test_accuracy=97"], "promise.test_accuracy: must be at most 1, got 97"),
    (["init=nielsn"], 'init: must be an initialiser, got "nielsn": did you mean "nielsen"?'),
    (["loss=quadratik"], 'got "quadratik": did you mean "quadratic"?'),
    (["loss={name='huber', treshold=1}"], 'loss: unknown key "treshold": did you mean "threshold"?'),
    (["loss=3"], "loss: must be a name or a table with one"),
    (["loss={}"], "loss: must be a name or a table with one"),
    (["data=3"], "data: must be text, got 3"),
    (["data={split=[1,2,3]}"], "data.name: is missing"),
    (["train.optimizer=sgdd"], 'got "sgdd": did you mean "sgd"?'),
    (["train.optimizer=adam"], '"adam" needs options: write { name = "adam", learning_rate = … }'),
    (["train.optimizer.momentun=0.9"], 'train.optimizer: unknown key "momentun": did you mean "momentum"?'),
    (["train.optimizer.nesterov=1"], "train.optimizer.nesterov: must be true or false, got 1"),
    (["train.optimizer.learning_rate=fast"], 'train.optimizer.learning_rate: must be a number, got "fast"'),
    (["train.optimizer={name='sgd'}"], "train.optimizer.learning_rate: is missing"),
    (["train.optimizer.learning_rate={schedule='cosine'}"], "must be a known schedule"),
    (
        ["train.optimizer.learning_rate={schedule='cosine_decay_schedule', init_value=1, decay_step=3}"],
        'train.optimizer.learning_rate: unknown key "decay_step": did you mean "decay_steps"?',
    ),
    (["model=[]"], "model: must have at least 1, got []"),
    (["model=3"], "model: must be a name or a table with one"),
    (["model=mpl"], 'got "mpl": did you mean "mlp"?'),
    (["model=mlp"], '"mlp" needs options: write { name = "mlp", widths = … }'),
    (["model={name='mlp', widths=[]}"], "model.widths: must have at least 1, got []"),
    (["model={name='mlp', widths=[0]}"], "model.widths.0: must be at least 1, got 0"),
    (["model={name='mlp', widths=[3], activation='rulu'}"], 'got "rulu": did you mean "relu"?'),
    (["model=['sigmoit']"], 'model.0: must be a known layer or "package.module:object", got "sigmoit": did you mean'),
    (["model=['dense']"], 'model.0: "dense" needs units: write { dense = … }'),
    (["model=[{sigmoid=3}]"], 'model.0: "sigmoid" takes no options: write "sigmoid"'),
    (["model=[{dense=3, relu=1}]"], 'model.0: must be one layer: "relu", or { dense = 30 }, got a table with dense'),
    (["model=[{}]"], "got a table with nothing in it"),
    (["model=[3]"], "model.0: must be one layer"),
    (["model.0.dens=3"], 'got a table with dense, dens; no layer "dens": did you mean "dense"?'),
    (["model.0.dense=0"], "model.0.dense: must be at least 1, got 0"),
    (["model.0.dense=3.5"], "model.0.dense: must be a whole number, got 3.5"),
    (["model.0.dense={unit=3}"], 'model.0.dense: unknown key "unit": did you mean "units"?'),
    (["model.0.dense={units=3, init='x'}"], "model.0.dense.init: must be an initialiser"),
    (["model.0={residual=[{dense='3'}]}"], "model.0.residual.0.dense: must be a whole number"),
    (["model.0={repeat={times=2}}"], "model.0.repeat.block: is missing"),
    (["model.0={reshape=28}"], "model.0.reshape: must be a list, got 28"),
    (
        ["model.0={parallel={branches=[['relu']], join='add'}}"],
        "model.0.parallel.join: must be 'sum', 'product' or 'concatenate'",
    ),
    # the override itself
    (["epochs"], 'an override must be key=value, such as train.epochs=3, got "epochs"'),
    (["=3"], "a key must be dotted"),
    (["a b=3"], "a key must be dotted"),
    (["model=[{dense=3}"], "the value of an override must be TOML"),
    (["seed=1\nname=2"], "an override must set one value"),
    (["model.7=relu"], 'a list of 3 has positions 0 to 2, got "7"'),
    (["model.first=relu"], 'a list of 3 has positions 0 to 2, got "first"'),
]


@pytest.mark.parametrize(("overrides", "message"), WRONG, ids=[each[0][0] for each in WRONG])
def test_a_wrong_field_is_named_with_what_must_hold_and_what_came(overrides, message):
    told = refused(message, *overrides)
    assert "<" not in told  # no marks of choices in the place


def test_an_override_inside_of_what_has_no_inside():
    refused("seed is 3 and has nothing inside: set seed itself", "seed=3", "seed.x=3")


def test_all_errors_are_told_at_once():
    told = refused("config with", "seed=true", "train.batch=0", "loss=x")
    assert told.count("\n") == 3


def test_missing_fields_are_named():
    with pytest.raises(ConfigError) as error:
        make_config({}, where="empty.toml")
    for key in ("loss", "model", "train"):
        assert f"{key}: is missing" in str(error.value)
    assert str(error.value).startswith("empty.toml:")


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_files_that_are_no_config(tmp_path):
    good = write(tmp_path / "mine.toml", SMALL)
    assert load_config(good).name == "mine"
    for path, message in (
        (tmp_path / "mien.toml", f'there is no config {tmp_path / "mien.toml"}: did you mean "{good}"?'),
        (Path("q"), "there is no config q: give the path of a TOML file"),
        (tmp_path, "must be a file that can be read: Is a directory"),
        (write(tmp_path / "broken.toml", "loss = "), "must be TOML: Invalid value"),
        (write(tmp_path / "latin.toml", b"# caf\xe9"), "must be a text file in UTF-8, got byte 0xe9"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            load_config(path)


def test_an_awkward_file_name_makes_a_name(tmp_path):
    assert load_config(write(tmp_path / "-my net (1).toml", SMALL)).name == "_my_net__1_"


# ------------------------------------------------------------------------------------------- overrides

keys = st.text(min_size=1, max_size=8)
values = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(keys, min_size=1, max_size=4), values)
def test_any_value_at_any_place_is_read_as_it_was_written(path, value):
    dotted = ".".join(json.dumps(part, ensure_ascii=False).replace("\x7f", "\\u007f") for part in path)
    value = [0, value]  # in a mixed list, tables are written inline
    text = tomli_w.dumps({"v": value}).partition("=")[2].strip()
    where, found = parse(f"{dotted}={text}")
    assert (where, found) == (tuple(path), value)
    node = apply({}, [f"{dotted}={text}"])
    for part in path:
        node = node[part]
    assert node == value


def test_overrides_change_the_place_and_nothing_else():
    before = tomllib.loads(SMALL)
    made = make_config(before, ["train.epochs=7", "model.0.dense=50", "data=mnist", "name=a.b-c", "mesh.data=2"])
    assert (made.train.epochs, made.model[0], made.data, made.name) == (7, {"dense": 50}, "mnist", "a.b-c")
    assert made.mesh.data == 2
    assert before == tomllib.loads(SMALL)
    assert made.model[1:] == config().model[1:]


def test_the_last_override_holds():
    assert config("seed=1", "seed=2").seed == 2


def test_options_beside_a_bare_name_or_argument():
    made = config("data=mnist", "data.split=[1,2,3]", "model.0.dense.bias=false", "loss=huber", "loss.threshold=2")
    assert made.data == {"name": "mnist", "split": [1, 2, 3]}
    assert made.model[0] == {"dense": {"units": 30, "bias": False}}
    assert made.loss == {"name": "huber", "threshold": 2.0}


def test_a_bad_override_is_an_error_of_its_own():
    with pytest.raises(ConfigError):
        parse("x")


# ---------------------------------------------------------------------------------------------- schema


def strings(node) -> set[str]:
    """Every text in a schema's enums and constants."""
    if isinstance(node, dict):
        own = {node["const"]} if isinstance(node.get("const"), str) else set(node.get("enum", ()))
        return own.union(*map(strings, node.values()))
    return set().union(*map(strings, node)) if isinstance(node, list) else set()


def test_the_schema_names_all_that_a_config_may_name():
    schema = json_schema()
    assert list(schema["properties"]) == [*Config.model_fields, "include"]
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["loss", "model", "train"]
    found = strings(schema) | {key for table in schema["$defs"].values() for key in table.get("properties", ())}
    assert found.issuperset({*OPTIMIZERS, *SCHEDULES, *LOSSES, *LAYERS, *INITIALIZERS})
    assert "Nielsen" in schema["$defs"]["Train"]["properties"]["l2"]["description"]
    for reference in re.findall(r'"\$ref": "([^"]*)"', json.dumps(schema)):
        assert reference.removeprefix("#/$defs/") in schema["$defs"]


@pytest.mark.parametrize("value", ["[" * 3000 + "]" * 3000, "9" * 5000], ids=["deep", "long"])
def test_a_value_too_deep_or_too_long_is_told(tmp_path, value):
    (tmp_path / "a.toml").write_text(f"seed = {value}")
    with pytest.raises(ConfigError, match="must be TOML"):
        load_config(tmp_path / "a.toml")
    (tmp_path / "a.toml").write_text(dump_toml(small()))
    with pytest.raises(ConfigError, match="seed"):
        load_config(tmp_path / "a.toml", [f"seed={value}"])


@pytest.mark.parametrize("text", ["a." * 3000 + "b = 1", f"model = {'[' * 200}{']' * 200}"], ids=["keys", "lists"])
def test_what_toml_reads_and_python_cannot_walk_is_told(tmp_path, text):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ConfigError, match="nested at most 100 deep"):
        load_config(tmp_path / "a.toml")
    (tmp_path / "a.toml").write_text(dump_toml(small()))
    with pytest.raises(ConfigError, match="nested at most 100 deep"):
        load_config(tmp_path / "a.toml", [text])


# -------------------------------------------------------------------------------------- links and includes


def config_of(tmp_path, text: str, *overrides: str) -> Config:
    (tmp_path / "c.toml").write_text(text + '[train]\nbatch = 20\nepochs = 1\noptimizer = "sgd_of"\n')
    return load_config(tmp_path / "c.toml", ["train.optimizer={name='sgd', learning_rate=0.1}", *overrides])


MODEL = 'loss = "quadratic"\n'


def test_a_value_may_be_that_of_another_key(tmp_path):
    text = MODEL + 'name = "b${train.batch}"\nmodel = [{ dense = 7 }, { dense = "${model.0.dense}" }, "${feedback}"]\n'
    config = config_of(tmp_path, text + 'feedback = "sign"\nseed = "${train.batch}"\n', "model.2='relu'")
    assert (config.name, config.seed) == ("b20", 20)
    assert config.model == [{"dense": 7}, {"dense": 7}, "relu"]
    assert "${" not in dump_toml(config)
    assert config_of(tmp_path, text, "model.0.dense=9", "model.2='relu'").model[1] == {"dense": 9}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("${train.bath}", '"${train.bath}" must name a key that this config sets: there is no bath'),
        ("${HOME}", "there is no HOME"),
        ("${seed}", "the links seed → seed lead back to themselves"),
        ("${}", "must be dotted"),
        ("x${train}", "has a table or a list inside of text"),
        ("${model.5}", "there is no 5"),
    ],
)
def test_links_that_lead_nowhere(tmp_path, value, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        config_of(tmp_path, MODEL + f'model = [{{ dense = 7 }}]\nseed = "{value}"\n')


def test_a_config_may_include_another(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "whole.toml").write_text(dump_toml(small()))
    (tmp_path / "base" / "middle.toml").write_text('include = "whole.toml"\nseed = 3\n[train]\nbatch = 5\n')
    (tmp_path / "top.toml").write_text('include = "base/middle.toml"\nmodel = [{ dense = 3 }]\n[train]\nepochs = 9\n')
    whole, config = small(), load_config(tmp_path / "top.toml", ["seed=4"])
    assert config.train == whole.train.model_copy(update={"batch": 5, "epochs": 9})
    assert (config.seed, config.model, config.loss) == (4, [{"dense": 3}], whole.loss)
    (tmp_path / "top.toml").write_text('include = "base/middle.toml"\ndata = { name = "digits", limit = 9 }\n')
    assert load_config(tmp_path / "top.toml").data == {"name": "digits", "limit": 9}
    (tmp_path / "base" / "whole.toml").write_text('include = "middle.toml"\n')
    with pytest.raises(ConfigError, match="include must not come back to a file that includes it"):
        load_config(tmp_path / "top.toml")
    for text, message in {"include = 3": "include must be a path", 'include = "no.toml"': "there is no config"}.items():
        (tmp_path / "top.toml").write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_config(tmp_path / "top.toml")
