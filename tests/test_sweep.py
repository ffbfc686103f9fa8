"""Sweeps: what they go over, what they skip, and what they tell."""

import json
import math
import statistics
import time

import numpy as np
import pytest
from PIL import Image

from jaxnet.training import loop
from jaxnet.training.config import ConfigError, dump_toml
from jaxnet.training.lock import Lock
from jaxnet.training.run_folder import Run
from jaxnet.training.run_listing import find_runs, read_run
from jaxnet.training.sweep import Outcome, run_sweep, sweep_table
from jaxnet.training.sweep_figure import importances, places
from jaxnet.training.sweep_file import read_sweep
from tests.runs import called, command, finished, killed, metrics, small


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(dump_toml(small("train.epochs=1", "monitor.delta_norms=false")), "utf-8")
    return path


@pytest.fixture
def sweep_file(base):
    def write(text, name="sweep.toml"):
        path = base.parent / name
        path.write_text(f'base = "{base.name}"\n{text}', "utf-8")
        return path

    return write


# ------------------------------------------------------------------------------------ what it goes over


def test_grid_and_zip(sweep_file):
    path = sweep_file(
        """
        seeds = 3
        together = true
        [grid]
        train.optimizer.learning_rate = [0.1, 1e-5]
        "train.batch" = [5, 10]
        [zip]
        model.0.dense = [4, 8]
        train.epochs = [1, 2]
        """
    )
    sweep = read_sweep(path)
    assert (sweep.seeds, sweep.together) == (3, True)
    points = [
        (each.config.resolved()["model"][0]["dense"], each.config.train.epochs, each.config.train.batch)
        for each in sweep.settings
    ]
    assert points == [(dense, dense // 4, batch) for dense in (4, 8) for _ in range(2) for batch in (5, 10)]
    rates = [each.config.resolved()["train"]["optimizer"]["learning_rate"] for each in sweep.settings]
    assert rates == [0.1, 0.1, 1e-5, 1e-5] * 2
    assert list(sweep.seeds_of(sweep.settings[0])) == [0, 1, 2]
    assert sweep.settings[0].varied["train.optimizer.learning_rate"] == "0.1"


def test_a_config_with_lists_on_the_command_line(base):
    sweep = read_sweep(base, ["train.batch=[5,10]", "seed=7", 'loss=["quadratic","softmax_cross_entropy"]'], seeds=2)
    found = [(each.config.train.batch, each.config.loss) for each in sweep.settings]
    assert found == [(b, loss) for b in (5, 10) for loss in ("quadratic", "softmax_cross_entropy")]
    assert list(sweep.seeds_of(sweep.settings[0])) == [7, 8]
    assert sweep.settings[0].overrides == ("seed=7", "train.batch=5", "loss=quadratic")


def test_whole_models_and_tables_are_swept(base):
    models = '[["tanh", { dense = 3 }], [{ dense = { units = 3, bias = false } }]]'
    schedule = '{ schedule = "constant_schedule", value = 1.0 }'
    optimizers = f'[{{ name = "adam", learning_rate = 0.1 }}, {{ name = "sgd", learning_rate = {schedule} }}]'
    sweep = read_sweep(base, [f"model={models}", f"train.optimizer={optimizers}"])
    found = [each.config.resolved() for each in sweep.settings]
    assert [each["model"] for each in found[::2]] == [["tanh", {"dense": 3}], [{"dense": {"units": 3, "bias": False}}]]
    assert found[1]["train"]["optimizer"]["learning_rate"] == {"schedule": "constant_schedule", "value": 1.0}


def test_the_command_line_goes_before_the_file(sweep_file):
    path = sweep_file("seeds = 3\ntogether = true\n[grid]\ntrain.batch = [5, 10]")
    sweep = read_sweep(path, ["train.batch=[20]", "train.epochs=4"], seeds=1, together=False)
    assert [(each.config.train.batch, each.config.train.epochs) for each in sweep.settings] == [(20, 4)]
    assert (sweep.seeds, sweep.together) == (1, False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed = 3", 'unknown key "seed": did you mean "seeds"'),
        ("seeds = 0", "seeds: must be at least 1"),
        ('seeds = "3"', "seeds: must be a whole number"),
        (
            "[grid]\ntrain.batch = 3",
            r"grid\.train\.batch: a sweep takes a list of values, such as \[0\.1, 0\.5\], got 3",
        ),
        ("[grid]\ntrain.batch = []", "got an empty list"),
        (
            "[zip]\ntrain.batch = [1, 2]\ntrain.epochs = [1]",
            "lists of one length: train.batch has 2, train.epochs has 1",
        ),
        ("[grid]\nseed = [1]\n[zip]\nseed = [2]", "seed must be in grid or in zip, not in both"),
        ("seeds = ", "must be TOML"),
        ("[grid]\ntrain.bath = [1]", 'unknown key "bath": did you mean "batch"'),
        ("[grid]\ntrain.batch = [5, 0]", "train.batch: must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_swept_is_told(sweep_file, tmp_path, text, words):
    path = sweep_file(text)
    with pytest.raises(ConfigError, match=words):
        read_sweep(path)
    result = called("sweep", path, "--runs-dir", tmp_path / "runs")
    assert result.exit_code == 2
    assert not (tmp_path / "runs").exists()


def test_no_base(tmp_path):
    (tmp_path / "a.toml").write_text("seeds = 3")
    with pytest.raises(ConfigError, match="base: is missing"):
        read_sweep(tmp_path / "a.toml")
    (tmp_path / "a.toml").write_text('base = "none.toml"')
    with pytest.raises(ConfigError, match=r"there is no config .*none\.toml"):
        read_sweep(tmp_path / "a.toml")


# ------------------------------------------------------------------------------------------ running


def test_each_run_has_its_folder_and_finished_ones_are_skipped(base, tmp_path, curves):
    said = []
    options = {"runs_dir": tmp_path / "runs", "say": said.append}
    first = run_sweep(read_sweep(base, ["model.0.dense=[2,8]"]), **options)
    folders = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert [name.rpartition("-")[0] for name in folders] == [f"small-model.0.dense={n},seed=0" for n in (2, 8)]
    assert [[record.result("seed") for record in each.records] for each in first] == [[0], [0]]
    assert not any("skipped" in line for line in said)
    assert all((record.folder / "curves.png").is_file() for each in first for record in each.records)
    said.clear()
    second = run_sweep(read_sweep(base, ["model.0.dense=[2,8]"]), **options)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == folders
    assert sum("finished already, skipped" in line for line in said) == 2
    assert [each.records for each in second] == [each.records for each in first]
    # the same run, wherever it was trained and whatever its folder is called, is not trained again
    (tmp_path / "runs" / folders[0]).rename(tmp_path / "runs" / "renamed")
    said.clear()
    run_sweep(read_sweep(base, ["model.0.dense=[2]"]), **options)
    assert sum("renamed" in line for line in said) == 1
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_a_run_of_a_sweep_is_that_of_its_config(base, tmp_path):
    [outcome] = run_sweep(read_sweep(base, ["seed=3"]), runs_dir=tmp_path / "runs", say=lambda line: None)
    config = small("train.epochs=1", "monitor.delta_norms=false", "seed=3")
    alone = read_run(loop.train(config, run_dir=tmp_path / "alone", quiet=True))
    assert outcome.records[0].summary["params_sha256"] == alone.summary["params_sha256"]


def test_an_interrupted_run_is_resumed(base, tmp_path):
    said = []
    options = {"runs_dir": tmp_path / "runs", "say": said.append}
    [before] = run_sweep(read_sweep(base), **options)
    folder = before.records[0].folder
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"status": "interrupted", "params_sha256": None}))
    said.clear()
    [after] = run_sweep(read_sweep(base), **options)
    assert any("interrupted, resumed" in line for line in said)
    assert after.records[0].summary["params_sha256"] == summary["params_sha256"]
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_seeds_together(base, tmp_path):
    said = []
    [outcome] = run_sweep(read_sweep(base, seeds=3, together=True), runs_dir=tmp_path / "runs", say=said.append)
    assert [record.result("seed") for record in outcome.records] == [0, 1, 2]
    assert all(record.environment["together"] == [0, 1, 2] for record in outcome.records)
    assert len({record.summary["params_sha256"] for record in outcome.records}) == 3
    assert said[0] == "[3/3] seeds=0,1,2"
    result = called("sweep", base, "--seeds", "3", "--together", "--runs-dir", tmp_path / "runs")
    assert result.exit_code == 0, result.stderr
    heading, row = result.stdout.splitlines()[-2:]
    assert heading.split()[0] == "runs"
    assert row.split()[0] == "3"
    assert row.count("±") == 5


def killed_sweep(*arguments, after):
    """A sweep's process, killed once `after` says so."""
    process = command("sweep", *arguments)
    deadline = time.monotonic() + 120
    while not after():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    killed(process)


def hashes_of(runs):
    """The hash of the final parameters by seed, of runs that are all finished."""
    records, damaged = find_runs(runs)
    assert not damaged
    assert {record.status for record in records} == {"finished"}
    return {record.result("seed"): record.summary["params_sha256"] for record in records}


@pytest.mark.parametrize("together", ["--together", pytest.param("--apart", marks=pytest.mark.long)])
def test_a_killed_sweep_goes_on_to_the_same_bits(tmp_path, together):
    options = ("train.epochs=8", "train.steps_per_call=4", "checkpoint.every_seconds=0.0")
    (tmp_path / "long.toml").write_text(dump_toml(small(*options)), "utf-8")
    arguments = (tmp_path / "long.toml", "--seeds", "2", together, "--runs-dir")
    assert called("sweep", *arguments, tmp_path / "whole").exit_code == 0
    begun = tmp_path / "killed"
    killed_sweep(*arguments, begun, after=lambda: len(list(begun.glob("*/checkpoints.json"))) == 2)
    statuses = [record.status for record in find_runs(begun)[0]]
    assert "unfinished" in statuses
    found = called("sweep", *arguments, begun, "--resume")
    assert found.exit_code == 0, found.stderr
    assert "unfinished, resumed" in found.stdout
    assert hashes_of(begun) == hashes_of(tmp_path / "whole")
    for folder in begun.iterdir():
        assert [line["epoch"] for line in metrics(folder)] == list(range(1, 9))
    if together == "--together":
        assert "seeds=0,1" in found.stdout
        assert all("going on from step" in (folder / "log.txt").read_text() for folder in begun.iterdir())


def test_to_resume_a_sweep_it_must_have_been_begun(base, tmp_path):
    with pytest.raises(ConfigError, match="has none of its 2 runs: name its folder"):
        run_sweep(read_sweep(base, seeds=2), runs_dir=tmp_path / "elsewhere", resume=True)


def test_a_group_goes_on_beside_a_run_that_diverged(base, tmp_path):
    options = {"runs_dir": tmp_path / "runs", "say": lambda line: None}
    sweep = read_sweep(base, ["train.epochs=4"], seeds=3, together=True)
    [before] = run_sweep(sweep, **options)
    want = {record.result("seed"): record.summary["params_sha256"] for record in before.records}
    for record, status in zip(before.records, ("diverged", "interrupted", "finished"), strict=True):
        summary = record.summary | {"status": status}
        (record.folder / "summary.json").write_text(json.dumps(summary))
    [after] = run_sweep(sweep, **options)
    assert after.failed == [0]
    got = {record.result("seed"): record.summary["params_sha256"] for record in after.records}
    assert got == {seed: want[seed] for seed in (1, 2)}


def test_a_run_that_another_process_trains_is_left_to_it(base, tmp_path):
    said = []
    [before] = run_sweep(read_sweep(base), runs_dir=tmp_path / "runs", say=said.append)
    folder = before.records[0].folder
    (folder / "summary.json").unlink()
    lock = Lock(folder)
    [after] = run_sweep(read_sweep(base), runs_dir=tmp_path / "runs", say=said.append)
    lock.release()
    assert after.failed == [0]
    assert f"  {folder} is being written by process" in said[-1]
    assert not (folder / "summary.json").exists()


@pytest.mark.long
def test_two_sweeps_at_once_share_the_runs_out(base, tmp_path):
    both = [command("sweep", base, "train.batch=[5,10,20]", "--runs-dir", tmp_path / "runs") for _ in range(2)]
    for process in both:
        status, _, err = finished(process)
        assert status == 0, err
    records, damaged = find_runs(tmp_path / "runs")
    assert not damaged
    assert [record.status for record in records] == ["finished"] * 3
    assert not any(record.name.endswith("-2") for record in records)


def test_a_diverging_run_does_not_end_the_sweep(base, tmp_path):
    said = []
    options = {"runs_dir": tmp_path / "runs", "say": said.append}
    sweep = read_sweep(base, ["train.optimizer.learning_rate=[1e39,0.1]", "loss=quadratic", "precision=float64"])
    outcomes = run_sweep(sweep, **options)
    assert [each.failed for each in outcomes] == [[0], []]
    assert any("NaN or infinity" in line for line in said)
    said.clear()
    run_sweep(sweep, **options)
    assert any("diverged already, skipped" in line for line in said)


def test_what_does_not_fit_is_told_before_anything_is_trained(base, tmp_path):
    result = called("sweep", base, "train.batch=[10,5000]", "--runs-dir", tmp_path / "runs")
    assert result.exit_code == 2
    assert "train.batch must be at most 103" in result.stderr
    assert not (tmp_path / "runs").exists()


# -------------------------------------------------------------------------------------------- the table


def outcome_of(tmp_path, name, accuracies, failed=()):
    from tests.test_reports import fake_run

    setting = read_sweep_setting(name)
    records = []
    for i, accuracy in enumerate(accuracies):
        folder = fake_run(tmp_path / f"{name}-{i}")
        summary = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps(summary | {"test_accuracy": accuracy, "seconds": 1.0 + i}))
        records.append(read_run(folder))
    return Outcome(setting, records, list(failed))


