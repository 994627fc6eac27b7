import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sam_repro.chain import Chain, FlopCounter, stage_flops
from sam_repro.models import create, layers
from sam_repro.optim import create as method
from sam_repro.schema import UserError


@pytest.mark.parametrize(
    ("name", "values", "parameters", "layer_count", "stages"),
    [
        ("resnet20", {}, 269_722, 20, 11),  # 0.27 M (He et al. 2016, Table 6); 19 convolutions and a linear map
        ("resnet20", {"shortcut": "B"}, 272_474, 22, 11),
        ("wrn16_2", {}, 691_674, 17, 8),  # 16 layers and a widening shortcut in each of three groups, one counted in WRN-16
        ("wrn28_10", {}, 36_479_194, 29, 14),
        ("resnet18", {}, 11_173_962, 21, 10),
        ("resnet34", {}, 21_282_122, 37, 18),
        ("pyramidnet110", {}, 28_485_477, 110, 56),
        ("resnet50", {}, 23_520_842, 54, 18),
        ("mobilenet", {}, 3_217_226, 28, 15),
        ("mobilenet", {"version": "v2"}, 2_296_922, 58, 20),
    ],
)
def test_sizes(name, values, parameters, layer_count, stages):
    model = create(name, 10, **values)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(layers(model)) == layer_count
    assert len(model) == stages
    assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


# With a scale of 0 at the end of a residual branch.
ZERO = [
    ("resnet20", {}), ("resnet20", {"shortcut": "C", "init": "glorot"}), ("resnet18", {}), ("resnet50", {}), ("wrn50_2", {}),
    ("wrn16_2", {"activation": "post"}), ("wrn28_10", {"activation": "post"}), ("pyramidnet110", {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "values"), ZERO)
def test_a_block_that_begins_at_zero_does_not_stay_there(name, values):
    """Every parameter of every block has a gradient after three steps."""
    torch.manual_seed(0)
    model = create(name, 10, zero_gamma=True, **values)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    x, y = torch.randn(4, 3, 16, 16), torch.randint(10, (4,))
    blocks = [module for module in model.modules() if hasattr(module, "last_norm")]
    assert blocks
    assert all(not block.get_submodule(block.last_norm).weight.any() for block in blocks)
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert all(p.grad.norm() > 0 for block in blocks for p in block.parameters())


@pytest.mark.parametrize("name", ["wrn16_2", "wrn28_10"])
def test_zero_gamma_is_refused_where_no_normalisation_ends_the_branch(name):
    with pytest.raises(UserError, match=r"set model\.activation=post, or model\.zero_gamma=false"):
        create(name, 10, zero_gamma=True)
    with pytest.raises(UserError, match="has no field 'zero_gamma'"):
        create("mobilenet", 10, zero_gamma=True)


def test_the_networks_of_kdd24s_author_have_his_numbers_of_kernels():
    resnet = create("resnet20", 10, shortcut="C")
    assert sum(p.ndim > 1 for p in resnet.parameters()) == 23
    assert sum(p.ndim > 1 for p in create("wrn28_10", 100, activation="post").parameters()) == 29


def test_imagenet_sizes_and_outputs_are_torchvisions():
    """With our weights in its model, layer by layer in order, torchvision gives our outputs."""
    import torchvision

    for name, reference in (("resnet18", "resnet18"), ("resnet34", "resnet34"), ("resnet50", "resnet50"), ("wrn50_2", "wide_resnet50_2")):
        torch.manual_seed(0)
        ours, theirs = create(name, 1000, stem="imagenet").eval(), getattr(torchvision.models, reference)().eval()
        assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
        state = theirs.state_dict()
        assert [v.shape for v in ours.state_dict().values()] == [v.shape for v in state.values()]
        theirs.load_state_dict(dict(zip(state, ours.state_dict().values(), strict=True)))
        x = torch.randn(1, 3, 64, 64)
        assert torch.allclose(ours(x), theirs(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["resnet20", "wrn16_2", "resnet18", "mobilenet", "pyramidnet110"])
@pytest.mark.parametrize(("size", "channels"), [(8, 1), (32, 3)])
def test_a_chain_run_in_two_halves_is_the_whole(name, size, channels):
    model = create(name, 7, channels).double().eval()
    x = torch.randn(3, channels, size, size, dtype=torch.float64)
    whole = model(x)
    assert whole.shape == (3, 7)
    for cut in range(0, len(model) + 1, 1 if len(model) < 20 else 11):
        assert torch.equal(model(model(x, stop=cut), start=cut), whole)


def test_no_stage_of_ours_writes_into_its_input():
    for name, values in (("resnet20", {}), ("wrn16_2", {}), ("resnet18", {}), ("mobilenet", {}), ("mobilenet", {"version": "v2"})):
        model = create(name, **values)
        for cut in range(1, len(model)):
            x = model(torch.randn(2, 3, 16, 16), stop=cut)
            before = x._version
            model(x.detach(), start=cut)
            assert x._version == before, f"{name}, stage {cut}"


def test_layers_are_in_forward_order_and_hold_every_parameter_once():
    for name in ("resnet20", "wrn16_2"):
        model = create(name)
        found = layers(model)
        held = [p for layer in found for p in layer.parameters]
        assert len(held) == len(set(held)) == len(list(model.parameters()))
        assert [layer.stage for layer in found] == sorted(layer.stage for layer in found)
        assert found[0].name.startswith("stem")
        assert found[-1].name == "head.linear"


def test_other_parameters_belong_to_the_layer_before_them():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1))  # before any layer: to the first
            self.a = nn.Linear(2, 2)
            self.norm = nn.LayerNorm(2)
            self.b = nn.Linear(2, 2)
            self.frozen = nn.Linear(2, 2).requires_grad_(False)

    model = Odd()
    names = {id(p): name for name, p in model.named_parameters()}
    found = [(layer.name, [names[id(p)] for p in layer.parameters]) for layer in layers(model)]
    assert found == [("a", ["token", "a.weight", "a.bias", "norm.weight", "norm.bias"]), ("b", ["b.weight", "b.bias"])]


