"""``profiler.fit``, ``sweep`` and ``load`` give the rows of the commands, from Python and without their printing."""

from __future__ import annotations

import ast
import decimal
import enum
import fractions
import inspect
import itertools
import json
import math
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy
import pandas
import pytest
from click.testing import CliRunner
from fakes.tiny import CONFIGS

import profiler
from profiler import api
from profiler.cli import main
from profiler.commands.fit import fit as fit_command
from profiler.commands.sweep import sweep as sweep_command
from profiler.results.store import Store
from profiler.run import sweep as run_sweep

DOCUMENT = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
QUICK: dict[str, Any] = {"backend": "fake", "steps": 2, "reps": 2, "weights": "synthetic"}
MakeModel = Callable[..., str]


@pytest.fixture
def model(tmp_path: Path) -> MakeModel:
    """A folder with a config that the fake backend takes its costs and faults from."""

    def make(name: str = "tiny", **script: Any) -> str:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(CONFIGS["gemma3"] | {"fake": script}))
        return str(folder)

    return make


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """A shell has its background jobs ignore Ctrl-C, the tests among them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def command(*words: str) -> str:
    result = CliRunner().invoke(main, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def printed(*words: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(command(*words, "-o", "json"))
    return found


def test_importing_the_package_imports_nothing_else_and_using_it_never_torch(tmp_path: Path) -> None:
    program = (
        "import sys, profiler\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        "assert not loaded & {'click', 'torch', 'numpy', 'pandas', 'sqlite3'}, loaded\n"
        "assert [name for name in sys.modules if name.startswith('profiler')] == ['profiler']\n"
        "assert {'fit', 'sweep', 'load', 'Rows', 'ProfileError'} <= set(dir(profiler))\n"
        "profiler.fit('gemma-3-270m', on='rtx 4090')\n"
        "rows = profiler.sweep('gemma-3-270m', contexts=16, steps=2, reps=2, backend='fake')\n"
        "assert rows[0]['outcome'] == 'ok' and len(profiler.load()) == 1\n"
        "assert not {'torch', 'transformers', 'pandas', 'rich'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'swep'"):
        profiler.swep  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"models": "gemma-4-e4b", "on": "rtx 4090", "quants": ["nf4"], "contexts": [4096, "32k"], "batches": [1]},
            ["gemma-4-e4b", "--on", "rtx 4090", "-q", "nf4", "-c", "4096,32k", "-b", "1"],
        ),
        (
            {"models": ["qwen3.5-27b"], "on": ["2x3090", "h100"], "engine": "vllm", "goal": "20 tok/s at 64k"},
            ["qwen3.5-27b", "--on", "2x3090", "--on", "h100", "--engine", "vllm", "--goal", "20 tok/s at 64k"],
        ),
        (
            {"models": "gemma-4-31b", "on": "rtx 4090", "ram": 64 * 2**30, "ram_bandwidth": 80, "path": "eager"},
            ["gemma-4-31b", "--on", "rtx 4090", "--ram", "64GiB", "--ram-bandwidth", "80", "--path", "eager"],
        ),
        (
            {"models": ["qwen3.5-9b"], "on": "2x3090", "split": "tensor", "kv": "q8_0", "engine": "llama.cpp"},
            ["qwen3.5-9b", "--on", "2x3090", "--split", "tensor", "--kv", "q8_0", "--engine", "llama.cpp"],
        ),
        (
            {"models": "gemma-4-e4b", "on": "rtx 4090", "scenario": "chat"},
            ["gemma-4-e4b", "--on", "rtx 4090", "--scenario", "chat"],
        ),
    ],
)
def test_predictions_are_the_rows_that_fit_prints(given: dict[str, Any], words: list[str]) -> None:
    rows = profiler.fit(**given)
    assert len(rows) > 0
    assert list(rows) == printed("fit", *words)


def test_a_sweep_gives_the_rows_that_the_command_prints(model: MakeModel) -> None:
    name = model()
    rows = profiler.sweep(name, quants=["fp32", "nf4"], contexts=range(32, 97, 32), batches=[2, 1], **QUICK)
    words = ("-m", name, "-q", "fp32,nf4", "-c", "32,64,96", "-b", "2,1", "-n", "2", "-r", "2")
    again = printed("sweep", *words, "--weights", "synthetic", "--backend", "fake")
    assert [row["outcome"] for row in rows] == ["ok"] * 12
    assert [row["started_at"] for row in rows] == [row["started_at"] for row in again]  # the stored ones
    assert [row["case"] for row in rows] == [row["case"] for row in again]
    both = (profiler.sweep(name, quants=["fp32", "nf4"], contexts="32-96+32", batches="2,1", **QUICK), again)
    assert [{**row, "run": None} for row in both[0]] == [{**row, "run": None} for row in both[1]]


def test_what_is_loaded_are_the_rows_that_runs_show_prints(model: MakeModel, tmp_path: Path) -> None:
    store = tmp_path / "my.sqlite"
    first = profiler.sweep(model(), quants=["nf4", "fp32"], contexts=[64, 32], store=store, **QUICK)
    last = profiler.sweep(model(), contexts=128, store=str(store), **QUICK)
    assert first.run is not None
    shown = printed("runs", "show", first.run, "--store", str(store))
    assert list(profiler.load(first.run, store=store)) == shown
    assert [row["key"] for row in shown] == [
        row["key"] for row in sorted(first, key=lambda row: (row["case"]["quant"] != "nf4", row["case"]["context"]))
    ]
    assert profiler.load(store=store).run == last.run
    assert list(profiler.load(store)) == printed("runs", "show", "--store", str(store))  # a store by its path
    assert len(profiler.load(store=store, newest=True)) == 5


@pytest.mark.parametrize("output", ["json", "jsonl"])
def test_a_file_of_rows_is_loaded_as_it_stands(model: MakeModel, tmp_path: Path, output: str) -> None:
    rows = profiler.sweep(model(), contexts=[32, 64], **{**QUICK, "steps": 120})
    file = tmp_path / f"rows.{output}"
    file.write_text(command("runs", "show", "-o", output))
    loaded = profiler.load(file)
    assert list(loaded) == list(profiler.load(str(file))) == list(profiler.load())
    assert loaded[0]["decode"]["step_p99_s"] == rows[0]["decode"]["step_p99_s"] is not None
    assert loaded[0]["run"] == rows.run
    file.write_text('{"no": "row"}')
    with pytest.raises(profiler.ProfileError, match="is not a result row"):
        profiler.load(file)


def test_a_case_that_failed_is_a_row(model: MakeModel) -> None:
    name = model(faults=[{"kind": "error", "value": "no luck", "context": 64}])
    rows = profiler.sweep(name, contexts=[32, 64], **QUICK)
    assert [row["outcome"] for row in rows] == ["ok", "failed"]
    assert "no luck" in rows[1]["reason"]
    frame = rows.to_pandas()
    assert frame["decode.tps"].notna().tolist() == [True, False]


def test_stored_rows_are_taken_unless_fresh(model: MakeModel) -> None:
    first, second = (profiler.sweep(model(), contexts=32, **QUICK) for _ in range(2))
    assert second[0]["started_at"] == first[0]["started_at"]
    assert profiler.sweep(model(), contexts=32, fresh=True, **QUICK)[0]["started_at"] != first[0]["started_at"]


def test_a_sweep_prints_nothing_unless_progress_is_asked_for(
    model: MakeModel, capfd: pytest.CaptureFixture[str]
) -> None:
    profiler.sweep(model(), contexts=[32, 64], **QUICK)
    profiler.sweep(model(), contexts=[32, 64], **QUICK)
    assert capfd.readouterr() == ("", "")
    profiler.sweep(model(), contexts=[32, 64, 96], progress=True, **QUICK)
    out, err = capfd.readouterr()
    assert out == ""
    said, done = err.splitlines()
    assert said == "2 of 3 cases reuse stored rows; fresh=True measures them again"
    assert done.startswith("1/1 tiny")


@pytest.mark.usefixtures("hears_ctrl_c")
def test_ctrl_c_keeps_what_was_measured_and_the_same_call_continues(
    model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(run_sweep.SweepListener, "row", lambda *_: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt, match="1 of 3 cases are stored"):
            profiler.sweep(model(), contexts=[32, 64, 96], **QUICK)
    kept = profiler.load()
    with Store.open() as store:
        assert [run.how for run in store.runs()] == ["interrupted"]
    rows = profiler.sweep(model(), contexts=[32, 64, 96], **QUICK)
    assert [row["outcome"] for row in rows] == ["ok"] * 3
    assert [row["started_at"] for row in rows][:1] == [row["started_at"] for row in kept]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_command_that_a_run_keeps_is_the_same_sweep(model: MakeModel) -> None:
    profiler.sweep(
        [model("a"), Path(model("b", step_s=0.02))],
        quants=["fp32", "nf4"],
        contexts=[32, "64"],
        batches=2,
        steps="2,3",
        weights="synthetic",
        fill="synthetic",
        seed=3,
        device="cpu",
        backend="fake",
        paths="eager",
        ubatch=256,
        threads=1,
        max_memory=2**40,
        precision=0.05,
        max_phase=12.5,
        budget="30m",
        timeout=90,
        fresh=True,
    )
    with Store.open() as store:
        (run,) = store.runs()
    assert "--fresh" in run.argv
    planned = printed(*(word for word in run.argv if word != "--fresh"), "--dry-run")
    assert [row["action"] for row in planned] == ["stored"] * 16


def test_every_option_of_the_commands_has_an_argument_and_its_default() -> None:
    only_shown = {"dry_run", "html", "output", "mapped", "most_notes", "help"}
    same = {"resumed": "fresh", "wish": "goal", "ram_bytes": "ram"}
    for function, of_command in ((profiler.fit, fit_command), (profiler.sweep, sweep_command)):
        taken = inspect.signature(function).parameters
        for option in of_command.params:
            name = same.get(str(option.name), str(option.name).removesuffix("_s"))
            if option.name in only_shown:
                continue
            assert name in taken, option.name
            default = option.get_default(click.Context(of_command)) or None
            if isinstance(default, str):
                assert str(taken[name].default) == default, name
    spelled = {spelling for option in sweep_command.params for spelling in option.opts}
    assert {spelling for option in api.OPTIONS.values() for spelling in option.names} <= spelled


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"models": []}, "models is an empty list"),
        ({"contexts": [0]}, "contexts: "),
        ({"contexts": 4096.5}, "contexts: '4096.5' is not a count"),
        ({"reps": 0}, "reps: it must be at least 1"),
        ({"threads": 10**6}, "threads: it must be at most 4,096"),
        ({"precision": 2}, "precision: it must be more than 0% and less than 100%"),
        ({"max_phase": -1}, "max_phase: '-1s' is not a duration"),
        ({"budget": "10"}, "budget: '10' has no unit"),
        ({"max_memory": "8"}, "max_memory: '8' has no unit"),
        ({"timeout": float("nan")}, "timeout: nan is not a number"),
        ({"seed": -1}, "seed: -1 is not a whole number from 0"),
        ({"fill": "full"}, "fill: 'full' is not one of prefill, synthetic"),
        ({"weights": "none"}, "weights: 'none' is not one of auto, real, synthetic"),
        ({"backend": "fak"}, "unknown backend: fak"),
        ({"quants": "nf5"}, "unknown quantization: nf5"),
        ({"store": ""}, "store is empty"),
        ({"store": b"x"}, "store: b'x' is not text or a path"),
        ({"models": b"gemma-3-270m"}, "models: b'gemma-3-270m' is not text or a number"),
        ({"quants": [None]}, "quants: None is not text or a number"),
    ],
)
def test_a_wrong_argument_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(profiler.ProfileError) as caught:
        profiler.sweep(**{"models": "gemma-3-270m", "backend": "fake", **given})
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"models": []}, "models is an empty list"),
        ({"path": "fast"}, "path: 'fast' is not one of eager, static, graph"),
        ({"split": "row"}, "split: 'row' is not one of layer, tensor"),
        ({"ram": "64"}, "ram: '64' has no unit"),
        ({"ram_bandwidth": 0}, "ram_bandwidth: 0 is not at least 0.1 GB/s"),
        ({"goal": "fast"}, "goal='fast' is not a decode rate"),
        ({"on": "rtx 9999x"}, "unknown device"),
        ({"engine": 3}, "engine: 3 is not text"),
        ({"goal": 20}, "goal: 20 is not text"),
        ({"path": 5}, "path: 5 is not text"),
        ({"kv": 8}, "kv: 8 is not text"),
        ({"ram_bandwidth": "60"}, "ram_bandwidth: '60' is not at least 0.1 GB/s"),
        ({"models": "gemma-5"}, "unknown model"),
    ],
)
def test_a_wrong_argument_of_a_prediction_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(profiler.ProfileError) as caught:
        profiler.fit(**{"models": "gemma-3-270m", "on": "rtx 4090", **given})
    assert caught.value.message.startswith(message)


class Quant(str, enum.Enum):  # noqa: UP042 (the text of a StrEnum is its value anyway)
    SMALL = "nf4"


class Strange:
    """A value without a text."""

    def __repr__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    "given",
    [
        {"contexts": numpy.array(64)},  # without dimensions
        {"contexts": numpy.int64(64)},
        {"contexts": numpy.array([64])},
        {"contexts": pandas.Series([64.0])},  # as a column with gaps has them
        {"contexts": {64}},
        {"contexts": (number for number in [64])},
        {"contexts": decimal.Decimal(64)},
        {"contexts": fractions.Fraction(64)},
        {"contexts": 64, "quants": Quant.SMALL},
        {"contexts": 64, "quants": numpy.array("nf4")},
        {"contexts": 64, "batches": numpy.float32(1), "ram": numpy.float64(2**36), "ram_bandwidth": numpy.array(80)},
    ],
)
def test_values_of_other_libraries_mean_what_they_say(given: dict[str, Any]) -> None:
    usual = {"quants": "nf4"} | ({"ram": 2**36, "ram_bandwidth": 80} if "ram" in given else {})
    expected = profiler.fit("gemma-3-270m", on="rtx 4090", contexts=64, **usual)
    assert list(profiler.fit("gemma-3-270m", on="rtx 4090", **{"quants": "nf4", **given})) == list(expected)


STRANGE = {
    "bool": True, "NaN": math.nan, "inf": -math.inf, "Decimal NaN": decimal.Decimal("sNaN"), "huge": 10**5000,
    "large Decimal": decimal.Decimal("1e999999999"), "complex": 3j, "bytes": b"64", "bytearray": bytearray(b"64"),
    "dict": {64: 1}, "nested": [[64]], "matrix": numpy.array([[64]]), "truth": numpy.array(True), "NA": pandas.NA,
    "gaps": pandas.Series([64, None]), "no end": itertools.count(1), "none": [None], "empty": numpy.array([]),
    "no text": Strange(), "function": len, "object": object(),
}  # fmt: skip


@pytest.mark.parametrize("kind", STRANGE)
def test_any_other_value_is_an_error_that_names_the_argument(kind: str, model: MakeModel) -> None:
    usual: dict[Any, dict[str, Any]] = {
        profiler.fit: {"models": "gemma-3-270m", "on": "rtx 4090"},
        profiler.sweep: {"models": model(), **QUICK},
        profiler.load: {},
    }
    for function, arguments in usual.items():
        for name, each in inspect.signature(function).parameters.items():
            if isinstance(each.default, bool) and kind in ("bool", "truth"):
                continue
            with pytest.raises(profiler.ProfileError) as caught:
                function(**{**arguments, name: STRANGE[kind]})
            assert re.match(rf"{name}( is|: |=)|{name} has more than", caught.value.message), caught.value.message


@pytest.mark.parametrize(
    ("function", "given", "message"),
    [
        ("fit", {"contexts": "9g"}, "contexts: '9g' is not a count"),
        (
            "fit",
            {"contexts": 10**6},
            "gemma-3-270m supports at most 32,768 tokens, not 1,000,000 Use contexts=32768.",
        ),
        ("fit", {"quants": ","}, "quants: the list is empty"),
        ("fit", {"path": "eager", "engine": "vllm"}, "path: vllm has a single decode path"),
        ("fit", {"ram_bandwidth": 80}, 'ram_bandwidth needs ram Add the size of that memory, such as ram="64GiB".'),
        ("fit", {"split": "tensor"}, 'split needs several devices For example: on="2xrtx 3090"'),
        ("fit", {"goal": "5 tok/s at 9g"}, "goal: '9g' is not a count"),
        ("fit", {"on": "vram=5"}, 'on="vram=5": bandwidth is missing'),
        ("fit", {"goal": "5 tok/s at 4k", "contexts": 64}, "among the contexts Leave out contexts or scenario."),
        ("sweep", {"batches": "1-8"}, "batches: '1-8' is a range without a step"),
        ("sweep", {"reps": 3, "precision": 0.02}, "reps and precision contradict each other"),
        ("sweep", {"quants": "q4_k_m"}, 'Add backend="llama.cpp".'),
        ("sweep", {"quants": "q4_k_m"}, 'with models="FILE.gguf", the file is unpacked'),
        ("sweep", {"device": "tpu"}, "device"),
        ("load", {"store": "/dev/null"}, "Give the file itself with store or PROFILER_STORE."),
    ],
)
def test_errors_name_arguments_and_not_options(function: str, given: dict[str, Any], message: str) -> None:
    usual = {"fit": {"models": "gemma-3-270m", "on": "rtx 4090"}, "sweep": {"models": "gemma-3-270m"}, "load": {}}
    with pytest.raises(profiler.ProfileError) as caught:
        getattr(profiler, function)(**{**usual[function], **given})
    text = " ".join(str(caught.value).split())
    assert message in text
    assert re.search(r"(?<![\w-])--?[a-z]", text) is None


def test_commands_in_an_error_stay_commands() -> None:
    text = "leave -q nf4 out, or predict this one with profile fit --engine vllm -q fp8; --fresh measures it again."
    assert api._in_python(text, api.SWEEP_OPTIONS) == (
        'leave quants="nf4" out, or predict this one with profile fit --engine vllm -q fp8; '
        "fresh=True measures it again."
    )
    text = "Every row is stored: profile runs show 1 --store '/tmp/a b' -m x"
    assert api._in_python(text, api.SWEEP_OPTIONS) == text


def test_none_is_the_default_of_every_argument(model: MakeModel) -> None:
    """As the documentation of both says; a wrapper that hands on its own None must not fail."""
    usual = {"models": str(model("qwen3")), "contexts": 64}
    for function, more in ((profiler.fit, {"on": "rtx 4090"}), (profiler.sweep, {"backend": "fake"})):
        names = [
            name
            for name, each in inspect.signature(function).parameters.items()
            if name not in {**usual, **more} and not isinstance(each.default, bool)
        ]
        assert len(function(**usual, **more, **dict.fromkeys(names))) == len(function(**usual, **more))


def test_what_is_not_there_is_said_with_the_right_error(tmp_path: Path, model: MakeModel) -> None:
    with pytest.raises(profiler.StoreError):
        profiler.load()
    profiler.sweep(model(), contexts=32, **QUICK)
    with pytest.raises(profiler.NotFound, match="there is no run"):
        profiler.load("999999")
    with pytest.raises(profiler.NotFound, match="there is no such file"):
        profiler.load(tmp_path / "rows.jsonl")
    with pytest.raises(profiler.ProfileError, match="there is no file"):
        profiler.load("rows.jsonl")
    with pytest.raises(profiler.ProfileError, match="do not pass a run"):
        profiler.load("26", newest=True)


def test_a_model_that_is_refused_beside_others_is_a_warning_of_the_callers_line(model: MakeModel) -> None:
    with pytest.warns(UserWarning, match="refused: .*gemma-5") as caught:
        rows = profiler.fit(["gemma-5", "gemma-3-270m"], on="rtx 4090", quants="nf4")
        measured = profiler.sweep(["gemma-5", model()], contexts=32, **QUICK)
    assert [warning.filename for warning in caught] == [__file__, __file__]
    assert {row["model"] for row in rows} == {"gemma-3-270m"}
    assert [row["case"]["model"] for row in measured] == ["tiny"]
    for found in (rows, measured, measured[:1]):
        (refused,) = found.refused
        assert "gemma-5" in refused and refused in repr(found)


def test_rows_are_a_sequence_whose_repr_shows_the_main_figures(model: MakeModel) -> None:
    rows = profiler.sweep(model(prefill_s_per_token=0.001, step_s=0.02), contexts=[32, 64], **QUICK)
    assert len(rows) == 2 and list(rows) == [rows[0], rows[1]] and rows[-1] is rows[1]
    assert isinstance(rows[1:], profiler.Rows) and list(rows[1:]) == [rows[1]] and rows[1:].run == rows.run
    text = repr(rows).splitlines()
    assert text[0] == f"<2 rows of run {rows.run}>"
    assert re.match(r"tiny +\w+ +32 +1 +ok +1,000 +50", text[3])
    many = profiler.Rows([*rows] * 30)
    assert repr(many).splitlines()[-1] == "… and 40 more"
    assert repr(profiler.Rows([])) == "<0 rows>"


def test_changing_a_row_changes_nothing_that_is_read_later(model: MakeModel) -> None:
    rows = profiler.sweep(model(), contexts=32, **QUICK)
    before = json.loads(json.dumps(list(profiler.load())))
    rows[0]["environment"].clear()
    rows[0]["decode"]["seconds"].clear()
    assert list(profiler.load()) == before


def test_a_data_frame_has_a_column_for_each_figure(model: MakeModel) -> None:
    name = model(faults=[{"kind": "error", "value": "no luck", "context": 32}])
    rows = profiler.sweep(name, contexts=[32, 64], **QUICK)  # the first has no phases, the second has
    frame = rows.to_pandas()
    assert isinstance(frame, pandas.DataFrame) and len(frame) == 2
    assert "decode" not in frame.columns and "case" not in frame.columns
    assert frame["case.context"].tolist() == [32, 64]
    assert pandas.isna(frame["decode.tps"][0]) and frame["decode.tps"][1] == rows[1]["decode"]["tps"]
    assert frame["decode.seconds"][1] == rows[1]["decode"]["seconds"]  # a list stays one
    assert frame["memory.weights_bytes"][1] == rows[1]["memory"]["weights_bytes"]
    order = list(frame.columns)
    assert order.index("reason") < order.index("prefill.tps") < order.index("decode.tps") < order.index("load_s")
    predicted = profiler.fit("gemma-4-31b", on="rtx 4090", quants="nf4", contexts=["4k", "128k"]).to_pandas()
    assert predicted["verdict"].tolist() == ["fits", "no"]
    assert predicted["decode.tps.value"].notna().tolist() == [True, False]
    assert len(profiler.Rows([]).to_pandas()) == 0


def test_without_pandas_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(profiler.ProfileError, match="to_pandas needs pandas") as caught:
        profiler.Rows([]).to_pandas()
    assert caught.value.hint == "pip install pandas"


def test_the_calls_of_the_document_are_calls_that_can_be_made() -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    calls = [node for block in blocks for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)]
    ours = [call for call in calls if ast.unparse(call.func).startswith("profiler.")]
    assert {ast.unparse(call.func) for call in ours} == {"profiler.fit", "profiler.sweep", "profiler.load"}
    for call in ours:
        function = getattr(profiler, ast.unparse(call.func).removeprefix("profiler."))
        inspect.signature(function).bind(*call.args, **{str(each.arg): each.value for each in call.keywords})


def test_arguments_and_fields_are_documented() -> None:
    for function in (profiler.fit, profiler.sweep):
        for name in inspect.signature(function).parameters:
            assert f"`{name}`" in DOCUMENT, name
    fields = profiler.fit("gemma-3-270m", on="rtx 4090", goal="1 tok/s at 4k")[0]
    assert [name for name in fields if f"`{name}`" not in DOCUMENT] == []
