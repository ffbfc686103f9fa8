"""What the source itself promises: no autodiff in what is written by hand, imports that run downward, single names."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import jaxnet

PACKAGE = Path(jaxnet.__file__).parent
AUTODIFF = {"grad", "value_and_grad", "vjp", "vjp3", "jvp", "linearize", "linear_transpose", "jacfwd", "jacrev",
            "jacobian", "hessian", "checkpoint", "remat", "custom_jvp", "custom_vjp", "custom_gradient",
            "closure_convert", "ad", "ad_checkpoint", "fwd_and_bwd"}  # fmt: skip
BY_HAND = [*(PACKAGE / f"{room}.py" for room in ("registry", "layer", "factors", "readings", "losses", "combinators",
           "heads", "backprop", "traces")), *PACKAGE.glob("layers/**/*.py"), *PACKAGE.glob("models/**/*.py"),
           *PACKAGE.glob("devices/*.py")]  # fmt: skip
# From the bottom up; rooms of one line may use each other, though not in a circle.
FLOORS = [
    ["registry"],
    ["layer"],
    ["errors"],
    ["lowering"],
    ["factors"],
    ["readings"],
    ["combinators"],
    ["losses"],
    ["layers"],
    ["heads"],
    ["models"],
    ["backprop"],
    ["traces"],
    ["program"],
    ["devices", "feedback", "quantities", "checking", "explaining"],
    ["ascii_spelling"],
    ["training", "bench"],
    ["cli"],
    ["__main__"],
]
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def dotted(node) -> list[str]:
    """`a.b.c` as its names; nothing for what is no such chain."""
    if isinstance(node, ast.Name):
        return [node.id]
    head = dotted(node.value) if isinstance(node, ast.Attribute) else []
    return [*head, node.attr] if head else []


def autodiff_in(source: str, allowed=()) -> list[str]:
    """Every use of JAX's differentiation in a source: by `jax.…`, an alias of it, or an imported name."""
    tree, found, jax_names = ast.parse(source), [], set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] in ("jax", "optax", "equinox", "flax"):
                    jax_names.add((name.asname or name.name).split(".")[0])
                    found += [part for part in name.name.split(".") if part in AUTODIFF]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("jax", "optax"):
            jax_names |= {name.asname or name.name for name in node.names}
            found += [name.name for name in node.names if name.name in AUTODIFF]
            found += [part for part in (node.module or "").split(".") if part in AUTODIFF]
    for node in ast.walk(tree):
        names = dotted(node) if isinstance(node, ast.Attribute) else []
        if names and names[0] in jax_names and names[-1] in AUTODIFF:
            found.append(".".join(names))
        if isinstance(node, ast.Call) and dotted(node.func) == ["getattr"]:
            found += [arg.value for arg in node.args if isinstance(arg, ast.Constant) and arg.value in AUTODIFF]
    return [name for name in found if name not in allowed]


