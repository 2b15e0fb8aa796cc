"""Networks as a picture: one SVG text that depends on no other file.

The style `scale` shows the output of each layer as a cuboid: its height and width are those of the map, its thickness
is the number of channels. Lengths are square roots, because on a linear scale the last map of VGG-16 (7 of 224 pixels)
vanishes beside the first; one scale holds for the whole drawing. The style `blocks` is the book's diagram: a box for
each layer and a frame for each block, not to scale. Both show each part's share of the parameters and of the MACs.

A drawing has a light panel, so that it is legible on any page. It has no styles and no ids, which would leak into the
notebook that shows it, and no `tspan`, which CairoSVG misplaces.
"""

import itertools
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vggkit.design import svg
from vggkit.design.layers import AnyNetwork, check_one_of
from vggkit.design.view import Box, Part, View, view_of
from vggkit.errors import ArchitectureError

Style = Literal["scale", "blocks"]
"""`scale`: cuboids to scale. `blocks`: a box for each layer, stacked as in the book."""

MAX_NETWORKS = 16

MAX_SIDE, MAX_THICKNESS = 200.0, 46.0  # SVG pixels of the largest map and of the widest layer
SLANT_X, SLANT_Y = 0.31, 0.26  # offset of the back face: foreshortened to 0.4, 40 degrees upwards
MARGIN, CARD_GAP, COLUMN_GAP, BOX_GAP, LINE, BAR = 20.0, 28.0, 13.0, 3.0, 15.0, 48.0
BOX_HEIGHT, ARROW, FRAME, PART_GAP, SHARES = 24.0, 12.0, 7.0, 22.0, 26.0
PAGE_WIDTH = 880.0  # width at which a row of networks wraps; a README shows it unscaled

HEADER = svg.TITLE + 3 * LINE + 2 * 19 + 16
PANEL, EDGE, TRACK, FRAME_FILL, WHITE = "#fcfcfa", "#d5d7db", "#e3e5e8", "#edeff2", "#ffffff"
PARAMETERS, MACS = "#c2410c", "#0f766e"
COLOURS = {
    "image": "#c3c8d0",
    "convolution": "#6d9fe0",
    "pooling": "#ef8d78",
    "normalisation": "#b79ad8",
    "fully connected": "#7fbf8a",
}

CAPTIONS = {
    "scale": "A cuboid shows the output of a layer. Lengths are square roots: twice the height and width is four times "
    "the pixels along a side, twice the thickness four times the channels.",
    "blocks": "Read upwards, from the image to the classes. Not to scale.",
}


@dataclass(frozen=True)
class _Card:
    """The drawing of one network, from its upper left corner; all cards of a page have the same height."""

    width: float
    height: float
    elements: list[str]


def drawing(networks: Sequence[AnyNetwork], style: Style = "scale") -> str:
    """The drawing of 1 to 16 networks as the text of an SVG file; raises `ArchitectureError`. See `vggkit.draw`."""
    check_one_of("a style", style, Style)
    if not 1 <= len(networks) <= MAX_NETWORKS:
        raise ArchitectureError(f"expected 1 to {MAX_NETWORKS} networks to draw, got {len(networks)}")
    views = [view_of(network) for network in networks]
    return _layout_page(views, _scale_cards(views) if style == "scale" else _block_cards(views), style)


def _scale_cards(views: Sequence[View]) -> list[_Card]:
    boxes = [box for view in views for box in view.boxes]
    per_side = MAX_SIDE / math.sqrt(max(box.size for box in boxes))
    per_thickness = MAX_THICKNESS / math.sqrt(max(box.channels for box in boxes))
    half = MAX_SIDE * (1 + SLANT_Y) / 2
    axis = HEADER + LINE + half  # the common centre line of all cuboids
    labels_top = axis + half + 1.6 * LINE
    shares_top = labels_top + (max(len(_labels(part)) for view in views for part in view.parts) + 0.6) * LINE
    cards = []
    for view in views:
        elements, x, last = list[str](), 0.0, 0.0
        for part in view.parts:
            lengths = [per_thickness * math.sqrt(box.channels) for box in part.boxes]
            slant = SLANT_X * per_side * math.sqrt(max(box.size for box in part.boxes))
            thickness = sum(lengths) + BOX_GAP * (len(lengths) - 1)
            labels = _labels(part)
            words = [f"{name} {tail}" for name, tail, _ in labels] + ["parameters"] * (part is view.parts[0])
            width = max(thickness + slant, BAR, *map(svg.text_width, words))
            middle = x + width / 2
            left = middle - thickness / 2
            if part is view.parts[0]:  # the image has no costs: room for the headings
                elements.append(svg.text(x, shares_top + 3, "parameters", fill=svg.MUTED))
                elements.append(svg.text(x, shares_top + 2 * LINE + 3, "MACs", fill=svg.MUTED))
            else:
                elements += _arrow(last + 3, axis, left - slant / 2 - last - 6)
                elements += _share(middle - BAR / 2, shares_top, BAR, part.parameters, PARAMETERS)
                elements += _share(middle - BAR / 2, shares_top + 2 * LINE, BAR, part.macs, MACS)
            last = left + thickness + slant / 2
            for box, length in zip(part.boxes, lengths, strict=True):
                elements.append(_cuboid(left, axis, length, per_side * math.sqrt(box.size), box))
                left += length + BOX_GAP
            for row, label in enumerate(labels):
                elements.append(svg.centred(middle, labels_top + row * LINE, *label))
            x += width + COLUMN_GAP
        cards.append(_card_with_header(view, x - COLUMN_GAP, shares_top + 3 * LINE, elements))
    return cards


