"""`python benchmarks/uses.py [NAME ...]`: seconds for each use of a VGG-16 in docs/uses.md and docs/explain.md.

Each use gets one image of 640x480 pixels, which the network sees at 224 unless the use has a size of its own. The
weights are random, since the time does not depend on them. LPIPS takes turns with the package lpips.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from measuring import parser, row_header, save_row, spread
from peers import import_peer

from vggkit import LPIPS, VGG, Classifier, Preprocessing, explain
from vggkit.inference.explain_check import check
from vggkit.inference.explain_names import Method
from vggkit.inference.similar import Index
from vggkit.inference.style import dream, stylize

REPEATS = 5
INDEXED = 10_000
"""Images of the index that `features --like` looks through."""


def uses(net: VGG, classifier: Classifier) -> dict[str, Callable[[], object]]:
    """What is measured, by its name."""
    pixels, other = torch.randint(256, (2, 480, 640, 3), dtype=torch.uint8).numpy()
    pair = torch.rand(2, 1, 3, 224, 224)
    theirs = import_peer("lpips").LPIPS(net="vgg", pnet_rand=True, verbose=False)
    heads = Path(import_peer("lpips").__file__).parent / "weights/v0.1/vgg.pth"
    ours = LPIPS(net, classifier.preprocessing, heads)
    vectors = torch.nn.functional.normalize(torch.randn(INDEXED, 512))
    index = Index(tuple(map(str, range(INDEXED))), "relu5_1", vectors, "vgg16", classifier.preprocessing)
    explanation = explain(classifier, pixels, "grad-cam", target=0)
    return {
        **{f"explain {method}": partial(explain, classifier, pixels, method, 0) for method in get_args(Method)},
        "explain grad-cam --check": lambda: check(classifier, explanation),
        "LPIPS": lambda: ours(*pair),
        "LPIPS, the package": lambda: theirs(*pair, normalize=True),
        f"features --like, {INDEXED:,} images": lambda: index.like(classifier, pixels),
        "style, 256 px, 10 steps": lambda: stylize(classifier, pixels, other, sizes=(256,), steps=10),
        "dream, 256 px, 10 steps": lambda: dream(classifier, pixels, size=256, octaves=1),
    }


@torch.no_grad()
def main() -> None:
    flags = parser(__doc__, repeats=REPEATS)
    flags.add_argument("names", nargs="*", help="of the uses, or how they begin; all, if not given")
    given = flags.parse_args()
    torch.manual_seed(0)
    net = VGG("vgg16").eval()
    classifier = Classifier(net, tuple(map(str, range(1000))), Preprocessing(224, 3, (0.5,) * 3, (0.25,) * 3))
    begins = tuple(given.names) or ("",)
    chosen = {name: use for name, use in uses(net, classifier).items() if name.startswith(begins)}
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    for turn in range(-1, given.repeats):  # the first one warms up
        for name, use in chosen.items():
            begin = time.perf_counter()
            use()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - begin)
    header = row_header(classifier.device, given.repeats)
    for name, times in seconds.items():
        save_row("uses", {**header, "use": name, "seconds": spread(times)}, given.save)


if __name__ == "__main__":
    main()
