"Distillation: every relation of grids, the teacher untouched; the tool: whose photographs, the running mean, resume."

import dataclasses

import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import wegformer.extras.distillation as tool
from wegformer.classifier import ClassifierConfig, create_classifier, label_loss, mean_std, train_classifier
from wegformer.cli import main
from wegformer.data import InputError, VOCDataset
from wegformer.extras.distillation import (
    DistilConfig,
    Distillation,
    Lesson,
    Photographs,
    distil,
    distil_transform,
    find_photographs,
)
from wegformer.extras.initial_weights import taught
from wegformer.training import read_state


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
    "The last block's tokens are those of the classifier, an earlier block's the residual stream's, standardised."
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
    "Each patch's guess is the target of its own place: the loss vanishes, and returns when columns move."
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
            model, recipe, voc, out, seed=3, device="cpu", learner=Distillation(model, teacher), loss=taught(label_loss)
        )
        return model.state_dict(), history

    whole, history = train(tmp_path / "a")
    with killed_at(Distillation, "forward", 5):
        train(tmp_path / "b")
    again, history_again = train(tmp_path / "b")
    assert history_again == history and all(torch.equal(whole[k], again[k]) for k in whole)
    assert set(whole) == set(student(num_classes=voc.num_classes).state_dict())  # the student alone is kept


# ---- the tool

CONFIG = DistilConfig(
    student="vit_toy_patch8_96",
    teacher="resnet_toy",
    stages=(2, 3),
    crop_size=32,
    steps=5,
    batch_size=3,
    ema=0.9,
    holdout=2,
    evaluate_every=2,
    precision="no",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("photographs")
    generator = torch.Generator().manual_seed(0)
    for i in range(8):
        pixels = torch.randint(0, 256, (6, 8, 3), generator=generator, dtype=torch.uint8).numpy()
        path = root / ("deep/er" if i % 2 else "") / f"p{i}.{'png' if i < 4 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((80, 60)).save(path)
    (root / "notes.txt").write_text("not a picture")
    return root


def networks(classes=7):
    torch.manual_seed(0)
    student = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=24,
        depth=2,
        num_heads=2,
        num_classes=classes,
        dynamic_img_size=True,
    )
    return student, timm.create_model("resnet10t", num_classes=7).eval()


def test_decisions_are_the_divergence_from_the_teacher():
    student, teacher = networks()
    both, alone = (Distillation(student, teacher, decisions=d).eval() for d in (2.0, 0.0))
    alone.load_state_dict(both.state_dict())
    images, seen = torch.randn(3, 3, 32, 32), torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        q, p = teacher(seen).softmax(1), student(images).softmax(1)
        expected = alone(images, seen)[1] + 2 * (q * (q / p).log()).sum(1).mean()
    torch.testing.assert_close(both(images, seen)[1], expected)


def test_features_are_those_of_what_the_teacher_saw():
    student, teacher = networks()
    both = Distillation(student, teacher, (2,)).eval()
    images, seen = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32)
    assert both(images, seen)[1] != both(images)[1]
    assert torch.equal(both(images, images)[1], both(images)[1])
    teacher.forward_intermediates = lambda x, **_: [
        torch.full((2, both.predict[0].out_features, 4, 4), x.mean().item())
    ]
    for linear in both.predict:
        torch.nn.init.zeros_(linear.weight), torch.nn.init.zeros_(linear.bias)
    torch.testing.assert_close(both(images, seen)[1], seen.mean() ** 2 / (1 + 1e-5), rtol=1e-4, atol=1e-6)


def test_only_those_decide_alike_who_know_the_same_classes():
    student, teacher = networks(classes=5)
    with pytest.raises(InputError, match="student has 5 classes and teacher 7"):
        Distillation(student, teacher, decisions=1.0)
    with pytest.raises(InputError, match="student is a ResNet; expected a timm ViT"):
        Distillation(teacher, teacher)


@pytest.mark.parametrize("ema", [0.0, 0.3, 0.999])
def test_running_mean(ema):
    lesson = Lesson(Distillation(*networks()), ema=ema)
    weight, name = lesson.distillation.student.head.weight, "module.head.weight"
    expected = None
    for t in range(4):
        with torch.no_grad():
            weight.copy_(torch.randn_like(weight))
        lesson.keep()
        share = min(ema, (1 + t) / (10 + t))
        expected = weight.clone() if expected is None else share * expected + (1 - share) * weight
        torch.testing.assert_close(lesson.average.state_dict()[name], expected)


