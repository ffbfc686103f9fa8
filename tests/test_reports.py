"""Reading runs, listing them, and drawing their curves."""

import json
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from html.parser import HTMLParser
from io import BytesIO, StringIO
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from jaxnet.training import plots, reports, run_listing, watching
from jaxnet.training.config import dump_toml, make_config
from jaxnet.training.run_folder import RunError, replace_file
from tests.runs import called

BASE = {
    "name": "digits",
    "loss": "softmax_cross_entropy",
    "model": [{"dense": 30}, "relu", {"dense": 10}],
    "train": {"epochs": 5, "optimizer": {"name": "sgd", "learning_rate": 0.5}},
}


def metrics(epoch, scale=1.0, layers=2):
    return {
        "epoch": epoch,
        "step": 10 * epoch,
        "train_loss": scale * 2 / epoch,
        "validation_loss": scale * 2.1 / epoch,
        "validation_accuracy": 0.9 - 0.1 / epoch,
        "test_loss": scale * 2.2 / epoch,
        "test_accuracy": 0.91 - 0.1 / epoch,
        "delta_norms": [scale * 0.1 ** (i + 1) / epoch for i in range(layers)],
        "examples_per_second": 1e5,
        "seconds": 2.0 * epoch,
    }


def fake_run(folder: Path, overrides=(), epochs=5, summary=True, layers=2, scale=1.0):
    """A run's folder as training leaves it."""
    folder.mkdir(parents=True)
    config = make_config(BASE, overrides)
    (folder / "config.toml").write_text(dump_toml(config), "utf-8")
    environment = {"versions": {"jax": "0.10.2"}, "device": "cpu", "devices": 1, "config_sha256": folder.name}
    (folder / "environment.json").write_text(json.dumps(environment))
    lines = [metrics(epoch, scale, layers) for epoch in range(1, epochs + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if summary:
        last = lines[-1]
        said = {name: last[name] for name in ("test_accuracy", "validation_accuracy", "test_loss")}
        said |= {"best_test_accuracy": 0.95, "status": "finished", "epochs": epochs, "seconds": 10.0}
        (folder / "summary.json").write_text(json.dumps(said))
    return folder


# ------------------------------------------------------------------------------------------- reading


def test_a_run_is_read(tmp_path):
    record = run_listing.read_run(fake_run(tmp_path / "a"))
    assert record.status == "finished"
    assert record.epochs() == 5
    assert record.result("best_test_accuracy") == 0.95
    assert record.result("train_loss") == 0.4  # not in the summary, so from the last line
    assert record.result("promise") is None
    assert record.config["train"]["batch"] == 32


def test_a_run_under_way_has_a_cut_line(tmp_path):
    folder = fake_run(tmp_path / "a", summary=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 6, "test_acc')
    record = run_listing.read_run(folder)
    assert (record.status, record.epochs()) == ("unfinished", 5)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "config.toml").unlink(), r"is not a run: it has no config\.toml"),
        (lambda folder: (folder / "environment.json").unlink(), r"is not a run: it has no environment\.json"),
        (lambda folder: (folder / "config.toml").write_text("= 3"), r"config\.toml must be TOML"),
        (lambda folder: (folder / "summary.json").write_text("{"), r"summary\.json must be a JSON file"),
        (
            lambda folder: (folder / "metrics.jsonl").write_text('{"epoch": 1}\nnonsense\n{}\n'),
            r"metrics\.jsonl, line 2",
        ),
        (lambda folder: (folder / "metrics.jsonl").write_text("3\n"), r"metrics\.jsonl, line 1 must be a table"),
    ],
)
def test_what_is_no_run_is_told(tmp_path, spoil, words):
    folder = fake_run(tmp_path / "a")
    spoil(folder)
    with pytest.raises(RunError, match=words):
        run_listing.read_run(folder)


def test_no_folder():
    with pytest.raises(RunError, match="nowhere is not a run: there is no such folder"):
        run_listing.read_run(Path("nowhere"))