def test_flops_of_stages_and_a_model_left_as_it_was():
    model = create("resnet20")
    model[3].eval()
    modes = [module.training for module in model.modules()]
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    flops = stage_flops(model, torch.randn(1, 3, 32, 32))
    assert sum(flops) == 2 * 40_551_040  # 40.55 M multiply-adds of ResNet-20 at 32x32
    assert flops[0] == 2 * 3 * 16 * 9 * 32 * 32
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(value, statistics[name]) for name, value in model.named_buffers())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_flops_are_counted_as_torch_does(context):
    attention, x = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), torch.randn(2, 6, 16)
    convolution, image = nn.Sequential(nn.Conv2d(3, 8, 3, groups=1), nn.BatchNorm2d(8), nn.ReLU()), torch.randn(2, 3, 9, 9)
    with context():
        for module, inputs in ((attention, x), (attention.eval(), x), (convolution, image), (nn.Bilinear(16, 16, 3), (x, x))):
            inputs = inputs if isinstance(inputs, tuple) else (inputs,)
            with FlopCounterMode(display=False) as theirs:
                expected = module(*inputs)
            with FlopCounter() as ours:
                found = module(*inputs)
            assert ours.flops == theirs.get_total_flops()
            assert found.shape == expected.shape


def test_timm_models_are_chains_of_one_stage():
    pytest.importorskip("timm", reason="timm is not installed (extra 'timm')")
    model = create("timm", 5, arch="resnet18")
    assert not isinstance(model, Chain)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 5)
    assert {layer.stage for layer in layers(model)} == {0}
    with pytest.raises(UserError, match="Did you mean 'resnet18'"):
        create("timm", arch="resnet17")


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("resnett20", {}, "Did you mean 'resnet20'"),
        ("resnet20", {"shortcut": "D"}, "one of A, B, C"),
        ("resnet20", {"shortcu": "A"}, "Did you mean 'shortcut'"),
        ("timm", {}, "model.arch must be given"),
    ],
)
def test_wrong_words(name, values, says):
    with pytest.raises(UserError, match=says):
        create(name, **values)


