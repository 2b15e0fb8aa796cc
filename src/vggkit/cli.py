"""`vgg <verb>`: parse, call one library function, print. Only the verbs that need torch import it."""

import contextlib
import io
import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro
from tyro.conf import DisallowNone, FlagCreatePairsOff, OmitArgPrefixes, Positional

import vggkit
from vggkit.design.architecture import Architecture
from vggkit.design.costs import Sum, costs
from vggkit.training.recipe import Recipe

Flags = TypeVar("Flags")

DONE, FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run `vgg` with `argv`, by default the process's own; the exit code is 2 for a user's mistake."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = arguments[0] if arguments else "--help"
    try:
        code = _run(verb, arguments[1:])
        sys.stdout.flush()
        return code
    except ValueError as error:  # ArchitectureError, RecipeError, DataError and WeightsError are ValueErrors
        print(f"vgg {verb}: {error}", file=sys.stderr)
        return USER_ERROR
    except BrokenPipeError:  # `vgg ... | head`: what Python still holds goes nowhere, without a complaint
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        print(f"vgg {verb}: {error}", file=sys.stderr)
        return FAILED
    except (MemoryError, RuntimeError) as error:  # torch has no type of its own for a CPU's memory
        if "memory" not in str(error):
            raise
        print(
            f"vgg {verb}: expected enough memory, got: {str(error).splitlines()[0]}, "
            "try a smaller --batch-size, --image-size or --hidden",
            file=sys.stderr,
        )
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(verb: str, arguments: list[str]) -> int:
    if verb in ("-h", "--help", "help"):
        print(_usage())
        return DONE
    if verb in ("-V", "--version"):
        print(f"vggkit {vggkit.__version__}")
        return DONE
    if verb not in VERBS:
        raise ValueError(f"expected one of {', '.join(VERBS)}, try 'vgg --help'")
    return VERBS[verb](arguments)


@dataclass(frozen=True)
class DescribeFlags:
    """Show what a network costs: shapes, parameters, MACs, activations, receptive field."""

    architecture: Positional[str]
    """A name (vgg16, vgg11_bn, vgg11/4, the paper's A-LRN) or blocks ("1x64 2x128 3x256k3,3,1")."""
    in_channels: int = 3
    """1 for grey images, 3 for RGB."""
    image_size: int = 224
    """Pixels along a side."""
    num_classes: int = 1000
    """Outputs of the last layer."""
    hidden: tuple[int, ...] = (4096, 4096)
    """Widths of the hidden fully connected layers."""
    batch_size: int = 1
    """Images that MACs and activations are counted for."""
    layers: bool = False
    """A row for each layer instead of each block."""
    json: bool = False
    """Print JSON instead of a table."""


