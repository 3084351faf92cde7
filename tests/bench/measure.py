"""How benchmarks measure: CPU seconds of a process tree, sides interleaved, rows of ratios, a table and a JSON file.

A side is a function that does some work and returns how much it was (images, pairs, GFLOP). Its rate is that per CPU
second, of this process and all its descendants (the JVM, Python workers; Linux only: /proc). Wall seconds where said.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

MAX_LOAD = 4.0
"""Load average over one minute above which a run is void."""
OUT = Path("build/bench")
REPETITIONS = 5
TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")

Side = Callable[[], float]
Rates = list[float]


class MissingError(Exception):
    """A side that cannot be measured here; its text says why. It becomes the row's note."""


@dataclass(frozen=True)
class Ratio:
    """One row. `ratio` is ours / theirs, rates in `unit`; None where it could not be measured."""

    name: str
    ours: float | None
    theirs: float | None
    unit: str
    ratio: float | None
    goal: str
    """`>= 2.5`, `<= 2.05`, or `-`: context, nothing to reach."""
    spread: float | None
    """Interquartile range of the repetitions' ratios over their median."""
    load: float
    """Load average over one minute when the row was made."""
    note: str = ""
    """Not in the JSON's contract but beside it: why there is no number, or what the numbers mean."""

    @property
    def verdict(self) -> str:
        if self.ratio is None or self.goal == "-":
            return ""
        sign, bound = self.goal.split()
        is_reached = self.ratio >= float(bound) if sign == ">=" else self.ratio <= float(bound)
        return "reached" if is_reached else "MISSED"


class Tree:
    """This process and all that descend from it, those too that ended.

    What ended is lost to /proc, except in its parent's cutime; and not even there if the parent ignores SIGCHLD, as
    Spark's Python daemon does with its workers. So the last look at each process is kept.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[int, str], tuple[int, int, int]] = {}  # (pid, started) -> parent, own ticks, children's

    def look(self) -> list[int]:
        """Brings what is known up to date; the pids that live."""
        stats: dict[int, list[str]] = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # it ended while we looked
                stats[int(path.parent.name)] = path.read_text().rpartition(") ")[2].split()
        alive = [pid for pid, fields in stats.items() if (pid, fields[19]) in self._seen or _descends(pid, stats)]
        for pid in alive:
            parent, own, waited = stats[pid][1], stats[pid][11:13], stats[pid][13:15]
            self._seen[pid, stats[pid][19]] = int(parent), sum(map(int, own)), sum(map(int, waited))
        return alive

    def cpu_seconds(self) -> float:
        alive = set(self.look())
        ended: dict[int, int] = {}  # parent -> ticks that we know of children that ended
        for (pid, _), (parent, own, waited) in self._seen.items():
            ended[parent] = ended.get(parent, 0) + (0 if pid in alive else own + waited)
        # Of what a parent waited for, the part that we did not see ourselves is added.
        unseen = sum(max(0, waited - ended.get(pid, 0)) for (pid, _), (_, _, waited) in self._seen.items())
        return (sum(own for _, own, _ in self._seen.values()) + unseen) * TICK_SECONDS


def _descends(pid: int, stats: Mapping[int, list[str]]) -> bool:
    while pid != os.getpid() and pid in stats:
        pid = int(stats[pid][1])
    return pid == os.getpid()


TREE = Tree()


def cpu_seconds() -> float:
    """CPU seconds so far of this process and all its descendants."""
    return TREE.cpu_seconds()


@contextmanager
def watching(seconds: float = 1.0) -> Iterator[None]:
    """Looks at the tree from time to time, so that of a process that ends at most so much is lost."""
    done = threading.Event()

    def look() -> None:
        while not done.wait(seconds):
            TREE.look()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def tree_bytes_read() -> int:
    """Bytes that this process and its living descendants have read so far, from the page cache too; not the JVM's."""
    total = 0
    for pid in TREE.look():
        with suppress(OSError):
            if "java" not in Path(f"/proc/{pid}/comm").read_text():
                total += int(Path(f"/proc/{pid}/io").read_text().split()[1])  # rchar
    return total


def peak(look: Side, side: Side, seconds: float) -> float:
    """The largest of what `look` gives, every so many seconds, while a side runs."""
    found, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(seconds):
            found[0] = max(found[0], look())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    side()
    done.set()
    thread.join()
    return found[0]


