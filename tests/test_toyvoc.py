"The drawn data set: same bytes from the same arguments, VOC's layout and values, and no half-written folder."

import dataclasses, hashlib, multiprocessing, os, subprocess, sys
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from wegformer import toyvoc
from wegformer.data import IGNORE, PALETTE, InputError, VOCDataset, cache_dir
from wegformer.formulas import FAMILIES, MEMBERS, formula, formula_kinds
from wegformer.toydrawings import SETS, Pen
from wegformer.toyvoc import Detector, ToyConfig, draw_saliency, draw_scene, make_toy_voc, noise


@pytest.fixture(scope="module", params=sorted(SETS))
def small(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy") / request.param
    return request.param, make_toy_voc(folder, which=request.param, train=30, val=10)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WEGFORMER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def digests(root):
    files = [p for p in sorted(root.rglob("*")) if p.is_file()]
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def left_over(folder):
    "Everything in a folder but lock files."
    return [p.name for p in folder.iterdir() if p.suffix != ".lock"]


# bytes


def test_same_arguments_same_bytes(tmp_path):
    a, b = (make_toy_voc(tmp_path / n, train=4, val=2, seed=3) for n in "ab")
    assert digests(a) == digests(b)


def test_same_bytes_in_another_process(tmp_path):
    a = make_toy_voc(tmp_path / "a", train=3, val=1)
    code = f"from wegformer.toyvoc import make_toy_voc; make_toy_voc({str(tmp_path / 'b')!r}, train=3, val=1)"
    env = {**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)
    assert digests(a) == digests(tmp_path / "b")


def test_a_picture_does_not_depend_on_how_many_there_are(tmp_path):
    few, many = make_toy_voc(tmp_path / "few", train=2, val=1), make_toy_voc(tmp_path / "many", train=5, val=3)
    few, many = digests(few), digests(many)
    same = [k for k in few if k.endswith((".jpg", ".png", ".xml"))]
    assert len(same) == 15 and all(few[k] == many[k] for k in same)


def test_seed_split_and_set_change_the_pictures(tmp_path):
    a, b = make_toy_voc(tmp_path / "a", train=2, val=2), make_toy_voc(tmp_path / "b", train=2, val=2, seed=1)
    c = make_toy_voc(tmp_path / "c", which="initial", train=2, val=2)
    d = make_toy_voc(tmp_path / "d", which="formulas", train=2, val=2)
    pictures = [name for r in (a, b, c, d) for name in digests(r / "JPEGImages").values()]
    assert len(set(pictures)) == len(pictures) == 16


def test_members_of_a_family_share_what_lies_below_and_differ_in_parts_of_their_own(tmp_path):
    def drawn(family, member, own):
        pen = Pen((64, 64), (32, 32), 56)
        formula(family, member)(pen, np.random.default_rng(5), own)
        return pen.rgba()

    for family in range(FAMILIES):
        bare, whole = ([drawn(family, member, own) for member in range(MEMBERS)] for own in (False, True))
        assert all((bare[0] == other).all() for other in bare[1:])
        differ = [np.abs(a - b).max(-1) > 8 for i, a in enumerate(whole) for b in whole[:i]]
        assert min(d.sum() for d in differ) >= 30  # pixels that tell any two of them apart


def test_the_set_of_formulas_has_their_names_and_masks(tmp_path):
    voc = VOCDataset(make_toy_voc(tmp_path / "f", which="formulas", train=6, val=1), "train")
    assert voc.classes[1:] == tuple(formula_kinds()) and voc.num_classes == FAMILIES * MEMBERS == 200
    for i in range(len(voc)):
        ids = np.unique(voc.mask(i))
        assert ids[(ids > 0) & (ids != IGNORE)].tolist() == voc.class_ids(i).tolist()


def test_another_detector_leaves_pictures_and_the_other_maps(tmp_path):
    a = make_toy_voc(tmp_path / "a", train=3, val=1)
    b = make_toy_voc(tmp_path / "b", train=3, val=1, config=dataclasses.replace(ToyConfig(), worse=Detector(miss=0.9)))
    a, b = digests(a), digests(b)
    assert a.keys() == b.keys() and {k for k in a if a[k] != b[k]} <= {k for k in a if "worse" in k or "json" in k}
    assert a["toyvoc.json"] != b["toyvoc.json"]


# layout and values


def test_layout(small):
    which, root = small
    ids = {s: (root / "ImageSets/Segmentation" / f"{s}.txt").read_text().split() for s in ("train", "train_aug", "val")}
    assert ids["train"] == ids["train_aug"] and len(ids["train"]) == 30 and len(ids["val"]) == 10
    assert (root / "classes.txt").read_text().split() == list(SETS[which])
    everyone = sorted(ids["train"] + ids["val"])
    for folder, suffix in (
        ("JPEGImages", "jpg"),
        ("Annotations", "xml"),
        ("SegmentationClass", "png"),
        ("saliency/good", "png"),
        ("saliency/worse", "png"),
    ):
        assert sorted(p.name for p in (root / folder).iterdir()) == [f"{i}.{suffix}" for i in everyone]


def test_files_have_vocs_form(small):
    which, root = small
    C = len(SETS[which])
    for name in (root / "ImageSets/Segmentation/train.txt").read_text().split():
        with Image.open(root / "JPEGImages" / f"{name}.jpg") as im:
            size, mode = im.size, im.mode
        assert mode == "RGB" and max(size) == 128 and 80 <= min(size)
        with Image.open(root / "SegmentationClass" / f"{name}.png") as im:
            assert im.mode == "P" and im.size == size
            mask, palette = np.array(im), np.array(im.getpalette("RGB")).reshape(-1, 3)
        np.testing.assert_array_equal(palette[[0, 1, C]], PALETTE[[0, 1, C]])
        assert set(np.unique(mask)) <= {0, *range(1, C + 1), IGNORE} and 0 < (mask == IGNORE).mean() < 0.25
        for quality in ("good", "worse"):
            with Image.open(root / "saliency" / quality / f"{name}.png") as im:
                assert im.mode == "L" and im.size == size
        tree = ET.parse(root / "Annotations" / f"{name}.xml").getroot()
        assert tree.tag == "annotation" and tree.findtext("filename") == f"{name}.jpg"
        assert (int(tree.findtext("size/width")), int(tree.findtext("size/height"))) == size
        for o in tree.iter("object"):
            x0, y0, x1, y1 = (int(o.findtext(f"bndbox/{k}")) for k in ("xmin", "ymin", "xmax", "ymax"))
            m = mask == list(SETS[which]).index(o.findtext("name")) + 1
            assert m[y0 - 1 : y1, x0 - 1 : x1].sum() == m.sum()  # all of it inside, and the box is tight
            assert m[y0 - 1].any() and m[y1 - 1].any() and m[:, x0 - 1].any() and m[:, x1 - 1].any()
            assert o.findtext("difficult") == "0"
            assert int(o.findtext("truncated")) == (x0 == 1 or y0 == 1 or x1 == size[0] or y1 == size[1])


@pytest.mark.parametrize("split", ["train", "train_aug", "val"])
def test_xml_labels_equal_mask_labels(small, split):
    _, root = small
    xml, masks = VOCDataset(root, split, labels="xml"), VOCDataset(root, split, labels="masks")
    assert xml.num_classes == len(SETS[small[0]])
    for i in range(len(xml)):
        assert xml.labels(i).tolist() == masks.labels(i).tolist() and 1 <= xml.labels(i).sum() <= 3
        m = np.asarray(xml.mask(i))
        for c in xml.class_ids(i).tolist():
            assert (m == c).sum() >= 40


def test_border_separates_classes(small):
    _, root = small
    data = VOCDataset(root, "train")
    for i in range(len(data)):
        m = np.asarray(data.mask(i)).astype(int)
        for a, b in ((m[1:], m[:-1]), (m[:, 1:], m[:, :-1])):
            assert not ((a != b) & (a != IGNORE) & (b != IGNORE)).any()  # two labels never touch without a border


def test_saliency_is_soft_and_the_good_detector_is_better(small):
    _, root = small
    data, iou = VOCDataset(root, "train"), {}
    for name in ("good", "worse"):
        both = either = blank = 0
        for i in range(len(data)):
            m, s = np.asarray(data.mask(i)), np.asarray(data.saliency(i, name))
            blank += s.max() < 64  # every object was missed, see the next test
            assert s.shape == m.shape and (s.max() < 64 or len(np.unique(s)) > 30)
            fg, found, ok = m > 0, s > 128, m != IGNORE
            both, either = both + (fg & found & ok).sum(), either + ((fg | found) & ok).sum()
        iou[name] = both / either
        assert blank <= 0.1 * len(data)
    assert iou["worse"] < iou["good"] and 0.65 < iou["good"] < 0.95 and 0.5 < iou["worse"] < 0.85, iou


def test_a_blank_saliency_map_is_a_missed_object():
    "The same detector, were it to miss nothing, sees something in every picture whose map is blank."
    blank = 0
    for i in range(150):
        d = draw_scene(np.random.default_rng(i), SETS["main"])
        for k, detector in enumerate((ToyConfig().good, ToyConfig().worse)):
            if draw_saliency(np.random.default_rng([i, k]), d, detector).max() >= 64:
                continue
            blank += 1
            assert draw_saliency(np.random.default_rng([i, k]), d, dataclasses.replace(detector, miss=0.0)).max() >= 64
    assert blank > 0


def test_nothing_missed_no_clutter_is_nearly_the_truth():
    "A detector that does not err gives the union of the objects back."
    perfect = Detector(miss=0.0, false_alarm=0.0, warp=0.0, blur=0.3, uneven=0.0)
    for i in range(10):
        d = draw_scene(np.random.default_rng(i), SETS["main"])
        s = draw_saliency(np.random.default_rng(100 + i), d, perfect) > 128
        ok = d.mask != IGNORE
        assert (s == (d.mask > 0))[ok].mean() > 0.99


# knobs


def test_knobs():
    one = ToyConfig(objects=(1.0,), clutter=(0, 0), co_occur=1.0, size=(0.5, 0.5))
    for i in range(10):
        d = draw_scene(np.random.default_rng(i), SETS["main"], one)
        assert len(d.objects) == 1 and len(d.ids) == 2
        assert d.scene == list(SETS["main"].values())[d.objects[0][0] - 1].scene
    three = ToyConfig(objects=(0.0, 0.0, 1.0))
    for i in range(5):
        assert len({o[0] for o in draw_scene(np.random.default_rng(i), SETS["main"], three).objects}) == 3


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(sorted(SETS)))
def test_any_seed_gives_a_valid_picture(seed, which):
    d = draw_scene(np.random.default_rng(seed), SETS[which])
    assert d.image.shape == (*d.mask.shape, 3) and d.image.dtype == d.mask.dtype == np.uint8
    assert {i for i, *_ in d.objects} == set(np.unique(d.mask)) - {0, IGNORE}


