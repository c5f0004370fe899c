"Each layout that people have: in, VOC's out, the same labels and masks; and one sentence for whatever is wrong."

import csv
import io
import json
import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Outline
from PIL import Image

from wegformer import imports, json_layouts, tables
from wegformer.check import check
from wegformer.cli import main
from wegformer.data import PALETTE, InputError, VOCDataset
from wegformer.imports import draw_holdout, open_dataset
from wegformer.json_layouts import _run_lengths, fill_polygon, fill_runs
from wegformer.layouts import LAYOUTS, read_source
from wegformer.sources import Index, LayoutOptions
from wegformer.tables import DELIMITERS, read_rows


# ---- the embedded data set in every layout, and back


def told(root):
    "Per list: ids without folders, with names of classes; and the masks."
    names, masks = {}, {}
    for path in sorted((root / "ImageSets/Segmentation").glob("*.txt")):
        data = VOCDataset(root, path.stem)
        for i, image in enumerate(data.ids):
            own = image.rpartition("/")[2]
            names.setdefault(path.stem, {})[own] = {data.classes[c] for c in data.class_ids(i).tolist()}
            if data.mask_path(i).exists():
                called = ["", *data.classes[1:], *[""] * (254 - data.num_classes), "ignore"]
                masks[own] = np.array(called, dtype=object)[data.mask(i).numpy()]
    return names, masks


def run_lengths(mask):
    "COCO's run lengths of a mask."
    flat = np.concatenate([[0], mask.T.ravel().astype(int)])
    changes = np.flatnonzero(np.diff(flat))
    return np.diff([0, *changes, mask.size]).tolist()


def as_text(counts):
    "The text that COCO stores run lengths in."
    out = ""
    for k, count in enumerate(counts):
        value = count - (counts[k - 2] if k > 2 else 0)
        while True:
            digit, value = value & 31, value >> 5
            more = value != (-1 if digit & 16 else 0)
            out += chr((digit | 32 if more else digit) + 48)
            if not more:
                break
    return out


def photographs(data, i, folder):
    "A copy of photograph i in a folder."
    folder.mkdir(parents=True, exist_ok=True)
    return shutil.copy(data.image_path(i), folder)


def of_table(toy, folder, binary=False, delimiter=";"):
    classes = VOCDataset(toy, "val").classes[1:]
    rows = [["file", "split", *(classes if binary else ["labels"])]]
    for split in ("train", "val"):
        data = VOCDataset(toy, split)
        for i, name in enumerate(data.ids):
            photographs(data, i, folder / "cam")
            names = [data.classes[c] for c in data.class_ids(i).tolist()]
            rows.append(
                [f"cam/{name}.jpg", split, *([int(c in names) for c in classes] if binary else ["|".join(names)])]
            )
    with open(folder / "labels.csv", "w", newline="", encoding="utf-8-sig") as handle:
        csv.writer(handle, delimiter=delimiter).writerows(rows)
    return folder, LayoutOptions()


def of_folders(toy, folder):
    for split in ("train", "val"):
        data = VOCDataset(toy, split)
        for i in range(len(data)):
            for c in data.class_ids(i).tolist():
                photographs(data, i, folder / split / data.classes[c])
    return folder, LayoutOptions()


def of_coco(toy, folder, outlines=True, text=False):
    for split in ("train", "val"):
        data = VOCDataset(toy, split)
        made = dict(images=[], annotations=[], categories=[])
        made["categories"] = [dict(id=10 * k, name=name) for k, name in reversed(list(enumerate(data.classes)))][:-1]
        for i, name in enumerate(data.ids):
            photographs(data, i, folder / f"{split}2014")
            size, mask = data.size(i), data.mask(i).numpy()
            made["images"].append(dict(id=i, file_name=f"{name}.jpg", height=size[0], width=size[1]))
            for c in data.class_ids(i).tolist():
                one = dict(image_id=i, category_id=10 * c)
                if outlines:
                    counts = run_lengths(mask == c)
                    one["segmentation"] = dict(counts=as_text(counts) if text else counts, size=size)
                made["annotations"].append(one)
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / f"annotations/instances_{split}2014.json").write_text(json.dumps(made))
    return folder, LayoutOptions()


def of_labelme(toy, folder):
    for split in ("train", "val"):
        data = VOCDataset(toy, split)
        for i, name in enumerate(data.ids):
            photographs(data, i, folder / split)
            shapes = [
                dict(label=data.classes[c], points=[[1, 1], [3, 3]], shape_type="line")  # without an area: labels alone
                for c in data.class_ids(i).tolist()
            ]
            made = dict(imagePath=rf"..\{split}\{name}.jpg", shapes=shapes, imageData=None)
            (folder / split / f"{name}.json").write_text(json.dumps(made))
    return folder, LayoutOptions()


def of_xml(toy, folder):
    for split in ("train", "val"):
        data = VOCDataset(toy, split)
        for i, name in enumerate(data.ids):
            photographs(data, i, folder / split)
            shutil.copy(toy / f"Annotations/{name}.xml", folder / split)
    return folder, LayoutOptions()


def of_npy(toy, folder):
    table = {}
    for split in ("train", "val"):
        data = VOCDataset(toy, split)
        for i, name in enumerate(data.ids):
            photographs(data, i, folder / split)
            table[name] = data.labels(i).numpy()
    np.save(folder / "cls_labels.npy", table, allow_pickle=True)
    return folder, LayoutOptions(classes=toy / "classes.txt")


def of_voc(toy, folder):
    shutil.rmtree(folder)
    shutil.copytree(toy, folder)
    return folder, LayoutOptions()


def of_masks(toy, folder, coloured=True):
    numbers = {k: 3 * k for k in range(21)} | {255: 7}
    for split in ("train", "val"):
        data = VOCDataset(toy, split)
        for i, name in enumerate(data.ids):
            photographs(data, i, folder / split)
            (folder / "masks" / split).mkdir(parents=True, exist_ok=True)
            mask = data.mask(i).numpy()
            pixels = PALETTE[mask] if coloured else np.vectorize(numbers.get)(mask).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"masks/{split}/{name}.png")
    names = ["background", *data.classes[1:], "ignore"]
    rows = []
    for k, name in zip([*range(len(data.classes)), 255], names):
        rows.append([*PALETTE[k].tolist(), name] if coloured else [numbers[k], name])
    header = ["r", "g", "b", "class"] if coloured else ["index", "class"]
    lines = [",".join(map(str, row)) for row in [header, *rows]]
    (folder / "key.csv").write_text("\n".join(lines))
    return folder, LayoutOptions(layout="masks", masks=folder / "masks", colours=folder / "key.csv")


WRITERS = {
    "csv": of_table,
    "csv, a column a class": lambda toy, folder: of_table(toy, folder, binary=True, delimiter="\t"),
    "folders": of_folders,
    "coco": of_coco,
    "coco, runs as text": lambda toy, folder: of_coco(toy, folder, text=True),
    "coco, image labels": lambda toy, folder: of_coco(toy, folder, outlines=False),
    "labelme": of_labelme,
    "xml": of_xml,
    "npy": of_npy,
    "voc": of_voc,
    "masks": of_masks,
    "masks, numbers": lambda toy, folder: of_masks(toy, folder, coloured=False),
}
WITH_MASKS = {"coco", "coco, runs as text", "voc", "masks", "masks, numbers"}


def test_every_layout_goes_round():
    assert {name.partition(",")[0] for name in WRITERS} == set(LAYOUTS)


@pytest.mark.parametrize("name", WRITERS)
def test_round_trip(name, toy_root, tmp_path):
    (tmp_path / "mine").mkdir()
    source, options = WRITERS[name](toy_root, tmp_path / "mine")
    made = open_dataset(source, options, tmp_path / "voc")
    names, masks = told(made.root)
    meant, drawn = told(toy_root)
    assert made.layout == name.partition(",")[0]
    assert {split: names[split] for split in ("train", "val")} == {split: meant[split] for split in ("train", "val")}
    assert masks.keys() == (drawn.keys() if name in WITH_MASKS else set())
    for image, mask in masks.items():
        expected = drawn[image]
        if "coco" in name:  # its objects have outlines; nothing is ignored around them
            expected = np.where(expected == "ignore", "", expected)
        assert (mask == expected).all()
    report = check(made.root, deep=True, workers=0)
    assert report.ready and not [f for f in report.findings if "capitals" not in f.what], str(report)


@pytest.mark.parametrize("name", ["csv", "coco", "voc"])
def test_the_same_door_without_a_place_of_its_own(name, toy_root, tmp_path, monkeypatch):
    monkeypatch.setenv("WEGFORMER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "mine").mkdir()
    source, options = WRITERS[name](toy_root, tmp_path / "mine")
    made = open_dataset(source, options)
    assert (made.root == source) == (name == "voc")  # nothing is made of what the chain reads as it is
    assert open_dataset(source, options) == made
    if name == "csv":
        path = source / "labels.csv"
        path.write_text(path.read_text(encoding="utf-8-sig").replace("|", ";", 0).replace("train;", "val;", 1))
        assert open_dataset(source, options).root != made.root  # other labels are another data set


# ---- properties

CELL = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), max_size=8).map(str.strip)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(CELL.filter(bool), CELL, CELL), min_size=1, max_size=6),
    delimiter=st.sampled_from([*DELIMITERS]),
)
def test_a_table_says_what_was_written(rows, delimiter, tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "t.csv"
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows([("file", "one", "two"), *rows])
    path.write_bytes(text.getvalue().encode())
    read, found = read_rows(path)
    assert found == delimiter and [cells for _, cells in read[1:]] == [tuple(map(str.strip, row)) for row in rows]


@settings(max_examples=60, deadline=None)
@given(bits=st.lists(st.booleans(), min_size=1, max_size=120), height=st.integers(1, 12))
def test_run_lengths_come_back(bits, height):
    width = -(-len(bits) // height)
    mask = np.resize(bits, (height, width))
    counts = run_lengths(mask)
    assert (fill_runs(counts, mask.shape) == mask).all() and _run_lengths(as_text(counts).encode()) == counts
    assert (fill_runs(as_text(counts), mask.shape) == mask).all()


@settings(max_examples=60, deadline=None)
@given(points=st.lists(st.tuples(st.integers(-40, 140), st.integers(-40, 140)), min_size=3, max_size=9))
def test_a_polygon_holds_the_pixels_whose_centres_it_holds(points):
    outline = np.array(points) / 10 + 0.0137  # no centre lies on an edge
    y, x = np.mgrid[:11, :9] + 0.5
    crossings = np.zeros(x.shape, dtype=int)
    for (xa, ya), (xb, yb) in zip(outline, np.roll(outline, -1, axis=0)):
        between = (ya <= y) != (yb <= y)
        with np.errstate(divide="ignore", invalid="ignore"):
            crossings += between & (xa + (y - ya) * (xb - xa) / (yb - ya) <= x)
    assert (fill_polygon(outline, (11, 9)) == (crossings % 2 == 1)).all()


def test_a_simple_polygon_is_matplotlibs():
    angles = np.linspace(0, 2 * np.pi, 17)[:-1]
    outline = np.stack([30 + 21.3 * np.cos(angles), 25 + 17.9 * np.sin(angles)], 1)
    y, x = np.mgrid[:50, :60] + 0.5
    inside = Outline(outline).contains_points(np.c_[x.ravel(), y.ravel()]).reshape(50, 60)
    assert (fill_polygon(outline, (50, 60)) == inside).all() and inside.sum() > 1000


KIND = st.sets(st.sampled_from("abcde"), max_size=3).map(sorted).map(tuple)


@settings(max_examples=80, deadline=None)
@given(kinds=st.lists(KIND, min_size=2, max_size=60), share=st.floats(0.05, 0.9), seed=st.integers(0, 5))
def test_a_holdout_takes_no_class_whole(kinds, share, seed):
    labels = {f"p{k:02}": names for k, names in enumerate(kinds)}
    held = draw_holdout(labels, share, seed)
    assert held == draw_holdout(dict(reversed(labels.items())), share, seed) and held < set(labels)
    left = {name for image in labels.keys() - held for name in labels[image]}
    assert left == {name for names in kinds for name in names}
    if any(kinds.count(kind) > 1 for kind in kinds):
        assert held


# ---- what is wrong, and what is understood


@pytest.fixture
def cups(tmp_path):
    "Four photographs, two of them in a sub-folder, and a table."
    for k, name in enumerate(("a.jpg", "b.JPG", "cam/c.png", "cam/d.webp")):
        (tmp_path / "cups" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (40 * k, 90, 90)).save(tmp_path / "cups" / name)
    table(tmp_path / "cups", ROWS)
    return tmp_path / "cups"


ROWS = "file,labels\na.jpg,cup\nb.JPG,cup\ncam/c.png,plant\ncam/d.webp,plant\n"


def table(folder, text, encoding="utf-8"):
    (folder / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode(encoding))


def names_of(source, options=None):
    "Names by id, as a source is read."
    return {p.id: p.names for p in read_source(source, options or LayoutOptions())[2].photographs}


MEANT = {"a": ("cup",), "b": ("cup",), "cam/c": ("plant",), "cam/d": ("plant",)}


@pytest.mark.parametrize(
    "text",
    [
        ROWS,
        ROWS.encode("utf-8-sig"),
        ROWS.encode("utf-16"),
        ROWS.replace("\n", "\r\n"),
        ROWS.replace("\n", "\r"),
        ROWS.replace(",", ";"),
        ROWS.replace(",", "\t"),
        ROWS.replace("\n", "\n\n,\n"),
        ROWS.replace(",", " , "),
        ROWS.replace("\n", ",\n"),
        ROWS.partition("\n")[2],
        ROWS.replace(".jpg", "").replace("cam/", "").replace("b.JPG", "./b"),
        ROWS.replace("cam/", "cam\\"),
        "file,cup,plant\na.jpg,1,0\nb.JPG,1.0,0.0\nc.png,0,1\nd.webp,0,1\n",
    ],
    ids=lambda text: ascii(text)[:40],
)
def test_a_spreadsheets_habits_are_understood(cups, text):
    table(cups, text)
    assert names_of(cups) == MEANT


def test_a_table_in_another_encoding(cups):
    table(cups, ROWS.replace("plant", "Grünpflanze"), "cp1252")
    with pytest.raises(InputError, match=r"labels.csv is not UTF-8 \(byte 0xFC in line 4\).*--encoding"):
        read_source(cups)
    assert names_of(cups, LayoutOptions(encoding="cp1252"))["cam/c"] == ("Grünpflanze",)
    with pytest.raises(InputError, match="Encoding 'klingon' is not known"):
        read_source(cups, LayoutOptions(encoding="klingon"))


BAD_TABLES = {
    "a photograph without a row": (
        ROWS.replace("a.jpg,cup\n", ""),
        r"a\.jpg has no labels in .*\(1 such\).*--unmatched",
    ),
    "a row without a photograph": (ROWS + "e.jpg,cup\n", r"Line 6 .*'e\.jpg', which is no photograph of .* \(1 such\)"),
    "other capitals": (ROWS.replace("b.JPG", "b.jpg"), r"Line 3 .*'b\.jpg' \(did you mean 'b\.JPG'\?\)"),
    "a path out of the folder": (ROWS + "../a.jpg,cup\n", r"Line 6 .*leaves the folder"),
    "a path from the root": (ROWS + "/etc/passwd,cup\n", r"Line 6 .*leaves the folder"),
    "a photograph twice": (ROWS + "a,plant\n", r"Line 6 .* as line 2 does; expected one row"),
    "a row of three cells": (ROWS + "a.jpg,cup,plant\n", r"Line 6 .* has 3 cells; expected 2"),
    "an open quote": (ROWS + '"a.jpg,cup\n', r"Line 6 .* is no row of a table"),
    "no file": (ROWS + ",cup\n", r"Line 6 .* names no file"),
    "two separators": (
        ROWS.replace("cup", '"cup;red"', 1).replace("plant", "plant|green"),
        r"line 2 .*line 4.*--separator",
    ),
    "two delimiters": ("a.jpg,cup;plant\nb.jpg,cup;plant\n", r"a comma and a semicolon in its first row.*--delimiter"),
    "one column": ("a.jpg\nb.jpg\n", r"neither a comma, nor a semicolon, nor a tab"),
    "no rows": ("\n\n", r"labels\.csv is empty"),
    "a row of one cell too many": (ROWS + "a.jpg,cup, plant\n", r"Line 6 .*quotes around a cell keep a comma inside"),
    "words for nothing": (ROWS.replace("plant", "None", 1), r"Line 4 .* the name 'None'; expected an empty cell"),
    "names joined by spaces": (
        ROWS.replace("cup", "cup plant", 1),
        r"'cup plant', which is made of other classes.*space",
    ),
    "names joined by a word": (
        ROWS.replace("cup", "cup and plant", 1),
        r"'cup and plant', .*a row cup and plant,cup and plant in",
    ),
    "zero bytes": (ROWS + "\0", r"zero bytes"),
    "columns of other numbers": (
        "file,w,cup\na.jpg,8,1\nb.JPG,8,0\n",
        r"columns w, cup, with '8' in line 2.*--label-column",
    ),
    "minus one for absent": (
        "file,cup,plant\na.jpg,1,-1\nb.JPG,1,0\n",
        r"columns cup, plant, with '-1' in line 2; expected .* a column of 0 and 1",
    ),
    "columns without names": ("a.jpg,1,0\nb.JPG,0,1\n", r"columns of 0 and 1 without names"),
    "two columns of a name": ("file,file\na.jpg,cup\n", r"two columns 'file'"),
    "a column without a name": ("file,\na.jpg,cup\n", r"Column 2 .* has no name"),
    "a split of another name": (
        ROWS.replace("labels", "labels,split").replace("cup\n", "cup,fold 1\n").replace("plant\n", "plant,val\n"),
        r"Line 2 .* has the split 'fold 1'; expected train, val or test",
    ),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_table_that_does_not_tell(name, cups):
    text, words = BAD_TABLES[name]
    table(cups, text)
    with pytest.raises(InputError, match=words) as refused:
        open_dataset(cups, out=cups.parent / "voc")
    assert "\n" not in str(refused.value) and not (cups.parent / "voc").exists()


def test_spaces_may_part_names(cups):
    table(cups, ROWS.replace("cup", "cup plant", 1))
    assert names_of(cups, LayoutOptions(separator="space")) == {**MEANT, "a": ("cup", "plant")}


def test_a_name_of_two_words_that_are_classes_can_be_meant(cups):
    table(cups, ROWS.replace("cup", "cup plant", 1))
    (cups.parent / "names.csv").write_text("name,class\ncup plant,cup plant\n")
    made = open_dataset(cups, LayoutOptions(names=cups.parent / "names.csv"), cups.parent / "voc")
    assert "3 classes: cup 1, cup plant 1, plant 2" in " ".join(made.said)


def test_photographs_from_the_root_and_a_spreadsheets_first_line(cups):
    table(cups, "sep=;\n" + ROWS.replace(",", ";").replace("a.jpg", f"{cups.absolute()}/a.jpg"))
    assert names_of(cups) == MEANT


def test_a_photograph_that_is_not_read_is_there_all_the_same(cups):
    (cups / "e.HEIC").write_bytes(b"ftypheic")
    assert "left out: files that are not read: 1 .heic (convert them to .jpg)" in read_source(cups)[2].said
    table(cups, ROWS + "e.HEIC,cup\n")
    with pytest.raises(InputError, match=r"'e\.HEIC' \(it is there, but \.HEIC is not read: convert it to \.jpg\)"):
        read_source(cups)


def test_a_file_that_lies_elsewhere_gets_no_false_hint(cups):
    "Nor a caption of any length in place of a file's name."
    (cups / "masks").mkdir()
    shutil.copy(cups / "a.jpg", cups / "masks" / "z.jpg")
    index = Index(cups, [cups / "masks"])
    assert index.near("masks/z.jpg") == "" and index.near("a cup. " * 60) == ""


def test_folders_may_be_called_anything(tmp_path, cups):
    "Joined names are suspicious in a table's cells, not where a folder has the name."
    for k, name in enumerate(("sea", "lion", "sea lion", "none")):
        (tmp_path / "sorted" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (50 * k, 0, 0)).save(tmp_path / "sorted" / name / f"{k}.png")
        Image.new("RGB", (8, 8), (0, 50 * k + 1, 0)).save(tmp_path / "sorted" / name / f"{k}b.png")
    made = open_dataset(tmp_path / "sorted", out=tmp_path / "voc")
    assert any("4 classes" in text for text in made.said)


def test_a_path_from_the_root_where_the_folder_is_named_in_another_way(cups, tmp_path, monkeypatch):
    table(cups, ROWS.replace("a.jpg", f"{cups}/a.jpg"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert names_of(Path(os.path.relpath(cups))) == MEANT


def test_labels_in_a_file_of_another_kind(cups):
    (cups / "labels.csv").rename(cups / "labels.xlsx")
    with pytest.raises(
        InputError, match=r"labels\.xlsx is no file of labels that is read \(\.xlsx\); expected a table"
    ):
        read_source(cups, LayoutOptions(labels=cups / "labels.xlsx"))


def test_unmatched_may_be_skipped_and_is_said(cups):
    table(cups, ROWS.replace("a.jpg", "e.jpg") + "f.jpg,cup\n")
    found = read_source(cups, LayoutOptions(unmatched="skip"))[2]
    assert [p.id for p in found.photographs] == ["b", "cam/c", "cam/d"]
    assert found.said[1:] == ("left out: photographs without labels: 1", "left out: labels without a photograph: 2")


def test_columns_may_be_named(cups):
    table(cups, "id,what,photo,part\n1,cup,a,train\n2,cup,b,val\n3,plant,c,train\n4,plant,d,val\n")
    options = LayoutOptions(file_column="photo", label_column="what", split_column="part")
    made = open_dataset(cups, options, cups.parent / "voc")
    assert made.lists == {"train": 2, "val": 2}
    with pytest.raises(InputError, match="no column 'photos', which --file-column names; its columns are: id, what"):
        read_source(cups, LayoutOptions(file_column="photos"))


def test_two_photographs_of_one_name_in_two_folders(cups):
    shutil.copy(cups / "a.jpg", cups / "cam/a.jpg")
    with pytest.raises(InputError, match=r"a\.jpg has no labels"):  # the path decides: cam/a.jpg is the other
        read_source(cups)
    table(cups, ROWS.replace("a.jpg", "cam/a.jpg") + "a.jpg,plant\n")
    assert names_of(cups) == MEANT | {"cam/a": ("cup",), "a": ("plant",)}
    (cups / "a.jpg").rename(cups / "other.jpg")
    shutil.copy(cups / "b.JPG", cups / "cam/b.jpg")
    (cups / "b.JPG").unlink()
    (cups / "dir").mkdir()
    shutil.copy(cups / "cam/b.jpg", cups / "dir/b.jpg")
    table(cups, "file,labels\nb.jpg,cup\n")
    with pytest.raises(InputError, match=r"'b\.jpg', which is there as cam/b\.jpg and dir/b\.jpg"):
        read_source(cups)


@pytest.mark.parametrize(
    "name, words",
    [
        ("A.jpg", "have one name but for capitals"),
        ("a.png", "have one name but for its ending"),
        ("e.jpg.png", "two endings"),
        (" e.jpg", "spaces at the ends"),
        ("e\x1b.jpg", "characters in its name"),
        ("e" * 210 + ".jpg", "more than 200 bytes"),
    ],
)
def test_names_of_photographs_that_no_list_can_hold(name, words, cups):
    shutil.copy(cups / "a.jpg", cups / name)
    with pytest.raises(InputError, match=words):
        read_source(cups)


def test_accents_are_compared_as_characters(cups):
    (cups / "a.jpg").rename(cups / "cafe\u0301.jpg")  # as macOS writes it
    table(cups, ROWS.replace("a.jpg", "caf\u00e9.jpg"))
    assert names_of(cups)["cafe\u0301"] == ("cup",)


# ---- classes


def test_names_stand_for_classes(cups):
    table(cups, ROWS.replace("cup", "Mug", 1).replace("plant", "none", 1))
    with pytest.raises(InputError, match="Classes 'Cup' and 'cup' differ in capitals alone"):
        table(cups, ROWS.replace("cup", "Cup", 1))
        open_dataset(cups, out=cups.parent / "voc")
    table(cups, ROWS.replace("cup", "Mug", 1).replace("plant", "none", 1))
    (cups / "names.csv").write_text("name;class\nMug;cup\nnone;\nspoon;cup\n")
    options = LayoutOptions(names=cups / "names.csv")
    made = open_dataset(cups, options, cups.parent / "voc")
    names, _ = told(made.root)
    assert {image for split in names.values() for image, own in split.items() if not own} == {"c"}
    assert VOCDataset(made.root, "train").classes == ("background", "cup", "plant")
    assert "names: 1 of 3 occur nowhere, such as 'spoon'" in made.said
    assert any("none of them: 1" in line for line in made.said)


@pytest.mark.parametrize("word", ["background", "Background", "_background_"])
def test_the_background_is_no_class(word, cups):
    table(cups, ROWS.replace("plant", word))
    with pytest.raises(InputError, match=f"'{word}' is no class .*--names"):
        open_dataset(cups, out=cups.parent / "voc")


def test_a_class_that_is_not_listed(cups):
    (cups.parent / "classes.txt").write_text("plant\nglass\n")
    with pytest.raises(
        InputError, match=r"Line [23] of .*labels.csv has the class 'cup', which .*classes.txt does not list"
    ):
        open_dataset(cups, LayoutOptions(classes=cups.parent / "classes.txt"), cups.parent / "voc")


def test_too_many_classes_and_none(cups):
    table(
        cups,
        "file,"
        + ",".join(f"c{k}" for k in range(255))
        + "\n"
        + "".join(f"{n},{','.join('1' * 255)}\n" for n in "abcd"),
    )
    with pytest.raises(InputError, match="have 255 classes; expected 1 to 254"):
        open_dataset(cups, out=cups.parent / "voc")
    table(cups, re.sub(",(cup|plant)", ",", ROWS))
    with pytest.raises(InputError, match="have no classes"):
        open_dataset(cups, out=cups.parent / "voc")


# ---- JSON, XML, pickles


def coco(folder, **changes):
    content = dict(
        images=[dict(id=k, file_name=name) for k, name in enumerate(("a.jpg", "b.JPG", "c.png", "d.webp"))],
        annotations=[dict(image_id=k, category_id=1) for k in range(4)],
        categories=[dict(id=1, name="cup")],
    )
    (folder / "labels.csv").unlink(missing_ok=True)
    (folder / "coco.json").write_text(json.dumps(content | changes))


def outline(*values, **more):
    return dict(annotations=[dict(image_id=0, category_id=1, segmentation=list(values) or None, **more)])


BAD_COCO = {
    "no field": (dict(images=[dict(id=1)]), "missing required field `file_name` - at `.*images"),
    "a text for a number": (dict(categories=[dict(id="one", name="cup")]), "Expected `int`, got `str`"),
    "a list for the file": (None, "Expected `object`|no COCO|no labels"),
    "a path out of the folder": (dict(images=[dict(id=0, file_name="../a.jpg")], annotations=[]), "leaves the folder"),
    "an image of no file": (
        dict(images=[dict(id=0, file_name="e.jpg")], annotations=[]),
        "is 'e.jpg', which is no photograph of",
    ),
    "an id twice": (dict(images=[dict(id=0, file_name="a.jpg")] * 2), "two images of the id 0"),
    "a photograph twice": (
        dict(images=[dict(id=0, file_name="a.jpg"), dict(id=1, file_name="a")], annotations=[]),
        "are one photograph",
    ),
    "an unknown category": (dict(annotations=[dict(image_id=0, category_id=9)]), "Annotation 1 .* of category 9"),
    "an unknown image": (dict(annotations=[dict(image_id=9, category_id=1)]), "Annotation 1 .* of image 9"),
    "two categories of a name": (dict(categories=[dict(id=k, name="cup") for k in (1, 2)]), "two categories 'cup'"),
    "an odd outline": (outline([1, 2, 3, 4, 5]), "an outline of 5 numbers"),
    "two points": (outline([1, 2, 3, 4]), "three points"),
    "a point at infinity": (outline([1, 2, 1e300, 4, 5, 6]), "far outside"),
    "words for points": (outline(["a", "b"]), "Expected `float`, got `str`"),
    "runs too short": (
        dict(annotations=[dict(image_id=0, category_id=1, segmentation=dict(counts=[1], size=[6, 8]))]),
        "do not fill",
    ),
    "a bomb of runs": (
        dict(
            annotations=[
                dict(image_id=0, category_id=1, segmentation=dict(counts=[1 << 40, 1 << 40], size=[1 << 20, 1 << 21]))
            ]
        ),
        "run lengths for 1048576x2097152 pixels",
    ),
    "another size": (
        outline([0, 0, 4, 0, 4, 4])
        | dict(images=[dict(id=k, file_name=n, height=9, width=9) for k, n in enumerate("abcd")]),
        "was drawn on 9x9 pixels",
    ),
}


@pytest.mark.parametrize("name", BAD_COCO)
def test_coco_that_is_none(name, cups):
    changes, words = BAD_COCO[name]
    coco(cups, **changes or {})
    if changes is None:
        (cups / "coco.json").write_text("[1, 2]")
    with pytest.raises(InputError, match=words) as refused:
        open_dataset(cups, LayoutOptions(layout="coco", labels=cups / "coco.json"), cups.parent / "voc")
    assert "\n" not in str(refused.value) and not (cups.parent / "voc").exists()


@pytest.mark.parametrize(
    "content", [b"[" * 1_000_000, b'{"images": ' * 200_000, b"\xff\xfe{}", b"", b"1e99999", b'{"images": [1']
)
@pytest.mark.parametrize("layout", ["coco", "labelme"])
def test_hostile_json_is_one_sentence(content, layout, cups):
    (cups / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.json is no (COCO|labelme) file|no labelme file"):
        read_source(cups, LayoutOptions(layout=layout, labels=cups / "x.json"))


def test_a_huge_file_is_not_read(cups, monkeypatch):
    coco(cups)
    monkeypatch.setattr(json_layouts, "_LARGEST", 100)
    with pytest.raises(InputError, match=r"coco.json has \d+ bytes; expected a COCO file of at most 100"):
        read_source(cups, LayoutOptions(labels=cups / "coco.json", layout="coco"))
    table(cups, ROWS)
    monkeypatch.setattr(tables, "_LARGEST", 10)
    with pytest.raises(InputError, match=r"labels.csv has \d+ bytes; expected a table of at most 10"):
        read_source(cups, LayoutOptions(layout="csv"))


def test_an_outline_that_crosses_too_often(monkeypatch):
    monkeypatch.setattr(json_layouts, "_CROSSINGS", 100)
    zigzag = np.array([[k % 7, 50 * (k % 2)] for k in range(20)], dtype=float)
    with pytest.raises(ValueError, match="crosses the picture's lines 950 times|crosses the picture's lines"):
        fill_polygon(zigzag, (50, 50))


def test_coco_2014_has_eighty_classes_in_the_order_of_their_ids(tmp_path):
    gaps = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    ids = [k for k in range(1, 91) if k not in gaps]
    for split, k in (("train", 9), ("val", 42)):
        name = f"COCO_{split}2014_{k:012}.jpg"
        (tmp_path / "coco" / f"{split}2014").mkdir(parents=True)
        Image.new("RGB", (8, 6)).save(tmp_path / "coco" / f"{split}2014" / name)
        content = dict(
            images=[dict(id=k, file_name=name, height=6, width=8)],
            annotations=[dict(image_id=k, category_id=90, iscrowd=0, segmentation=[[0, 0, 4, 0, 4, 6, 0, 6]])],
            categories=[dict(id=i, name=f"c{i}") for i in ids],
        )
        (tmp_path / "coco/annotations").mkdir(exist_ok=True)
        (tmp_path / f"coco/annotations/instances_{split}2014.json").write_text(json.dumps(content))
        (tmp_path / f"coco/annotations/captions_{split}2014.json").write_text(
            json.dumps(dict(images=[], annotations=[]))
        )
        (tmp_path / f"coco/annotations/person_keypoints_{split}2014.json").write_text(
            json.dumps(content | dict(categories=[]))
        )
    made = open_dataset(tmp_path / "coco", out=tmp_path / "voc")
    data = VOCDataset(made.root, "val")
    assert made.layout == "coco" and made.lists == {"train": 1, "val": 1} and data.num_classes == 80
    assert data.classes[1] == "c1" and data.classes[80] == "c90" and data.class_ids(0).tolist() == [80]
    assert data.mask(0)[:, :4].unique().tolist() == [80] and data.mask(0)[:, 4:].unique().tolist() == [0]
    assert data.ids == ["val2014/COCO_val2014_000000000042"]


def labelme(folder, name, **changes):
    shape = dict(label="cup", points=[[0, 0], [4, 6]], shape_type="rectangle")
    (folder / f"{name}.json").write_text(json.dumps(dict(imagePath=f"{name}.jpg", shapes=[shape]) | changes))


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(imagePath="../../etc/passwd"), "leaves the folder"),
        (dict(imagePath="e.jpg"), r"b\.json names 'e\.jpg', which is no photograph of"),
        (dict(imagePath="a.jpg"), "name one photograph"),
        (dict(imagePath="b.jpg", imageHeight=60, imageWidth=80), "was drawn on 60x80 pixels"),
        (
            dict(shapes=[dict(label="cup", points=[[0, 0]], shape_type="circle")]),
            "Shape 'cup' of .* a circle of 1 points",
        ),
        (dict(shapes=[dict(label="cup", points=[[0, "x"]])]), "Expected `float`, got `str`"),
        (dict(shapes=7), "Expected `array`, got `int`"),
    ],
)
def test_labelme_that_is_none(changes, words, tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / "lm").mkdir(exist_ok=True)
        Image.new("RGB", (8, 6)).save(tmp_path / f"lm/{name}.jpg")
        labelme(tmp_path / "lm", name)
    labelme(tmp_path / "lm", "b", **changes)
    with pytest.raises(InputError, match=words):
        open_dataset(tmp_path / "lm", out=tmp_path / "voc")


def test_labelme_shapes_become_masks(tmp_path):
    (tmp_path / "lm").mkdir()
    for name in ("a", "b", "c"):
        Image.new("RGB", (8, 6)).save(tmp_path / f"lm/{name}.jpg")
        labelme(tmp_path / "lm", name)
    shape = dict(points=[[0, 0], [2, 6]], shape_type="rectangle")
    labelme(
        tmp_path / "lm",
        "c",
        shapes=[dict(shape, label="plant"), dict(shape, label="__ignore__", points=[[6, 0], [8, 6]])],
    )
    made = open_dataset(tmp_path / "lm", out=tmp_path / "voc")
    names, masks = told(made.root)
    assert (
        masks["c"][0].tolist() == ["plant"] * 2 + [""] * 4 + ["ignore"] * 2
        and masks["a"][0].tolist() == ["cup"] * 4 + [""] * 4
    )
    assert check(made.root, deep=True, workers=0).ready


def test_hostile_xml_and_pickles(cups):
    (cups / "labels.csv").unlink()
    (cups / "a.xml").write_text('<!DOCTYPE x [<!ENTITY a "cup">]><annotation>&a;</annotation>')
    with pytest.raises(InputError, match=r"a\.xml is not readable XML: it declares the document type"):
        read_source(cups, LayoutOptions(unmatched="skip"))
    (cups / "a.xml").unlink()

    class Bomb:
        def __reduce__(self):
            return print, ("this must never be printed",)

    (cups / "cls_labels.npy").write_bytes(pickle.dumps({"a": Bomb()}))
    with pytest.raises(InputError, match="is not a pickled dictionary"):
        read_source(cups)
    np.save(cups / "cls_labels.npy", {"../a": np.zeros(20)}, allow_pickle=True)
    with pytest.raises(InputError, match="'../a', which leaves the folder"):
        read_source(cups)


# ---- masks


@pytest.mark.parametrize(
    "change, words",
    [
        ("size", "is 3x4 .*expected its image's 6x8"),
        ("jpeg", "is stored as JPEG, which changes colours"),
        ("colour", r"holds the colour #010203 \(48 pixels\), which nothing explains"),
        ("transparent", "has transparent pixels"),
        ("none", "holds no mask of any photograph"),
        ("key", "stands for 'fork'; expected .*key.csv to say one of: background, ignore, cup, plant"),
        ("unexplained", "Nothing says what the numbers in the masks"),
    ],
)
def test_masks_that_do_not_tell(change, words, cups):
    pixels = np.zeros(
        (3, 4, 3) if change == "size" else (6, 8, 4) if change == "transparent" else (6, 8, 3), dtype=np.uint8
    )
    pixels[..., :3] = (1, 2, 3) if change == "colour" else (9, 9, 9)
    (cups / "masks").mkdir()
    name = "z.png" if change == "none" else "a.png"
    Image.fromarray(pixels).save(cups / "masks" / name, format="JPEG" if change == "jpeg" else "PNG")
    (cups.parent / "key.csv").write_text(f"colour,class\n#090909,{'fork' if change == 'key' else 'cup'}\n")
    colours = None if change == "unexplained" else cups.parent / "key.csv"
    with pytest.raises(InputError, match=words):
        open_dataset(cups, LayoutOptions(masks=cups / "masks", colours=colours), cups.parent / "voc")


def test_masks_go_with_any_layout_and_follow_the_classes(cups):
    (cups / "masks/cam").mkdir(parents=True)
    Image.fromarray(np.full((6, 8), 2, dtype=np.uint8)).save(cups / "masks/a.png")
    Image.fromarray(np.full((6, 8), 1, dtype=np.uint8)).save(cups / "masks/cam/c.png")
    (cups.parent / "classes.txt").write_text("plant\ncup\n")
    made = open_dataset(
        cups, LayoutOptions(masks=cups / "masks", classes=cups.parent / "classes.txt"), cups.parent / "voc"
    )
    _, masks = told(made.root)
    assert {name: set(mask.ravel()) for name, mask in masks.items()} == {"a": {"cup"}, "c": {"plant"}}


# ---- which layout, and where it goes


def test_two_layouts_fit_and_an_option_decides(cups):
    (cups / "coco.json").write_text(json.dumps(dict(images=[], annotations=[], categories=[])))
    with pytest.raises(
        InputError, match=r"may be read as csv \(.*\) and coco \(.*\); expected one: --layout says which"
    ):
        read_source(cups)
    assert names_of(cups, LayoutOptions(layout="csv")) == names_of(cups / "labels.csv") == MEANT
    with pytest.raises(InputError, match="layout is 'nosuch'; expected one of: voc, csv"):
        read_source(cups, LayoutOptions(layout="nosuch"))
    shutil.copy(cups / "labels.csv", cups / "more.csv")
    with pytest.raises(InputError, match="holds 2 tables; expected one .*--labels"):
        read_source(cups, LayoutOptions(layout="csv"))


def test_folders_of_one_class_are_asked_for(cups):
    (cups / "labels.csv").unlink()
    for name in ("a.jpg", "b.JPG"):
        (cups / name).unlink()
    with pytest.raises(
        InputError, match="no labels of a known layout; expected --labels FILE.csv, .* or one of: voc: JPEGImages"
    ):
        read_source(cups)
    assert names_of(cups, LayoutOptions(layout="folders")) == {"cam/c": ("cam",), "cam/d": ("cam",)}


def test_lists_that_are_not_whole(cups):
    def split(cup, plant):
        rows = ROWS.replace("labels", "labels,split")
        table(cups, rows.replace("cup\n", f"cup,{cup}\n").replace("plant\n", f"plant,{plant}\n"))

    split("val", "val")
    with pytest.raises(InputError, match="has the lists val; expected one called train"):
        open_dataset(cups, out=cups.parent / "voc")
    split("train", "train")
    made = open_dataset(cups, out=cups.parent / "voc")  # a train of its own, no val: it is drawn
    assert (
        made.lists == {"train": 2, "val": 2} and "val: 2 of 4 photographs held out (holdout 0.2, seed 0)" in made.said
    )
    assert json.loads((made.root / "import.json").read_text())["said"] == list(made.said)
    split("", "val")
    with pytest.raises(InputError, match=r"is in no split \(Line 2 .*; 2 such\), and others are"):
        open_dataset(cups, out=cups.parent / "voc2")


def test_nothing_is_overwritten_and_nothing_is_half(cups, killed_at):
    (cups / "masks").mkdir()
    for name in "ab":
        Image.fromarray(np.ones((6, 8), dtype=np.uint8)).save(cups / f"masks/{name}.png")
    (cups.parent / "classes.txt").write_text("cup\nplant\n")
    options, out = LayoutOptions(masks=cups / "masks", classes=cups.parent / "classes.txt"), cups.parent / "voc"
    with killed_at(imports, "write_mask", 2):
        open_dataset(cups, options, out)
    assert not out.exists()
    made = open_dataset(cups, options, out)
    assert len(list((out / "SegmentationClass").rglob("*.png"))) == 2 and not list(cups.parent.glob(".voc.part"))
    before = {path: path.lstat().st_mtime_ns for path in out.rglob("*")}
    assert open_dataset(cups, options, out) == made and before == {
        path: path.lstat().st_mtime_ns for path in out.rglob("*")
    }
    table(cups, ROWS.replace("cup", "plant", 1))
    for place in (out, cups.parent):
        with pytest.raises(InputError, match="already holds something else|lies in"):
            open_dataset(cups, options, place)
    with pytest.raises(InputError, match="lies in .*; expected a folder outside"):
        open_dataset(cups, options, cups / "voc")


def test_links_and_copies(cups):
    links, copies = (open_dataset(cups, out=cups.parent / f"voc{copy}", copy=copy).root for copy in (False, True))
    assert (links / "JPEGImages/b.JPG").is_symlink() and not (copies / "JPEGImages/b.JPG").is_symlink()
    assert told(links) == told(copies)
    shutil.rmtree(cups)
    assert check(copies).ready and not check(links).ready


# ---- less than VOC has


@pytest.fixture(scope="module")
def bare(toy_root, tmp_path_factory):
    "One class, photographs without it, no val, no masks, no saliency maps."
    folder, data = tmp_path_factory.mktemp("bare"), VOCDataset(toy_root, "train")
    rows = ["file,labels"]
    for i in range(12):
        photographs(data, i, folder / "mine")
        rows.append(f"{data.ids[i]}.jpg,{'thing' if i % 3 else ''}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder


SMALL = """--preset smoke --classifier.steps 1 --classifier.crop-size 48 --classifier.resize 48 64
    --classifier.eval-long-side 48 --attention.long-side 48 --attention.no-flip --segmenter.steps 1
    --segmenter.crop 48""".split()


def test_train_and_label_with_less_than_voc_has(bare, tmp_path, capsys):
    out = tmp_path / "voc"
    assert main(["import", str(bare / "mine"), "--labels", str(bare / "labels.csv"), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "table: labels.csv, a comma between columns" in said and "1 classes: thing 8; none of them: 4" in said
    assert main(["check", "--voc-root", str(out), "--deep", "--workers", "0"]) == 0
    said = capsys.readouterr().out
    assert "without  val: masks: none in" in said and "ready to run" in said
    where = ["--voc-root", str(out), "--cache", str(tmp_path / "cache")]
    assert main(["train-segmenter", *SMALL, *where]) == 0
    for more in ([], ["--predictions", str(tmp_path)]):
        capsys.readouterr()
        assert main(["evaluate", *SMALL, *where, *more]) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert len(error) == 1 and re.search(
            r"Split 'val' of .*voc has no masks .*so nothing can be measured", error[0]
        )


def test_import_on_the_command_line(bare, tmp_path, capsys):
    mine, labelled = f"import {bare}/mine", f"import {bare}/mine --labels {bare}/labels.csv --out {tmp_path}/voc"
    for args, words in {
        "import": "No source was named",
        mine: "out is missing",
        f"{mine} --out {tmp_path}/voc": "no labels of a known layout",
        f"import {bare}/nowhere --out {tmp_path}/voc": "nowhere does not exist",
        f"{labelled} --holdout 2": "holdout is 2.0; expected more than 0",
        f"{labelled} --saliency u2={tmp_path}/no": "saliency names u2=",
    }.items():
        assert main(args.split()) == 2
        assert re.search(words, capsys.readouterr().err.strip().splitlines()[-1]), args
    assert not (tmp_path / "voc").exists()


def test_saliency_maps_come_along(bare, toy_root, tmp_path):
    options = LayoutOptions(labels=bare / "labels.csv", saliency=(f"mine={toy_root / 'saliency/good'}",))
    made = open_dataset(bare / "mine", options, tmp_path / "voc")
    data = VOCDataset(made.root, "train")
    assert list(data.saliency_folders) == ["mine"] and data.saliency(0, "mine").max() > 100
    assert check(made.root).ready
