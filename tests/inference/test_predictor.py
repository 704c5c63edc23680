"""The predictor: images and prompts of all kinds, batches, refinement, invalid input."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from models import ROUNDING, tiny_model
from PIL import Image

from SDMatte import MattePredictor
from SDMatte.errors import ConfigError, DataError, PromptError
from SDMatte.images.arrays import read_background
from SDMatte.images.io import write_image
from SDMatte.images.resize import resize_bilinear, to_tensor
from SDMatte.inference.defaults import InferenceDefaults
from SDMatte.inference.loading import offload_model
from SDMatte.prompts.pixels import read_prompts
from SDMatte.prompts.requests import PromptRequest

BOX = (9, 7, 72, 63)


def close(one, other):
    return one.shape == other.shape and np.allclose(one, other, **ROUNDING)


@pytest.mark.numerics
def test_predictions_equal_the_models_output(tiny, predictor, rgb):
    square = np.ascontiguousarray(rgb[:64, :64])
    mask = -torch.ones(1, 1, 64, 64)
    mask[..., 8:56, 16:48] = 1
    batch = {
        "image": to_tensor(resize_bilinear(square, 64) / 255)[None],
        "bbox_mask": mask,
        "bbox_coords": torch.tensor([[16, 8, 48, 56]]) / 64,
        "is_trans": torch.tensor([1]),
    }
    with torch.no_grad():
        expected = tiny(batch, aux_input="bbox_mask")[0, 0].numpy()
    predictor.set_image(square)
    result = predictor.predict(box=(16, 8, 48, 56), transparent=True)
    assert close(result.alpha, expected)
    assert not close(predictor.predict(box=(16, 8, 48, 56)).alpha, expected)
    assert close(
        predictor.predict(box=(16, 8, 48, 56), transparent=False).alpha,
        predictor.predict(box=(16, 8, 48, 56)).alpha,
    )


def test_each_prompt_gives_its_own_matte_of_the_images_size(predictor, rgb):
    predictor.set_image(rgb)
    mask = np.zeros((70, 90), np.uint8)
    mask[10:50, 20:60] = 255
    prompts = [{}, {"box": BOX}, {"points": [(30, 30)]}, {"mask": mask}, {"trimap": mask}]
    results = [predictor.predict(**prompt) for prompt in prompts]
    assert [r.prompt for r in results] == ["auto", "box", "point", "mask", "trimap"]
    for result in results:
        assert result.alpha.dtype == np.float32 and result.alpha.shape == (70, 90)
        assert 0 <= result.alpha.min() < result.alpha.max() <= 1
        np.testing.assert_array_equal(result.image, rgb)
    assert not any(close(results[0].alpha, other.alpha) for other in results[1:])


def test_a_second_prompt_does_not_encode_the_image_again(tiny, predictor, rgb):
    encoded = []
    handle = tiny.vae.encoder.register_forward_hook(lambda module, args, out: encoded.append(1))
    try:
        predictor.set_image(rgb)
        assert len(encoded) == 1
        for count in (2, 3):  # only the map of the prompt
            predictor.predict(points=[(30, 30)])
            assert len(encoded) == count
    finally:
        handle.remove()


def test_all_kinds_of_images(predictor, rgb, tmp_path):
    path = write_image(tmp_path / "a.png", rgb)
    expected = predictor.encode(rgb)
    for image in (
        path,
        str(path),
        Image.fromarray(rgb),
        np.dstack([rgb, np.full((70, 90), 255, np.uint8)]),
        rgb.astype(np.float64) / 255,
        torch.from_numpy(rgb).permute(2, 0, 1),
        torch.from_numpy(rgb).permute(2, 0, 1).float() / 255,
    ):
        encoded = predictor.encode(image)
        np.testing.assert_array_equal(encoded.image, rgb)
        torch.testing.assert_close(encoded.latent, expected.latent, **ROUNDING)
    own = rgb.copy()
    encoded = predictor.encode(own)
    own[:] = 0
    np.testing.assert_array_equal(encoded.image, rgb)
    gray = predictor.encode(rgb[..., 0])
    np.testing.assert_array_equal(gray.image, predictor.encode(rgb[..., [0] * 3]).image)


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        ("nowhere.png", "the file does not exist"),
        (None, "The image is a NoneType; an image must be a path"),
        (np.zeros((4, 4, 5), np.uint8), r"an array \[4, 4, 5\]"),
        (np.zeros((4, 4, 4), np.int64), "has int64 values"),
        (np.full((4, 4, 4), (0, 0, 0, 1.5)), "values range from 0 to 1.5"),
        (np.zeros((0, 4, 3), np.uint8), r"an array \[0, 4, 3\]"),
        (np.zeros((4, 4, 3), np.int64), "has int64 values"),
        (np.full((4, 4, 3), 255.0), "values range from 255 to 255"),
        (np.full((4, 4, 3), np.nan), "values range from nan"),
        (torch.zeros(5, 4, 3), r"a tensor \[5, 4, 3\]"),
    ],
)
def test_refused_images(predictor, rgb, image, sentence):
    predictor.set_image(rgb)
    with pytest.raises(DataError, match=sentence):
        predictor.set_image(image)
    with pytest.raises(PromptError, match="call set_image first"):
        predictor.predict(box=BOX)  # not on the previous image


@pytest.mark.numerics
def test_lists_and_batches_equal_single_predictions(tiny, rgb):
    predictor = MattePredictor(tiny, resolution=64, batch_size=2)
    encoded = predictor.set_image(rgb)
    boxes = [BOX, (0, 0, 90, 70), (40, 10, 80, 30)]
    listed = predictor.predict(box=boxes)
    single = [predictor.predict(box=box) for box in boxes]
    assert len(listed) == 3
    assert all(close(a.alpha, b.alpha) for a, b in zip(listed, single, strict=True))
    other = np.ascontiguousarray(rgb[:40])
    prompts = [{"box": BOX}, {"points": [(5, 5)]}, {"box": (1, 1, 50, 30), "transparent": True}]
    batch = predictor.predict_batch([rgb, other, other], prompts)
    for image, prompt, result in zip([rgb, other, other], prompts, batch, strict=True):
        alone = predictor.predict(**prompt, image=predictor.encode(image))
        assert close(alone.alpha, result.alpha)
    assert close(predictor.predict(box=BOX).alpha, single[0].alpha)  # the image that is set is kept
    assert close(predictor.predict(box=BOX, image=encoded).alpha, single[0].alpha)


def test_invalid_batches(predictor, rgb):
    assert predictor.predict_batch([], []) == []
    with pytest.raises(PromptError, match="2 images need as many prompts; got 1"):
        predictor.predict_batch([rgb, rgb], [{}])
    for prompt in ({"bbox": BOX}, BOX, None):
        with pytest.raises(PromptError, match="a mapping with keys of box, points"):
            predictor.predict_batch([rgb], [prompt])
    with pytest.raises(PromptError, match="not a list"):
        predictor.predict_batch([rgb], [{"box": [BOX]}])


def test_keep_aspect(tiny):
    predictor = MattePredictor(tiny, resolution=128, keep_aspect=True)
    divisor = tiny.size_divisor
    for height, width in ((60, 240), (300, 100), (3, 200)):
        image = np.zeros((height, width, 3), np.uint8)
        encoded = predictor.encode(image)
        h, w = encoded.size
        assert h % divisor == w % divisor == 0
        assert 0.4 < h * w / 128**2 < 2.6
        assert (h < w) == (height < width)
        result = predictor.predict(box=(0, 0, width, height), image=encoded)
        assert result.alpha.shape == (height, width)
    assert predictor.encode(np.zeros((60, 240, 3), np.uint8)).size == (64, 256)
    assert predictor.encode(np.zeros((1, 1, 3), np.uint8)).size == (128, 128)
    assert MattePredictor(tiny, resolution=128).encode(image).size == (128, 128)


def test_points_scale_with_the_resolution(tiny, rgb):
    fractions = []
    for resolution in (64, 128):
        predictor = MattePredictor(tiny, resolution=resolution)
        assert predictor.point_radius == 35 * resolution / 1024
        seen = []
        handle = tiny.vae.encoder.register_forward_pre_hook(lambda m, args, s=seen: s.append(args))
        try:
            predictor.predict(points=[(45, 35)], image=predictor.encode(rgb))
        finally:
            handle.remove()
        fractions.append(float((seen[1][0] > 0).float().mean()))
    assert fractions[0] == pytest.approx(fractions[1], rel=0.2) and fractions[0] > 0


def test_points_are_drawn_as_in_training(tiny, rgb):
    mattes = [
        MattePredictor(tiny, defaults=InferenceDefaults(resolution=64, psm=psm))
        for psm in ("gauss", "circle")
    ]
    gauss, circle = (p.predict(points=[(30, 30)], image=p.encode(rgb)).alpha for p in mattes)
    assert not np.array_equal(gauss, circle)


def test_at_resolution_shares_the_model_and_the_settings(tiny, rgb):
    first = MattePredictor(
        tiny, resolution=64, keep_aspect=True, prompts=["point"], batch_size=2, progress=True
    )
    other, direct = first.at_resolution(128), MattePredictor(tiny, resolution=128)
    assert other.model is tiny and other.point_radius == direct.point_radius
    for name in ("keep_aspect", "prompts", "batch_size", "device", "progress"):
        assert getattr(other, name) == getattr(first, name)
    with pytest.raises(ConfigError, match="resolution must be a positive multiple of"):
        first.at_resolution(100)


def test_a_model_trained_with_boxes_refuses_other_prompts(rgb):
    predictor = MattePredictor(tiny_model(aux_input_list=["bbox_mask"]), resolution=64)
    predictor.set_image(rgb)
    assert predictor.prompts == ("box", "auto")
    predictor.predict(box=BOX)
    mask = np.ones((70, 90), bool)
    for name, prompt in (
        ("point", {"points": [(1, 1)]}),
        ("mask", {"mask": mask}),
        ("trimap", {"trimap": mask * 255}),
    ):
        with pytest.raises(PromptError, match=f"does not accept {name} prompts, but box"):
            predictor.predict(**prompt)
    other = MattePredictor(predictor.model, resolution=64, prompts=["box", "point_mask"])
    other.predict(points=[(1, 1)], image=other.encode(rgb))


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"resolution": 100}, "resolution must be a positive multiple of 32; got 100"),
        ({"resolution": 0}, "got 0"),
        ({"resolution": 64.0}, "got 64.0"),
        ({"batch_size": 0}, "batch_size must be a positive integer; got 0"),
        ({"prompts": []}, "prompts must name at least one"),
    ],
)
def test_invalid_settings(tiny, setting, sentence):
    with pytest.raises(ConfigError, match=sentence):
        MattePredictor(tiny, **setting)


def test_invalid_arguments(predictor, rgb):
    predictor.set_image(rgb)
    with pytest.raises(PromptError, match="pairs of numbers"):
        predictor.predict(points=[[True, False]])
    with pytest.raises(ConfigError, match="refine must be one of none, guided, tiles"):
        predictor.predict(box=BOX, refine="twice")
    with pytest.raises(DataError, match="image must come from encode or set_image"):
        predictor.predict(box=BOX, image=rgb)
    with pytest.raises(PromptError, match="transparent must be True, False or None"):
        predictor.predict(box=BOX, transparent="yes")


def test_overflow_is_an_error(rgb):
    model = tiny_model()
    with torch.no_grad():
        model.vae.decoder.conv_out.bias.fill_(torch.nan)
    predictor = MattePredictor(model, resolution=64)
    predictor.set_image(rgb)
    with pytest.raises(ConfigError, match="Values overflow in torch.float32"):
        predictor.predict(box=BOX)


@pytest.mark.numerics
def test_bfloat16_is_close_to_float32(predictor, rgb):
    half = MattePredictor(tiny_model(aux_input=None).to(torch.bfloat16), resolution=64)
    alphas = [p.predict(box=BOX, image=p.encode(rgb)).alpha for p in (predictor, half)]
    assert alphas[1].dtype == np.float32
    difference = np.abs(alphas[0] - alphas[1]).mean()
    assert 0 < difference < 0.05  # coarse, since random weights saturate nowhere


@pytest.mark.numerics
def test_offloaded_models_give_the_same_mattes(predictor, rgb):
    model = tiny_model(aux_input=None)
    offload_model(model, torch.device("cpu"))
    offloaded = MattePredictor(model, resolution=64, device=torch.device("cpu"))
    alphas = [p.predict(box=BOX, image=p.encode(rgb)).alpha for p in (predictor, offloaded)]
    assert close(*alphas)
    hooks = [part._hf_hook for part in (model.vae, model.unet, model.unet.aux_conv_in)]
    assert hooks[0].prev_module_hook.model is model.unet
    assert hooks[1].prev_module_hook.model is model.vae


def test_large_images_are_refined_at_the_edges(tiny):
    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(0, 256, (12, 16, 3)), np.ones((32, 32, 1))).astype(np.uint8)
    predictor = MattePredictor(tiny, resolution=128)
    encoded = predictor.set_image(image)
    assert encoded.image.shape == (384, 512, 3)
    box = (100, 75, 375, 300)
    plain, fine = predictor.predict(box=box), predictor.predict(box=box, refine="tiles")
    assert fine.alpha.shape == (384, 512) and fine.alpha.dtype == np.float32
    assert np.isfinite(fine.alpha).all() and fine.alpha.min() >= 0 and fine.alpha.max() <= 1
    assert not close(plain.alpha, fine.alpha)
    # Structure that both passes resolve is unchanged.
    small = [np.array(Image.fromarray(r.alpha).reduce(32)) for r in (plain, fine)]
    assert np.abs(small[0] - small[1]).max() < 0.02


def test_models_without_masks_refine_with_boxes():
    model = tiny_model(aux_input_list=["bbox_mask"])
    predictor = MattePredictor(model, resolution=64)
    image = np.random.default_rng(0).integers(0, 256, (96, 160, 3), dtype=np.uint8)
    predictor.set_image(image)
    result = predictor.predict(box=(20, 20, 120, 80), refine="tiles")
    assert result.alpha.shape == (96, 160)


coordinates = st.one_of(st.integers(-3, 40), st.floats(-3, 40), st.just(float("nan")))


@settings(max_examples=15)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    prompt=st.one_of(
        st.fixed_dictionaries({"box": st.tuples(*[coordinates] * 4)}),
        st.fixed_dictionaries({"box": st.tuples(*[st.floats(0, 1, width=16)] * 4)}),
        st.fixed_dictionaries(
            {"points": st.lists(st.tuples(coordinates, coordinates), max_size=11)}
        ),
        st.just({}),
    ),
    refine=st.sampled_from([None, "tiles"]),
)
def test_any_prompt_gives_a_matte_in_range_or_an_error(predictor, height, width, prompt, refine):
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    try:
        result = predictor.predict(**prompt, refine=refine, image=predictor.encode(image))
    except PromptError:
        return
    assert result.alpha.shape == (height, width)
    assert result.alpha.min() >= 0 and result.alpha.max() <= 1  # false of NaN
    assert result.cutout().shape == (height, width, 4)


def _encoded_images():
    """Return a small image as bytes in each format."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8))
    files = {}
    for suffix in ("png", "jpg", "webp", "tif", "bmp", "gif"):
        stream = io.BytesIO()
        image.save(stream, {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix))
        files[suffix] = stream.getvalue()
    return files