def test_damaged_runs_are_left_out_and_told(tmp_path, capsys):
    fake_run(tmp_path / "deep" / "good")
    (fake_run(tmp_path / "bad") / "summary.json").write_text("{")
    (tmp_path / ".being_made").mkdir()
    run_listing.show_runs(tmp_path)
    out = capsys.readouterr().out
    assert "good" in out
    assert "89.00" in out
    assert re.search(r"left out: .*bad/summary\.json must be a JSON file", out)


def test_a_report_leaves_damaged_runs_out(tmp_path):
    fake_run(tmp_path / "good")
    (fake_run(tmp_path / "bad") / "summary.json").write_text("[1]")
    (fake_run(tmp_path / "new") / "metrics.jsonl").write_text("")
    result = called("report", tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert re.search(r"left out: .*bad/summary\.json must hold a JSON object, got \[1\]: delete it", result.stdout)
    assert "new has no epoch yet" in result.stdout
    assert (tmp_path / "out" / "curves.png").exists()


@pytest.mark.parametrize(
    "content",
    [
        "[1]",
        "null",
        "[" * 100_000,
        '{"epochs": ' + "9" * 5000 + "}",
        '{"epochs": [1]}',
        '{"epochs": 1e400}',
        '{"status": 3}',
        '{"step": "x"}',
        '{"params_sha256": 3}',
    ],
    ids=lambda content: content[:20],
)
def test_an_odd_summary_is_told(tmp_path, content):
    (fake_run(tmp_path / "a") / "summary.json").write_text(content)
    with pytest.raises(RunError, match=r"summary\.json"):
        run_listing.read_run(tmp_path / "a")


def test_runs_are_chosen_and_sorted(tmp_path):
    for batch, accuracy in ((10, 0.5), (20, 0.9), (30, 0.7)):
        folder = fake_run(tmp_path / f"batch{batch}", [f"train.batch={batch}"])
        said = json.loads((folder / "summary.json").read_text()) | {"test_accuracy": accuracy}
        (folder / "summary.json").write_text(json.dumps(said))

    def listed(*options):
        result = called("runs", tmp_path, *options)
        assert result.exit_code == 0, result.stderr
        return re.findall(r"batch(\d+)", result.stdout)

    assert listed("--sort", "test_accuracy") == ["10", "30", "20"]
    assert listed("--where", "test_accuracy>=0.7") == ["20", "30"]
    assert listed("--where", "test_accuracy>0.7", "--where", "train.batch<=20") == ["20"]
    assert listed("--where", "train.batch!=20", "--where", "status=finished") == ["10", "30"]
    assert listed("--where", "train.batch=11") == []
    for options, words in (
        (("--where", "test_accuracy"), "a condition must be like test_accuracy>0.9"),
        (
            ("--where", "train.bacth=10"),
            'no run has a result or a config key "train.bacth": did you mean "train.batch"?',
        ),
        (("--sort", "accuracy"), 'no run has a result or a config key "accuracy": '),
    ):
        result = called("runs", tmp_path, *options)
        assert result.exit_code == 2
        assert words in result.stderr


def test_two_runs_are_compared(tmp_path):
    same, other = fake_run(tmp_path / "a"), fake_run(tmp_path / "b", ["train.batch=7"])
    (other / "environment.json").write_text(json.dumps({"versions": {"jax": "0.11.0"}, "device": "cpu", "devices": 1}))
    lines = (other / "metrics.jsonl").read_text().splitlines()
    third = json.loads(lines[2]) | {"train_loss": 8.5, "seconds": 99.0}
    (other / "metrics.jsonl").write_text("\n".join([*lines[:2], json.dumps(third), *lines[3:]]) + "\n")
    shown = called("diff", same, other).stdout
    assert "config.train.batch: 32 → 7" in shown
    assert 'environment.versions.jax: "0.10.2" → "0.11.0"' in shown
    assert re.search(r"metrics differ first after epoch 3:\n  train_loss: .* → 8\.5\n$", shown)
    assert called("diff", same, same).stdout == "no difference\n"


def test_runs_are_in_the_order_of_their_numbers(tmp_path):
    for seed in (10, 9, 1):
        fake_run(tmp_path / f"a,seed={seed}-0{seed}f")
    records, _ = run_listing.find_runs(tmp_path)
    assert [record.name.split("-")[0] for record in records] == ["a,seed=1", "a,seed=9", "a,seed=10"]


@pytest.mark.parametrize("place", ["nowhere", "file", "empty"])
def test_nothing_to_list(tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    result = called("runs", tmp_path / place)
    assert result.exit_code == 2
    assert str(tmp_path / place) in result.stderr


# -------------------------------------------------------------------------------- beside each other


def test_differing_keys_are_those_of_overrides(tmp_path):
    changed = ["model.0.dense=50", "train.optimizer.learning_rate=0.1", "train.clip_norm=1.0", "name=other"]
    records = [run_listing.read_run(fake_run(tmp_path / "a")), run_listing.read_run(fake_run(tmp_path / "b", changed))]
    assert run_listing.differing(records) == {
        "model.0.dense": ["30", "50"],
        "train.optimizer.learning_rate": ["0.5", "0.1"],
        "train.clip_norm": [run_listing.ABSENT, "1.0"],
    }
    assert run_listing.short_names(records) == [
        "dense 30, learning_rate 0.5, clip_norm —",
        "dense 50, learning_rate 0.1, clip_norm 1.0",
    ]
    make_config(BASE, [f"{key}={values[1]}" for key, values in run_listing.differing(records).items()])


def test_models_of_other_lengths_differ_as_a_whole(tmp_path):
    records = [
        run_listing.read_run(fake_run(tmp_path / "a")),
        run_listing.read_run(fake_run(tmp_path / "b", ['model=["flatten", { dense = 10 }]'])),
    ]
    assert run_listing.differing(records) == {
        "model": ['[{ dense = 30 }, "relu", { dense = 10 }]', '["flatten", { dense = 10 }]']
    }
    assert run_listing.short_names(records) == [f"model {value}" for value in run_listing.differing(records)["model"]]


def test_equal_runs_are_named_by_their_folders(tmp_path):
    records = [run_listing.read_run(fake_run(tmp_path / name / "a")) for name in "xy"]
    assert run_listing.short_names(records) == [str(tmp_path / "x" / "a"), str(tmp_path / "y" / "a")]


@pytest.mark.parametrize("width", [80, 120, 300])
def test_the_table_cuts_no_number(tmp_path, width):
    rates = ["0.1", "0.25"]
    records = [
        run_listing.read_run(
            fake_run(
                tmp_path / f"digits-train.optimizer.learning_rate={rate}", [f"train.optimizer.learning_rate={rate}"]
            )
        )
        for rate in rates
    ]
    written = StringIO()
    run_listing.print_runs(records, Console(width=width, file=written))
    said = written.getvalue()
    for text in ("89.00", "95.00", "88.00", "10.0", *rates):
        assert text in said
    for record in records:
        assert str(record.folder) in said


def test_the_width_asked_for_is_taken_without_a_terminal(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert run_listing.console().width == 240
    monkeypatch.setenv("COLUMNS", "60")
    assert run_listing.console().width == 60


def test_the_table_has_a_line_for_each_run(tmp_path):
    model = '[{ dense = 30 }, "tanh", { dense = 300 }, "relu", { dense = 10 }]'
    changes = [["train.batch=20"], [f"model={model}", "train.batch=10", 'loss="quadratic"', "init='he_normal'"]]
    records = [run_listing.read_run(fake_run(tmp_path / f"run{i}", each)) for i, each in enumerate(changes)]
    written = StringIO()
    run_listing.print_runs(records, Console(width=80, file=written))
    *table, one, other, left_out = written.getvalue().splitlines()
    assert [line.split()[0] for line in table[-2:]] == ["1", "2"]
    assert max(map(len, table)) <= 80
    assert one.endswith("run0")
    assert other.endswith("run1")
    assert "batch" in table[-3]
    assert left_out.startswith("left out for width: model")
    assert left_out.endswith("; jaxnet diff RUN RUN shows them")
    wide = StringIO()
    run_listing.print_runs(records, Console(width=240, file=wide))
    assert '[{ dense = 30 }, "tanh"…' in wide.getvalue()
    assert "quadratic" in wide.getvalue()


# ------------------------------------------------------------------------------------------- reports


class Page(HTMLParser):
    """What a page names from outside, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.outside: list[str] = []
        self.pictures: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("src", "srcset", "href", "data"):
                (self.pictures if value.startswith("data:image/svg+xml;base64,") else self.outside).append(value)

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    for i, rate in enumerate((0.1, 0.5, 1.0)):
        fake_run(place / f"run-{i}", [f"train.optimizer.learning_rate={rate}"], scale=rate, epochs=3 + i)
    return place


def test_a_report_of_several_runs(three, tmp_path):
    result = called("report", three, three / "run-0", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    page = Page((tmp_path / "out" / "report.html").read_text("utf-8"))
    assert page.outside == []
    assert len(page.pictures) == 2 * 4  # loss, accuracy, ‖δ‖ and examples/s, light and dark
    assert len(set(page.pictures)) == 8
    words = " ".join(page.words)
    assert "3 runs" in words  # run-0 was given twice
    for text in (
        "train.optimizer.learning_rate",
        "learning_rate 0.1",
        "run-2",
        "95.00",
        "‖δ‖ by layer",
        "prefers-color-scheme: dark",
    ):
        assert text in words
    picture = np.asarray(Image.open(tmp_path / "out" / "curves.png").convert("RGB"))
    for color in plots.LIGHT.few[:3]:  # every run is seen
        rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        assert (picture == rgb).all(axis=-1).sum() > 50


def test_a_page_escapes_what_runs_say(tmp_path):
    folder = fake_run(tmp_path / "a<script>b", ['data="<b>x</b>.npz"'])
    reports.report([folder])
    text = (folder / "report.html").read_text("utf-8")
    assert "<script>" not in text
    assert "<b>x</b>" not in text
    assert (folder / "curves.png").is_file()


def test_the_same_runs_give_the_same_page(three):
    records = reports.gathered([three], print)
    names = run_listing.short_names(records)
    assert reports.page(records, names) == reports.page(records, names)


def test_curves_of_one_run(tmp_path):
    folder = fake_run(tmp_path / "a")
    path = reports.write_curves(folder)
    assert path == folder / "curves.png"
    assert Image.open(BytesIO(path.read_bytes())).format == "PNG"
    assert not list(folder.glob(".*"))
    (folder / "metrics.jsonl").write_text("")
    assert reports.write_curves(folder) is None


def test_what_is_drawn_is_what_was_measured(tmp_path):
    record = run_listing.read_run(fake_run(tmp_path / "a", layers=3))
    figure = plots.overview([record], ["a"], "a")
    loss, accuracy, delta, speed = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["loss", "accuracy, %", "‖δ‖ by layer", "examples/s"]
    np.testing.assert_allclose(loss.get_lines()[0].get_ydata(), [2 / epoch for epoch in range(1, 6)])
    np.testing.assert_allclose(accuracy.get_lines()[1].get_ydata()[-1], 89)
    assert delta.get_yscale() == "log"
    for i, curve in enumerate(delta.get_lines()):
        np.testing.assert_allclose(curve.get_ydata(), [0.1 ** (i + 1) / epoch for epoch in range(1, 6)])
    assert [text.get_text() for text in delta.texts] == ["3", "2", "1"]
    np.testing.assert_allclose(speed.get_lines()[0].get_ydata(), 1e5)


def test_numbers_that_cannot_be_drawn_leave_gaps(tmp_path):
    folder = fake_run(tmp_path / "a")
    lines = [metrics(1), metrics(2) | {"train_loss": float("nan"), "delta_norms": [0.0, float("inf")]}, metrics(3)]
    del lines[0]["validation_loss"]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = run_listing.read_run(folder)
    assert plots.series(record, "train_loss")[1] == pytest.approx([2, np.nan, 2 / 3], nan_ok=True)
    assert plots.series(record, "validation_loss")[1][0] != plots.series(record, "validation_loss")[1][0]
    assert plots.png(plots.overview([record], ["a"], "a")).startswith(b"\x89PNG")


def test_a_regression_and_a_deep_network_are_drawn(tmp_path):
    folder = fake_run(tmp_path / "a", layers=24, epochs=1)
    lines = [{k: v for k, v in metrics(1, layers=24).items() if "accuracy" not in k}]
    (folder / "metrics.jsonl").write_text(json.dumps(lines[0]) + "\n")
    (folder / "summary.json").unlink()
    record = run_listing.read_run(folder)
    assert [panel.name for panel in plots.panels_of([record])] == ["loss", "delta_norms", "examples_per_second"]
    assert run_listing.results([record]) == ["test_loss", "validation_loss", "train_loss"]
    figure = plots.overview([record], ["a"], "a")
    assert [text.get_text() for text in figure.axes[1].texts] == ["24", "1"]
    plots.png(figure)


def test_as_many_colors_as_runs():
    for theme in (plots.LIGHT, plots.DARK):
        for count in (1, 8, 9, 30):
            assert len(set(theme.colors(count))) == count


@pytest.mark.parametrize("place", ["nowhere", "empty", "no_epoch", "damaged"])
def test_nothing_to_report(tmp_path, place):
    (tmp_path / "empty").mkdir()
    (fake_run(tmp_path / "no_epoch") / "metrics.jsonl").write_text("")
    (fake_run(tmp_path / "damaged") / "metrics.jsonl").write_text("x\n")
    result = called("report", tmp_path / place, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert place in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written(three, tmp_path):
    (tmp_path / "out").write_text("taken")
    result = called("report", three, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "cannot write" in result.stderr
    assert (tmp_path / "out").read_text() == "taken"


def test_training_starts_without_matplotlib():
    code = "import sys; import jaxnet.training.loop; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_link_at_the_name_of_a_file_to_write_is_not_followed(tmp_path):
    for name in (".curves.png.new", "curves.png"):
        (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    replace_file(tmp_path / "curves.png", b"drawn")
    assert (tmp_path / "curves.png").read_bytes() == b"drawn"
    assert not (tmp_path / "curves.png").is_symlink()
    assert not (tmp_path / "elsewhere").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".curves.png.new", "curves.png"]
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunError, match="cannot write"):
        replace_file(tmp_path / "folder", b"")
    assert len(list(tmp_path.iterdir())) == 3


# ------------------------------------------------------------------------------------------ watching


@contextmanager
def served(folder):
    with watching.server(folder) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        try:
            yield watching.address(serving)
        finally:
            serving.shutdown()
            thread.join()


def test_a_run_is_watched(tmp_path):
    folder = fake_run(tmp_path / "a")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("")
    with served(folder) as address:
        with urlopen(address) as answer:
            assert b"no epoch is done yet" in answer.read()
            assert answer.headers["Refresh"] == "5"
        (folder / "metrics.jsonl").write_text("".join(lines))
        with urlopen(address) as answer:
            assert b"data:image/svg+xml" in answer.read()
        for request, status in (
            (Request(f"{address}other"), 404),
            (Request(address, headers={"Host": "example.org:80"}), 403),
        ):
            with pytest.raises(HTTPError) as refused:
                urlopen(request)
            assert refused.value.code == status
            refused.value.close()
        (folder / "environment.json").unlink()
        with pytest.raises(HTTPError) as refused:
            urlopen(address)
        assert refused.value.code == 500
        refused.value.close()


def test_what_cannot_be_watched(tmp_path):
    with pytest.raises(RunError, match="is not a run"):
        watching.server(tmp_path)
    folder = fake_run(tmp_path / "a")
    with watching.server(folder) as serving, pytest.raises(RunError, match="--port must be free"):
        watching.server(folder, serving.server_port)
