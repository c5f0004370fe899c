"Several networks at once: the same as one after the other, whatever goes wrong with one of them."

import pytest
import torch

import wegformer.side_by_side as room
from wegformer.config import override, preset
from wegformer.pipeline import chain
from wegformer.stages import read_done, run
from wegformer.training import read_state

BASE = override(
    preset("smoke"), {"data.toy_train": 8, "data.toy_val": 4, "labels.source": "saliency", "segmenter.steps": 2}
)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def configs(*steps):
    return [override(BASE, {"segmenter.steps": n}) for n in steps]


def weights(config, cache):
    return read_state(chain(config).segmenter.folder(cache) / "model.safetensors")


def test_as_one_after_the_other(two_threads, tmp_path):
    pair, said = configs(1, 2), []
    room.side_by_side(pair, tmp_path / "a", log=said.append)
    assert sum(line.startswith("evaluation") for line in said) == 2
    torch.set_num_threads(1)
    for config in pair:
        folder = run(chain(config).evaluation, tmp_path / "b", lambda _: None)
        here = read_done(tmp_path / "a" / folder.name)
        assert here["metrics"] == read_done(folder)["metrics"] and here["device"].endswith(", 2 threads")
        one, other = weights(config, tmp_path / "a"), weights(config, tmp_path / "b")
        assert all(torch.equal(one[name], other[name]) for name in other)


def test_what_lacks_least_begins_first(two_threads, tmp_path, monkeypatch):
    first, last = configs(1, 2)
    with_maps = override(first, {"labels.source": "wegformer"})
    begun, original = [], room.run
    monkeypatch.setattr(room, "run", lambda stage, *rest: begun.append(stage.key) or original(stage, *rest))
    run(chain(last).labels, tmp_path, lambda _: None)
    room.side_by_side([with_maps, first, last], tmp_path, log=lambda _: None)
    labels = [chain(config).labels.key for config in (last, first, with_maps)]
    assert [key for key in begun if key in labels] == labels
    assert len(list(tmp_path.glob("evaluation-*/done.json"))) == 3


def test_a_wrong_one_leaves_the_others(two_threads, tmp_path):
    wrong = override(BASE, {"labels.saliency": "nobody's"})
    late = override(BASE, {"segmenter.weights": str(tmp_path / "weights.pt")})  # its labels can be made
    room.side_by_side([wrong, late, *configs(1, 2)], tmp_path, log=lambda _: None)
    assert len(list(tmp_path.glob("evaluation-*/done.json"))) == 2


@pytest.mark.parametrize("threads, count", [(1, 2), (2, 1)])
def test_nothing_to_share(threads, count, two_threads, tmp_path, monkeypatch):
    torch.set_num_threads(threads)
    monkeypatch.setattr(room, "fresh_pool", None)
    room.side_by_side(configs(*range(1, count + 1)), tmp_path)
    assert not list(tmp_path.glob("*-*"))


def test_what_is_there_is_not_made_again(two_threads, tmp_path, monkeypatch):
    pair = configs(1, 2)
    for config in pair:
        run(chain(config).evaluation, tmp_path, lambda _: None)
    monkeypatch.setattr(room, "fresh_pool", None)
    room.side_by_side([*pair, *pair], tmp_path)


def test_an_interrupt_ends_the_workers(two_threads, tmp_path, monkeypatch):
    pools, original = [], room.fresh_pool

    def interrupted(tasks):
        raise KeyboardInterrupt

    monkeypatch.setattr(room, "fresh_pool", lambda *args: pools.append(original(*args)) or pools[-1])
    monkeypatch.setattr(room, "as_completed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        room.side_by_side(configs(90_000, 90_001), tmp_path, log=lambda _: None)
    assert not list(tmp_path.glob("evaluation-*/done.json"))
