"""The objective of a student with a teacher."""

import pytest
import torch
from small_trainings import batch_of

from common.errors import UserError
from common.losses.distillation import Distiller, fingerprint
from common.losses.map_terms import with_background
from common.losses.segmentation import SegmentationObjective
from common.models.unet import student_s1, teacher_t1
from common.settings import SCALES, TERMS, DistillationConfig


def distiller(**changes):
    torch.manual_seed(0)
    student, config = student_s1(), DistillationConfig(**changes)
    teacher = None if config.control == "no-teacher" else teacher_t1(width=4)
    return Distiller(student, teacher, 32, config)


# The distiller


FORMS = ("dense", "image", "mse")


@pytest.mark.parametrize("contrast", FORMS)
def test_every_term_has_a_gradient_at_the_student(contrast):
    objective = distiller(contrast=contrast, **dict.fromkeys(TERMS, 1.0))
    losses = objective(batch_of(4))
    assert list(losses) == ["segmentation", *TERMS, *(f"contrast_{s}" for s in SCALES)]
    for name, loss in losses.items():
        objective.zero_grad()
        loss.backward(retain_graph=True)
        gradient = objective.model.levels[0][0].weight.grad
        assert gradient.abs().sum() > 0, name


@pytest.mark.parametrize("contrast", FORMS)
def test_every_term_has_a_gradient_at_a_student_of_several_classes(contrast):
    torch.manual_seed(0)
    config = DistillationConfig(contrast=contrast, **dict.fromkeys(TERMS, 1.0))
    objective = Distiller(student_s1(4), teacher_t1(width=4, num_classes=4), 32, config)
    batch = batch_of(4)
    batch["mask"][1, 2:6, 2:6] = 3  # the second class of three is nowhere
    losses = objective(batch)
    assert list(losses) == ["segmentation", *TERMS, *(f"contrast_{s}" for s in SCALES)]
    for name, loss in losses.items():
        objective.zero_grad()
        loss.backward(retain_graph=True)
        gradient = objective.model.levels[0][0].weight.grad
        assert gradient.isfinite().all() and gradient.abs().sum() > 0, name


def test_two_channels_and_a_softmax_are_one_channel_and_a_sigmoid():
    torch.manual_seed(0)
    terms = dict.fromkeys(("prediction", "channelwise", "border", "affinity"), 1.0)
    objective, batch = distiller(**terms), batch_of(4)
    one = [objective.model(batch["image"]), objective.teacher(batch["image"])]
    two = [o._replace(logits=with_background(o.logits)) for o in one]
    found = []
    for student, teacher in (one, two):
        with_border = objective._with_border(batch["mask"], student.logits.shape[1])
        torch.manual_seed(1)  # the pixels that the contrast draws
        losses = objective.scale_terms(student, teacher, with_border)
        losses |= objective.map_terms(student, teacher, batch["mask"])
        # Where the class is: what is not there, only the one-channel form counts in its Dice.
        losses["segmentation"] = objective.segmentation(student.logits[:2], batch["mask"][:2])
        found.append(losses)
    assert len(found[0]) == 8
    # A mean over channels: the background's, 0 everywhere in both, is one more and adds nothing.
    found[1]["channelwise"] *= 2
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("contrast", FORMS)
@pytest.mark.parametrize("count", [1, 3])
def test_short_last_batches_and_empty_slices_are_taken(contrast, count):
    batch = batch_of(count)
    batch["mask"].zero_()
    losses = distiller(contrast=contrast, **dict.fromkeys(TERMS, 1.0))(batch)
    assert all(loss.isfinite() for loss in losses.values())


def test_projections_are_in_the_optimizer_and_move_and_the_teacher_does_not():
    objective = distiller()
    teacher = objective.teacher
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    projections = {k: v.clone() for k, v in objective.scales.state_dict().items()}
    assert len(projections) == 3 * 2 * 2
    ours = {id(p) for p in objective.parameters()}
    assert not ours & {id(p) for p in teacher.parameters()}
    kept = {k.split(".")[0] for k in objective.state_dict()}
    assert kept == {"model", "scales", "_extra_state"}
    optimizer = torch.optim.AdamW(objective.parameters(), 1e-2)
    objective.train()
    for _ in range(2):
        optimizer.zero_grad()
        sum(objective(batch_of(4)).values()).backward()
        optimizer.step()
    assert not teacher.training
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
    now = objective.scales.state_dict()
    assert all(not torch.equal(projections[k], now[k]) for k in projections)


def test_the_teacher_does_not_compute_its_reconstruction():
    objective = distiller()
    calls = []
    objective.teacher.reconstruction.register_forward_hook(lambda *_: calls.append(1))
    objective(batch_of(2))
    assert not calls


def test_a_folded_teacher_says_what_it_said():
    torch.manual_seed(0)
    teacher, images = teacher_t1(width=4), torch.rand(2, 3, 32, 32)
    for module in teacher.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # of a trained network, not 0 and 1
            torch.nn.init.uniform_(module.weight, 0.5, 2)
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.2, 2)
    before, name = teacher.eval()(images), fingerprint(teacher)
    objective = Distiller(student_s1(), teacher, 32, DistillationConfig())
    after = objective.teacher(images)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    assert objective.fingerprint == name  # its own, not that of a sum that rounds differently
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in objective.teacher.modules())


