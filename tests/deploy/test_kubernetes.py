"""The Kubernetes manifests follow the API's schemas, and fit together."""

from typing import Any

import kubernetes_validate
import pytest
import yaml
from deployed_commands import DEPLOY, containers, manifests

FOLDER = DEPLOY / "kubernetes"
OPERATORS_OWN = ("kustomize.config.k8s.io", "monitoring.coreos.com")
"""APIs that are not Kubernetes' own."""
VERSIONS = ("1.29", "1.33")
OBJECTS = [(path.name, manifest) for path, manifest in manifests()]
PODS = [(name, manifest) for name, manifest in OBJECTS if manifest["kind"] in ("Deployment", "Job")]


def name_of(value: object) -> str:
    return value["metadata"]["name"] if isinstance(value, dict) and "metadata" in value else str(value)


def kinds(kind: str) -> dict[str, dict[str, Any]]:
    return {name_of(manifest): manifest for _, manifest in OBJECTS if manifest["kind"] == kind}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_follows_its_schema(version: str) -> None:
    checked = 0
    for _, manifest in OBJECTS:
        if not manifest["apiVersion"].startswith(OPERATORS_OWN):
            kubernetes_validate.validate(manifest, version, strict=True)
            checked += 1
    assert checked >= 15


def test_a_schema_finds_a_mistake() -> None:
    deployment = dict(kinds("Deployment")["quantfleet-server"])
    deployment["spec"] = {**deployment["spec"], "replica": 2}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, VERSIONS[-1], strict=True)


def test_the_kustomization_names_files_that_are_there_and_no_secret() -> None:
    listed = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    there = {path.name for path in FOLDER.glob("*.yaml")}
    assert set(listed) <= there
    assert there - set(listed) == {
        "kustomization.yaml", "secret.example.yaml", "keys-job.yaml", "service-monitor.yaml"
    }  # fmt: skip


@pytest.mark.parametrize(("file", "manifest"), PODS, ids=name_of)
def test_pods_meet_the_restricted_standard(file: str, manifest: dict[str, Any]) -> None:
    pod = manifest["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    for container in containers(manifest):
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"]["drop"] == ["ALL"]
        assert "memory" in container["resources"]["limits"], file
        assert ":" in container["image"]
        assert not container["image"].endswith(":latest")


@pytest.mark.parametrize(("file", "manifest"), PODS, ids=name_of)
def test_what_a_pod_names_is_there(file: str, manifest: dict[str, Any]) -> None:
    pod = manifest["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for volume in volumes.values():
        if "persistentVolumeClaim" in volume:
            assert volume["persistentVolumeClaim"]["claimName"] in kinds("PersistentVolumeClaim")
        if "configMap" in volume:
            config = kinds("ConfigMap")[volume["configMap"]["name"]]["data"]
            assert {item["key"] for item in volume["configMap"]["items"]} <= config.keys()
    for container in containers(manifest):
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes.keys(), file
        for source in container.get("envFrom", ()):
            assert source["secretRef"]["name"] in kinds("Secret")
        for variable in container.get("env", ()):
            wanted = variable.get("valueFrom", {}).get("configMapKeyRef")
            assert wanted is None or wanted["key"] in kinds("ConfigMap")[wanted["name"]]["data"]


def test_services_budgets_and_policies_select_pods_that_are_there() -> None:
    pods = [manifest["spec"]["template"]["metadata"]["labels"] for _, manifest in PODS]
    selectors = [service["spec"]["selector"] for service in kinds("Service").values()]
    selectors += [
        budget["spec"]["selector"]["matchLabels"] for budget in kinds("PodDisruptionBudget").values()
    ]
    selectors += [
        policy["spec"]["podSelector"].get("matchLabels", {}) for policy in kinds("NetworkPolicy").values()
    ]
    for selector in selectors:
        assert any(selector.items() <= labels.items() for labels in pods), selector


def test_services_reach_ports_that_containers_open() -> None:
    by_label = {
        manifest["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"]: {
            port["name"]: port["containerPort"]
            for container in containers(manifest)
            for port in container.get("ports", ())
        }
        for _, manifest in PODS
    }
    for service in kinds("Service").values():
        ports = by_label[service["spec"]["selector"]["app.kubernetes.io/name"]]
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]


def test_everything_is_in_one_namespace() -> None:
    for file, manifest in OBJECTS:
        if manifest["kind"] not in ("Namespace", "Kustomization"):
            assert manifest["metadata"]["namespace"] == "quantfleet", file


def test_a_pod_budget_lets_a_rollout_happen() -> None:
    server = kinds("Deployment")["quantfleet-server"]["spec"]
    assert kinds("PodDisruptionBudget")["quantfleet-server"]["spec"]["minAvailable"] < server["replicas"]
