"""Rows, bytes, hours and money of a pool, stage by stage. Plain arithmetic on `Rates`; touches nothing.

For n rows of a stage, on a cluster of M machines:

    core_s = fixed_seconds + n * core_seconds
    gpu_s  = n * forward_passes * gflop_per_pair / (tflops * 1000 * utilisation)
    read_s = n * bytes_per_pair / (read_gb_per_second * 1e9)             where it reads pixels
    wall_s = fixed_seconds + max(n * core_seconds / (M * cores * efficiency), gpu_s / (M * gpus), read_s / M)
    money  = wall_s / 3600 * M * dollars_per_hour

The cluster is paid for its wall clock, whatever is idle meanwhile. All is linear in n: what grows faster (groups of
duplicates that a third of the pool belongs to, a shuffle that no disk holds) is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from etl.plan.rates import Rates, StageRate
from etl.stage import UserError
from models.scales import SCALES

DATACOMP = ("small", "medium", "large", "xlarge")
"""Scales of DataComp, whose pool has as many pairs as training sees samples (Gadre et al. 2023, table 1)."""
HOUR, TB = 3600.0, 1e12


@dataclass(frozen=True)
class Size:
    """What is planned for."""

    name: str
    pairs: int
    samples: int
    """That one induced model sees."""
    architecture: str
    """Of the induced model."""

    @staticmethod
    def of_scale(name: str) -> Size:
        """Raises UserError for a scale that is not DataComp's."""
        if name not in DATACOMP:
            raise UserError(f"--scale: wanted one of {', '.join(DATACOMP)}; found {name}")
        scale = SCALES[name]
        return Size(name, scale.samples_seen, scale.samples_seen, scale.architecture)

    @staticmethod
    def of_pairs(pairs: int) -> Size:
        """Trained as at the smallest scale that sees as many samples, each pair of the pool once on average."""
        scale = next((SCALES[name] for name in DATACOMP if SCALES[name].samples_seen >= pairs), SCALES["xlarge"])
        return Size(f"{pairs:,} pairs", pairs, pairs, scale.architecture)


@dataclass(frozen=True)
class Cost:
    """Of one stage, or of all."""

    rows: int
    read_tb: float
    core_hours: float
    gpu_hours: float
    """Of GPUs at work."""
    wall_hours: float
    bound_by: str
    """What the wall clock waits for: cores, gpus, reads, or what is fixed."""
    stored_tb: float
    dollars: float
    """Of machines, and of storage for `storage.months`."""


def stage_cost(name: str, size: Size, rates: Rates) -> Cost:
    """By the formula above."""
    stage = rates.stages[name]
    machines = rates.cpu if stage.cluster == "cpu" else rates.gpu_cluster
    rows = _rows(stage, size, rates)
    read_bytes = rows * rates.pool.bytes_per_pair if stage.reads_pixels else 0.0
    gpu_seconds = _gpu_seconds(stage, rows, size, rates) if stage.cluster == "gpu" else 0.0
    waits = {
        "cores": rows * stage.core_seconds / (machines.machines * machines.cores * rates.efficiency),
        "gpus": gpu_seconds / (machines.machines * max(1, machines.gpus)),
        "reads": read_bytes / (machines.machines * machines.read_gb_per_second * 1e9),
    }
    bound_by = max(waits, key=lambda what: waits[what])
    wall = (stage.fixed_seconds + waits[bound_by]) / HOUR
    stored = rows * (stage.stored_bytes + (rates.pool.bytes_per_pair if stage.stores_pixels else 0.0)) / TB
    money = wall * machines.machines * machines.dollars_per_hour
    return Cost(
        rows=rows, read_tb=read_bytes / TB, core_hours=(stage.fixed_seconds + rows * stage.core_seconds) / HOUR,
        gpu_hours=gpu_seconds / HOUR, wall_hours=wall, stored_tb=stored,
        bound_by=bound_by if waits[bound_by] > stage.fixed_seconds else "fixed",
        dollars=money + stored * rates.storage.dollars_per_tb_month * rates.storage.months,
    )  # fmt: skip


def costs(size: Size, rates: Rates) -> dict[str, Cost]:
    """Stage -> its cost, and `total`, whose rows are the pool's pairs. Raises UserError where a number is lacking."""
    if size.architecture not in rates.gflop_per_pair:
        raise UserError(f"plan: wanted gflop_per_pair of {size.architecture}; found {', '.join(rates.gflop_per_pair)}; "
                        f"fix: --rate gflop_per_pair.{size.architecture}=NUMBER")  # fmt: skip
    found = {name: stage_cost(name, size, rates) for name in rates.stages}
    summed = ("read_tb", "core_hours", "gpu_hours", "wall_hours", "stored_tb", "dollars")
    sums = {name: sum(getattr(cost, name) for cost in found.values()) for name in summed}
    return {**found, "total": Cost(rows=size.pairs, bound_by="", **sums)}


def _rows(stage: StageRate, size: Size, rates: Rates) -> int:
    of = {"pool": size.pairs, "kept": round(size.pairs * rates.pool.kept_fraction), "samples": size.samples}
    return of[stage.rows]


def _gpu_seconds(stage: StageRate, rows: int, size: Size, rates: Rates) -> float:
    is_training = stage.rows == "samples"
    architecture = size.architecture if is_training else rates.encoder
    utilisation = rates.gpu.train_utilisation if is_training else rates.gpu.encode_utilisation
    gflop = rows * stage.forward_passes * rates.gflop_per_pair[architecture]
    return gflop / (rates.gpu.tflops * 1000 * utilisation)


def rounded(cost: Cost) -> dict[str, Any]:
    """Three digits: more are not known."""
    return {name: float(f"{value:.3g}") if isinstance(value, float) else value for name, value in asdict(cost).items()}


HEAD = {"rows": "rows", "read_tb": "TB read", "core_hours": "core-hours", "gpu_hours": "GPU-hours",
        "wall_hours": "hours", "bound_by": "waits for", "stored_tb": "TB stored", "dollars": "$"}  # fmt: skip


def table(first: str, found: Mapping[str, Cost], columns: Sequence[str] = tuple(HEAD)) -> str:
    """As Markdown: a row for each cost."""
    lines = [f"| {first} | " + " | ".join(HEAD[name] for name in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, cost in found.items():
        lines.append(f"| {name} | " + " | ".join(_cell(getattr(cost, column)) for column in columns) + " |")
    return "\n".join(lines)


def _cell(value: float | str) -> str:
    """Three digits, without an exponent."""
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    short = float(f"{value:.3g}")
    return f"{short:,.0f}" if abs(short) >= 100 else f"{short:g}"
