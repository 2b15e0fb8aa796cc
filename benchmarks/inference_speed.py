"""How fast does a VGG classify on this CPU, beside the peers?

    python benchmarks/inference_speed.py [--cases TEXT ...] [--ways ours ncnn ...] [--repeats 7] [--threads N] [--save]

Every way holds the same weights (Kaiming's initialisation, which keeps the scale of activations) and the same random
images, in float32, with the same threads, in a process of its own; all processes of a case are there at once and take
turns, a turn being a warm-up and then forward passes for half a second, so that what disturbs the machine disturbs them
alike. A row holds the spread over the turns, the ratio of the best way of torch, ONNX Runtime and OpenVINO to ours in
the same turn, that of ncnn, the greatest difference of the logits from torch's in float64 (relative to their largest),
and the peak of resident memory, the weights and what a way made of them included. `head_ms` is the fully connected
layers alone.

The ways: `ours`, as `vgg predict` runs; `torch`, `torch channels_last` and `torch compiled` (channels_last, inductor);
`onnxruntime`; `openvino` (latency hint, float32); `ncnn`. One that is not installed is left out, and the row says so.
Predicted before the first row, from operations alone: F(4x4, 3x3) needs a quarter of the products, the transforms
take a third of the time, so 2.5 times torch channels_last in the convolutions, and 2 times with the fully connected
layers at batch 1, which are bound by reading 494 MB.
Prints a JSON line for each case; --save adds it to benchmarks/results/inference_speed.jsonl.
"""

import argparse
import importlib.metadata
import json
import os
import random
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from measuring import Case, row_header, save_row, spread
from torch import Tensor, nn

from vggkit import VGG, Architecture, costs
from vggkit.engines.accelerate import accelerate
from vggkit.engines.cpu import why_not_compiled
from vggkit.training.hardware import keep_freed_memory, use_huge_pages

Array = npt.NDArray[np.float32]
PACKAGES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "ncnn": "ncnn"}
TURN_SECONDS = 0.5


CASES = (
    Case("vgg16", 224, 1),
    Case("vgg16", 224, 8),
    Case("vgg11", 224, 1),
    Case("vgg19", 224, 1),
    Case("vgg16_bn", 224, 1),
    Case("vgg16", 96, 1),
    Case("vgg16", 448, 1),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=[""], help="parts of the names of the cases wanted")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--way", nargs=3, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    if flags.way is not None:
        serve(flags.way[0], Case(**json.loads(flags.way[1])), Path(flags.way[2]), flags.threads)
        return
    for case in CASES:
        if any(text in case.name for text in flags.cases):
            row = measure(case, flags.ways, flags.repeats, flags.threads)
            save_row("inference_speed", {**row_header(torch.device("cpu"), flags.repeats), **row}, flags.save)


