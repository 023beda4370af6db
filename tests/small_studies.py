"""What a study plans."""

from pathlib import Path

from common.study.plan import steps_of, trainings_of


def plan(reproduce, **settings):
    """All trainings of a study."""
    config = reproduce.Config(**{"data": Path("d"), "name": "n", **settings})
    return [steps_of(t, config, Path("d"))[0] for t in trainings_of(config)]