def _labels(part: Part) -> list[tuple[str, str, str]]:
    """The lines below a part as (words, grey tail, colour): names with kernels, then the shape of the output."""
    lines = []
    for shape, alike in itertools.groupby(part.boxes, key=lambda box: box.shape):
        lines += [(box.name, box.kernel, svg.INK) for box in alike] + [(shape, "", svg.MUTED)]
    return lines


def _cuboid(x: float, axis: float, thickness: float, side: float, box: Box) -> str:
    """A cuboid whose left edge is `x`, centred on `axis`; cuboids are drawn from left to right, back to front."""
    back_x, back_y = side * SLANT_X, side * SLANT_Y
    x, y = x - back_x / 2, axis - (side - back_y) / 2
    end = x + thickness
    colour, stroke = COLOURS[box.group], svg.blend(COLOURS[box.group], svg.INK, 0.45)
    top = [(x, y), (x + back_x, y - back_y), (end + back_x, y - back_y), (end, y)]
    face = [(end, y), (end + back_x, y - back_y), (end + back_x, y - back_y + side), (end, y + side)]
    return svg.with_tooltip(
        box.hint,
        svg.rect(x, y, thickness, side, colour, stroke=stroke),
        svg.polygon(top, svg.blend(colour, WHITE, 0.45), stroke=stroke),
        svg.polygon(face, svg.blend(colour, svg.INK, 0.14), stroke=stroke),
    )


def _block_cards(views: Sequence[View]) -> list[_Card]:
    def height_of(part: Part, is_image: bool) -> float:
        return len(part.boxes) * (BOX_HEIGHT + ARROW) - ARROW + (0 if is_image else 2 * FRAME + SHARES)

    heights = [[height_of(part, part is view.parts[0]) + PART_GAP for part in view.parts] for view in views]
    height = HEADER + max(map(sum, heights))
    cards = []
    for view, part_heights in zip(views, heights, strict=True):
        elements, y = list[str](), height
        columns = [box.name for box in view.boxes], [box.words for box in view.boxes]
        inner = sum(max(map(svg.text_width, column)) for column in columns) + 24
        middle = FRAME + inner / 2
        for part, part_height in zip(view.parts, part_heights, strict=True):  # upwards, as in the book
            top, bottom = y - part_height + PART_GAP, y
            if part is not view.parts[0]:
                elements.append(svg.rect(0, top, inner + 2 * FRAME, part_height - PART_GAP, FRAME_FILL, radius=7))
                elements += _arrow(middle, y + 3, PART_GAP - 5, upwards=True)
                for x, share, colour in ((FRAME, part.parameters, PARAMETERS), (middle + 4, part.macs, MACS)):
                    elements += _share(x, top + FRAME + 10, inner / 2 - 4, share, colour)
                bottom -= FRAME
            for index, box in enumerate(part.boxes):
                box_top = bottom - index * (BOX_HEIGHT + ARROW) - BOX_HEIGHT
                elements.append(_layer_box(FRAME, box_top, inner, box))
                if index:
                    elements += _arrow(middle, box_top + BOX_HEIGHT, ARROW, upwards=True)
            if part is not view.parts[-1]:
                elements.append(svg.text(middle + 10, top - PART_GAP / 2 + 4, part.boxes[-1].shape, fill=svg.MUTED))
            y = top - PART_GAP
        cards.append(_card_with_header(view, inner + 2 * FRAME, height, elements))
    return cards


