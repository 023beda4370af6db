"""Dice, cross-entropy and reconstruction, against references."""

import math

import pytest
import torch
from monai.losses import DiceLoss
from torch import nn

from common.losses.segmentation import (
    BatchDiceLoss,
    DiceBCELoss,
    MultiTaskObjective,
    SegmentationObjective,
    hide_patches,
)
from common.models.unet import Output, student_s1, teacher_t1


def test_dice_bce_of_zero_logits_is_the_closed_form():
    mask = torch.zeros(1, 8, 8, dtype=torch.long)
    mask[0, :2] = 1
    dice = 1 - (2 * 0.5 * 16 + 1) / (0.5 * 64 + 16 + 1)
    expected = dice + math.log(2)
    assert DiceBCELoss()(torch.zeros(1, 1, 8, 8), mask).item() == pytest.approx(expected)


def test_dice_term_equals_monai():
    logits, mask = torch.randn(5, 1, 16, 16), (torch.rand(5, 16, 16) > 0.7).long()
    bce = nn.functional.binary_cross_entropy_with_logits(logits[:, 0], mask.float())
    monai = DiceLoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0)(logits, mask[:, None].float())
    assert torch.allclose(DiceBCELoss()(logits, mask), bce + monai, atol=1e-6)


def test_perfect_prediction_costs_nothing_also_on_an_empty_slice():
    mask = torch.zeros(2, 8, 8, dtype=torch.long)
    mask[0, 2:5, 2:5] = 1
    logits = torch.where(mask > 0, 40.0, -40.0)[:, None]
    assert DiceBCELoss()(logits, mask).item() < 1e-6


def test_of_several_classes_dice_is_the_mean_over_those_on_the_slice():
    torch.manual_seed(0)
    logits, mask = torch.randn(2, 4, 16, 16), torch.zeros(2, 16, 16, dtype=torch.long)
    mask[0, 2:6], mask[0, 8:9, 3:7] = 1, 3  # the other slice shows no class
    probability = logits.softmax(1)
    terms = []
    for k in (1, 3):
        truth = (mask[0] == k).float()
        overlap = (probability[0, k] * truth).sum()
        terms.append(1 - (2 * overlap + 1) / (probability[0, k].sum() + truth.sum() + 1))
    expected = sum(terms) / 2 / 2 + nn.functional.cross_entropy(logits, mask)
    assert torch.allclose(DiceBCELoss()(logits, mask), expected, atol=1e-6)


def test_a_batch_of_several_classes_costs_the_mean_of_its_images():
    """So that accumulated and distributed batches give the gradient of the whole one."""
    logits, mask = torch.randn(4, 3, 8, 8), torch.randint(0, 2, (4, 8, 8))
    mask[0] = 0
    each = [DiceBCELoss()(logits[i : i + 1], mask[i : i + 1]) for i in range(4)]
    assert torch.allclose(DiceBCELoss()(logits, mask), torch.stack(each).mean(), atol=1e-6)


def test_one_channel_equals_two_channel_softmax():
    logits, mask = torch.randn(3, 1, 12, 12), (torch.rand(3, 12, 12) > 0.5).long()
    two = torch.cat([torch.zeros_like(logits), logits], dim=1)
    assert torch.allclose(DiceBCELoss()(logits, mask), DiceBCELoss()(two, mask), atol=1e-6)


def test_empty_slice_pushes_its_false_positives_down():
    logits = torch.zeros(1, 1, 8, 8, requires_grad=True)
    DiceBCELoss()(logits, torch.zeros(1, 8, 8, dtype=torch.long)).backward()
    assert (logits.grad > 0).all()


def test_half_precision_logits_do_not_overflow():
    logits = torch.full((1, 1, 512, 512), 3.0, dtype=torch.float16)
    assert DiceBCELoss()(logits, torch.ones(1, 512, 512, dtype=torch.long)).isfinite()


def test_hidden_patches_are_zero_and_about_their_share():
    torch.manual_seed(0)
    hidden = hide_patches(torch.ones(64, 3, 32, 32), 0.25)
    assert set(hidden.unique().tolist()) == {0.0, 1.0}
    assert (hidden == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert (hidden[:, 0] == hidden[:, 2]).all()
    cells = hidden[:, :1].unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    assert (cells.amin(4) == cells.amax(4)).all()  # whole patches of 32/16 pixels


class Copier(nn.Module):
    """Reconstructs by copying its input: what skips would let a decoder do."""

    def forward(self, images, reconstruct=True):
        self.seen = images
        return Output(images[:, :1] * 0, {}, images)


def test_copying_the_input_does_not_solve_the_reconstruction_task():
    copier = Copier()
    images = torch.rand(6, 3, 32, 32) + 0.1
    batch = {"image": images, "mask": torch.zeros(6, 32, 32, dtype=torch.long)}
    losses = MultiTaskObjective(copier, weight=0.2)(batch)
    assert losses["reconstruction"].item() > 0.2 * 0.05
    assert (copier.seen[:3] == 0).any()
    assert torch.equal(copier.seen[3:], images[3:])  # the other half is whole


@pytest.mark.parametrize("count", [1, 2, 5])
def test_multi_task_takes_short_batches_and_trains_both_decoders(count):
    model = teacher_t1(width=4)
    batch = {"image": torch.rand(count, 3, 32, 32), "mask": torch.ones(count, 32, 32).long()}
    losses = MultiTaskObjective(model)(batch)
    assert list(losses) == ["segmentation", "reconstruction"]
    sum(losses.values()).backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None]
    assert not missing


def test_weight_zero_leaves_the_reconstruction_out_and_the_input_as_it_was():
    copiers = Copier(), Copier()
    images = torch.rand(2, 3, 32, 32) + 0.1
    batch = {"image": images, "mask": torch.ones(2, 32, 32).long()}
    for copier, weight in zip(copiers, (0.0, 0.2), strict=True):
        torch.manual_seed(0)
        losses = MultiTaskObjective(copier, weight)(batch)
        assert ("reconstruction" in losses) == (weight > 0)
    assert torch.equal(copiers[0].seen, copiers[1].seen)


def test_a_student_can_overfit_one_slice():
    torch.manual_seed(0)
    mask = torch.zeros(1, 32, 32, dtype=torch.long)
    mask[0, 10:20, 12:24] = 1
    batch = {"image": 0.2 * torch.rand(1, 3, 32, 32) + 0.5 * mask[:, None], "mask": mask}
    objective = SegmentationObjective(student_s1())
    optimizer = torch.optim.AdamW(objective.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = objective(batch)["segmentation"]
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_the_dice_of_a_batch_is_pooled():
    torch.manual_seed(0)
    logits, target = torch.randn(3, 1, 8, 8), (torch.rand(3, 8, 8) > 0.7).long()
    p = logits.sigmoid()[:, 0]
    expected = 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)
    assert BatchDiceLoss()(logits, target).item() == pytest.approx(expected.item())
    logits, target = torch.randn(3, 4, 8, 8), torch.randint(0, 3, (3, 8, 8))  # the last is nowhere
    p, each = logits.softmax(1), []
    for k in (1, 2):
        both = (p[:, k] * (target == k)).sum()
        each.append(1 - (2 * both + 1) / (p[:, k].sum() + (target == k).sum() + 1))
    assert BatchDiceLoss()(logits, target).item() == pytest.approx(sum(each).item() / 2)
    empty = BatchDiceLoss()(logits, torch.zeros(3, 8, 8, dtype=torch.long))
    assert 0 < empty.item() < 1
