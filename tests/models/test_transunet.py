"""T2: shapes, parameters, ImageNet weights."""

import os

import pytest
import torch
from torchvision.models import ResNet50_Weights, ViT_B_16_Weights, resnet50, vit_b_16
from torchvision.models.vision_transformer import VisionTransformer

from common.device import fuse
from common.errors import UserError
from common.evaluation.metrics import count, overlap_scores
from common.losses.segmentation import DiceBCELoss, MultiTaskObjective
from common.models import transunet
from common.models.transunet import (
    Attention,
    Transformer,
    load_imagenet,
    resized,
    take_vit,
    teacher_t2,
)
from common.models.unet import parameters, predicted

WIDTH = 192  # the smallest there is


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return teacher_t2(WIDTH, depth=2)


@pytest.fixture(scope="module")
def trained():
    """Statistics that are not 0 and 1, in eval mode."""
    torch.manual_seed(0)
    model = teacher_t2(WIDTH, depth=1)
    for _ in range(3):
        model(torch.rand(4, 3, 32, 32))
    return model.eval().requires_grad_(False)


def test_the_paper_s_size():
    with torch.device("meta"):
        assert parameters(teacher_t2()) == 109_360_964


def test_a_token_a_cell_of_stride_16():
    seen = []
    transformer = Transformer(8, WIDTH, depth=1)
    transformer.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    transformer(torch.rand(2, 8, 16, 16))  # 256 pixels
    transformer(torch.rand(2, 8, 6, 9))
    assert seen == [(2, 256, WIDTH), (2, 54, WIDTH)]


def test_shapes_and_names():
    out = teacher_t2(WIDTH, depth=1, num_classes=3)(torch.rand(2, 3, 64, 48))
    assert out.logits.shape == (2, 3, 64, 48)
    assert out.reconstruction.shape == (2, 3, 64, 48)
    assert out.reconstruction.min() >= 0 and out.reconstruction.max() <= 1
    shapes = {name: tuple(f.shape[1:]) for name, f in out.features.items()}
    assert shapes.pop("stride4") == (256, 16, 12)
    assert shapes == {"encoder": (512, 8, 6), "bottleneck": (WIDTH, 4, 3), "decoder": (16, 64, 48)}


