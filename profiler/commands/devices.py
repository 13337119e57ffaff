"""``profile devices``: list the devices of this machine, or the catalog of data sheets."""

from __future__ import annotations

import click

from profiler import devices as found
from profiler.devices import target
from profiler.show import lists
from profiler.show import output as show_output


@click.command("devices")
@click.option("--catalog", "from_catalog", is_flag=True, help="List the catalog of data sheets instead.")
@show_output.output()
def devices(from_catalog: bool, output: str) -> None:
    """List the devices of this machine that can run models.

    The first one is the default of profile sweep.

    In the catalog, GB/s is the memory bandwidth. The column "source" says where the figures come from: bw (memory
    bandwidth), tensor (TFLOP/s and TOP/s), tdp (watts), l2 (cache size) and pcie (bandwidth to the host). They are
    verified (checked against the source that is named), from a third-party DB (TechPowerUp's, not the maker's),
    derived (computed from the number of units and clock rates) or unverified (from one source only).
    """
    if from_catalog:
        click.echo(lists.catalog(target.data_sheets(), output), nl=False)
        return
    local, absent = found.listed()
    click.echo(lists.devices(local, output), nl=False)
    for device in local:
        for reason in device.limits:
            click.echo(f"{device.name}: {reason}", err=True)
    for kind, reason in absent.items():
        click.echo(f"no {kind} device: {reason}", err=True)
