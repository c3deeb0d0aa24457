"""What describes clusters is checked against the schemas of those who read it, and each check sees a planted error."""

import copy
import gzip
import re
import shlex
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from jobs.shared import cli
from tests.conftest import SHARED

INFRA = Path(__file__).resolve().parents[2] / "infra"
KUBERAY = INFRA / "kuberay"
DOCKERFILE = (INFRA / "Dockerfile").read_text()


def documents(path):
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def change(document, path, value):
    """The same with one thing planted; a path ends in what is set, numbers count in lists."""
    changed = copy.deepcopy(document)
    place = changed
    *parts, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in parts:
        place = place[part]
    place[last] = value
    return changed


def strict(schema):
    """A CRD's schema as the API server reads it for `kubectl apply`: what it does not name is an error."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if "properties" in schema and isinstance(schema["properties"], dict) and "additionalProperties" not in schema:
        open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or schema.get("x-kubernetes-embedded-resource")
        closed |= {} if open_ended else {"additionalProperties": False}
    return closed


@pytest.fixture(scope="module")
def crds():
    """KubeRay's own definitions, by kind."""
    folder = SHARED / "schemas"
    if not folder.is_dir():
        pytest.skip("KubeRay's definitions are not beside the project")
    found = {}
    for path in folder.glob("ray.io_*.yaml.gz"):
        crd = yaml.load(gzip.decompress(path.read_bytes()), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        [version] = [version for version in crd["spec"]["versions"] if version["name"] == "v1"]
        schema = strict(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        found[crd["spec"]["names"]["kind"]] = jsonschema.Draft7Validator(schema)
    return found


def ray_objects():
    return [documents(KUBERAY / name)[0] for name in ("rayjob.yaml", "raycluster.yaml")]


def cluster_of(document):
    return document["spec"].get("rayClusterSpec", document["spec"])


def groups(document):
    spec = cluster_of(document)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def test_kuberay_takes_its_manifests(crds):
    for document in ray_objects():
        errors = [f"{error.json_path}: {error.message}" for error in crds[document["kind"]].iter_errors(document)]
        assert errors == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.backofLimit", 3),
        ("spec.backoffLimit", "3"),
        ("spec.rayClusterSpec.authOptions.mode", "password"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.maxReplicas", "64"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.template.spec.terminationGracePeriod", 120),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.imagePullPolice", "Always"),
    ],
)
def test_an_error_planted_in_a_manifest_is_seen(crds, path, value):
    job = change(ray_objects()[0], path, value)
    assert list(crds["RayJob"].iter_errors(job)) != []


def test_the_cluster_that_stays_is_the_cluster_of_the_job():
    job, cluster = ray_objects()
    assert cluster_of(job) == cluster_of(cluster)


def kubernetes(document):
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def pod_templates():
    job = ray_objects()[0]
    templates = [group["template"] for group in groups(job)] + [job["spec"]["submitterPodTemplate"]]
    return [
        {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}
        for template in templates
    ]


def test_kubernetes_takes_its_objects():
    for document in [*documents(KUBERAY / "support.yaml"), *pod_templates()]:
        kubernetes(document)


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("PodDisruptionBudget", "spec.maxUnavailble", 0),
        ("PodDisruptionBudget", "spec.selector", "diffseg"),
        ("NetworkPolicy", "spec.ingress.0.form", []),
        ("ServiceAccount", "automountServiceAccountToken", "no"),
        ("PodTemplate", "template.spec.containers.0.securityContext.runAsRoot", False),
    ],
)
def test_an_error_planted_in_an_object_is_seen(kind, path, value):
    [document, *_] = [one for one in [*documents(KUBERAY / "support.yaml"), *pod_templates()] if one["kind"] == kind]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes(change(document, path, value))