def test_attention_is_softmax_of_q_k_over_root_d_times_v():
    attention, x = Attention(WIDTH), torch.randn(2, 5, WIDTH)
    q, k, v = attention.qkv(x).chunk(3, dim=-1)
    heads = []
    for h in range(WIDTH // 64):
        part = slice(64 * h, 64 * (h + 1))
        weights = (q[..., part] @ k[..., part].transpose(1, 2) / 8).softmax(-1)
        heads.append(weights @ v[..., part])
    assert torch.allclose(attention(x), attention.out(torch.cat(heads, -1)), atol=1e-5)


def test_positions_break_the_symmetry_and_adapt_to_the_size():
    transformer = Transformer(4, WIDTH, depth=1, grid=8).eval()
    same = torch.ones(1, 4, 8, 8)
    tokens = transformer(same).flatten(2)
    assert not torch.allclose(tokens[..., 0], tokens[..., -1], atol=1e-3)
    # Positions that grow with the column do so at any size, and not with the row.
    with torch.no_grad():
        transformer.positions.copy_(torch.arange(8.0).expand_as(transformer.positions))
        transformer.embed.weight.zero_()
        transformer.embed.bias.zero_()
    seen = []
    transformer.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    assert transformer(torch.ones(1, 4, 16, 12)).shape == (1, WIDTH, 16, 12)
    raster = seen[0].transpose(1, 2).unflatten(2, (16, 12))[0, 0]
    assert (raster.diff(dim=1) > 0).all() and raster.diff(dim=0).abs().max() < 1e-5
    assert raster[0, 0].item() == pytest.approx(0, abs=0.3)
    assert raster[0, -1].item() == pytest.approx(7, abs=0.3)


def test_images_of_a_batch_do_not_touch_each_other_in_eval_mode(trained):
    images = torch.rand(3, 3, 32, 48)
    alone = torch.cat([trained(image[None]).logits for image in images])
    assert torch.allclose(trained(images).logits, alone, atol=1e-5)


def test_reconstruct_false_skips_the_decoder_and_keeps_the_logits(trained):
    images = torch.rand(1, 3, 32, 32)
    short = trained(images, reconstruct=False)
    assert short.reconstruction is None
    assert torch.equal(short.logits, trained(images).logits)
    assert teacher_t2(WIDTH, 1, reconstruction=False)(images).reconstruction is None


def test_a_gradient_reaches_every_parameter(model):
    model.zero_grad()
    batch = {"image": torch.rand(2, 3, 64, 64), "mask": torch.randint(0, 2, (2, 64, 64))}
    sum(MultiTaskObjective(model)(batch).values()).backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert silent == []


def test_every_token_attends_to_every_other(trained):
    features = torch.rand(1, 1024, 6, 7, requires_grad=True)
    trained.transformer(features)[0, 0, 0, 0].backward()
    assert (features.grad.abs().sum(1) > 0).all()


def test_it_overfits_one_slice():
    """Two equal discs, one of them the class: brightness alone does not tell."""
    torch.manual_seed(0)
    model = teacher_t2(WIDTH, depth=2, reconstruction=False)
    row, column = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    disc = [(row - 30) ** 2 + (column - c) ** 2 < 100 for c in (16, 46)]
    image = (0.3 + 0.4 * (disc[0] | disc[1]) + 0.05 * torch.randn(64, 64)).expand(1, 3, 64, 64)
    mask = disc[1].long()[None]
    optimizer, loss = torch.optim.AdamW(model.parameters(), 3e-3), DiceBCELoss()
    for _ in range(40):
        optimizer.zero_grad()
        loss(model(image).logits, mask).backward()
        optimizer.step()
    scores = overlap_scores(*count(predicted(model(image).logits), mask)[0, 0].tolist())
    assert scores["dice"] > 0.95


def test_folded_batch_norm_gives_the_same_logits(trained):
    images = torch.rand(2, 3, 32, 32)
    expected = trained(images)
    fuse(trained)
    assert not [m for m in trained.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert torch.allclose(trained(images).logits, expected.logits, atol=1e-5)


@pytest.mark.parametrize(("size", "better"), [(30, 32), (100, 112)])
def test_a_size_it_cannot_take_names_the_next_that_works(model, size, better):
    with pytest.raises(UserError, match=f"--size {better}"):
        model(torch.rand(1, 3, size, size))


def test_a_width_it_cannot_take():
    with pytest.raises(UserError, match="width is 200; it must be a multiple of 192"):
        teacher_t2(200)


# ImageNet weights


@pytest.fixture
def stand_ins(monkeypatch):
    """Files of the right names with random weights, whose hash is not the published one's."""
    monkeypatch.setattr(transunet, "check_hash", lambda path: None)


def file_of(weights):
    return weights.url.rsplit("/", 1)[-1]


@pytest.mark.parametrize("grid", [4, 6])
def test_a_loaded_transformer_computes_what_torchvision_s_does(grid):
    torch.manual_seed(0)
    theirs = VisionTransformer(64, 16, 3, WIDTH // 64, WIDTH, 4 * WIDTH).eval()
    torch.nn.init.normal_(theirs.encoder.pos_embedding)
    ours = Transformer(8, WIDTH, depth=2, grid=grid).eval()  # the first two of three layers
    take_vit(ours, theirs)
    features = torch.randn(2, 8, grid, grid)
    places = resized(
        theirs.encoder.pos_embedding[:, 1:].transpose(1, 2).unflatten(2, (4, 4)), (grid, grid)
    )
    tokens = (ours.embed(features) + places).flatten(2).transpose(1, 2)
    expected = theirs.encoder.ln(theirs.encoder.layers[:2](tokens))
    assert torch.allclose(ours(features).flatten(2).transpose(1, 2), expected, atol=1e-5)


def test_a_loaded_resnet_is_torchvision_s_to_stride_16(tmp_path, stand_ins):
    torch.manual_seed(0)
    theirs = resnet50().eval()
    torch.save(theirs.state_dict(), tmp_path / file_of(ResNet50_Weights.IMAGENET1K_V2))
    ours = teacher_t2(WIDTH, depth=1).eval()
    load_imagenet(ours, transformer=False, folder=tmp_path)
    seen = []
    ours.transformer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    images = torch.rand(1, 3, 32, 32)
    ours(images)
    x = (images - ours.mean) / ours.std
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
    expected = theirs.layer3(theirs.layer2(theirs.layer1(x)))
    assert torch.allclose(seen[0], expected, atol=1e-5)


def test_the_published_vit_file_has_older_names_and_is_read(tmp_path, stand_ins):
    torch.save(resnet50().state_dict(), tmp_path / file_of(ResNet50_Weights.IMAGENET1K_V2))
    vit = vit_b_16()
    older = {
        k.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): v
        for k, v in vit.state_dict().items()
    }
    torch.save(older, tmp_path / file_of(ViT_B_16_Weights.IMAGENET1K_V1))
    ours = teacher_t2(768, depth=1)
    load_imagenet(ours, transformer=True, folder=tmp_path)
    assert torch.equal(
        ours.transformer.blocks[0].mlp[3].weight, vit.encoder.layers[0].mlp[3].weight
    )
    assert ours.transformer.positions.std() > 0


@pytest.mark.parametrize(("width", "depth"), [(WIDTH, 2), (768, 13)])
def test_the_transformer_s_weights_fit_one_size_only(width, depth, tmp_path):
    with torch.device("meta"):
        model = teacher_t2(width, depth)
    with pytest.raises(UserError, match="768 wide and 12 layers.*imagenet-resnet"):
        load_imagenet(model, transformer=True, folder=tmp_path)


def test_offline_damaged_and_hostile_files_are_one_clear_line(model, tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("Network is unreachable")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(UserError, match="resnet50-.*Network is unreachable.*--weights-folder"):
        load_imagenet(model, transformer=False, folder=tmp_path)
    path = tmp_path / file_of(ResNet50_Weights.IMAGENET1K_V2)
    path.write_bytes(b"damaged")
    with pytest.raises(UserError, match=f"{path.name} is damaged or another file.*says 11ad3fa6"):
        load_imagenet(model, transformer=False, folder=tmp_path)
    monkeypatch.setattr(transunet, "check_hash", lambda path: None)  # what comes past it, too
    with pytest.raises(UserError, match="could not be used"):
        load_imagenet(model, transformer=False, folder=tmp_path)
    torch.save({"conv1.weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="could not be used"):
        load_imagenet(model, transformer=False, folder=tmp_path)
    torch.save({"conv1.weight": Hostile(tmp_path)}, path)
    with pytest.raises(UserError, match="could not be used"):
        load_imagenet(model, transformer=False, folder=tmp_path)
    assert not (tmp_path / "ran").exists()


class Hostile:
    """A pickle that makes a file when it is read by Python's own unpickler."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return (os.mkdir, (str(self.folder / "ran"),))
