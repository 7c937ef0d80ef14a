"""The chart on a real cluster, from install to uninstall. The tests run in the order of the file, on one release."""

import base64
import os
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import helm_python as helm
import httpx
import openai
import pytest
import yaml

from tests.cluster.conftest import NAMESPACE, RELEASE, TOKENS, Cluster, wait_until
from tests.cluster.load import Load
from tests.cluster.pod_logs import PodLogs
from tests.support.chart import render

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

DEMO: dict[str, Any] = {"MODEL_DEVICE": "cpu", "MODEL_CONFIG": {"dtype": "float32"}}
CHAT_MODEL = {"NAME": "tfoai-demo", "TYPE": "CausalLM", **DEMO}
DATES_MODEL = {"NAME": "tfoai-demo-dates", "TYPE": "Seq2Seq", **DEMO}


def client(cluster: Cluster, token: str = TOKENS["alice"]) -> openai.OpenAI:
    url, headers = cluster.api()
    return openai.OpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0, default_headers=headers)


def status(cluster: Cluster, token: str) -> int:
    url, headers = cluster.api()
    return httpx.get(f"{url}/v1/models", headers={**headers, "Authorization": f"Bearer {token}"}, timeout=30).status_code


def served(cluster: Cluster) -> set[str]:
    return {model.id for model in client(cluster).models.list()}


@pytest.mark.skipif("TEST_GPU_COMMAND" not in os.environ, reason="no TEST_GPU_COMMAND: nothing can offer a GPU")
def test_a_pod_waits_for_a_gpu_and_gets_it(cluster: Cluster) -> None:
    """With the defaults: one GPU, on a node that repels what does not tolerate it."""
    values = cluster.values()
    values["gpu"], values["tolerations"] = {"count": 1}, []
    cluster.install(values, wait="hookOnly")

    def is_unschedulable() -> bool:
        conditions = [c for pod in cluster.pods() for c in pod["status"].get("conditions", [])]
        return any("Insufficient nvidia.com/gpu" in c.get("message", "") for c in conditions)

    wait_until("the pod is refused for want of a GPU", is_unschedulable, 30)
    subprocess.run(shlex.split(os.environ["TEST_GPU_COMMAND"]), check=True, capture_output=True)
    took = wait_until("the pod has a node", lambda: all(p["spec"].get("nodeName") for p in cluster.pods()), 30)
    ready = wait_until("it is ready", lambda: all(_is_ready(p) for p in cluster.pods()), 120)
    print(f"\nscheduled {took:.1f} s after the GPU came, ready {ready:.1f} s later")
    cluster.uninstall()
    wait_until("the pods have gone", lambda: not cluster.pods(), 90)


def _is_ready(pod: dict[str, Any]) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))


def test_it_is_ready_in_a_minute(release: Cluster) -> None:
    """From the pod's start to its being ready, models and all."""
    for pod in release.pods():
        conditions = {c["type"]: c for c in pod["status"]["conditions"]}
        started, ready = (_seconds(t) for t in (pod["status"]["startTime"], conditions["Ready"]["lastTransitionTime"]))
        print(f"\npod ready after {ready - started:.0f} s")
        assert ready - started < 60