# -- vision transformers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters"), [("vit_b16", 86_567_656), ("vit_b32", 88_224_232), ("vit_s16", 22_050_664), ("vit_s32", 22_878_952)]
)
def test_sizes_of_vision_transformers(name, parameters):
    """LookSAM, Table 10: 87, 88, 22 and 23 million."""
    pytest.importorskip("timm", reason="timm is not installed (extra 'timm')")
    model = create(name, 1000, image_size=224)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert [stage for stage, _ in model.named_children()] == ["embed", *(f"block{i}" for i in range(1, 13)), "pool", "head"]
    assert len(layers(model)) == 1 + 12 * 4 + 1


@pytest.mark.parametrize("arch", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "vit_base_patch16_clip_224"])
def test_a_vision_transformer_as_a_chain_is_timms_own(arch):
    timm = pytest.importorskip("timm", reason="timm is not installed (extra 'timm')")
    from sam_repro.models.vit import chained

    theirs = timm.create_model(arch, num_classes=7, img_size=56, depth=3).double().eval()
    x = torch.randn(2, 3, 56, 56, dtype=torch.float64)
    expected = theirs(x)
    chain = chained(theirs, "linear", freeze=False)
    assert torch.allclose(chain(x), expected, atol=1e-12)
    for cut in range(len(chain) + 1):
        assert torch.allclose(chain(chain(x, stop=cut), start=cut), expected, atol=1e-12)


def test_a_frozen_backbone_leaves_two_layers_and_the_file_of_weights_is_read(tmp_path):
    timm = pytest.importorskip("timm", reason="timm is not installed (extra 'timm')")
    arch = {"arch": "vit_tiny_patch16_224"}
    source = timm.create_model("vit_tiny_patch16_224")
    torch.save(source.state_dict(), tmp_path / "it.pth")
    model = create("timm", 5, image_size=224, **arch, weights=str(tmp_path / "it.pth"), freeze=True, head="two_layers")
    assert [layer.name for layer in layers(model)] == ["head.hidden", "head.linear"]
    x = torch.randn(1, 3, 224, 224)
    assert torch.allclose(model.eval()(x, stop=14), source.eval().forward_head(source.forward_features(x), pre_logits=True), atol=1e-5)
    assert create("timm", 5, image_size=64, **arch, weights=str(tmp_path / "it.pth"))(torch.randn(2, 3, 64, 64)).shape == (2, 5)
    for values, says in (
        ({"weights": "nowhere.pth"}, "model.weights=nowhere.pth is no file"),
        ({"weights": str(tmp_path / "it.pth"), "arch": "vit_small_patch16_224"}, "do the weights belong to this model"),
        ({"arch": "resnet18", "freeze": True}, "are for vision transformers"),
        ({"image_size": 40}, "a multiple of 16 pixels, not 40: set dataset.size"),
    ):
        with pytest.raises(UserError, match=says):
            create("timm", 5, **{"image_size": 224, **arch, **values})


def test_a_frozen_backbone_is_computed_once_a_step():
    """The head alone is perturbed: pass 2 begins at it, and the backbone's stages run once."""
    pytest.importorskip("timm", reason="timm is not installed (extra 'timm')")
    model = create("timm", 5, image_size=32, arch="vit_tiny_patch16_224", freeze=True, head="two_layers")
    passes = []
    model[1].register_forward_hook(lambda *_: passes.append("block1"))
    model[-1].register_forward_hook(lambda *_: passes.append("head"))
    gradient = method("layerwise", model, k=1)
    x, y = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    gradient.backward(x, y, nn.CrossEntropyLoss(reduction="none"))  # measures the stages' FLOPs once
    passes.clear()
    report = gradient.backward(x, y, nn.CrossEntropyLoss(reduction="none"))
    assert passes == ["block1", "head", "head"]
    assert report.forward_units < 1.01


