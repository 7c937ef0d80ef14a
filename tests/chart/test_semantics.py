"""What schemas do not see: that the objects fit each other, the server's own configuration, and what a pod may do."""

import itertools
import json
import math
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.config import load_config
from tests.support.chart import CASES, CHART, Object, Rendered, render

DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-._A-Za-z0-9]{0,61}[A-Za-z0-9])?)?")


def is_part(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return bool(selector) and selector.items() <= labels.items()


def check(chart: Rendered) -> None:
    """Every promise that holds whatever the values are."""
    check_names(chart)
    check_selectors(chart)
    check_ports(chart)
    check_server(chart)
    for pod in (chart.pod["spec"], *(o["spec"] for o in chart.all("Pod"))):
        check_pod(pod)
    check_references(chart)


def check_names(chart: Rendered) -> None:
    seen = [(o["kind"], o["metadata"]["name"]) for o in chart.objects]
    assert len(set(seen)) == len(seen)
    for item in chart.objects:
        assert DNS_LABEL.fullmatch(item["metadata"]["name"]), item["metadata"]["name"]
        for value in (item["metadata"].get("labels") or {}).values():
            assert LABEL_VALUE.fullmatch(value), value
    if chart.workload["kind"] == "StatefulSet":
        assert len(chart.workload["metadata"]["name"]) <= 52  # a revision's hash comes after it, in a label


def check_selectors(chart: Rendered) -> None:
    labels = chart.pod["metadata"]["labels"]
    tests = [o["metadata"]["labels"] for o in chart.all("Pod")]

    def selects_the_pods_alone(selector: dict[str, str]) -> None:
        assert is_part(selector, labels), selector
        assert not any(is_part(selector, other) for other in tests), "the pods of `helm test` would get traffic"

    selects_the_pods_alone(chart.workload["spec"]["selector"]["matchLabels"])
    for service in chart.all("Service"):
        selects_the_pods_alone(service["spec"]["selector"])
    for item in chart.all("PodDisruptionBudget", "InferencePool", "PodMonitor"):
        selects_the_pods_alone(item["spec"]["selector"]["matchLabels"])
    for policy in chart.all("NetworkPolicy"):
        selects_the_pods_alone(policy["spec"]["podSelector"]["matchLabels"])
    for monitor in chart.all("ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"]
        (service,) = (s for s in chart.all("Service") if is_part(wanted, s["metadata"]["labels"]))
        assert {e["port"] for e in monitor["spec"]["endpoints"]} <= {p["name"] for p in service["spec"]["ports"]}
    for constraint in chart.pod["spec"].get("topologySpreadConstraints", []):
        assert is_part(constraint["labelSelector"]["matchLabels"], labels)


def check_ports(chart: Rendered) -> None:
    ports = {p["name"]: p for p in chart.server["ports"]}
    assert len({p["containerPort"] for p in ports.values()}) == len(ports)
    services = {s["metadata"]["name"]: s for s in chart.all("Service")}
    for port in itertools.chain(ports.values(), *(s["spec"]["ports"] for s in services.values())):
        assert port["protocol"] == "TCP"  # a typed patch needs the whole key of the list
    for service in services.values():
        assert {p["targetPort"] for p in service["spec"]["ports"]} <= ports.keys()
    api = services[chart.workload["metadata"]["name"]]
    # Neither metrics nor probes where clients are.
    assert [p["targetPort"] for p in api["spec"]["ports"]] == ["http"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert chart.server[probe]["httpGet"]["port"] in ports
    for monitor in chart.all("PodMonitor"):
        assert {e["port"] for e in monitor["spec"]["podMetricsEndpoints"]} <= ports.keys()
    for policy in chart.all("NetworkPolicy"):
        opened = {p["port"] for rule in policy["spec"]["ingress"] for p in rule["ports"]}
        assert opened == ports.keys()
    for ingress in chart.all("Ingress"):
        for rule in ingress["spec"]["rules"]:
            backend = rule["http"]["paths"][0]["backend"]["service"]
            assert backend["port"]["name"] in {p["name"] for p in services[backend["name"]]["spec"]["ports"]}
    for route in chart.all("HTTPRoute"):
        for backend in route["spec"]["rules"][0]["backendRefs"]:
            if backend.get("kind") == "InferencePool":
                assert backend["name"] == chart.one("InferencePool")["metadata"]["name"]
            else:
                assert backend["port"] in {p["port"] for p in services[backend["name"]]["spec"]["ports"]}
    for pool in chart.all("InferencePool"):
        assert [t["number"] for t in pool["spec"]["targetPorts"]] == [ports["http"]["containerPort"]]


def check_server(chart: Rendered) -> None:
    """The pod gives the server the time that its own configuration says it needs, and nothing rolls for no reason."""
    spec, server = chart.workload["spec"], chart.server
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "config.json")
        path.write_text(chart.config)
        config = load_config(path)
    assert config.bearer_tokens is None
    ports = {p["name"]: p["containerPort"] for p in server["ports"]}
    assert ports == {"http": config.port} | ({"admin": config.metrics_port} if config.metrics_port else {})
    grace = chart.pod["spec"]["terminationGracePeriodSeconds"]
    assert grace >= config.drain_delay + config.drain_timeout + 10
    startup = server["startupProbe"]
    budget = startup["periodSeconds"] * startup["failureThreshold"]
    if chart.workload["kind"] == "Deployment":
        assert spec["progressDeadlineSeconds"] > budget + math.ceil(grace)
        if spec["strategy"]["type"] == "Recreate":
            assert "rollingUpdate" not in spec["strategy"]
    assert ("replicas" in spec) != bool(chart.all("HorizontalPodAutoscaler", "ScaledObject"))
    # The tokens' directory is named where there is one, and nowhere else.
    mounts = {m["name"]: m for m in server["volumeMounts"]}
    assert config.bearer_tokens_dir == (mounts["tokens"]["mountPath"] if "tokens" in mounts else None)
    # Reloaded at run time, so no reason to roll: the tokens.
    assert set(chart.pod["metadata"]["annotations"]) & {"checksum/config", "checksum/tokens"} == {"checksum/config"}


def check_pod(pod: Object) -> None:
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    context = pod["securityContext"]
    assert context["runAsNonRoot"] and context["runAsUser"] == 10001
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    containers = [*pod.get("initContainers", []), *pod["containers"]]
    assert len({c["name"] for c in containers}) == len(containers)
    volumes = {v["name"] for v in pod.get("volumes", [])}
    assert len(volumes) == len(pod.get("volumes", []))
    for container in containers:
        tag = container["image"].rpartition("/")[2].partition(":")[2]
        assert tag and tag != "latest", container["image"]
        names = [e["name"] for e in container.get("env", [])]
        assert len(set(names)) == len(names)
        if container["name"] not in ("tfoai", "download", "test"):
            continue  # somebody else's
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        check_resources(container["resources"])
        places = [m["mountPath"] for m in container.get("volumeMounts", [])]
        assert len(set(places)) == len(places)
        for mount in container.get("volumeMounts", []):
            assert mount["name"] in volumes | {"cache"}, "no such volume"  # a StatefulSet's claim is the volume `cache`
            if mount["name"] in ("config", "tokens", "hub-token"):
                assert mount["readOnly"] and "subPath" not in mount  # those are never updated
            # What the image has must not be hidden.
            assert not mount["mountPath"].startswith("/opt") and mount["mountPath"] != "/etc/tfoai"


def check_resources(resources: Object) -> None:
    for part in ("requests", "limits"):
        for name, quantity in resources.get(part, {}).items():
            if "/" in name:
                assert isinstance(quantity, str), f"{name} has to be quoted"
                assert resources.get("requests", {}).get(name, quantity) == resources["limits"][name]


def check_references(chart: Rendered) -> None:
    """Whatever is named is there, or is somebody else's by a name that the values gave."""
    have = {(o["kind"], o["metadata"]["name"]) for o in chart.objects}
    workload = (chart.workload["kind"], chart.workload["metadata"]["name"])
    for scaler in chart.all("HorizontalPodAutoscaler", "ScaledObject"):
        target = scaler["spec"]["scaleTargetRef"]
        assert (target["kind"], target["name"]) == workload
    theirs = {"tfoai-tokens", "huggingface", "mine", "models"}
    for volume in chart.pod["spec"]["volumes"]:
        for kind, where in (
            ("ConfigMap", "configMap"),
            ("Secret", "secret"),
            ("PersistentVolumeClaim", "persistentVolumeClaim"),
        ):
            if where in volume:
                source = volume[where]
                name = source.get("name") or source.get("secretName") or source.get("claimName")
                assert (kind, name) in have or name in theirs, name
    for claim in chart.pod["spec"].get("resourceClaims", []):
        assert ("ResourceClaimTemplate", claim["resourceClaimTemplateName"]) in have
    account = chart.pod["spec"]["serviceAccountName"]
    assert account == "default" or ("ServiceAccount", account) in have
    if workload[0] == "StatefulSet":
        assert ("Service", chart.workload["spec"]["serviceName"]) in have


@pytest.mark.parametrize("case", CASES)
def test_every_case(case: str) -> None:
    check(render(CASES[case]))


def switch(name: str, **more: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.sampled_from([{}, {name: {"enabled": True, **more}}])


def merged(parts: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    return {key: value for part in parts for key, value in part.items()}


def one_of(*choices: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.sampled_from([{}, *choices])


CLAIM = {"type": "persistentVolumeClaim", "size": "1Gi"}
HUB = {"existingSecret": "mine", "existingSecretKey": "k", "offline": True}
ANY_VALUES = st.tuples(
    one_of({"autoscaling": {"enabled": True}}, {"keda": {"enabled": True, "prometheus": "http://p"}}),
    one_of({"serviceMonitor": {"enabled": True}}, {"podMonitor": {"enabled": True}}),
    one_of({"cache": {**CLAIM, "type": "perReplica"}}, {"cache": CLAIM}),
    one_of({"auth": {"tokens": {"a": "b"}}}, {"auth": {"existingSecret": "mine"}}),
    one_of({"hub": {"token": "t"}}, {"hub": HUB}),
    one_of({"gpu": {"count": 0}}, {"gpu": {"count": 2, "claim": {"enabled": True}}}),
    one_of({"config": {"METRICS_PORT": None, "PORT": 80}}, {"config": {"DRAIN_DELAY": 0.5, "DRAIN_TIMEOUT": 7.25}}),
    one_of({"strategy": {"type": "Recreate"}}, {"topologySpreadConstraints": [{"topologyKey": "zone"}]}),
    one_of({"service": {"type": "LoadBalancer", "port": 443}}),
    one_of({"serviceAccount": {"create": False, "name": ""}}),
    one_of({"sharedMemory": ""}),
    switch("ingress", hosts=["a.example"]),
    switch("httpRoute", parentRefs=[{"name": "g"}]),
    switch("inferencePool", endpointPicker={"name": "p"}),
    switch("networkPolicy", **{"from": [{"podSelector": {}}]}),
    switch("podDisruptionBudget"),
    switch("download", models=[{"name": "a/b"}]),
).map(merged)


@given(ANY_VALUES, st.from_regex(DNS_LABEL, fullmatch=True).map(lambda name: name[:53].rstrip("-")))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_values(values: dict[str, Any], name: str) -> None:
    """What Helm allows as a release's name, and options in any combination."""
    check(render(values, name=name))


HELPERS = (CHART / "templates" / "_helpers.tpl").read_text()
# The keys that the helper of the checksum omits.
RELOADED = set(re.findall(r'"([A-Z_]+)"', " ".join(re.findall(r"omit \$config (.*) -}}", HELPERS))))


class TestOneByOne:
    """What a single value does."""

    def test_defaults_serve_the_demo_models_on_a_gpu(self) -> None:
        chart = render({})
        assert chart.server["resources"]["limits"] == {"nvidia.com/gpu": "1"}
        assert '"tfoai-demo-dates"' in chart.config
        assert chart.pod["spec"]["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
        # A full node can not deadlock an upgrade.
        assert chart.workload["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
        assert {o["kind"] for o in chart.objects} == {"ConfigMap", "Deployment", "Service", "ServiceAccount", "Pod"}

    def test_without_a_gpu_nothing_speaks_of_one(self) -> None:
        chart = render({"gpu": {"count": 0}})
        assert "limits" not in chart.server["resources"] and "tolerations" not in chart.pod["spec"]
        assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"} in chart.server["env"]

    def test_own_models_come_instead_of_the_demo_models(self) -> None:
        chart = render({"config": {"MODELS": {"m": {"NAME": "x/y", "TYPE": "CausalLM"}}}})
        assert "demo" not in chart.config

    @pytest.mark.parametrize(
        ("values", "rolls"),
        [
            ({"config": {"MODELS": {"m": {"NAME": "x/y", "TYPE": "Seq2Seq"}}}}, False),
            ({"config": {"MAX_QUEUE": 7}}, False),
            ({"config": {"MAX_QUEUE": 7}, "rollOnConfigChange": True}, True),
            ({"config": {"MODELS": {"m": {"NAME": "x/y", "TYPE": "Seq2Seq"}}, "MODEL_RELOAD": "restart"}}, True),
            ({"config": {"DRAIN_TIMEOUT": 61}}, True),  # a running pod's grace can not be changed
            ({"config": {"PORT": 8001}}, True),
            ({"config": {"MODELS": {"m": {"NAME": "x/y", "TYPE": "Seq2Seq"}}}, "rollOnConfigChange": True}, True),
            ({"image": {"tag": "0.0.0"}}, True),
            ({"auth": {"tokens": {"me": "other"}}}, False),
            ({"service": {"port": 81}}, False),
            ({"commonLabels": {}}, False),
        ],
    )
    def test_what_rolls_the_pods(self, values: dict[str, Any], rolls: bool) -> None:
        base = {"config": {"MODELS": {"m": {"NAME": "x/y", "TYPE": "CausalLM"}}}, "auth": {"tokens": {"me": "one"}}}
        base |= {"rollOnConfigChange": values.get("rollOnConfigChange", False)}
        if "MODEL_RELOAD" in values.get("config", {}):
            base["config"]["MODEL_RELOAD"] = values["config"]["MODEL_RELOAD"]
        changed = {**base, **values, "config": {**base["config"], **values.get("config", {})}}
        assert (render(base).pod != render(changed).pod) is rolls

    def test_what_rolls_the_pods_is_what_the_server_does_not_reload(self) -> None:
        """A key is left out of the checksum if, and only if, a running server takes it up."""
        live = pytest.importorskip("app.reload").LIVE_KEYS
        assert {key.upper() for key in live} - {"BEARER_TOKENS"} == RELOADED

    def test_nobody_s_token_is_in_plain_sight(self) -> None:
        chart = render(CASES["public"])
        assert chart.one("Secret")["data"]["bob.smith"] == "c2stYm9iLTAxMjM0NTY3ODk="
        everything_else = [o for o in chart.objects if o["kind"] != "Secret"]
        assert "sk-bob" not in str(everything_else) and "sk-bob" not in chart.notes
        chart = render({"hub": {"token": "hf_canary"}})
        assert "hf_canary" not in str([o for o in chart.objects if o["kind"] != "Secret"]) + chart.notes

    def test_the_body_limit_of_the_ingress_is_the_server_s(self) -> None:
        def annotations(controller: str) -> dict[str, str]:
            found: dict[str, str] = render(CASES[f"ingress {controller}"]).one("Ingress")["metadata"]["annotations"]
            return found

        nginx = annotations("nginx")
        assert nginx["nginx.ingress.kubernetes.io/proxy-body-size"] == "5000000"
        assert nginx["nginx.ingress.kubernetes.io/proxy-read-timeout"] == "3600"
        assert nginx["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"
        assert annotations("haproxy")["haproxy.org/backend-config-snippet"] == "option http-no-delay"
        assert annotations("alb")["alb.ingress.kubernetes.io/load-balancer-attributes"] == "idle_timeout.timeout_seconds=3600"

    def test_own_annotations_win(self) -> None:
        own = {"nginx.ingress.kubernetes.io/proxy-read-timeout": "60", "a": "b"}
        ingress = {"enabled": True, "hosts": ["x"], "controller": "nginx", "annotations": own}
        assert own.items() <= render({"ingress": ingress}).one("Ingress")["metadata"]["annotations"].items()

    def test_a_closed_network_lets_in_and_out_what_is_named(self) -> None:
        spec = render(CASES["air-gapped"]).one("NetworkPolicy")["spec"]
        api, metrics = spec["ingress"]
        assert api["from"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "apps"}
        assert metrics["ports"] == [{"port": "admin", "protocol": "TCP"}] and len(metrics["from"]) == 1
        # Offline: names, and nothing else.
        assert [p["port"] for rule in spec["egress"] for p in rule["ports"]] == [53, 53]
        spec = render({"networkPolicy": {"enabled": True}}).one("NetworkPolicy")["spec"]
        assert [p["port"] for rule in spec["egress"] for p in rule["ports"]] == [53, 53, 443]

    def test_the_scaler_asks_for_the_pods_of_this_release(self) -> None:
        chart = render(CASES["pool"], name="blue", namespace="prod")
        (trigger,) = chart.one("ScaledObject")["spec"]["triggers"]
        assert trigger["metadata"]["query"] == 'sum(tfoai_requests_waiting{namespace="prod", pod=~"blue-tfoai-.+"})'

    def test_the_download_takes_the_models_of_the_hub(self) -> None:
        models = {
            "a": {"NAME": "org/model", "TYPE": "CausalLM", "MODEL_CONFIG": {"revision": "v1"}},
            "b": {"NAME": "/models/local", "TYPE": "CausalLM"},
            "c": {"NAME": "tfoai-demo", "TYPE": "CausalLM"},
            "d": {"NAME": "org/off", "TYPE": "CausalLM", "ENABLED": False},
            "e": {"NAME": "./x/y", "TYPE": "CausalLM"},
        }
        data = render({"download": {"enabled": True}, "config": {"MODELS": models}}).one("ConfigMap")["data"]
        wanted = [{"name": "org/model", "revision": "v1"}]
        assert json.loads(data["download.json"]) == {"ignore_patterns": [], "models": wanted}
        compile(data["download.py"], "download.py", "exec")

    def test_helm_test_asks_a_model_that_can_answer(self) -> None:
        pods = {o["metadata"]["name"]: o["spec"]["containers"][0]["args"] for o in render(CASES["public"]).all("Pod")}
        assert list(pods) == [f"tfoai-test-{check}" for check in ("models", "completion", "chat", "unauthorized")]
        assert pods["tfoai-test-chat"][1:] == ["chat", "http://tfoai:80", "tfoai-demo", "/etc/tfoai/tokens"]
        compile(pods["tfoai-test-chat"][0], "helm_test.py", "exec")
        summarize = {"MODELS": {"s": {"NAME": "a/b", "TYPE": "Seq2Seq"}}}
        names = [o["metadata"]["name"] for o in render({"config": summarize}).all("Pod")]
        assert names == ["tfoai-test-models", "tfoai-test-completion"]  # no chat, no tokens
        embed = {"MODELS": {"s": {"NAME": "a/b", "TYPE": "Embedding"}}}
        names = [o["metadata"]["name"] for o in render({"config": embed}).all("Pod")]
        assert names == ["tfoai-test-models", "tfoai-test-embedding"]

    @pytest.mark.parametrize("case", CASES)
    def test_notes_name_the_next_commands(self, case: str) -> None:
        chart = render(CASES[case], namespace="somewhere")
        kind, name = chart.workload["kind"].lower(), chart.workload["metadata"]["name"]
        assert f"kubectl --namespace somewhere rollout status {kind}/{name}" in chart.notes
        assert "OPENAI_BASE_URL=http" in chart.notes
        assert ("Everyone who can reach the Service" in chart.notes) == ("tokens" not in str(chart.server["volumeMounts"]))
        for broken in ("<no value>", "%!", "map["):
            assert broken not in chart.notes
