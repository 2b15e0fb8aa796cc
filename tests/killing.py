"""Runs that are killed and resumed until they are done, in processes that share one import of torch."""

import multiprocessing
import os
import sys
import time
from pathlib import Path

KILLS = int(os.environ.get("VGGKIT_KILLS", "6"))
"""`make torture` sets it to 200."""

sys.path.append(str(Path(__file__).parents[1]))  # which the children get, to find this module in

FORKS = multiprocessing.get_context("forkserver")
# With what an optimizer and the curves import late, which takes longer than these runs.
FORKS.set_forkserver_preload(
    [
        *("vggkit.training.loop", "vggkit.data.loader", "torch._dynamo"),
        *("matplotlib.figure", "matplotlib.ticker", "matplotlib.backends.backend_agg"),
    ]
)


def child(recipe, folder, options, before):
    """The body of a process: train until done or killed; `before` may break something first."""
    import torch

    from vggkit import train

    torch.set_num_threads(1)
    if before is not None:
        before()
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        train(recipe, resume=folder, device="cpu", progress=False, **options)


def start(recipe, folder, before=None, **options):
    process = FORKS.Process(target=child, args=(recipe, folder, options, before))
    process.start()
    return process


def trained(recipe, folder, **options):
    """Train without a disturbance; the seconds it took."""
    begin = time.monotonic()
    process = start(recipe, folder, **options)
    process.join(300)
    assert process.exitcode == 0
    return time.monotonic() - begin


def killed_until_done(recipe, folder, kills, run_seconds, random_seconds, **options):
    """Kill a run at random moments, at most `kills` times, and resume it until it is done; how often it was killed."""
    done = 0
    while True:
        process = start(recipe, folder, **options)
        if done < kills:
            process.join(random_seconds.uniform(0, run_seconds))
        else:
            process.join(300)
        if not process.is_alive():
            assert process.exitcode == 0
            return done
        process.kill()
        process.join()
        done += 1


def newest(folder):
    return max((Path(folder) / "checkpoints").glob("step-*"))
