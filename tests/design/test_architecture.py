import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import architectures
from vggkit import Baseline, as_network, build, costs, draw, largest_batch, predict_step, training_memory
from vggkit.design.architecture import Architecture
from vggkit.design.layers import Block
from vggkit.design.network import network_from_json
from vggkit.design.notation import FAMILY
from vggkit.errors import ArchitectureError

# The paper's Table 1, typed from the paper: (kernel, channels) of each convolution, "M" where it pools.
TABLE_1 = {
    "A": [(3, 64), "M", (3, 128), "M", *[(3, 256)] * 2, "M", *[(3, 512)] * 2, "M", *[(3, 512)] * 2, "M"],
    "B": [*[(3, 64)] * 2, "M", *[(3, 128)] * 2, "M", *[(3, 256)] * 2, "M", *([*[(3, 512)] * 2, "M"] * 2)],
    "C": [*[(3, 64)] * 2, "M", *[(3, 128)] * 2, "M", (3, 256), (3, 256), (1, 256), "M"]
    + [(3, 512), (3, 512), (1, 512), "M"] * 2,
    "D": [*[(3, 64)] * 2, "M", *[(3, 128)] * 2, "M", *[(3, 256)] * 3, "M", *([*[(3, 512)] * 3, "M"] * 2)],
    "E": [*[(3, 64)] * 2, "M", *[(3, 128)] * 2, "M", *[(3, 256)] * 4, "M", *([*[(3, 512)] * 4, "M"] * 2)],
}


def columns(arch):
    rows = []
    for layer in arch.layers():
        if layer.kind == "conv":
            rows.append((layer.kernel_size, layer.outputs))
        elif layer.kind == "pool":
            rows.append("M")
    return rows


@pytest.mark.parametrize("letter", TABLE_1)
def test_the_letters_are_the_columns_of_the_papers_table(letter):
    assert columns(Architecture.parse(letter)) == TABLE_1[letter]
    assert columns(Architecture.parse(letter.lower() + "_bn")) == TABLE_1[letter]


def test_a_lrn_is_a_with_one_normalisation_after_the_first_relu():
    names = [layer.name for layer in Architecture.parse("A-LRN").layers()]
    assert names[:4] == ["conv1_1", "relu1_1", "lrn1", "pool1"]
    names.remove("lrn1")
    assert names == [layer.name for layer in Architecture.parse("A").layers()]


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("1x64 1x128 2x256 2x512 2x512", "vgg11"),
        ("1x64,1x128, 2x256,2x512 ,2x512", "vgg11"),
        ("1X16 1x32 2x64 2x128 2x128", "VGG11/4"),
        ("1x64 1x128 2x256 2x512 2x512 /4", "vgg11/4"),
        ("vgg11/4_bn", "vgg11_bn/4"),
        ("2x64 2x128 3x256k3,3,1,3x512k3,3,1,3x512k3,3,1", "C"),
        ("2x64k3,3 2x128k3", "2x64 2x128"),
        ("  1x8+LRN_bn ", "1x8+lrn_bn"),
    ],
)
def test_one_network_many_spellings(text, same):
    assert Architecture.parse(text) == Architecture.parse(same)


def test_pairs_and_blocks_are_the_same_network():
    arch = Architecture([(1, 64), [1, 128], Block(2, 256), (2, 512), Block(2, 512, [3, 3])])
    assert arch == Architecture.parse("vgg11")
    assert hash(arch) == hash(Architecture.parse("A"))


CONV_ARCH = ((1, 64), (1, 128), (2, 256), (2, 512), (2, 512))
NARROW = [(pair[0], int(pair[1] / 4)) for pair in CONV_ARCH]


@pytest.mark.parametrize("given", ["vgg11/4", NARROW, tuple(NARROW), [Block(*pair) for pair in NARROW]])
def test_a_text_and_the_books_pairs_are_taken_wherever_a_network_is(given):
    arch = Architecture.parse("vgg11/4")
    assert as_network(given) == as_network(arch) == arch
    assert as_network(given, num_classes=10) == as_network(arch, num_classes=10)
    assert costs(given).layers == costs(arch).layers
    assert draw([given, "lenet"]) == draw([arch, as_network("lenet")])
    assert training_memory(given, 8) == training_memory(arch, 8)
    assert largest_batch(given, 1e9) == largest_batch(arch, 1e9)
    assert predict_step(given, 8, 2, 1e9, 1e9) == predict_step(arch, 8, 2, 1e9, 1e9)
    assert build(given).architecture == arch


