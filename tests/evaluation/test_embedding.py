"""How separate features are."""

import numpy as np
import pytest
import torch

from common.evaluation import embedding
from common.evaluation.embedding import Embedding


def drawn(spread, cases=4, each=30):
    rng = np.random.default_rng(0)
    kinds = np.tile(np.repeat([0, 1, 2], each), cases)
    means = np.array([[0, 0, 0, 0, 0], [5, 0, 0, 0, 0], [0, 0, 5, 0, 0]], dtype=np.float32)
    features = means[kinds] + spread * rng.normal(size=(len(kinds), 5)).astype(np.float32)
    return Embedding(features, kinds, np.repeat([f"p{i}" for i in range(cases)], 3 * each))


def test_separation_runs_from_chance_to_one():
    assert embedding.separation(drawn(0.1)) == 1
    noise = drawn(0.1)._replace(features=np.random.default_rng(1).normal(size=(360, 5)))
    assert embedding.separation(noise) == pytest.approx(1 / 3, abs=0.08)
    assert np.isnan(embedding.separation(drawn(0.1, cases=1)))


def test_a_patient_is_judged_by_the_others_alone():
    found = drawn(0.1, cases=2)
    # One of two patients has its classes' features exchanged in a ring. By the other's means all
    # pixels of both are wrong; by their own, or by those of both, some would be right.
    turned = found.features.copy()
    mine = found.patients == "p0"
    turned[mine] = np.roll(turned[mine], 30, axis=0)
    assert embedding.separation(found._replace(features=turned)) == 0


def test_the_plane_takes_what_lacks_a_class():
    found = drawn(0.1)
    for kept in (found.kinds != 1, found.kinds == 0):
        part = Embedding(found.features[kept], found.kinds[kept], found.patients[kept])
        assert np.isfinite(embedding.plane(part)).all()
        assert np.isnan(embedding.separation(part))


def test_the_plane_shows_the_class_on_the_right_and_the_border_above():
    found = drawn(0.1)
    places = embedding.plane(found)
    assert places.shape == (len(found.kinds), 2)
    means = [places[found.kinds == k].mean(0) for k in range(3)]
    assert means[1][0] > means[0][0] and means[2][1] > means[0][1]


def test_the_draw_is_balanced_and_the_same_for_every_network(tmp_path):
    mask = torch.zeros(3, 32, 32, dtype=torch.long)
    mask[:2, 8:22, 8:22] = 1
    batch = {"mask": mask, "name": ["a_0", "a_1", "b_0"], "patient": ["a", "a", "b"]}
    here = torch.arange(32 * 32).float().view(1, 1, 32, 32).expand(3, -1, -1, -1)
    one, other = embedding.draw(here, batch), embedding.draw(torch.cat([here, here], 1), batch)
    assert (one.features[:, 0] == other.features[:, 1]).all()
    assert np.bincount(one.kinds).tolist() == [16, 16, 16] and set(one.patients) == {"a"}
    embedding.save(tmp_path / "features.npz", one)
    again = embedding.load(tmp_path / "features.npz")
    assert (again.kinds == one.kinds).all() and (again.patients == one.patients).all()
    assert embedding.draw(here[2:], {k: v[2:] for k, v in batch.items()}) is None