def _describe(arguments: list[str]) -> int:
    flags = _parse("describe", DescribeFlags, arguments)
    arch = Architecture.parse(
        flags.architecture,
        in_channels=flags.in_channels,
        image_size=flags.image_size,
        num_classes=flags.num_classes,
        hidden=flags.hidden,
    )
    counted = costs(arch, flags.batch_size)
    total, convolutional, fully_connected = counted.total, counted.convolutional, counted.fully_connected
    if flags.json:
        sums = {"total": total, "convolutional": convolutional, "fully_connected": fully_connected}
        _print_json(
            {
                "architecture": json.loads(arch.to_json()),
                "batch_size": flags.batch_size,
                **{name: _sum_fields(part) for name, part in sums.items()},
                "parts": {name: _sum_fields(part) for name, part in counted.parts.items()},
                "layers": [asdict(layer) for layer in counted.layers],
            }
        )
        return DONE

    def cells(part: Sum) -> tuple[str, ...]:
        return (
            f"{part.parameters:,}",
            f"{100 * part.parameters / total.parameters:.1f}",
            f"{part.macs / 1e6:,.1f}",
            f"{100 * part.macs / total.macs:.1f}",
            f"{part.activation_bytes / 1e6:,.1f}",
        )

    rows = []
    for name, part in ({c.name: Sum.of([c]) for c in counted.layers} if flags.layers else counted.parts).items():
        last = part.layers[-1]
        shape = "x".join(map(str, last.output_shape[1:]))
        sees = (str(last.receptive_field), str(last.stride))
        rows.append((name, last.kind if flags.layers else _weight_layers(part), shape, *cells(part), *sees))
    sums_rows = [
        ("all conv", _weight_layers(convolutional), "", *cells(convolutional), "", ""),
        ("all fc", _weight_layers(fully_connected), "", *cells(fully_connected), "", ""),
        ("total", str(total.weight_layers), "", *cells(total), "", ""),
    ]
    images = f"{arch.in_channels}x{arch.image_size}x{arch.image_size} images"
    print(f"{arch.name}: {images} in batches of {flags.batch_size}, {arch.num_classes} classes")
    _print_table(
        ("layer" if flags.layers else "part", "kind" if flags.layers else "layers", "output")
        + ("parameters", "%", "MMACs", "%", "MB out", "sees", "step"),
        [rows, sums_rows],
        left_aligned=3,
    )
    print(
        f"parameters: {total.param_bytes / 1e6:,.1f} MB in float32\n"
        "MMACs: millions of multiply-adds; FLOPs = 2 x MACs\n"
        "MB out: activations in float32\n"
        "sees, step: receptive field, and pixels from one output to the next"
    )
    return DONE


def _weight_layers(part: Sum) -> str:
    convs = sum(layer.kind == "conv" for layer in part.layers)
    connected = part.weight_layers - convs
    return " + ".join(f"{n} {kind}" for n, kind in ((convs, "conv"), (connected, "fc")) if n)


def _sum_fields(part: Sum) -> dict[str, int]:
    return {field.name: getattr(part, field.name) for field in fields(part) if field.name != "layers"}


@dataclass(frozen=True)
class TrainFlags:
    """Train a network into a new run folder. Without flags: the quick recipe on Fashion-MNIST."""

    fields: OmitArgPrefixes[Recipe]
    recipe: str = "quick"
    """The named recipe that the other flags change."""
    out: Path | None = None
    """The run folder, which must not exist yet; runs/<name>-<number> if not given."""
    device: str | None = None
    """cpu, cuda, cuda:1 or mps; a GPU, if there is one, if not given."""
    data_dir: Path | None = None
    """Where to look for Fashion-MNIST first."""


def _train(arguments: list[str]) -> int:
    # The recipe comes first, so that --help shows its values as the defaults of the other flags.
    named = "quick"
    for argument, following in itertools.pairwise([*arguments, ""]):
        if argument == "--recipe" and following:
            named = following
        elif argument.startswith("--recipe="):
            named = argument.removeprefix("--recipe=")
    flags = _parse("train", TrainFlags, arguments, TrainFlags(Recipe.named(named), named))

    from vggkit.data import fashion_mnist
    from vggkit.training.loop import DivergedError, train

    if flags.fields.data == fashion_mnist.FULL_NAME and flags.data_dir is None:
        _find_or_fetch()
    try:
        run = train(flags.fields, out=flags.out, device=flags.device, data_dir=flags.data_dir)
    except DivergedError as error:
        print(f"vgg train: {error}", file=sys.stderr)
        return FAILED
    if run.interrupted:
        print(f"stopped by Ctrl-C after {len(run.history)} of {run.recipe.epochs} epochs; what was learned is saved")
    if flags.fields.data == fashion_mnist.SAMPLE_NAME:
        _print_to_stderr(fashion_mnist.SAMPLE_WARNING)
    print(run.summary)
    print(run.folder)
    return INTERRUPTED if run.interrupted else DONE


def _find_or_fetch() -> None:
    from vggkit.data import fashion_mnist

    try:
        fashion_mnist.find()
    except fashion_mnist.DataError:
        fashion_mnist.fetch(_print_to_stderr)


