"""Checkpoints: what a run keeps, and loading it without running untrusted code.

`best.pt` holds a model and how it was made; `last.pt` also the objective (a distiller's
projections), the optimizer and the counters: everything that `--resume` needs. No random state is
among it because none is carried from one epoch to the next: `fit` seeds every epoch by its number.
"""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from common.dataset.classes import as_words, check_classes, parse_classes
from common.dataset.preprocessing import HU_WINDOW, PLANES, bounds_of
from common.dataset.slices import SliceSet, check_same_classes, check_same_views
from common.errors import UserError
from common.files import atomic, shown

FORMAT = 2  # counts up when what a checkpoint holds changes


def save(path: Path, content: dict) -> None:
    """Write a checkpoint atomically: tensors, numbers, strings, lists and dicts only.

    UserError if it cannot be written (disk full, folder read-only): the old one is still there.
    """
    try:
        with atomic(path) as temporary:
            torch.save({"format": FORMAT, **content}, temporary)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{shown(path)} could not be written ({error}); the old one stays."
        ) from None


def load(path: Path, stage: str, hint: str = "") -> dict:
    """Read a checkpoint of `stage` onto the CPU with `weights_only=True`.

    UserError, with `hint` on what to do, if it is missing, damaged, not one of ours, of another
    stage, or holds anything but tensors and plain values.
    """
    path = Path(path)
    try:
        _check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{shown(path)} does not exist. {hint}".strip()) from None
    except IsADirectoryError:
        raise UserError(f"{shown(path)} is a folder; name the best.pt in it. {hint}") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{shown(path)} is refused: it is not a checkpoint, or holds more than tensors and "
            f"plain values. {hint}".strip()
        ) from None
    except UserError:
        raise
    except Exception as error:  # a broken pickle can raise anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise UserError(f"{shown(path)} is damaged or not a checkpoint ({reason}).") from None
    if isinstance(content, dict) and content.get("format") in range(1, FORMAT):
        raise UserError(f"{shown(path)} is of an earlier version of this repository: train again.")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{shown(path)} is not a checkpoint of this repository. {hint}".strip())
    if content.get("stage") != stage:
        writer = content.get("stage")
        raise UserError(
            f"{shown(path)} was written by {writer}; one of {stage} is expected. {hint}"
        )
    return content


def load_trained(path: Path, stage: str, hint: str = "") -> dict:
    """A checkpoint to predict or to teach with: loaded, and its content checked."""
    content = load(path, stage, hint)
    check_content(content, path)
    return content


def check_fits(content: dict, data: SliceSet, path: Path) -> str:
    """UserError if a checkpoint's classes or plane are not those of `data`; a note for the user
    where window or channel differ, else nothing."""
    check_same_classes(content["classes"], data, path)
    return check_same_views(content, data, path)


def check_content(content: dict, path: Path) -> None:
    """UserError if a loaded checkpoint lacks what a training writes into it."""
    kinds = {"config": dict, "patients": dict, "classes": list, "num_classes": int}
    kinds |= {"size": int, "epoch": int}
    if bad := [name for name, kind in kinds.items() if not isinstance(content.get(name), kind)]:
        raise UserError(
            f"{shown(path)} is not a whole checkpoint: {', '.join(bad)} missing or invalid."
        )
    parts = content["patients"]
    if not {"train", "val"} <= parts.keys() or not all(isinstance(p, list) for p in parts.values()):
        raise UserError(f"{shown(path)}: its patients are not lists train and val.")
    patient_of = content.get("patient_of", {})
    if not isinstance(patient_of, dict) or not all(
        isinstance(name, str) for name in patient_of.values()
    ):
        raise UserError(f"{shown(path)}: invalid patient_of.")
    _check_classes(content, path)
    try:
        bounds_of(np.arange(2), content.get("window") or HU_WINDOW)
    except UserError as error:
        raise UserError(f"{shown(path)}: {error}") from None
    if content.get("axis") not in (None, *PLANES):
        raise UserError(f"{shown(path)} has an unknown plane {ascii(content['axis'])}.")
    if not isinstance(content.get("channel"), int | None):
        raise UserError(f"{shown(path)}: its channel is not a number.")


def _check_classes(content: dict, path: Path) -> None:
    """UserError if the classes' names, colours or label values are invalid or contradictory."""
    classes, labels = content["classes"], content.get("labels")
    check_classes(classes, content.get("colours"), path)
    if content["num_classes"] != (1 if len(classes) == 1 else len(classes) + 1):
        raise UserError(
            f"{shown(path)}: {len(classes)} classes, {content['num_classes']} channels."
        )
    if labels is None:
        return
    whole = isinstance(labels, dict) and [*labels] == classes
    if not whole or not all(isinstance(values, list) for values in labels.values()):
        raise UserError(f"{shown(path)}: its labels are not those of its classes.")
    parse_classes(as_words(labels), flag=shown(path))


def _check_archive(path: Path) -> None:
    """UserError for a flipped bit, which torch.load would take for a weight silently, and for
    a packed file, which may unpack to more than any memory; torch.save packs nothing."""
    if not zipfile.is_zipfile(path):
        return  # torch.load says what it is
    with zipfile.ZipFile(path) as archive:
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise UserError(f"{shown(path)} is refused: a checkpoint is not compressed.")
        if bad := archive.testzip():
            raise UserError(f"{shown(path)} is damaged (checksum of {bad}).")


def model_weights(content: dict) -> dict:
    """The network's weights in a loaded best.pt, or in a last.pt: there a part of the objective."""
    if "model" in content:
        return content["model"]
    objective = content.get("objective")
    if not isinstance(objective, dict):
        return {}
    objective = objective.items()
    return {name.removeprefix("model."): v for name, v in objective if name.startswith("model.")}


def load_weights(module: nn.Module, weights: dict, path: Path) -> None:
    """Fill `module` with a checkpoint's weights. UserError naming what does not fit."""
    try:
        module.load_state_dict(weights)
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        detail = lines[min(1, len(lines) - 1)][:160]
        raise UserError(f"{shown(path)} does not fit the network: {detail}") from None
