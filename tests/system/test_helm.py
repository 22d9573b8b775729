"""The chart, tested with the real helm: it lints, renders manifests that an API server accepts, and is secure by default."""

import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from support.generated_chart import renewed
from support.places import ROOT

import cgm_proxy
from cgm_proxy.settings.loading import Settings, load

CHART = ROOT / "helm"
TOOLS = ROOT / ".cache" / "bin"
VALUE_SETS = sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml"))
#: The oldest version of Kubernetes that the chart supports, and the version whose code validates the manifests.
KUBERNETES = ("1.27.0", "1.37.0")

needs_go = pytest.mark.skipif(
    shutil.which("go") is None and os.environ.get("CI") != "true", reason="Go, which builds helm, is not installed"
)


@pytest.fixture(scope="session")
def tools() -> Path:
    """Build helm and the validator once for all test processes."""
    TOOLS.mkdir(parents=True, exist_ok=True)
    with (TOOLS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(["make", "--silent", "chart-tools"], cwd=ROOT, check=True)
    return TOOLS


def helm(tools: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": os.environ["PATH"], "HOME": str(TOOLS)}
    return subprocess.run([tools / "helm", *arguments], capture_output=True, text=True, cwd=ROOT, env=environ)


def rendered(tools: Path, values: str, *more: str, kubernetes: str = KUBERNETES[0]) -> str:
    done = helm(
        tools, "template", "cgm-proxy", "helm", "--namespace", "cgm", "--kube-version", kubernetes,
        "--values", f"helm/ci/{values}-values.yaml", *more,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects(tools: Path, values: str, *more: str) -> dict[tuple[str, str], dict]:
    documents = yaml.safe_load_all(rendered(tools, values, *more))
    return {(document["kind"], document["metadata"]["name"]): document for document in documents if document}


def single(found: dict[tuple[str, str], dict], kind: str) -> dict:
    """Return the manifest of this kind, of which there must be one."""
    (manifest,) = (manifest for (other_kind, _), manifest in found.items() if other_kind == kind)
    return manifest


def workload(found: dict[tuple[str, str], dict]) -> dict:
    """Return the Deployment, or the StatefulSet if the pods have a job queue."""
    return single(found, "StatefulSet" if any(kind == "StatefulSet" for kind, _ in found) else "Deployment")


def pod(found: dict[tuple[str, str], dict]) -> dict:
    return workload(found)["spec"]["template"]["spec"]


def settings_of(found: dict[tuple[str, str], dict], directory: Path) -> Settings:
    path = directory / "settings.yaml"
    path.write_text(single(found, "ConfigMap")["data"]["settings.yaml"], "utf-8")
    return load(path, {"CGM_PROXY_RULES": ""})  # the directory exists only in the pod


@needs_go
@pytest.mark.parametrize("values", VALUE_SETS)
def test_the_chart_lints_strictly(tools, values):
    linted = helm(tools, "lint", "--strict", "helm", "--values", f"helm/ci/{values}-values.yaml")
    assert linted.returncode == 0, linted.stdout + linted.stderr
    assert "1 chart(s) linted, 0 chart(s) failed" in linted.stdout + linted.stderr


@needs_go
@pytest.mark.parametrize("kubernetes", KUBERNETES)
@pytest.mark.parametrize("values", VALUE_SETS)
def test_an_api_server_accepts_the_manifests(tools, values, kubernetes):
    manifests = rendered(tools, values, kubernetes=kubernetes)
    done = subprocess.run([tools / "validate-manifests"], input=manifests, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


BAD_MANIFESTS = [
    ("replicas: 2", "replica: 2", 'strict decoding error: unknown field "spec.replica"'),
    ("containerPort: 8080", "containerPort: 80800", "must be between 1 and 65535, inclusive"),
    ("allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true", "allowPrivilegeEscalation != false"),
    ("- name: tmp\n              mountPath", "- name: temp\n              mountPath", 'Not found: "temp"'),
    ("policyTypes: [Ingress, Egress]", "policyTypes: [Ingres]", 'Unsupported value: "Ingres"'),
    ("targetPort: http", "targetPort: HTTP_", "Invalid value"),
]


@needs_go
@pytest.mark.parametrize(("good", "bad", "message"), BAD_MANIFESTS)
def test_the_validator_refuses_what_an_api_server_refuses(tools, good, bad, message):
    manifests = rendered(tools, "minimal")
    assert good in manifests
    broken = manifests.replace(good, bad)
    done = subprocess.run([tools / "validate-manifests"], input=broken, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")
    assert message in done.stdout


KINDS = {
    "minimal": {"ConfigMap", "Deployment", "NetworkPolicy", "PodDisruptionBudget", "Service", "ServiceAccount"},
    "jobs": {"ConfigMap", "NetworkPolicy", "PodDisruptionBudget", "Service", "ServiceAccount", "StatefulSet"},
    "observe": {"ConfigMap", "Deployment", "Service", "ServiceAccount"},
    "everything": {
        "ConfigMap", "Deployment", "HorizontalPodAutoscaler", "NetworkPolicy", "PodDisruptionBudget", "Service",
        "ServiceAccount", "ServiceMonitor",
    },
}  # fmt: skip


@needs_go
@pytest.mark.parametrize("values", VALUE_SETS)
def test_each_value_set_renders_the_expected_kinds(tools, values):
    assert {kind for kind, _ in objects(tools, values)} == KINDS[values]


@needs_go
@pytest.mark.parametrize("values", VALUE_SETS)
def test_the_proxy_accepts_the_settings_of_the_chart(tools, values, tmp_path):
    settings = settings_of(objects(tools, values), tmp_path)
    expected = yaml.safe_load((CHART / "ci" / f"{values}-values.yaml").read_text("utf-8"))["settings"]
    assert settings.upstream.url == expected["upstream"]["url"]
    assert settings.listen.public_url == expected["listen"]["public_url"]
    assert settings.mode == expected.get("mode", "enforce")


@needs_go
def test_a_hospitals_rules_are_mounted_and_a_change_restarts_the_pods(tools, tmp_path):
    def release(text: str) -> dict[tuple[str, str], dict]:
        (tmp_path / "range.yaml").write_text(text)
        return objects(tools, "minimal", "--set-file", f"rules.range\\.yaml={tmp_path / 'range.yaml'}")

    text = (ROOT / "tests" / "rules" / "hospital" / "range.yaml").read_text("utf-8")
    found = release(text)
    assert found["ConfigMap", "cgm-proxy-rules"]["data"] == {"range.yaml": text}
    settings = yaml.safe_load(found["ConfigMap", "cgm-proxy"]["data"]["settings.yaml"])
    (container,) = pod(found)["containers"]
    assert {"name": "rules", "mountPath": settings["rules"], "readOnly": True} in container["volumeMounts"]
    assert {"name": "rules", "configMap": {"name": "cgm-proxy-rules"}} in pod(found)["volumes"]
    first, changed = (
        single(manifests, "Deployment")["spec"]["template"]["metadata"]["annotations"]["checksum/rules"]
        for manifests in (found, release(text.replace("600", "500")))
    )
    assert first != changed


@needs_go
@pytest.mark.parametrize(
    ("value", "message"),
    [("rules.a=x", "does not match"), ("rules.a\\.yaml=x,settings.rules=/etc/mine", "use one of them")],
)
def test_rules_that_the_proxy_would_not_load_are_refused(tools, value, message):
    options = ("--kube-version", KUBERNETES[0], "--values", "helm/ci/minimal-values.yaml", "--set", value)
    done = helm(tools, "template", "cgm-proxy", "helm", *options)
    assert done.returncode != 0
    assert message in done.stderr


@needs_go
@pytest.mark.parametrize("values", VALUE_SETS)
def test_ports_and_grace_period_follow_the_settings(tools, values, tmp_path):
    found = objects(tools, values)
    listen, spec = settings_of(found, tmp_path).listen, pod(found)
    (container,) = spec["containers"]
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {
        "http": listen.port,
        "ops": listen.ops_port,
    }
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][2].partition("sleep(")[2].rstrip(")"))
    assert spec["terminationGracePeriodSeconds"] > listen.stop_timeout + pause


@needs_go
@pytest.mark.parametrize("values", VALUE_SETS)
def test_pods_have_no_privileges(tools, values):
    spec = pod(objects(tools, values))
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False


@needs_go
@pytest.mark.parametrize("values", VALUE_SETS)
def test_probes_use_the_operations_port(tools, values):
    (container,) = pod(objects(tools, values))["containers"]
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert probes == {
        "startup": {"path": "/healthz", "port": "ops"},
        "liveness": {"path": "/healthz", "port": "ops"},
        "readiness": {"path": "/readyz", "port": "ops"},
    }


@needs_go
@pytest.mark.parametrize("values", VALUE_SETS)
def test_the_public_service_has_only_the_public_port(tools, values):
    services = [service["spec"] for (kind, _), service in objects(tools, values).items() if kind == "Service"]
    ports = {tuple(port["targetPort"] for port in spec["ports"]): spec for spec in services}
    assert set(ports) == {("http",), ("ops",)}
    assert (ports[("ops",)]["type"], ports[("ops",)]["clusterIP"]) == ("ClusterIP", "None")


@needs_go
def test_selectors_find_the_pods(tools):
    found = objects(tools, "everything")
    labels = single(found, "Deployment")["spec"]["template"]["metadata"]["labels"].items()
    selectors = [service["spec"]["selector"] for (kind, _), service in found.items() if kind == "Service"]
    selectors += [
        single(found, kind)["spec"]["selector"]["matchLabels"] for kind in ("Deployment", "PodDisruptionBudget")
    ]
    selectors += [single(found, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"]]
    assert [selector for selector in selectors if not selector.items() <= labels] == []
    monitored = single(found, "ServiceMonitor")["spec"]["selector"]["matchLabels"].items()
    services = [
        name
        for (kind, name), service in found.items()
        if kind == "Service" and monitored <= service["metadata"]["labels"].items()
    ]
    assert services == ["cgm-ops"]


@needs_go
def test_the_network_policy_allows_only_monitoring_to_reach_the_operations_port(tools):
    policy = single(objects(tools, "everything"), "NetworkPolicy")["spec"]
    sources = {rule["ports"][0]["port"]: rule["from"] for rule in policy["ingress"]}
    assert set(sources) == {"http", "ops"}
    assert sources["ops"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "observability"}}}]


UPSTREAM_PORTS = [
    ("http://hapi:8080/fhir", 8080),
    ("http://hapi/fhir", 80),
    ("https://hapi/fhir", 443),
    ("http://[fd00::1]/fhir", 80),
    ("http://[fd00::1]:8081/fhir", 8081),
]


@needs_go
@pytest.mark.parametrize(("url", "port"), UPSTREAM_PORTS)
def test_the_network_policy_allows_pods_to_reach_only_the_upstream_and_dns(tools, url, port):
    found = objects(tools, "minimal", "--set-string", f"settings.upstream.url={url}")
    assert [[port["port"] for port in rule["ports"]] for rule in single(found, "NetworkPolicy")["spec"]["egress"]] == [
        [53, 53],
        [port],
    ]


@needs_go
def test_the_token_is_mounted_from_a_secret_and_in_no_manifest(tools):
    found = objects(tools, "everything")
    spec = pod(found)
    (container,) = spec["containers"]
    files = [variable["value"] for variable in container["env"] if variable["name"] == "CGM_PROXY_UPSTREAM_TOKEN_FILE"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    secrets = {volume["name"]: volume["secret"] for volume in spec["volumes"] if "secret" in volume}
    assert files == [f"{mounts['upstream-token']}/bearer"]
    assert secrets["upstream-token"]["secretName"] == "fhir-token"
    assert "token" not in yaml.safe_load(single(found, "ConfigMap")["data"]["settings.yaml"])["upstream"]


@needs_go
def test_the_url_of_valkey_is_mounted_from_a_secret_and_its_pods_can_be_reached(tools):
    found = objects(tools, "everything")
    spec = pod(found)
    (container,) = spec["containers"]
    files = [variable["value"] for variable in container["env"] if variable["name"] == "CGM_PROXY_CACHE_SHARED_FILE"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    secrets = {volume["name"]: volume["secret"] for volume in spec["volumes"] if "secret" in volume}
    assert files == [f"{mounts['valkey-url']}/shared-url"]
    assert secrets["valkey-url"]["secretName"] == "valkey"
    reached = [[port["port"] for port in rule["ports"]] for rule in single(found, "NetworkPolicy")["spec"]["egress"]]
    assert [6380] in reached


@needs_go
def test_a_change_of_settings_restarts_the_pods(tools):
    def checksum(*more: str) -> str:
        deployment = single(objects(tools, "minimal", *more), "Deployment")
        return deployment["spec"]["template"]["metadata"]["annotations"]["checksum/settings"]

    assert checksum() == checksum("--set", "replicaCount=3")
    assert checksum() != checksum("--set", "settings.mode=observe")


@needs_go
def test_with_autoscaling_the_number_of_pods_is_not_fixed(tools):
    assert "replicas" not in single(objects(tools, "everything"), "Deployment")["spec"]
    assert single(objects(tools, "minimal"), "Deployment")["spec"]["replicas"] == 2


@needs_go
def test_pods_with_a_job_queue_have_volumes_and_know_their_peers(tools):
    found = objects(tools, "jobs")
    stateful_set, spec = workload(found)["spec"], pod(found)
    (claim,), (container,) = stateful_set["volumeClaimTemplates"], spec["containers"]
    assert claim["spec"] == {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "encrypted",
        "resources": {"requests": {"storage": "5Gi"}},
    }
    environ = {variable["name"]: variable.get("value") for variable in container["env"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert Path(environ["CGM_PROXY_JOBS_PATH"]).parent == Path(mounts["jobs"])
    service = found["Service", stateful_set["serviceName"]]["spec"]
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"]
    peers = environ["CGM_PROXY_JOBS_PEERS"]
    assert peers == f"http://{{replica}}.{stateful_set['serviceName']}.cgm.svc:8080/r4/fhir"
    name = f"{workload(found)['metadata']['name']}-12"
    settings = load(None, {"CGM_PROXY_JOBS_PEERS": peers, "CGM_PROXY_JOBS_REPLICA": name})
    assert (settings.jobs.peers, settings.jobs.replica) == (peers, name)


@needs_go
def test_pods_with_a_job_queue_can_reach_each_other(tools):
    policy = single(objects(tools, "jobs"), "NetworkPolicy")["spec"]
    own = [{"podSelector": policy["podSelector"]}]
    assert [rule["from"] for rule in policy["ingress"] if rule["ports"][0]["port"] == "http"][1] == own
    assert [rule["to"] for rule in policy["egress"] if rule["ports"][0]["port"] == "http"] == [own]
    without = single(objects(tools, "minimal"), "NetworkPolicy")["spec"]
    assert not [rule for rule in without["egress"] if rule["ports"][0]["port"] == "http"]


REFUSED_VALUES = [
    ("settings.upstream.url=", "settings.upstream.url: set it to the base URL of the FHIR server"),
    ("settings.listen.public_url=", "settings.listen.public_url: set it to the base URL that submitters use"),
    ("settings.upstream.token=s3cr3t", "additional properties 'token' not allowed"),
    ("settings.upstrem.url=x", "additional properties 'upstrem' not allowed"),
    ("settings.mode=off", "value must be one of 'enforce', 'observe'"),
    ("settings.listen.port=0", "minimum: got 0, want 1"),
    ("settings.limits.entries=many", "got string, want integer"),
    ("settings.upstream.url=http://user:pw@hapi/fhir", "does not match pattern"),
    ("replicas=3", "additional properties 'replicas' not allowed"),
    ("replicaCount=0", "minimum: got 0, want 1"),
    (
        "jobs.enabled=true,autoscaling.enabled=true",
        "a pod that is removed takes the submissions in its job queue with it",
    ),
    ("jobs.size=3", "got number, want string"),
    ("image.digest=latest", "does not match pattern"),
    ("extraEnv[0].name=CGM_PROXY_LISTEN_PORT", "'not' failed"),
    ("extraEnv[0].name=CGM_PROXY_UPSTREAM_TOKEN", "'not' failed"),
    ("extraEnv[0].name=CGM_PROXY_CACHE_SHARED", "'not' failed"),
    ("settings.cache.shared=redis://:s3cr3t@valkey", "additional properties 'shared' not allowed"),
    ("valkeyUrl.existingSecret=valkey", "networkPolicy.valkeyTo: name the pods behind valkeyUrl"),
]


@needs_go
@pytest.mark.parametrize(("value", "message"), REFUSED_VALUES)
def test_wrong_values_are_refused(tools, value, message):
    done = helm(
        tools, "template", "x", "helm", "-f", "helm/ci/minimal-values.yaml", "--kube-version", "1.27.0", "--set", value
    )
    assert done.returncode != 0
    assert message in done.stderr
    assert "s3cr3t" not in done.stderr


def test_generated_parts_of_the_chart_are_up_to_date():
    stale = [path.name for path, content in renewed().items() if path.read_text("utf-8") != content]
    assert stale == [], "run: PYTHONPATH=tests python -m support.generated_chart"


def test_the_chart_has_the_version_of_the_package():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    assert (chart["appVersion"], chart["version"]) == (cgm_proxy.__version__, cgm_proxy.__version__)


def test_values_and_their_schema_have_the_same_keys():
    values = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))
    assert set(schema["properties"]) - {"global"} == set(values)


def test_defaults_of_settings_in_the_chart_are_those_of_the_program():
    templates = (CHART / "templates" / "_helpers.tpl").read_text("utf-8")
    listen = Settings().listen
    for key in ("port", "ops_port", "stop_timeout"):
        assert f'dig "listen" "{key}" {int(getattr(listen, key))} ' in templates
    notes = (CHART / "templates" / "NOTES.txt").read_text("utf-8")
    assert f'"body_bytes" {Settings().limits.body_bytes} ' in notes
