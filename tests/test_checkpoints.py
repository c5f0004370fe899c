import argparse
import json
import os
import re
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import nn

from wegformer.checkpoints import load_checkpoint, saved_classes
from wegformer.classifier import ClassifierConfig, create_classifier, load_classifier, train_classifier
from wegformer.cli import main
from wegformer.config import check_fit, override, preset
from wegformer.data import InputError, VOCDataset
from wegformer.finished import finished_classifier, pick_classes
from wegformer.pipeline import chain
from wegformer.stages import read_done, run
from wegformer.training import read_file

REAL = Path(__file__).parent / "checkpoints"  # written by the libraries themselves, see make.py there
FAMILIES = {
    "vit": ("vit_tiny_patch16_224", {}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "dinov2": ("vit_small_patch14_dinov2", {}),
    "registers": ("vit_small_patch14_reg4_dinov2", {}),
}


def network(family, classes=5, seed=None):
    "A small network of a family, in double precision, with weights far from the timid default."
    name, options = FAMILIES[family]
    size = dict(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=classes)
    net = timm.create_model(name, dynamic_img_size=True, **(size | options)).double().eval()
    if seed is not None:
        torch.manual_seed(seed)
        for p in net.parameters():
            nn.init.normal_(p, std=0.2)
    return net


def prefixed(prefix, state):
    return OrderedDict((prefix + name, t) for name, t in state.items())


def other(state):
    "Weights that must not be taken."
    return {name: t + 1 for name, t in state.items()}


ARGS = argparse.Namespace(lr=1e-3, model="vit", nested=argparse.Namespace(a=[1, 2.0, None, "x", True]))
LAYOUTS = {
    "bare": lambda s: s,
    "timm": lambda s: dict(epoch=3, arch="vit", state_dict=s, optimizer=dict(state={0: dict(step=1)}), args=ARGS),
    "timm with EMA": lambda s: dict(state_dict=other(s), state_dict_ema=prefixed("module.", s), args=ARGS),
    "DeiT": lambda s: dict(model=s, lr_scheduler={}, scaler={}, args=ARGS),
    "DeiT with EMA": lambda s: dict(model=other(s), model_ema=s, args=ARGS),
    "Lightning": lambda s: dict(state_dict=prefixed("model.", s) | {"loss.pos_weight": torch.ones(5)}, callbacks={}),
    "Lightning, EMA inside": lambda s: dict(state_dict=prefixed("net.", other(s)) | prefixed("ema_net.", s)),
    "compiled": lambda s: prefixed("_orig_mod.", s),
    "compiled and parallel": lambda s: dict(model=prefixed("module._orig_mod.", s)),
    "parallel and compiled": lambda s: dict(model=prefixed("_orig_mod.module.", s)),
    "compiled by block": lambda s: {k.replace("blocks.1.", "blocks.1._orig_mod."): t for k, t in s.items()},
    "checkpointed": lambda s: {k.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module."): t for k, t in s.items()},
    "FSDP": lambda s: prefixed("_fsdp_wrapped_module.", s),
    "AveragedModel": lambda s: dict(n_averaged=torch.tensor(4)) | prefixed("module.", s),
    "DINO": lambda s: dict(
        student=prefixed("module.backbone.", other(s)),
        teacher=prefixed("backbone.", s) | {"head.last_layer.weight_g": torch.ones(3)},
        dino_loss=dict(center=torch.zeros(1, 3)),
        args=ARGS,
    ),
    "one dictionary": lambda s: dict(model=prefixed("student.backbone.", other(s)) | prefixed("teacher.backbone.", s)),
    "MoCo": lambda s: dict(
        state_dict=prefixed("module.base_encoder.", other(s)) | prefixed("module.momentum_encoder.", s)
    ),
    "blocks in chunks": lambda s: dict(
        teacher={f"backbone.{k}".replace("blocks.", "blocks.0."): t for k, t in s.items()}
    ),
    "a wrapper's own": lambda s: dict(epoch=1, weights=dict(best=prefixed("classifier.vit.", s))),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_gives_the_same_logits(layout, family, tmp_path):
    net, images = network(family, seed=0), torch.randn(2, 3, 32, 40, dtype=torch.float64)
    torch.save(LAYOUTS[layout](net.state_dict()), tmp_path / "net.pth")
    loaded = load_checkpoint(network(family, seed=1), tmp_path / "net.pth")
    with torch.no_grad():
        assert torch.allclose(loaded(images), net(images), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "extras", [{"mask_token": (1, 1, 8), "decoder_embed.weight": (8, 16)}, {"pooler.dense.weight": (2, 2)}]
)
def test_what_pretraining_needed_besides_goes(extras, tmp_path):
    net = network("vit", 0, seed=0)
    torch.save(dict(model=net.state_dict() | {k: torch.zeros(*s) for k, s in extras.items()}), tmp_path / "mae.pth")
    loaded = load_checkpoint(network("vit", 0, seed=1), tmp_path / "mae.pth")
    assert all(torch.equal(t, loaded.state_dict()[name]) for name, t in net.state_dict().items())


def test_layer_scale_of_deit3(tmp_path):
    net = network("dinov2", seed=0)
    state = {
        name.replace(".ls1.gamma", ".gamma_1").replace(".ls2.gamma", ".gamma_2"): t
        for name, t in net.state_dict().items()
    }
    assert "blocks.0.gamma_1" in state
    torch.save(dict(model=state), tmp_path / "deit3.pth")
    loaded = load_checkpoint(network("dinov2", seed=1), tmp_path / "deit3.pth")
    assert all(torch.equal(t, loaded.state_dict()[name]) for name, t in net.state_dict().items())


@pytest.mark.parametrize(
    "file, family, classes",
    [
        ("vit", "vit", 5),
        ("vit_in_memory", "vit", 5),
        ("deit", "distilled", 5),
        ("dinov2", "dinov2", 0),
        ("dinov2_in_memory", "dinov2", 0),
        ("dinov2_reg4", "registers", 0),
    ],
)
def test_transformers_by_its_own_files_and_results(file, family, classes):
    "In double precision, against what the library itself computed: logits, or all tokens where it has no head."
    net = load_checkpoint(network(family, classes, seed=1), REAL / f"{file}.safetensors")
    known = safetensors.torch.load_file(REAL / f"{file.removesuffix('_in_memory')}.out")
    with torch.no_grad():
        images = known["images"].double()
        result = net(images) if classes else net.forward_features(images)
    assert result.shape == known["result"].shape and (result - known["result"]).abs().max() < 1e-6
    assert net.norm.eps == (1e-12 if classes else 1e-6)


def in_names_of_transformers(net):
    "A timm ViT's tensors as `transformers` 4 names them."
    names = {
        "patch_embed.proj.": "vit.embeddings.patch_embeddings.projection.",
        "cls_token": "vit.embeddings.cls_token",
    }
    names |= {"pos_embed": "vit.embeddings.position_embeddings", "norm.": "vit.layernorm.", "head.": "classifier."}
    inner = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense"}
    inner |= {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
    for name, t in net.state_dict().items():
        if name.startswith("blocks."):
            block, layer, kind = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(\w+)", name).groups()
            place = f"vit.encoder.layer.{block}"
            if layer == "attn.qkv":
                for part, rows in zip(("query", "key", "value"), t.chunk(3)):
                    yield f"{place}.attention.attention.{part}.{kind}", rows.clone()
            else:
                yield f"{place}.{inner[layer]}.{kind}", t
        else:
            start = next(n for n in names if name.startswith(n))
            yield names[start] + name.removeprefix(start), t


def test_names_as_the_library_writes_them():
    assert dict(in_names_of_transformers(network("vit"))).keys() == read_file(REAL / "vit.safetensors").keys()


def test_the_norms_epsilon_is_kept_with_the_weights(tmp_path, toy_root):
    voc, name = VOCDataset(toy_root, "train"), "vit_toy_patch8_96"
    net = create_classifier(name, voc.num_classes, pretrained=False)
    torch.save(dict(in_names_of_transformers(net)), tmp_path / "pytorch_model.bin")
    loaded = create_classifier(name, voc.num_classes, weights=tmp_path / "pytorch_model.bin", finished=True)
    assert all(torch.equal(t, net.state_dict()[k]) for k, t in loaded.state_dict().items())
    train_classifier(loaded, ClassifierConfig(model=name, steps=0), voc, tmp_path, device="cpu")
    again, _, _ = load_classifier(tmp_path / "model.safetensors")
    assert {m.eps for m in again.modules() if isinstance(m, nn.LayerNorm)} == {1e-12}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("prefix", ["", "module.", "model.backbone."])
def test_torchvision(prefix, old, tmp_path):
    torch.manual_seed(0)
    theirs = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 64, num_classes=5).double().eval()
    for p in theirs.parameters():
        nn.init.normal_(p, std=0.2)
    state = prefixed(prefix, theirs.state_dict())
    if old:  # names of its first version
        state = {
            k.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): t for k, t in state.items()
        }
    torch.save(state, tmp_path / "tv.pth")
    ours, images = load_checkpoint(network("vit", seed=1), tmp_path / "tv.pth"), torch.randn(2, 3, 32, 32).double()
    with torch.no_grad():
        assert (ours(images) - theirs(images)).abs().max() < 1e-6


def test_the_rule_for_several_networks_is_said(tmp_path, capsys):
    state = network("vit", seed=0).state_dict()
    torch.save(dict(model=other(state), model_ema=state), tmp_path / "both.pth")
    load_checkpoint(network("vit"), tmp_path / "both.pth")
    assert "both.pth: 'model_ema.' is taken, a running average" in capsys.readouterr().out
    torch.save(dict(a=state, b=dict(state)), tmp_path / "equal.pth")
    load_checkpoint(network("vit"), tmp_path / "equal.pth")
    for saved in (dict(a=state, b=other(state)), dict(model_ema=state, teacher=other(state))):
        torch.save(saved, tmp_path / "two.pth")
        with pytest.raises(InputError, match="two.pth hold more than one network, '.*' and '.*'; expected one"):
            load_checkpoint(network("vit"), tmp_path / "two.pth")


def test_the_network_that_fits_is_taken(tmp_path):
    "A teacher that lacks a layer beside a student: what fits counts before what is an average."
    net, teacher = network("vit", seed=0), network("vit", seed=3).state_dict()
    del teacher["blocks.1.norm1.weight"]
    torch.save(dict(student=net.state_dict(), teacher=teacher), tmp_path / "a.pth")
    loaded = load_checkpoint(network("vit", seed=1), tmp_path / "a.pth")
    assert torch.equal(loaded.head.weight, net.head.weight)


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda s: {k: t for k, t in s.items() if k != "norm.bias"},
            "it has no 'norm.bias', its first name is 'cls_token'",
        ),
        (lambda s: s | {"blocks.0.attn.qkv.lora_A": torch.ones(1)}, "it holds 'blocks.0.attn.qkv.lora_A', which the"),
        (lambda s: s | {"norm.weight": torch.ones(7)}, r"'norm.weight' is \(7,\), expected \(16,\)"),
        (lambda s: s | {"norm.weight": torch.ones(16, dtype=torch.int8)}, "'norm.weight' is torch.int8, expected"),
        (lambda s: {"layer.weight": torch.ones(2)}, "it has no 'cls_token', its first name is 'layer.weight'"),
        (lambda s: network("dinov2", 5, seed=0).state_dict(), "it holds 'blocks.0.ls1.gamma', which the model has not"),
        (lambda s: timm.create_model("swin_tiny_patch4_window7_224").state_dict(), "it has no 'cls_token'"),
    ],
)
def test_what_does_not_fit_is_refused(change, words, tmp_path):
    torch.save(change(network("vit", seed=0).state_dict()), tmp_path / "net.pth")
    with pytest.raises(InputError, match=f"net.pth belong to another model.*{words}") as refused:
        load_checkpoint(network("vit"), tmp_path / "net.pth")
    assert "\n" not in str(refused.value)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def nested(depth, inside):
    for _ in range(depth):
        inside = dict(model=inside)
    return inside


def own_child():
    "A dictionary that holds itself."
    saved = dict(a=1)
    saved["model"] = saved
    return saved


@pytest.mark.parametrize(
    "name, saved",
    [
        ("in args", lambda p, s: dict(model=s, args=argparse.Namespace(a=Bomb(p)))),
        ("in the place of args", lambda p, s: dict(model=s, args=Bomb(p))),
        ("as a tensor", lambda p, s: s | {"norm.weight": Bomb(p)}),
        ("as a key", lambda p, s: {Bomb(p): s}),
        ("deep", lambda p, s: nested(4, Bomb(p))),
        ("tensors too deep", lambda p, s: nested(50, s)),
        ("itself", lambda p, s: own_child()),
        ("keys that are numbers", lambda p, s: {3: torch.ones(2), None: torch.ones(2)}),
        ("no values", lambda p, s: {k: t.to("meta") for k, t in s.items()}),
        ("another layout", lambda p, s: s | {"head.weight": s["head.weight"].to_sparse()}),
        ("a list", lambda p, s: [s]),
        ("nothing", lambda p, s: {}),
        ("many anchors", lambda p, s: {f"a.{k}.patch_embed.proj.weight": torch.ones(1) for k in range(20_000)}),
    ],
)
def test_hostile_files_are_refused_in_a_sentence(name, saved, tmp_path):
    torch.save(saved(tmp_path / "executed", network("vit", seed=0).state_dict()), tmp_path / "hostile.pth")
    with pytest.raises(InputError, match="hostile.pth") as refused:
        load_checkpoint(network("vit"), tmp_path / "hostile.pth")
    assert not (tmp_path / "executed").exists() and "\n" not in str(refused.value)
    assert "weights_only" not in str(refused.value)