def read_sweep_setting(dense):
    from jaxnet.training.sweep_file import Setting

    return Setting({"model.0.dense": str(dense)}, (f"model.0.dense={dense}",), small())


def test_mean_and_spread(tmp_path):
    values = [0.90, 0.93, 0.96]
    outcomes = [
        outcome_of(tmp_path, 4, values),
        outcome_of(tmp_path, 8, [0.5], failed=[1, 2]),
        outcome_of(tmp_path, 9, []),
    ]
    table = sweep_table(outcomes)
    columns = {str(column.header): [str(cell) for cell in column.cells] for column in table.columns}
    assert columns["dense"] == ["4", "8", "9"]
    assert columns["runs"] == ["3", "1 of 3", "0"]
    assert statistics.stdev(values) == pytest.approx(0.03)
    assert columns["test %"] == ["93.00 ± 3.00", "50.00", "—"]
    assert columns["best test %"] == ["95.00 ± 0.00", "95.00", "—"]
    assert columns["s"] == ["2.0 ± 1.0", "1.0", "—"]


# ------------------------------------------------------------------------------------------- searches

SEARCH = """
seeds = 2
[search]
trials = 2
sampler = "SAMPLER"
[search.space]
train.optimizer.learning_rate = { low = 1e-3, high = 1.0, log = true }
model.0.dense = { low = 4, high = 8 }
"train.batch" = [5, 10]
"""