FILES = _encoded_images()


@st.composite
def damaged_files(draw):
    """Truncated and overwritten image files, or arbitrary bytes."""
    if draw(st.booleans()) and draw(st.booleans()):
        return draw(st.sampled_from(sorted(FILES))), draw(st.binary(max_size=200))
    suffix = draw(st.sampled_from(sorted(FILES)))
    data = bytearray(FILES[suffix])
    for _ in range(draw(st.integers(0, 6))):
        # Half of the damage is in the header.
        end = draw(st.sampled_from([64, len(data)])) - 1
        data[draw(st.integers(0, end))] = draw(st.integers(0, 255))
    return suffix, bytes(data[: draw(st.integers(0, len(data)) | st.just(len(data)))])


@settings(max_examples=150)
@given(file=damaged_files(), use=st.sampled_from(["background", "mask", "trimap"]))
def test_damaged_files_are_read_or_refused(predictor, tmp_path_factory, rgb, file, use):
    path = tmp_path_factory.getbasetemp() / f"damaged.{file[0]}"
    path.write_bytes(file[1])
    try:
        if use == "background":
            image = read_background(path)
            assert image.dtype == np.uint8 and image.shape[2] == 3
        else:
            whole = np.zeros((24, 30, 3), np.uint8)
            given = PromptRequest(use, path).load(path)
            read_prompts(whole.shape[:2], **{use: given[use]})
    except (DataError, PromptError) as error:
        assert "\n" not in str(error) and str(error).endswith(".")


