"""`--recipe thesis` is what the thesis and its released code train with."""

import pytest
from small_trainings import batch_of

from common.config import parse
from common.errors import UserError
from common.losses.distillation import Distiller
from common.models.transunet import teacher_t2
from common.models.unet import UNet, student_s1, teacher_t1
from common.settings import RECIPES, SCALES, TERMS, DistillationConfig


def test_the_thesis_s_recipe_sets_its_terms_and_weights():
    config, thesis = parse(DistillationConfig, ["--recipe", "thesis"]), RECIPES["thesis"]
    assert {name: getattr(config, name) for name in thesis} == thesis
    weights = ("segmentation", "prediction", *SCALES)
    assert sum(getattr(config, name) for name in weights) == pytest.approx(1)
    objective = Distiller(student_s1(), teacher_t1(width=4), 32, config)
    losses = objective(batch_of(4))
    assert list(losses) == ["segmentation", "prediction", *(f"contrast_{s}" for s in SCALES)]


@pytest.mark.parametrize("build", [teacher_t1, lambda: teacher_t2(depth=1)], ids=["T1", "T2"])
def test_the_thesis_s_recipe_pairs_its_encoder_maps_and_takes_its_loss(build):
    """Both at a quarter of the image: T1's second level (128 channels) or T2's first (256), and the
    second level of the student, each after its pooling; Dice alone, pooled over the batch."""
    teacher, config = build(), parse(DistillationConfig, ["--recipe", "thesis"])
    objective = Distiller(student_s1(), teacher, 64, config)
    shapes = []
    objective.scales["encoder"].register_forward_pre_hook(
        lambda _, maps: shapes.extend(tuple(m.shape) for m in maps[:2])
    )
    batch = batch_of(4, 64)
    losses = objective(batch)
    channels = 128 if build is teacher_t1 else 256
    assert shapes == [(4, 32, 16, 16), (4, channels, 16, 16)]
    p = objective.model.train()(batch["image"]).logits.sigmoid()[:, 0]
    dice = (2 * (p * batch["mask"]).sum() + 1) / (p.sum() + batch["mask"].sum() + 1)
    assert losses["segmentation"].item() == pytest.approx(0.4 * (1 - dice.item()), rel=1e-4)
    assert DistillationConfig().encoder_map == "deepest"


def test_a_network_without_the_map_is_named():
    shallow = UNet((8, 16), count=1)
    with pytest.raises(UserError, match="no feature map stride4"):
        Distiller(shallow, teacher_t1(width=4), 32, DistillationConfig(encoder_map="stride4"))


def test_the_thesis_s_recipe_names_every_term():
    """A new term with a weight of its own must not slip into it."""
    config = parse(DistillationConfig, ["--recipe", "thesis"])
    terms = {"segmentation", *TERMS, *SCALES}
    assert terms <= RECIPES["thesis"].keys()
    assert not any(getattr(config, name) for name in {*TERMS} - {"prediction"})


@pytest.mark.parametrize("order", [1, -1])
def test_flags_beside_a_recipe_change_what_it_sets(order):
    words = [["--recipe", "thesis"], ["--contrast", "dense"], ["--prediction", "0.5"]][::order]
    config = parse(DistillationConfig, sum(words, []))
    assert (config.contrast, config.prediction, config.encoder) == ("dense", 0.5, 0.1)
    assert parse(DistillationConfig, ["--contrast", "mse"]).segmentation == 1