def resident(pid: int | str) -> float:
    """MB of memory that a process holds; 0 where it ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6
    except OSError:
        return 0.0


def peak_memory(side: Side) -> float:
    """MB: the largest sum of resident memory of this process tree while a side runs."""
    return peak(lambda: sum(map(resident, TREE.look())), side, 0.2)


def load() -> float:
    return os.getloadavg()[0]


def settle(longest_seconds: float = 20.0) -> None:
    """Waits until this process tree rests: what the JVM still compiles and collects must not count in the next turn."""
    until = time.monotonic() + longest_seconds
    while time.monotonic() < until:
        before = cpu_seconds()
        time.sleep(0.3)
        if cpu_seconds() - before <= 0.03:
            return


def say(line: str) -> None:
    """A line of progress, on stderr."""
    print(f"bench: {line}", file=sys.stderr, flush=True)


def interleaved(
    sides: Mapping[str, Side],
    *,
    repetitions: int = REPETITIONS,
    clock: Callable[[], float] = cpu_seconds,
    ready: Mapping[str, Side] = {},
    warm_up: bool = True,
) -> tuple[dict[str, Rates], dict[str, str]]:
    """Rates of every side, and why a side is missing, by its name.

    Measured A B C, C B A, A B C, so that what drifts falls on all alike, after one warm-up each.

    `warm_up`: not of a side that takes minutes, whose code a smaller one has just run.

    `ready`: what is run before each turn of a side and not counted. Spark lets Python workers end after a minute
    without work, less than the turns of the others take; new ones would import and load the model within the turn.
    """
    rates: dict[str, Rates] = {name: [] for name in sides}
    missing: dict[str, str] = {}
    for repetition in range(0 if warm_up else 1, repetitions + 1):
        for name, side in list(sides.items())[:: 1 if repetition % 2 else -1]:
            if name in missing:
                continue
            ready.get(name, float)()
            if clock is cpu_seconds:
                settle()
            started, wall = clock(), time.perf_counter()
            try:
                with watching():
                    amount = side()
            except (MissingError, ImportError) as error:
                missing[name] = str(error)
                continue
            rate = amount / max(clock() - started, TICK_SECONDS)
            if repetition:  # the first warms caches, workers and the JIT up
                rates[name].append(rate)
            say(
                f"{name} {repetition or 'warm-up'}: {rate:.4g}/s, {time.perf_counter() - wall:.1f} s, load {load():.1f}"
            )
    return {name: found for name, found in rates.items() if name not in missing}, missing


def compare(name: str, ours: Rates | None, theirs: Rates | None, unit: str, goal: str = "-", note: str = "") -> Ratio:
    """The row of two sides that were measured in turns. None: that side is missing, and `note` says why."""
    middle = [statistics.median(rates) if rates else None for rates in (ours, theirs)]
    if not ours or not theirs:
        return Ratio(name, *middle, unit, None, goal, None, load(), note)
    return Ratio(name, *middle, unit, middle[0] / middle[1], goal, spread(ours, theirs), load(), note)


def spread(ours: Rates, theirs: Rates) -> float:
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    if len(ratios) < 2:
        return 0.0
    first, middle, third = statistics.quantiles(ratios, n=4, method="inclusive")
    return (third - first) / middle


def against(
    rates: Mapping[str, Rates], missing: Mapping[str, str], ours: str, theirs: str, row: tuple[str, str, str],
    note: str = "",
) -> Ratio:  # fmt: skip
    """`compare` of two sides of one `interleaved`. `row`: name, unit, goal."""
    why = [f"{side} not measured: {missing[side]}" for side in (ours, theirs) if side in missing]
    name, unit, goal = row
    return compare(name, rates.get(ours), rates.get(theirs), unit, goal, "; ".join([*why, *([note] if note else [])]))


def machine() -> str:
    """The processor, its cores and what it can do in bf16."""
    info = Path("/proc/cpuinfo").read_text()
    model = (re.findall(r"model name\s*: (.*)", info) or [platform.machine()])[0]
    bf16 = "with" if has_bf16() else "without"
    return f"{os.cpu_count()} x {model}, {bf16} bf16 instructions, Python {platform.python_version()}"


def has_bf16() -> bool:
    """AVX-512 bf16 or AMX: without them bf16 is emulated, and slower than float32."""
    return bool(re.search(r"\b(avx512_bf16|amx_bf16)\b", Path("/proc/cpuinfo").read_text()))


def report(part: str, rows: Iterable[Ratio], *, out: Path = OUT) -> Path:
    """Prints the table and writes `out`/PART.json, a list of rows. Says so if the machine was too busy."""
    rows = list(rows)
    print(f"\n{part}: {machine()}")
    print(f"{'name':<30}{'ours':>10}{'theirs':>10}  {'unit':<22}{'ratio':>7}  {'goal':<8}{'spread':>7}{'load':>6}")
    for row in rows:
        ours, theirs, ratio = (_number(value) for value in (row.ours, row.theirs, row.ratio))
        line = f"{row.name:<30}{ours:>10}{theirs:>10}  {row.unit:<22}{ratio:>7}  {row.goal:<8}"
        print(f"{line}{'' if row.spread is None else f'{row.spread:.0%}':>7}{row.load:>6.1f}  {row.verdict}".rstrip())
        if row.note:
            print(f"    {row.note}")
    if any(row.load > MAX_LOAD for row in rows):
        print(f"VOID: the load was above {MAX_LOAD:g}; run it again on a quieter machine")
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{part}.json"
    path.write_text(json.dumps([_json(row) for row in rows], indent=1) + "\n")
    return path


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _json(row: Ratio) -> dict[str, object]:
    """The eight fields of the contract, rounded; `note` only where there is one."""
    fields = {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in asdict(row).items()}
    return fields if row.note else {key: value for key, value in fields.items() if key != "note"}
