"""Hypothesis strategies that more than one test uses."""

from hypothesis import strategies as st

from vggkit import Architecture, Block


@st.composite
def blocks(draw, max_channels=2048):
    num_convs = draw(st.integers(1, 5))
    sizes = st.integers(0, 5).map(lambda half: 2 * half + 1)
    kernel_size = draw(st.one_of(sizes, st.tuples(*[sizes] * num_convs)))
    return Block(num_convs, draw(st.integers(1, max_channels)), kernel_size, draw(st.booleans()))


@st.composite
def architectures(draw, max_channels=2048, max_image_size=256, max_blocks=6):
    drawn = tuple(draw(st.lists(blocks(max_channels), min_size=1, max_size=max_blocks)))
    head = draw(st.sampled_from(["flatten", "adaptive", "conv", "gap"]))
    return Architecture(
        drawn,
        in_channels=draw(st.integers(1, 5)),
        num_classes=draw(st.integers(1, 1000)),
        image_size=draw(st.integers(2 ** len(drawn), max_image_size)),
        hidden=() if head == "gap" else tuple(draw(st.lists(st.integers(1, 4096), max_size=3))),
        dropout=draw(st.floats(0, 0.99)),
        norm=draw(st.sampled_from(["none", "batch"])),
        head=head,
        pooled_size=draw(st.integers(1, 9)) if head in ("adaptive", "conv") else 7,
    )
