"""What a network makes of labelled images; top-1 accuracy while training, by all processes together."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from vggkit.data.feed import Batch, Feed, network_input
from vggkit.data.preprocessing import Preprocessing
from vggkit.data.samples import IGNORED_LABEL
from vggkit.errors import DataError
from vggkit.training.distributed import Team
from vggkit.training.step import autocast
from vggkit.training.stopping import StopFlag


@torch.no_grad()
def judged(net: nn.Module, feed: Feed, preprocessing: Preprocessing) -> Iterator[tuple[Batch, Tensor]]:
    """All batches of `feed` in its order, each with the logits of `net`: float32 (images, classes).

    The network is left in evaluation mode.
    """
    net.eval()
    for batch in feed.batches(epoch=0):
        with autocast(batch.images.device):
            logits = net(network_input(feed, batch.images, preprocessing))
        yield batch, logits.float()


@torch.no_grad()
def evaluate(
    net: nn.Module, feed: Feed, preprocessing: Preprocessing, team: Team, stop: StopFlag | None = None
) -> tuple[float, float] | None:
    """Top-1 accuracy and mean loss of `net` on all images of `feed`, each counted once by all processes together.

    Returns:
        An accuracy from 0 to 1 and the cross-entropy; NaN if an output is not finite; None if a process was asked to
        stop. The network is left in evaluation mode.

    Raises:
        DataError: no image can be read.
    """
    sums = torch.zeros(3, device=team.device)  # correct, loss x images, images
    for batch, logits in judged(net, feed, preprocessing):
        if stop is not None and _any_wants_stop(stop, team):
            return None
        sums[0] += (logits.argmax(dim=1) == batch.labels).sum()
        sums[0] += 0 * logits.sum()  # NaN from the first output that is not finite
        sums[1] += functional.cross_entropy(logits, batch.labels, ignore_index=IGNORED_LABEL, reduction="sum")
        sums[2] += (batch.labels != IGNORED_LABEL).sum()
    correct, loss, count = team.sum_(sums).tolist()
    if not count:
        raise DataError("expected an image to measure by that can be read, got none")
    return correct / count, loss / count


def _any_wants_stop(stop: StopFlag, team: Team) -> bool:
    asked = stop.signal_name is not None
    if team.size == 1:
        return asked
    return bool(team.sum_(torch.tensor(float(asked), device=team.device)).item())