@settings(max_examples=12)
@given(
    kind=st.sampled_from(["mask", "trimap"]),
    values=arrays(np.uint8, (9, 13), elements=st.sampled_from([0, 1, 128, 255])),
    refine=st.sampled_from([None, "tiles"]),
)
def test_any_map_gives_a_matte_in_range_or_an_error(predictor, kind, values, refine):
    image = np.random.default_rng(1).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    encoded = predictor.encode(image)
    try:
        result = predictor.predict(**{kind: values}, refine=refine, image=encoded)
    except PromptError:
        return
    assert result.alpha.shape == (9, 13)
    assert result.alpha.min() >= 0 and result.alpha.max() <= 1  # false of NaN


def test_cropping_to_the_prompt(tiny, rgb):
    """Models that crop see only the surroundings of the prompt; nothing else has an influence."""
    predictor = MattePredictor(tiny, resolution=64, crop_margin=0.25)
    box = (20, 16, 60, 40)
    result = predictor.predict(box=box, image=predictor.encode(rgb))
    window = (slice(10, 46), slice(10, 70))  # a quarter of 24 and 40 on each side
    outside = np.ones(rgb.shape[:2], bool)
    outside[window] = False
    assert result.alpha.shape == rgb.shape[:2]
    assert result.alpha[outside].max() == 0 and result.alpha[window].mean() > 0.1
    other = np.where(outside[..., None], 255 - rgb, rgb)
    again = predictor.predict(box=box, image=predictor.encode(other))
    np.testing.assert_array_equal(again.alpha, result.alpha)  # the same computation
    whole = MattePredictor(tiny, resolution=64)
    part = whole.predict(box=(10, 6, 50, 30), image=whole.encode(rgb[window]))
    assert close(part.alpha, result.alpha[window])