@dataclass(frozen=True)
class DataFlags:
    """List the data sets and where they lie; 'vgg data fetch fashion-mnist' gets it."""

    action: Positional[Literal["list", "fetch"]] = "list"
    """list, or fetch."""
    name: Positional[str] = "fashion-mnist"
    """What to fetch."""
    data_dir: Path | None = None
    """Where to look for Fashion-MNIST first."""
    json: bool = False
    """Print JSON instead of a table."""


def _data(arguments: list[str]) -> int:
    flags = _parse("data", DataFlags, arguments)
    from vggkit.data import fashion_mnist

    if flags.action == "fetch":
        if flags.name != fashion_mnist.FULL_NAME:
            raise fashion_mnist.DataError(f"expected {fashion_mnist.FULL_NAME} to fetch, got {flags.name!r}")
        print(fashion_mnist.fetch(_print_to_stderr))
        return DONE
    known = []
    for name in (fashion_mnist.FULL_NAME, fashion_mnist.SAMPLE_NAME):
        try:
            place = (
                fashion_mnist.find(flags.data_dir) if name == fashion_mnist.FULL_NAME else fashion_mnist.SAMPLE_PLACE
            )
            fashion_mnist.verify(name, place)
            where, state = str(place), "verified"
        except fashion_mnist.DataError as error:
            where, state = "", str(error)
        known.append({"name": name, "where": where, "state": state})
    if flags.json:
        _print_json(known)
    else:
        _print_table(("name", "where", "state"), [[tuple(row.values()) for row in known]], left_aligned=3)
    return DONE


@dataclass(frozen=True)
class EvalFlags:
    """Measure a trained network on the test set of its data: accuracy, by class, and confused with what."""

    run: Positional[Path]
    """A run folder, or a model.safetensors."""
    data: str | None = None
    """Data to test on; if not given, what the recipe.json beside the weights says, else fashion-mnist."""
    device: str | None = None
    """cpu, cuda, cuda:1 or mps; a GPU, if there is one, if not given."""
    data_dir: Path | None = None
    """Where to look for Fashion-MNIST first."""
    plot: Path | None = None
    """Draw the confusion matrix into this .png file."""
    json: bool = False
    """Print JSON instead of tables."""


def _eval(arguments: list[str]) -> int:
    flags = _parse("eval", EvalFlags, arguments)
    from vggkit.data.fashion_mnist import load
    from vggkit.inference.evaluate import draw_confusion, evaluate
    from vggkit.inference.predict import load_classifier
    from vggkit.training.loop import choose_device

    if flags.plot is not None and (flags.plot.suffix != ".png" or not flags.plot.parent.is_dir()):
        raise ValueError(f"expected a .png file in a folder that exists for --plot, got {flags.plot}")
    classifier = load_classifier(flags.run, choose_device(flags.device))
    data = flags.data if flags.data is not None else _data_of_run(flags.run)
    dataset = load(data, flags.data_dir)
    evaluation = evaluate(classifier, dataset)
    if flags.plot is not None:
        draw_confusion(evaluation, flags.plot)
    by_class = dict(zip(evaluation.classes, evaluation.class_accuracy, strict=True))
    if flags.json:
        confusion = evaluation.confusion.tolist()
        _print_json({"accuracy": evaluation.accuracy, "class_accuracy": by_class, "confusion": confusion})
        return DONE
    print(f"accuracy {evaluation.accuracy:.4f} on the {len(dataset.test_labels):,} test images of {data}")
    print("a row is a true class; below a number, its images that were taken for the class of that number")
    header = ("class", "accuracy", *map(str, range(len(evaluation.classes))))
    rows = [
        (f"{index} {name}", _percent(by_class[name]), *(str(n) if n else "." for n in row))
        for index, (name, row) in enumerate(zip(evaluation.classes, evaluation.confusion.tolist(), strict=True))
    ]
    _print_table(header, [rows], left_aligned=1)
    if flags.plot is not None:
        print(flags.plot)
    return DONE


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _data_of_run(run: Path) -> str:
    path = (run if run.is_dir() else run.parent) / "recipe.json"
    if not path.is_file():
        return "fashion-mnist"
    try:
        return Recipe.from_json(path.read_text()).data
    except ValueError as error:
        raise ValueError(f"{path}: {error}, try --data") from None


