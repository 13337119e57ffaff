"""Results of a server as rows of the store: what makes a case, what a row states, and what is known of the model."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import stored
from fakes.ceilings import MEASURED
from fakes.openai_server import FakeServer, Script

from profiler import devices
from profiler.backends.endpoint import Arrival, processes, summarize
from profiler.backends.endpoint.client import KEY, run
from profiler.case import UNSTATED
from profiler.commands.accuracy import disturbed
from profiler.devices import target
from profiler.devices.base import DeviceInfo, Disturbance
from profiler.errors import ProfileError
from profiler.models import families, hub
from profiler.results import reading, stats
from profiler.results import row as results_row
from profiler.results.comparison import compare
from profiler.results.measurement import Measurement
from profiler.results.store import Store
from profiler.run import endpoint, serving
from profiler.run.endpoint import EndpointRequest, EndpointResult
from profiler.show import columns
from profiler.show import endpoint as show_endpoint

ASKED = EndpointRequest(reps=3, tokens=16, timeout_s=5.0)
QUICK = Script(first_s=0.02, gap_s=0.002)


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)


def results(server: FakeServer, **more: Any) -> list[EndpointResult]:
    async def main() -> list[EndpointResult]:
        found = endpoint.measure(replace(ASKED, **more), server.url, lambda text: None)
        return [result async for result in found]

    return run(main())


def rows(server: FakeServer, config: str | None = None, **more: Any) -> list[Measurement]:
    made = serving.ServedRows(config)
    return [made.row(result) for result in results(server, **more)]


def timed(result: EndpointResult, gap_s: float) -> EndpointResult:
    """The same as if every request had sent its 16 tokens at exact times, one in a chunk."""
    exchanges = tuple(
        replace(
            each,
            first_answer_s=each.sent_s + 0.02,
            end_s=each.sent_s + 0.02 + 15 * gap_s,
            arrivals=tuple(Arrival(each.sent_s + 0.02 + n * gap_s, 6) for n in range(16)),
        )
        for each in result.exchanges
    )
    return replace(result, exchanges=exchanges, summary=summarize(exchanges))


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer("vllm", QUICK) as found:
        yield found


def test_a_row_has_a_repetition_for_each_request_by_the_figures_of_the_page(server: FakeServer) -> None:
    result = timed(results(server, contexts=("64",))[0], 0.002)
    row = serving.ServedRows().row(result)
    assert len(row.samples.of("prefill")) == len(row.samples.of("decode")) == 3
    assert [sample.tokens for sample in row.samples.of("prefill")] == [each.usage.prompt for each in result.exchanges]
    assert {sample.tokens for sample in row.samples.of("decode")} == {15}
    for phase, known in (("prefill", result.summary.prefill_tps), ("decode", result.summary.decode_tps)):
        found = stats.rate(row, phase)  # type: ignore[arg-type]
        assert found is not None and known is not None
        assert found.median == pytest.approx(known.p50)
    ttft, steps = stats.ttft(row), stats.steps(row)
    assert ttft is not None and result.summary.ttft is not None and steps is not None
    assert ttft.median == result.summary.ttft.p50
    assert steps.n == 45
    assert (row.case.context, row.case.batch, row.case.steps) == (64, 1, 16)


def test_the_rate_of_a_row_is_that_of_one_stream_whatever_the_others_do(server: FakeServer) -> None:
    made = serving.ServedRows()
    one, four = (made.row(timed(result, 0.002)) for result in results(server, concurrency=("1,4",)))
    rates = [stats.rate(row, "decode") for row in (one, four)]
    assert rates[0] is not None and rates[1] is not None
    assert rates[1].median == pytest.approx(rates[0].median) == pytest.approx(500)
    assert columns.token_cell(four) == "2.000"  # ms, and not four times as many


def test_chunks_that_arrive_at_the_same_moment_are_no_time_of_zero_per_token(server: FakeServer) -> None:
    row = serving.ServedRows().row(timed(results(server)[0], 0.002))
    at_once = [replace(s, step_s=(0.0,) * len(s.step_s)) for s in row.samples]
    assert columns.token_cell(replace(row, samples=tuple(at_once))) != "0"


def test_what_was_stored_is_read_again_unchanged(server: FakeServer, tmp_path: Path) -> None:
    row = rows(server)[0]
    with Store.open(tmp_path / "s.sqlite") as store:
        kept = serving.ServedRun(store, ["endpoint", server.url])
        kept.append(row)
        kept.finish(interrupted=False)
        (again,) = store.rows(kept.id)
        assert store.runs()[0].how == "finished"
    assert replace(again, samples=tuple(again.samples)) == row
    assert again.serving == row.serving
    (tmp_path / "rows.jsonl").write_text(results_row.line(None, row))
    (public,) = reading.read(tmp_path / "rows.jsonl")
    assert stats.rates(public, "prefill") == stats.rates(row, "prefill")
    assert public.serving == row.serving


def test_the_shapes_of_a_known_model_are_stored_and_its_rows_keep_the_name_that_is_served(
    server: FakeServer, tmp_path: Path
) -> None:
    made = serving.ServedRows("gemma-3-270m")
    (measured,) = (made.measured(result) for result in results(server))
    with Store.open(tmp_path / "s.sqlite") as store:
        kept = serving.ServedRun(store, ["endpoint", server.url])
        kept.append(measured.row, measured.config)
        renamed = replace(measured.row, case=replace(measured.row.case, model="another-name", context=9))
        kept.append(renamed, measured.config)
        (known,) = store.configs().items()
        assert known[0] == measured.row.case.model_id
        assert families.geometry(known[1]) == families.geometry(hub.shipped_config("gemma-3-270m"))
        names = [measured.row.case.model, "another-name"]
        assert [row.case.model for row in store.rows(kept.id)] == names == [*store.runs()[0].models]


def test_every_field_of_serving_is_documented(server: FakeServer) -> None:
    (row,) = rows(server)
    page = (Path(__file__).parents[3] / "docs" / "result-row.md").read_text(encoding="utf-8")
    assert row.serving is not None
    assert {name for name in row.serving if f"`{name}`" not in page} == set()


def test_a_store_of_an_older_version_is_read_and_its_rows_have_no_server(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "results" / "store_v1.sql").read_text(encoding="utf-8")
    with sqlite3.connect(tmp_path / "old.sqlite") as old:
        old.executescript(text)
    old.close()
    with Store.read_only(tmp_path / "old.sqlite") as store:
        assert {row.serving for row in store.rows()} == {None}


def test_a_row_can_be_read_again_whatever_a_server_states(tmp_path: Path) -> None:
    """Figures that JSON or a row cannot have: infinite rates, sizes beyond every file, text to move a terminal."""
    absurd = {"prompt_n": 10**9, "prompt_ms": 1e-300, "predicted_n": 10**9, "predicted_ms": 1e-300}
    hostile = "m\x1b[31m\u202e" + "=" * 400
    with FakeServer("llama-server", replace(QUICK, timings=absurd), (hostile,)) as server:
        known = server._get_llama_server
        meta = {"size": 2**60 - 1, "n_ctx_train": 2**60 - 1}
        listed = {"data": [{"id": hostile, "owned_by": "llamacpp", "meta": meta}]}
        server._get_llama_server = lambda path: listed if path == "/v1/models" else known(path)  # type: ignore
        server.models = (hostile[:300],)  # as it is asked for
        (row,) = rows(server)
    assert row.outcome == "ok"
    with Store.open(tmp_path / "s.sqlite") as store:
        serving.ServedRun(store, []).append(row)
        (again,) = store.rows()
    assert again.serving == row.serving
    assert "\x1b" not in row.case.model and "\u202e" not in row.case.model
    (tmp_path / "rows.jsonl").write_text(results_row.line(None, row))
    assert reading.read(tmp_path / "rows.jsonl")[0].serving == row.serving


def test_only_a_server_counts_tokens_of_its_own(server: FakeServer, tmp_path: Path) -> None:
    content = results_row.row(None, rows(server)[0])
    assert results_row.from_row(content)
    content["case"]["options"] = ""
    with pytest.raises(ValueError, match="do not match case"):
        results_row.from_row(content)


# The case


def test_an_update_of_the_server_and_another_port_leave_a_case_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []
    for version in ("0.19.2", "0.20.0"):
        with FakeServer("vllm", QUICK) as server:
            monkeypatch.setattr(
                server, "_get_vllm", lambda path, old=server._get_vllm, version=version: (
                    {"version": version} if path == "/version" else old(path)
                )
            )  # fmt: skip
            keys.append(rows(server)[0])
    before, after = keys
    assert before.case == after.case
    found = compare([before], [after])
    assert len(found.pairs) == 1
    assert "server version 0.19.2 → 0.20.0" in found.differences


def test_another_kind_of_server_another_prompt_and_the_cache_are_other_cases(
    server: FakeServer, tmp_path: Path
) -> None:
    (tmp_path / "a page.txt").write_text("Write a landing page for a bakery.")
    found = [*rows(server), *rows(server, cached=True), *rows(server, prompt=tmp_path / "a page.txt")]
    (tmp_path / "a page.txt").write_text("Write a landing page for a brewery.")
    found += rows(server, prompt=tmp_path / "a page.txt")
    with FakeServer("sglang", QUICK) as other:
        found += rows(other)
    assert len({row.case.key for row in found}) == len(found)
    assert found[0].case.options == "server=vllm"
    assert found[1].case.options == "cached=yes server=vllm"
    assert found[2].case.options.startswith("prompt=a-page.txt:")
    assert [row.case.server for row in found] == ["vllm"] * 4 + ["sglang"]


def test_the_context_of_a_written_prompt_is_shown_as_the_server_counts_it(server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "page.txt").write_text("Write a landing page for a bakery. " * 20)
    (row,) = rows(server, prompt=tmp_path / "page.txt")
    assert row.serving is not None
    assert row.case.context == 180  # 700 characters
    assert columns.context_cell(row) == f"{sorted(row.serving['prompt_tokens'])[1]:,}"


def test_a_server_elsewhere_has_not_our_machine(monkeypatch: pytest.MonkeyPatch, server: FakeServer) -> None:
    (result,) = results(server)
    here = serving.ServedRows().row(result)
    assert here.environment["device"]["title"] == devices.find().title
    there = replace(result, server=replace(result.server, root="https://box.example:8443"))
    row = serving.ServedRows().row(there)
    assert row.case.device == "remote"
    assert row.environment["device"] == {"name": "remote", "kind": "remote", "title": "the machine box.example"}
    assert not {"cpu", "memory_bytes", "system"} & row.environment.keys()
    forwarded = replace(result, use=replace(result.use, elsewhere=True))
    assert serving.ServedRows().row(forwarded).case.device == "remote"
    assert [row.case.dtype, row.case.path] == [UNSTATED, UNSTATED]
    other = {"gpu_peak_bytes": f"{processes.OTHER_GPU} (/dev/dri/renderD128)"}
    amd = replace(result, use=replace(result.use, gpu_peak_bytes=None, unknown=other))
    row = serving.ServedRows().row(amd)
    assert row.case.device == "remote"  # and not the CPU
    assert row.serving is not None


def test_a_model_in_a_cloud_has_not_our_machine_though_its_server_is_here() -> None:
    with FakeServer("ollama", QUICK) as server:
        server.described = {"remote_host": "https://ollama.com:443"}
        (row,) = rows(server)
    assert row.case.device == "remote"
    assert row.environment["device"]["title"] == "the machine https://ollama.com:443"
    assert row.serving is not None and row.serving["host_peak_bytes"] is None
    assert "run by https://ollama.com:443" in row.serving["unknown"]["host_peak_bytes"]


def test_servers_that_share_a_port_are_a_caution(server: FakeServer) -> None:
    (result,) = results(server)
    shared = processes.nothing_known(f"2 {processes.SHARE} 8080, each of which gets some of the requests")
    row = serving.ServedRows().row(replace(result, use=shared))
    assert "shared-port" in [caution.code for caution in row.cautions]


def test_lm_studio_states_its_runtime_and_no_version() -> None:
    with FakeServer("lmstudio", QUICK) as server:
        (row,) = rows(server)
    assert row.environment["server"] == {"kind": "LM Studio", "version": "llama.cpp-linux-x86_64-avx2 1.24.0"}


def test_a_failed_case_is_a_row_with_its_reason_and_no_samples(server: FakeServer) -> None:
    server.choose = lambda asked, number: Script(fault="error") if number == 4 else QUICK
    (row,) = rows(server)
    assert row.outcome == "failed" and not row.samples
    assert row.reason is not None and "CUDA out of memory" in row.reason
    assert row.serving is not None and (row.serving["requests"], row.serving["failed"]) == (2, 1)


def test_a_cached_prompt_has_a_ttft_without_a_prefill_rate(server: FakeServer) -> None:
    server.script = replace(QUICK, cached_tokens=20, prompt_tokens=20)
    (row,) = rows(server, cached=True, contexts=("20",))
    assert not row.samples.of("prefill")
    assert columns.ttft_cell(row).endswith(" ms")


# The model


def test_a_model_is_known_by_the_file_that_a_server_here_names(tmp_path: Path) -> None:
    gguf_file = stored.gguf(tmp_path / "tiny.gguf")
    with FakeServer("llama-server", QUICK) as server:
        (result,) = results(server)
    named = replace(result, model=replace(result.model, path=str(gguf_file), file_bytes=None))
    row = serving.ServedRows().row(named)
    same = serving.ServedRows(str(gguf_file)).row(replace(result, model=replace(result.model, quant=None)))
    assert row.case.model == same.case.model == gguf_file.stem
    assert row.case.model_id == same.case.model_id
    assert row.serving is not None and row.serving["known_by"] == "the file that the server names"
    other = replace(named, model=replace(named.model, file_bytes=10**12))  # a file of that name in a container
    assert serving.ServedRows().row(other).case.model == "tiny-Q4_K_M"


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("gemma-3-270m-it-Q4_K_M", "gemma-3-270m"),
        ("gemma3:270m", "gemma-3-270m"),
        ("google/gemma-3-270m", "gemma-3-270m"),
        ("qwen3.5:4b", "qwen3.5-4b"),
        ("my-own-tune", None),
        ("gemma", None),
    ],
)
def test_a_model_is_known_by_the_name_of_the_catalog(name: str, known: str | None) -> None:
    with FakeServer("openai", QUICK, models=(name,)) as server:
        (row,) = rows(server)
    assert row.serving is not None
    assert row.serving.get("known_model") == known
    assert row.case.model == name  # its weights are not those of anything we know
    if known is None:
        assert "is not in the catalog" in row.serving["unknown"]["decode_mbu"]


def test_what_a_rate_is_of_the_ceiling_is_stated_where_machine_and_model_are_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with FakeServer("llama-server", replace(QUICK, gap_s=0.05), models=("gemma-3-270m-Q4_K_M",)) as server:
        (result,) = results(server)
    known = replace(result, use=replace(result.use, program="llama-server", gpu_peak_bytes=0))
    row = serving.ServedRows().row(known)
    assert row.serving is not None
    assert row.serving["unknown"]["decode_mbu"].startswith("this device was not calibrated")
    assert row.expected["decode_tps"]["value"] > 0
    of = target.of
    monkeypatch.setattr(target, "of", lambda device, *more: replace(of(device, *more), ceilings=MEASURED))
    row = serving.ServedRows().row(known)
    share = stats.ceiling(row)
    assert share is not None and 0 < share["decode_fraction"] < 1
    elsewhere = replace(known, server=replace(known.server, root="http://box"))
    assert stats.ceiling(serving.ServedRows().row(elsewhere)) is None


def test_a_share_of_a_ceiling_is_claimed_only_of_the_device_that_has_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with FakeServer("llama-server", QUICK, models=("gemma-3-270m-Q4_K_M",)) as server:
        (result,) = results(server)
    gpu = DeviceInfo("cuda:0", "cuda", "NVIDIA GeForce RTX 4090", 24 << 30, 20 << 30, "bf16")
    here = [gpu]
    monkeypatch.setattr(devices, "find", lambda name=None: gpu)
    monkeypatch.setattr(devices, "local", lambda: here)

    def unknown(gpu_bytes: int | None) -> str:
        use = replace(result.use, program="llama-server", gpu_peak_bytes=gpu_bytes, elsewhere=False)
        row = serving.ServedRows().row(replace(result, use=use))
        assert row.serving is not None and row.case.device == "cuda:0"
        return str(row.serving["unknown"]["decode_mbu"])

    assert unknown(2 << 30).startswith("this device was not calibrated")
    use = replace(result.use, program="llama-server", gpu_peak_bytes=2 << 30, elsewhere=False)
    shown = show_endpoint.render([serving.ServedRows().measured(replace(result, use=use))], "table")
    assert "What was predicted\n" in shown and "MBU and MFU are unknown: this device was not calibrated" in shown
    assert not {"MBU", "MFU"} & set(shown.partition("What was predicted")[2].splitlines()[1].split())
    assert unknown(50 << 20) == "part of the model is not on the GPU"
    assert unknown(None) == "it is not known which device the server uses; --on names one"
    here += [replace(gpu, name="cuda:1")]
    assert unknown(2 << 30) == "it is not known which device the server uses; --on names one"


def test_on_names_the_hardware_of_a_server_elsewhere_whose_data_sheet_is_the_ceiling() -> None:
    with FakeServer("llama-server", replace(QUICK, gap_s=0.05), models=("gemma-3-270m-Q4_K_M",)) as server:
        (result,) = results(server)
    elsewhere = replace(result, server=replace(result.server, root="http://box"))
    row = serving.ServedRows(on="rtx 4090").row(elsewhere)
    share = stats.ceiling(row)
    assert share is not None and 0 < share["decode_fraction"] < 0.2  # 20 tokens/s of some 1,000
    assert row.serving is not None and row.serving["on"] == "RTX 4090"
    assert "decode_mbu" not in row.serving["unknown"]
    assert [each.text for each in row.cautions if each.code == "data-sheet-ceiling"] == [
        "MBU and MFU are of the data sheet of RTX 4090, which --on names"
    ]
    assert row.case.device == "remote"  # here too, since it is not said to be one of this machine's
    assert serving.ServedRows(on="rtx 4090").row(result).case.device == "remote"


@pytest.mark.parametrize("on", ["cpu", "rtx 5099", "vram=24"])
def test_hardware_that_on_cannot_mean_is_an_error_before_anything_is_sent(on: str) -> None:
    with pytest.raises(ProfileError):
        serving.ServedRows(on=on)


def test_a_model_that_does_not_fit_in_the_named_hardware_has_no_mbu() -> None:
    with FakeServer("llama-server", QUICK, models=("gemma-4-31b-Q4_K_M",)) as server:
        (result,) = results(server)
    row = serving.ServedRows(on="rtx 3060").row(replace(result, server=replace(result.server, root="http://box")))
    assert row.serving is not None
    assert row.serving["unknown"]["decode_mbu"].startswith("the model does not fit in the memory of RTX 3060 12GB")


def test_a_config_that_is_none_is_an_error_before_anything_is_sent(server: FakeServer) -> None:
    with pytest.raises(ProfileError, match="unknown model: nothing"):
        serving.ServedRows("nothing")
    assert not server.requests


@pytest.mark.parametrize(("lacked", "withheld"), [(0.7, True), (0.12, False)])
def test_other_work_on_the_servers_machine_counts_as_in_a_sweep(
    server: FakeServer, lacked: float, withheld: bool
) -> None:
    result = timed(results(server)[0], 0.002)
    other = Disturbance("the CPU was busy", lacked)
    measured = serving.ServedRows().measured(replace(result, use=replace(result.use, disturbance=other)))
    rates = [stats.rate(measured.row, phase) for phase in ("prefill", "decode")]
    assert [rate is not None and rate.busy for rate in rates] == [withheld] * 2
    assert disturbed(measured.row, "prefill_tps") and disturbed(measured.row, "decode_tps")
    shown = show_endpoint.render([measured], "table")
    assert (" busy " in shown, "busy: measured while" in shown) == (withheld, withheld)


def test_two_requests_are_too_few_in_the_table_as_in_the_store(server: FakeServer) -> None:
    result = results(server, reps=2)[0]
    exchanges = tuple(timed(result, gap).exchanges[n] for n, gap in enumerate((0.002, 0.0026)))
    measured = serving.ServedRows().measured(replace(result, exchanges=exchanges, summary=summarize(exchanges)))
    assert columns.rate_cell(measured.row, "decode").startswith("too few: ")
    shown = show_endpoint.render([measured], "table")
    assert "  too few  " in shown and "too few: the interval exceeds ±50%" in " ".join(shown.split()), shown
