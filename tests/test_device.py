import pytest
import torch

from common.device import has_bf16, pick_device
from common.files import UserError


def test_devices():
    assert pick_device("auto").type in ("cpu", "cuda")
    with pytest.raises(UserError, match="unknown"):
        pick_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="0 CUDA devices"):
            pick_device("cuda")
    assert isinstance(has_bf16(torch.device("cpu")), bool)