def test_crops_stay_within_the_image(tiny, rgb):
    predictor = MattePredictor(tiny, resolution=64, crop_margin=1.0)
    height, width = rgb.shape[:2]
    mask = np.zeros((height, width), bool)
    mask[height - 1, width - 1] = True
    for prompt in (
        {"box": (0, 0, 2, 1)},
        {"box": (0, 0, width, 1)},
        {"mask": mask},
        {"trimap": mask * np.uint8(255)},
        {"points": [(0, 0)]},
        {},
    ):
        alpha = predictor.predict(**prompt, image=predictor.encode(rgb)).alpha
        assert alpha.shape == (height, width) and 0 <= alpha.min() <= alpha.max() <= 1
    boxes = [(0, 0, 30, 30), (5, 5, 80, 60)]
    together = predictor.predict(box=boxes, image=predictor.encode(rgb))
    for box, result in zip(boxes, together, strict=True):
        assert close(predictor.predict(box=box, image=predictor.encode(rgb)).alpha, result.alpha)


def test_cropping_encodes_the_whole_image_only_for_prompts_that_need_it(tiny, rgb):
    predictor = MattePredictor(tiny, resolution=64, crop_margin=0.1)
    encoded = predictor.set_image(rgb)
    predictor.predict(box=(20, 16, 60, 40))
    assert "encoding" not in vars(encoded)
    predictor.predict(points=[(30, 30)])
    latent = encoded.latent
    predictor.predict(points=[(40, 30)])
    assert encoded.latent is latent


def test_cropping_transparent_images(tiny, rgb):
    predictor = MattePredictor(tiny, resolution=64, crop_margin=0.1)
    opacity = np.full((*rgb.shape[:2], 1), 255, np.uint8)
    opacity[20:30] = 100
    image = np.concatenate([rgb, opacity], axis=2)
    alpha = predictor.predict(box=(20, 10, 60, 60), image=predictor.encode(image)).alpha
    assert (alpha <= opacity[..., 0] / np.float32(255)).all()
    with pytest.raises(ConfigError, match="crop_margin must be at least 0; got -1"):
        MattePredictor(tiny, crop_margin=-1)


def test_guided_refinement(tiny, rgb):
    predictor = MattePredictor(tiny, resolution=64)
    encoded = predictor.encode(rgb)
    plain, guided = (predictor.predict(box=BOX, refine=r, image=encoded) for r in (None, "guided"))
    assert not close(plain.alpha, guided.alpha)
    predictor.refine = "guided"
    assert close(predictor.predict(box=BOX, image=encoded).alpha, guided.alpha)
    assert close(predictor.predict(box=BOX, refine="none", image=encoded).alpha, plain.alpha)
