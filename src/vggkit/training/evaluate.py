"""Top-1 accuracy while training, by all processes together."""

import torch
from torch import nn

from vggkit.data.feed import Feed, network_input
from vggkit.data.preprocessing import Preprocessing
from vggkit.data.samples import IGNORED_LABEL
from vggkit.errors import DataError
from vggkit.training.distributed import Team
from vggkit.training.step import autocast
from vggkit.training.stopping import StopFlag


@torch.no_grad()
def evaluate(
    net: nn.Module, feed: Feed, preprocessing: Preprocessing, team: Team, stop: StopFlag | None = None
) -> float | None:
    """Top-1 accuracy of `net` on all images of `feed`, each counted once, whatever the number of processes.

    Returns:
        0 to 1; NaN if an output is not finite; None if a process was asked to stop. The network is left in
        evaluation mode.

    Raises:
        DataError: no image can be read.
    """
    net.eval()
    sums = torch.zeros(2, device=team.device)  # correct, images
    for batch in feed.batches(epoch=0):
        if stop is not None and _any_wants_stop(stop, team):
            return None
        with autocast(batch.images.device):
            logits = net(network_input(feed, batch.images, preprocessing))
        sums[0] += (logits.argmax(dim=1) == batch.labels).sum()
        sums[0] += 0 * logits.float().sum()  # NaN from the first output that is not finite
        sums[1] += (batch.labels != IGNORED_LABEL).sum()
    correct, count = team.sum_(sums).tolist()
    if not count:
        raise DataError("expected an image to measure by that can be read, got none")
    return float(correct / count)


def _any_wants_stop(stop: StopFlag, team: Team) -> bool:
    asked = stop.signal_name is not None
    if team.size == 1:
        return asked
    return bool(team.sum_(torch.tensor(float(asked), device=team.device)).item())
