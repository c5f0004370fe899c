"Networks that are not what their type says: unwrapped where that is exact, else refused by name, by every method."

import copy
import types

import pytest
import timm
import torch
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel

from wegformer.attention import AttentionConfig, attention_maps
from wegformer.classifier import create_classifier, mean_std
from wegformer.config import override, preset
from wegformer.data import InputError
from wegformer.explainable import check_explainable
from wegformer.heatmaps import METHODS, cam_maps
from wegformer.last_block import last_block_maps
from wegformer.pipeline import chain
from wegformer.plain_model import plain_model
from wegformer.relevance import dtd_maps, dtd_maps_plain
from wegformer.vit import random_vit

DOORS = {name: method.function for name, method in METHODS.items()}
DOORS |= {"dtd plain": dtd_maps_plain, "dtd all blocks": lambda *args: dtd_maps(*args, start_block=0)}
PAIRS = torch.tensor([[0, 1], [0, 3], [1, 1]])


def pictures(dtype=torch.float64):
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def small_vit(**options):
    return random_vit(depth=2, **options)


# ---- taken off


def with_block(model, wrap, k=1):
    model.blocks[k] = wrap(model.blocks[k])
    return model


def distributed(model):
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        return nn.parallel.DistributedDataParallel(model)
    finally:
        torch.distributed.destroy_process_group()


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


def compiled_forward(model):
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def parametrized(norm):
    def wrap(model):
        layers = (model.blocks[0].attn.qkv, model.blocks[1].attn.qkv, model.blocks[1].mlp.fc2, model.head)
        for layer in layers:
            norm(layer)
        return model.eval()

    return wrap


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def mixed_precision(model):
    "What accelerate's prepare does: forward under autocast, its results in float32."
    from accelerate.utils.operations import convert_outputs_to_fp32

    model._original_forward = model.forward
    forward = torch.autocast("cpu", torch.bfloat16)(model.forward.__func__)
    model.forward = types.MethodType(convert_outputs_to_fp32(forward), model)
    return model


TAKEN_OFF = {
    "nothing": lambda model: model,
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": distributed,
    "torch.compile": lambda model: torch.compile(model, backend="eager"),
    "model.compile()": compiled_in_place,
    "compiled forward": compiled_forward,
    "compiled block": lambda model: with_block(model, lambda block: torch.compile(block, backend="eager")),
    "block in DataParallel": lambda model: with_block(model, nn.DataParallel),
    "averaged weights": AveragedModel,
    "DataParallel of compiled": lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
    "weight norm": parametrized(parametrizations.weight_norm),
    "spectral norm": parametrized(parametrizations.spectral_norm),
    "orthogonal": parametrized(parametrizations.orthogonal),
    "own parametrisation": parametrized(lambda layer: parametrize.register_parametrization(layer, "weight", Doubled())),
    "weight norm in DataParallel": lambda model: nn.DataParallel(parametrized(parametrizations.weight_norm)(model)),
    "mixed precision of accelerate": mixed_precision,
}


def weight_of(module, name):
    "A weight as it is read, past shells on the way."
    for part in name.split("."):
        while not hasattr(module, part) or isinstance(module, (nn.DataParallel, AveragedModel)):
            module = module.module
        module = getattr(module, part)
    return module


def plain_twin(wrapped):
    "The network that a wrapped one is, built anew by torch's own means."
    twin = small_vit()
    with torch.no_grad():
        for name, weight in twin.named_parameters():
            weight.copy_(weight_of(wrapped, name))
    return twin


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", TAKEN_OFF)
def test_what_can_be_taken_off_changes_no_map(kind, dtype):
    """In double precision to the last digits; in single to ten times what it errs itself: equal weights that lie
    otherwise in memory are summed in another order."""
    wrapped = TAKEN_OFF[kind](small_vit().to(dtype))
    twin, images = plain_twin(wrapped).to(dtype), pictures(dtype)
    before = {name: weight.clone() for name, weight in wrapped.state_dict().items()}
    for door, maps in DOORS.items():
        expected = maps(twin, images, PAIRS)
        exact = maps(copy.deepcopy(twin).double(), images.double(), PAIRS)
        bound = 1e-12 * exact.norm() if dtype is torch.float64 else 10 * (expected - exact).norm()
        assert (maps(wrapped, images, PAIRS) - expected).norm() <= bound, door
    after = wrapped.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_an_ordinary_network_is_not_copied():
    model = small_vit()
    assert plain_model(model) is model and plain_model(nn.DataParallel(model)) is model
    shared = plain_model(parametrized(parametrizations.weight_norm)(small_vit()))
    assert type(shared.head) is nn.Linear and plain_model(shared) is shared


