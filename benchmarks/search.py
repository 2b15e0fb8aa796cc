"""In equal time, does `vgg search` find better networks than random search, Optuna, and the hand-made `quick`?

    OMP_NUM_THREADS=1 python benchmarks/search.py FOLDER [--seconds 180] [--repeats 3] [--save]

All methods look for a network within the parameters and MACs of `quick` at 32 px, among the same designs. They train on
2,000 images of Fashion-MNIST for at most 9 epochs of `quick` in batches of 64, and choose by 2,000 others. Random
search trains each design to the end. Optuna uses TPE and its SuccessiveHalvingPruner, with our rungs at 1, 3 and 9
epochs, and begins with 10 of the designs that random search draws; a design outside the budget costs it no time. Time
is the process's CPU time on one thread, so that other programs take none of it. Each winner, and `quick`, is then
trained on all 4,000 images, from 3 seeds, and measured on 5,000 of the test set.

FOLDER keeps finished work, and a stopped benchmark continues from it, except that random search and Optuna begin an
unfinished search anew; a finished benchmark prints its row again.
"""

import json
import os
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import torch
from measuring import parser, row_header, save_row

from vggkit import Recipe, costs, train
from vggkit.data.sources import open_data
from vggkit.lab.designs import LEAST_SHARE, MOST_BLOCKS, MOST_CONVS, WIDTHS, Budget, drawn, is_possible, sized
from vggkit.lab.search import DRAWN, search
from vggkit.lab.statistics import mean_interval
from vggkit.verbs.terminal import print_to_stderr

TRAINED, CHOSEN_ON, TESTED, RUNGS = 2_000, 2_000, 5_000, (1, 3, 9)
SEEDS, SIZE = 3, 32

Search = Callable[[Recipe, Budget, Path, float], tuple[str, int]]
"""Gives the notation of the winner, and the number of designs that were trained."""


def ours(base: Recipe, budget: Budget, folder: Path, seconds: float) -> tuple[str, int]:
    """What `vgg search` does."""
    found = search(
        base, budget, folder, seconds=seconds, seeds=1, device="cpu", now=time.process_time, say=print_to_stderr
    )
    if found is None:
        raise SystemExit("stopped by a signal; the same command goes on")
    return found.recipe.architecture, found.num_designs


def at_random(base: Recipe, budget: Budget, folder: Path, seconds: float) -> tuple[str, int]:
    """The best of as many designs as can be trained to the end."""
    begin, results = time.process_time(), dict[str, float]()
    for design in drawn(budget, DRAWN, base.seed, image_size=SIZE):
        if time.process_time() - begin >= seconds:
            break
        results[design.notation] = max(accuracies(base, design.notation, folder, RUNGS[-1:]))
    return max(results, key=lambda name: results[name]), len(results)


