"""The arms that ``cnnkern bench --vs`` puts beside ours: each computes what we compute, or says why it does not.

Each arm runs in the worker process of the benchmark: the libraries' settings and thread pools stay out of this one.
"""

from __future__ import annotations

import pytest

from cnnkern_bench import peers
from cnnkern_bench.machine import available_cpus
from cnnkern_bench.process import Worker

ARMS = [arm for arm, peer in peers.PEERS.items() if peers.installed(peer.library)]
CASES = {  # case -> libraries that must compute it
    "conv2d:mb2ic8ih11oc6kh3sh2ph1@bias=1@act=relu@res=1": "torch onnxruntime openvino jax",
    "conv2d:g2mb2ic8ih11oc6kh3ph1@layout=NHWC": "torch jax",
    "conv2d:mb1ic8ih11oc6kh3dh1ph2@dt=f64": "torch jax",
    "conv2d:mb1ic4ih4oc4oh2kh3sh2qh1": "onnxruntime openvino jax",
    "conv1d:mb2ic8iw20oc6kw3pw1": "onnxruntime openvino jax",
    "conv3d:mb2ic4id6oc6kd3pd1": "torch onnxruntime openvino jax",
    "conv2d_grad_input:mb2ic8ih12oc6oh6kh3sh2ph1": "torch onnxruntime openvino jax",
    "conv2d_grad_input:mb2ic8ih12oc6oh6kh3sh2ph1@layout=NHWC": "torch jax",
    "conv2d_grad_weight:g2mb2ic8ih11oc6kh3sh2ph1": "torch jax",
    "max_pool2d:mb2ic8ih12kh3sh2@ceil=1": "torch onnxruntime openvino jax",
    "max_pool2d:mb2ic8ih11kh3sh2ph1@layout=NHWC": "torch jax",
    "max_pool2d_grad:mb2ic8ih12kh3sh2@ceil=1": "torch jax",
    "avg_pool2d:mb2ic8ih11kh3sh2ph1@pad=exclude": "torch onnxruntime openvino jax",
    "avg_pool2d_grad:mb2ic8ih11kh3sh2ph1": "torch jax",
    "local_response_norm:mb1ic16ih7@k=2": "torch onnxruntime openvino",
    "batch_norm:mb2ic8ih7@bias=1@weight=1": "torch",
}
OPEN = {"do": "open", "threads": 1, "seed": 0, "offset": 0, "check": "sampled"}


@pytest.fixture(scope="module", params=ARMS)
def arm(request):
    peer = peers.PEERS[request.param]
    worker = Worker(available_cpus(), dict(peer.environment))
    yield request.param, worker
    worker.close()


def test_the_usual_peers_are_installed() -> None:
    assert {peers.PEERS[arm].library for arm in ARMS} >= {"torch", "onnxruntime", "jax"}


def test_peers_agree_with_the_definition(arm) -> None:
    name, worker = arm
    library = peers.PEERS[name].library
    for case, computed_by in CASES.items():
        answer = worker.ask(arm=name, case=case, **OPEN)
        if library in computed_by.split() and not (name == "torch_channels_last" and "1d" in case):
            assert answer.get("ok"), f"{name} {case}: {answer}"
        else:
            assert answer.get("cannot") or answer.get("ok"), f"{name} {case}: {answer}"


def test_peers_are_timed_by_the_same_slots(arm) -> None:
    name, worker = arm
    assert worker.ask(arm=name, case=next(iter(CASES)), **OPEN)["ok"]
    calls = worker.ask(do="calibrate", arm=name, min_sample=1e-4)["calls"]
    answer = worker.ask(do="slot", arm=name, calls=calls, samples=3)
    assert len(answer["seconds"]) == 3 and min(answer["seconds"]) > 0
    assert worker.ask(do="close") == {}