def test_attention_maps_of_a_wrapped_network():
    "Its patch size, its mean and its standard deviation are those of the network inside."
    model = timm.create_model("vit_toy_patch8_96", pretrained=False, num_classes=5, dynamic_img_size=True).eval()
    model.pretrained_cfg = model.default_cfg = model.pretrained_cfg | dict(mean=(0.1, 0.2, 0.3), std=(0.5, 0.4, 0.3))
    image = torch.randint(0, 256, (3, 60, 44), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    config = AttentionConfig(long_side=60, scales=(1.0,), precision="no")
    expected = attention_maps(model, image, torch.tensor([1, 4]), config)
    assert torch.equal(attention_maps(nn.DataParallel(model), image, torch.tensor([1, 4]), config), expected)


def test_the_mean_of_a_wrapped_network_is_not_guessed():
    with pytest.raises(InputError, match="DataParallel is a wrapper"):
        mean_std(nn.DataParallel(small_vit()))
    assert mean_std(plain_model(nn.DataParallel(small_vit()))) == mean_std(small_vit())


# ---- refused


class Lora(nn.Linear):
    "A linear layer with a low-rank term, as many codes write it."

    def __init__(self, base):
        super().__init__(base.in_features, base.out_features, dtype=base.weight.dtype)
        self.load_state_dict(base.state_dict())
        g = torch.Generator().manual_seed(3)
        self.A = nn.Parameter(torch.randn(4, base.in_features, generator=g, dtype=base.weight.dtype) / 5)
        self.B = nn.Parameter(torch.randn(base.out_features, 4, generator=g, dtype=base.weight.dtype) / 5)

    def forward(self, x):
        return super().forward(x) + x @ self.A.T @ self.B.T


class Adapter(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base

    def forward(self, x):
        return 2 * self.base(x)


class DoubledBlock(Block):
    def forward(self, x, **options):
        return 2 * super().forward(x, **options)


class MeanViT(VisionTransformer):
    def forward_head(self, x, pre_logits=False):
        return self.head(x.mean(1))


class Tagged(torch.Tensor):
    pass


def last(model):
    return model.blocks[-1]


def replaced(path, wrap):
    def change(model):
        *owners, name = path.split(".")
        owner = model.get_submodule(".".join(owners))
        setattr(owner, name, wrap(getattr(owner, name)))
        return model

    return change


def hooked(path, register, hook):
    def change(model):
        getattr(model.get_submodule(path), register)(hook)
        return model

    return change


def twice(layer, args, output):
    return 2 * output


def gains(layer, args):
    return (args[0] * torch.linspace(0.2, 3, args[0].shape[-1], dtype=args[0].dtype),)


def twice_in(layer, args):
    return tuple(2 * x for x in args)


def twice_back(layer, grad_in, grad_out):
    return tuple(None if g is None else 2 * g for g in grad_in)


def twice_back_in(layer, grad_out):
    return tuple(2 * g for g in grad_out)


def own_forward(model):
    attn = last(model).attn
    attn.forward = types.MethodType(lambda self, x, **options: 2 * Attention.forward(self, x), attn)
    return model


def quantized(model):
    return torch.ao.quantization.quantize_dynamic(model.float(), {nn.Linear}, dtype=torch.qint8)


def integers(model):
    last(model).mlp.fc1.weight = nn.Parameter((10 * last(model).mlp.fc1.weight).round().to(torch.int8), False)
    return model


def of_class(kind):
    def change(model):
        model.__class__ = kind
        return model

    return change


def block_of_class(model):
    last(model).__class__ = DoubledBlock
    return model


def scaled(model):
    last(model).attn.scale *= 2
    return model


def nan(model):
    with torch.no_grad():
        model.patch_embed.proj.weight[0, 0, 0, 0] = torch.nan
    return model


def infinite(model):
    with torch.no_grad():
        model.blocks[0].norm1.weight[0] = torch.inf
    return model


def on_meta(model):
    last(model).attn.proj.to("meta")
    return model


def tagged(model):
    fc1 = last(model).mlp.fc1
    fc1.weight = nn.Parameter(fc1.weight.detach().as_subclass(Tagged), False)
    return model


def gated(model):
    last(model).attn.gate = nn.Linear(48, 48).double()
    return model


def noisy(model):
    class Noise(nn.Module):
        def forward(self, weight):
            return weight + torch.randn_like(weight)

    parametrize.register_parametrization(model.head, "weight", Noise())
    return model.eval()


def training_norm(model):
    parametrizations.spectral_norm(model.head)
    return model.train()


def hooked_shell(model):
    shell = nn.DataParallel(model)
    shell.register_forward_hook(twice)
    return shell


def made(**options):
    def change(_):
        return (
            timm.create_model(
                "vit_tiny_patch16_224",
                **dict(img_size=64, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=5) | options,
            )
            .double()
            .eval()
        )

    return change


REFUSED = {  # how; what the message says
    "LoRA by hand": (replaced("blocks.1.mlp.fc2", Lora), r"blocks\.1\.mlp\.fc2 is of type .*Lora"),
    "LoRA by hand in the first block": (replaced("blocks.0.attn.qkv", Lora), r"blocks\.0\.attn\.qkv is of type .*Lora"),
    "LoRA by hand on the head": (replaced("head", Lora), r"head is of type .*Lora"),
    "adapter": (replaced("blocks.1.attn.proj", Adapter), r"blocks\.1\.attn\.proj is of type .*Adapter"),
    "adapter around a block": (replaced("blocks.1", Adapter), r"blocks\.1 is of type .*Adapter"),
    "adapter around all blocks": (
        replaced("blocks", lambda b: nn.Sequential(*map(Adapter, b))),
        "is of type .*Adapter",
    ),
    "derived block": (block_of_class, "DoubledBlock"),
    "derived model": (of_class(MeanViT), "MeanViT"),
    "forward hook": (hooked("blocks.1.mlp.fc2", "register_forward_hook", twice), r"fc2 has a hook, twice"),
    "forward hook on a norm": (hooked("blocks.1.norm2", "register_forward_hook", twice), "norm2 has a hook"),
    "forward hook on a block": (hooked("blocks.0", "register_forward_hook", twice), r"blocks\.0 has a hook"),
    "forward hook on all blocks": (hooked("blocks", "register_forward_hook", twice), "blocks has a hook"),
    "forward hook on the head": (hooked("head", "register_forward_hook", twice), "head has a hook"),
    "forward hook on the model": (hooked("", "register_forward_hook", twice), "it has a hook"),
    "forward pre-hook": (hooked("blocks.1.attn.qkv", "register_forward_pre_hook", twice_in), "qkv has a hook"),
    "forward pre-hook with gains": (
        hooked("blocks.1.mlp.fc1", "register_forward_pre_hook", gains),
        "fc1 has a hook, gains",
    ),
    "forward hook on the attention's layer": (
        hooked("blocks.1.attn.qkv", "register_forward_hook", twice),
        "qkv has a hook",
    ),
    "backward hook": (hooked("blocks.1.mlp.fc1", "register_full_backward_hook", twice_back), "fc1 has a hook"),
    "backward pre-hook": (hooked("norm", "register_full_backward_pre_hook", twice_back_in), "norm has a hook"),
    "hook on a shell": (hooked_shell, "hook"),
    "forward of the object": (own_forward, r"has another forward\(\)"),
    "older weight norm": (replaced("blocks.1.mlp.fc1", nn.utils.weight_norm), "hook, WeightNorm"),
    "older spectral norm": (replaced("blocks.1.mlp.fc1", nn.utils.spectral_norm), "hook, SpectralNorm"),
    "pruned": (replaced("blocks.1.mlp.fc1", lambda m: prune.l1_unstructured(m, "weight", 0.5)), "hook, L1Unstructured"),
    "quantised": (quantized, "quantized"),
    "whole numbers as weights": (integers, "torch.int8"),
    "weights of a subclass": (tagged, "Tagged"),
    "weights on meta": (on_meta, "device meta"),
    "NaN among the weights": (nan, r"patch_embed\.proj\.weight has a value that is not finite"),
    "an infinite weight": (infinite, r"blocks\.0\.norm1\.weight has a value that is not finite"),
    "other scale": (scaled, "scale"),
    "random parametrisation": (noisy, "each time it is read"),
    "parametrised, in training": (training_norm, "training mode"),
    "training with dropout": (lambda m: made(proj_drop_rate=0.1)(m).train(), "training mode"),
    "training with stochastic depth": (lambda m: made(drop_path_rate=0.1)(m).train(), "training mode"),
    "no class token": (made(class_token=False, global_pool="avg"), "no class token"),
    "average pooling": (made(global_pool="avg"), "global_pool='avg'"),
    "SwiGLU": (made(mlp_layer=timm.layers.SwiGLU), "SwiGLU"),
    "gated attention": (gated, r"blocks\.1\.attn\.gate is of type Linear"),
    "traced": (lambda m: torch.jit.trace(m, pictures()), "TopLevelTracedModule"),
    "no network": (lambda m: "deit_base_patch16_224", "expected a network"),
}


STEPS = ("dtd", "dtd all blocks", "cam", "grad_cam")  # take what can be read as steps (tests/test_vit_families.py)
OTHERS = {"no class token": STEPS, "average pooling": STEPS, "SwiGLU": STEPS}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_is_refused_by_every_method(kind):
    change, reason = REFUSED[kind]
    model = change(small_vit())
    floating = next((p.dtype for p in model.parameters() if p.is_floating_point()), None) if kind != "no network" else 0
    for door, maps in DOORS.items():
        if door in OTHERS.get(kind, ()):
            assert maps(model, pictures(), PAIRS).isfinite().all(), door
            continue
        with pytest.raises(InputError, match=reason) as error:
            maps(model, pictures(floating or torch.float64), PAIRS)
        assert "\n" not in str(error.value) and len(str(error.value)) < 400, door


def merged(model):
    "What hand-made LoRA computes, as plain weights."
    plain = small_vit()
    for name, layer in model.named_modules():
        if isinstance(layer, Lora):
            plain.get_submodule(name).weight.data = layer.weight.data + layer.B.data @ layer.A.data
    return plain


def times(path, factor):
    "A plain network with larger weights and biases somewhere."
    plain = small_vit()
    for weight in plain.get_submodule(path).parameters():
        weight.data *= factor
    return plain


def with_gains(model):
    plain = small_vit()
    plain.blocks[1].mlp.fc1.weight.data *= torch.linspace(0.2, 3, 48).double()
    return plain


SAME_FUNCTION = {  # of a refused kind: a plain network that computes the same logits
    "LoRA by hand": merged,
    "forward pre-hook with gains": with_gains,
    "forward hook on the attention's layer": lambda model: times("blocks.1.attn.qkv", 2),
    "forward hook on the model": lambda model: times("head", 2),
    "forward of the object": lambda model: times("blocks.1.attn.proj", 2),
}


@pytest.mark.parametrize("kind", SAME_FUNCTION)
def test_without_the_refusal_the_maps_would_be_wrong(kind):
    "The same logits, and other maps: the unchecked function reads the weights past the change."
    model, images = REFUSED[kind][0](small_vit()), pictures()
    plain = SAME_FUNCTION[kind](model)
    with torch.no_grad():
        assert torch.allclose(model(images), plain(images), rtol=1e-9)
    expected = last_block_maps(plain, images, PAIRS, seed="logit")
    with torch.no_grad():
        assert (last_block_maps(model, images, PAIRS, seed="logit") - expected).norm() > 0.01 * expected.norm()
    assert torch.equal(dtd_maps(plain, images, PAIRS, seed="logit").flatten(1), expected[:, 1:])


@pytest.mark.parametrize("door", DOORS)
def test_a_changed_class_is_refused(door, monkeypatch):
    own = Attention.forward
    monkeypatch.setattr(Attention, "forward", lambda self, x, **options: 2 * own(self, x, **options))
    with pytest.raises(InputError, match=r"Attention\.forward has been replaced by a function of .*test_models"):
        DOORS[door](small_vit(), pictures(), PAIRS)


@pytest.mark.parametrize("door", DOORS)
def test_a_hook_on_all_modules_is_refused(door):
    handle = nn.modules.module.register_module_forward_hook(twice)
    try:
        with pytest.raises(InputError, match="a hook on all modules, twice"):
            DOORS[door](small_vit(), pictures(), PAIRS)
    finally:
        handle.remove()
    DOORS[door](small_vit(), pictures(), PAIRS)


# ---- LoRA of the library


def with_lora(model, **options):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    targets = ["qkv", "proj", "fc1", "fc2"]
    options = dict(r=3, lora_alpha=5, target_modules=targets, modules_to_save=["head"], lora_dropout=0.1) | options
    lora = peft.get_peft_model(model, peft.LoraConfig(**options)).to(next(model.parameters()).dtype).eval()
    for name, weight in lora.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            nn.init.normal_(weight, std=0.2)
    return lora


LORA = {
    "plain": {},
    "rank-stabilised": dict(use_rslora=True),
    "with bias": dict(lora_bias=True),
    "DoRA": dict(use_dora=True),
}


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("kind", LORA)
def test_lora_is_merged(kind, dtype, tolerance):
    wrapped, images = with_lora(small_vit().to(dtype), **LORA[kind]), pictures(dtype)
    with torch.no_grad():
        logits = wrapped(images)
    twin = copy.deepcopy(wrapped).merge_and_unload()
    for door, maps in DOORS.items():
        expected = maps(twin, images, PAIRS)
        for model in (wrapped, nn.DataParallel(wrapped)):
            assert (maps(model, images, PAIRS) - expected).norm() <= tolerance * expected.norm(), door
    with torch.no_grad():
        assert torch.equal(wrapped(images), logits)  # nothing of it was changed
        assert (plain_model(wrapped)(images) - logits).norm() <= max(
            tolerance, 1e-5 * (dtype == torch.float32)
        ) * logits.norm()


def test_lora_that_is_switched_off_or_merged_already():
    wrapped, images = with_lora(small_vit()), pictures()
    expected = dtd_maps(wrapped, images, PAIRS)
    with wrapped.disable_adapter():
        without = dtd_maps(wrapped, images, PAIRS)
    assert (without - expected).norm() > 0.01 * expected.norm()
    assert (without - dtd_maps(small_vit(), images, PAIRS)).norm() <= 1e-12 * without.norm()
    wrapped.merge_adapter()
    assert (dtd_maps(wrapped, images, PAIRS) - expected).norm() <= 1e-12 * expected.norm()


@pytest.mark.parametrize("door", DOORS)
def test_lora_with_a_hook_or_in_training_is_refused(door):
    wrapped = with_lora(small_vit())
    with pytest.raises(InputError, match="training mode"):
        DOORS[door](wrapped.train(), pictures(), PAIRS)
    wrapped.eval().base_model.model.blocks[1].mlp.fc1.register_forward_hook(twice)
    with pytest.raises(InputError, match="hook"):
        DOORS[door](wrapped, pictures(), PAIRS)


# ---- convolutional networks


def filled(model, path, value):
    nn.init.constant_(model.get_submodule(path).weight, value)
    return model


CNN = {
    "forward hook on the model": (hooked("", "register_forward_hook", twice), "hook"),
    "forward hook on the head": (hooked("fc", "register_forward_hook", twice), "hook"),
    "LoRA by hand on the head": (replaced("fc", Lora), "Lora"),
    "weight norm of old on the head": (replaced("fc", nn.utils.weight_norm), "hook"),
    "activation before the head": (replaced("global_pool", lambda pool: nn.Sequential(pool, nn.Sigmoid())), "average"),
    "in training": (lambda model: model.train(), "training mode"),
    "NaN": (lambda model: filled(model, "bn1", torch.nan), "finite"),
    "no head": (lambda model: model.reset_classifier(0) or model, "head"),
}


def small_cnn():
    torch.manual_seed(0)
    return create_classifier("resnet_toy", 5, pretrained=False).double()


@pytest.mark.parametrize("kind", CNN)
def test_cam_of_a_changed_cnn_is_refused(kind):
    change, reason = CNN[kind]
    with pytest.raises(InputError, match=reason):
        cam_maps(change(small_cnn()), pictures(), PAIRS)


@pytest.mark.parametrize("kind", ["DataParallel", "torch.compile", "model.compile()", "averaged weights"])
def test_cam_of_a_wrapped_cnn(kind):
    model, images = small_cnn(), pictures()
    expected = cam_maps(model, images, PAIRS)
    assert torch.equal(cam_maps(TAKEN_OFF[kind](model), images, PAIRS), expected)


# ---- before training

SMALL = {  # a name for each kind that timm has: which methods explain it
    "vit_tiny_patch16_224": METHODS,
    "deit_tiny_distilled_patch16_224": METHODS,
    "vit_small_patch14_reg4_dinov2": METHODS,
    "deit3_small_patch16_224": METHODS,
    "vit_toy_patch8_96": METHODS,
    "resnet10t": ["cam", "grad_cam"],
    "resnet_toy": ["cam", "grad_cam"],
    "resnet38": ["cam", "grad_cam"],
    "efficientnet_lite0": ["cam", "grad_cam"],
    "vit_medium_patch16_gap_240": ["cam", "grad_cam", "dtd"],
    "vit_base_patch16_siglip_224": ["grad_cam", "dtd"],
    "eva02_tiny_patch14_224": ["cam", "grad_cam", "dtd"],
    "vit_small_plus_patch16_dinov3": ["cam", "grad_cam", "dtd"],
    "swin_tiny_patch4_window7_224": ["cam", "grad_cam"],
    "beit_base_patch16_224": [],
    "mobilenetv3_small_050": [],
    "convnext_atto": [],
    "vgg11": [],
}


@pytest.mark.parametrize("name", SMALL)
def test_what_can_be_explained_is_known_before_training(name):
    for method in METHODS:
        config = AttentionConfig(method=method)
        if method in SMALL[name]:
            check_explainable(name, config)
        else:
            with pytest.raises(InputError, match=name) as error:
                check_explainable(name, config)
            assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name",
    ["vit_toy_patch8_96", "resnet_toy", "vit_tiny_patch16_224", "efficientnet_lite0", "swin_tiny_patch4_window7_224"],
)
def test_the_answer_without_weights_is_that_with_weights(name):
    "Built with values and asked for maps, each method explains the network or refuses it as was foretold."
    model, explains = create_classifier(name, 4, pretrained=False), []
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for method in METHODS:
        try:
            METHODS[method].function(model, x, PAIRS[:1])
            explains.append(method)
        except InputError:
            pass
    assert explains == list(SMALL[name])


@pytest.mark.parametrize(
    "name, options, reason",
    [
        ("vit_toy_patch8_96", dict(start_block=12), "attention.start_block is 12; expected blocks from 0 to 11"),
        ("vit_toy_patch8_96", dict(start_block=-1), "attention.start_block is -1"),
        ("vit_toy_patch8_96", dict(blocks=(3, 12)), r"attention.blocks is \(3, 12\)"),
        ("vit_toy_patch8_96", dict(seed="one"), "attention.seed is 'one'"),
        ("resnet_toy", dict(), "attention.method is 'dtd', .* classifier.model 'resnet_toy'"),
        ("deit_bse", dict(), "Model 'deit_bse' is not known"),
    ],
)
def test_options_that_a_network_does_not_have(name, options, reason):
    with pytest.raises(InputError, match=reason):
        check_explainable(name, AttentionConfig(**options))


def test_output_strides_are_asked_before_training():
    check_explainable("resnet_toy", AttentionConfig(method="cam"), output_stride=8)
    for name, method in (("resnet_toy", "dtd"), ("vit_toy_patch8_96", "dtd"), ("efficientnet_lite0", "cam")):
        with pytest.raises(InputError):
            check_explainable(name, AttentionConfig(method=method), output_stride=12)


@pytest.mark.parametrize("source", ["wegformer", "masks"])
def test_the_chain_asks_when_it_is_configured(source, toy_root):
    "Only where labels are made of maps."
    change = {"classifier.model": "resnet_toy", "attention.method": "dtd", "labels.source": source}
    config = override(preset("smoke"), change | {"data.voc_root": str(toy_root)})
    if source == "wegformer":
        with pytest.raises(InputError, match="attention.method is 'dtd', which cannot explain .* 'resnet_toy'"):
            chain(config)
    else:
        chain(config)
