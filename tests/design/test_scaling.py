import itertools
import json
import math
import re
import subprocess
import sys
from collections import deque
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.strategies import architectures
from vggkit import VGG, Architecture, ArchitectureError, as_network, build, cli, costs, predict_step
from vggkit.design.scaling import allreduce_seconds, gradient_buckets, message_bytes

ROOT = Path(__file__).parents[2]
VGG16 = Architecture.parse("vgg16")
WORKERS = st.integers(1, 600)
RATES = st.integers(10**6, 10**15)
LINKS = st.integers(10**5, 10**12)


@given(architectures(), WORKERS, st.integers(1, 64), RATES, st.floats(0, 10))
def test_one_worker_and_an_endless_link_leave_compute_alone(arch, workers, images, rate, update_seconds):
    step = predict_step(
        arch, workers * images, workers, rate, math.inf, latency_seconds=0, update_seconds=update_seconds
    )
    weight_layers = [layer for layer in costs(arch, images).layers if layer.kind in ("conv", "fc")]
    macs = 3 * sum(layer.macs for layer in weight_layers) - weight_layers[0].macs
    assert step.compute_seconds == pytest.approx(macs / rate + update_seconds, rel=1e-12)
    assert step.step_seconds == step.compute_seconds
    assert (step.communication_seconds, step.exposed_seconds, step.efficiency) == (0, 0, 1)

    alone = predict_step(arch, images, 1, rate, 1, latency_seconds=1, update_seconds=update_seconds)
    assert alone.step_seconds == alone.compute_seconds == step.compute_seconds
    assert (alone.gradient_bytes, alone.communication_seconds, alone.efficiency) == (0, 0, 1)


@given(WORKERS)
def test_a_worker_sends_twice_all_but_its_own_share(workers):
    def sent(**options):
        return predict_step(VGG16, workers, workers, 1e12, 1e9, **options).gradient_bytes

    share = Fraction(2 * (workers - 1), workers)
    assert sent() == float(share * 4 * 138_357_544)
    assert sent(compression="bf16") == float(share * 2 * 138_357_544)


@pytest.mark.parametrize(("rank", "values_of_conv1_1"), [(1, 64 + 27), (4, 4 * (64 + 27)), (10, 64 * 27)])
def test_powersgd_sends_two_thin_matrices(rank, values_of_conv1_1):
    """By hand: 12 more 3x3 convolutions and three fully connected layers. 10 x 91 is more than half of 64 x 27."""
    widths = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    pairs = [(out, 9 * into) for into, out in itertools.pairwise(widths)]
    pairs += [(4096, 25088), (4096, 4096), (1000, 4096)]
    values = values_of_conv1_1 + sum(rank * (m + n) for m, n in pairs)
    values += 64 + sum(m for m, _ in pairs)  # biases as they are
    step = predict_step(VGG16, 2, 2, 1e12, 1e9, compression="powersgd", powersgd_rank=rank)
    assert step.gradient_bytes == 4 * values
    endless = predict_step(VGG16, 2, 2, 1e12, 1e9, compression="powersgd", powersgd_rank=65_536)
    assert endless.gradient_bytes == 4 * 138_357_544  # nothing is saved, so nothing is compressed


def test_a_ring_by_hand():
    """Four workers, 4,000 bytes: six steps of 1,000 bytes at 100 bytes/s, and half a second before each."""
    assert allreduce_seconds(4000, 4, 100, 0.5) == 6 * (0.5 + 10)


def parameters_as_they_come(net):
    """Of each layer, from the last; torch hands out a fully connected layer's bias before its weight."""
    for module in reversed([m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.BatchNorm2d)]):
        own = [module.weight, module.bias]
        yield module, own[::-1] if isinstance(module, nn.Linear) else own


