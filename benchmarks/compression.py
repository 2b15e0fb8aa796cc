"""What do compressed gradients save, and what do they cost in accuracy?

    python benchmarks/compression.py [--epochs 2] [--seeds 1] [--save]

Trains the `quick` recipe with two processes of one thread each on this machine, its gradients sent whole, as bf16 and
by PowerSGD: three runs for each seed. `bytes_per_step` is what one process gives to all-reduce in the last step,
measured at `torch.distributed.all_reduce`; gradients that are sent whole, which torch sends from C++, are what its
buckets hold. Needs the whole Fashion-MNIST. Prints a JSON line for each way; --save adds them to
benchmarks/results/compression.jsonl.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
import torch.distributed as dist
from measuring import row_header, save_row, spread
from torch import Tensor

from vggkit import Recipe, train
from vggkit.training.recipe import Compression

NUM_PROCESSES = 2
OUTCOME_VALUES = 5
"""Of `train_step`, summed after each step: not gradients."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--process", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.process:
        measure(Recipe.from_json(flags.process))
        return
    torch.set_num_threads(1)  # as in the processes, for what the row says
    for compression in get_args(Compression):
        recipe = replace(Recipe.named("quick"), data=flags.data, epochs=flags.epochs, compression=compression)
        results = [measured(replace(recipe, seed=seed)) for seed in range(flags.seeds)]
        row = {
            **row_header(torch.device("cpu"), flags.seeds),
            "processes": NUM_PROCESSES,
            "recipe": recipe.name,
            "epochs": flags.epochs,
            "data": flags.data,
            "compression": compression,
            "bytes_per_step": results[0]["bytes_per_step"],
            "test_accuracy": spread([result["test_accuracy"] for result in results]),
            "train_seconds": spread([result["train_seconds"] for result in results]),
        }
        save_row("compression", row, flags.save)


def measured(recipe: Recipe) -> dict[str, Any]:
    """What the processes of one run say."""
    with socket.socket() as listening, tempfile.TemporaryDirectory() as folder:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        listening.close()
        processes = []
        for rank in range(NUM_PROCESSES):
            place = {"RANK": rank, "WORLD_SIZE": NUM_PROCESSES, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            variables = os.environ | {name: str(value) for name, value in place.items()} | {"OMP_NUM_THREADS": "1"}
            command = [sys.executable, str(Path(__file__).resolve()), "--process", recipe.to_json()]
            processes.append(subprocess.Popen(command, cwd=folder, env=variables, stdout=subprocess.PIPE, text=True))
        outputs = [process.communicate()[0] for process in processes]
        if any(process.returncode for process in processes):
            raise SystemExit("a process failed, see above")
    result: dict[str, Any] = json.loads(outputs[0].splitlines()[-1])
    return result


def measure(recipe: Recipe) -> None:
    """One of the processes; the first one prints what it measured."""
    all_reduce, sent, steps = dist.all_reduce, [0], []

    def counted(tensor: Tensor, *given: Any, **options: Any) -> Any:
        if tensor.numel() == OUTCOME_VALUES:
            steps.append(sent[0])
            sent[0] = 0
        else:
            sent[0] += tensor.nbytes
        return all_reduce(tensor, *given, **options)

    dist.all_reduce = counted
    run = train(recipe, out="run", device="cpu", progress=False)
    if run.leads:
        whole_bytes = sum(parameter.numel() * parameter.element_size() for parameter in run.net.parameters())
        result = {
            "bytes_per_step": whole_bytes if recipe.compression == "none" else steps[-1],
            "test_accuracy": run.history[-1].test_accuracy,
            "train_seconds": run.history[-1].elapsed_seconds,
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