def drawn(settings):
    train = [setting.config.train for setting in settings]
    dense = [setting.config.resolved()["model"][0]["dense"] for setting in settings]
    return [each.optimizer["learning_rate"] for each in train], dense, [each.batch for each in train]


def test_a_random_search_draws_its_settings_from_the_seed(sweep_file):
    sweep = read_sweep(sweep_file(SEARCH.replace("SAMPLER", "random").replace("trials = 2", "trials = 200")))
    again = read_sweep(sweep_file(SEARCH.replace("SAMPLER", "random").replace("trials = 2", "trials = 200")))
    rates, dense, batches = drawn(sweep.settings)
    assert (rates, dense, batches) == drawn(again.settings)
    assert len(rates) == 200
    assert all(1e-3 <= rate <= 1 for rate in rates)
    assert 40 < sum(rate < 0.01 for rate in rates) < 95, "a third of a logarithmic range"
    assert set(dense) == {4, 5, 6, 7, 8}
    assert set(batches) == {5, 10}


def test_a_search_by_tpe_goes_on_where_it_was(sweep_file, tmp_path):
    sweep = read_sweep(sweep_file(SEARCH.replace("SAMPLER", "tpe")))
    said = []
    whole = run_sweep(sweep, runs_dir=tmp_path / "whole", say=said.append)
    assert said[0] == "trial 1 of 2"
    assert [len(each.records) for each in whole] == [2, 2]
    shorter = read_sweep(sweep_file(SEARCH.replace("SAMPLER", "tpe").replace("trials = 2", "trials = 1")))
    first = run_sweep(shorter, runs_dir=tmp_path / "cut", say=lambda line: None)
    again = run_sweep(sweep, runs_dir=tmp_path / "cut", say=said.append)
    assert sum("finished already, skipped" in line for line in said) == 2
    assert drawn([each.setting for each in again]) == drawn([each.setting for each in whole])
    assert drawn([each.setting for each in first]) == tuple(each[:1] for each in drawn([e.setting for e in whole]))
    assert len(set(drawn([each.setting for each in whole])[0])) == 2