@pytest.mark.parametrize("path", BY_HAND, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_backward_passes_are_written_by_hand(path):
    # `as_custom_vjp` hands a rule to JAX's differentiation; it takes none from it.
    allowed = ["jax.custom_vjp"] if path.name == "backprop.py" else []
    assert autodiff_in(path.read_text(), allowed) == []


@pytest.mark.parametrize(
    "source",
    [
        "import jax\njax.grad(f)",
        "import jax as j\ng = j.vjp",
        "from jax import value_and_grad as v",
        "from jax import lax\nlax.linear_transpose",
        "import jax\njax.lax.custom_linear_solve; jax.jacfwd",
        "from jax.ad_checkpoint import checkpoint_name",
        "import jax.interpreters.ad",
        "import jax\ngetattr(jax, 'grad')(f)",
    ],
)
def test_autodiff_would_be_found(source):
    assert autodiff_in(source)


def test_own_names_are_no_autodiff():
    assert autodiff_in("import jax\nfrom jaxnet import remat\ndef value_and_grad(): return jax.vmap\nvjp = remat") == []


# ------------------------------------------------------------------------------------------------------------- imports


def module_name(path: Path) -> str:
    """The dotted name of a file of the package: `jaxnet.layers.dense`."""
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    return name.removesuffix(".__init__")


def room_of(module: str) -> str:
    """The part of the package that a module belongs to; a name of `jaxnet` itself asks for the whole core."""
    room = [*module.split("."), ""][1]
    return room if room in FLOOR else "backprop"


def imported(source: str, name: str) -> set[str]:
    """Everything of jaxnet that a source imports, inside functions too: `jaxnet.layers.dense.dense`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno} imports relatively"
            found |= {f"{node.module}.{each.name}" for each in node.names}
    assert not any(each.split(".")[0] == "experiments" for each in found), (
        f"{name} imports experiments, which stand above"
    )
    return {each for each in found if each.split(".")[0] == "jaxnet"}


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


@cache
def imports() -> dict[str, set[str]]:
    """What each module imports of jaxnet."""
    return {module: imported(path.read_text(), module) for module, path in MODULES.items()}


def module_of(name: str) -> str:
    """The module that an imported name is of."""
    while name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def test_imports_run_downward():
    for module, names in imports().items():
        if module == "jaxnet":
            continue
        assert module.split(".")[1] in FLOOR, f"{module} has no floor yet: put its room into FLOORS"
        for name in names:
            assert FLOOR[room_of(name)] <= FLOOR[room_of(module)], f"{module} imports {name}, which stands above it"


def circles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """The sets of nodes that reach each other."""
    reached = {node: {node} for node in graph}
    grows = True
    while grows:
        grows = False
        for node, nexts in graph.items():
            more = set().union(*(reached[each] for each in nexts), reached[node])
            grows |= more != reached[node]
            reached[node] = more
    together = (frozenset(b for b in graph if a in reached[b] and b in reached[a]) for a in graph)
    return {each for each in together if len(each) > 1}


def test_no_circle_of_modules():
    found = circles({module: {module_of(name) for name in names} - {module} for module, names in imports().items()})
    assert [" ".join(sorted(circle)) for circle in found] == []


def test_no_circle_of_rooms():
    rooms: dict[str, set[str]] = {}
    for module, names in imports().items():
        if module != "jaxnet":
            room = room_of(module)
            rooms.setdefault(room, set()).update({room_of(name) for name in names} - {room})
    assert circles(rooms) == set()


def test_a_circle_would_be_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == {frozenset("bc")}


# One name, one subject: the same subject in two rooms may have one name (attention as a layer, and how a platform runs
# it). The others are to be renamed; whoever renames one takes it out here.
SAME_SUBJECT = """
activations attention cells command conv convolutions factors heads images influence losses normalization pooling
products recurrent windows
"""


def repeated(names: list[str]) -> set[str]:
    """The names that stand more than once."""
    return {name for name in names if names.count(name) > 1}


def test_one_name_means_one_thing():
    stems = [path.stem for path in MODULES.values() if path.stem != "__init__"]
    trees = [ast.parse(path.read_text()) for path in MODULES.values()]
    classes = [node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
    twice = (repeated(stems) | repeated(classes)) - set(SAME_SUBJECT.split())
    assert not twice, "two things have one name: rename one of them"


def test_a_repeated_name_would_be_found():
    assert repeated(["tape", "graph", "tape"]) == {"tape"}


def test_import_jaxnet_needs_only_its_four_dependencies():
    """What it loads beyond jax, optax, chex, jaxtyping and the standard library is itself."""
    script = (
        "import sys, jax, optax, chex, jaxtyping, jax.scipy.stats, jax.scipy.special\n"
        "before = set(sys.modules)\nimport jaxnet\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before} - {name.split('.')[0] for name in before}\n"
        "print(sorted(new - set(sys.stdlib_module_names)))\n"
        "print([m for m in ('pydantic', 'typer', 'rich', 'matplotlib', 'orbax', 'sklearn') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert done.stdout.splitlines() == ["['jaxnet']", "[]"]


# --------------------------------------------------------------------------------------------- what a layer is: `made`

LAYERS = {"layer", "leaf", "net", "part", "block", "loss", "inner", "head"}
AUTHORS_CODE = {
    "registry": "names makers by their functions",
    "lowering.op": "names the function that it makes",
    "program.calls": "names a rule",
    "checking.author": "runs an author's functions with their text changed",
    "checking.held_arrays": "gives an author's functions other globals",
    "checking.rules": "finds the arrays that an author's rule captures",
    "explaining.marked_source": "finds the source of an author's function",
    "explaining.recorder": "runs an author's function with its values kept",
    "explaining.numpy_modules": "runs an author's function with another NumPy",
}
"""Modules that read functions, not layers."""


def sniffed(source: str) -> list[str]:
    """Where a source tells what a layer is by its name, or reads a function's qualified name or closure."""
    tree = ast.parse(source)
    asked = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            asked += [node.left, *node.comparators]
        elif isinstance(node, ast.Attribute) and node.attr in ("startswith", "endswith", "split", "partition"):
            asked.append(node.value)
        elif isinstance(node, ast.Subscript):
            asked.append(node.slice)
    names = [dotted(node) for node in asked]
    found = [".".join(name) for name in names if name[-1:] == ["name"] and set(name[-2:-1]) & LAYERS]
    closures = {"__qualname__", "__closure__", "co_freevars", "getclosurevars"}
    return found + [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in closures]


def test_only_made_says_what_a_layer_is():
    found = {module.removeprefix("jaxnet."): sniffed(path.read_text()) for module, path in MODULES.items()}
    guilty = {module for module, names in found.items() if names}
    assert not guilty - set(AUTHORS_CODE), found


def test_a_look_at_a_name_would_be_found():
    assert sniffed("if net.name == 'serial': pass") == ["net.name"]
    assert sniffed("item.layer.name.split(' ')") == ["item.layer.name"]
    assert sniffed("TABLE[loss.name]") == ["loss.name"]
    assert sniffed("inspect.getclosurevars(layer.forward)") == ["getclosurevars"]
    assert sniffed("print(net.name, net.made)") == []