def test_a_dummy_forward_leaves_no_trace():
    student = student_s1()
    before = {k: v.clone() for k, v in student.state_dict().items()}
    Distiller(student, teacher_t1(width=4), 32, DistillationConfig())
    assert student.training
    assert all(torch.equal(before[k], v) for k, v in student.state_dict().items())


def test_with_weights_zero_it_is_the_plain_student():
    nothing = distiller(prediction=0.0, encoder=0.0, bottleneck=0.0, decoder=0.0)
    torch.manual_seed(0)
    plain = SegmentationObjective(student_s1())
    batch = batch_of(4)
    assert list(nothing(batch)) == ["segmentation"]
    assert torch.equal(nothing(batch)["segmentation"], plain(batch)["segmentation"])


def test_scales_and_weights_choose_the_terms():
    only = distiller(scales=("bottleneck",), prediction=0.0)
    assert list(only(batch_of(2))) == ["segmentation", "contrast_bottleneck"]
    assert list(only.scales) == ["bottleneck"]
    loss, twice = (distiller(bottleneck=w, control="none") for w in (0.5, 1.0))
    terms = []
    for objective in (loss, twice):
        torch.manual_seed(5)
        terms.append(objective(batch_of(4)))
    assert torch.allclose(2 * terms[0]["contrast_bottleneck"], terms[1]["contrast_bottleneck"])


@pytest.mark.parametrize(("control", "shift"), [("other-image", 1), ("other-features", 0)])
def test_a_control_has_the_teacher_look_at_another_image(control, shift):
    images = batch_of(3)["image"]
    objective = distiller(control=control)
    true, known = (
        objective.teacher(images),
        objective.teacher_output(images, objective.model(images)),
    )
    assert torch.equal(known.logits, true.logits.roll(shift, 0))
    for name, value in known.features.items():
        assert torch.equal(value, true.features[name].roll(1, 0))
    single = objective.teacher_output(images[:1], objective.model(images[:1]))
    assert not single.features["decoder"].any()  # no other image: nothing is known


def test_without_a_teacher_its_maps_are_the_student_s_own_and_the_contrast_is_left():
    objective = distiller(control="no-teacher", **dict.fromkeys(TERMS, 1.0))
    assert objective.teacher is None
    losses = objective(batch_of(4))
    for name in TERMS:
        assert losses[name].item() == pytest.approx(0, abs=1e-5), name
    objective.zero_grad()
    losses["contrast_decoder"].backward()
    assert objective.model.levels[0][0].weight.grad.abs().sum() > 0


def test_the_segmentation_loss_is_weighted():
    batch = batch_of(4)
    whole, part = distiller(), distiller(segmentation=0.4)
    assert torch.allclose(part(batch)["segmentation"], 0.4 * whole(batch)["segmentation"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"unlabelled": True, "train_on": "train"}, "leaves no patient without labels"),
        ({"unlabelled": True, "augment": False}, "not with --no-augment"),
    ],
)
def test_flags_that_exclude_each_other(flags, words):
    with pytest.raises(UserError, match=words):
        DistillationConfig(**flags)


# Images without labels


def test_unlabelled_images_reach_the_teacher_s_terms_and_not_the_segmentation():
    batch = batch_of(4)
    objective = distiller(**dict.fromkeys(TERMS, 1.0))
    # Eval mode: in training BatchNorm mixes the images' statistics.
    objective.model.eval()
    more = {**batch, "unlabelled": torch.rand(2, 3, 32, 32)}
    without, with_them = objective(batch), objective(more)
    assert torch.allclose(without["segmentation"], with_them["segmentation"])
    for name in ("prediction", "affinity"):
        assert not torch.allclose(without[name], with_them[name]), name
    shown = []
    objective.model.register_forward_hook(lambda _, __, output: shown.append(output.logits))
    losses = objective(more)
    for name, reaches in (("segmentation", False), ("prediction", True)):
        gradient = torch.autograd.grad(losses[name], shown[0], retain_graph=True)[0]
        assert bool(gradient[4:].any()) == reaches, name


def test_the_labels_of_unlabelled_images_are_the_teacher_s_prediction():
    batch, seen = batch_of(2), []
    batch["unlabelled"] = torch.rand(3, 3, 32, 32)
    objective = distiller()
    objective.map_terms.register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    objective(batch)
    teacher = objective.teacher(batch["unlabelled"]).logits[:, 0] > 0
    assert torch.equal(seen[0], torch.cat([batch["mask"], teacher.long()]))


def test_without_terms_unlabelled_images_are_not_looked_at():
    nothing = distiller(prediction=0.0, scales=())
    nothing.model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    sizes = []
    nothing({**batch_of(4), "unlabelled": torch.rand(2, 3, 32, 32)})
    assert sizes == [4]