def measure(case: Case, ways: list[str], repeats: int, threads: int) -> dict[str, Any]:
    """All ways of one case, in turns."""
    versions, missing = {}, []
    for way in ways:
        try:
            versions[way] = importlib.metadata.version(PACKAGES.get(way, "torch"))
        except importlib.metadata.PackageNotFoundError:
            missing.append(way)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        net, images = network(case), inputs(case)
        with torch.no_grad():
            exact = net.double()(images.double()).numpy()
        del net
        processes = {}
        for way in versions:
            command = [sys.executable, __file__, "--way", way, json.dumps(vars(case)), str(scratch)]
            process = stack.enter_context(
                subprocess.Popen(
                    [*command, "--threads", str(threads)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                )
            )
            stack.callback(process.kill)
            processes[way] = process
            asked(process)  # one at a time: each reads the whole network
        turns: dict[str, list[dict[str, float]]] = {way: [] for way in processes}
        for _ in range(repeats):
            for way in random.sample(list(processes), len(processes)):
                turns[way].append(asked(processes[way], "turn"))
        ends = {way: asked(process, "end") for way, process in processes.items()}
    milliseconds = {way: [1000 * turn["seconds"] for turn in some] for way, some in turns.items()}
    row: dict[str, Any] = {
        "network": case.network,
        "image_size": case.image_size,
        "batch_size": case.batch_size,
        "dtype": "float32",
        "threads": threads,
        "engine": "torch" if why_not_compiled() else "compiled",
        "versions": versions,
        "missing": missing,
        "milliseconds": {way: spread(values) for way, values in milliseconds.items()},
        "head_ms": {
            way: spread([1000 * turn["head"] for turn in turns[way]]) for way in turns if "head" in turns[way][0]
        },
        "relative_error": {
            way: float(f"{np.abs(np.array(end['logits']) - exact).max() / np.abs(exact).max():.2g}")
            for way, end in ends.items()
        },
        "peak_megabytes": {way: end["peak_megabytes"] for way, end in ends.items()},
    }
    peers = [way for way in milliseconds if way not in ("ours", "ncnn")]
    if "ours" in milliseconds and peers:
        best = [min(milliseconds[way][turn] for way in peers) for turn in range(repeats)]
        row["best_over_ours"] = spread([b / a for a, b in zip(milliseconds["ours"], best, strict=True)])
    if {"ours", "ncnn"} <= set(milliseconds):
        pairs = zip(milliseconds["ours"], milliseconds["ncnn"], strict=True)
        row["ncnn_over_ours"] = spread([b / a for a, b in pairs])
    return row


def asked(process: "subprocess.Popen[str]", line: str | None = None) -> dict[str, Any]:
    """What a process answers."""
    assert process.stdin is not None
    assert process.stdout is not None
    if line is not None:
        process.stdin.write(line + "\n")
        process.stdin.flush()
    for answer in process.stdout:
        if answer.startswith("{"):  # others print too
            result: dict[str, Any] = json.loads(answer)
            return result
    sys.exit("expected an answer, got the end of a process; its error is above")


def serve(way: str, case: Case, scratch: Path, threads: int) -> None:
    """Answer for one way, until told to end."""
    if way == "ours":
        use_huge_pages()
    run, head = WAYS[way](case, scratch, threads)
    seconds_of(run)
    print(json.dumps({"ready": way}), flush=True)
    for line in sys.stdin:
        if line.strip() == "end":
            peak = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM"))
            print(json.dumps({"logits": run().tolist(), "peak_megabytes": int(peak.split()[1]) // 1000}), flush=True)
            return
        seconds_of(run)
        answer = {"seconds": timed(run)}
        if head is not None:
            seconds_of(head)
            answer["head"] = timed(head)
        print(json.dumps(answer), flush=True)


def timed(function: Callable[[], object]) -> float:
    """Median seconds of as many calls as fit into a turn, 3 at least."""
    values = [seconds_of(function)]
    while len(values) < 3 or sum(values) < TURN_SECONDS:
        values.append(seconds_of(function))
    return statistics.median(values)


def seconds_of(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def network(case: Case) -> VGG:
    torch.manual_seed(0)
    arch = Architecture.parse(case.network, in_channels=3, num_classes=1000, image_size=case.image_size)
    return VGG(arch, init="kaiming").eval()


def inputs(case: Case) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(case.batch_size, 3, case.image_size, case.image_size, generator=generator)


Way = tuple[Callable[[], Array], Callable[[], object] | None]


def by_torch(case: Case, _scratch: Path, _threads: int, *, how: str) -> Way:
    net, images = network(case), inputs(case)
    head = None
    if how == "ours":
        keep_freed_memory(costs(net.architecture, case.batch_size).total.activation_bytes)
    if how != "torch":
        images = images.contiguous(memory_format=torch.channels_last)
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    forward: Callable[[Tensor], Tensor] = accelerate(net) if how == "ours" else net
    if how == "ours" or how == "torch channels_last":
        pooled = images.new_ones(case.batch_size, 512, case.image_size // 32, case.image_size // 32)
        layers = nn.Sequential(*list(net)[len(net.architecture.blocks) :])
        head = lambda: without_gradient(accelerate(layers) if how == "ours" else layers, pooled)  # noqa: E731
    if how == "torch compiled":
        forward = torch.compile(net)
    return lambda: without_gradient(forward, images).numpy(), head


@torch.no_grad()
def without_gradient(forward: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return forward(images)


def by_onnxruntime(case: Case, scratch: Path, threads: int) -> Way:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(as_onnx(case, scratch)), options, providers=["CPUExecutionProvider"])
    images = inputs(case).numpy()
    return lambda: session.run(None, {"images": images})[0], None


def by_openvino(case: Case, scratch: Path, threads: int) -> Way:
    import openvino

    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(str(as_onnx(case, scratch)), "CPU", hints)
    images = inputs(case).numpy()
    return lambda: model(images)[0], None


def as_onnx(case: Case, scratch: Path) -> Path:
    """The network as an ONNX file, written once for all that read it."""
    path = scratch / "network.onnx"
    if not path.exists():
        torch.onnx.export(
            network(case), (inputs(case),), str(path), input_names=["images"], output_names=["logits"],
            dynamo=True, verbose=False,
        )  # fmt: skip
    return path


def by_ncnn(case: Case, scratch: Path, threads: int) -> Way:
    import ncnn

    layers = as_ncnn(case, scratch)
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    net.load_param(str(layers.with_suffix(".param")))
    net.load_model(str(layers.with_suffix(".bin")))
    images = inputs(case).numpy()

    def run() -> Array:
        logits = []
        for image in images:  # it takes one at a time
            extractor = net.create_extractor()
            extractor.input("images", ncnn.Mat(image).clone())
            logits.append(np.array(extractor.extract("logits")[1]))
        return np.stack(logits)

    return run, None


def as_ncnn(case: Case, scratch: Path) -> Path:
    """The network in ncnn's own two files: a chain of layers as text, and their weights one after the other."""
    net = network(case)
    lines, name = ["Input images 0 1 images"], "images"
    with (scratch / "network.bin").open("wb") as weights:
        modules = [(n, m) for n, m in net.named_modules() if not list(m.children())]
        for number, (layer, module) in enumerate(modules):
            output = "logits" if number == len(modules) - 1 else layer.replace(".", "_")
            match module:
                case nn.Conv2d():
                    kind, what = "Convolution", f"0={module.out_channels} 1=3 4=1 5=1 6={module.weight.numel()}"
                case nn.Linear():
                    kind, what = "InnerProduct", f"0={module.out_features} 1=1 2={module.weight.numel()}"
                case nn.MaxPool2d():
                    kind, what = "Pooling", "0=0 1=2 2=2 5=1"
                case nn.BatchNorm2d():
                    kind, what = "BatchNorm", f"0={module.num_features} 1={module.eps}"
                case nn.ReLU():
                    kind, what = "ReLU", ""
                case _:  # what does nothing here
                    continue
            lines.append(f"{kind} {output} 1 1 {name} {output} {what}")
            name = output
            if isinstance(module, nn.Conv2d | nn.Linear):
                weights.write(struct.pack("<I", 0))  # float32 follows
            values = [*module.parameters(), *(b for b in module.buffers() if b.ndim)]
            if isinstance(module, nn.BatchNorm2d):
                values = [module.weight, module.running_mean, module.running_var, module.bias]
            for value in values:
                weights.write(value.detach().numpy().tobytes())
    header = f"7767517\n{len(lines)} {len(lines)}\n"
    (scratch / "network.param").write_text(header + "\n".join(lines) + "\n")
    return scratch / "network"


WAYS: dict[str, Callable[[Case, Path, int], Way]] = {
    "ours": lambda *given: by_torch(*given, how="ours"),
    "torch": lambda *given: by_torch(*given, how="torch"),
    "torch channels_last": lambda *given: by_torch(*given, how="torch channels_last"),
    "torch compiled": lambda *given: by_torch(*given, how="torch compiled"),
    "onnxruntime": by_onnxruntime,
    "openvino": by_openvino,
    "ncnn": by_ncnn,
}


if __name__ == "__main__":
    main()
