"""Where does the time of a compiled convolution go, layer by layer of VGG-16?

    python benchmarks/winograd_phases.py [--without-prefetch] [--avx2] [--save]

Compiles winograd_phases.cpp, which includes the source of the kernels, and runs it on one thread: milliseconds for an
image in each phase (input, weights, products, output), the products' GFLOP/s, and the nanoseconds that a vector
of a tile takes in the input's transform. `product_peak` is what a matrix product of torch reaches on one thread.
Prints a JSON line for each layer; --save adds it to benchmarks/results/winograd_phases.jsonl.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import torch
from measuring import HERE, row_header, save_row

from vggkit.engines.kernels import FLAGS, FOLDER
from vggkit.lab.bench import product_flops_per_second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without-prefetch", action="store_true")
    parser.add_argument("--avx2", action="store_true", help="as on a processor without AVX-512")
    parser.add_argument("--save", action="store_true")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cpu")
    peak = product_flops_per_second(device)
    options = [flag for flag in FLAGS if flag not in ("-shared", "-fPIC")]
    options += ["-D__builtin_prefetch(p)=(void)(p)"] * flags.without_prefetch
    options += ["-mno-avx512f"] * flags.avx2
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "phases"
        command = ["g++", *options, f"-I{FOLDER}", str(HERE / "winograd_phases.cpp"), "-o", str(program)]
        subprocess.run(command, check=True)
        lines = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout.splitlines()
    for line in lines:
        row = {
            **row_header(device, 5),
            "prefetch": not flags.without_prefetch,
            "avx512": not flags.avx2,
            "product_peak_gflops_per_second": round(peak / 1e9),
            **json.loads(line),
        }
        save_row("winograd_phases", row, flags.save)


if __name__ == "__main__":
    main()
