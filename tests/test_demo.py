"""The demo, as `make demo` runs it: it ends, run again it recomputes nothing, and its card opens in a browser."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_card import read_in_a_browser

ROOT = Path(__file__).resolve().parent.parent
SHOT = ROOT / "build" / "demo-card.png"
AT = re.compile(r"^ *[\d.]+ s  (.*)$", re.M)
"""A line of the console: seconds since the start, and what was said."""


def demo(output: Path, log: Path) -> tuple[dict, list[str]]:
    """(what it printed, lines that it said meanwhile)."""
    command = [sys.executable, "-m", "etl", "loop", "--conf", "demo", "--set", f"output={output}", "--json"]
    with log.open("w") as errors:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True, check=False)
    said = log.read_text()
    assert done.returncode == 0, said[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), AT.findall(said)


@pytest.mark.demo
@pytest.mark.timeout(5400)
def test_the_demo_ends_recomputes_nothing_and_leaves_a_card_that_a_browser_opens(tmp_path):
    output = tmp_path / "demo"
    first, did = demo(output, tmp_path / "first.log")
    summary = json.loads((output / "summary.json").read_text())
    assert summary["verdict"] == first["verdict"]
    again, said = demo(output, tmp_path / "again.log")
    assert [line for line in said if "up to date" not in line and not line.startswith(("starting Spark", "gate"))] == []
    assert " promoted against arm whole_pool" in first["verdict"]
    assert again["verdict"] == first["verdict"].replace("promoted", "is the champion: promoted", 1)
    assert len(said) < len(did)
    (page,) = (output / "cards").glob("*.html")
    SHOT.parent.mkdir(exist_ok=True)
    told = read_in_a_browser(page, tmp_path / "profile", SHOT)
    assert "17,331" in told
    sys.stderr.write(f"demo: {first['seconds']} s, again {again['seconds']} s, {first['verdict']}; {SHOT}\n")
