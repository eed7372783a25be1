"""The cluster files are what Ray and KubeRay take, and name the Ray that the project uses."""

import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import ray.autoscaler
import yaml
from commands import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from ray.autoscaler._private.util import prepare_config
from ray.scripts.scripts import start

IMAGE = re.compile(r"\b(?:rayproject/ray|batch-lr-search):([0-9.]+)-py3(\d+)-gpu\b")
KeyPath = tuple[str | int, ...]


def load_yaml(name: str) -> Any:
    # Through JSON, because YAML's aliases are one object: a change to one would change them all.
    return json.loads(json.dumps(yaml.safe_load((ROOT / "cluster" / name).read_text())))


def load_schema(path: Path) -> Any:
    return json.loads(path.read_text())


AWS, GCP, OWN_HOSTS = map(load_yaml, ("aws.yaml", "gcp.yaml", "own_hosts.yaml"))
RAY_UP_SCHEMA = load_schema(Path(ray.autoscaler.__file__).parent / "ray-schema.json")
RAYJOB, RAYCLUSTER = map(load_yaml, ("rayjob.yaml", "raycluster.yaml"))
RAYJOB_SCHEMA = load_schema(ROOT / "tests/schemas/rayjob.json")
RAYCLUSTER_SCHEMA = {  # whose parts are those of a RayJob
    **RAYJOB_SCHEMA,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        **RAYJOB_SCHEMA["properties"],
        "kind": {"const": "RayCluster"},
        "spec": {"$ref": "#/definitions/rayClusterSpec"},
    },
}
CLOUDS = pytest.mark.parametrize("cloud", [AWS, GCP], ids=["aws", "gcp"])


def changed(document: Any, path: KeyPath, *, key: str | None = None, value: Any = None) -> Any:
    """A copy in which the entry at `path` has another value, or is there again under `key`.

    There again, not renamed: a schema that is not closed might refuse only what is then missing.
    """
    document = json.loads(json.dumps(document))
    parent = document
    for step in path[:-1]:
        parent = parent[step]
    if key is None:
        parent[path[-1]] = value
    else:
        parent[key] = parent[path[-1]]
    return document


def key_paths(node: Any, *, names_in: set[str], path: KeyPath = ()) -> Iterator[KeyPath]:
    """The path of every key but those that the user names: the keys of the maps in `names_in`."""
    if isinstance(node, list):
        for index, child in enumerate(node):
            yield from key_paths(child, names_in=names_in, path=(*path, index))
    elif isinstance(node, dict):
        for key, child in node.items():
            if not path or path[-1] not in names_in:
                yield (*path, key)
            if key != "node_config":  # goes to EC2 as it is; Ray's schema does not look inside
                yield from key_paths(child, names_in=names_in, path=(*path, key))


def path_name(path: KeyPath) -> str:
    return ".".join(map(str, path))


def cluster_specs() -> list[Any]:
    """The clusters of the Kubernetes files."""
    return [RAYJOB["spec"]["rayClusterSpec"], RAYCLUSTER["spec"]]


def pod_specs() -> list[Any]:
    templates = [RAYJOB["spec"]["submitterPodTemplate"]]
    for cluster in cluster_specs():
        templates.append(cluster["headGroupSpec"]["template"])
        templates += [group["template"] for group in cluster["workerGroupSpecs"]]
    return [template["spec"] for template in templates]


@pytest.mark.parametrize("document", [AWS, GCP, OWN_HOSTS], ids=["aws", "gcp", "own hosts"])
def test_a_file_is_what_ray_up_takes(document: Any) -> None:
    jsonschema.validate(document, RAY_UP_SCHEMA)


def test_kubernetes_files_are_what_kuberay_takes() -> None:
    for document, schema in ((RAYJOB, RAYJOB_SCHEMA), (RAYCLUSTER, RAYCLUSTER_SCHEMA)):
        jsonschema.Draft7Validator.check_schema(schema)
        jsonschema.validate(document, schema)


