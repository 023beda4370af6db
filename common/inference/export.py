"""A trained network as ONNX, for programs without PyTorch."""

from pathlib import Path

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.files import atomic, shown
from common.inference.trained_run import Trained
from common.models.unet import probabilities

NEEDS = "pip install onnx onnxscript onnxruntime"
TOLERANCE = 1e-4  # largest difference of a probability


class Probabilities(nn.Module):
    """A network reduced to what predicting masks needs."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Images `(N, 3, H, W)` in 0..1 -> probabilities `(N, classes, H, W)`."""
        return probabilities(self.network(image, reconstruct=False).logits)


def export(model: nn.Module, run: Trained, path: Path) -> None:
    """Write the model to `path` as ONNX: `image` float32 `(N, 3, size, size)` in 0..1 in,
    `probability` `(N, classes, size, size)` out, any N.

    The file is run by onnxruntime and compared with PyTorch before it is kept. UserError if that
    differs by more than TOLERANCE, or naming the packages that are missing, or if `path` does not
    end in .onnx: it might be a file of another kind, which would be replaced.
    """
    if path.suffix != ".onnx":
        raise UserError(f"--export {shown(path)}: name a file that ends in .onnx.")
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  what torch.onnx.export builds on
    except ImportError as error:
        raise UserError(f"--export: {error.name} is not installed; {NEEDS}") from None
    network = Probabilities(model.float().cpu().to(memory_format=torch.contiguous_format)).eval()
    size = run.checkpoint["size"]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        images = torch.rand(2, 3, size, size)
        expected = network(images)
    with atomic(path) as temporary:
        torch.onnx.export(
            network,
            (images,),
            temporary,
            input_names=["image"],
            output_names=["probability"],
            dynamic_shapes={"image": {0: torch.export.Dim("N", min=1)}},
            external_data=False,
            verbose=False,
        )
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        exported = torch.from_numpy(session.run(None, {"image": images.numpy()})[0])
        difference = float((exported - expected).abs().max())
        if difference > TOLERANCE:
            raise UserError(
                f"--export: the ONNX differs by {difference:.1g} from PyTorch; not kept."
            )
    print(
        f"{shown(path)}: image (N, 3, {size}, {size}) -> probability, "
        f"{path.stat().st_size / 1e6:.1f} MB; differs by {difference:.1g} from PyTorch"
    )