def by_optuna(base: Recipe, budget: Budget, folder: Path, seconds: float) -> tuple[str, int]:
    """TPE with successive halving."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    begin, results, trained = time.process_time(), dict[str, float](), set[str]()
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=base.seed),
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3),
    )
    for design in drawn(budget, DRAWN, base.seed, image_size=SIZE)[:10]:
        study.enqueue_trial(as_parameters(design.notation))
    while time.process_time() - begin < seconds:
        trial = study.ask()
        blocks = suggested(trial)
        design = sized(blocks, SIZE)
        share = budget.share(design.parameters, design.macs)
        beyond = {"limits": share - 1, "least share": LEAST_SHARE - share, "size": float(not is_possible(blocks, SIZE))}
        for name, value in beyond.items():
            trial.set_constraint(name, value)
        if max(beyond.values()) > 0 or design.notation in trained:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            continue
        trained.add(design.notation)
        for epochs, accuracy in zip(RUNGS, accuracies(base, design.notation, folder, RUNGS), strict=False):
            trial.report(accuracy, epochs)
            if epochs < RUNGS[-1] and trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            results[design.notation] = accuracy
            study.tell(trial, accuracy)
    return max(results, key=lambda name: results[name]), len(trained)


def suggested(trial: optuna.Trial) -> tuple[tuple[int, int], ...]:
    """Blocks as numbers that do not depend on each other: how much wider each is than the one before."""
    blocks, place = [], 0
    for number in range(trial.suggest_int("blocks", 1, MOST_BLOCKS)):
        place = min(place + trial.suggest_int(f"wider{number}", 0, len(WIDTHS) - 1), len(WIDTHS) - 1)
        blocks.append((trial.suggest_int(f"convs{number}", 1, MOST_CONVS), WIDTHS[place]))
    return tuple(blocks)


def as_parameters(notation: str) -> dict[str, int]:
    """The numbers of `suggested` that give this design."""
    blocks = [tuple(map(int, block.split("x"))) for block in notation.removesuffix("_bn").split()]
    found, place = {"blocks": len(blocks)}, 0
    for number, (convs, width) in enumerate(blocks):
        found |= {f"wider{number}": WIDTHS.index(width) - place, f"convs{number}": convs}
        place = WIDTHS.index(width)
    return found


def accuracies(base: Recipe, notation: str, folder: Path, rungs: tuple[int, ...]) -> Iterator[float]:
    """The accuracy after so many epochs, each trained when it is asked for, by the same calls as in `vgg search`."""
    for epochs in rungs:
        yield trained(base.changed(architecture=notation), folder / notation.replace(" ", "-"), epochs)


def trained(recipe: Recipe, folder: Path, epochs: int) -> float:
    """The accuracy of a run after so many epochs."""
    run = train(recipe, resume=folder, until_epoch=epochs, device="cpu", progress=False)
    if len(run.history) < epochs:
        raise SystemExit("stopped by a signal; the same command goes on")
    return run.history[epochs - 1].test_accuracy


def write_images(folder: Path) -> None:
    """The last images of Fashion-MNIST, as a folder of four IDX files."""
    folder.mkdir(parents=True)
    source = open_data("fashion-mnist")
    for split, name, count in (("train", "train", TRAINED + CHOSEN_ON), ("test", "t10k", TESTED)):
        images: Any = source.splits[split]
        for kind, values, magic in (("images-idx3", images.pixels, 0x803), ("labels-idx1", images.labels, 0x801)):
            some = values[-count:]
            header = struct.pack(f">{1 + some.ndim}I", magic, *some.shape)
            (folder / f"{name}-{kind}-ubyte").write_bytes(header + some.tobytes())


def final_accuracies(recipe: Recipe, folder: Path) -> list[float]:
    """The test accuracy of `recipe`, trained on all images, for each seed."""
    recipes = [recipe.changed(seed=seed, validation=0) for seed in range(SEEDS)]
    return [trained(each, folder / str(each.seed), each.epochs) for each in recipes]


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `path` holds, which `make` gives if it is not there yet."""
    if not path.exists():
        done = make()
        path.write_text(json.dumps(done))
        print_to_stderr(f"{path.stem}: {done}")
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def main() -> None:
    flags = parser(__doc__, repeats=3)
    flags.add_argument("folder", type=Path)
    flags.add_argument("--seconds", type=float, default=180)
    given = flags.parse_args()
    torch.set_num_threads(1)
    images = given.folder / "images"
    if not images.exists():
        write_images(images)
    total = costs(Recipe.named("quick").network(in_channels=1, num_classes=10)).total
    budget = Budget(total.parameters, total.macs)
    quick = Recipe.named("quick", data=os.fspath(images), validation=CHOSEN_ON, epochs=RUNGS[-1], batch_size=64)
    base = quick.changed(head="gap")
    methods: dict[str, Search] = {"vgg search": ours, "random": at_random, "Optuna": by_optuna}
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in methods}
    for repeat in range(given.repeats):
        for name in methods:
            folder = given.folder / f"{name.replace(' ', '-')}-{repeat}"

            def searched(name: str = name, folder: Path = folder, repeat: int = repeat) -> dict[str, Any]:
                if name != "vgg search":  # runs that were there already would give it more time
                    shutil.rmtree(folder, ignore_errors=True)
                begin = time.process_time()
                winner, designs = methods[name](base.changed(seed=repeat), budget, folder, given.seconds)
                done = {"winner": winner, "designs": designs, "cpu_seconds": round(time.process_time() - begin)}
                return done | {"accuracies": final_accuracies(base.changed(architecture=winner), folder / "final")}

            results[name].append(kept(folder.with_suffix(".json"), searched))
    by_hand = kept(given.folder / "quick.json", lambda: {"accuracies": final_accuracies(quick, given.folder / "quick")})
    means = {name: [sum(each["accuracies"]) / SEEDS for each in some] for name, some in results.items()}
    row = {
        **row_header(torch.device("cpu"), given.repeats),
        "data": f"Fashion-MNIST, {TRAINED} images to train on and {CHOSEN_ON} to choose by",
        "budget": {"parameters": budget.parameters, "macs": budget.macs},
        "cpu_seconds_each": given.seconds,
        "winners_trained": f"on both, {SEEDS} seeds, measured on {TESTED} test images",
        "test_accuracy": {name: summary(values) for name, values in means.items()},
        "quick": summary(by_hand["accuracies"]),
        "searches": results,
    }
    save_row("search", row, given.save)


def summary(values: list[float]) -> dict[str, Any]:
    """Mean and 95% interval, and all values."""
    interval = mean_interval(values)
    return {"mean": round(interval.mean, 4), "half_width": round(interval.high - interval.mean, 4), "all": values}


if __name__ == "__main__":
    main()