def accepted_misspelt(document: Any, schema: Any, *, names_in: set[str]) -> list[str]:
    """Where a misspelt key is accepted."""
    validator = jsonschema.validators.validator_for(schema)(schema)
    return [
        path_name(path)
        for path in key_paths(document, names_in=names_in)
        if validator.is_valid(changed(document, path, key=f"{path[-1]}x"))
    ]


@pytest.mark.parametrize(
    ("document", "num_keys"),
    [(AWS, 20), (GCP, 20), (OWN_HOSTS, 8)],
    ids=["aws", "gcp", "own hosts"],
)
def test_any_key_misspelt_in_a_file_of_ray_up_is_refused(document: Any, num_keys: int) -> None:
    # Ray's schema lets a provider have keys of its own.
    names_in = {"available_node_types", "file_mounts", "provider", "resources"}
    assert len(list(key_paths(document, names_in=names_in))) > num_keys
    assert accepted_misspelt(document, RAY_UP_SCHEMA, names_in=names_in) == []


@pytest.mark.parametrize(
    ("document", "schema", "num_keys"),
    [(RAYJOB, RAYJOB_SCHEMA, 100), (RAYCLUSTER, RAYCLUSTER_SCHEMA, 80)],
    ids=["rayjob", "raycluster"],
)
def test_any_key_misspelt_in_a_kubernetes_file_is_refused(
    document: Any, schema: Any, num_keys: int
) -> None:
    names_in = {"limits", "rayStartParams", "requests"}
    assert len(list(key_paths(document, names_in=names_in))) > num_keys
    assert accepted_misspelt(document, schema, names_in=names_in) == []


