import re
from dataclasses import dataclass

import pytest
import torch
from conftest import Infinite
from torch import nn

from common.errors import UserError
from common.files import read_csv
from common.losses.segmentation import SegmentationObjective
from common.models.unet import Output
from common.settings import StudentConfig
from common.training.engine import fit, shares_of_steps
from common.training.runs import start


@dataclass
class Config(StudentConfig):
    pass


class Plain(nn.Module):
    """A small network without BatchNorm: of it a batch is the sum of its parts."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.GELU(), nn.Conv2d(6, 1, 1))

    def forward(self, image, reconstruct=True):
        return Output(self.body(image), {}, None)


def train(stage, slices, name, **settings):
    torch.manual_seed(0)
    config = Config(data=slices, name=name, epochs=2, device="cpu", amp=False, **settings)
    run = start(config, str(stage), "student")
    objective = SegmentationObjective(Plain())
    fit(objective, run, config)
    return objective.state_dict(), read_csv(run.folder / "log.csv")


def test_the_shares_of_a_step_add_up_and_its_last_batch_ends_it():
    found = shares_of_steps(total=23, batch_size=5, accumulate=2)
    assert found == [(0.5, False), (0.5, True), (0.5, False), (0.5, True), (1.0, True)]
    assert shares_of_steps(7, 4, 3) == [(4 / 7, False), (3 / 7, True)]
    assert all(share == 1 and ends for share, ends in shares_of_steps(23, 5, 1))


@pytest.mark.parametrize("augment", [True, False])
def test_small_batches_added_up_are_the_large_one(stage, slices, augment):
    large, log = train(stage, slices, "large", batch_size=9, augment=augment)
    small, other = train(stage, slices, "small", batch_size=3, accumulate=3, augment=augment)
    for name, value in large.items():
        assert torch.allclose(value, small[name], atol=2e-6), name
    assert [float(r["lr"]) for r in log] == pytest.approx([float(r["lr"]) for r in other])
    once, _ = train(stage, slices, "once", batch_size=3, augment=augment)
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
    config = Config(
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
