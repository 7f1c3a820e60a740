"""A launch as Kubernetes objects: an MPIJob (kubeflow.org/v2beta1) and the ConfigMap of its parameters.

Owns: the manifests, and names that Kubernetes takes. Does not own: sending them, watching them, what their end means.

Horovod has Gloo and no MPI, so of the operator it takes Pods, keys and a host file: the launcher runs `horovodrun`,
which starts one rank per worker over ssh. A rank sees the launcher's environment and the worker's files; the
parameters are therefore mounted into all Pods, and `env` is given to the launcher.

The image has `python`, `horovodrun`, `ssh`, `/usr/sbin/sshd`, the code as its working directory, and a user with a
shell under the number `USER`. Of a `LaunchSpec` the paths `log` and `workdir` are of this machine and play no part.
The deadline counts from the launcher's start: how long workers may wait for a place is for the caller to bound.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any

from throughline.foundation.errors import ThroughlineError
from throughline.launch.protocol import COOL_DOWN_S, LaunchSpec, worker_environment
from throughline.usecase import Resources

API_VERSION, KIND = "kubeflow.org/v2beta1", "MPIJob"
USER = 1000
LONGEST_NAME = 63 - len("-worker-99999")  # the operator makes host names of it
LARGEST_PARAMETERS = 2**20  # what a ConfigMap holds

_PARAMETERS, _PARAMETERS_FOLDER = "parameters.json", "/etc/throughline/parameters"
_SSH_FOLDER, _SSH_PORT = "/etc/throughline/ssh", 2222  # a port that needs no privilege
_KEY = f"{_SSH_FOLDER}/id_rsa"

_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([-._A-Za-z0-9]{0,61}[A-Za-z0-9])?")
_LAUNCHER = Resources(cpu=0.1, memory="512Mi")


def job_name(text: str) -> str:
    """A name that Kubernetes takes, for any text: the text itself where it is one, else a readable part and a hash."""
    if _is_name(text):
        return text
    # surrogatepass: a file name may hold surrogates
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:10]
    readable = re.sub(r"[^a-z0-9]+", "-", text.lower()).lstrip("-0123456789")[: LONGEST_NAME - 1 - len(digest)]
    return f"{readable.strip('-') or 'job'}-{digest}"


def mpijob(
    spec: LaunchSpec,
    name: str,
    image: str,
    namespace: str,
    worker: Resources,
    *,
    labels: Mapping[str, str] | None = None,
    interface: str = "eth0",
) -> dict[str, Any]:
    """The MPIJob of a launch: a launcher, and a worker for each process. Its Pods wait for `parameters_of` it.

    labels: what it belongs to; they become `throughline/NAME` of the job and its Pods.
    interface: the network interface by which Pods reach each other; it spares horovodrun a search over ssh.
    """
    launch = f"Launch of {spec.module}"
    if not _is_name(name):
        rule = f"at most {LONGEST_NAME} of a-z, 0-9 and -, a letter first"
        raise ThroughlineError(
            f"{launch}: {name!r} cannot name a job in Kubernetes ({rule}): derive one with job_name."
        )
    if len(namespace) > 63 or not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", namespace):
        raise ThroughlineError(f"{launch}: {namespace!r} is no namespace of Kubernetes: correct it.")
    if not image or re.search(r"\s", image):
        raise ThroughlineError(f"{launch}: {image!r} is no image: give REGISTRY/NAME:TAG or a digest.")
    if not (math.isfinite(spec.timeout_s) and spec.timeout_s > 0):
        raise ThroughlineError(f"{launch}: a timeout of {spec.timeout_s} s: give one above 0.")
    marks = _labels(spec, name, labels or {})
    # a worker's own environment does not reach its rank
    variables = sorted(worker_environment(spec).items())
    launching = {
        "command": _horovodrun(spec, interface),
        "env": [{"name": key, "value": value.replace("$", "$$")} for key, value in variables],
        "resources": _resources(_LAUNCHER),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    working = {"command": _sshd(), "resources": _resources(worker)}
    pods = {"Launcher": (1, launching), "Worker": (spec.processes, working)}
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": marks,
            "annotations": {"throughline/module": spec.module},
        },
        "spec": {
            "slotsPerWorker": 1,
            # an earlier launcher could reach no worker over ssh, and its first failure is final
            "launcherCreationPolicy": "WaitForWorkersReady",
            "sshAuthMountPath": _SSH_FOLDER,
            "runPolicy": {
                "cleanPodPolicy": "Running",
                "backoffLimit": 0,  # whether it is tried again is decided where the reason is known
                "activeDeadlineSeconds": math.ceil(spec.timeout_s),
            },
            "mpiReplicaSpecs": {
                kind: {
                    "replicas": replicas,
                    "restartPolicy": "Never",
                    "template": _pod(name, kind.lower(), marks, {"image": image, **container}),
                }
                for kind, (replicas, container) in pods.items()
            },
        },
    }


def parameters_of(job: Mapping[str, Any], text: str) -> dict[str, Any]:
    """The ConfigMap with the content of a launch's parameters file; no place for secrets.

    job: the MPIJob as the API server answered its creation; it owns the ConfigMap, which goes when it goes.
    """
    size, meta = len(text.encode()), job["metadata"]
    if size > LARGEST_PARAMETERS:
        problem = f"parameters of {size} bytes, and a ConfigMap holds {LARGEST_PARAMETERS}"
        raise ThroughlineError(f"Launch {meta['name']}: {problem}: pass the address of what is large.")
    owner = {"apiVersion": API_VERSION, "kind": KIND, "name": meta["name"], "uid": meta["uid"]}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": _parameters_name(meta["name"]),
            "namespace": meta["namespace"],
            "labels": dict(meta["labels"]),
            "ownerReferences": [owner],
        },
        "immutable": True,
        "data": {_PARAMETERS: text},
    }


def _is_name(text: str) -> bool:
    return len(text) <= LONGEST_NAME and _NAME.fullmatch(text) is not None


def _parameters_name(name: str) -> str:
    return f"{name}-parameters"


def _labels(spec: LaunchSpec, name: str, more: Mapping[str, str]) -> dict[str, str]:
    for key, value in more.items():
        if not _LABEL_NAME.fullmatch(key) or (value and not _LABEL_NAME.fullmatch(value)):
            rule = "at most 63 of letters, digits, -, _ and ."
            problem = f"{key}={value!r} cannot be a label in Kubernetes ({rule})"
            raise ThroughlineError(f"Launch of {spec.module}: {problem}: shorten or replace it.")
    return {
        "app.kubernetes.io/name": "training",
        "app.kubernetes.io/instance": name,
        "app.kubernetes.io/part-of": "throughline",
        "app.kubernetes.io/managed-by": "throughline",
        **{f"throughline/{key}": value for key, value in sorted(more.items())},
    }


def _horovodrun(spec: LaunchSpec, interface: str) -> list[str]:
    elastic = [
        "--min-np", str(spec.min_processes), "--max-np", str(spec.processes), "--slots-per-host", "1",
        "--host-discovery-script", "/etc/mpi/discover_hosts.sh", "--blacklist-cooldown-range", *COOL_DOWN_S,
    ]  # fmt: skip
    return [
        "horovodrun", "-np", str(spec.processes), "--gloo", "--network-interfaces", interface, "--disable-cache",
        *(elastic if spec.min_processes else ["--hostfile", "/etc/mpi/hostfile"]),
        "--ssh-port", str(_SSH_PORT), "--ssh-identity-file", _KEY,
        # over ssh only an exit code arrives whole, and a child of a dead rank would hold its output for ever
        "python", "-m", "throughline.launch.guard", "0", "1",
        "python", "-u", "-m", spec.module, f"{_PARAMETERS_FOLDER}/{_PARAMETERS}",
    ]  # fmt: skip


def _sshd() -> list[str]:
    """sshd without root and without the image's configuration: only the operator's key is accepted."""
    options = {
        "Port": _SSH_PORT,
        "HostKey": _KEY,
        "AuthorizedKeysFile": f"{_SSH_FOLDER}/authorized_keys",
        "AuthenticationMethods": "publickey",
        "StrictModes": "no",  # the folder of a Secret is readable by all, and the mount read-only
        "UsePAM": "no",
        "PidFile": "none",
    }
    return ["/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", *(f"-o{key}={value}" for key, value in options.items())]


def _pod(name: str, component: str, labels: dict[str, str], container: dict[str, Any]) -> dict[str, Any]:
    own = {
        "name": component,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "parameters", "mountPath": _PARAMETERS_FOLDER, "readOnly": True}],
        **container,
    }
    return {
        "metadata": {"labels": {**labels, "app.kubernetes.io/component": component}},
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,  # horovodrun would pass these variables on to all ranks
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [own],
            "volumes": [{"name": "parameters", "configMap": {"name": _parameters_name(name)}}],
        },
    }


def _resources(given: Resources) -> dict[str, dict[str, str]]:
    """Memory and GPUs are limits. CPUs are not: a limit slows a rank now and then, and all wait for the slowest."""
    cpu = f"{given.cpu:g}" if given.cpu % 1 == 0 else f"{round(given.cpu * 1000)}m"
    limits = {"memory": given.memory, **({"nvidia.com/gpu": str(given.gpu)} if given.gpu else {})}
    return {"requests": {"cpu": cpu, **limits}, "limits": limits}