# -- learned step sizes --------------------------------------------------------------------------------------------------


def test_the_gradients_of_learned_step_sizes_are_those_of_the_paper():
    """Esser et al. 2020, Eq. 3, times the scale of section 2.2, and Eq. 5 for the data."""
    from sam_repro.models.lsq import quantise

    v = torch.tensor([-3.0, -0.31, 0.12, 0.5, 0.77, 9.0], dtype=torch.float64, requires_grad=True)
    step = torch.tensor(0.25, dtype=torch.float64, requires_grad=True)
    low, high, numbers = -8, 7, 6
    out = quantise(v, step, low, high, numbers)
    assert torch.allclose(out, torch.tensor([-2.0, -0.25, 0.0, 0.5, 0.75, 1.75], dtype=torch.float64))
    out.sum().backward()
    x = (v / step).detach()
    inside = (x > low) & (x < high)
    expected = torch.where(inside, x.round() - x, x.clamp(low, high)).sum() / (numbers * high) ** 0.5
    assert torch.allclose(step.grad, expected)
    assert torch.equal(v.grad, inside.double())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet"])
def test_a_quantised_model(name):
    torch.manual_seed(0)
    model = create(name, 10, bits=4)
    found = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert [m.bits for m in found] == [8, *[4] * (len(found) - 2), 8]
    assert len(layers(model)) == len(layers(create(name, 10)))
    assert len(found[3].quantised_weight().unique()) <= 16
    x = torch.randn(8, 3, 32, 32)
    loss = nn.functional.cross_entropy(model.train()(x), torch.arange(8))
    assert found[0].signed, "images have negative pixels"
    assert not found[1].signed, "what comes from a ReLU has none"
    assert len(found[1].quantised_input(torch.rand(2, found[1].in_channels, 8, 8) * 9).unique()) <= 16
    loss.backward()
    assert all(m.weight_step.grad is not None and m.input_step.grad is not None for m in found)
    again = create(name, 10, bits=4)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(x), model.eval()(x))


def test_step_sizes_are_trained_but_not_perturbed():
    torch.manual_seed(0)
    model = create("resnet18", 10, bits=4)
    x, y = torch.randn(4, 3, 16, 16), torch.arange(4)
    model(x)
    steps = [m.weight_step for m in model.modules() if hasattr(m, "weight_step")]
    before, seen = [s.item() for s in steps], []
    model[-1].register_forward_hook(lambda *_: seen.append([s.item() for s in steps]))
    conv = model[0].conv.weight.detach().clone()
    model[0].register_forward_pre_hook(lambda *_: seen.append(torch.equal(model[0].conv.weight, conv)))
    method("sam", model, rho=0.5).backward(x, y, nn.CrossEntropyLoss(reduction="none"))
    assert seen == [True, before, False, before]
    assert all(s.grad is not None for s in steps)


def test_a_mean_teacher_is_refused():
    """It would be a copy from before the first batch, which is where the step sizes of activations begin."""
    with pytest.raises(UserError, match=r"set model\.bits=0"):
        method("mesa", create("resnet18", 10, bits=4), steps_per_epoch=1)


def test_without_bits_nothing_is_quantised():
    torch.manual_seed(0)
    plain = create("resnet18", 10)
    assert {type(m) for m in plain.modules() if isinstance(m, nn.Conv2d)} == {nn.Conv2d}
    assert sum(p.numel() for p in create("resnet18", 10, bits=4).parameters()) == 11_173_962 + 2 * 21
