"""Do networks with everybody's weights give everybody's numbers?

    python benchmarks/parity.py [--only TEXT] [--save]

For every VGG of torchvision, timm and Keras: the peer's own network with random weights, its weights in a file as the
peer writes it, that file read by vggkit, and both run on the same two images of 224 pixels, in float32 and float64.
The error is the largest difference of logits over the largest logit. Prints a JSON line for each network, or for those
whose words (as in "timm vgg16") contain --only. Needs the peers of requirements-peers.txt.
"""

import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from measuring import digits, parser, row_header, save_row
from peers import import_peer
from torch import Tensor, nn

from vggkit.weights.files import load_weights
from vggkit.weights.translation import NETWORKS


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--only", default="", help="a part of a network's words")
    given = flags.parse_args()
    warnings.simplefilter("ignore")  # the peers', at import
    for source in ("torchvision", "timm", "keras"):
        for network in NETWORKS[source]:
            if given.only not in f"{source} {network}":
                continue
            print(f"{source} {network}", file=sys.stderr)
            row = {
                **row_header(torch.device("cpu"), 1),
                "source": source,
                "version": import_peer(source).__version__,
                "network": network,
                **(keras_errors(network) if source == "keras" else torch_errors(source, network)),
            }
            save_row("parity", row, given.save)


@torch.no_grad()
def torch_errors(source: str, network: str) -> dict[str, float]:
    """Against torchvision or timm, through a file of torch.save."""
    torch.manual_seed(0)
    peer = import_peer(source)
    theirs = (peer.create_model(network) if source == "timm" else peer.models.get_model(network)).eval()
    randomize(theirs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save(theirs.state_dict(), path)
        net, _ = load_weights(path)
    errors = {}
    for x in images():
        net, theirs = net.to(x.dtype), theirs.to(x.dtype)
        errors[f"{str(x.dtype).removeprefix('torch.')}_error"] = relative_error(net(x), theirs(x))
    return errors


@torch.no_grad()
def keras_errors(network: str) -> dict[str, float]:
    """Against Keras Applications, through a file of its own `save_weights`; float32 is as far as its Dense goes."""
    import keras

    keras.utils.set_random_seed(0)
    theirs = getattr(keras.applications, network.upper())(weights=None, classifier_activation=None)
    theirs.set_weights([w + 0.01 if w.ndim == 1 else w for w in theirs.get_weights()])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keras.weights.h5"
        theirs.save_weights(path)
        net, _ = load_weights(path)
    x = next(images())
    expected = torch.as_tensor(theirs(x.permute(0, 2, 3, 1).numpy(), training=False))
    return {"float32_error": relative_error(net(x), expected)}


def randomize(net: nn.Module) -> None:
    """Statistics and offsets as of a trained network: none is 0 or 1, where a mix-up would not show."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                if tensor is not None:
                    nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                if tensor is not None:
                    nn.init.normal_(tensor, std=0.1)
        elif isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.01)


def images() -> Iterator[Tensor]:
    """The same two images in float32 and float64."""
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    yield x
    yield x.double()


def relative_error(got: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest value."""
    return digits(((got - expected).abs().max() / expected.abs().max()).item())


if __name__ == "__main__":
    main()
