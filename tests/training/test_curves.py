import math
from types import SimpleNamespace

import pytest

from vggkit.data.files import as_png
from vggkit.training.curves import curves


def history(count, test_loss=None):
    """Accuracies rise to the last epoch but one and fall after it."""
    return [
        SimpleNamespace(
            epoch=epoch,
            train_loss=1 / epoch,
            train_accuracy=1 - 0.5 / epoch,
            test_accuracy=0.9 - 0.5 / epoch - 0.2 * (epoch == count > 1),
            test_loss=None if test_loss is None else test_loss / epoch,
        )
        for epoch in range(1, count + 1)
    ]


@pytest.mark.parametrize(("epochs", "num_epochs"), [(1, 1), (1, 2), (1, 1000), (3, 200), (10, 10), (200, 200)])
def test_each_panel_has_a_curve_for_each_set_over_whole_epochs(epochs, num_epochs):
    figure = curves(history(epochs, test_loss=2), num_epochs, "validation", "vgg11 on photos")
    for axes, field in zip(figure.axes, ("loss", "accuracy"), strict=True):
        drawn = {line.get_label(): line for line in axes.lines}
        for label, name in (("train", f"train_{field}"), ("validation", f"test_{field}")):
            expected = [getattr(metrics, name) for metrics in history(epochs, test_loss=2)]
            assert drawn[label].get_ydata().tolist() == expected
            assert drawn[label].get_xdata().tolist() == list(range(1, epochs + 1))
        low, high = axes.get_xlim()
        assert low < 1
        assert epochs < high <= num_epochs + 0.5
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert ticks
        assert all(tick == int(tick) for tick in ticks)
        bottom, top = axes.get_ylim()
        assert all(bottom <= value <= top for label in ("train", "validation") for value in drawn[label].get_ydata())
    assert figure.get_suptitle() == "vgg11 on photos"


def test_the_best_epoch_is_marked_with_its_value():
    _, accuracies = curves(history(10), 10, "test", "").axes
    assert "best on test 0.8444 (epoch 9)" in accuracies.get_title()
    (ring,) = [line for line in accuracies.lines if line.get_fillstyle() == "none"]
    assert ring.get_xydata().tolist() == [[9, pytest.approx(0.9 - 0.5 / 9)]]


def test_a_run_without_a_test_loss_has_one_curve_of_losses():
    losses, _ = curves(history(4), 4, "test", "").axes
    assert [line.get_label() for line in losses.lines] == ["train"]


def test_a_title_is_no_formula_and_the_picture_is_a_png():
    assert as_png(curves(history(2, test_loss=math.inf), 3, "test", "$\\frac{ on a_b")).startswith(b"\x89PNG")
