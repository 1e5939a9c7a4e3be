"""Layers: CSV files, oneDNN's strings, built-in networks, and the words of the command line."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanconv.bench import benchdnn
from leanconv.bench.catalogue import NETWORKS, network, resolve, select
from leanconv.bench.layers import Layer, LayerError, distinct, read_csv

HEADER = "name,N,C,H,W,K,R,S,stride,pad,dilation,groups\n"

RESNET = Layer("l", 1, 64, (56, 56), 64, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))


def write(tmp_path, text, name="layers.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


# -- Layer --------------------------------------------------------------------------------------------------


def test_layer_becomes_a_problem_in_both_layouts():
    first, last = RESNET.problem("NCHW"), RESNET.problem("NHWC")
    assert first.x_shape == (1, 64, 56, 56) and last.x_shape == (1, 56, 56, 64)
    assert first.out_size == last.out_size == (56, 56)
    assert first.flops == 2 * 56 * 56 * 64 * 64 * 9


def test_short_description_tells_what_is_special():
    assert RESNET.short() == "1x64x56x56 > 64 k3x3 s1 p1"
    depthwise = replace(RESNET, groups=64, stride=(2, 1), dilation=(2, 2), padding=((1, 1), (0, 1)))
    assert depthwise.short() == "1x64x56x56 > 64 k3x3 s2x1 p1x0:1 d2 dw"


def test_equal_shapes_are_merged_and_their_repeats_added():
    others = [replace(RESNET, name="m", repeats=2), replace(RESNET, name="n", batch=2)]
    assert distinct([RESNET, *others]) == [replace(RESNET, repeats=3), others[1]]


# -- CSV ----------------------------------------------------------------------------------------------------


def test_csv_with_all_columns(tmp_path):
    path = write(tmp_path, HEADER + "l,1,64,56,56,64,3,3,1,1,1,1\ndw,8,96,112,112,96,3,3,2,1,1,96\n")
    layers = read_csv(path)
    assert layers[0] == RESNET
    assert layers[1].groups == 96 and layers[1].batch == 8 and layers[1].stride == (2, 2)


def test_csv_needs_only_channels_and_extents(tmp_path):
    path = write(tmp_path, "# a comment\n\nK, c, H, r\n64, 64, 56, 3\n")
    expected = replace(RESNET, name="line4", padding=((0, 0), (0, 0)))
    assert read_csv(path) == [expected]


def test_csv_of_signals_and_volumes(tmp_path):
    signal = read_csv(write(tmp_path, "name,C,W,K,S,pad\ns,3,100,8,5,2\n"))[0]
    assert signal.in_size == (100,) and signal.kernel == (5,) and signal.padding == ((2, 2),)
    volume = read_csv(write(tmp_path, "C,D,H,W,K,T,R,S,stride\n3,8,16,16,8,3,3,3,1x2x2\n"))[0]
    assert volume.in_size == (8, 16, 16) and volume.stride == (1, 2, 2)


def test_csv_with_byte_order_mark_quotes_and_trailing_cells_left_out(tmp_path):
    layer = read_csv(write(tmp_path, '\ufeffname,C,H,K,R,pad,groups\n"a, b",4,9,4,3\n'))[0]
    assert layer.name == "a, b" and layer.padding == ((0, 0), (0, 0)) and layer.groups == 1


@pytest.mark.parametrize(
    ("pad", "padding"),
    [
        ("2x1", ((2, 2), (1, 1))),
        ("0:1", ((0, 1), (0, 1))),
        ("1x0:2", ((1, 1), (0, 2))),
        ("same", ((1, 1), (1, 1))),
    ],
)
def test_csv_padding_of_axes_and_ends(tmp_path, pad, padding):
    assert read_csv(write(tmp_path, f"C,H,K,R,pad\n4,9,4,3,{pad}\n"))[0].padding == padding


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("l,1,64,56,56,64,3,3,1x?,1,1,1", "layers.csv:2: stride='1x?': must be a whole number of at least 1"),
        ("l,1,64,56,56,64,3,3,1,-1,1,1", "layers.csv:2: pad='-1': must be a whole number of at least 0"),
        ("l,0,64,56,56,64,3,3,1,1,1,1", "layers.csv:2: N='0': must be a whole number of at least 1"),
        ("l,1,64,56,56,64,3,3,0,1,1,1", "layers.csv:2: stride='0': must be a whole number of at least 1"),
        (
            "l,1,64,56,56,64,3,3,1x1x1,1,1,1",
            "layers.csv:2: stride='1x1x1': must be one number, or 2 joined by 'x'",
        ),
        ("l,1,,56,56,64,3,3,1,1,1,1", "layers.csv:2: C='': must be a whole number of at least 1"),
        ("l,1,64,,,64,3,3,1,1,1,1", "layers.csv:2: needs the image's extent"),
        ("l,1,64,56,56,64,3,3,1,1,1,3", "layers.csv:2: layer 'l': groups=3: must divide 64 channels"),
        ("l,1,64,5,5,64,9,9,1,1,1,1", "layers.csv:2: layer 'l': w_shape="),
        ("l,1,64,56,56,64,3,3,1,1,1,1,7", "layers.csv:2: 13 cells, but the header names 12 columns"),
    ],
)
def test_csv_errors_name_file_line_column_and_value(tmp_path, row, message):
    with pytest.raises(LayerError) as caught:
        read_csv(write(tmp_path, HEADER + row + "\n"))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no header line"),
        ("name,C,H,K,R,strid\n", ":1: unknown column 'strid'; the columns are name, N, C"),
        ("C,H,c,K,R\n", ":1: column 'C' appears twice"),
        ("name,H,R\n", ":1: the header lacks the column C and K"),
    ],
)
def test_csv_header_errors(tmp_path, text, message):
    with pytest.raises(LayerError) as caught:
        read_csv(write(tmp_path, text))
    assert message in str(caught.value)


def test_csv_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(LayerError, match="cannot be read"):
        read_csv(tmp_path / "none.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LayerError, match="cannot be read"):
        read_csv(tmp_path / "bytes.csv")


# -- oneDNN's strings ---------------------------------------------------------------------------------------


def test_square_image_with_name_and_multiplicity():
    layer = benchdnn.parse('mb50ic64ih56oc64oh56kh3ph1n"resnet_50:res2a_branch2b*3"')
    assert layer == replace(RESNET, name="resnet_50:res2a_branch2b", batch=50, repeats=3)


def test_canonical_form_with_underscores():
    text = "g2mb1_ic96ih27iw27_oc256oh27ow27_kh5kw5_sh1sw1_ph2pw2_dh0dw0_nconv2"
    layer = benchdnn.parse(text)
    assert layer.name == "conv2" and layer.groups == 2 and layer.batch == 1
    assert layer.padding == ((2, 2), (2, 2)) and layer.dilation == (1, 1)


def test_defaults_are_those_of_benchdnn():
    layer = benchdnn.parse("ic3ih8oc4kh3")
    assert layer.batch == 2 and layer.groups == 1 and layer.padding == ((0, 0), (0, 0))
    assert layer.stride == layer.dilation == (1, 1) and layer.repeats == 1
    assert layer.name == "ic3ih8oc4kh3"


def test_dilation_counts_the_gap():
    assert benchdnn.parse("ic3ih28oc4kh3ph2dh1").dilation == (2, 2)


def test_axes():
    assert benchdnn.parse("ic3iw100oc4kw5").in_size == (100,)
    assert benchdnn.parse("ic3ih9iw7oc4kh3kw1").kernel == (3, 1)
    cube = benchdnn.parse("ic3id9oc4kd3sd2pd1")
    assert cube.in_size == (9, 9, 9) and cube.stride == (2, 2, 2) and cube.padding == ((1, 1),) * 3
    assert benchdnn.parse("ic3id9ih8iw7oc4kd3kh2kw1").kernel == (3, 2, 1)


def test_padding_follows_from_the_output():
    layer = benchdnn.parse("ic3ih224oc64oh112kh7sh2")
    assert layer.problem().out_size == (112, 112) and layer.padding[0][0] == 2
    # An even kernel cannot have equal ends.
    assert benchdnn.parse("ic3ih8oc4oh8kh4").padding == ((1, 2), (1, 2))


def test_padding_at_the_end_follows_from_output_and_padding():
    assert benchdnn.parse("ic3ih224oc64oh112kh7sh2ph3").padding == ((3, 3), (3, 3))
    assert benchdnn.parse("ic3ih112oc8oh56kh3sh2ph0").padding == ((0, 1), (0, 1))
    # 1x1 with stride 2 leaves the last pixel out.
    assert benchdnn.parse("ic3ih56oc8oh28kh1sh2ph0").padding == ((0, 0), (0, 0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mb1ic64ih56oc64kh3x9", "not understood from 'x9' on"),
        ("mb1ic64ih56oc64kh", "not understood from 'kh' on"),
        ("mb1ic64ih56kh3", "'oc' is missing"),
        ("ic64oc64", "needs the extents of image and kernel"),
        ("ic64oc64ih56", "'kh' is missing"),
        ("ic64oc64kh3ph1", "'ih' is missing"),
        ("ic0oc64ih56kh3", "'ic' must be at least 1"),
        ("mb0ic64oc64ih56kh3", "'mb' must be at least 1"),
        ("ic64oc64ih56ih56kh3", "'ih' appears twice"),
        ("ic64oc64ih56kh3sh0", "'sh' must be at least 1"),
        ("ic64oc64ih56oh20kh3ph1", "oh20 contradicts the rest: the output has at least 55 there"),
        ("ic64oc64id8kd3iw8kw3", "both or none of the h and w entries"),
        ("ic64oc64ih8iw8kh3", "'kw' is missing"),
        ("ic64oc64ih8kh3n*0", "must be at least *1"),
        ("g3ic64oc64ih8kh3", "groups=3: must divide 64 channels"),
    ],
)
def test_strings_that_are_wrong_say_why(text, message):
    with pytest.raises(LayerError) as caught:
        benchdnn.parse(text)
    assert message in str(caught.value) and text in str(caught.value)


axis = st.tuples(st.integers(1, 20), st.integers(1, 5), st.integers(1, 3), st.integers(0, 3), st.integers(0, 2))


@settings(max_examples=60, deadline=None)
@given(st.lists(axis, min_size=1, max_size=3), st.booleans(), st.booleans())
def test_what_is_written_out_in_full_is_read_back(axes, with_output, with_padding):
    names = "dhw"[3 - len(axes) :]
    text, expected = "mb3ic4oc6", []
    for name, (extent, taps, stride, pad, gap) in zip(names, axes, strict=True):
        span = (taps - 1) * (gap + 1) + 1
        out = (extent + 2 * pad - span) // stride + 1
        if extent + 2 * pad < span:
            return
        expected.append(out)
        text += f"i{name}{extent}k{name}{taps}s{name}{stride}d{name}{gap}"
        text += f"o{name}{out}" if with_output else ""
        text += f"p{name}{pad}" if with_padding or not with_output else ""
    layer = benchdnn.parse(text)
    assert layer.problem().out_size == tuple(expected)
    if with_padding or not with_output:
        assert [low for low, _ in layer.padding] == [pad for _, _, _, pad, _ in axes]


def test_file_of_strings(tmp_path):
    path = write(tmp_path, '# ResNet\n\nic64ih56oc64kh1n"a"\nic64ih56oc64kh3ph1n"b*2"\n', "shapes")
    assert [(layer.name, layer.repeats) for layer in benchdnn.read_file(path)] == [("a", 1), ("b", 2)]
    assert resolve([str(path)]) == benchdnn.read_file(path)
    with pytest.raises(LayerError, match="shapes:1: '--mb=2': options of benchdnn"):
        resolve([str(write(tmp_path, "--mb=2\n", "shapes"))])
    with pytest.raises(LayerError, match="shapes:2: benchdnn string"):
        resolve([str(write(tmp_path, "ic3ih8oc4kh3\nic3ih8oc4\n", "shapes"))])


# -- networks -----------------------------------------------------------------------------------------------

# Millions of multiply-adds per image, as published.
MMACS = {
    "alexnet": 665.8,
    "alexnet_one_tower": 655.6,
    "vgg16": 15346.6,
    "googlenet": 1581.6,
    "resnet18": 1813.6,
    "resnet50": 4087.1,
    "mobilenet_v1": 567.7,
    "mobilenet_v2": 299.5,
    "squeezenet1_1": 349.2,
    "mec": 4407.3,
    "squeezenet1_0": 818.9,
    "c3d": 38496.0,  # 38.5 G
    "r3d18": 40697.0,  # 40.7 G
    "convnext_tiny": 4455.0,  # 4.5 G
    "replknet31b": 15353.0,  # 15.3 G
    # No total is published for these, or it holds more than these layers.
    "deeplab_v3": 32619.0,
    "unet": 144795.0,
    "wavenet": 20316.0,
    "wav2vec2": 2449.0,
    "conv_tasnet": 19575.0,
    "large_kernels": 1215.0,
    "survey": 52066.0,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_network_has_the_published_work(name):
    layers = network(name)
    macs = sum(layer.problem().flops * layer.repeats for layer in layers) / 2e6
    assert macs == pytest.approx(MMACS[name], rel=1e-3)
    assert len({layer.name for layer in layers}) == len(layers)
    assert all(layer.name.startswith(f"{name}/") for layer in layers)


def test_resnet50_has_53_convolutions_of_23_shapes():
    assert sum(layer.repeats for layer in network("resnet50")) == 53
    shapes = resolve(["resnet50"])
    assert len(shapes) == 23 and sum(layer.repeats for layer in shapes) == 53


@pytest.mark.parametrize("spelling", ["ResNet-50", "resnet_50", "RESNET 50", "resnet50"])
def test_spelling_of_networks_is_free(spelling):
    assert network(spelling) == network("resnet50")


def test_layers_by_name():
    assert [layer.name for layer in resolve(["mec/cv4"])] == ["mec/cv4"]
    assert [layer.name for layer in resolve(["CV4"])] == ["mec/cv4"]
    with pytest.raises(LayerError, match="in several networks: name one of alexnet/conv1"):
        resolve(["conv1"])


@pytest.mark.parametrize(
    ("word", "near"),
    [("resnet51", "resnet50"), ("mec/cv13", "mec/cv1"), ("mobilenet", "mobilenet_v"), ("vgg", "vgg16")],
)
def test_unknown_words_get_near_names(word, near):
    with pytest.raises(LayerError) as caught:
        resolve([word])
    message = str(caught.value)
    assert message.startswith(f"{word!r} is no file, no network")
    assert f"did you mean {near}" in message or near in message.partition("did you mean")[2]


def test_unknown_network_gets_near_names():
    with pytest.raises(LayerError, match="no network is called 'resnt50'; did you mean resnet50"):
        network("resnt50")


def test_a_word_that_starts_like_a_string_is_explained_as_one():
    with pytest.raises(LayerError, match="'oc' is missing"):
        resolve(["mb1ic64ih56kh3"])


def test_words_are_mixed_in_order(tmp_path):
    path = write(tmp_path, HEADER + "l,1,64,56,56,64,3,3,1,1,1,1\n")
    names = [layer.name for layer in resolve([str(path), "mec/cv1", "ic3ih8oc4kh3nx"])]
    assert names == ["l", "mec/cv1", "x"]


def test_select_by_name_and_batch():
    chosen = select(network("resnet50"), pattern="layer[12].*3x3", batches=(4,))
    assert {layer.batch for layer in chosen} == {4} and len(chosen) == 4
    assert math.prod(chosen[0].problem().x_shape) == 4 * 64 * 56 * 56
    both = select(chosen[:2], batches=(1, 8))
    assert [layer.name.rpartition("@")[2] for layer in both] == ["b1", "b8"] * 2 and both[1].batch == 8
    assert select(both, batches=(4,)) == chosen[:2]  # what differed by its batch only is one layer
    assert len(select(network("survey"), batches=(1,))) < len(network("survey"))
    with pytest.raises(LayerError, match="no regular expression"):
        select(chosen, pattern="(")
