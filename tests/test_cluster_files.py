"""The cluster files are what Ray and KubeRay take, and name the Ray that the project uses."""

import json
import re
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

IMAGE = re.compile(r"\b(?:rayproject/ray|batch-lr-search):([0-9.]+)-py3(\d+)-gpu\b")
KeyPath = tuple[str | int, ...]


def load_yaml(name: str) -> Any:
    # Through JSON, because YAML's aliases are one object: a change to one would change them all.
    return json.loads(json.dumps(yaml.safe_load((ROOT / "cluster" / name).read_text())))


def load_schema(path: Path) -> Any:
    return json.loads(path.read_text())


AWS = load_yaml("aws.yaml")
AWS_SCHEMA = load_schema(Path(ray.autoscaler.__file__).parent / "ray-schema.json")
RAYJOB = load_yaml("rayjob.yaml")
RAYJOB_SCHEMA = load_schema(ROOT / "tests/schemas/rayjob.json")


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


def pod_specs() -> list[Any]:
    cluster = RAYJOB["spec"]["rayClusterSpec"]
    templates = [RAYJOB["spec"]["submitterPodTemplate"], cluster["headGroupSpec"]["template"]]
    templates += [group["template"] for group in cluster["workerGroupSpecs"]]
    return [template["spec"] for template in templates]


def test_aws_file_is_what_ray_up_takes() -> None:
    jsonschema.validate(AWS, AWS_SCHEMA)


def test_rayjob_file_is_what_kuberay_takes() -> None:
    jsonschema.Draft7Validator.check_schema(RAYJOB_SCHEMA)
    jsonschema.validate(RAYJOB, RAYJOB_SCHEMA)


def accepted_misspelt(document: Any, schema: Any, *, names_in: set[str]) -> list[str]:
    """Where a misspelt key is accepted."""
    validator = jsonschema.validators.validator_for(schema)(schema)
    return [
        path_name(path)
        for path in key_paths(document, names_in=names_in)
        if validator.is_valid(changed(document, path, key=f"{path[-1]}x"))
    ]


def test_any_key_misspelt_in_the_aws_file_is_refused() -> None:
    # Ray's schema lets a provider have keys of its own.
    names_in = {"available_node_types", "file_mounts", "provider", "resources"}
    assert len(list(key_paths(AWS, names_in=names_in))) > 20
    assert accepted_misspelt(AWS, AWS_SCHEMA, names_in=names_in) == []


def test_any_key_misspelt_in_the_rayjob_file_is_refused() -> None:
    names_in = {"limits", "rayStartParams", "requests"}
    assert len(list(key_paths(RAYJOB, names_in=names_in))) > 100
    assert accepted_misspelt(RAYJOB, RAYJOB_SCHEMA, names_in=names_in) == []


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
    "name", ["cluster/aws.yaml", "cluster/rayjob.yaml", "cluster/Dockerfile", "docs/cluster.md"]
)
def test_images_carry_the_installed_ray_and_a_supported_python(name: str) -> None:
    images = IMAGE.findall((ROOT / name).read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert images
    for ray_version, python_minor in images:
        assert ray_version == ray.__version__
        assert SpecifierSet(project["requires-python"]).contains(f"3.{python_minor}")


def test_every_image_is_pinned() -> None:
    images = [AWS["docker"]["image"]]
    images += [container["image"] for pod in pod_specs() for container in pod["containers"]]
    assert all(IMAGE.search(image) for image in images)


def test_the_dockerfile_copies_what_a_study_needs_and_installs_only_what_is_locked() -> None:
    text = (ROOT / "cluster" / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (\S+) \S+$", text, re.MULTILINE)
    assert copied == ["requirements.lock", "search", "trainable", "spaces", "cluster"]
    assert all((ROOT / name).exists() for name in copied)
    (install,) = re.findall(r"^RUN (.*)$", text, re.MULTILINE)
    assert install.endswith("--require-hashes -r requirements.lock")


def test_rayjob_names_the_installed_ray() -> None:
    assert RAYJOB["spec"]["rayClusterSpec"]["rayVersion"] == ray.__version__


def test_project_asks_for_the_installed_ray() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = next(r for r in map(Requirement, project["dependencies"]) if r.name == "ray")
    assert wanted.specifier.contains(ray.__version__)


def test_lock_has_the_installed_ray() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert re.findall(r"^ray(?:\[[^]]*\])?==([^\s;]+)", lock, re.MULTILINE) == [ray.__version__]


def test_aws_file_opens_nothing_to_the_world() -> None:
    # With Ray's defaults filled in: one of them binds the dashboard to all addresses.
    filled_in = prepare_config(AWS)
    assert "0.0.0.0" not in json.dumps(filled_in)
    # Where a node type names no group, Ray makes one that takes SSH from anywhere.
    for node_type in filled_in["available_node_types"].values():
        assert node_type["node_config"]["SecurityGroupIds"]


def test_aws_file_installs_only_what_is_locked() -> None:
    filled_in = prepare_config(AWS)
    installs = filled_in["head_setup_commands"] + filled_in["worker_setup_commands"]
    assert installs
    assert all("--require-hashes" in command for command in installs)
    assert "./requirements.lock" in AWS["file_mounts"].values()


def test_both_clusters_ask_for_a_token() -> None:
    assert "--env RAY_AUTH_MODE=token" in AWS["docker"]["run_options"]
    assert AWS["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    assert RAYJOB["spec"]["rayClusterSpec"]["authOptions"]["mode"] == "token"


def test_no_trial_runs_on_a_head() -> None:
    assert AWS["available_node_types"][AWS["head_node_type"]]["resources"]["CPU"] == 0
    head = RAYJOB["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"


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
