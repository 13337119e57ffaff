"""The lists of ``profile models``, ``devices``, ``scenarios`` and ``runs``: rows as plain JSON, and as tables.

Each command needs only its own part, so a part imports what it needs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from profiler.shell import command
from profiler.show.output import JsonRow, render
from profiler.units import GIGA, TERA, UNKNOWN, bytes_text, printable, significant

if TYPE_CHECKING:
    from profiler.devices.base import DeviceInfo
    from profiler.devices.target import CatalogDevice
    from profiler.models.geometry import Geometry
    from profiler.results.store import Run
    from profiler.run.grid import Scenario

ELEMENT_BYTES = 2  # K and V in a 16-bit dtype
SHARED = "shared "  # the prefix of a layer kind without its own cache
DATA_SHEET_DIGITS = 4
NUMBERS_SHOWN = 5  # contexts or batches of a scenario; a longer list is shown by its ends
OUTCOMES = ("ok", "oom", "failed", "timeout", "skipped")  # in the order of the counts
COMMAND_LENGTH = 300  # characters of a command, which is the last column; a truncated one cannot be pasted
MODELS_LENGTH = 40  # characters of the list of models of a run
DEVICE_LENGTH = 30  # characters of a device's name


def models(found: Sequence[tuple[str, Geometry]], output: str) -> str:
    """Models of the catalog, with their names, in a format of ``output.FORMATS``."""
    return render([_model_row(*each) for each in found], _model, output, ("active", "fixed cache"))


def devices(found: Sequence[DeviceInfo], output: str) -> str:
    """Devices of this machine, as ``models``."""
    return render([_device_row(each) for each in found], _device, output, ("driver", "dtype"), prose="features")


def catalog(found: Sequence[CatalogDevice], output: str) -> str:
    """Devices of the catalog, as ``models``."""
    rows = [_data_sheet_row(each) for each in found]
    return render(rows, _data_sheet, output, ("int8 TOP/s", "class"), prose="source")


def scenarios(found: Sequence[Scenario], output: str) -> str:
    """Scenarios, as ``models``; json has all fields."""
    return render([asdict(each) for each in found], _scenario, output, ("answer tokens",), prose="use case")


def runs(found: Sequence[Run], output: str) -> str:
    """Stored runs, as ``models``; a narrow table drops the start first, which the id has as well."""
    return render([_run_row(each) for each in found], _run, output, ("device", "started (UTC)", "ended"))


def _model_row(name: str, model: Geometry) -> dict[str, Any]:
    """One model as plain JSON; bytes and counts are integers."""
    depth = model.max_position
    deep, deeper = model.cache_bytes(depth, 1, ELEMENT_BYTES), model.cache_bytes(depth + 1, 1, ELEMENT_BYTES)
    return {
        "model": name,
        "parameters": model.parameters,
        "active_parameters": model.active_parameters,
        "layers": model.layer_kinds(),
        "cache_bytes_per_token": deeper.growing - deep.growing,
        "window_bytes_per_sequence": deep.window,
        "state_bytes_per_sequence": deep.state,
        "max_context": depth,
    }


def _model(row: JsonRow) -> dict[str, str]:
    return {
        "model": row["model"],
        "params": _count(row["parameters"]),
        "active": _count(row["active_parameters"]),
        "layers": _layers(row["layers"]),
        "KV/token": bytes_text(row["cache_bytes_per_token"]),
        "fixed cache": bytes_text(row["window_bytes_per_sequence"] + row["state_bytes_per_sequence"]),
        "max context": f"{row['max_context']:,}",
    }


def _layers(kinds: Mapping[str, int]) -> str:
    """``28 sliding + 7 full, 20 shared``: layers by kind, and how many of them share K/V."""
    counts: Counter[str] = Counter()
    for kind, count in kinds.items():
        counts[kind.removeprefix(SHARED)] += count
    shared = sum(count for kind, count in kinds.items() if kind.startswith(SHARED))
    text = " + ".join(f"{count} {kind}" for kind, count in counts.items())
    return f"{text}, {shared} shared" if shared else text


def _count(parameters: int) -> str:
    billions = parameters / 1e9
    return f"{significant(billions)} B" if billions >= 0.9995 else f"{significant(billions * 1000)} M"


def _device_row(device: DeviceInfo) -> dict[str, Any]:
    """One device of this machine as plain JSON; bytes."""
    return {
        "device": device.name,
        "title": device.title,
        "memory_bytes": device.memory_bytes,
        "free_bytes": device.free_bytes,
        "default_dtype": device.default_dtype,
        "cores": device.usable_cores,
        "cores_installed": device.installed,
        "threads": device.threads,
        "limits": list(device.limits),
        "features": list(device.features),
        "driver": device.driver,
        "slice": None if device.slice is None else asdict(device.slice),
    }


def _device(row: JsonRow) -> dict[str, str]:
    return {
        "device": row["device"],
        "title": row["title"],
        "memory": bytes_text(row["memory_bytes"]),
        "free": bytes_text(row["free_bytes"]),
        "dtype": row["default_dtype"],
        "cores": _cores(row),
        "features": " ".join(row["features"]) or UNKNOWN,
        "driver": row["driver"] or UNKNOWN,
    }


def _cores(row: JsonRow) -> str:
    """``2``, or ``1 of 2`` where this process may not use them all, or not all of the time."""
    cores, installed = row["cores"], row["cores_installed"]
    if cores is None:
        return UNKNOWN
    return f"{cores:g} of {installed}" if installed is not None and cores < installed else f"{cores:g}"


def _data_sheet_row(device: CatalogDevice) -> dict[str, Any]:
    """One device of the catalog as plain JSON; bytes, bytes per second, FLOP per second, watts."""
    return {
        "device": device.name,
        "vendor": device.vendor,
        "class": device.kind,
        "memory_bytes": device.memory_bytes,
        "bandwidth_bytes_s": device.bandwidth_bytes_s,
        "flops": dict(device.flops),
        "tdp_w": device.tdp_w,
        "sources": dict(device.sources),
        "standing": device.standing,
        "notes": device.notes,
    }


def _data_sheet(row: JsonRow) -> dict[str, str]:
    flops = row["flops"]
    return {
        "device": row["device"],
        "class": row["class"],
        "memory": bytes_text(row["memory_bytes"]),
        "GB/s": _stated(row["bandwidth_bytes_s"] / GIGA),
        "bf16 TFLOP/s": _tera(flops.get("bf16")),
        "int8 TOP/s": _tera(flops.get("int8")),
        "watts": _stated(row["tdp_w"]),
        "source": row["standing"],
    }


def _tera(value: float | None) -> str:
    return _stated(None if value is None else value / TERA)


def _stated(value: float | None) -> str:
    """With the digits of a data sheet, and no more: 1,008 and 25.5."""
    text = UNKNOWN if value is None else significant(value, DATA_SHEET_DIGITS)
    return text.rstrip("0").rstrip(".") if "." in text else text


def _scenario(row: JsonRow) -> dict[str, str]:
    return {
        "scenario": row["name"],
        "contexts": _list(row["contexts"]),
        "batches": _list(row["batches"]),
        "answer tokens": UNKNOWN if row["answer_tokens"] is None else f"{row['answer_tokens']:,}",
        "use case": row["stands_for"] or row["description"],
    }


def _list(values: Sequence[int]) -> str:
    """Numbers in the form of the command line; only the ends of a long list: ``1k … 128k``."""
    shown = [f"{value // 1024}k" if value % 1024 == 0 else str(value) for value in values]
    return ", ".join(shown) if len(shown) <= NUMBERS_SHOWN else f"{shown[0]} … {shown[-1]}"


def _run_row(run: Run) -> dict[str, Any]:
    """One run as plain JSON."""
    from profiler.results.redact import redact_json

    device = run.environment.get("device") or {}
    row: dict[str, Any] = redact_json(
        {
            "run": run.id,
            "started_at": run.started_at,
            "finished_at": run.finished_at,
            "how": run.how,
            "outcomes": {outcome: run.outcomes[outcome] for outcome in OUTCOMES if outcome in run.outcomes},
            "models": list(run.models),
            "device": device.get("title"),
            "argv": list(run.argv),
        }
    )
    return row


def _run(row: JsonRow) -> dict[str, str]:
    from profiler.show.columns import plain

    return {
        "run": row["run"],
        "started (UTC)": row["started_at"].replace("T", " ").rstrip("Z"),
        "ended": plain(row["how"] or UNKNOWN),
        "cases": ", ".join(f"{count} {outcome}" for outcome, count in row["outcomes"].items()) or "none",
        "device": plain(row["device"] or UNKNOWN, DEVICE_LENGTH),
        "models": plain(", ".join(row["models"]) or UNKNOWN, MODELS_LENGTH),
        "command": printable(str(command("profile", row["argv"])), COMMAND_LENGTH),
    }