def test_grace_lasts_longer_than_the_drain_and_the_head_is_never_on_a_spot_machine():
    for document in ray_objects():
        head, workers = groups(document)
        spec = workers["template"]["spec"]
        environment = {each["name"]: each["value"] for each in spec["containers"][0]["env"]}
        drain = int(environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert spec["terminationGracePeriodSeconds"] >= drain + 10
        assert drain > 1024 / 150 + 10  # a window at the speed that is aimed at, and its commit
        assert head["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}
        assert "nvidia.com/gpu" not in str(head)
        assert "NotIn" in str(head["template"]["spec"]["affinity"])


def test_nothing_in_a_cluster_runs_as_root_or_carries_a_secret():
    user = int(re.findall(r"^USER (\d+)", DOCKERFILE, re.M)[0])
    for document in pod_templates():
        spec = document["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["runAsUser"] == user
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert not [one for one in container.get("env", ()) if re.search("KEY|SECRET|TOKEN", one["name"])]
        assert spec.get("automountServiceAccountToken") is False or "head" in spec["serviceAccountName"]
    for document in ray_objects():
        assert cluster_of(document)["authOptions"] == {"mode": "token"}


def test_accounts_and_labels_of_pods_are_those_of_their_support():
    support = documents(KUBERAY / "support.yaml")
    accounts = {one["metadata"]["name"] for one in support if one["kind"] == "ServiceAccount"}
    job = ray_objects()[0]
    for group in groups(job):
        assert group["template"]["spec"]["serviceAccountName"] in accounts
    [budget] = [one for one in support if one["kind"] == "PodDisruptionBudget"]
    wanted = budget["spec"]["selector"]["matchLabels"]
    fit = [wanted.items() <= group["template"]["metadata"]["labels"].items() for group in groups(job)]
    assert fit == [True, False]
    assert {one["metadata"].get("namespace", "diffseg") for one in support} == {job["metadata"]["namespace"]}


def test_the_entry_point_is_a_command_that_exists_with_flags_that_exist(capsys):
    wrapper, program, *arguments = shlex.split(ray_objects()[0]["spec"]["entrypoint"])
    assert (wrapper, program) == ("diffseg-job", "diffseg")
    assert f"/usr/local/bin/{wrapper}" in DOCKERFILE
    assert "'" not in ray_objects()[0]["spec"]["entrypoint"]  # it goes through more than one shell
    assert cli.run([*arguments, "--help"]) == 0
    shown = capsys.readouterr().out
    for flag in (word for word in arguments if word.startswith("--")):
        assert flag in shown
    workers = int(arguments[arguments.index("--workers") + 1])
    assert groups(ray_objects()[0])[1]["maxReplicas"] >= workers


def test_sky_runs_a_command_that_exists_with_flags_that_exist(capsys):
    [task] = documents(INFRA / "sky" / "label.yaml")
    assert task["resources"]["image_id"].removeprefix("docker:") in (INFRA / "README.md").read_text()
    command = re.sub(r"\$(\w+)", lambda name: task["envs"][name[1]], task["run"])  # an unknown name is a KeyError
    wrapper, program, *arguments = shlex.split(command)
    assert (wrapper, program) == ("diffseg-job", "diffseg")
    assert cli.run([*arguments, "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in arguments if word.startswith("--"))


def launcher(config):
    validate_config(prepare_config(copy.deepcopy(config)))


def test_the_launcher_takes_its_configuration():
    [config] = documents(INFRA / "ray" / "aws.yaml")
    launcher(config)
    spot = config["available_node_types"]["spot_gpu"]
    assert spot["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    for script in re.findall(r"diffseg-\w+", str(config["worker_start_ray_commands"])):
        assert f"/usr/local/bin/{script}" in DOCKERFILE or script == "diffseg-spot.log"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("max_worker", 3),
        ("idle_timeout_minutes", "two"),
        ("head_node_type", "nobody"),
        ("available_node_types.spot_gpu.min_worker", 0),
        ("available_node_types.spot_gpu.resources.GPU", "one"),
    ],
)
def test_an_error_planted_in_the_launchers_configuration_is_seen(path, value):
    [config] = documents(INFRA / "ray" / "aws.yaml")
    with pytest.raises((ValueError, jsonschema.ValidationError)):
        launcher(change(config, path, value))
