"""The initial weights of a run, and which of them are trained."""

from collections.abc import Callable

from torch.nn.modules.batchnorm import _BatchNorm

from vggkit.data.preprocessing import Preprocessing
from vggkit.errors import RunError, WeightsError
from vggkit.networks.vgg import VGG
from vggkit.training.recipe import Recipe
from vggkit.weights.files import AnyNetwork, load_weights
from vggkit.weights.preparation import preprocessing_for
from vggkit.weights.runs import find_weights
from vggkit.weights.surgery import with_common_scale, with_in_channels
from vggkit.weights.warm_start import last_layer, transfer, warm_start


def pretrained_weights(recipe: Recipe, say: Callable[[str], None]) -> tuple[AnyNetwork, Preprocessing] | None:
    """The network that `recipe` continues or takes layers from, and its preprocessing; None if it has neither.

    `say` reports a download and a guessed preprocessing.

    Raises:
        WeightsError: the weights are missing, damaged, or do not state a preprocessing.
    """
    if not (recipe.pretrained or recipe.continues):
        return None
    path = find_weights(recipe.pretrained or recipe.continues, say)
    net, metadata = load_weights(path)
    preprocessing = preprocessing_for(net, metadata, say)
    if preprocessing is None:
        raise WeightsError(
            f"{path}: expected weights that say how to prepare an image, got none, "
            "try 'vgg weights convert' with --mean and --std"
        )
    return net, preprocessing


def start_from(net: AnyNetwork, source: tuple[AnyNetwork, Preprocessing] | None, recipe: Recipe) -> list[str]:
    """Load the initial weights of `recipe` into `net`, and return lines for the user; raises `ValueError`."""
    if recipe.warm_start:
        copied = warm_start(net, load_weights(find_weights(recipe.warm_start))[0])
        return [f"started from {recipe.warm_start}: {', '.join(copied)}"]
    if source is None:
        return []
    other, preprocessing = source
    arch, channels = other.architecture, net.architecture.in_channels
    if recipe.continues:
        if arch != net.architecture:
            raise RunError(
                f"expected a run of the same network to continue, got {recipe.continues} of {arch.name} with "
                f"{arch.num_classes} classes at {arch.image_size} px, try --pretrained"
            )
        net.load_state_dict(other.state_dict())
        return [f"continues from the weights of {recipe.continues}"]
    if isinstance(other, VGG) and arch.in_channels != channels:
        other = with_in_channels(with_common_scale(other, preprocessing)[0], channels)
    copied = transfer(net, other)
    return [f"started from {recipe.pretrained}: {', '.join(copied)}; {last_layer(net)} is new"]


def advice(net: AnyNetwork) -> str:
    """Advice for when the training of `net` diverges."""
    can_have_norms = isinstance(net, VGG) and not any(isinstance(module, _BatchNorm) for module in net.modules())
    return "try a lower --learning-rate" + " or --architecture with _bn" * can_have_norms


def set_trainable(net: AnyNetwork, only_last: bool) -> None:
    """Put `net` into training mode and unfreeze all of it or its last layer; frozen batch norms evaluate."""
    net.train()
    head = last_layer(net)
    for name, module in net.named_modules():
        if only_last and isinstance(module, _BatchNorm):
            module.eval()
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(not only_last or name == head)
