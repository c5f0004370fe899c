import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wegformer.check import check
from wegformer.data import (
    CLASSES,
    IGNORE,
    InputError,
    Kept,
    VOCDataset,
    atomic_write,
    fingerprint,
    read_cls_labels,
    read_image,
    read_mask,
    read_saliency,
    write_mask,
)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 1), (13, 8)])
def test_masks_survive_writing(tmp_path, size):
    mask = torch.randint(0, 256, size, dtype=torch.uint8)
    write_mask(tmp_path / "m.png", mask)
    assert torch.equal(read_mask(tmp_path / "m.png", size), mask)
    assert [p.name for p in tmp_path.iterdir()] == ["m.png"]


def test_write_mask_of_non_contiguous_view(tmp_path):
    mask = torch.randint(0, 21, (8, 6), dtype=torch.uint8).T
    write_mask(tmp_path / "m.png", mask)
    assert torch.equal(read_mask(tmp_path / "m.png"), mask)


def test_rotation_flag_is_applied_to_image_and_size(toy_copy):
    data = VOCDataset(toy_copy, "val")
    path = toy_copy / "JPEGImages" / f"{data.ids[0]}.jpg"
    image = Image.new("RGB", (40, 20), "red")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    assert data.image(0).shape == (3, 40, 20) and data.size(0) == (40, 20)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P", "1"])
def test_any_mode_reads_as_rgb(tmp_path, mode):
    Image.new("RGB", (5, 4), "white").convert(mode).save(tmp_path / "x.tiff")
    image = read_image(tmp_path / "x.tiff")
    assert image.shape == (3, 4, 5) and image.dtype == torch.uint8


def test_truncated_jpeg_is_refused_by_name(tmp_path):
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(buffer, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(buffer.getvalue()[:-200])
    with pytest.raises(InputError, match="cut.jpg cannot be read"):
        read_image(tmp_path / "cut.jpg")
    with pytest.raises(InputError, match="gone.jpg does not exist"):
        read_image(tmp_path / "gone.jpg")


def test_rgb_mask_is_refused_and_rgb_saliency_is_read(tmp_path):
    Image.new("RGB", (4, 3), (10, 10, 10)).save(tmp_path / "rgb.png")
    with pytest.raises(InputError, match="rgb.png has mode RGB"):
        read_mask(tmp_path / "rgb.png")
    assert (read_saliency(tmp_path / "rgb.png") == 10).all()


def test_sizes_must_agree(tmp_path):
    write_mask(tmp_path / "m.png", torch.zeros(3, 4, dtype=torch.uint8))
    with pytest.raises(InputError, match=r"m.png is 3x4 .*expected its image's 4x3"):
        read_mask(tmp_path / "m.png", (4, 3))
    with pytest.raises(InputError, match=r"m.png is 3x4"):
        read_saliency(tmp_path / "m.png", (3, 3))


def test_mask_with_an_unknown_class(toy_copy):
    data = VOCDataset(toy_copy, "train")
    mask = data.mask(0).clone()
    mask[0, 0] = 99
    write_mask(toy_copy / "SegmentationClass" / f"{data.ids[0]}.png", mask)
    with pytest.raises(InputError, match=f"{data.ids[0]}.png holds the unknown class 99"):
        VOCDataset(toy_copy, "train").mask(0)  # the open one has read its picture and keeps it


def test_unknown_class_in_an_annotation(toy_copy):
    data = VOCDataset(toy_copy, "train")
    path = toy_copy / "Annotations" / f"{data.ids[3]}.xml"
    path.write_text("<annotation><object><name>unicorn</name></object></annotation>")
    with pytest.raises(InputError, match=f"{data.ids[3]}.xml names the unknown class 'unicorn'"):
        data.labels(3)
    path.write_text("<annotation><object>")
    with pytest.raises(InputError, match="not readable XML"):
        VOCDataset(toy_copy, "train").labels(3)


def test_id_without_labels(toy_copy):
    data = VOCDataset(toy_copy, "train")
    (toy_copy / "Annotations" / f"{data.ids[1]}.xml").unlink()
    with pytest.raises(InputError, match=f"{data.ids[1]}.xml does not exist, so the image has no labels"):
        data.labels(1)
    np.save(toy_copy / "cls_labels.npy", {data.ids[0]: np.zeros(data.num_classes)}, allow_pickle=True)
    npy = VOCDataset(toy_copy, "train", labels="npy")
    with pytest.raises(InputError, match=f"no labels for id '{data.ids[1]}'"):
        npy.labels(1)


def test_npy_labels_equal_xml_labels(toy_copy):
    data = VOCDataset(toy_copy, "train")
    table = {name: data.labels(i).numpy() for i, name in enumerate(data.ids)}
    np.save(toy_copy / "cls_labels.npy", table, allow_pickle=True)
    npy = VOCDataset(toy_copy, "train", labels="npy")
    assert all(torch.equal(npy.labels(i), data.labels(i)) for i in range(len(data)))


@pytest.mark.parametrize("payload", [{"a": print}, {"a": np.zeros(3)}, [1, 2]])
def test_foreign_label_files_are_refused(tmp_path, payload):
    np.save(tmp_path / "cls_labels.npy", np.array(payload, dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="cls_labels.npy"):
        read_cls_labels(tmp_path / "cls_labels.npy")


def test_a_plain_pickle_is_no_label_file(tmp_path):
    (tmp_path / "cls_labels.npy").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(InputError, match="cls_labels.npy"):
        read_cls_labels(tmp_path / "cls_labels.npy")


def test_splits(toy_copy):
    lists = toy_copy / "ImageSets" / "Segmentation"
    (lists / "empty.txt").write_text("\n\n")
    with pytest.raises(InputError, match="empty.txt is empty"):
        VOCDataset(toy_copy, "empty")
    with pytest.raises(InputError, match="'nosuch' not found"):
        VOCDataset(toy_copy, "nosuch")
    ids = (lists / "val.txt").read_text().split()
    (lists / "pairs.txt").write_text("".join(f"/JPEGImages/{i}.jpg /SegmentationClassAug/{i}.png\n" for i in ids))
    assert VOCDataset(toy_copy, "pairs").ids == ids


def test_missing_pieces_of_a_folder(tmp_path, toy_copy):
    with pytest.raises(InputError, match="no JPEGImages"):
        VOCDataset(tmp_path / "nothing", "val")
    with pytest.raises(InputError, match="Saliency set 'x' is not known"):
        VOCDataset(toy_copy, "val").saliency(0, "x")
    for path in (toy_copy / "Annotations").iterdir():
        path.unlink()
    (toy_copy / "Annotations").rmdir()
    with pytest.raises(InputError, match="no image-level labels"):  # the masks are there, and are not used unasked
        VOCDataset(toy_copy, "val")
    assert VOCDataset(toy_copy, "val", labels="masks").labels(0).sum() >= 1


def test_check_counts_what_is_missing(toy_copy):
    assert check(toy_copy, splits=("train", "val")).ready
    name = VOCDataset(toy_copy, "train").ids[5]
    (toy_copy / "saliency" / "good" / f"{name}.png").unlink()
    report = check(toy_copy, splits=("train", "val"))
    missing = [text for ok, text in report.lines if not ok]
    assert missing and all("23 of 24" in text and "NSROM" in text for text in missing)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    (tmp_path / "f").write_text("old")
    with pytest.raises(OSError, match="could not be written: No space left on device"):
        with atomic_write(tmp_path / "f", "w") as handle:
            handle.write("new")
            raise OSError(28, "No space left on device")
    assert (tmp_path / "f").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["f"]


def test_fingerprint_names_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="gone.png does not exist"):
        fingerprint([tmp_path / "gone.png"])


def test_the_real_photographs(shared):
    data = VOCDataset(shared / "voc" / "VOC2012", "val")
    assert data.classes == CLASSES and data.label_source == "npy" and len(data) == 320
    for i in range(0, 320, 40):
        present = {int(k) for k in data.mask(i).unique()} - {0, IGNORE}
        assert set(data.class_ids(i).tolist()) == present and data.image(i).shape[1:] == data.size(i)


def test_pictures_given_up_by_one_thread_while_another_reads():
    kept, small, large = Kept(expected=100, room=1000), torch.zeros(1, dtype=torch.uint8), torch.zeros(100)

    def read(path):
        if path == Path("a"):
            kept(Path("b"), read)  # as another thread would: what it reads is too large to keep
        return small if path == Path("a") else large

    assert kept(Path("a"), read) is small and kept._pictures is None
    assert kept(Path("a"), lambda path: small) is small