def pixels(x, model):
    "What was normalised for a model, as pixels again."
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in mean_std(model))
    return x * std + mean


def test_both_get_the_same_pixels_in_their_own_measure():
    student, teacher = networks()
    teacher.pretrained_cfg = {**teacher.pretrained_cfg, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    assert mean_std(student) != mean_std(teacher)
    lesson, got = Lesson(Distillation(student, teacher)), []
    lesson.distillation.forward = lambda *x: got.extend(x) or x
    images = torch.rand(2, 3, 32, 32)
    lesson.train()(images)
    for x, model in zip(got, (student, teacher)):
        torch.testing.assert_close(pixels(x, model), images)


def test_mixing_stays_between_the_pictures_and_keeps_their_sum():
    lesson, got = Lesson(Distillation(*networks()), mixup=1.0).train(), []
    lesson.distillation.forward = lambda own, theirs: got.append(own) or (None, None)
    images = torch.rand(6, 3, 32, 32)
    torch.manual_seed(3)
    lesson(images)
    mixed = pixels(got[0], lesson.distillation.student)
    assert not torch.allclose(mixed, images)
    torch.testing.assert_close(mixed.sum(0), images.sum(0))
    assert mixed.min() >= images.min() - 1e-6 and mixed.max() <= images.max() + 1e-6
    lesson.eval()(images)
    torch.testing.assert_close(pixels(got[1], lesson.distillation.student), images)


def test_photographs_of_a_folder_and_of_a_list(folder, tmp_path):
    assert [p.stem for p in find_photographs(folder)] == sorted(
        (f"p{i}" for i in range(8)), key=lambda n: str(next(folder.rglob(f"{n}.*")))
    )
    names = tmp_path / "train.txt"
    names.write_text("p1\n\np6.jpg 1\n")
    assert sorted(p.name for p in find_photographs(folder, names)) == ["p1.png", "p6.jpg"]
    names.write_text("p1\np99\n")
    with pytest.raises(InputError, match="train.txt names 'p99', which folder .* does not hold \\(1 of 2"):
        find_photographs(folder, names)
    with pytest.raises(InputError, match="List .*none.txt does not exist"):
        find_photographs(folder, tmp_path / "none.txt")
    with pytest.raises(InputError, match="holds no photographs"):
        find_photographs(tmp_path)
    with pytest.raises(InputError, match="Folder .*nowhere does not exist"):
        find_photographs(tmp_path / "nowhere")


def test_a_photograph_is_decoded_once_where_all_fit(folder, monkeypatch):
    reads = []
    original = tool.read_image
    monkeypatch.setattr(tool, "read_image", lambda path: reads.append(path) or original(path))
    paths = find_photographs(folder)
    small = Photographs(paths[:2], distil_transform(CONFIG), short_side=30, room=2 * 3 * 30 * 40)
    assert small.picture(0).shape == (3, 30, 40) and small[1][0].shape == (3, 32, 32)
    small[0], small[1]
    assert reads == paths[:2]
    reads.clear()
    tight = Photographs(paths[:2], distil_transform(CONFIG), short_side=30, room=2 * 3 * 30 * 40 - 1)
    tight[0], tight[0], tight[1]
    assert reads == [paths[0], paths[0], paths[1]]
    assert Photographs(paths, distil_transform(CONFIG), short_side=100).picture(0).shape == (3, 60, 80)


def test_a_run_resumes_to_the_last_bit_and_is_not_made_twice(folder, tmp_path, monkeypatch, killed_at):
    paths = find_photographs(folder)
    whole = distil(CONFIG, paths, tmp_path / "a", device="cpu")
    assert [row["step"] for row in whole if "agreement" in row] == [2, 4, 5]

    with killed_at(Lesson, "forward", 4):
        distil(CONFIG, paths, tmp_path / "b", device="cpu")
    assert not (tmp_path / "b" / "model.safetensors").exists()
    assert distil(CONFIG, paths, tmp_path / "b", device="cpu") == whole
    a, b = (read_state(tmp_path / run / "model.safetensors") for run in "ab")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert not (tmp_path / "b" / "checkpoint.pt").exists()
    monkeypatch.setattr(tool, "fit", None)
    assert distil(CONFIG, paths, tmp_path / "b", device="cpu") == whole
    with pytest.raises(InputError, match="model.safetensors is of another run: lr was 0.001, expected 0.5"):
        distil(dataclasses.replace(CONFIG, lr=0.5), paths, tmp_path / "b")


def test_held_out_photographs_are_never_learnt_from(folder, tmp_path, monkeypatch):
    learnt = []
    original = Photographs.__getitem__
    monkeypatch.setattr(
        Photographs, "__getitem__", lambda self, i: learnt.append((len(self), self.paths[i])) or original(self, i)
    )
    distil(dataclasses.replace(CONFIG, steps=8), find_photographs(folder), tmp_path, device="cpu")
    measured, trained = ({path for n, path in learnt if n == size} for size in (2, 6))
    assert len(measured) == 2 and len(trained) == 6 and not measured & trained


def test_the_students_mean_becomes_a_classifier(folder, tmp_path):
    distil(CONFIG, find_photographs(folder), tmp_path, device="cpu")
    model = create_classifier(
        "vit_toy_patch8_96", num_classes=20, pretrained=False, weights=tmp_path / "model.safetensors"
    )
    own = create_classifier(
        "vit_toy_patch8_96", None, False, tmp_path / "model.safetensors"
    )  # the teacher's classes, head and all
    assert model.head.out_features == 20 and own.head.out_features == 10
    assert torch.equal(model.blocks[3].attn.qkv.weight, own.blocks[3].attn.qkv.weight)
    assert not torch.equal(
        own.blocks[3].attn.qkv.weight, create_classifier("vit_toy_patch8_96").blocks[3].attn.qkv.weight
    )
    images = torch.rand(2, 3, 64, 48)
    assert F.cosine_similarity(own.eval()(images), own(images), dim=1).min() > 0.999


@pytest.mark.parametrize(
    "field, value, words",
    [
        ("schedule", "step", "schedule is 'step'; expected one of: constant"),
        ("steps", 0, "steps is 0; expected at least 1"),
        ("area", (0.5, 0.1), "area is .*; expected 0 < smallest"),
        ("mixup", 1.5, "mixup is 1.5; expected a probability"),
        ("ema", 1.0, r"ema is 1.0; expected a number in \[0, 1\)"),
        ("decisions", -1.0, "decisions is -1.0; expected 0 or more"),
        ("holdout", -1, "holdout is -1"),
    ],
)
def test_values_that_make_no_sense(field, value, words):
    with pytest.raises(InputError, match=f"DistilConfig.{words}"):
        dataclasses.replace(CONFIG, **{field: value})


def test_what_cannot_be_learnt_is_refused(folder, tmp_path):
    paths = find_photographs(folder)
    with pytest.raises(InputError, match="holdout is 8, and there are 8 photographs; expected fewer"):
        distil(dataclasses.replace(CONFIG, holdout=8), paths, tmp_path)
    with pytest.raises(InputError, match="stages is .* expected one or more of 0 to 4"):
        distil(dataclasses.replace(CONFIG, stages=(7,)), paths, tmp_path)
    with pytest.raises(InputError, match="student is a ResNet"):
        distil(dataclasses.replace(CONFIG, student="resnet_toy"), paths, tmp_path)
    with pytest.raises(InputError, match="Weights .*none.safetensors do not exist"):
        distil(dataclasses.replace(CONFIG, teacher_weights=str(tmp_path / "none.safetensors")), paths, tmp_path)
    assert not any(tmp_path.iterdir())


def test_command_line(folder, tmp_path, capsys):
    args = [
        "distil",
        str(folder),
        "--out",
        str(tmp_path / "o"),
        "--student",
        "vit_toy_patch8_96",
        "--teacher",
        "resnet_toy",
        "--stages",
        "2",
        "3",
        "--crop-size",
        "32",
        "--steps",
        "2",
        "--batch-size",
        "3",
        "--holdout",
        "2",
    ]
    assert main(args) == 0
    assert "of 2 held-out photographs" in capsys.readouterr().out and (tmp_path / "o" / "model.safetensors").is_file()
    assert main(["distil"]) == 2 and "No photographs were named" in capsys.readouterr().err
