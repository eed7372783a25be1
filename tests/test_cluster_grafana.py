"""The Grafana dashboard draws what Ray exports; a real Prometheus scrapes it from a real study."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import ROOT, free_port
from ray.dashboard.modules.metrics.dashboards import default_dashboard_panels

DASHBOARD = json.loads((ROOT / "cluster" / "grafana.json").read_text())
GAUGES = ROOT / "search" / "execution" / "gauges.py"
RAY = [sys.executable, "-m", "ray.scripts.scripts"]


def ours() -> set[str]:
    """The names of the study's gauges, from their one place."""
    tree = ast.parse(GAUGES.read_text())
    names = (n.value for n in ast.walk(tree) if isinstance(n, ast.Constant))
    return {n for n in names if isinstance(n, str) and re.fullmatch(r"study_\w+", n)}


def expressions() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def test_the_dashboard_draws_every_gauge_and_nothing_that_is_not_exported() -> None:
    drawn = set(re.findall(r"ray_(\w+)", " ".join(expressions())))
    rays = Path(default_dashboard_panels.__file__).read_text()
    assert ours() <= drawn
    assert all(f"ray_{name}" in rays for name in drawn - ours())
    assert (
        DASHBOARD["templating"]["list"][1]["definition"] == "label_values(ray_study_trials, study)"
    )


def test_its_panels_do_not_overlap_and_have_titles() -> None:
    places = [tuple(panel["gridPos"].values()) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)
    assert all(panel["title"] for panel in DASHBOARD["panels"])


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs Prometheus")
def test_prometheus_scrapes_a_running_study(tmp_path: Path, drawn_patches: None) -> None:
    ports = {name: free_port() for name in ("gcs", "dashboard", "metrics", "prometheus")}
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    temp = Path(f"/tmp/ray-metrics-{os.getpid()}")
    config = yaml.safe_load((ROOT / "cluster" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "2s"}
    found_in = config["scrape_configs"][0]["file_sd_configs"][0]
    found_in["files"] = [str(temp / "prom_metrics_service_discovery.json")]
    found_in["refresh_interval"] = "2s"
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    commands = {
        "head": [
            *(*RAY, "start", "--head", "--block", "--num-cpus=2", f"--temp-dir={temp}"),
            *(f"--port={ports['gcs']}", f"--dashboard-port={ports['dashboard']}"),
            *(f"--metrics-export-port={ports['metrics']}", "--dashboard-agent-listen-port=0"),
        ],
        "prometheus": [
            *("prometheus", f"--config.file={tmp_path / 'prometheus.yml'}"),
            *(f"--web.listen-address=127.0.0.1:{ports['prometheus']}",),
            *(f"--storage.tsdb.path={tmp_path / 'tsdb'}",),
        ],
        "study": [
            *(sys.executable, "-m", "search.run", "tests/spaces/faulty.py", "--set", "seeds=2"),
            *("--out", str(tmp_path), "--address", f"127.0.0.1:{ports['gcs']}"),
        ],
    }
    processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(name: str) -> None:
        log = open(tmp_path / f"{name}.log", "wb")  # noqa: SIM115
        processes[name] = subprocess.Popen(
            commands[name], env=environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
        )
        log.close()

    def asked(query: str) -> list[dict[str, Any]]:
        words = urllib.parse.urlencode({"query": query})
        url = f"http://127.0.0.1:{ports['prometheus']}/api/v1/query?{words}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        except OSError:
            return []
        return found

    try:
        start("head")
        wait_for(lambda: (temp / "prom_metrics_service_discovery.json").exists())
        start("prometheus")
        start("study")
        wait_for(lambda: bool(asked("ray_study_best")))
        trials = asked('sum(ray_study_trials{study="faulty"}) by (status)')
        counts = {row["metric"]["status"]: float(row["value"][1]) for row in trials}
        assert sum(counts.values()) == 4
        assert counts["completed"] >= 1
        for name in ours():
            assert asked(f"ray_{name}"), name
        for expression in expressions()[:6]:
            assert asked(expression.replace("$study", ".+")), expression
        assert processes["study"].wait(300) == 0
    finally:
        for process in reversed(processes.values()):
            process.terminate()
            process.wait(60)
        shutil.rmtree(temp, ignore_errors=True)


def wait_for(condition: Callable[[], bool], timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)
