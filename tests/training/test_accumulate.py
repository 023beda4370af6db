"""Small batches added up are the large one."""

import re

import pytest
import torch
from conftest import Infinite
from small_trainings import Plain, PlainConfig, train_plain

from common.errors import UserError
from common.losses.segmentation import SegmentationObjective
from common.training.engine import fit, shares_of_steps
from common.training.runs import start


def test_the_shares_of_a_step_add_up_and_its_last_batch_ends_it():
    found = shares_of_steps(total=23, batch_size=5, accumulate=2)
    assert found == [(0.5, False), (0.5, True), (0.5, False), (0.5, True), (1.0, True)]
    assert shares_of_steps(7, 4, 3) == [(4 / 7, False), (3 / 7, True)]
    assert all(share == 1 and ends for share, ends in shares_of_steps(23, 5, 1))


@pytest.mark.parametrize("augment", [True, False])
def test_small_batches_added_up_are_the_large_one(stage, slices, augment):
    large, log = train_plain(stage, slices, "large", batch_size=9, augment=augment)
    small, other = train_plain(stage, slices, "small", batch_size=3, accumulate=3, augment=augment)
    for name, value in large.items():
        assert torch.allclose(value, small[name], atol=2e-6), name
    assert [float(r["lr"]) for r in log] == pytest.approx([float(r["lr"]) for r in other])
    once, _ = train_plain(stage, slices, "once", batch_size=3, augment=augment)
    assert any(not torch.allclose(v, once[k], atol=1e-4) for k, v in large.items())


@pytest.mark.parametrize(
    ("spoil", "where", "batches"),
    [
        (Infinite.apply, "the step of batches 4 to 6: the gradient is", slice(3, 6)),
        (lambda loss: loss * float("nan"), "batch 5: the loss segmentation is", slice(4, 5)),
    ],
    ids=["gradient", "loss"],
)
def test_what_is_not_finite_is_named_with_its_slices(stage, slices, spoil, where, batches):
    config = PlainConfig(
        data=slices, epochs=1, device="cpu", amp=False, batch_size=3, accumulate=3, name="bad"
    )
    run = start(config, str(stage), "student")
    objective = SegmentationObjective(Plain())
    honest, seen = objective.forward, []

    def forward(batch):
        seen.append(batch["name"])
        loss = honest(batch)["segmentation"]
        return {"segmentation": spoil(loss) if len(seen) == 5 else loss}

    objective.forward = forward
    with pytest.raises(UserError) as error:
        fit(objective, run, config)
    assert str(error.value).startswith(f"epoch 1, {where} not finite.")
    expected = [name for batch in seen[batches] for name in batch]
    assert re.findall(r"phantom_\w+", str(error.value)) == expected
