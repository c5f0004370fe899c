"Distillation: grids of every relation, the teacher untouched, resume, bad stages."

import pytest
import timm
import torch
from torch import nn

from wegformer.classifier import ClassifierConfig, train_classifier
from wegformer.data import InputError, VOCDataset
from wegformer.extras.distillation import Distillation
from wegformer.extras.initial_weights import features_loss


def student(patch=8, **kwargs):
    args = dict(img_size=32, patch_size=patch, embed_dim=24, depth=2, num_heads=2, num_classes=5, dynamic_img_size=True)
    return timm.create_model("vit_tiny_patch16_224", **args | kwargs)


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return timm.create_model("resnet10t", num_classes=3)


@pytest.mark.parametrize("patch", [4, 8, 16])
@pytest.mark.parametrize("stages", [(1,), (2, 3), (2, 4)])
@pytest.mark.parametrize("size", [(32, 32), (64, 32), (32, 96)])
def test_every_pair_of_grids_meets(teacher, patch, stages, size):
    both = Distillation(student(patch), teacher, stages).train()
    logits, loss = both(torch.randn(3, 3, *size))
    assert logits.shape == (3, 5) and loss.ndim == 0 and loss > 0.2
    loss.backward()
    assert both.student.patch_embed.proj.weight.grad.abs().max() > 0
    assert all(p.grad is None for p in teacher.parameters())


def test_logits_are_the_students_own(teacher):
    model, images = student().eval(), torch.randn(2, 3, 32, 32)
    both = Distillation(model, teacher).eval()
    assert torch.equal(both(images)[0], model(images))


def test_each_stage_is_learnt_at_its_own_depth(teacher):
    "The last block's tokens are those of the classifier, an earlier block's the standardised residual stream, taken by a hook of our own."
    model, images, residual = student(depth=3).eval(), torch.randn(2, 3, 32, 64), {}
    model.blocks[0].register_forward_hook(lambda module, _, out: residual.update(first=out))
    both, read = Distillation(model, teacher, stages=(2, 3), depths=(1, 3)).eval(), []
    for linear in both.predict:
        linear.register_forward_hook(lambda module, args, _: read.append(args[0]))
    with torch.no_grad():
        both(images)
        early, late = read
        first = residual["first"][:, 1:]
        torch.testing.assert_close(
            early, (first - first.mean(-1, keepdim=True)) / (first.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        )
        assert torch.equal(late, model.forward_features(images)[:, 1:])


def test_depths_decide_which_blocks_learn(teacher):
    both = Distillation(student(depth=4), teacher, stages=(1, 2), depths=(2, 3)).train()
    both(torch.randn(2, 3, 32, 32))[1].backward()
    grads = [block.attn.proj.weight.grad for block in both.student.blocks]
    assert all(g.abs().max() > 0 for g in grads[:3]) and grads[3] is None


@pytest.mark.parametrize("weight", [0.0, 0.5, 3.0])
def test_features_are_weighted(teacher, weight):
    torch.manual_seed(0)
    model, images = student(), torch.randn(2, 3, 32, 32)
    one, weighted = (Distillation(model, teacher, features=w).eval() for w in (1.0, weight))
    weighted.load_state_dict(one.state_dict())
    torch.testing.assert_close(weighted(images)[1], weight * one(images)[1])


@pytest.mark.parametrize("depths", [(1,), (0, 2), (1, 3), ()])
def test_depths_that_the_student_has_not(teacher, depths):
    with pytest.raises(
        InputError, match=r"depths is .* expected a block of the student, 1 to 2, for each of the stages \(2, 3\)"
    ):
        Distillation(student(), teacher, (2, 3), depths=depths)


def test_the_loss_compares_place_by_place(teacher):
    "Each patch's guess is set to the standardised target of its own place: the loss vanishes, and returns when two columns are swapped."
    both = Distillation(student(patch=8), teacher, stages=(2,)).train()
    images = torch.randn(4, 3, 32, 64)  # (4, 8) patches; ResNet stage 2 has stride 8: (4, 8) places
    with torch.no_grad():
        target = nn.BatchNorm2d(both.predict[0].out_features, affine=False)(
            teacher.eval().forward_intermediates(images, indices=[2], intermediates_only=True)[0]
        )
    target = target.flatten(2).transpose(1, 2)

    class Fixed(nn.Module):
        def forward(self, patches):
            return target

    both.predict[0] = Fixed()
    assert both(images)[1] < 1e-10
    target = target[:, torch.arange(32).roll(1)]
    assert both(images)[1] > 0.1


def test_the_teacher_is_left_as_it_is(teacher):
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    both = Distillation(student(), teacher)
    optimizer = torch.optim.SGD([p for p in both.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        both.train()
        both(torch.randn(4, 3, 32, 32))[1].backward()
        optimizer.step()
    assert not teacher.training and all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())


@pytest.mark.parametrize("stages", [(), (7,), (-1,)])
def test_stages_that_the_teacher_has_not(teacher, stages):
    with pytest.raises(InputError, match="stages is .* expected one or more of 0 to 4"):
        Distillation(student(), teacher, stages)


def test_training_with_a_teacher_resumes_bit_for_bit(teacher, toy_root, tmp_path, killed_at):
    voc = VOCDataset(toy_root, "train")
    recipe = ClassifierConfig(
        steps=6, batch_size=4, crop_size=32, resize=(32, 48), eval_long_side=48, precision="no", lr=1e-3
    )

    def train(out):
        torch.manual_seed(1)
        model = student(num_classes=voc.num_classes)
        history = train_classifier(
            model, recipe, voc, out, seed=3, device="cpu", learner=Distillation(model, teacher), loss=features_loss
        )
        return model.state_dict(), history

    whole, history = train(tmp_path / "a")
    with killed_at(Distillation, "forward", 5):
        train(tmp_path / "b")
    again, history_again = train(tmp_path / "b")
    assert history_again == history and all(torch.equal(whole[k], again[k]) for k in whole)
    assert set(whole) == set(student(num_classes=voc.num_classes).state_dict())  # the student alone is kept