@pytest.mark.parametrize("which,name", [(w, n) for w in SETS for n in SETS[w]])
def test_every_class_fills_its_square_and_can_be_told_from_the_others(which, name):
    drawings = {}
    for n, kind in SETS[which].items():
        pen = Pen((64, 64), (32, 32), 56)
        kind.draw(pen, np.random.default_rng(0), False)
        drawings[n] = pen.rgba()
    alpha = drawings[name][..., 3]
    y, x = np.nonzero(alpha > 0.5)
    assert max(np.ptp(y), np.ptp(x)) > 44 and 0.1 < (alpha > 0.5).mean() < 0.8
    for n, other in drawings.items():
        assert n == name or np.abs(other - drawings[name]).max(-1).astype(bool).sum() > 40


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("angle", [0.0, 90.0, 180.0])
def test_pen_turns_and_flips(angle, flip):
    pen = Pen((60, 60), (30, 30), 40, angle=angle, flip=flip)
    pen.box(0.8, 0.4, 1.0, 0.6, (200, 0, 0))  # right of the middle
    a = pen.rgba()
    full = np.zeros((60, 60))
    full[pen.window] = a[..., 3]
    y, x = (c.mean() - 29.5 for c in np.nonzero(full > 0.5))
    want = np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))]) * (-16 if flip else 16)
    assert abs(abs(x) - abs(want[0])) < 1 and abs(abs(y) - abs(want[1])) < 1 and x * want[0] > -1
    assert a.max() <= 255 and (a[..., 0] <= 200 * a[..., 3] + 1).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 17), (128, 80)])
