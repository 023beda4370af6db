"""T1, S1, S2: shapes, parameters, receptive fields."""

import pytest
import torch

from common.device import fuse
from common.errors import UserError
from common.models.unet import parameters, student_s1, student_s2, teacher_t1


@pytest.mark.parametrize(
    ("build", "count"), [(teacher_t1, 43_236_036), (student_s1, 57_297), (student_s2, 227_233)]
)
def test_parameter_counts_are_the_thesis_s(build, count):
    assert parameters(build()) == count


def test_shapes_and_names():
    out = teacher_t1(width=4, num_classes=3)(torch.rand(2, 3, 48, 32))
    assert out.logits.shape == (2, 3, 48, 32)
    assert out.reconstruction.shape == (2, 3, 48, 32)
    assert out.reconstruction.min() >= 0 and out.reconstruction.max() <= 1
    shapes = {name: tuple(f.shape[1:]) for name, f in out.features.items()}
    assert shapes.pop("stride4") == (8, 12, 8)
    assert shapes == {"encoder": (32, 6, 4), "bottleneck": (64, 3, 2), "decoder": (4, 48, 32)}
    assert student_s1()(torch.rand(1, 3, 32, 32)).reconstruction is None


def test_reconstruct_false_skips_the_decoder_and_keeps_the_logits():
    model, images = teacher_t1(width=4).eval(), torch.rand(1, 3, 32, 32)
    short = model(images, reconstruct=False)
    assert short.reconstruction is None
    assert torch.equal(short.logits, model(images).logits)


@pytest.mark.parametrize(("size", "better"), [(30, 32), (33, 48), (8, 16)])
def test_a_size_it_cannot_take_names_the_next_that_works(size, better):
    with pytest.raises(UserError, match=f"--size {better}"):
        teacher_t1(width=4)(torch.rand(1, 3, size, size))


@pytest.mark.parametrize(("build", "count"), [(student_s1, 57_187), (student_s2, 226_917)])
def test_deep_students_have_as_many_parameters_as_the_thesis_s(build, count):
    assert parameters(build(deep=True)) == count
    assert abs(parameters(build()) - count) < 0.003 * count


@pytest.mark.parametrize(("build", "pixels"), [(student_s1, 26), (student_s2, 26)])
@pytest.mark.parametrize(("deep", "farther"), [(False, 0), (True, 84)])
def test_what_the_students_see(build, pixels, deep, farther):
    model = build(deep=deep).eval()
    for name, parameter in model.named_parameters():  # positive weights: nothing cancels
        parameter.data = parameter.data.abs() + 0.01 if "weight" in name else parameter.data
    widest = 0
    for row in range(72, 88):  # the field depends on the place within the pooling grid
        images = torch.rand(1, 3, 160, 160, requires_grad=True)
        model(images).logits[0, 0, row, 80].backward()
        seen = images.grad.abs().sum((0, 1, 3)).nonzero()
        widest = max(widest, int(seen.max() - seen.min()) + 1)
    assert widest == pixels + farther


def test_images_of_a_batch_do_not_touch_each_other_in_eval_mode():
    model, images = teacher_t1(width=4).eval(), torch.rand(3, 3, 32, 32)
    alone = torch.cat([model(image[None]).logits for image in images])
    assert torch.allclose(model(images).logits, alone, atol=1e-5)


def test_folded_batch_norm_gives_the_same_logits():
    model = teacher_t1(width=4)
    for _ in range(3):
        model(torch.rand(4, 3, 32, 32))  # statistics that are not 0 and 1
    model.eval().requires_grad_(False)
    images = torch.rand(2, 3, 32, 32)
    expected = model(images)
    fuse(model)
    assert not [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert torch.allclose(model(images).logits, expected.logits, atol=1e-5)
    assert torch.allclose(model(images).reconstruction, expected.reconstruction, atol=1e-5)
