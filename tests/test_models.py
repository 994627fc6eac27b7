import pytest
import torch
from torch import nn

from sam_repro.chain import Chain, stage_flops
from sam_repro.models import create, layers
from sam_repro.schema import UserError


@pytest.mark.parametrize(
    ("name", "values", "parameters", "layer_count", "stages"),
    [
        ("resnet20", {}, 269_722, 20, 11),  # 0.27 M (He et al. 2016, Table 6); 19 convolutions and a linear map
        ("resnet20", {"shortcut": "B"}, 272_474, 22, 11),
        ("wrn16_2", {}, 691_674, 17, 8),  # 16 layers and a widening shortcut in each of three groups, one counted in WRN-16
        ("wrn28_10", {}, 36_479_194, 29, 14),
        ("resnet18", {}, 11_173_962, 21, 10),
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


def test_imagenet_sizes_and_outputs_are_torchvisions():
    """With our weights in its model, layer by layer in order, torchvision gives our outputs."""
    import torchvision

    for name, reference in (("resnet18", "resnet18"), ("resnet50", "resnet50"), ("wrn50_2", "wide_resnet50_2")):
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
        ("resnet20", {"shortcut": "C"}, "one of A, B"),
        ("resnet20", {"shortcu": "A"}, "Did you mean 'shortcut'"),
        ("timm", {}, "model.arch must be given"),
    ],
)
def test_wrong_words(name, values, says):
    with pytest.raises(UserError, match=says):
        create(name, **values)
