"""Rows of a server in the report: beside those of other engines, on the machine where the server is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fakes.reported import ENVIRONMENT, measured

from profiler.results import row as results_row
from profiler.results.measurement import Caution, Measurement
from profiler.show.report import energy, speed
from profiler.show.report.blocks import Table
from profiler.show.report.page import page
from profiler.show.report.selection import machines
from profiler.show.writers import html, md, table

HERE = {name: ENVIRONMENT[name] for name in ("cpu", "memory_bytes", "device", "system")}
SERVER = HERE | {"server": {"kind": "llama-server", "version": "b9100"}}
ELSEWHERE = {"device": {"name": "remote", "kind": "remote", "title": "the machine box"}, "server": SERVER["server"]}


def served(environment: dict[str, Any] = SERVER, later: str = "2026-11-25", **more: Any) -> Measurement:
    stated = {"quant": "q4_k_m", "dtype": "unknown", "path": "unknown", "options": "server=llama-server"}
    row = measured(environment=environment, backend="endpoint", **stated | more)
    return replace(row, serving={"server": "llama-server"}, started_at=f"{later}T09:30:15+00:00")


def engines(*rows: Measurement) -> list[Table]:
    blocks = speed.section(machines(rows)).blocks
    return [each for each in blocks if isinstance(each, Table) and each.columns[0].title == "engine"]


def test_engines_that_ran_the_same_file_are_side_by_side_with_their_share_of_the_ceiling() -> None:
    expected = {"ceiling_s": {"prefill": 1.0, "step": 0.05}, "decode_bound": "bandwidth"}
    (shown,) = engines(
        measured((5.0, 5.1, 4.9), expected={"ceiling_s": {"prefill": 1.0, "step": 0.1}}),
        served(decode=(10.0, 10.1, 9.9), expected=expected),
    )
    assert [row[:5] for row in shown.rows] == [
        ("llama-server b9100 q4_k_m", "512", "1", "10.0", "50%"),
        ("transformers bf16", "512", "1", "5.00", "50%"),
    ]


def test_rows_of_one_engine_are_told_apart_and_a_busy_one_is_called_so() -> None:
    busy = replace(measured(backend="llama.cpp", threads=1), cautions=(Caution("decode-busy", "decode: busy"),))
    other = measured((9.0, 9.1, 8.9), backend="llama.cpp", options="kv=q8_0")
    (shown,) = engines(busy, other, served(decode=(10.0, 10.1, 9.9), quant="bf16"))
    assert {row[0]: row[3] for row in shown.rows} == {
        "llama.cpp bf16 threads=1": "busy",
        "llama.cpp bf16 kv=q8_0": "9.00",
        "llama-server b9100 bf16": "10.0",
    }


def test_other_files_other_sizes_and_one_engine_alone_are_not_compared() -> None:
    assert not engines(measured(), served(model_id="another file"))
    assert not engines(measured(), served(context=1024))
    assert not engines(served(), served(options="cached=yes server=llama-server"))
    assert not engines(measured(), served(options="prompt=page:ab12 server=llama-server"))


def test_a_rate_of_one_stream_is_compared_with_that_of_one_sequence() -> None:
    (shown,) = engines(measured((40.0, 40.4, 39.6), batch=4), served(decode=(8.0, 8.1, 7.9), batch=4))
    assert [row[3] for row in shown.rows] == ["10.0", "8.00"]


def test_a_server_here_is_on_our_machine_and_does_not_describe_it() -> None:
    (machine,) = machines([measured(), served()])
    assert machine.environment is ENVIRONMENT
    assert [group.series for group in machine.groups] == ["bf16", "q4_k_m llama-server"]
    titles = [machine.title for machine in machines([measured(), served(ELSEWHERE)])]
    assert titles == ["Some CPU (64.0 GiB)", "the machine box"]


def test_a_page_of_servers_alone_is_shown_in_every_format() -> None:
    shown = page([served(), served(batch=4), served(ELSEWHERE)])
    for text in (html.document(shown), md.markdown(shown, {}), table.terminal(shown)):
        assert "llama-server" in text
        assert "unknown q4" not in text and "compute unknown" not in text


def test_the_energy_of_a_server_is_that_of_whole_requests() -> None:
    stated = {
        "energy_j_per_request": 64.0,
        "energy_j_per_token": 0.5,
        "power_w": 120.0,
        "energy_source": "nvml-counter",
    }
    row = replace(served(), serving={"server": "llama-server", **stated})
    shown = energy.section(machines([row])).blocks
    (found,) = (each for each in shown if isinstance(each, Table))
    assert [each.title for each in found.columns][-3:] == [
        "J per request", "J per output token, prefill included", "W",
    ]  # fmt: skip
    assert found.rows[0][-3:] == ("64.0", "0.500", "120")
    public = results_row.row(None, row)["energy"]
    assert (public["request_j"], public["request_j_per_token"], public["request_w"]) == (64.0, 0.5, 120.0)
    unknown = replace(row, serving={"server": "llama-server", "unknown": {"energy": "no RAPL here"}})
    assert "No energy figures: no RAPL here" in str(energy.section(machines([unknown])))


def _file(quant: str, model_id: str, model: str = "tiny-{}", parameters: int = 7, **more: Any) -> Measurement:
    stated = {"backend": "llama.cpp", "quant": quant, "dtype": "unknown", "path": "unknown"}
    row = measured(model=model.format(quant.upper()), model_id=model_id, **stated | more)
    return replace(row, checkpoint={"parameters": parameters})


def _models(*rows: Measurement) -> list[str]:
    return [name for machine in machines(rows) for name in machine.models]


def test_gguf_files_of_one_model_are_one_model_beside_its_folder() -> None:
    files = _file("q8_0", "a"), _file("q4_k_m", "b"), _file("f16", "c")
    assert _models(*files) == ["tiny"]
    (machine,) = machines(files)
    assert [group.series for group in machine.groups] == ["f16", "q8_0", "q4_k_m"]  # most bits first
    assert _models(*files, measured(model="tiny", model_id="folder")) == ["tiny (GGUF)", "tiny"]
    by_server = served(model="tiny-Q8_0", model_id="a", quant="q8_0")
    for rows in ((files[0], by_server, files[1]), (by_server, *files[:2])):
        assert _models(*rows) == ["tiny"]
    large = [replace(each, case=replace(each.case, model=each.case.model.title())) for each in files]
    assert _models(*large, measured(model="tiny", model_id="folder")) == ["Tiny (GGUF)", "tiny"]
    assert _models(files[0]) == ["tiny"]  # its line is tiny · q8_0
    assert "1 model" in page([*files, measured(model="tiny", model_id="folder")]).summary


def test_gguf_files_that_may_be_of_other_models_stay_apart() -> None:
    assert _models(_file("q8_0", "a"), _file("q4_0", "b", parameters=8)) == ["tiny-Q8_0", "tiny-Q4_0"]
    twice = _models(_file("q8_0", "a"), _file("q4_0", "b"), _file("q4_0", "c"))
    assert twice == ["tiny-Q8_0", "tiny-Q4_0 #b", "tiny-Q4_0 #c"]
    assert _models(_file("q8_0", "a", "one"), _file("q4_0", "b", "one")) == ["one #a", "one #b"]
