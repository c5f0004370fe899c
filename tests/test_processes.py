"""Two processes do what one does: the same labels byte for byte, the same training to rounding, the same errors."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from wegformer.errors import InputError
from wegformer.processes import mine, read_shard, share, sharded, whole
from wegformer.stages import Stage, Unfinished, read_done, run
from wegformer.training import fit, save_weights

HERE = Path(__file__).parent


def launch(*args, **environment):
    "Two processes on the CPU; their common output. A launch that hangs fails the test."
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *map(str, args)]
    ours = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"} | environment
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=ours)
    return done.returncode, done.stdout, done.stderr


class Noise(torch.utils.data.Dataset):
    "Pictures and masks of which half the pixels are ignored, in some more than in others."

    def __len__(self):
        return 20

    def __getitem__(self, i):
        g = torch.Generator().manual_seed(i)
        mask = torch.randint(0, 3, (6, 6), generator=g)
        return torch.randn(3, 6, 6, dtype=torch.float64), mask.masked_fill_(torch.rand(6, 6, generator=g) < i / 20, 255)


def terms(model, batch):
    from wegformer.segmentation import segmentation_terms

    images, masks = batch
    logits = model(images).double()
    total = nn.functional.cross_entropy(logits, masks, ignore_index=255, reduction="sum")
    return [(total, segmentation_terms(logits, masks)[1])]


def mean(model, batch):
    return model(batch[0]).square().mean((1, 2, 3)).mean()


def train(loss, out):
    "Batches of five, so that two processes have unequal shares; a batch norm, which must see all five."
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Conv2d(4, 3, 3, padding=2)).double()
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    history = fit(net, loss, sgd, Noise(), steps=7, batch_size=5, out=out, device="cpu", log_every=1)
    return net, history


def failing(place):
    def make(out, needs):
        if place in (None, share()[0]):
            raise InputError(f"Image {place}.jpg cannot be read.")

    return make


def write_mine(out, needs):
    for i in mine(7):
        (out / f"{i}.txt").write_text(str(i))


def count_all(out, needs):
    return dict(total=sum(int(text) for text in whole([int((out / f"{i}.txt").read_text()) for i in mine(7)])))


def in_two_processes(out):
    "What each of the two does; this file, launched."
    from wegformer.processes import is_main

    for loss in (terms, mean):
        net, history = train(loss, out / loss.__name__)
        if is_main():
            save_weights(net, out / f"{loss.__name__}.safetensors", losses=[row["loss"] for row in history])
    try:
        run(Stage("bad", {}, failing(1)), out / "cache", log=print)
    except (InputError, RuntimeError) as error:
        print(f"process {share()[0]}: {type(error).__name__}: {error}", flush=True)
    try:
        train(lambda model, batch: mean(model, batch) * float("nan"), out / "nan")
    except FloatingPointError as error:
        print(f"process {share()[0]}: {error}", flush=True)
    run(Stage("counted", {}, write_mine, finish=count_all), out / "cache", log=lambda line: print("made", flush=True))

    def alone(model, batch):
        if share()[0] == 1:
            raise OSError("the disk is gone")
        return mean(model, batch)

    train(alone, out / "alone")
    print("this is never reached")


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    out = tmp_path_factory.mktemp("two")
    return out, *launch(__file__, out)


@pytest.mark.parametrize("loss", [terms, mean])
def test_two_processes_train_as_one(launched, loss, tmp_path):
    net, history = train(loss, tmp_path)
    both = load_file(launched[0] / f"{loss.__name__}.safetensors")
    for name, tensor in net.state_dict().items():
        assert torch.allclose(both[name], tensor, rtol=1e-9, atol=1e-12), name


def test_an_error_of_one_is_an_error_of_all_and_the_run_goes_on(launched):
    out, _, stdout, _ = launched
    assert "process 1: InputError: Image 1.jpg cannot be read." in stdout
    assert "process 0: OtherFailed: Process 2 of 2 failed: Image 1.jpg cannot be read." in stdout
    assert all(f"process {place}: train: the loss is nan at step 1" in stdout for place in (0, 1))
    record = read_done(next((out / "cache").glob("counted-*")))
    assert record["metrics"] == {"total": 21} and record["processes"] == 2 and stdout.count("made") == 1


def test_a_process_that_fails_in_training_ends_the_others(launched):
    _, status, stdout, stderr = launched
    assert status != 0 and "never reached" not in stdout
    assert "wegformer: process 2 of 2 failed: the disk is gone" in stderr


def test_shards_join_into_the_same_stage(tmp_path):
    stage = Stage("counted", {}, write_mine, finish=count_all)
    for place in (2, 0):
        with sharded((place, 3)), pytest.raises(Unfinished, match="still to come: "):
            run(stage, tmp_path, log=print)
        assert not (stage.folder(tmp_path) / "done.json").exists()
    with sharded((1, 3)):
        folder = run(stage, tmp_path, log=print)
    assert read_done(folder)["metrics"] == {"total": 21} and read_done(folder)["processes"] == 3


def test_a_shard_does_what_cannot_be_shared_once(tmp_path):
    made = []

    def make(out, needs):
        made.append((out.name, list(mine(2))))

    stage = Stage("counted", {}, write_mine, {"whole": Stage("whole", {}, make)}, finish=count_all)
    for place in (0, 1):
        with sharded((place, 2)):
            try:
                run(stage, tmp_path, log=print)
            except Unfinished:
                assert place == 0
    assert [pieces for _, pieces in made] == [[0, 1]]


@pytest.mark.parametrize("text", ["", "3", "0/2", "3/2", "1/0", "-1/2", "1/2/3", "a/b", "1.5/2"])
def test_a_shard_that_is_none_is_refused(text):
    with pytest.raises(InputError, match="expected I/N"):
        read_shard(text)


def wegformer(*args):
    return launch(Path(sys.executable).with_name("wegformer"), *args)


def contents(cache, kind):
    "Every file of the stages of a kind by its name, records apart: they tell how long it took."
    return {
        f"{path.parent.name}/{path.name}": path.read_bytes()
        for path in sorted(cache.glob(f"{kind}-*/**/*"))
        if path.is_file() and path.name != "done.json"
    }


def test_a_table_by_two_processes_is_that_of_one(tmp_path, without_kernel, capsys):
    "The whole of Table 2; the classifier is copied, so that maps and labels have to be equal byte for byte."
    from wegformer.cli import main

    one, two = tmp_path / "one", tmp_path / "two"
    options = ["reproduce", "table2", "--preset", "smoke", "--parameters", "extras=True"]
    assert main([*options, "--cache", str(one), "--out", str(tmp_path / "a")]) == 0
    for folder in one.glob("classifier-*"):
        shutil.copytree(folder, two / folder.name)
    status, stdout, stderr = wegformer(*options, "--cache", two, "--out", tmp_path / "b")
    assert status == 0 and stdout.count("written:") == 1, stderr
    assert contents(one, "attention") and contents(one, "attention") == contents(two, "attention")
    assert contents(one, "labels") and contents(one, "labels") == contents(two, "labels")
    rows = [json.loads((tmp_path / name / "table2.json").read_text())["rows"] for name in "ab"]
    for ours, theirs in zip(*rows):
        assert ours["status"] == theirs["status"] == "ok"
        if all(stage["stage"] != "relabel" for stage in theirs["stages"][0]):  # these labels are a trained network's
            assert ours["pseudo_label_miou"] == theirs["pseudo_label_miou"]
    assert {read_done(p)["processes"] for p in two.glob("*-*") if p.name.startswith(("attention", "segm"))} == {2}


def test_a_classifier_by_two_processes_is_that_of_one(tmp_path, capsys):
    from wegformer.cli import main

    options = ["train-classifier", "--preset", "smoke", "--classifier.precision", "no", "--cache"]
    assert main([*options, str(tmp_path / "one")]) == 0
    assert wegformer(*options, tmp_path / "two")[0] == 0
    one, two = (load_file(next((tmp_path / n).glob("classifier-*/model.safetensors"))) for n in ("one", "two"))
    assert all(torch.allclose(two[name], one[name], atol=1e-4) for name in one)


def test_initial_weights_by_two_processes(tmp_path):
    small = ["--formulas", 30, "--images", 30, "--val", 6, "--resnet.steps", 0, 2, 2, "--vit.steps", 2, 2, 2]
    status, _, stderr = wegformer("initial-weights", *small, "--out", tmp_path / "out", "--work", tmp_path / "work")
    assert status == 0 and len(list((tmp_path / "out").glob("*.safetensors"))) == 2, stderr


def test_distillation_by_two_processes(tmp_path, toy_root):
    small = ["--teacher", "resnet_toy", "--student", "vit_toy_patch8_96", "--crop-size", 64, "--batch-size", 5]
    small += ["--steps", 2, "--holdout", 4, "--stages", 2, "--decisions", 1.0]
    status, _, stderr = wegformer("distil", toy_root / "JPEGImages", *small, "--out", tmp_path / "out")
    assert status == 0 and (tmp_path / "out/model.safetensors").is_file(), stderr


def test_shards_of_a_job_array_give_the_labels_of_one_process(tmp_path, capsys):
    from wegformer.cli import main

    one, parts = tmp_path / "one", tmp_path / "parts"
    options = ["pseudo-labels", "--preset", "smoke", "--cache"]
    assert main([*options, str(one)]) == 0
    shutil.copytree(next(one.glob("classifier-*")), parts / next(one.glob("classifier-*")).name)
    for command, shard in (("attention", "2/2"), ("pseudo-labels", "1/2"), ("pseudo-labels", "2/2")):
        try:
            status = main([command, *options[1:], str(parts), "--shard", shard])
        except SystemExit as stop:
            status = stop.code
        assert status == 0
    for kind in ("attention", "labels"):
        assert contents(one, kind) == contents(parts, kind)


def test_a_batch_smaller_than_the_processes_is_refused(tmp_path):
    status, _, stderr = wegformer(
        "train-classifier", "--preset", "smoke", "--classifier.batch-size", 1, "--cache", tmp_path
    )
    assert status != 0 and "batch_size is 1, for all processes together; expected at least 2" in stderr


if __name__ == "__main__":
    in_two_processes(Path(sys.argv[1]))
