import itertools
import re
import shutil
import string
import subprocess
import sys
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFont

from tests.strategies import architectures
from vggkit import VGG, Architecture, ArchitectureError, Baseline, as_network, cli, costs, draw
from vggkit.design.svg import SMALL, TITLE, text_width

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
STYLES = ["scale", "blocks"]
VGG16 = Architecture.parse("vgg16")
SVG = "{http://www.w3.org/2000/svg}"


def placed(node, x=0.0, y=0.0):
    """Every element below `node` with where its own coordinates begin."""
    if "transform" in node.attrib:
        dx, dy = map(float, re.fullmatch(r"translate\((\S+) (\S+)\)", node.get("transform")).groups())
        x, y = x + dx, y + dy
    yield node, x, y
    for child in node:
        yield from placed(child, x, y)


@cache
def em_width(words, bold):
    """By the real metrics of DejaVu Sans, the widest of the fonts that readers have."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(fonts / name, 1000).getlength(words) / 1000


def texts(svg):
    """(words, left, top, right, bottom) of every text."""
    for node, x, y in placed(ElementTree.fromstring(svg)):
        if node.tag == f"{SVG}text":
            words, size = "".join(node.itertext()), float(node.get("font-size", 11))
            width = size * em_width(words, node.get("font-weight") == "bold")
            x += float(node.get("x")) - width * {"start": 0, "middle": 0.5, "end": 1}[node.get("text-anchor", "start")]
            y += float(node.get("y"))
            yield words, x, y - 0.76 * size, x + width, y + 0.24 * size


def shapes(svg, *tags):
    """(left, top, right, bottom) of every rectangle or polygon."""
    for node, x, y in placed(ElementTree.fromstring(svg)):
        if node.tag == f"{SVG}rect" and "rect" in tags:
            left, top = x + float(node.get("x")), y + float(node.get("y"))
            yield left, top, left + float(node.get("width")), top + float(node.get("height"))
        elif node.tag == f"{SVG}polygon" and "polygon" in tags:
            points = np.array([point.split(",") for point in node.get("points").split()], dtype=float) + (x, y)
            yield *points.min(axis=0), *points.max(axis=0)


def things(svg):
    """Of every group with a hint: its name, and its first rectangle."""
    for group in ElementTree.fromstring(svg).iter(f"{SVG}g"):
        hint = group.find(f"{SVG}title")
        if hint is not None:
            yield hint.text.partition(":")[0], group.find(f"{SVG}rect")


def bars(svg, words):
    """The lengths of the bars in the colour that the legend calls `words`, as shares of their tracks."""
    nodes = list(ElementTree.fromstring(svg).iter())
    legend = next(i for i, node in enumerate(nodes) if node.tag == f"{SVG}text" and node.text == words)
    colour = nodes[legend - 1].get("fill")
    pairs = [pair for pair in itertools.pairwise(nodes[: legend - 1]) if pair[1].get("fill") == colour]
    assert all(track.get("x") == bar.get("x") and track.get("y") == bar.get("y") for track, bar in pairs)
    return [float(bar.get("width")) / float(track.get("width")) for track, bar in pairs]


def overlaps(first, second):
    """Which rows of `first` overlap which of `second`; both (n, 4)."""
    a, b = first[:, None], second[None]
    return ((a[..., :2] < b[..., 2:]) & (b[..., :2] < a[..., 2:])).all(axis=-1)


@pytest.mark.parametrize(("size", "is_bold"), [(SMALL, False), (TITLE, True)])
def test_no_character_is_wider_than_is_assumed(size, is_bold):
    for character in [*string.ascii_letters, *string.digits, *string.punctuation, " ", "×", "…"]:
        assert text_width(character, size) >= size * em_width(character, is_bold), character


networks = st.one_of(
    architectures(),
    st.builds(Baseline.named, st.just("lenet"), image_size=st.integers(14, 300), in_channels=st.integers(1, 5)),
    st.builds(Baseline.named, st.just("alexnet"), image_size=st.integers(65, 300), num_classes=st.integers(1, 2000)),
)


def check_layout(svg):
    words, *_ = zip(*texts(svg), strict=True)
    boxes = np.array([box for _, *box in texts(svg)])
    pairs = np.argwhere(np.triu(overlaps(boxes, boxes), 1))
    assert [(words[i], words[j]) for i, j in pairs] == []
    _, _, width, height = map(float, ElementTree.fromstring(svg).get("viewBox").split())
    everything = np.vstack([boxes, list(shapes(svg, "rect", "polygon"))])
    assert everything.min() >= 0
    assert everything[:, 2].max() <= width
    assert everything[:, 3].max() <= height
    return words, boxes


@settings(deadline=None, max_examples=25)
@given(st.lists(networks, min_size=1, max_size=3), st.sampled_from(STYLES))
def test_texts_lie_in_the_drawing_and_on_no_other_text(drawn, style):
    svg = draw(drawn, style)
    words, boxes = check_layout(svg)
    if style == "scale":
        cuboids = np.array(list(shapes(svg, "polygon")))
        assert not overlaps(boxes, cuboids).any()
    for network in drawn:
        names = network.name, f"{network.name[:57]}..."
        assert any(text.split(", head ")[0] in names for text in words)


ODDITIES = [
    Architecture.parse("200x64"),
    Architecture.parse("1x65536k1 4x8k1,3,1,5" + " 66x8" * 14, image_size=65536),
    Architecture.parse("1x4", image_size=2, hidden=(64,) * 30),
    Architecture.parse("1x1", image_size=65536, in_channels=1, num_classes=1, head="gap"),
    Architecture.parse("1x65536k1", image_size=2, in_channels=65536, num_classes=65536, head="gap"),
    Architecture.parse("60x1+lrn 1x1k255", image_size=4, head="conv", pooled_size=255, hidden=(7,) * 9),
    Baseline.named("lenet", image_size=14),
    Baseline.named("alexnet", image_size=5000, in_channels=65536, num_classes=65536),
]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("network", ODDITIES, ids=lambda network: network.name[:20])
def test_oddities_are_drawn_whole(network, style):
    words, _ = check_layout(draw([network], style))
    names = {name for text in words for name in text.split()}
    assert {layer.name for layer in network.layers() if layer.kind in ("conv", "fc")} <= names


@settings(deadline=None, max_examples=30)
@given(architectures(), st.sampled_from(STYLES))
def test_every_layer_with_weights_has_its_name_and_the_bars_are_the_shares(arch, style):
    svg, counted = draw([arch], style), costs(arch)
    with torch.device("meta"):
        net = VGG(arch, init="torch")
    words = {word for text, *_ in texts(svg) for word in text.split()}
    parameters = {}
    for name, parameter in net.named_parameters():
        assert name.split(".")[-2] in words or parameter.ndim == 1
        part = name.partition(".")[0]
        parameters[part] = parameters.get(part, 0) + parameter.numel()
    shares = [n / sum(parameters.values()) for n in parameters.values()]
    assert bars(svg, "share of parameters") == pytest.approx(shares, abs=1e-3)
    macs = [part.macs / counted.total.macs for part in counted.parts.values()]
    assert bars(svg, "share of MACs") == pytest.approx(macs, abs=1e-3)
    assert sum(bars(svg, "share of parameters")) == pytest.approx(1, abs=0.01)
    assert sum(bars(svg, "share of MACs")) == pytest.approx(1, abs=0.01)


def test_the_percentages_of_the_papers_network():
    fc6 = (512 * 7 * 7 + 1) * 4096
    assert f"{fc6 / 138_357_544:.1%}" in [words for words, *_ in texts(draw([VGG16]))]


@settings(deadline=None, max_examples=30)
@given(st.lists(architectures(), min_size=1, max_size=2))
def test_lengths_are_square_roots_on_one_scale(drawn):
    svg = draw(drawn)
    expected = [[(arch.in_channels, arch.image_size)] for arch in drawn]
    for arch, pairs in zip(drawn, expected, strict=True):
        for layer in costs(arch).layers:
            _, channels, *size = layer.output_shape
            if layer.kind in ("conv", "pool", "lrn", "adaptive", "fc") or (
                layer.kind == "fit" and layer.activation_bytes
            ):
                pairs.append((channels, size[0] if size else 1))
    flat = list(itertools.chain.from_iterable(expected))
    seen = [(float(r.get("width")), float(r.get("height"))) for _, r in things(svg)]
    assert len(seen) == len(flat)
    for axis in (0, 1):
        lengths = {pair[axis]: length[axis] for pair, length in zip(flat, seen, strict=True)}
        longest = max(lengths)
        for value, length in lengths.items():
            assert length == pytest.approx(lengths[longest] * (value / longest) ** 0.5, abs=0.02)
        assert [lengths[value] for value in sorted(lengths)] == sorted(lengths.values())
    assert "Lengths are square roots" in " ".join(words for words, *_ in texts(svg))


@pytest.mark.parametrize("style", STYLES)
def test_blocks_and_cuboids_go_the_way_the_data_goes(style):
    places = {}
    for node, x, y in placed(ElementTree.fromstring(draw([Architecture.parse("vgg16")], style))):
        hint = node.find(f"{SVG}title")
        if node.tag == f"{SVG}g" and hint is not None:
            rect = node.find(f"{SVG}rect")
            places[hint.text.partition(":")[0]] = (
                x + float(rect.get("x")) + float(rect.get("width")),
                -y - float(rect.get("y")),
            )
    order = ["image", *(layer.name for layer in VGG16.layers() if layer.kind in ("conv", "pool", "fc"))]
    assert list(places) == order
    axis = STYLES.index(style)
    assert sorted(order, key=lambda name: places[name][axis]) == order


@pytest.mark.parametrize(("style", "rows"), [("scale", 3), ("blocks", 1)])
def test_three_networks_are_as_wide_as_a_readme_shows_and_say_what_their_bars_hold(style, rows):
    svg = draw(["lenet", "alexnet", "vgg16"], style)
    assert float(ElementTree.fromstring(svg).get("width")) <= 880
    tops = {words: top for words, _, top, *_ in texts(svg) if words in ("lenet", "alexnet", "vgg16")}
    assert len(set(tops.values())) == rows
    words = [text for text, *_ in texts(svg)]
    for quantity in ("fully connected: 96% of parameters", "convolutions: 86% of MACs"):  # 59134 of 61706, and so on
        assert quantity in words
    assert "fully connected: 89% of parameters" in words


@pytest.mark.parametrize("style", STYLES)
def test_an_arrow_leads_from_each_part_to_the_next_and_touches_neither(style):
    svg = draw("vgg16", style)
    heads = [box for box in shapes(svg, "polygon") if max(box[2] - box[0], box[3] - box[1]) <= 6.01]
    layers = [layer for layer in VGG16.layers() if layer.kind in ("conv", "pool", "fc")]
    assert len(heads) == (len({layer.part for layer in layers}) if style == "scale" else len(layers))
    if style == "scale":
        cuboids = np.array([box for box in shapes(svg, "polygon") if box not in heads])
        assert not overlaps(np.array(heads), cuboids).any()


def test_what_is_not_drawn_is_said():
    words = {name: " ".join(text for text, *_ in texts(draw([as_network(name)]))) for name in ("vgg11_bn", "lenet")}
    assert "not drawn: batch norm, ReLU, flatten, dropout" in words["vgg11_bn"]
    assert "not drawn: sigmoid, flatten" in words["lenet"]


@pytest.mark.parametrize("style", STYLES)
def test_it_needs_nothing_beside_itself_and_leaks_nothing_into_a_page(style):
    svg = draw([as_network(name) for name in ("lenet", "alexnet", "A-LRN", "vgg16_bn")], style)
    root = ElementTree.fromstring(svg)
    tags = {node.tag.removeprefix(SVG) for node in root.iter()}
    assert tags <= {"svg", "title", "desc", "g", "rect", "polygon", "text"}  # CairoSVG places a tspan elsewhere
    assert not {"id", "class", "style", "href", "src"} & {key for node in root.iter() for key in node.attrib}
    assert "url(" not in svg
    assert svg.count("http") == 1  # the namespace
    assert [child.tag for child in root[:2]] == [f"{SVG}title", f"{SVG}desc"]
    assert root[0].text == "lenet, alexnet, vgg11_lrn, vgg16_bn"
    assert "138.4 M parameters" in root[1].text


@pytest.mark.parametrize("style", STYLES)
def test_names_are_escaped(style):
    class Named(Architecture):
        name = property(lambda self: """<script>"a" & 'b'</script>""")

    svg = draw([Named(((1, 4),), image_size=2)], style)
    assert """<script>"a" & 'b'</script>""" in [words for words, *_ in texts(svg)]
    assert ElementTree.fromstring(svg).find(f".//{SVG}script") is None


@pytest.mark.parametrize("network", [Architecture.parse("vgg11/4"), Baseline.named("lenet")])
def test_a_notebook_shows_a_network_as_its_drawing(network):
    assert network._repr_svg_() == draw([network])


def test_drawing_imports_no_torch(tmp_path):
    program = "import sys; from vggkit import cli; cli.main(['draw', 'vgg19', '-o', 'x.svg']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "x.svg").exists()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (([],), "expected 1 to 16 networks to draw, got 0"),
        (([VGG16] * 17,), "expected 1 to 16 networks to draw, got 17"),
        ((["vgg16", 5],), "expected a network, its text or its blocks, got 5, try 'vgg16'"),
        (([VGG16], "art"), "expected a style to be one of scale, blocks, got 'art'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments, match):
    with pytest.raises(ArchitectureError, match=match):
        draw(*arguments)


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        (["--in-channels", "1", "--image-size", "64", "--num-classes", "10"], {"in_channels": 1, "image_size": 64, "num_classes": 10}),
        (["--hidden", "--head", "conv", "--pooled-size", "3"], {"hidden": (), "head": "conv", "pooled_size": 3}),
    ],
)  # fmt: skip
def test_the_flags_say_what_is_drawn(flags, options, tmp_path, capsys):
    out = tmp_path / "x.svg"
    assert cli.main(["draw", "lenet", "vgg11_bn", *flags, "-o", str(out), "--style", "blocks"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert out.read_text(encoding="utf-8") == draw(
        [as_network(name, **options) for name in ("lenet", "vgg11_bn")], "blocks"
    )


def test_the_picture_in_the_repository_is_what_the_command_makes():
    picture = (PICTURES / "vgg16.svg").read_text(encoding="utf-8")
    assert draw("vgg16") == picture, "try vgg draw vgg16 -o docs/pictures/vgg16.svg"


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium, which is not installed here")
def test_a_browser_shows_it(tmp_path):
    svg = draw([VGG16])
    (tmp_path / "x.svg").write_text(svg, encoding="utf-8")
    _, _, width, height = map(int, ElementTree.fromstring(svg).get("viewBox").split())
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync "
    flags += f"--hide-scrollbars --user-data-dir={tmp_path / 'profile'} --window-size={width},{height}"
    command = ["chromium", *flags.split(), f"--screenshot={tmp_path / 'x.png'}", tmp_path / "x.svg"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    picture = Image.open(tmp_path / "x.png").convert("RGB")
    assert picture.size == (width, height)
    for node, x, y in placed(ElementTree.fromstring(svg)):
        hint = node.find(f"{SVG}title")
        if hint is not None and hint.text.startswith("fc"):  # nothing stands in front of these
            rect = node.find(f"{SVG}rect")
            left, top, wide, high = (float(rect.get(key)) for key in ("x", "y", "width", "height"))
            seen = picture.getpixel((round(x + left + wide / 2), round(y + top + high / 2)))
            assert bytes(seen).hex() == rect.get("fill").removeprefix("#")
