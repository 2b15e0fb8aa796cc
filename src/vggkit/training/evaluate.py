"""Top-1 accuracy and loss during training, computed by all processes together."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from vggkit.data.feed import Feed
from vggkit.data.preprocessing import Preprocessing
from vggkit.data.samples import IGNORED_LABEL
from vggkit.errors import DataError
from vggkit.inference.evaluate import judged
from vggkit.training.distributed import Team
from vggkit.training.stopping import StopFlag


@torch.no_grad()
def evaluate(
    net: nn.Module,
    feed: Feed,
    preprocessing: Preprocessing,
    team: Team,
    stop: StopFlag | None = None,
    confusion: Tensor | None = None,
) -> tuple[float, float] | None:
    """Top-1 accuracy, 0 to 1, and mean cross-entropy of `net` on the images of `feed`, shared by all processes.

    Both are NaN if an output is not finite; the result is None if a process was asked to stop. `net` is left in
    evaluation mode. Counts are added to `confusion`, float32 (true classes, predicted classes).

    Raises:
        DataError: no image can be read.
    """
    sums = torch.zeros(3, device=team.device)  # correct, loss x images, images
    for batch, logits in judged(net, feed, preprocessing):
        if stop is not None:
            wants_stop = float(stop.signal_name is not None)
            if wants_stop if team.size == 1 else team.sum_(torch.tensor(wants_stop, device=team.device)).item():
                return None
        predicted, is_counted = logits.argmax(dim=1), batch.labels != IGNORED_LABEL
        if confusion is not None:
            places = batch.labels.clamp(min=0) * len(confusion) + predicted
            confusion.view(-1).index_add_(0, places, is_counted.float())
        sums[0] += (predicted == batch.labels).sum()
        sums[0] += 0 * logits.sum()  # NaN after an output that is not finite
        sums[1] += functional.cross_entropy(logits, batch.labels, ignore_index=IGNORED_LABEL, reduction="sum")
        sums[2] += is_counted.sum()
    if confusion is not None:
        team.sum_(confusion)
    correct, loss, count = team.sum_(sums).tolist()
    if not count:
        raise DataError("expected an image to measure by that can be read, got none")
    return correct / count, loss / count