def test_the_word_replica_is_refused() -> None:
    path = ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "replicas")
    with pytest.raises(jsonschema.ValidationError, match="'replica' was unexpected"):
        jsonschema.validate(changed(RAYJOB, path, key="replica"), RAYJOB_SCHEMA)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("apiVersion",), "ray.io/v2"),
        (("metadata", "name"), "pcam_grid"),
        (("spec", "backoffLimit"), "1"),
        (("spec", "submissionMode"), "K8sJob"),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "tokens"),
        # Kubernetes takes only strings here: an unquoted number is a common slip.
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "minReplicas"), None),
        (("spec", "submitterPodTemplate", "spec", "restartPolicy"), "never"),
        (("spec", "submitterPodTemplate", "spec", "containers"), []),
        (
            ("spec", "submitterPodTemplate", "spec", "containers", 0, "resources", "limits"),
            {"memory": "512 MB"},
        ),
    ],
    ids=lambda part: path_name(part) if isinstance(part, tuple) else str(part),
)
def test_rayjob_file_with_a_wrong_value_is_refused(path: KeyPath, value: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(changed(RAYJOB, path, value=value), RAYJOB_SCHEMA)


@pytest.mark.parametrize(
    "name",
    [
        *(f"cluster/{name}.yaml" for name in ("aws", "gcp", "rayjob", "raycluster", "compose")),
        "cluster/Dockerfile",
        "docs/cluster.md",
    ],
)
def test_images_carry_the_installed_ray_and_a_supported_python(name: str) -> None:
    images = IMAGE.findall((ROOT / name).read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert images
    for ray_version, python_minor in images:
        assert ray_version == ray.__version__
        assert SpecifierSet(project["requires-python"]).contains(f"3.{python_minor}")


def test_every_image_is_pinned() -> None:
    images = [AWS["docker"]["image"], GCP["docker"]["image"]]
    images += [container["image"] for pod in pod_specs() for container in pod["containers"]]
    assert all(IMAGE.search(image) for image in images)


def test_the_dockerfile_copies_what_a_study_needs_and_installs_only_what_is_locked() -> None:
    text = (ROOT / "cluster" / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (\S+) \S+$", text, re.MULTILINE)
    assert copied == ["requirements.lock", "search", "trainable", "spaces", "cluster"]
    assert all((ROOT / name).exists() for name in copied)
    (install,) = re.findall(r"^RUN (.* install .*)$", text, re.MULTILINE)
    assert install.endswith("--require-hashes -r requirements.lock")


def test_kubernetes_files_name_the_installed_ray() -> None:
    assert {spec["rayVersion"] for spec in cluster_specs()} == {ray.__version__}


def test_project_asks_for_the_installed_ray() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = next(r for r in map(Requirement, project["dependencies"]) if r.name == "ray")
    assert wanted.specifier.contains(ray.__version__)


def test_lock_has_the_installed_ray() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert re.findall(r"^ray(?:\[[^]]*\])?==([^\s;]+)", lock, re.MULTILINE) == [ray.__version__]


@CLOUDS
def test_a_cloud_s_file_opens_nothing_to_the_world(cloud: Any) -> None:
    # With Ray's defaults filled in: one of them binds the dashboard to all addresses.
    filled_in = prepare_config(cloud)
    assert "0.0.0.0" not in json.dumps(filled_in)
    for node_type in filled_in["available_node_types"].values():
        # Where a node type names none, Ray makes a group that takes SSH from anywhere, or takes
        # the first network that it finds.
        named = node_type["node_config"]
        assert named["SecurityGroupIds" if cloud is AWS else "networkInterfaces"]


@CLOUDS
def test_a_cloud_s_file_gives_workers_an_account_of_their_own(cloud: Any) -> None:
    field = "IamInstanceProfile" if cloud is AWS else "serviceAccounts"
    types = cloud["available_node_types"]
    assert types["head"]["node_config"][field] != types["gpu"]["node_config"][field]


@CLOUDS
def test_a_cloud_s_file_installs_only_what_is_locked(cloud: Any) -> None:
    filled_in = prepare_config(cloud)
    installs = filled_in["head_setup_commands"] + filled_in["worker_setup_commands"]
    assert installs
    assert all("--require-hashes" in command for command in installs)
    assert "./requirements.lock" in cloud["file_mounts"].values()


@CLOUDS
def test_a_cloud_s_cluster_asks_for_a_token(cloud: Any) -> None:
    assert "--env RAY_AUTH_MODE=token" in cloud["docker"]["run_options"]
    assert cloud["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"


def test_other_clusters_ask_for_a_token() -> None:
    for cluster in cluster_specs():
        assert cluster["authOptions"]["mode"] == "token"
    assert "RAY_AUTH_MODE=token" in OWN_HOSTS["setup_commands"][-1]
    assert OWN_HOSTS["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_own_hosts_get_the_code_and_only_what_is_locked() -> None:
    sent = OWN_HOSTS["file_mounts"].values()
    assert {f"./{name}" for name in ("search", "trainable", "spaces", "cluster")} < set(sent)
    assert all((ROOT / path).exists() for path in sent if path.startswith("./"))
    (install,) = (command for command in OWN_HOSTS["setup_commands"] if " install " in command)
    assert "--require-hashes" in install
    assert "--dashboard-host=127.0.0.1" in OWN_HOSTS["head_start_ray_commands"][-1]


def test_no_trial_runs_on_a_head_that_is_paid_for() -> None:
    for cloud in (AWS, GCP):
        assert cloud["available_node_types"][cloud["head_node_type"]]["resources"]["CPU"] == 0
    for cluster in cluster_specs():
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_the_slurm_script_parses_and_so_do_its_commands() -> None:
    """tests/test_cluster_slurm.py runs it, where there is a SLURM."""
    script = ROOT / "cluster" / "slurm.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text().replace("\\\n", " ")
    (node,) = re.findall(r"^ *exec ray start (.*)\"\$@\"$", text, re.MULTILINE)
    for more in re.findall(r"^ *node (--.*?) &", text, re.MULTILINE):
        words = re.sub(r"\$\(\([^)]*\)\)", "1", f"{node} {more}")  # ports
        words = re.sub(r'"\$SLURM_CPUS_ON_NODE"|"\$port"', "1", words)
        start.make_context("start", shlex.split(words))
    assert "$(" not in words
    (study,) = re.findall(r"exec python -u -m (\S+) \"\$@\" --address", text, re.MULTILINE)
    assert study == "search.run"
    assert "RAY_AUTH_MODE=token" in text


def test_pods_run_without_root_and_within_what_they_ask_for() -> None:
    for pod in pod_specs():
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert container["resources"]["requests"] == container["resources"]["limits"]


def test_mounts_have_volumes() -> None:
    for pod in pod_specs():
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes
