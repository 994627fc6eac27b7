"""What is not let in: files from elsewhere that do not fit, cannot be read, or would do harm. Each ends in one sentence."""

import pytest
import torch

from sam_repro.config import compose
from sam_repro.models import create
from sam_repro.schema import UserError
from sam_repro.train.job import Job


def moved(state, old, new):
    return {key.replace(old, new): value for key, value in state.items()}


WRONG_WEIGHTS = {
    "a missing block": (lambda state: {k: v for k, v in state.items() if "blocks.3." not in k}, r"blocks\.3\.attn.* and 4 more"),
    "renamed keys": (lambda state: moved(state, "norm1", "ln1"), r"blocks\.0\.ln1\.bias"),
    "no positions": (lambda state: {k: v for k, v in state.items() if k != "pos_embed"}, r"\?\): pos_embed\."),
    "half a head": (lambda state: {**{k: v for k, v in state.items() if k != "head.bias"}, "head.weight": torch.ones(5, 192)}, "head"),
    "another width": (lambda state: {**state, "norm.weight": torch.ones(3)}, r"\): norm\.weight\."),
    "no weights": (lambda state: {"epoch": 3}, "do the weights belong"),
    "a list": (lambda state: [1, 2], "do the weights belong"),
}


@pytest.mark.parametrize("wrong", WRONG_WEIGHTS)
@pytest.mark.parametrize("classes", [5, 1000])
def test_weights_that_do_not_fit_a_vision_transformer_are_listed(tmp_path, wrong, classes):
    timm = pytest.importorskip("timm", reason="timm is not installed (extra 'timm')")
    change, says = WRONG_WEIGHTS[wrong]
    values = {"arch": "vit_tiny_patch16_224", "image_size": 32, "weights": str(tmp_path / "it.pth")}
    state = timm.create_model("vit_tiny_patch16_224", img_size=32).state_dict()
    torch.save(change(state), tmp_path / "it.pth")
    if wrong == "half a head" and classes == 5:
        create("timm", classes, **values)  # another task's head: it is new
    else:
        with pytest.raises(UserError, match=says):
            create("timm", classes, **values)
    torch.save({key: value for key, value in state.items() if not key.startswith("head.")}, tmp_path / "it.pth")
    assert torch.equal(create("timm", classes, **values).embed.pos_embed, state["pos_embed"])


def test_weights_that_do_not_fit_roberta_are_listed(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra 'nlp')")
    config = transformers.RobertaConfig(num_hidden_layers=2, hidden_size=16, num_attention_heads=2, intermediate_size=64)
    model = transformers.RobertaForSequenceClassification(config)
    model.save_pretrained(tmp_path, state_dict=moved(model.state_dict(), "layer.1.output", "layer.1.out"))
    with pytest.raises(UserError, match=r"has not all weights: roberta\.encoder\.layer\.1\.output"):
        create("roberta_tiny", 2, pretrained=str(tmp_path), layers=2, width=16, heads=2)


WRONG_CHECKPOINTS = {
    "no model": lambda state: state.pop("model"),
    "another layer": lambda state: state["model"].pop("stem.conv.weight"),
    "an epoch in words": lambda state: state.update(epoch="three"),
    "weights that are none": lambda state: state["model"].update({"stem.conv.weight": "x"}),
    "no tensors": lambda state: state.update(model=[1]),
    "another base": lambda state: state.update(base={"state": {}, "param_groups": []}),
    "another schedule": lambda state: state.update(schedule=3),
    "another method": lambda state: state.update(gradient={"bank": 1}),
    "no random state": lambda state: state.update(random=torch.ones(3)),
    "not even a mapping": lambda state: state.clear(),
}


def test_a_checkpoint_of_the_right_form_with_wrong_contents_is_named(tmp_path):
    job = Job(compose(["model=resnet20", "dataset=digits", "max_samples=64", "batch_size=32", "device=cpu", f"runs_dir={tmp_path}"]))
    path = tmp_path / "state.pt"
    job.save(path)
    job.resume(path)
    (tmp_path / "checksums.json").unlink()
    for wrong, change in WRONG_CHECKPOINTS.items():
        job.save(path)
        state = torch.load(path)
        change(state)
        torch.save(state, path)
        (tmp_path / "checksums.json").unlink()
        with pytest.raises(UserError, match=r"state\.pt .*rerun=true starts") as caught:
            job.resume(path)
        assert "\n" not in str(caught.value), wrong
