"""What every test runs under: eight CPU devices, float64 where asked for, strict dtypes and ranks, checked shapes."""

import gc
import os
import signal
from functools import cache, wraps
from importlib.metadata import version

# Tests run each small program once or twice: to compile it quickly is worth more than to run it quickly. The last two
# make a compilation four times faster; later releases of jaxlib do not know the second, and stop at an unknown flag.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true --xla_cpu_parallel_codegen_split_count=1 "
    f"{'--xla_cpu_use_fusion_emitters=false' if version('jaxlib').startswith('0.10.') else ''}"
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.pop("COLUMNS", None)  # xdist gives its workers a width; users' pipes have none

from pathlib import Path

import jax
import jaxtyping
import pytest
from jax._src import traceback_util
from jax._src.interpreters import mlir
from jaxlib.mlir import ir

# One MLIR context for all programs. JAX makes one for each: a third of an eager operation's compilation, and 1 MB kept.
# A program that is compiled while another is being written has its own, or its copy would land inside the other.
new_context = mlir.make_ir_context
shared_context = cache(new_context)
mlir.make_ir_context = lambda: new_context() if ir.Context.current else shared_context()

# JAX asks the file system of each frame of an error whether it is its own: 8 % of the time of the checker's tests.
traceback_util.include_filename = cache(traceback_util.include_filename)

gc.disable()  # until the tests are collected: of the time until then it takes a fifth

# nohup and a shell's & have these ignored, and a process of a test would inherit it.
for number, default in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, default)


def where_annotated(jaxtyped):
    """Functions without annotations stay as they are: wrapping each inner one took an eighth of the time.

    Those without shapes have beartype alone: jaxtyping's account of shapes took half of the time of a page.
    """

    def decorated(*, typechecker):
        checked = jaxtyped(typechecker=typechecker)

        def of(thing):
            if isinstance(thing, type) or "Float[" in str(thing.__annotations__):
                return checked(thing)
            return either(thing, typechecker(thing)) if thing.__annotations__ else thing

        return of

    return decorated


def either(function, held):
    """The function held to its annotations, or not, as the fixture `unchecked` says."""

    @wraps(function)
    def called(*arguments, **options):
        return (function if jaxtyping.config.jaxtyping_disable else held)(*arguments, **options)

    return called


# The rooms that take arrays of known shapes: there beartype holds every annotated argument. The rooms above take what
# users write, check it by themselves, and their tests hand them the wrong things. An int is taken where a float is.
ROOMS = "layer factors readings layers losses combinators models backprop feedback quantities explaining"
TYPECHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
jaxtyping.jaxtyped = where_annotated(jaxtyping.jaxtyped)
jaxtyping.install_import_hook([f"jaxnet.{room}" for room in ROOMS.split()], TYPECHECKER)

from jaxnet.training import loop  # noqa: E402 (the hook above comes before any module of jaxnet)
from jaxnet.training.data.own import ALLOWED  # noqa: E402
from jaxnet.training.program_cache import keep_compiled  # noqa: E402

# Of the tests' time XLA takes two fifths: the workers, and the next run, have what one of them compiled.
keep_compiled(Path(__file__).parent.parent / ".pytest_cache" / "programs")

ALLOWED.read_beside(Path(__file__).parent)  # a config in any folder may name the tests' own modules


# With several workers a file stays with one of them: what its tests compile or train together is made once. Files of
# few and long tests are begun first, so that none of them is left over for the end.
LONG = ("test_resume", "test_readme", "test_sweep", "test_training_errors", "test_signals", "test_mesh",
        "test_guide_of_runs")  # fmt: skip


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem not in LONG)


def pytest_collection_finish():
    """What is imported stays: the collector need not look at it again and again."""
    gc.freeze()
    gc.enable()
    gc.set_threshold(100_000, 50, 50)  # programs as they are traced are many objects: collecting took 6 % of the time


DRAW_CURVES = loop.draw_curves
loop.draw_curves = lambda runs: None  # half of the time of a small training


@pytest.fixture
def curves(monkeypatch):
    """Training draws its curves, as it does for users."""
    monkeypatch.setattr(loop, "draw_curves", DRAW_CURVES)


@pytest.fixture(autouse=True)
def strict_jax():
    """Strict dtype promotion and no silent rank promotion, in every test."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def x64():
    """Float64 for tests that hold gradients to float64 noise."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def unchecked():
    """Annotations not enforced: for what jaxnet itself says to a wrong argument."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def browser():
    """Chromium, driven by playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra `peers`: pip install -e '.[peers]'")
    if not CHROMIUM.exists():
        pytest.skip(f"needs a browser at {CHROMIUM}: apt-get install chromium (the extra `peers` drives it)")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield opened
        opened.close()
