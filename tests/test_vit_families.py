"Other ViTs of timm: plain and fast agree, relevance is conserved, and the table of families tells the truth."

import copy
from dataclasses import replace
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import wegformer.attention_rule as attention_rule
import wegformer.step_walk as step_walk
from wegformer.attention_rule import Switches
from wegformer.data import InputError
from wegformer.heatmaps import METHODS
from wegformer.relevance import dtd_maps
from wegformer.rules import dtd_maps_plain
from wegformer.step_rules import record_model, record_step, step_maps_plain, step_rule, walk_down
from wegformer.vit import random_vit
from wegformer.vit_families import FAMILIES, SIZE, family_model, family_rows
from wegformer.vit_steps import Affine, attentions, check_steps, read_steps, run_tokens, steps_fault

KNOWN = [family for family in FAMILIES if family.rule and steps_fault(family_model(family)) is None]
PAIRS = torch.tensor([[0, 1], [0, 3], [1, 1]])


def pictures(dtype=torch.float64):
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def randomised(family):
    "Weights far from the timid default, also in biases, norms and latents."
    torch.manual_seed(0)
    model = family_model(family)
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    return model.double().eval()


def recorded(steps, x, rotary):
    "All steps and the head from the tokens before the first block."
    records = []
    for b, block in enumerate(steps.blocks):
        for step in block:
            last = b == len(steps.blocks) - 1 and not steps.reader.all
            records.append(step_walk._record_step(step, x, rotary[b], 1 if last else x.shape[1]))
            x = records[-1].y
    return records, step_walk._record_head(steps.reader, x)


def distance(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("family", KNOWN, ids=lambda f: f.name)
def test_steps_compute_what_timm_computes(family):
    model = randomised(family)
    with torch.no_grad():
        steps = read_steps(model)
        for image, logits in zip(pictures(), model(pictures())):
            assert distance(record_model(model, steps, image)[1].logits, logits) < 1e-10


@pytest.mark.parametrize("family", KNOWN, ids=lambda f: f.name)
@pytest.mark.parametrize("options", [{}, dict(clamp=False), dict(gradient=False), dict(seed="logit")], ids=str)
def test_fast_is_plain(family, options):
    model = randomised(family)
    for start in (None, 0):
        plain = step_maps_plain(model, pictures(), PAIRS, start, **options)
        assert plain.isfinite().all() and plain.abs().max() > 0
        assert distance(dtd_maps(model, pictures(), PAIRS, start, **options), plain) < 1e-5


@pytest.mark.parametrize("family", KNOWN, ids=lambda f: f.name)
def test_the_gradient_is_autograds(family):
    "At the input of the first block, in float64, every class of both pictures."
    model = randomised(family)
    with torch.no_grad():
        steps = read_steps(model)
        x, rotary = run_tokens(model, pictures(), 0)
        records, head = recorded(steps, x, rotary)
        classes = torch.arange(4).expand(2, -1)
        walk = step_walk._walk_head(steps.reader, head, classes, True, "one_hot", Switches())
        for step, t in zip(reversed([step for block in steps.blocks for step in block]), reversed(records)):
            walk = step_walk._walk_step(step, step_walk._shared_layers(step), t, walk, Switches())
    x = x.clone().requires_grad_()
    logits = steps.reader.head(recorded(steps, x, rotary)[1].z)
    assert distance(logits.detach(), model(pictures()).detach()) < 1e-10
    for c in range(4):
        (G,) = torch.autograd.grad(logits[:, c].sum(), x, retain_graph=True)
        assert distance(walk.G[:, c], G) < 1e-9


@pytest.mark.parametrize("family", KNOWN, ids=lambda f: f.name)
def test_relevance_is_conserved(family):
    model = randomised(family)
    with torch.no_grad():
        steps = read_steps(model)
        records, head = record_model(model, steps, pictures()[0])
        for c in range(4):
            _, R, latent = walk_down(steps, records, head, F.one_hot(torch.tensor(c), 4).double())
            assert abs(float(R.sum() + latent) - 1) < 1e-3
            assert (latent == 0) == (steps.reader.pool is None)


@pytest.mark.parametrize("options", [{}, dict(reg_tokens=2), dict(qk_norm=True), dict(init_values=0.3)], ids=str)
def test_a_standard_vit_is_steps_like_any_other(options):
    model = random_vit(depth=2, img_size=SIZE, **options)
    for start in (None, 0):
        published = dtd_maps_plain(model, pictures(), PAIRS, start)
        assert distance(step_maps_plain(model, pictures(), PAIRS, start), published) < 1e-9
        first = attentions(model) - 1 if start is None else start
        fast = step_walk.step_maps(model, pictures(), PAIRS, [first])[0, :, model.num_prefix_tokens :]
        assert distance(fast.view_as(published).detach(), published) < 1e-7


def test_two_attentions_side_by_side_are_one_of_twice_as_many_heads():
    "The same function, written in two ways, has the same relevance."
    family = next(f for f in FAMILIES if f.example == "vit_small_patch16_18x2_224")
    two = randomised(family)
    for block in two.blocks:
        for branch in (*block.attns, *block.ffns):
            branch.norm.load_state_dict(block.attns[0].norm.state_dict())
    g = torch.Generator().manual_seed(3)
    for step in (step for block in read_steps(two).blocks for step in block):
        W, D = step.into.weight, step.out.weight.shape[0]
        one = replace(step, norms=step.norms[:1], into=Affine(W[:, :D] + W[:, D:], step.into.bias))
        assert len(step.norms) == 2 and (step.attend is None or step.attend.heads == 4)
        x, R = torch.randn(2, 9, D, generator=g, dtype=torch.float64)
        pairs = zip(*(step_rule(s, record_step(s, x, None), R) for s in (step, one)))
        for a, b in pairs:
            assert a is b or distance(a, b) < 1e-9


@pytest.mark.parametrize("family", [f for f in KNOWN if "average" in f.rule or "pool" in f.rule], ids=lambda f: f.name)
def test_single_precision_keeps_a_pooled_map(family):
    "What the row gains is far smaller than what an average starts with."
    model = family_model(family)
    exact = dtd_maps(model.double(), pictures(), PAIRS)
    assert distance(dtd_maps(model.float(), pictures(torch.float32), PAIRS).double(), exact) < 1e-2


@pytest.mark.parametrize("family", KNOWN, ids=lambda f: f.name)
def test_what_the_kernel_cannot_take_is_computed_without_it(family, monkeypatch):
    "With kernels on, maps are those without; rotary positions and averaged heads do not reach the kernel."
    model, called = randomised(family), []
    monkeypatch.setenv("WEGFORMER_KERNELS", "0")
    expected = [dtd_maps(model, pictures(), PAIRS, start) for start in (None, 0)]
    monkeypatch.setenv("WEGFORMER_KERNELS", "1")
    kernel = attention_rule._kernel_attention_rule

    def listen(heads, S, G, row, switches):
        called.append((heads.rotary is not None, switches.below))
        return kernel(heads, S, G, row, switches)

    monkeypatch.setattr(attention_rule, "_kernel_attention_rule", listen)
    for start, maps in zip((None, 0), expected):
        assert distance(dtd_maps(model, pictures(), PAIRS, start), maps) < 1e-5
    assert (True, True) not in called
    if read_steps(model).reader.average:
        assert not called
    elif step_walk.read_steps(model).reader.pool is None:
        assert called  # the others do go through it


def test_the_table_tells_the_truth():
    "Each family is built tiny and tried; what is said to work does, what is said to be refused is, in one sentence."
    rows = family_rows()
    assert [row["family"] for row in rows] == [family.name for family in FAMILIES]
    for family, row in zip(FAMILIES, rows):
        model, x = family_model(family), pictures(torch.float32)
        for method in ("dtd", "cam", "grad_cam"):
            try:
                works = bool(METHODS[method].function(model, x, PAIRS).isfinite().all())
            except InputError as error:
                assert "\n" not in str(error) and "expected" in str(error)
                works = False
            assert works == row[method], (family.name, method)
        assert row["dtd"] == bool(family.rule)


CHANGED = {
    "max pooling": (dict(global_pool="max", fc_norm=False), "global_pool='max'"),
    "locality attending": (dict(global_pool="prr"), "global_pool='prr'"),
    "differential attention": (dict(attn_layer="diff"), r"blocks\.0\.attn is of type DiffAttention, not Attention"),
}


@pytest.mark.parametrize("kind", CHANGED)
def test_what_has_no_rule_is_refused_by_name(kind):
    options, reason = CHANGED[kind]
    model = timm.create_model("vit_tiny_patch16_224", depth=2, embed_dim=24, num_heads=2, **options).eval()
    with pytest.raises(InputError, match=reason):
        check_steps(model)


def test_a_hook_a_gate_and_a_foreign_layer_in_eva_are_refused():
    family = next(f for f in FAMILIES if f.example == "eva02_tiny_patch14_224")
    model = family_model(family)
    model.blocks[1].attn.gate = nn.Linear(24, 24)
    with pytest.raises(InputError, match=r"blocks\.1\.attn\.gate is of type Linear"):
        dtd_maps(model, pictures(torch.float32), PAIRS)
    model = family_model(family)
    model.blocks[0].mlp.fc1.register_forward_hook(lambda *args: None)
    with pytest.raises(InputError, match=r"blocks\.0\.mlp\.fc1 has a hook"):
        dtd_maps(model, pictures(torch.float32), PAIRS)
    model = family_model(family)
    model.blocks[0].adapter = nn.Linear(24, 24)
    assert "blocks.0.adapter is of type Linear" in steps_fault(model)


def test_branches_that_differ_are_refused():
    family = next(f for f in FAMILIES if f.example == "vit_small_patch16_18x2_224")
    model = family_model(family)
    model.blocks[0].ffns[1].mlp.act = nn.ReLU()
    with pytest.raises(InputError, match="branches that differ"):
        dtd_maps(model, pictures(torch.float32), PAIRS)
    model = family_model(family)
    model.blocks[0].attns[0].attn.k_norm = nn.LayerNorm(model.blocks[0].attns[0].attn.head_dim)
    with pytest.raises(InputError, match="norms inside its branches"):
        dtd_maps(model, pictures(torch.float32), PAIRS)


@pytest.mark.parametrize("family", KNOWN, ids=lambda f: f.name)
def test_autocast_around_it(family):
    "Half precision below the maps, single precision in them."
    model = family_model(family)
    for method in (METHODS["dtd"].function, METHODS["grad_cam"].function, partial(dtd_maps, start_block=0)):
        with torch.autocast("cpu", torch.bfloat16):
            maps = method(model, pictures(torch.float32), PAIRS)
        assert maps.dtype == torch.float32 and maps.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", KNOWN, ids=lambda f: f.name)
def test_half_models(family, dtype):
    "A model whose weights are half precision is explained in single precision, close to what its weights say exactly."
    model = family_model(family).to(dtype)
    for start in (None, 0):
        maps = dtd_maps(model, pictures(dtype), PAIRS, start)
        full = dtd_maps(copy.deepcopy(model).float(), pictures(dtype).float(), PAIRS, start)
        assert maps.dtype == torch.float32 and maps.isfinite().all() and maps.abs().max() > 0
        ours, theirs = (F.normalize(m.flatten(1).double(), eps=1e-99) for m in (maps, full))  # untrained: tiny values
        assert (ours * theirs).sum(1).median() > 0.95
    assert all(p.dtype == dtype for p in model.parameters())  # the caller's model is left alone


@pytest.mark.parametrize("family", KNOWN, ids=lambda f: f.name)
def test_a_thousand_classes(family):
    "Each map is what it is when its class is asked for alone."
    torch.manual_seed(0)
    model = family_model(family, num_classes=1000).double()
    pairs = torch.stack([torch.zeros(1000, dtype=torch.long), torch.arange(1000)], 1)
    some = torch.tensor([0, 499, 999])
    for start in (None, 0):
        maps = dtd_maps(model, pictures()[:1], pairs, start)
        assert maps.shape[0] == 1000 and maps.isfinite().all()
        for k in some.tolist():
            assert distance(maps[k], dtd_maps(model, pictures()[:1], pairs[k : k + 1], start)[0]) < 1e-9


def test_training_with_dropout_is_refused():
    family = next(f for f in FAMILIES if f.example == "eva02_tiny_patch14_224")
    model = family_model(family, attn_drop_rate=0.1).train()
    with pytest.raises(InputError, match="training mode"):
        dtd_maps(model, pictures(torch.float32), PAIRS)
