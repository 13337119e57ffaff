"""``profile calibrate``: measure the ceilings of this device in a minute, for better predictions."""

from __future__ import annotations

from typing import Any

import click

from profiler import devices, quants
from profiler.case import PHASES
from profiler.commands import options
from profiler.cost.engines.transformers import COUNTS
from profiler.devices import calibration
from profiler.devices.base import kind_of
from profiler.devices.calibration import BETWEEN_NEEDS, DELTA, DELTA_TOKENS, Ceilings, LayerKernel
from profiler.errors import ProfileError
from profiler.models.layers import IDEAL, Weight
from profiler.run import ceilings
from profiler.show import output as show_output
from profiler.show import progress
from profiler.units import UNKNOWN, bytes_text, seconds_text, significant

USUAL_S = 50.0
SHOWN_TOKENS = (1, 16, 256)
SHOWN_LAYER = (2048, 2048)  # output and input features


@click.command("calibrate")
@options.device()
@click.option("--show", is_flag=True, help="Show what was measured before, and measure nothing.")
@click.option("--fresh", is_flag=True, help="Discard earlier calibrations of this device.")
@show_output.output()
def calibrate(device: str | None, show: bool, fresh: bool, output: str) -> int:
    """Measure what this device can really reach: the ceilings behind predictions and efficiency figures.

    This takes about a minute. It times reading and copying memory, matrix products by data type and size, attention,
    and the overhead of an operator call. The results are stored for this device, driver, core count, CPU quota,
    PyTorch and bitsandbytes version; calibrate again when one of them changes. They are in the folder ceilings next
    to the default store, and apply to every store, whatever --store says.

    Leave the machine idle meanwhile. A figure is measured again if other processes took CPU time from it; if they do
    not stop, nothing is stored. The five latest calibrations are combined, taking the best of each ceiling and the
    median of each rate. Under a CPU quota, the figures are for the time in which the process runs; predictions
    account for the rest.

    Exit codes: 0 success, 2 usage error, 3 the machine was too busy.
    """
    found = devices.find(device)
    known = calibration.load(found)
    for limit in found.limits:
        click.echo(f"{found.name}: {limit}", err=True)
    if kind_of(found.kind).is_host and found.duty_cycle < 1:
        share = f"{found.duty_cycle:.0%}"
        click.echo(
            f"figures are for the time in which the process runs; predictions assume {share} of the time", err=True
        )
    if show:
        if known is None:
            raise ProfileError(
                f"there is no calibration of {found.name} in its current state (driver, cores, quota, libraries)",
                "Run profile calibrate, which takes about a minute.",
            )
    else:
        calibration.check_folder()  # measuring takes a minute
        usual_s = known.seconds if known is not None else USUAL_S
        with progress.Watched(f"calibrating {found.name}", usual_s) as watched:
            measured = ceilings.measure(found, watched.tick)
        path = calibration.save(measured, fresh)
        known = calibration.load(found)
        assert known is not None  # saved just now
        several = f", with {known.runs - 1} earlier" if known.runs > 1 else ""
        click.echo(f"stored in {path}{several}", err=True)
    click.echo(show_output.render(rows(known, found.repacks), _cells, output, prose="how"), nl=False)
    return 0


def rows(found: Ceilings, repacks: bool) -> list[dict[str, Any]]:
    """One row per figure: bytes per second, FLOP per second, seconds, bytes, or a share."""
    figures: list[tuple[str, float | None, str]] = [
        ("read", found.read_bytes_s, "bytes/s"),
        ("copy", found.copy_bytes_s, "bytes/s"),
        *((f"call {dtype}", COUNTS.call_s(found, dtype), "s") for dtype in found.step_s),
        ("a call's work on the device", COUNTS.device_call_s(found), "s"),
    ]
    figures += [(f"products {dtype}", value, "FLOP/s") for dtype, value in found.flops.items()]
    figures += [
        (f"element-wise operators {dtype}", 1 / COUNTS.activation_s(found, dtype), "bytes/s")
        for dtype in found.elementwise_s
    ]
    figures += [
        (f"depthwise convolution {dtype}, a channel", cost["channel_s"], "s")
        for dtype, cost in found.convolutions.items()
    ]
    delta_flops = DELTA.prefill_flops(DELTA_TOKENS, DELTA_TOKENS, IDEAL)
    figures.append(("gated delta rule fp32, a prefill", delta_flops / found.delta_s, "FLOP/s"))
    for dtype, cost in found.attention.items():
        figures.append((f"attention {dtype}, a step's cache", 1 / cost["step_byte_s"], "bytes/s"))
        if "own_byte_s" in cost:
            figures.append((f"attention {dtype}, a step's cache, by ours", 1 / cost["own_byte_s"], "bytes/s"))
        figures.append((f"attention {dtype}, a prefill", 1 / cost["pass_flop_s"], "FLOP/s"))
    size = "×".join(map(str, SHOWN_LAYER))
    figures += [
        (f"layer {size} {kernel}, {n} {'tokens' if n > 1 else 'token'}", _layer_s(found, kernel, n, repacks), "s")
        for kernel, layer in found.layers.items()
        for n in SHOWN_TOKENS
        if n in layer.costs and quants.find(kernel.quant) is not None  # its file may have been removed since
    ]
    figures += [
        (f"starting a layer {kernel}", layer.start_s, "s") for kernel, layer in found.layers.items() if layer.start_s
    ]
    figures.append(("a worker without a model", found.process_bytes or None, "bytes"))
    apart = {f"processes differ, {phase}": (found.between or {}).get(phase) for phase in PHASES}
    figures += [(name, value, "share") for name, value in apart.items()]
    told = f"{found.runs} calibrations" if found.between else f"needs {BETWEEN_NEEDS} calibrations"
    how = {**found.how, **dict.fromkeys(apart, told)}
    return [
        {"figure": name, "value": value, "unit": unit, "how": how.get(name), "measured_at": found.measured_at}
        for name, value, unit in figures
    ]


def _layer_s(found: Ceilings, kernel: LayerKernel, tokens: int, repacks: bool) -> float:
    """Seconds of one linear layer, as predictions use it."""
    quant = quants.find(kernel.quant)
    assert quant is not None
    nbytes = quant.weight_bytes(Weight("linear", SHOWN_LAYER), quant.dtype or "fp32", repacks)
    return found.layers[kernel].seconds(tokens, nbytes, SHOWN_LAYER[0], 1)


def _cells(row: show_output.JsonRow) -> dict[str, str]:
    value, unit = row["value"], row["unit"]
    if value is None:
        shown = UNKNOWN
    elif unit == "s":
        shown = f"{significant(value * 1e6)} µs" if value < 1e-3 else seconds_text(value)
    elif unit == "bytes":
        shown = bytes_text(value)
    elif unit == "share":
        shown = f"{value:.1%}"
    else:
        shown = f"{bytes_text(value)}/s" if unit == "bytes/s" else f"{significant(value / 1e9)} GFLOP/s"
    return {"figure": row["figure"], "value": shown, "how": row["how"] or ""}
