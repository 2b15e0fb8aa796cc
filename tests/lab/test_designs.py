"""Designs inside a budget, against brute force and `costs`."""

import random
from itertools import pairwise, product

import pytest

from vggkit import Architecture, costs
from vggkit.errors import ArchitectureError
from vggkit.lab.designs import LEAST_SHARE, MOST_BLOCKS, MOST_CONVS, Budget, designs, drawn, nearby

OPTIONS = {"image_size": 12, "in_channels": 3, "num_classes": 7}


def cost(notation):
    total = costs(Architecture.parse(notation, hidden=(), head="gap", **OPTIONS)).total
    return total.parameters, total.macs


@pytest.mark.parametrize("budget", [Budget(parameters=2_000), Budget(macs=150_000), Budget(3_000, 100_000), Budget(1)])
def test_all_designs_inside_and_no_other(budget):
    """Brute force over two widths: at 12 pixels no more than 3 blocks."""
    widths, expected = (4, 8), set()
    for num_blocks in range(1, MOST_BLOCKS + 1):
        if OPTIONS["image_size"] >> num_blocks == 0:
            break
        for blocks in product(product(range(1, MOST_CONVS + 1), widths), repeat=num_blocks):
            if all(a[1] <= b[1] for a, b in pairwise(blocks)):
                notation = " ".join(f"{convs}x{width}" for convs, width in blocks) + "_bn"
                if budget.holds(*cost(notation)):
                    expected.add(notation)
    found = list(designs(budget, widths=widths, **OPTIONS))
    assert len(found) == len(expected)
    assert {design.notation for design in found} == expected
    for design in found[::37]:
        assert (design.parameters, design.macs) == cost(design.notation)


def test_drawn_designs_use_the_budget():
    budget = Budget(20_000, 2_000_000)
    some = drawn(budget, 40, seed=1, **OPTIONS)
    assert len({design.notation for design in some}) == 40
    assert some == drawn(budget, 40, seed=1, **OPTIONS) != drawn(budget, 40, seed=2, **OPTIONS)
    for design in some:
        assert (design.parameters, design.macs) == cost(design.notation)
        assert LEAST_SHARE <= budget.share(design.parameters, design.macs) <= 1


def test_neighbours_are_other_designs_of_the_space():
    budget, draws = Budget(20_000, 2_000_000), random.Random(0)
    inside = {design.notation: design for design in designs(budget, **OPTIONS)}
    start = next(name for name, design in inside.items() if budget.share(*design[1:]) > 0.9 and name.count("x") == 2)
    found = {nearby(start, budget, draws, **OPTIONS) for _ in range(200)}
    assert len(found) > 10
    assert all(inside[design.notation] == design for design in found)
    assert start not in {design.notation for design in found}
    assert nearby("4x512_bn", Budget(parameters=1), draws, **OPTIONS) is None


def test_budgets_that_cannot_be():
    with pytest.raises(ArchitectureError, match="expected a limit of parameters or of MACs, got none"):
        Budget()
    with pytest.raises(ArchitectureError, match="expected a limit of macs above 0, got 0"):
        Budget(macs=0)
    with pytest.raises(ArchitectureError, match="expected a budget with room for a network of blocks"):
        drawn(Budget(parameters=100), 1, seed=0, **OPTIONS)
