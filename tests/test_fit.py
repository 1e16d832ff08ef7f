"""Pictures come to the size that a model wants as its authors prepared them."""

import av
import numpy as np
import pytest

from vta_sam.media.picture_reader import CentreCrop, Squeeze, Within
from vta_sam.media.video import read_clip

SHAPES = [(240, 320), (720, 1280), (720, 720), (1280, 720), (360, 626), (224, 224), (100, 41), (1080, 1920), (7, 3)]


def psnr_db(a, b):
    return -10 * np.log10(np.mean((a.astype(float) - b.astype(float)) ** 2) / 255 ** 2)


def landscape(height, width):
    """A picture like a photograph: light falling off, edges at all angles, fine and coarse texture."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:height, :width] / height
    picture = np.stack([90 + 80 * y, 120 + 40 * x, 200 - 90 * y], -1)
    for _ in range(40):
        (cx, cy), r, colour = rng.uniform(0, 1.7, 2), rng.uniform(0.02, 0.25), rng.uniform(20, 235, 3)
        angle = rng.uniform(0, np.pi)
        inside = (abs((x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)) < r) & (
            abs((y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)) < 0.5 * r)
        picture[inside] = colour + 25 * np.sin(rng.uniform(20, 200) * (x + y))[inside][:, None]
    return (picture + rng.normal(0, 4, picture.shape)).clip(0, 255).astype(np.uint8)


def full_size(path):
    """The pictures of a video as they are stored, RGB."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize("height, width", SHAPES)
def test_a_centre_crop_has_the_sizes_of_clips_own(height, width):
    from transformers.image_transforms import get_resize_output_image_size

    for side in (224, 336):
        like = get_resize_output_image_size(np.zeros((height, width, 3), np.uint8), side, default_to_square=False,
                                            input_data_format="channels_last")
        fit = CentreCrop(side)
        assert fit.scaled(height, width) == like and fit.kept(*like) == (side, side)


@pytest.mark.parametrize("height, width", SHAPES)
def test_within_bounds_keeps_the_shape_and_enlarges_nothing(height, width):
    fit = Within(800, 1333)
    high, wide = fit.scaled(height, width)
    assert min(high, wide) <= 800 and max(high, wide) <= 1333 and fit.kept(high, wide) == (high, wide)
    assert (high, wide) == (height, width) or min(high, wide) == 800 or max(high, wide) == 1333
    assert high <= height and abs(high / wide - height / width) <= 0.5 * (high + wide) / wide ** 2
    assert fit.scaled(height, width) == fit.scaled(width, height)[::-1]


def test_squeezing_knows_no_shape():
    assert {Squeeze(30, 40).scaled(*shape) for shape in SHAPES} == {(30, 40)} == {Squeeze(30, 40).kept(30, 40)}


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1152, 640), (480, 640), (626, 360)])  # width, height; untagged, of BT.601's lines
def test_a_centre_crop_is_what_clips_processor_makes(make_video, tmp_path, size):
    from transformers import CLIPImageProcessor

    path = make_video(tmp_path / "a.mp4", size=size, picture=lambda i: landscape(size[1], size[0]), duration_s=0.08)
    crop = read_clip(path, fps=25, fits=[CentreCrop(224)], want_audio=False).frames[0][0]
    processor = CLIPImageProcessor(do_rescale=False, do_normalize=False)  # 224 pixels, PIL's bicubic
    wanted = processor(full_size(path)[0], return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    assert psnr_db(crop, wanted) >= 35
    moved = np.roll(wanted, 1, axis=1)
    assert psnr_db(crop, wanted) > psnr_db(crop, moved) + 6  # a shift by a pixel would show


def test_what_is_cut_out_is_the_middle_of_the_upright_picture(make_video, tmp_path):
    """Stripes of three colours across the longer side: the crop shows the middle one alone, however it is turned."""
    stripes = np.repeat(np.array([(220, 20, 20), (20, 220, 20), (20, 20, 220)], np.uint8), 64, 0)[None].repeat(64, 0)
    for degrees in (0, 90, 180, 270):
        path = make_video(tmp_path / f"{degrees}.mp4", size=(192, 64), picture=lambda i: stripes, rotation=degrees,
                          duration_s=0.08)
        crop, whole = read_clip(path, fps=25, fits=[CentreCrop(32), Within(48, 400)], want_audio=False).frames
        assert crop.shape == (2, 32, 32, 3) and whole.shape == ((2, 144, 48, 3) if degrees % 180 else (2, 48, 144, 3))
        assert (crop[:, :, 3:-3, 1] > 150).all() if degrees % 180 == 0 else (crop[:, 3:-3, :, 1] > 150).all()


def test_a_stream_that_changes_its_size_keeps_that_of_its_first_picture(make_video, tmp_path):
    """Two streams of MPEG packets one after the other are one stream whose pictures grow."""
    small = make_video(tmp_path / "a.ts", size=(64, 48), duration_s=0.4)
    large = make_video(tmp_path / "b.ts", size=(128, 64), times_s=0.4 + np.arange(10) / 25)
    joined = tmp_path / "c.ts"
    joined.write_bytes(small.read_bytes() + large.read_bytes())
    assert {picture.shape for picture in full_size(joined)} == {(48, 64, 3), (64, 128, 3)}
    frames = read_clip(joined, fps=25, fits=[Within(40, 60), Squeeze(8, 8)], want_audio=False).frames
    assert frames[0].shape[1:] == (40, 53, 3) and len(frames[0]) == len(frames[1]) > 15
