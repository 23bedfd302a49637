"""A forecast as tables of 80 columns, and as lines of CSV."""

import csv
import io
from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table

from ptq_diffusion.command.check.bounds import in_units
from ptq_diffusion.command.plan.forecast import Forecast
from ptq_diffusion.command.plan.memory import Memory
from ptq_diffusion.command.plan.numbers import duration, short
from ptq_diffusion.command.plan.rates import Rates

COLUMNS = ("subject", "quantity", "value")
PASSES = ("float_passes", "quantized_passes", "backward_passes", "layer_passes", "decoded")


def tables(forecast: Forecast, rates: Rates | None) -> Iterator[Table]:
    """The network, its bits, its artefacts, and the whole; times where there are rates, else how to get them."""
    yield _facts(_network(forecast))
    yield _bits(forecast)
    yield _artefacts(forecast, rates)
    yield _facts([*_whole(forecast), _time(forecast, rates)])


def csv_of(forecast: Forecast, rates: Rates | None) -> str:
    """A line for every number: its subject, a quantity and a value; bytes, bit operations, counts and seconds."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_numbers(forecast))
    if rates is not None:
        seconds = ((line.title, "seconds", f"{rates.seconds(line.work):.6g}") for line in forecast.lines)
        writer.writerows([*seconds, ("experiment", "seconds", f"{rates.seconds(forecast.total):.6g}")])
    return text.getvalue()


def _network(forecast: Forecast) -> list[tuple[str, str]]:
    architecture, products = forecast.architecture, _products(forecast)
    rows = architecture.rows
    asked = f"{sum(rows):,} in {len(rows):,} steps" + (", guidance asks twice" if sum(rows) > len(rows) else "")
    decoder = [("decoder", f"{short(forecast.decoder_macs)} an image")] if forecast.decoder_macs else []
    return [
        ("model", forecast.model),
        ("parameters", short(architecture.parameters)),
        ("multiply-accumulates", f"{short(forecast.macs)} a pass, {products / forecast.macs:.1%} attention's products"),
        *decoder,
        ("passes for one image", asked),
    ]


def _whole(forecast: Forecast) -> list[tuple[str, str]]:
    total = forecast.total
    passes = total.float_passes + total.quantized_passes + total.backward_passes
    untold = [("beside them", f"{', '.join(forecast.untold)}, of which nothing is told")] if forecast.untold else []
    return [
        *untold,
        ("passes", f"{passes:,} in full micro-batches, {short(passes * forecast.macs)} multiply-accumulates"),
        ("store", f"{in_units(total.kept)} kept, {in_units(forecast.store)} at most while the largest is made"),
        ("memory of a device", f"{in_units(forecast.device_memory)}, networks and activations alone"),
        ("memory on a CPU", f"{in_units(forecast.memory)}, the process and its libraries included"),
    ]


def _time(forecast: Forecast, rates: Rates | None) -> tuple[str, str]:
    if rates is None:
        return "time", "--measure tells it after a few passes of this machine, --speed from its operations a second"
    return "time of passes", f"{duration(rates.seconds(forecast.total))}, {rates.origin}"


def _bits(forecast: Forecast) -> Table:
    table = _table("bitwidth plan", "bit operations a pass", "of an image", "saving", "weights")
    rows = sum(forecast.architecture.rows)
    for name, cost in forecast.costs.items():
        saving, stored = f"{cost.saving:.1f}x", in_units(cost.stored_bits / 8)
        table.add_row(name, short(cost.bops / rows), short(cost.bops), saving, stored)
    return table


def _artefacts(forecast: Forecast, rates: Rates | None) -> Table:
    table = _table("artefact", "float passes", "quantized", "store", "memory", *(["time"] if rates else []))
    for line in forecast.lines:
        work = line.work
        floats = short(work.float_passes) + (f" + {short(work.backward_passes)} back" if work.backward_passes else "")
        sizes = [in_units(number) if number else "" for number in (work.kept, _held(line.memory))]
        times = [] if rates is None else [duration(rates.seconds(work))]
        table.add_row(line.title, floats if work.float_passes else "", _count(work.quantized_passes), *sizes, *times)
    return table


def _numbers(forecast: Forecast) -> Iterator[Sequence[object]]:
    architecture = forecast.architecture
    yield "network", "parameters", architecture.parameters
    yield "network", "macs", forecast.macs
    yield "network", "attention_macs", _products(forecast)
    yield "network", "decoder_macs", forecast.decoder_macs
    yield "network", "passes_of_image", sum(architecture.rows)
    for name, cost in forecast.costs.items():
        yield name, "bops_of_image", cost.bops
        yield name, "weight_bytes", cost.stored_bits // 8
    for line in forecast.lines:
        yield from ((line.title, name, getattr(line.work, name)) for name in (*PASSES, "kept", "scratch"))
        yield line.title, "memory", _held(line.memory)
    yield "experiment", "store", forecast.store
    yield "experiment", "device_memory", forecast.device_memory
    yield "experiment", "memory", forecast.memory


def _products(forecast: Forecast) -> int:
    """Multiply-accumulates of attention's products in one pass, of those that are sites and of all others."""
    sites = sum(site.macs for site in forecast.architecture.sites if not site.weighted)
    return sites + forecast.architecture.attention_macs


def _held(memory: Memory) -> int:
    return memory.device + memory.data


def _count(number: int) -> str:
    return short(number) if number else ""


def _facts(pairs: Sequence[tuple[str, str]]) -> Table:
    """Names and values, a line each."""
    table = Table.grid(padding=(0, 2))
    for pair in pairs:
        table.add_row(*pair)
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table
