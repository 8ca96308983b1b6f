"""The same run on Google Kubernetes Engine: a JobSet, or xpk's command for one.

A JobSet (jobset.sigs.k8s.io) holds one Job a slice, each with one pod a host. GKE gives every pod
what JAX needs to find the others: `TPU_WORKER_ID`, `TPU_WORKER_HOSTNAMES`, and `MEGASCALE_*` where
there are several slices (cloud.google.com/kubernetes-engine/docs/how-to/tpu-multislice).
"""

import re
import shlex
from collections.abc import Sequence
from typing import Any

from launch.pods.machines import chips_per_host, machine_of
from launch.pods.pod import Pod
from ratjax.errors import InputError

# Turns the exit status 0 of a run that was interrupted into one that is started again.
_RESTARTABLE = ("python", "-m", "launch.pods.restartable")


def check_image(image: str) -> None:
    """Raises `InputError` unless an image has a name that pins it."""
    if not image:
        raise InputError(
            "--image is required: GKE runs containers (Dockerfile says how to make one)"
        )
    name = image.rsplit("/", 1)[-1]
    if ":" not in name and "@sha256:" not in name:
        raise InputError(
            f"--image={image}: needs a tag or a digest, or restarts may run other code"
        )


def job_set(
    pod: Pod, image: str, program: Sequence[str], restarts: int, grace: int
) -> dict[str, Any]:
    """A manifest for `kubectl apply -f`, as JSON types.

    Args:
      pod: what to run on; its zone and project are the cluster's.
      image: the container.
      program: the command line in it.
      restarts: of the whole set: after a failure, or when spot machines are taken away.
      grace: seconds between the request to end and the end.
    """
    check_image(image)
    topology, selector = pod.topology, "cloud.google.com/gke-"
    container = {
        "name": "ratjax",
        "image": image,
        "command": [*_RESTARTABLE, *program],
        "env": [{"name": name, "value": value} for name, value in pod.environment.items()],
        "ports": [{"containerPort": 8471}, {"containerPort": 8080}],
        "resources": {
            kind: {"google.com/tpu": chips_per_host(topology)} for kind in ("requests", "limits")
        },
        "securityContext": {"privileged": True},
    }
    spot = {f"{selector}spot": "true"} if pod.spot else {}
    host = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": grace,
        "hostNetwork": True,
        "dnsPolicy": "ClusterFirstWithHostNet",
        "nodeSelector": {
            f"{selector}tpu-accelerator": machine_of(topology).gke_accelerator,
            f"{selector}tpu-topology": "x".join(map(str, topology.shape)),
            **spot,
        },
        "tolerations": [
            {"key": key, "operator": "Exists", "effect": "NoSchedule"}
            for key in ("google.com/tpu", *spot)
        ],
        **({"serviceAccountName": pod.service_account} if pod.service_account else {}),
        "containers": [container],
    }
    job = {
        "parallelism": topology.hosts,
        "completions": topology.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # a slice without one of its hosts is of no use: the set starts again
        "template": {"spec": host},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": pod.name,
            # One slice a node pool, which is how GKE makes them.
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": f"{selector}nodepool"},
        },
        "spec": {
            "failurePolicy": {"maxRestarts": restarts},
            "replicatedJobs": [
                {"name": "slice", "replicas": pod.slices, "template": {"spec": job}}
            ],
        },
    }


def xpk(
    pod: Pod, cluster: str, image: str, program: Sequence[str], restarts: int
) -> tuple[str, ...]:
    """The command with which xpk (github.com/AI-Hypercomputer/xpk, docs/usage) runs the same."""
    check_image(image)
    if not re.fullmatch(r"[a-z][-a-z0-9]*", cluster or ""):
        raise InputError(f"--cluster={cluster}: must name the cluster that xpk made")
    settings = [f"{name}={value}" for name, value in pod.environment.items()]
    return (
        *("xpk", "workload", "create"),
        f"--cluster={cluster}",
        f"--workload={pod.name}",
        f"--project={pod.project}",
        f"--zone={pod.zone}",
        f"--tpu-type={pod.topology.accelerator_type}",
        f"--num-slices={pod.slices}",
        f"--docker-image={image}",
        f"--max-restarts={restarts}",
        f"--command={shlex.join(['env', *settings, *_RESTARTABLE, *program])}",
    )