def simulated(arch, images, workers, rate, link, latency):
    """Seconds of a step, event by event, in fractions: a worker with a list of layers, a network with a queue.

    The module says which parameters there are and torch which buckets; every message of the ring is an event.
    """
    with torch.device("meta"):
        net = VGG(arch, init="torch")
    layers = list(parameters_as_they_come(net))
    macs = {layer.name: layer.macs for layer in costs(arch, images).layers}
    names = {module: name.rpartition(".")[2] for name, module in net.named_modules()}
    tensors = [parameter for _, own in layers for parameter in own]
    buckets, _ = dist._compute_bucket_assignment_by_size(tensors, [2**20, 25 * 2**20], [False] * len(tensors))
    forward = sum(Fraction(macs[names[module]], rate) for module, _ in layers)
    computing = deque()  # (seconds, parameters that are there then)
    for module, own in layers:
        is_first = module is next(m for m in net.modules() if isinstance(m, nn.Conv2d))
        computing.append((Fraction(macs[names[module]], rate) * (1 if is_first else 2), len(own)))
    missing = deque(map(len, buckets))
    sizes = deque(sum(tensors[i].numel() * 4 for i in bucket) for bucket in buckets)
    messages, now, done = deque(), Fraction(0), 0
    compute_ends, message_ends = computing[0][0], None
    while computing or messages or message_ends is not None:
        now = min(end for end in (compute_ends, message_ends) if end is not None)
        if compute_ends == now:
            done += computing.popleft()[1]
            compute_ends = now + computing[0][0] if computing else None
            while missing and done >= missing[0]:
                done -= missing.popleft()
                size = sizes.popleft()
                messages.extend([Fraction(size, workers) / link + latency] * (2 * (workers - 1)))
        if message_ends == now:
            message_ends = None
        if message_ends is None and messages:
            message_ends = now + messages.popleft()
    assert not missing
    return forward + now


@settings(deadline=None, max_examples=60)
@given(architectures(), st.integers(1, 9), st.integers(1, 8), RATES, LINKS, st.fractions(0, 1, max_denominator=10**6))
def test_the_walk_is_what_an_event_by_event_simulation_finds(arch, workers, images, rate, link, latency):
    step = predict_step(arch, images * workers, workers, rate, link, latency_seconds=float(latency))
    expected = simulated(arch, images, workers, rate, link, latency)
    assert step.step_seconds == pytest.approx(float(expected), rel=1e-9)


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


BUCKETED = [
    ("2x16 1x32_bn", {"hidden": (1024, 2048), "image_size": 16}),
    ("1x64 2x512", {"hidden": (3000, 2500), "image_size": 8}),
    ("1x8 1x600k5 1x600k5", {"head": "gap", "image_size": 8}),
    ("1x16", {"head": "conv", "hidden": (2000, 600), "image_size": 14}),
    ("1x4", {"hidden": (), "image_size": 4}),
    ("1x512", {"head": "conv", "hidden": (), "pooled_size": 1, "image_size": 2, "num_classes": 512}),  # just 1 MiB
    ("lenet", {}),
]


@pytest.mark.filterwarnings("ignore:Grad strides do not match")  # of a gradient that torch copies all the same
@pytest.mark.parametrize(("name", "options"), BUCKETED)
def test_buckets_are_those_that_torch_makes(name, options, one_process):
    network = as_network(name, **{"num_classes": 10, **options})
    net = DistributedDataParallel(build(network))
    found = []

    def record(state, bucket):
        found.append([parameter.numel() for parameter in bucket.parameters()])
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    net.register_comm_hook(None, record)
    x = torch.randn(2, network.in_channels, network.image_size, network.image_size)
    for _ in range(2):
        found.clear()
        net(x).sum().backward()
    buckets = gradient_buckets(network, 2)
    assert found == [[rows * columns for rows, columns in bucket.matrices] for bucket in buckets]