def test_a_search_goes_towards_the_better_settings(sweep_file):
    """Of a parabola, without training: the later half of the trials is nearer its lowest point."""
    text = SEARCH.replace("SAMPLER", "tpe").replace("trials = 2", "trials = 100")
    trials = read_sweep(sweep_file(text)).search

    def off(setting):
        return abs(math.log10(setting.config.train.optimizer["learning_rate"]) + 1.5)

    found = [off(setting) for setting in trials.suggested(lambda setting: off(setting) ** 2)]
    assert statistics.fmean(found[50:]) < 0.6 * statistics.fmean(found[:10])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("low = 1e-3", "low = 2.0"), "low must be below high, above 0, got 2 and 1"),
        (("trials = 2", "trials = 0"), "search.trials: must be at least 1"),
        (("[5, 10]", "5"), "a sweep takes a list of values"),
        (("[search]", "[grid]\nseed = [1, 2]\n[search]"), "a sweep has a search or lists of values, got both"),
        (("SAMPLER", "cma"), "search.sampler: must be 'random' or 'tpe'"),
    ],
)
def test_a_search_that_cannot_be(sweep_file, change, words):
    text = SEARCH.replace(*change).replace("SAMPLER", "random")
    with pytest.raises(ConfigError, match=words):
        read_sweep(sweep_file(text))


