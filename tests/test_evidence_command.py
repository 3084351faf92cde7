"""`dfn evidence` on real pictures, from packages to the report: Spark once, a kill, and nothing twice."""

import json
import signal
import subprocess
import sys
import time

import pytest

CONF = """
name: little
datasets:
  pool: {kind: pool, corpus: {sources: [iconify_small, documentation], limit: 150}}
  noise: {kind: filter, corpus: {sources: [noise_boilerplate, noise_foreign], limit: 12}}
  emoji: {kind: filter, corpus: {sources: [emoji_google], limit: 60}}
  tuxpaint: {kind: filter, corpus: {sources: [tuxpaint], limit: 40}}
  stamps: {kind: dev, corpus: {sources: [tuxpaint_heldout], limit: 30}}
  art4apps: {kind: eval, corpus: {sources: [art4apps], limit: 60}}
encoder: {precision: fp32}
evidence:
  noise: noise
  clean: [emoji, tuxpaint]
  dev: stamps.r5
  parts: [art4apps.r5, art4apps.mean_per_class]
  pools:
    mixed: {permuted: 0.1, boilerplate: 0.1, foreign: 0.1}
    natural: {}
  seeds: [0, 1]
  tuning_seeds: [9]
  filter: {steps: 40, dropout: 0.1, batch_size: 32}
  induced: {steps: 40, dropout: 0.1, batch_size: 32}
  choices: [0.15, 0.5]
  min_seeds: 2
  min_items: 50
  experiments: [table1]
"""


@pytest.mark.slow
@pytest.mark.timeout(1400)
def test_the_command_goes_on_after_a_kill_and_its_selection_is_the_stages_own(tmp_path):
    (tmp_path / "little.yaml").write_text(CONF)
    output, results = tmp_path / "out", tmp_path / "out" / "results"
    command = [sys.executable, "-m", "etl", "evidence", "--conf", str(tmp_path / "little.yaml"), "--set",
               f"output={output}", "--json"]  # fmt: skip

    def run():
        return subprocess.run(command, capture_output=True, text=True, check=False)

    first = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while len(list(results.glob("*.json"))) < 8 and first.poll() is None:
        time.sleep(0.2)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    time.sleep(3)  # its processes see that it is gone within one
    before = {path.name: path.stat().st_mtime_ns for path in results.glob("*.json")}
    time.sleep(2)
    assert {path.name for path in results.glob("*.json")} == before.keys() and len(before) >= 8
    second = run()
    assert second.returncode == 0, second.stderr
    assert "base          up to date" in second.stderr and "starting Spark" not in second.stderr
    assert {name: (results / name).stat().st_mtime_ns for name in before} == before
    told = json.loads(second.stdout)
    assert set(told["claims"]["table1"]) == {"mixed", "natural"} and told["trained"] > 0
    third = run()
    assert json.loads(third.stdout)["trained"] == 0
    summary = json.loads((output / "summary.json").read_text())
    check = summary["spark_check"]
    assert check["same_uids"] and (check["pool"], check["num_pairs"]) == ("natural", check["num_shared"])
    assert check["num_pairs"] == int(0.15 * summary["sizes"]["pairs"]["pool"]) > 30
    assert "natural" in (output / "report.html").read_text()