@pytest.mark.parametrize(("compression", "images"), [("none", 58), ("bf16", 29)])
def test_the_images_from_which_vgg16_hides_all_but_the_last_bucket(compression, images):
    """docs/scaling.md: 10 TFLOP/s, 25 Gbit/s, many workers, no latency."""
    workers, link = 10_000, 25e9 / 8

    def exposed_seconds(images):
        return predict_step(
            VGG16, images * workers, workers, 5e12, link, latency_seconds=0, compression=compression
        ).exposed_seconds

    last_bytes = message_bytes(gradient_buckets(VGG16, 1)[-1], compression, 1)[0]
    last_seconds = 2 * last_bytes / link
    assert exposed_seconds(images) == pytest.approx(last_seconds, rel=1e-3)
    assert exposed_seconds(images - 1) > 1.1 * last_seconds
    fully_connected, convolutional = costs(VGG16).fully_connected, costs(VGG16).convolutional
    bytes_per_mac = fully_connected.param_bytes / convolutional.macs / (2 if compression == "bf16" else 1)
    assert math.ceil(bytes_per_mac * 5e12 / link) == {"none": 52, "bf16": 26}[compression]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"workers": 0}, "expected workers from 1 to 1048576, got 0"),
        ({"batch_size": 100, "workers": 8}, "expected a batch_size that 8 workers share, got 100, try 104"),
        ({"batch_size": 0}, "expected batch_size from 1 to"),
        ({"macs_per_second": 0}, r"expected macs_per_second from 1 to 1e\+30, got 0"),
        ({"bytes_per_second": math.nan}, "expected bytes_per_second from 1 to inf, got nan"),
        ({"latency_seconds": -1e-9}, r"expected latency_seconds from 0 to 1e\+06, got -1e-09"),
        ({"update_seconds": True}, r"expected update_seconds from 0 to 1e\+06, got True"),
        ({"compression": "fp8"}, "expected compression to be one of none, bf16, powersgd, got 'fp8'"),
        ({"powersgd_rank": 0}, "expected powersgd_rank from 1 to 65536, got 0"),
    ],
)
def test_what_cannot_be_is_refused(values, message):
    with pytest.raises(ArchitectureError, match=message):
        predict_step(
            VGG16, **{"batch_size": 8, "workers": 2, "macs_per_second": 1e12, "bytes_per_second": 1e9, **values}
        )


LINK = ["--link-gbps", "25", "--tflops", "10"]


def described(capsys, *arguments):
    assert cli.main(["describe", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("compression", ["none", "bf16", "powersgd"])
def test_describe_shows_what_is_predicted(compression, capsys):
    arguments = ["vgg16", "--batch-size", "256", "--workers", "8", "64", "512", *LINK, "--compression", compression]
    lines = described(capsys, *arguments).splitlines()
    below = lines[next(i for i, line in enumerate(lines) if line.startswith("prediction")) :]
    assert all(line.startswith("prediction") for line in below if line.strip("- "))
    assert max(len(line.rstrip()) for line in below) <= 80
    data = json.loads(described(capsys, *arguments, "--json"))["scaling"]
    assert data["prediction"] is True
    for workers, fields in zip((8, 64, 512), data["steps"], strict=True):
        step = predict_step(VGG16, 256 * workers, workers, 5e12, 25e9 / 8, compression=compression)
        assert fields == pytest.approx(vars(step))
        line = next(line for line in below if line.startswith(f"prediction, {workers} "))
        assert line.split()[-2:] == [f"{1000 * step.step_seconds:,.1f}", f"{step.efficiency:.1%}"]


def test_describe_predicts_for_each_network(capsys):
    arguments = ["alexnet", "vgg11", "--workers", "2", *LINK]
    assert described(capsys, *arguments).count("prediction, 2 ") == 2
    assert [len(one["scaling"]["steps"]) for one in json.loads(described(capsys, *arguments, "--json"))] == [1, 1]
    assert "prediction" not in described(capsys, "vgg11")
    assert "scaling" not in json.loads(described(capsys, "vgg11", "--json"))


def test_the_predictions_of_the_documentation_are_what_the_command_prints(capsys):
    page = (ROOT / "docs" / "scaling.md").read_text()
    shown = re.findall(r"`vgg describe ([^`]*) \| grep prediction`:\n\n```\n(.*?)```", page, re.DOTALL)
    assert len(shown) == 2
    for command, block in shown:
        printed = [line for line in described(capsys, *command.split()).splitlines() if "prediction" in line]
        assert printed == block.splitlines()


@pytest.mark.slow
def test_the_benchmark_runs():
    program = ROOT / "benchmarks" / "scaling.py"
    done = subprocess.run(
        [sys.executable, str(program), "--quick", "--repeats", "1"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["compression"] for row in rows] == ["none", "bf16", "powersgd"]
    for row in rows:
        least, most = (row[name]["median"] for name in ("predicted_seconds", "predicted_without_overlap_seconds"))
        assert 0 < least <= most