def test_halving_trains_all_a_little_and_the_best_to_the_end(sweep_file, tmp_path):
    """With learning rates that differ in size the better ones go on, to the bits of a run of that length."""
    text = """
    [search]
    trials = 6
    sampler = "random"
    halving = 2
    metric = "validation_loss"
    [search.space]
    train.optimizer.learning_rate = { low = 1e-6, high = 0.1, log = true }
    """
    sweep = read_sweep(sweep_file(text), ["train.epochs=4"])
    said = []
    whole = run_sweep(sweep, runs_dir=tmp_path / "whole", say=said.append)
    epochs = [each.epochs for each in whole]
    assert len(whole) == len(find_runs(tmp_path / "whole")[0]) == 6
    assert set(epochs) == {1, 2, 4}
    first = [each.records[0].metrics[0]["validation_loss"] for each in whole]
    assert min(epochs[i] for i in range(6) if first[i] == min(first)) == 4
    assert min(e for e, cost in zip(epochs, first, strict=True) if cost == max(first)) < 4
    for each in whole:
        assert len(metrics(each.records[0].folder)) == each.epochs
    longest = whole[epochs.index(4)]
    alone = loop.train(longest.setting.config, run_dir=tmp_path / "alone", quiet=True)
    assert metrics(alone) == metrics(longest.records[0].folder)
    assert read_run(alone).summary["params_sha256"] == longest.records[0].summary["params_sha256"]
    said.clear()
    again = run_sweep(sweep, runs_dir=tmp_path / "whole", say=said.append)
    assert not any("resumed" in line for line in said)
    assert [each.epochs for each in again] == epochs
    assert [str(column.header) for column in sweep_table(again).columns][:3] == ["learning_rate", "epochs", "runs"]


