"""The one path from a slice to the network's input."""

from d2_covid.data.preprocessing import misread_16_bit, network_input, read_slice, window_to_uint8
from d2_covid.errors import UserError

import numpy as np
import pytest
import torch
from detectron2.data.transforms import ResizeShortestEdge
from PIL import Image


@pytest.fixture
def gray() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)


def _rgba(gray, alpha):
    return Image.fromarray(np.dstack([gray, gray, gray, np.full_like(gray, alpha)]))


@pytest.mark.parametrize(
    "make",
    [
        Image.fromarray,
        lambda g: Image.fromarray(g).convert("RGB"),
        lambda g: _rgba(g, 0),
        lambda g: _rgba(g, 200),
        lambda g: Image.fromarray(np.dstack([g, np.full_like(g, 3)]), mode="LA"),
        lambda g: Image.fromarray(g.astype(np.uint16) * 257),
    ],
    ids=["L", "RGB", "RGBA transparent", "RGBA", "LA", "16-bit"],
)
def test_gray_of_any_format_is_read_exactly(gray, make, tmp_path):
    make(gray).save(tmp_path / "slice.png")
    read = read_slice(tmp_path / "slice.png")
    assert read.dtype == np.uint8 and read.flags.writeable
    np.testing.assert_array_equal(read, gray)


def test_palette_is_looked_up(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), mode="P")
    image.putpalette([10, 10, 10, 200, 200, 200, 90, 90, 90])
    image.save(tmp_path / "slice.png")
    np.testing.assert_array_equal(read_slice(tmp_path / "slice.png"), [[10, 200], [90, 200]])


def test_colour_becomes_luminance(tmp_path):
    Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], dtype=np.uint8)).save(tmp_path / "slice.png")
    np.testing.assert_array_equal(read_slice(tmp_path / "slice.png"), [[76, 150, 29]])


def test_16_bit_is_scaled_from_its_full_range(tmp_path):
    values = np.array([[0, 128, 129, 32768, 65534, 65535]], dtype=np.uint16)
    for name in ("slice.png", "slice.tif"):
        Image.fromarray(values).save(tmp_path / name)
        np.testing.assert_array_equal(read_slice(tmp_path / name), [[0, 0, 1, 128, 255, 255]])


@pytest.mark.parametrize("bits", [16, 32])
def test_dark_gray_is_said_to_have_more_than_8_bits(tmp_path, bits):
    Image.fromarray(np.array([[0, 4095]], dtype=np.uint16 if bits == 16 else np.int32)).save(tmp_path / "slice.tif")
    assert read_slice(tmp_path / "slice.tif").max() == 16
    kind, message = misread_16_bit(tmp_path / "slice.tif")
    assert kind == "dark_16_bit" and "slice.tif has more than 8 bits a pixel and no value above 4095" in message


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize(
    ("lowest", "highest", "narrow"),
    [(31700, 36900, True), (0, 8191, True), (0, 8192, False), (57344, 65535, True), (5000, 5000, False), (0, 0, False)],
)
def test_few_values_of_many_are_said(tmp_path, bits, lowest, highest, narrow):
    values = np.array([[lowest, highest]], dtype=np.uint16 if bits == 16 else np.int32)
    Image.fromarray(values).save(tmp_path / "slice.tif")
    found = misread_16_bit(tmp_path / "slice.tif")
    assert (found is not None) == narrow
    if narrow:
        kind, message = found
        dark, bright = read_slice(tmp_path / "slice.tif").ravel()
        assert kind == "narrow_16_bit" and f"only values from {lowest} to {highest};" in message
        assert "slice.tif has more than 8 bits a pixel" in message
        assert f"so this one is gray {dark} to {bright} of 255" in message


@pytest.mark.parametrize("values", [np.array([[-5, 7]], np.int32), np.array([[0.5, 7]], np.float32)])
def test_values_that_are_no_gray_levels_are_refused(values, tmp_path):
    Image.fromarray(values).save(tmp_path / "slice.tif")
    with pytest.raises(UserError, match=r"slice\.tif holds"):
        read_slice(tmp_path / "slice.tif")


def test_several_frames_are_refused(gray, tmp_path):
    frames = [Image.fromarray(gray), Image.fromarray(255 - gray)]
    frames[0].save(tmp_path / "stack.tif", save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match=r"stack\.tif holds 2 frames"):
        read_slice(tmp_path / "stack.tif")


def test_exif_orientation_does_not_turn_the_pixels(gray, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(gray).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_slice(tmp_path / "turned.png"), gray)


def test_symbolic_links_are_followed(gray, tmp_path):
    Image.fromarray(gray).save(tmp_path / "slice.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "slice.png")
    np.testing.assert_array_equal(read_slice(tmp_path / "link.png"), gray)


def test_window_ends_centre_and_rounding():
    # Width 255 makes one Hounsfield unit one gray level.
    hounsfield = np.array([-2000, -127.5, -127.1, -126.9, -127, 0, 127.4, 127.5, 3000, np.nan])
    np.testing.assert_array_equal(window_to_uint8(hounsfield, 0, 255), [0, 0, 0, 1, 1, 128, 255, 255, 255, 0])
    assert window_to_uint8(np.full((2, 3), -600, np.int16), -600, 1500).tolist() == [[128] * 3] * 2


@pytest.mark.parametrize("width", [0, -1, float("nan")])
def test_window_without_width_is_refused(width):
    with pytest.raises(UserError, match="width above 0"):
        window_to_uint8(np.zeros(1), 0, width)


@pytest.mark.parametrize("shape", [(64, 64), (40, 70), (70, 40), (300, 20), (1, 1)])
@pytest.mark.parametrize("sizes", [(64, 128), (33, 50), (0, 50)])
def test_network_input_has_the_bytes_of_detectron2(shape, sizes):
    image = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    rgb = np.repeat(image[..., None], 3, axis=2)
    expected = ResizeShortestEdge([sizes[0]] * 2, sizes[1]).get_transform(rgb).apply_image(rgb)
    result = network_input(image, *sizes)
    assert result.dtype == torch.uint8 and result.is_contiguous()
    np.testing.assert_array_equal(result.numpy(), expected.transpose(2, 0, 1))


def test_network_input_is_a_copy():
    image = np.zeros((8, 8), dtype=np.uint8)
    network_input(image, 8, 8).fill_(9)
    assert image.max() == 0


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.float32)])
def test_network_input_takes_slices_only(image):
    with pytest.raises(ValueError, match="uint8"):
        network_input(image, 8, 8)