def test_options_of_a_script_are_read_and_no_more(tmp_path):
    torch.save(dict(args=ARGS, w=torch.ones(1)), tmp_path / "a.pth")
    assert read_file(tmp_path / "a.pth")["args"].nested.a == [1, 2.0, None, "x", True]
    torch.save(dict(args=Path("a"), w=torch.ones(1)), tmp_path / "b.pth")
    with pytest.raises(InputError, match="b.pth cannot be read as tensors: it holds pathlib"):
        read_file(tmp_path / "b.pth")
    with pytest.raises(Exception, match="argparse.Namespace"):  # what was allowed was allowed once
        torch.load(tmp_path / "a.pth", weights_only=True)


@pytest.mark.parametrize(
    "saved, beside, names",
    [
        ({"classes": ["cat", "dog"]}, None, ("cat", "dog")),
        ({"classes": ["background", "cat", "dog"]}, None, ("cat", "dog")),
        ({"class_to_idx": {"dog": 1, "cat": 0}}, None, ("cat", "dog")),
        ({"classes": 2, "class_names": ("cat", "dog")}, None, ("cat", "dog")),
        ({"classes": ["cat", 3]}, None, None),
        ({"class_to_idx": {"dog": 1, "cat": 2}}, None, None),
        ({}, {"id2label": {"0": "cat", "1": "dog"}}, ("cat", "dog")),
        ({}, {"label_names": ["cat", "dog"]}, ("cat", "dog")),
        ({}, [1], None),
        ({}, {}, None),
    ],
)
def test_names_of_classes(saved, beside, names, tmp_path):
    if beside is not None:
        (tmp_path / "config.json").write_text(json.dumps(beside))
    assert saved_classes(saved, tmp_path / "a.pth") == names