def test_an_extended_run_is_not_finished(base, tmp_path):
    [outcome] = run_sweep(read_sweep(base), runs_dir=tmp_path, say=lambda line: None)
    run = outcome.records[0].folder
    assert read_run(run).status == "finished"
    Run.open(run).extend(["train.epochs=2"])
    assert read_run(run).status == "unfinished"


def test_a_sweep_that_fails_fast_ends_at_the_first_failure(base, tmp_path):
    changes = ["train.optimizer.learning_rate=[1e39,0.1]", "loss=quadratic", "precision=float64"]
    arguments = ["sweep", base, *changes, "--runs-dir", tmp_path / "runs"]
    found = called(*arguments, "--fail-fast")
    assert found.exit_code == 2
    assert [record.status for record in find_runs(tmp_path / "runs")[0]] == ["diverged"]
    assert called(*arguments).exit_code == 0
    assert len(find_runs(tmp_path / "runs")[0]) == 2


# ------------------------------------------------------------------------------------------ the picture


def test_importance_is_the_share_of_the_variance():
    random = np.random.RandomState(0)
    rates = (10.0 ** random.uniform(-4, 0, size=60)).tolist()
    other = random.choice(["a", "b", "c"], size=60).tolist()
    batches = random.choice([5, 10, 20], size=60).tolist()
    costs = [math.log10(rate) + 2 * (batch == 10) for rate, batch in zip(rates, batches, strict=True)]
    of_rate, of_other, of_batch = importances([rates, other, batches], costs)
    assert of_rate + of_other + of_batch == pytest.approx(1)
    assert of_rate > of_batch > 5 * of_other
    assert importances([rates], [1.0] * 60) == [0.0]


def test_a_sweep_is_drawn(base, tmp_path):
    picture = tmp_path / "sweep.png"
    arguments = ["sweep", base, "train.optimizer.learning_rate=[0.001,0.1]", 'feedback=["random","transpose"]']
    found = called(*arguments, "--runs-dir", tmp_path / "runs", "--figure", picture)
    assert found.exit_code == 0
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG"
        assert len(np.unique(np.asarray(drawn.convert("RGB")).reshape(-1, 3), axis=0)) > 30
    found = called("sweep", base, "--runs-dir", tmp_path / "runs", "--figure", tmp_path / "one.png")
    assert found.exit_code == 2
    assert not (tmp_path / "one.png").exists()


def test_the_axes_of_a_picture_are_spread_by_the_values():
    assert list(places([1, 2, 3])) == [0, 0.5, 1]
    np.testing.assert_allclose(places([1e-3, 1e-2, 1e-1]), [0, 0.5, 1])
    assert list(places(["b", "a", "c"])) == [0.5, 0, 1]
    assert list(places([4, 4])) == [0, 0]


def test_jobs_share_the_runs(base, tmp_path):
    runs = tmp_path / "runs"
    found = called("sweep", base, "train.batch=[5,10]", "--jobs", 2, "--runs-dir", runs)
    assert found.exit_code == 0, found.stderr
    assert [record.status for record in find_runs(runs)[0]] == ["finished"] * 2
    table = found.stdout.splitlines()[-2:]
    assert [line.split()[:2] for line in table] == [["5", "1"], ["10", "1"]]
