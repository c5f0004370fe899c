import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from wegformer.data import InputError
from wegformer.training import StepBatches, cosine, fit, load_weights, poly, read_state, resolve_precision, save_weights


class Points(torch.utils.data.Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, i):
        return torch.randn(3), torch.tensor([float(i % 2)])


def loss_fn(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def train(out, steps=12, seed=0, **kwargs):
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, fit(
        model, loss_fn, optimizer, Points(), steps=steps, batch_size=4, out=out, seed=seed, device="cpu", **kwargs
    )


@pytest.mark.parametrize("n, batch", [(1, 1), (1, 3), (7, 4), (8, 4), (3, 10)])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_batches_cover_every_epoch_evenly(n, batch, world):
    parts = [list(StepBatches(n, batch, 6, 0, rank=r, world=world)) for r in range(world)]
    stream = [place for step in range(6) for place in sorted(sum((p[step] for p in parts), []))]
    whole = list(StepBatches(n, batch, 6, 0))
    assert stream == [place for b in whole for place in sorted(b)]
    flat = [i for b in whole for i, _ in b]
    for epoch in range(len(flat) // n):
        assert sorted(flat[epoch * n : (epoch + 1) * n]) == list(range(n))
    assert len({seed for b in whole for _, seed in b}) == len(flat)


@pytest.mark.parametrize("die_at", [1, 5, 11])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_resume_is_exact(tmp_path, die_at, precision, killed_at):
    whole, history = train(tmp_path / "a", precision=precision, log_every=5)
    with killed_at(sys.modules[__name__], "loss_fn", die_at + 1):
        train(tmp_path / "b", precision=precision, log_every=5)
    resumed, history_b = train(tmp_path / "b", precision=precision, log_every=5)
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters()))
    assert history_b == history


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    train(tmp_path, checkpoint_every=4)
    with pytest.raises(InputError, match="checkpoint.pt belongs to another run"):
        train(tmp_path, seed=1)


@pytest.mark.parametrize("content", [b"no checkpoint", b""])
def test_a_damaged_checkpoint_counts_as_none(content, tmp_path, capsys):
    model, history = train(tmp_path / "a")
    train(tmp_path / "b", checkpoint_every=4)
    (tmp_path / "b/checkpoint.pt").write_bytes(content)
    again, again_history = train(tmp_path / "b")
    assert "checkpoint.pt cannot be read" in capsys.readouterr().out
    assert again_history == history and all(map(torch.equal, model.parameters(), again.parameters()))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    model = nn.Linear(3, 1)
    with pytest.raises(FloatingPointError, match="the loss is nan at step 1"):
        fit(
            model,
            lambda m, b: m(b[0]).mean() * float("nan"),
            torch.optim.SGD(model.parameters(), lr=1.0),
            Points(),
            steps=3,
            batch_size=2,
            out=tmp_path,
            device="cpu",
        )


def test_evaluation_rows_and_schedule(tmp_path):
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    seen = []
    history = fit(
        model,
        loss_fn,
        optimizer,
        Points(),
        steps=7,
        batch_size=2,
        out=tmp_path,
        device="cpu",
        schedule=poly(7, 1.0),
        evaluate=lambda m: seen.append(m.training) or dict(score=1.0),
        evaluate_every=3,
    )
    assert [row["step"] for row in history if "score" in row] == [3, 6, 7] and seen == [False] * 3
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 / 7) and not model.training
    assert cosine(10)(0) == 1.0 and cosine(40)(0) == 1 / 3


def test_two_processes_train_as_one(tmp_path):
    "Data parallel over two processes (gloo) ends with the weights of one process, up to rounding."
    script = tmp_path / "two.py"
    script.write_text(
        "import sys, torch\nfrom torch import nn\nfrom wegformer.training import fit\n"
        "class Points(torch.utils.data.Dataset):\n"
        "    def __len__(self): return 10\n"
        "    def __getitem__(self, i): return torch.randn(3), torch.tensor([float(i % 2)])\n"
        "torch.manual_seed(5); model = nn.Linear(3, 1)\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "fit(model, lambda m, b: (m(b[0]) - b[1]).square().mean(), optimizer, Points(), steps=6, batch_size=4,\n"
        "    out=sys.argv[1], device='cpu')\n"
        "rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 9\n"
        "torch.save(model.state_dict(), sys.argv[1] + f'/w{rank}.pt')\n"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    (tmp_path / "one").mkdir(), (tmp_path / "two").mkdir()
    subprocess.run([sys.executable, script, tmp_path / "one"], check=True, env=env)
    two = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29511", script, tmp_path / "two"]
    subprocess.run([sys.executable, *two], check=True, env=env, capture_output=True)
    one = torch.load(tmp_path / "one" / "w9.pt", weights_only=True)
    for rank in (0, 1):
        two = torch.load(tmp_path / "two" / f"w{rank}.pt", weights_only=True)
        assert all(torch.allclose(one[k], two[k], atol=1e-6) for k in one)


def test_weights_name_the_first_difference(tmp_path):
    save_weights(nn.Linear(3, 4), tmp_path / "w.safetensors")
    for model, words in [
        (nn.Linear(3, 5), r"'weight' is \(4, 3\), expected \(5, 3\)|'bias' is \(4,\), expected \(5,\)"),
        (nn.Linear(3, 4, bias=False), "it holds 'bias'"),
        (nn.Sequential(nn.Linear(3, 4)), "it has no '0.weight'"),
    ]:
        with pytest.raises(InputError, match=words):
            load_weights(model, tmp_path / "w.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-5])
    with pytest.raises(InputError, match="cut.safetensors cannot be read"):
        read_state(tmp_path / "cut.safetensors")
    with pytest.raises(InputError, match="gone.pt do not exist"):
        read_state(tmp_path / "gone.pt")


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    torch.save({"model": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(InputError, match="bomb.pth cannot be read"):
        read_state(tmp_path / "bomb.pth")
    assert not (tmp_path / "exploded").exists()


def test_wrapped_checkpoints_are_opened(tmp_path):
    net = nn.Linear(2, 2)
    torch.save({"model": {f"module.{k}": v for k, v in net.state_dict().items()}, "epoch": 3}, tmp_path / "c.pth")
    assert torch.equal(load_weights(nn.Linear(2, 2), tmp_path / "c.pth").weight, net.weight)


def test_precision():
    assert resolve_precision("auto") in ("bf16", "no") and resolve_precision("no") == "no"
    with pytest.raises(InputError, match="precision is 'fp8'"):
        resolve_precision("fp8")
