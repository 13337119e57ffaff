"""``profile devices``: list the devices of this machine, or the catalog of data sheets."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from profiler import devices as found
from profiler.devices import target
from profiler.devices.base import DeviceInfo
from profiler.show import output as show_output
from profiler.units import UNKNOWN, bytes_text, significant

DROPPED, CATALOG_DROPPED = ("driver",), ("int8 TOP/s", "class")  # by a terminal that is too narrow
DATA_SHEET_DIGITS = 4


@click.command("devices")
@click.option("--catalog", "from_catalog", is_flag=True, help="List the catalog of data sheets instead.")
@show_output.output()
def devices(from_catalog: bool, output: str) -> None:
    """List the devices of this machine that can run models.

    The first one is the default of profile sweep.

    In the catalog, GB/s is the memory bandwidth, and the column "source" says where each figure comes from. verified:
    checked against the source named after it; third-party DB: TechPowerUp's database, not the maker; derived:
    computed from units and clock rates; unverified: from one source only. It calls the figures bw (memory
    bandwidth), tensor (TFLOP/s and TOP/s), tdp (watts), l2 (cache size) and pcie (bandwidth to the host).
    """
    if from_catalog:
        rows = [_catalog_row(device) for device in target.data_sheets()]
        click.echo(show_output.render(rows, _catalog_shown, output, CATALOG_DROPPED, prose="source"), nl=False)
        return
    local, absent = found.listed()
    click.echo(
        show_output.render([_row(device) for device in local], _shown, output, DROPPED, prose="features"), nl=False
    )
    for device in local:
        for reason in device.limits:
            click.echo(f"{device.name}: {reason}", err=True)
    for kind, reason in absent.items():
        click.echo(f"no {kind} device: {reason}", err=True)


def _row(device: DeviceInfo) -> dict[str, Any]:
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


def _shown(row: show_output.JsonRow) -> dict[str, str]:
    return {
        "device": row["device"],
        "title": row["title"],
        "memory": bytes_text(row["memory_bytes"]),
        "free": bytes_text(row["free_bytes"]),
        "default dtype": row["default_dtype"],
        "cores": _cores(row),
        "features": " ".join(row["features"]) or UNKNOWN,
        "driver": row["driver"] or UNKNOWN,
    }


def _cores(row: show_output.JsonRow) -> str:
    """``2``, or ``1 of 2`` where this process may not use them all, or not all of the time."""
    cores, installed = row["cores"], row["cores_installed"]
    if cores is None:
        return UNKNOWN
    return f"{cores:g} of {installed}" if installed is not None and cores < installed else f"{cores:g}"


def _catalog_row(device: target.CatalogDevice) -> dict[str, Any]:
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


def _catalog_shown(row: show_output.JsonRow) -> dict[str, str]:
    flops = row["flops"]
    return {
        "device": row["device"],
        "class": row["class"],
        "memory": bytes_text(row["memory_bytes"]),
        "GB/s": _stated(row["bandwidth_bytes_s"] / target.GIGA),
        "bf16 TFLOP/s": _tera(flops.get("bf16")),
        "int8 TOP/s": _tera(flops.get("int8")),
        "watts": _stated(row["tdp_w"]),
        "source": row["standing"],
    }


def _tera(value: float | None) -> str:
    return _stated(None if value is None else value / target.TERA)


def _stated(value: float | None) -> str:
    """With the digits of a data sheet, and no more: 1,008 and 25.5."""
    text = UNKNOWN if value is None else significant(value, DATA_SHEET_DIGITS)
    return text.rstrip("0").rstrip(".") if "." in text else text
