"""How fast does a VGG classify on this CPU, beside the peers?

    python benchmarks/inference_speed.py [--cases TEXT ...] [--ways ours ncnn ...] [--repeats 7] [--threads N] [--save]

All ways use the same weights (Kaiming's initialisation, which keeps the scale of activations), the same random images,
float32 and the same number of threads, each in its own process. The processes of a case run at the same time and take
turns, a turn being a warm-up and then forward passes for half a second, so that disturbances affect all alike.
A row holds the spread over the turns; the ratio of the best of torch, ONNX Runtime and OpenVINO to ours in the same
turn, and that of ncnn; the greatest difference of the logits from torch's in float64 (relative to their largest); the
peak of resident memory, with the weights and what a way made of them; and the peak after the first images. `head_ms` is
the time of the fully connected layers alone.

The ways: `ours`, as `vgg predict` runs; `torch`, `torch channels_last` and `torch compiled` (channels_last, inductor);
`onnxruntime`; `openvino` (latency hint, float32); `ncnn`. The row names those that are not installed. `ours bfloat16`
and `ours int8`, with fully connected weights in those types, run only if you name them; their rows are saved as
`inference_head`.

Prints a JSON line for each case.
"""

import importlib.metadata
import os
import random
import statistics
import struct
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
from measuring import Case, digits, own_process, parser, ratios, resident_bytes, row_header, save_row, spread
from peers import PEERS, import_peer
from torch import Tensor, nn

from vggkit import VGG, Architecture, accelerate, costs
from vggkit.engines.cpu import why_not_compiled
from vggkit.engines.narrow import Head
from vggkit.training.hardware import keep_freed_memory, use_huge_pages

Array = npt.NDArray[np.float32]
Way = tuple[Callable[[], Array], Callable[[], object] | None]
"""A forward pass, and that of the fully connected layers alone."""
NARROW: dict[str, Head] = {"ours bfloat16": "bfloat16", "ours int8": "int8"}
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
    flags = parser(__doc__, repeats=7)
    flags.add_argument("--cases", nargs="+", default=[""], help="parts of the names of the cases wanted")
    flags.add_argument("--ways", nargs="+", choices=list(WAYS), default=[w for w in WAYS if w not in NARROW])
    flags.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = flags.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)  # of the ways' processes
    torch.set_num_threads(given.threads)
    for case in CASES:
        if any(text in case.name for text in given.cases):
            row = measure(case, given.ways, given.repeats, given.threads)
            name = "inference_head" if NARROW.keys() & set(given.ways) else "inference_speed"
            save_row(name, {**row_header(torch.device("cpu"), given.repeats), **row}, given.save)