def test_noise_has_the_size_asked_for(size):
    f = noise(np.random.default_rng(0), size, (3, 4), 2)
    assert f.shape == size and f.dtype == np.float32 and np.isfinite(f).all() and abs(f).max() < 3


# caching and faults


def test_cached_folder_is_found_again(cache, monkeypatch):
    root = make_toy_voc(train=2, val=1)
    assert root.parent == cache == cache_dir() and root.name.startswith(f"toyvoc-main-v{toyvoc.TOY_VERSION}-")
    monkeypatch.setattr(toyvoc, "_draw_all", lambda *a: pytest.fail("drawn again"))
    assert make_toy_voc(train=2, val=1) == root


def test_arguments_name_the_cached_folder(cache, monkeypatch):
    monkeypatch.setattr(toyvoc, "_draw_all", lambda part, *a: None)
    changes = (
        dict(),
        dict(which="initial"),
        dict(which="formulas"),
        dict(train=1),
        dict(val=1),
        dict(seed=1),
        dict(config=ToyConfig(noise=1.0)),
        dict(config=ToyConfig(good=Detector(miss=0.0))),
    )
    roots = [make_toy_voc(**kw) for kw in changes]
    assert len(set(roots)) == len(roots)
    monkeypatch.setattr(toyvoc, "TOY_VERSION", toyvoc.TOY_VERSION + 1)
    assert make_toy_voc() not in roots


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_error_while_drawing_leaves_nothing(tmp_path, monkeypatch, error):
    whole, calls = toyvoc.write_mask, []

    def fails(path, mask):
        calls.append(path)
        if len(calls) == 3:
            raise error("no space left on device")
        whole(path, mask)

    monkeypatch.setattr(toyvoc, "write_mask", fails)
    with pytest.raises(InputError if error is OSError else error, match="no space left"):
        make_toy_voc(tmp_path / "toy", train=5, val=1)
    assert left_over(tmp_path) == []
    assert len(VOCDataset(make_toy_voc(tmp_path / "toy", train=5, val=1), "train")) == 5  # and it can be asked again