@dataclass(frozen=True)
class PredictFlags:
    """Classify image files with a trained network."""

    run: Positional[Path]
    """A run folder, or a model.safetensors."""
    images: Positional[tuple[Path, ...]]
    """PNG or JPEG files, of any size and mode."""
    top: int = 3
    """Classes to show for each image."""
    device: str | None = None
    """cpu, cuda, cuda:1 or mps; a GPU, if there is one, if not given."""
    json: bool = False
    """Print JSON instead of lines."""


def _predict(arguments: list[str]) -> int:
    flags = _parse("predict", PredictFlags, arguments)
    if not flags.images:
        raise ValueError("expected at least one image, got none")
    from vggkit.inference.predict import load_classifier, predict
    from vggkit.training.loop import choose_device

    classifier = load_classifier(flags.run, choose_device(flags.device))
    predictions = predict(classifier, flags.images, flags.top)
    if flags.json:
        _print_json(
            [
                {"image": str(path), "predictions": [asdict(p) for p in best]}
                for path, best in zip(flags.images, predictions, strict=True)
            ]
        )
        return DONE
    for path, best in zip(flags.images, predictions, strict=True):
        print(f"{path}: " + ", ".join(f"{p.label} {p.probability:.1%}" for p in best))
    return DONE


VERBS: dict[str, Callable[[list[str]], int]] = {
    "describe": _describe,
    "data": _data,
    "train": _train,
    "eval": _eval,
    "predict": _predict,
}


def _usage() -> str:
    flags = {
        "describe": DescribeFlags,
        "data": DataFlags,
        "train": TrainFlags,
        "eval": EvalFlags,
        "predict": PredictFlags,
    }
    lines = [f"  {verb:<9} {(cls.__doc__ or '').splitlines()[0]}" for verb, cls in flags.items()]
    return "\n".join(
        [
            "vgg: the workbench for networks made of VGG blocks",
            "",
            "  vgg <verb> --help    shows the verb's flags",
            "",
            *lines,
        ]
    )


def _parse(verb: str, flags: type[Flags], arguments: list[str], default: Flags | None = None) -> Flags:
    """The flags of a verb; raises `ValueError` when they are wrong, in one line where tyro draws a box."""
    keywords: dict[str, Any] = {} if default is None else {"default": default}
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            parsed: Flags = tyro.cli(
                flags, prog=f"vgg {verb}", args=arguments, config=(DisallowNone, FlagCreatePairsOff), **keywords
            )
        return parsed
    except SystemExit as leaving:
        if not leaving.code:  # --help
            raise
    # A title, then (a rule where the box is plain ASCII) the message, a rule, and where to find help.
    _title, *lines = (line.strip("│╭╮╰╯ ") for line in errors.getvalue().splitlines())
    body = itertools.dropwhile(lambda line: not line.strip("─-"), lines)
    message = " ".join(itertools.takewhile(lambda line: line.strip("─-"), body))
    raise ValueError(f"{message.removeprefix('Error parsing fields: ')}, try 'vgg {verb} --help'")


def _print_to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print_json(value: object) -> None:
    print(json.dumps(value, allow_nan=False))


def _print_table(header: Sequence[str], sections: Sequence[Sequence[Sequence[str]]], left_aligned: int) -> None:
    """A table with a rule between its sections; the first `left_aligned` columns are texts."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    # A table takes the width it needs: no figure is ever cut.
    console = Console(width=1_000, markup=False, emoji=False, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index < left_aligned else "right")
    for rows in sections:
        for row in rows:
            table.add_row(*row)
        table.add_section()
    console.print(table)