def test_the_blocks_of_a_network_are_pairs_too():
    blocks = Architecture.parse("vgg11").blocks
    assert [(pair[0], int(pair[1] / 4)) for pair in blocks] == NARROW
    assert tuple(tuple(block) for block in blocks) == CONV_ARCH
    with pytest.raises(ArchitectureError, match=r"expected a block that a pair can describe, got 3x256k3,3,1"):
        Architecture.parse("C").blocks[2][0]


def test_what_is_no_network_is_refused():
    for value in (None, 5, {"vgg16"}, b"vgg16"):
        with pytest.raises(ArchitectureError, match="expected a network, its text or its blocks, got .*, try 'vgg16'"):
            costs(value)


@pytest.mark.parametrize("name", [*FAMILY, *(f"{n}_bn" for n in FAMILY), "vgg11/4", "vgg16_bn/2", "1x8 3x9k5,3,1"])
def test_an_architecture_knows_its_name(name):
    assert Architecture.parse(name).name == name


@given(architectures())
def test_text_and_json_lose_nothing(arch):
    assert Architecture.from_json(arch.to_json()) == arch
    others = json.loads(arch.to_json())
    del others["notation"]
    assert Architecture.parse(arch.notation, **others) == arch
    assert Architecture.parse(arch.name, **others) == arch


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vgg1l", r"character 1: expected a name such as vgg16 or blocks.*got 'vgg1l', try vgg11"),
        ("vgg18", "got 'vgg18', try vgg19"),
        ("vgg61", "got 'vgg61', try vgg16"),
        ("alexnt", "got 'alexnt', try alexnet"),
        ("resnet", r"got 'resnet', the names are vgg11, "),
        ("1x64 2y128", r"character 6: expected a block such as 2x128, got '2y128'"),
        ("1x64 2x128k4", r"character 6: expected an odd kernel size .*got 4, try 3 or 5"),
        ("1x64k3,3", r"character 1: expected one kernel size or one for each of the 1 convolutions, got 2"),
        ("1x8 , 3x64k3,1", r"character 7: expected one kernel size or one for each of the 3 convolutions, got 2"),
        ("0x64", r"character 1: expected a number of convolutions from 1 to 1000, got 0"),
        ("1x0", r"character 1: expected channels from 1 to 65536, got 0"),
        ("1x1000000000", r"character 1: expected channels from 1 to 65536, got 1000000000"),
        ("600x8 600x8", r"expected the number of convolutions from 1 to 1000, got 1200"),
        (
            " ".join(["2x64"] * 9),
            r"image_size of at least 512 for 9 blocks.*got 224: nothing is left after pool8",
        ),
        ("1x64k" + "9" * 4000, r"expected kernel size from 1 to 255"),
        ("9" * 5000 + "x64", r"expected a block such as 2x128"),
        ("", r"expected a name such as vgg16 or blocks .*got ''"),
        ("/4", r"expected a name such as vgg16 or blocks"),
        ("vgg11/0", r"expected a divisor of all channels, got /0 for 64"),
        ("vgg11/2/2", "got 'vgg11/2'"),
        ("vgg11/", r"character 1: expected a name such as vgg16 .*try vgg11"),
        ("1x1" + " " * 5000 + "y" + "/1" * 2000, "expected a block such as 2x128"),
        ("vgg11/3", r"expected a divisor of all channels, got /3 for 64"),
        ("x" * 30_000, r"expected at most 10000 characters, got 30000"),
        ("1x６４", r"character 1: expected a block"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_that_points_at_the_place(text, message):
    with pytest.raises(ArchitectureError, match=message) as caught:
        Architecture.parse(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"in_channels": 0}, "in_channels from 1 to 65536, got 0"),
        ({"image_size": 10**5000}, "image_size from 1 to 65536, got a number beyond 64 bits"),
        ({"image_size": 31}, "image_size of at least 32 for 5 blocks.*got 31: nothing is left after pool5"),
        ({"image_size": True}, "image_size from 1 to 65536, got True"),
        ({"hidden": (4096, 0)}, "hidden width from 1 to 65536, got 0"),
        ({"hidden": (1,) * 101}, "number of hidden layers from 0 to 100, got 101"),
        ({"hidden": 4096}, "hidden as a tuple, got 4096"),
        ({"image_size": 65536}, r"number of weights of fc6 from 0 to 1099511627776, got \d+"),
        ({"dropout": 1.0}, "dropout of at least 0 and below 1, got 1.0"),
        ({"dropout": float("nan")}, "dropout of at least 0 and below 1, got nan"),
        ({"norm": "layer"}, "norm to be one of none, batch, got 'layer'"),
        ({"head": "dense"}, "expected head to be one of flatten, adaptive, conv, gap, got 'dense'"),
        (
            {"head": "gap", "hidden": (8,)},
            r"expected no hidden layers with the head gap, got \(8,\), try the head flatten, or hidden=\(\)",
        ),
        ({"pooled_size": 3}, "expected a pooled_size only with the heads adaptive and conv, got 3 with flatten"),
        ({"head": "conv", "pooled_size": 0}, "expected pooled_size from 1 to 255, got 0"),
    ],
)
def test_the_other_fields_are_checked_too(fields, message):
    with pytest.raises(ArchitectureError, match=message):
        Architecture.parse("vgg11", **fields)