def _ask(root, train=12):
    return str(make_toy_voc(root, train=train, val=1))


def test_killed_run_leaves_no_half_written_set(tmp_path, monkeypatch):
    draw = toyvoc._draw_one
    monkeypatch.setattr(toyvoc, "_draw_one", lambda *a: os._exit(9) if a[3] == 3 else draw(*a))  # no clean-up runs
    process = multiprocessing.get_context("fork").Process(target=_ask, args=(tmp_path / "toy", 6))
    process.start()
    process.join()
    assert process.exitcode == 9
    monkeypatch.undo()
    assert not (tmp_path / "toy").exists() and left_over(tmp_path) == [".toy.part"]
    root = make_toy_voc(tmp_path / "toy", train=6, val=1)
    assert left_over(tmp_path) == ["toy"] and digests(root) == digests(make_toy_voc(tmp_path / "again", train=6, val=1))


def test_concurrent_processes(tmp_path):
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert set(pool.map(_ask, [tmp_path / "toy"] * 3, chunksize=1)) == {str(tmp_path / "toy")}
    assert left_over(tmp_path) == ["toy"]
    assert digests(tmp_path / "toy") == digests(make_toy_voc(tmp_path / "other", train=12, val=1))


def test_concurrent_threads_draw_once(tmp_path, monkeypatch):
    draw, calls = toyvoc._draw_all, []
    monkeypatch.setattr(toyvoc, "_draw_all", lambda *a: (calls.append(a), draw(*a)))
    with ThreadPoolExecutor(4) as pool:
        roots = set(pool.map(lambda _: make_toy_voc(tmp_path / "toy", train=4, val=1), range(4)))
    assert roots == {tmp_path / "toy"} and len(calls) == 1


# bad arguments


@pytest.mark.parametrize(
    "kw,words",
    [
        (dict(which="voc"), "which='voc'"),
        (dict(train=0), "train=0"),
        (dict(val=-1), "val=-1"),
        (dict(seed=-1), "seed=-1"),
        (dict(train=1.5), "train=1.5"),
        (dict(val="3"), "val='3'"),
    ],
)
def test_bad_arguments(tmp_path, kw, words):
    with pytest.raises(InputError, match=words):
        make_toy_voc(tmp_path / "toy", **kw)
    assert left_over(tmp_path) == []


@pytest.mark.parametrize(
    "kw,words",
    [
        (dict(objects=(0.5, 0.2)), "sum to 1"),
        (dict(objects=(1.5, -0.5)), "sum to 1"),
        (dict(size=(0.5, 1.2)), "size"),
        (dict(size=(0.6, 0.5)), "size"),
        (dict(short_side=(80, 200)), "short_side"),
        (dict(size=(0, 0.5)), "size"),
    ],
)
def test_bad_config(kw, words):
    with pytest.raises(InputError, match=words):
        ToyConfig(**kw)


def test_impossible_config_is_an_error_not_a_loop():
    with pytest.raises(InputError, match="200 tries"):
        draw_scene(np.random.default_rng(0), SETS["main"], ToyConfig(size=(0.02, 0.03), short_side=(80, 80)))


def test_folder_that_holds_something_else(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="already holds something else"):
        make_toy_voc(tmp_path / "mine", train=1, val=1)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="already holds something else"):
        make_toy_voc(tmp_path / "file", train=1, val=1)
    root = make_toy_voc(tmp_path / "toy", train=1, val=1)
    with pytest.raises(InputError, match="already holds something else"):
        make_toy_voc(root, train=1, val=1, seed=1)


def test_empty_folder_is_taken(tmp_path):
    (tmp_path / "toy").mkdir()
    assert make_toy_voc(tmp_path / "toy", train=1, val=1) == tmp_path / "toy" and (tmp_path / "toy/JPEGImages").is_dir()


def test_unwritable_place_is_one_clear_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        make_toy_voc(tmp_path / "file" / "toy", train=1, val=1)


def test_a_folder_of_an_unknown_user_is_refused_and_not_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="~no-such-user/voc lies in the home of a user"):
        make_toy_voc("~no-such-user/voc", train=1, val=1)
    assert not list(tmp_path.iterdir())
