"""The compose file is what Compose takes, and its parts find one another."""

import gzip
import hashlib
import json
import shlex
import shutil
import subprocess
from typing import Any

import click
import jsonschema
import pytest
import yaml
from commands import ROOT
from ray.scripts.scripts import start

COMPOSE = yaml.safe_load((ROOT / "cluster" / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
# schema/compose-spec.json of github.com/compose-spec/compose-spec at commit
# a08f8d51631b7127ddac3d2c65537db429d0f1d0 of 2025-10-28, Apache-2.0.
SCHEMA = gzip.decompress((ROOT / "tests/schemas/compose-spec.json.gz").read_bytes())
SCHEMA_SHA256 = "1f91e091f16b2dd50ab8860e02bb391d22df553d91c145eacedb1b6eff9c3f0e"


def test_the_file_is_what_compose_takes() -> None:
    assert hashlib.sha256(SCHEMA).hexdigest() == SCHEMA_SHA256
    validator = jsonschema.Draft7Validator(json.loads(SCHEMA))
    assert validator.is_valid(COMPOSE)
    for name in ("head", "worker", "prometheus", "grafana"):
        misspelt = {**COMPOSE, "services": {name: {**SERVICES[name], "comand": "x"}}}
        assert not validator.is_valid(misspelt)


def options(service: str) -> dict[str, Any]:
    """What Ray's own command line makes of the service's command."""
    words = shlex.split(SERVICES[service]["command"])
    assert words[:2] == ["ray", "start"]
    command: click.Command = start
    return dict(command.make_context("start", words[2:]).params)


def test_head_and_workers_find_each_other() -> None:
    head, worker = options("head"), options("worker")
    assert head["head"]
    assert head["num_cpus"] == 0  # no trial there
    assert worker["address"] == f"head:{head['port']}"
    assert head["block"]
    assert worker["block"]
    assert COMPOSE["secrets"]["auth_token"]["file"] == "~/.ray/auth_token"
    for service in ("head", "worker"):
        assert SERVICES[service]["environment"]["RAY_AUTH_MODE"] == "token"
        assert SERVICES[service]["environment"]["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/auth_token"
        assert SERVICES[service]["secrets"] == ["auth_token"]


def test_only_this_machine_reaches_the_dashboards() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 2
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_prometheus_and_grafana_see_what_the_head_writes() -> None:
    volumes = {name: service["volumes"] for name, service in SERVICES.items()}
    assert "ray:/tmp/ray" in volumes["head"]
    assert "ray:/tmp/ray:ro" in volumes["prometheus"]
    assert "ray:/tmp/ray:ro" in volumes["grafana"]
    named = {volume.split(":")[0] for each in volumes.values() for volume in each}
    assert set(COMPOSE["volumes"]) == {name for name in named if not name.startswith(".")}
    assert {"./prometheus.yml", "./grafana.json"} < named
    assert all((ROOT / "cluster" / name).exists() for name in named if name.startswith("./"))


def test_grafana_has_the_dashboards_of_ray_and_of_studies() -> None:
    grafana = SERVICES["grafana"]
    configs = {name: yaml.safe_load(each["content"]) for name, each in COMPOSE["configs"].items()}
    assert {each["source"] for each in grafana["configs"]} == set(configs)
    folder = grafana["environment"]["GF_PATHS_PROVISIONING"]
    assert all(each["target"].startswith(folder) for each in grafana["configs"])
    (source,) = configs["datasource"]["datasources"]
    assert source["url"] == SERVICES["head"]["environment"]["RAY_PROMETHEUS_HOST"]
    paths = [provider["options"]["path"] for provider in configs["dashboards"]["providers"]]
    mounted = {volume.split(":")[1] for volume in grafana["volumes"]}
    assert all(
        any(target.startswith(path) or path.startswith(target) for target in mounted)
        for path in paths
    )


def test_every_service_is_pinned_and_without_privileges() -> None:
    for service in SERVICES.values():
        tag = service["image"].split(":")[1]
        assert tag[0] in "0123456789v"
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_prometheus_takes_its_file() -> None:
    path = ROOT / "cluster" / "prometheus.yml"
    (job,) = yaml.safe_load(path.read_text())["scrape_configs"]
    assert job["file_sd_configs"] == [{"files": ["/tmp/ray/prom_metrics_service_discovery.json"]}]
    if shutil.which("promtool") is None:
        pytest.skip("no promtool here")
    checked = subprocess.run(
        ["promtool", "check", "config", str(path)], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