def test_two_words_on_norm_must_agree():
    assert Architecture.parse("vgg11", norm="batch") == Architecture.parse("vgg11_bn")
    with pytest.raises(ArchitectureError, match="'vgg11_bn' has batch norm, got norm='none' beside it"):
        Architecture.parse("vgg11_bn", norm="none")


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ((), "number of convolutions from 1 to 1000, got 0"),
        (64, "blocks as a tuple, got 64"),
        (((1, 64, 3),), "a Block or a pair"),
        (((1, "64"),), "channels from 1 to 65536, got '64'"),
        (((True, 64),), "number of convolutions"),
    ],
)
def test_blocks_given_as_data_are_checked(blocks, message):
    with pytest.raises(ArchitectureError, match=message):
        Architecture(blocks)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "{", '{"notation": "vgg11"}', "[" * 100_000, '{"notation": 5, "in_channels": 3}']
    + [Architecture.parse("vgg11").to_json().replace("512", "1e3"), Architecture.parse("A").to_json()[:-1]],
)
def test_broken_json_is_refused(text):
    with pytest.raises(ArchitectureError, match=r"expected|character"):
        network_from_json(text)


NOTATION_PIECES = st.sampled_from(
    [
        " ",
        *["1", "2", "64", "x", "k", "3", ",", "+lrn", "_bn", "/", "4", "vgg", "vgg16", "c", "A", "-LRN", "0"],
        "9" * 50,
    ]
)


@given(st.one_of(st.text(max_size=60), st.lists(NOTATION_PIECES, max_size=15).map("".join)))
def test_the_parser_either_refuses_in_one_line_or_round_trips(text):
    try:
        arch = Architecture.parse(text)
    except ArchitectureError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 400
    else:
        assert Architecture.parse(arch.notation) == arch


ANYTHING = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.floats(),
        st.text(max_size=8),
        st.integers(-2, 300),
        st.builds(pow, st.just(10), st.just(5000)),
        st.sampled_from([2**64, "x\x1b[31m" * 10**5, "vgg11", "lenet", "gap", "\n"]),
    ),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=3), values, max_size=3),
    max_leaves=6,
)
FIELDS = json.loads(Architecture.parse("1x4", image_size=8, hidden=(5,)).to_json())
BASELINE = json.loads(Baseline.named("lenet").to_json())


def read_or_refused(function, *arguments, **options):
    """Whatever a stranger writes, the only error is the declared one, in one short line that is safe to print."""
    try:
        function(*arguments, **options)
    except ArchitectureError as error:
        assert str(error).isprintable()
        assert len(str(error)) < 500


@settings(deadline=None, max_examples=200)
@given(
    st.one_of(
        ANYTHING,
        st.tuples(st.sampled_from([FIELDS, BASELINE]), st.sampled_from([*FIELDS, *BASELINE]), ANYTHING).map(
            lambda drawn: {**drawn[0], drawn[1]: drawn[2]}
        ),
    )
)
def test_readers_raise_only_what_they_declare(value):
    try:
        text = json.dumps(value)
    except ValueError:  # Python writes no number of 5,000 digits, but a stranger may
        text = f'{{"notation": {"9" * 5000}}}'
    read_or_refused(network_from_json, text)
    for function in (as_network, Architecture):
        read_or_refused(function, value)
    read_or_refused(Baseline, value, value)
    read_or_refused(Block, value, value, value)
    read_or_refused(predict_step, "1x4", value, 2, 1e9, value)
    if isinstance(value, dict):
        options = {key: value[key] for key in FIELDS if key in value and key != "notation"}
        read_or_refused(Architecture.parse, "1x4", **options)


def test_an_architecture_of_version_0_1_is_read():
    old = '{"notation": "1x8 2x16_bn", "in_channels": 1, "num_classes": 10, "image_size": 16, "hidden": [5], "dropout": 0.2}'
    expected = Architecture(((1, 8), (2, 16)), 1, 10, 16, (5,), 0.2, "batch")
    assert Architecture.from_json(old) == expected
    assert expected.head == "flatten"
    assert Architecture.parse("vgg11", head="gap").hidden == ()