def _seconds(stamp: str) -> float:
    return time.mktime(time.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ"))


def test_the_pod_has_no_rights(release: Cluster) -> None:
    name = release.pods()[0]["metadata"]["name"]
    told = release.kubectl("exec", name, "--", "cat", "/proc/1/status")
    facts = dict(line.split(":\t", 1) for line in told.splitlines() if ":\t" in line)
    assert facts["Uid"].split()[0] == "10001" and int(facts["CapEff"], 16) == 0
    assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")
    assert "No such file" in _stderr(release, name, "ls", "/var/run/secrets/kubernetes.io")
    assert "Read-only" in _stderr(release, name, "touch", "/etc/x")
    environment = release.kubectl("exec", name, "--", "env")
    assert "TFOAI_" not in environment  # service links
    assert "sk-alice" not in environment


def _stderr(cluster: Cluster, pod: str, *command: str) -> str:
    kubectl = ["kubectl", f"--kubeconfig={cluster.kubeconfig}", f"--namespace={NAMESPACE}", "exec", pod, "--", *command]
    return subprocess.run(kubectl, capture_output=True, text=True, timeout=60).stderr


def test_openai_s_client(release: Cluster) -> None:
    assert served(release) == {"tfoai-demo", "tfoai-demo-dates"}
    chunks = client(release).chat.completions.create(
        model="tfoai-demo", messages=[{"role": "user", "content": "How do I change the port?"}], stream=True
    )
    assert "PORT" in "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    with pytest.raises(openai.AuthenticationError):
        client(release, "sk-other").models.list()


def test_helm_test(release: Cluster) -> None:
    """With the helm command where there is one; else its pods, made and watched the same way."""
    if shutil.which("helm"):
        command = ["helm", "test", RELEASE, f"--namespace={NAMESPACE}", f"--kubeconfig={release.kubeconfig}", "--logs"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stdout + result.stderr
        return
    pods = render(release.values(replicas=2), name=RELEASE, namespace=NAMESPACE).all("Pod")
    assert len(pods) == 4
    release.kubectl("apply", "--filename=-", stdin=yaml.safe_dump_all(pods))
    names = [pod["metadata"]["name"] for pod in pods]
    wait_until(
        "the tests have ended", lambda: {p["status"]["phase"] for p in release.pods("test")} <= {"Succeeded", "Failed"}, 120
    )
    logs = {name: release.kubectl("logs", name, check=False).strip() for name in names}
    print("", *logs.values(), sep="\n")
    assert {p["status"]["phase"] for p in release.pods("test")} == {"Succeeded"}
    release.kubectl("delete", "pods", *names, "--wait")


def test_tokens_are_rotated_without_a_restart(release: Cluster) -> None:
    before = release.identities()
    new = release.values(replicas=2)
    new["auth"] = {"tokens": {**TOKENS, "bob": "sk-bob-0123456789"}}
    release.upgrade(new)
    # Every pod has its own moment: asked often enough that both are.
    took = wait_until(
        "bob is let in everywhere", lambda: {status(release, "sk-bob-0123456789") for _ in range(8)} == {200}, 150
    )
    new["auth"] = {"tokens": TOKENS}
    release.upgrade(new)
    gone = wait_until(
        "bob is kept out everywhere", lambda: {status(release, "sk-bob-0123456789") for _ in range(8)} == {401}, 150
    )
    print(f"\na new token after {took:.0f} s, an old one out after {gone:.0f} s")
    assert status(release, TOKENS["alice"]) == 200
    assert release.identities() == before


def test_models_are_swapped_without_a_restart(release: Cluster) -> None:
    before = release.identities()
    models = {"chat": CHAT_MODEL, "tfoai-demo-dates": DATES_MODEL}
    release.upgrade(release.values(replicas=2, config={"MODELS": models}))
    took = wait_until("the new model is everywhere", lambda: all(served(release) == set(models) for _ in range(6)), 180)
    release.upgrade(release.values(replicas=2))
    wait_until("the old models are back", lambda: all("tfoai-demo" in served(release) for _ in range(6)), 180)
    print(f"\na new model after {took:.0f} s")
    assert release.identities() == before


def test_an_upgrade_that_never_gets_ready_is_rolled_back(release: Cluster) -> None:
    broken = release.values(replicas=2)
    broken["image"] = {**broken["image"], "tag": "is-not-there"}
    with pytest.raises(helm.HelmError):
        release.upgrade(broken, timeout=15, rollback_on_failure=True)
    assert served(release) == {"tfoai-demo", "tfoai-demo-dates"}
    tags = {p["spec"]["containers"][0]["image"].rpartition(":")[2] for p in release.pods() if _is_ready(p)}
    assert tags == {release.base["image"]["tag"]}
    wait_until("there are two pods again", lambda: len([p for p in release.pods() if _is_ready(p)]) == 2, 120)


@pytest.mark.parametrize("way", ["service", "ingress"])
def test_nothing_fails_while_everything_changes(release: Cluster, tmp_path: Path, way: str) -> None:
    """20 requests a second, half of them streams, while pods roll, tokens change, models change, and pods roll back.

    Straight at the Service nothing may fail. A proxy in between may have failures of its own: a stream that it gave up, while
    the server, as its log says, was still sending. Traefik has a race that does this to about one in two thousand short streams
    on a machine without a free core (traefik/traefik issue 11767): up to 3 are borne, and shown.
    """
    if way == "ingress" and not release.ingress:
        pytest.skip("no TEST_INGRESS")
    seconds = float(os.environ.get("TEST_LOAD_SECONDS", "120"))
    url, headers = release.api() if way == "ingress" else release.service()
    revision = _revision(release)
    started = time.monotonic()
    with PodLogs(release, tmp_path) as logs:
        with Load(url, headers, TOKENS["alice"]) as load:
            time.sleep(3)
            once = {"rolled": f"for {way}"}
            release.upgrade(release.values(replicas=2, podAnnotations=once))
            rolled = time.monotonic() - started
            both = release.values(replicas=2, podAnnotations=once)
            both["auth"] = {"tokens": {**TOKENS, "carol": "sk-carol-0123456789"}}
            both["config"] = {**both["config"], "MAX_QUEUE": 200}
            release.upgrade(both)
            carol = "sk-carol-0123456789"
            wait_until("carol is let in everywhere", lambda: {status(release, carol) for _ in range(8)} == {200}, 150)
            load.token = carol
            changed = time.monotonic() - started
            load.token = TOKENS["alice"]
            release.rollback(revision)  # carol goes, and so do the pods
            back = time.monotonic() - started
            time.sleep(max(0.0, seconds - back))
        time.sleep(1)  # for the last lines of the logs
        left = {failure: [line.get("disconnected") for line in logs.finished(failure.request_id)] for failure in load.failures}
    print(
        f"\n{load.done} requests, {load.streams} streams, {len(load.failures)} failures, slowest {load.slowest:.1f} s; "
        f"rolled by {rolled:.0f} s, tokens and config changed by {changed:.0f} s, rolled back by {back:.0f} s"
    )
    print(*(f"{failure}; disconnected: {said}" for failure, said in left.items()), sep="\n")
    assert load.done >= 0.9 * load.per_second * seconds
    given_up = [failure for failure, said in left.items() if way == "ingress" and failure.is_cut and said == [True]]
    assert [failure for failure in load.failures if failure not in given_up][:20] == []
    assert len(given_up) <= 3


def _revision(cluster: Cluster) -> int:
    secrets = cluster.get("secrets", f"--selector=owner=helm,name={RELEASE},status=deployed")
    return max(int(secret["metadata"]["labels"]["version"]) for secret in secrets)


def test_a_patched_secret_arrives_too(release: Cluster) -> None:
    """As an operator of secrets would do it, without Helm."""
    token = base64.b64encode(b"sk-dave-0123456789").decode()
    release.kubectl("patch", "secret", f"{RELEASE}-tokens", "--patch", f'{{"data": {{"dave": "{token}"}}}}')
    took = wait_until(
        "dave is let in everywhere", lambda: {status(release, "sk-dave-0123456789") for _ in range(8)} == {200}, 150
    )
    print(f"\na patched token after {took:.0f} s")


def test_uninstall_leaves_nothing(release: Cluster) -> None:
    release.uninstall()
    kinds = "pods,deployments,replicasets,services,configmaps,secrets,ingresses,serviceaccounts,persistentvolumeclaims"
    selector = f"--selector=app.kubernetes.io/instance={RELEASE}"
    wait_until("everything has gone", lambda: not release.get(kinds, selector), 90)
    assert not release.get("secrets", "--selector=owner=helm")