def measure(case: Case, ways: list[str], repeats: int, threads: int) -> dict[str, Any]:
    """All ways of one case, in turns."""
    versions, missing = dict[str, str](), list[str]()
    for way in ways:
        package = PACKAGES.get(way, "torch")
        for found in importlib.metadata.distributions(name=package, path=[*sys.path, str(PEERS)]):
            versions.setdefault(way, found.version)
        missing += [way] * (way not in versions)
    with torch.no_grad():
        exact = network(case).double()(inputs(case).double()).numpy()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        processes = {way: stack.enter_context(own_process()) for way in versions}
        for way, process in processes.items():  # one at a time: each reads the whole network
            process.submit(begin, way, case, scratch, threads).result()
        turns: dict[str, list[dict[str, float]]] = {way: [] for way in processes}
        for _ in range(repeats):
            for way in random.sample(list(processes), len(processes)):
                turns[way].append(processes[way].submit(turn).result())
        ends = {way: process.submit(end).result() for way, process in processes.items()}
    times = {way: [turn["ms"] for turn in some] for way, some in turns.items()}
    row: dict[str, Any] = {
        **vars(case),
        "dtype": "float32",
        "threads": threads,
        "engine": "torch" if why_not_compiled() else "compiled",
        "versions": versions,
        "missing": missing,
        "milliseconds": {way: spread(values) for way, values in times.items()},
        "head_ms": {way: spread([turn["head"] for turn in some]) for way, some in turns.items() if "head" in some[0]},
        "relative_error": {
            way: digits(np.abs(logits - exact).max() / np.abs(exact).max(), 2) for way, (logits, *_) in ends.items()
        },
        "peak_megabytes": {way: peak // 10**6 for way, (_, peak, _) in ends.items()},
        "running_megabytes": {way: running // 10**6 for way, (*_, running) in ends.items()},
    }
    others = [times[way] for way in times if way not in ("ours", "ncnn", *NARROW)]
    if "ours" in times and others:
        row["best_over_ours"] = ratios([min(turn) for turn in zip(*others, strict=True)], times["ours"])
    if {"ours", "ncnn"} <= set(times):
        row["ncnn_over_ours"] = ratios(times["ncnn"], times["ours"])
    return row


_run: Callable[[], Array]
_head: Callable[[], object] | None
_peak: int


def begin(way: str, case: Case, scratch: Path, threads: int) -> None:
    """Make one way ready, in a process of its own."""
    global _run, _head, _peak
    torch.set_num_threads(threads)
    if way.startswith("ours"):
        use_huge_pages()
    _run, _head = WAYS[way](case, scratch, threads)
    _run()
    _peak = resident_bytes("VmHWM")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew


def turn() -> dict[str, float]:
    """Milliseconds of the network and, if it can be told apart, of its fully connected layers."""
    return {"ms": median_ms(_run)} | ({"head": median_ms(_head)} if _head is not None else {})


def end() -> tuple[Array, int, int]:
    """The logits, and the peak of memory, of all and since the first forward pass."""
    logits, running = _run(), resident_bytes("VmHWM")
    return logits, max(_peak, running), running


def median_ms(function: Callable[[], object]) -> float:
    """Of as many calls as fit into a turn, 3 at least, after one to warm up."""
    function()
    seconds: list[float] = []
    while len(seconds) < 3 or sum(seconds) < TURN_SECONDS:
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


def network(case: Case) -> VGG:
    torch.manual_seed(0)
    return VGG(Architecture.parse(case.network, image_size=case.image_size), init="kaiming").eval()


def inputs(case: Case) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(case.batch_size, 3, case.image_size, case.image_size, generator=generator)


def by_torch(case: Case, _scratch: Path, _threads: int, *, how: str) -> Way:
    net, images = network(case), inputs(case)
    is_ours = how.startswith("ours")
    if how != "torch":
        images = images.contiguous(memory_format=torch.channels_last)
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    forward: Any = accelerate(net, head=NARROW.get(how, "float32")) if is_ours else net
    if is_ours:
        net = forward.net
        keep_freed_memory(costs(net.architecture, case.batch_size).total.activation_bytes)
    head = None
    if is_ours or how == "torch channels_last":
        pooled = images.new_ones(case.batch_size, 512, case.image_size // 32, case.image_size // 32)
        layers = nn.Sequential(*list(net)[len(net.architecture.blocks) :])
        head = torch.no_grad()(lambda: (accelerate(layers) if is_ours else layers)(pooled))
    if how == "torch compiled":
        forward = torch.compile(net)
    return torch.no_grad()(lambda: forward(images).numpy()), head


def by_onnxruntime(case: Case, scratch: Path, threads: int) -> Way:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(as_onnx(case, scratch)), options, providers=["CPUExecutionProvider"])
    images = inputs(case).numpy()
    return lambda: session.run(None, {"images": images})[0], None


def by_openvino(case: Case, scratch: Path, threads: int) -> Way:
    openvino = import_peer("openvino")
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(str(as_onnx(case, scratch)), "CPU", hints)
    images = inputs(case).numpy()
    return lambda: model(images)[0], None


def as_onnx(case: Case, scratch: Path) -> Path:
    """The network as an ONNX file, written once for all that read it."""
    path = scratch / "network.onnx"
    if not path.exists():
        net, images = network(case), inputs(case)
        names = ["images"], ["logits"]
        torch.onnx.export(net, (images,), path, input_names=names[0], output_names=names[1], dynamo=True, verbose=False)
    return path


def by_ncnn(case: Case, scratch: Path, threads: int) -> Way:
    ncnn = import_peer("ncnn")
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
    modules = [(n, m) for n, m in network(case).named_modules() if not list(m.children())]
    lines, name = ["Input images 0 1 images"], "images"
    with (scratch / "network.bin").open("wb") as weights:
        for layer, module in modules:
            values = list(module.parameters())
            match module:
                case nn.Conv2d():
                    kind, what = "Convolution", f"0={module.out_channels} 1=3 4=1 5=1 6={module.weight.numel()}"
                case nn.Linear():
                    kind, what = "InnerProduct", f"0={module.out_features} 1=1 2={module.weight.numel()}"
                case nn.MaxPool2d():
                    kind, what = "Pooling", "0=0 1=2 2=2 5=1"
                case nn.BatchNorm2d():
                    kind, what = "BatchNorm", f"0={module.num_features} 1={module.eps}"
                    values = [module.weight, module.running_mean, module.running_var, module.bias]
                case nn.ReLU():
                    kind, what = "ReLU", ""
                case _:  # what does nothing here
                    continue
            output = "logits" if module is modules[-1][1] else layer.replace(".", "_")
            lines.append(f"{kind} {output} 1 1 {name} {output} {what}")
            name = output
            if isinstance(module, nn.Conv2d | nn.Linear):
                weights.write(struct.pack("<I", 0))  # float32 follows
            for value in values:
                weights.write(value.detach().numpy().tobytes())
    (scratch / "network.param").write_text("\n".join(["7767517", f"{len(lines)} {len(lines)}", *lines, ""]))
    return scratch / "network"


WAYS: dict[str, Callable[[Case, Path, int], Way]] = {
    "ours": lambda *given: by_torch(*given, how="ours"),
    "ours bfloat16": lambda *given: by_torch(*given, how="ours bfloat16"),
    "ours int8": lambda *given: by_torch(*given, how="ours int8"),
    "torch": lambda *given: by_torch(*given, how="torch"),
    "torch channels_last": lambda *given: by_torch(*given, how="torch channels_last"),
    "torch compiled": lambda *given: by_torch(*given, how="torch compiled"),
    "onnxruntime": by_onnxruntime,
    "openvino": by_openvino,
    "ncnn": by_ncnn,
}


if __name__ == "__main__":
    main()