def toy(tmp_path, count, names=None, **saved):
    "A finished toy classifier's recipe, and the network."
    torch.manual_seed(0)
    net = create_classifier("vit_toy_patch8_96", count)
    torch.save(dict(model=net.state_dict()) | saved, tmp_path / "mine.pth")
    if names:
        (tmp_path / "names.txt").write_text("\n".join(names))
    recipe = dict(model="vit_toy_patch8_96", steps=0, weights=str(tmp_path / "mine.pth"))
    return ClassifierConfig(**recipe, classes=str(tmp_path / "names.txt") if names else None), net


@pytest.mark.parametrize("known", [dict(names=["a", "b"]), dict(classes=["a", "b"]), dict(id2label={0: "a", 1: "b"})])
def test_a_finished_classifier_is_used_as_it_is(known, tmp_path):
    (recipe, net), x = toy(tmp_path, 2, **known), torch.randn(1, 3, 64, 96)
    model, names = finished_classifier(recipe)
    assert names == ("a", "b") and torch.equal(model(x), net(x)) and not model.training


@pytest.mark.parametrize(
    "known, words",
    [
        (dict(), "mine.pth do not say which classes they know; expected classifier.classes"),
        (dict(names=["a", "b", "c"]), r"'head.weight' is \(2, 96\), expected \(3, 96\)"),
        (dict(classes=["a"]), r"'head.weight' is \(2, 96\), expected \(1, 96\)"),
        (dict(names=["a", "a"]), "names.txt hold 'a' twice"),
    ],
)
def test_a_list_that_does_not_fit_the_head_is_refused(known, words, tmp_path):
    with pytest.raises(InputError, match=words):
        finished_classifier(toy(tmp_path, 2, **known)[0])


@pytest.mark.parametrize(
    "changed, words",
    [
        (dict(steps=0, pretrained=False), "there are no weights"),
        (dict(classes="a.txt"), "expected steps=0"),
        (dict(steps=0, classes="gone.txt"), "gone.txt cannot be read"),
        (dict(steps=-1), "steps is -1; expected at least 0"),
    ],
)
def test_recipes_that_make_no_sense_are_refused_early(changed, words):
    with pytest.raises(InputError, match=words):
        check_fit(override(preset("smoke"), {f"classifier.{name}": value for name, value in changed.items()}))