def _layer_box(x: float, y: float, width: float, box: Box) -> str:
    baseline, colour = y + BOX_HEIGHT / 2 + 4, COLOURS[box.group]
    fill, stroke = svg.blend(colour, WHITE, 0.35), svg.blend(colour, svg.INK, 0.35)
    frame = svg.rect(x, y, width, BOX_HEIGHT, fill, stroke=stroke, radius=4)
    words = [svg.text(x + width - 10, baseline, box.words, anchor="end")] if box.words else []
    return svg.with_tooltip(box.hint, frame, svg.text(x + 10, baseline, box.name), *words)


def _arrow(x: float, y: float, length: float, upwards: bool = False) -> list[str]:
    """An arrow to the right from (`x`, `y`), or upwards to that point."""
    if upwards:
        tip = [(x, y), (x - 3, y + 5), (x + 3, y + 5)]
        return [svg.rect(x - 0.5, y + 4, 1, length - 4, svg.MUTED), svg.polygon(tip, svg.MUTED)]
    end = x + length
    tip = [(end, y), (end - 5, y - 3), (end - 5, y + 3)]
    return [svg.rect(x, y - 0.5, max(0, length - 4), 1, svg.MUTED), svg.polygon(tip, svg.MUTED)]


def _layout_page(views: Sequence[View], cards: Sequence[_Card], style: Style) -> str:
    """The cards in rows, a legend of the colours used, and the caption, on a panel."""
    elements, x, y, width = list[str](), MARGIN, MARGIN, 0.0
    for card in cards:
        if x > MARGIN and x + card.width + MARGIN > PAGE_WIDTH:
            x, y = MARGIN, y + card.height + CARD_GAP
        elements.append(svg.translated(x, y, card.elements))
        x += card.width + CARD_GAP
        width = max(width, x - CARD_GAP + MARGIN)
    x, y = MARGIN, y + cards[0].height + 2.5 * LINE
    used = {box.group for view in views for box in view.boxes}
    entries = {group: colour for group, colour in COLOURS.items() if group in used}
    for words, colour in (entries | {"share of parameters": PARAMETERS, "share of MACs": MACS}).items():
        end = x + 16 + svg.text_width(words)
        if x > MARGIN and end + MARGIN > width:
            x, y, end = MARGIN, y + 1.3 * LINE, MARGIN + end - x
        elements += [svg.rect(x, y - 9, 11, 11, colour, radius=2), svg.text(x + 16, y, words)]
        x = end + COLUMN_GAP
    y += 0.6 * LINE
    caption = CAPTIONS[style]
    characters = len(caption) * (width - 2 * MARGIN) / svg.text_width(caption)
    for line in textwrap.wrap(caption, int(characters)):
        y += LINE
        elements.append(svg.text(MARGIN, y, line, fill=svg.MUTED))
    height = y + MARGIN
    panel = svg.rect(0.5, 0.5, width - 1, height - 1, PANEL, stroke=EDGE, radius=10)
    names = ", ".join(view.name for view in views)
    described = "; ".join(f"{view.name}: {view.parts[0].boxes[0].hint}, {', '.join(view.lines)}" for view in views)
    return svg.document(width, height, names, described, [panel, *elements])


def _card_with_header(view: View, width: float, height: float, elements: list[str]) -> _Card:
    """A card with a header: the name, a few lines, and bars with the larger of the two shares of each cost."""
    width = max(width, BAR, svg.text_width(view.name, svg.TITLE), *map(svg.text_width, view.lines))
    header = [svg.text(0, svg.TITLE - 3, view.name, size=svg.TITLE)]
    header += [
        svg.text(0, svg.TITLE + (row + 1) * LINE + 2, line, fill=svg.MUTED) for row, line in enumerate(view.lines)
    ]
    y = svg.TITLE + (len(view.lines) + 1) * LINE - 4
    for quantity, share in view.connected.items():
        held = f"fully connected: {share:.0%}" if share >= 0.5 else f"convolutions: {1 - share:.0%}"
        words = f"{held} of {quantity}"
        width = max(width, svg.text_width(words) + 12)
        for x, part, group in ((0.0, 1 - share, "convolution"), (1 - share, share, "fully connected")):
            header.append(svg.rect(x * width, y, part * width, 16, svg.blend(COLOURS[group], WHITE, 0.35)))
        header.append(svg.text(width / 2, y + 12, words, anchor="middle"))
        y += 19
    return _Card(width, height, [*header, *elements])


def _share(x: float, y: float, width: float, share: float, colour: str) -> list[str]:
    """A bar that shows `share`, 0 to 1, below its percentage."""
    percent = "< 0.1%" if 0 < share < 0.0005 else f"{100 * share:.1f}%"
    bar = [svg.rect(x, y + 4, width, 5, TRACK), svg.rect(x, y + 4, width * share, 5, colour)]
    return [svg.text(x + width / 2, y, percent, anchor="middle"), *bar]