@pytest.mark.parametrize("name", ["vit_toy_patch8_96", "deit_tiny_distilled_patch16_224", "resnet_toy"])
def test_classes_are_picked_by_name(name):
    torch.manual_seed(0)
    net, x = create_classifier(name, 4, pretrained=False), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = net(x)
        after = pick_classes(net, "abcd", "db")(x)
    assert torch.allclose(after, before[:, [3, 1]], atol=1e-5) and net.num_classes == 2
    with pytest.raises(InputError, match="data set's class 'e'"):
        pick_classes(net, "db", "de")


def test_names_that_lead_to_a_folder(tmp_path):
    net = create_classifier("vit_toy_patch8_96", 3)
    cfg = dict(
        architecture="vit_toy_patch8_96", num_classes=3, label_names=["a", "b", "c"], mean=[0.1] * 3, std=[0.2] * 3
    )
    (tmp_path / "config.json").write_text(json.dumps(cfg))
    safetensors.torch.save_file(net.state_dict(), tmp_path / "model.safetensors")
    model, names = finished_classifier(ClassifierConfig(model=f"local-dir:{tmp_path}", steps=0))
    x = torch.randn(1, 3, 64, 64)
    assert names == ("a", "b", "c") and torch.equal(model(x), net.eval()(x))
    with pytest.raises(InputError, match="local-dir:gone' has no config.json"):
        create_classifier("local-dir:gone")
    for content in ("{", "[1]", "{}", '{"architecture": "no_such"}'):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(InputError, match=f"{tmp_path.name}.*could not"):
            create_classifier(f"local-dir:{tmp_path}")


def test_a_hub_that_is_not_reached(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("We couldn't connect")

    monkeypatch.setattr("timm.models._factory.load_model_config_from_hf", offline)
    with pytest.raises(InputError, match="hf-hub:me/mine.*could not be loaded.*We couldn't connect"):
        create_classifier("hf-hub:me/mine")


def test_the_chain_takes_a_finished_classifier(tmp_path, toy_root):
    "Its rows are those of the data set's classes; no step is taken, val is measured, the file stands alone."
    train = VOCDataset(toy_root, "train")
    names = ["other", *reversed(train.classes[1:])]
    recipe, net = toy(tmp_path, len(names), names)
    values = {f"classifier.{k}": getattr(recipe, k) for k in ("model", "steps", "weights", "classes")}
    config = override(preset("smoke"), values | {"data.voc_root": str(toy_root)})
    stage = chain(config).classifier
    folder = run(stage, tmp_path / "cache")
    model, _, classes = load_classifier(folder / "model.safetensors")
    x = torch.randn(1, 3, 64, 64)
    assert classes == train.classes and read_done(folder)["metrics"]["mAP"] >= 0
    assert torch.allclose(model(x), net(x)[:, [names.index(c) for c in train.classes[1:]]], atol=1e-6)
    (tmp_path / "names.txt").write_text("\n".join(["other", *train.classes[1:]]))
    assert chain(config).classifier.key != stage.key  # other names are another classifier
    (tmp_path / "names.txt").write_text("\n".join(f"x{k}" for k in range(len(names))))
    with pytest.raises(InputError, match="does not know the data set's class"):
        run(chain(config).classifier, tmp_path / "cache")


def test_explain_with_a_finished_classifier(tmp_path, toy_root, capsys):
    recipe, _ = toy(tmp_path, 300, [f"thing {k}" for k in range(300)])
    photo = next((toy_root / "JPEGImages").iterdir())
    words = ["explain", str(photo), "--preset", "smoke", "--classifier.model", recipe.model, "--classifier.weights",
             recipe.weights, "--classifier.steps", "0", "--out", str(tmp_path / "e.png")]  # fmt: skip
    assert main(words) == 2 and "do not say which classes" in capsys.readouterr().err
    words += ["--classifier.classes", recipe.classes]
    assert main([*words, "--classes", "thing 3", "thing 299"]) == 0
    assert "thing 3, thing 299" in capsys.readouterr().out and (tmp_path / "e.png").stat().st_size > 1000
    assert main(words) == 0
    assert main([*words, "--classes", "thing 300"]) == 2
    assert "unknown class 'thing 300'; expected some of: thing 30" in capsys.readouterr().err
