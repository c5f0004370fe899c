"""Live figures: every knob at several of its values, without a browser; and the shell around them."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from wegformer.data import InputError
from wegformer.live.canvas import PANEL, WIDTH, bars, beside, below, panel, png, plot, text_block
from wegformer.live.figure import LiveFigure, Slider, Stroke, widget
from wegformer.live.labels import brushed, epom_figure, erase_figure, threshold_figure, workbench
from wegformer.live.maps import (
    attention_figure,
    conservation_figure,
    method_figure,
    occlusion_figure,
    start_block_figure,
)
from wegformer.live.predictions import confusion_figure, crf_figure, fallen, rule_labels
from wegformer.live.replay import read_recording, record_training, replay_figure
from wegformer.live.rules import linear_rule_figure
from wegformer.live.samples import Sample, read_upload, toy_album, voc_album

OF_ALBUM = [workbench, erase_figure, epom_figure, threshold_figure, method_figure, attention_figure]
OF_ALBUM += [occlusion_figure, conservation_figure, start_block_figure, crf_figure, confusion_figure]
NEEDS_MASKS = [threshold_figure, confusion_figure]  # so an uploaded picture has no place there


@pytest.fixture(scope="module")
def album():
    return toy_album(count=3)


def file_of(picture, kind="PNG", **options):
    file = BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def figure_of(make, album):
    return make() if make is linear_rule_figure else make(album)


@pytest.mark.parametrize("make", [*OF_ALBUM, linear_rule_figure], ids=lambda f: f.__name__)
def test_every_knob_moves(make, album):
    figure = figure_of(make, album)
    first, moved = figure.drawn(), {}
    assert first.text and first.page.dtype == np.uint8 and first.page.shape[1] <= WIDTH
    for move in figure.moves(3):
        try:
            page = figure.drawn(**move).page
        except InputError as error:  # a picture of one class has no second
            assert "has one class" in str(error)
            continue
        name = next(iter(move))
        moved[name] = moved.get(name, False) or page.shape != first.page.shape or bool((page != first.page).any())
    assert set(moved) == set(figure.knobs)
    still = {name for name, changed in moved.items() if not changed}
    alone = {"preset", "strength", "size", "paint", "salient_thr", "background_score", "uncertain_without_saliency"}
    alone |= {"t_fg", "conflict_relative", "conflict_min", "min_foreground", "min_foreground_on", "epom_map"}
    assert still <= alone


@pytest.mark.parametrize(
    "knob, given",
    [
        ("strength", dict(saliency="blurred")),
        ("salient_thr", dict(background="binary", uncertain="salient")),
        ("background_score", dict(background="constant")),
        ("uncertain_without_saliency", dict(saliency="no map", uncertain_thr=0.2, epom=False)),
        ("conflict_min", dict(conflict_thr=0.1)),
        ("min_foreground", dict(saliency="no map", background_score=0.95)),
    ],
)
def test_a_knob_that_needs_another_moves_with_it(knob, given, album):
    figure = workbench(album)
    pages = {
        png(figure.drawn(**given, picture=p, **{knob: v}).page)
        for p in album.samples
        for v in figure.knobs[knob].values(9)
    }
    assert len(pages) > len(album.samples)


@pytest.mark.parametrize("make", [*OF_ALBUM, linear_rule_figure], ids=lambda f: f.__name__)
def test_the_shell_follows_its_controls(make, album):
    figure = figure_of(make, album)
    shell = widget(figure)
    quiet = ("strength", "size", "paint", "t_fg")
    name = next((k for k, knob in figure.knobs.items() if isinstance(knob, Slider) and k not in quiet), "called")
    before, control = shell.picture.value, shell.controls[name]
    assert before[:4] == b"\x89PNG"
    if isinstance(figure.knobs[name], Slider):
        control.value = control.min if control.value != control.min else control.max
    else:
        control.value = "ignored"
    assert shell.picture.value != before and shell.words.value


def test_a_click_moves_two_sliders_and_a_click_elsewhere_none(album):
    shell = widget(attention_figure(album))
    height, width = shell.drawn.page.shape[:2]
    left, top, right, bottom = shell.drawn.target.box
    shell.picture.clicked = [(right - 2) / width, (top + 2) / height]
    assert shell.controls["across"].value == 99 and shell.controls["down"].value == 0
    shell.picture.clicked = [0.9, 0.9]
    assert shell.controls["across"].value == 99 and shell.controls["down"].value == 0


def test_a_preset_sets_the_knobs_and_draws_once(album, monkeypatch):
    shell, drawn = widget(workbench(album)), []
    monkeypatch.setattr(shell, "redraw", lambda: drawn.append(1))
    shell.controls["preset"].value = "drs"
    assert shell.controls["uncertain"].value == "salient" and not shell.controls["erase_rate_on"].value
    assert len(drawn) == 1


def send(shell, name, data):
    shell.take(dict(new=({"name": name, "content": memoryview(data)},)))
    return shell.words.value


def test_a_brush_paints_saliency_stroke_by_stroke(album):
    shell = widget(workbench(album))
    shell.controls["saliency"].value = "no map"
    (left, top, right, bottom), (height, width) = shell.drawn.target.box, shell.drawn.page.shape[:2]

    def at(x, y):
        return (left + x * (right - left)) / width, (top + y * (bottom - top)) / height

    bare = shell.picture.value
    shell.picture.stroke = [1.0, *at(0.3, 0.5)]
    shell.picture.stroke = [1.0, *at(0.3, 0.5), *at(0.6, 0.5)]  # goes on
    shell.controls["paint"].value = 0
    shell.picture.stroke = [2.0, *at(0.4, 0.5)]  # another
    shell.picture.stroke = [3.0, 0.01, 0.01]  # begins elsewhere
    first, second = shell.controls["brush"].value
    assert len(first.points) == 2 and first.paint == 255 and second.paint == 0
    assert shell.drawn.page.shape == (height, width, 3) and shell.picture.value != bare
    shell.controls["brush"].click()
    assert shell.controls["brush"].value == () and shell.picture.value == bare
    shell.picture.stroke = [4.0, *at(0.5, 0.5)]
    shell.controls["picture"].value = list(album.samples)[1]
    assert shell.controls["brush"].value == ()


@pytest.mark.parametrize("size", [0.01, 8, 200])
@pytest.mark.parametrize("points", [((0.5, 0.5),), ((-3.0, 0.5), (4.0, 0.5)), ((0.2, 0.2),) * 5])
def test_a_stroke_fits_any_map(points, size):
    painted = brushed(None, [Stroke(points, size, 200)], (30, 50))
    assert painted.shape == (30, 50) and set(painted.unique().tolist()) <= {0, 200} and painted.any()
    assert brushed(None, [], (30, 50)) is None


def test_a_rule_that_reads_no_saliency_says_so(album):
    figure = workbench(album)
    bare = dict(background="constant", uncertain="off")
    assert "reads no saliency" in figure.drawn(**bare).text and "reads no saliency" not in figure.drawn().text
    assert len({figure.drawn(**bare, saliency=how).text for how in ("none", "no map", "blurred")}) == 1


def test_the_crf_starts_from_what_it_is_given(album):
    image = next(iter(album.samples.values())).image
    sure = np.eye(len(album.names), dtype=np.float32)[np.zeros(image.shape[1:], int)].transpose(2, 0, 1)
    figure = crf_figure(album, {"nothing": lambda picture: torch.from_numpy(sure)})
    assert figure.drawn(start="nothing").text.startswith("0.0 % of the pixels")
    assert figure.follow["preset"]("psa")["bilateral_srgb"] == 13
    assert figure.drawn(iterations=0).text.startswith("0.0 % of the pixels")


def test_every_pixel_falls_into_one_cell(album):
    for make in rule_labels(album).values():
        for name, sample in album.samples.items():
            counts = fallen(make(name), sample.mask, len(album.names))
            assert counts.sum() == (sample.mask != 255).sum()


def test_a_cell_leads_to_its_pictures(album):
    shell = widget(confusion_figure(album))
    (_, top, right, _), (height, width) = shell.drawn.target.box, shell.drawn.page.shape[:2]
    shell.picture.clicked = [(right - 3) / width, (top + 3) / height]
    assert shell.controls["truth"].value == "background" and shell.controls["called"].value == "ignored"
    shell.controls["maker"].value = "trivial"
    assert "0.0 % of the pixels of background are ignored, in 0 of" in shell.words.value


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    from wegformer.classifier import create_classifier
    from wegformer.config import override, preset
    from wegformer.data import VOCDataset
    from wegformer.toyvoc import make_toy_voc

    root = make_toy_voc(train=8, val=4)
    config = override(preset("toy"), {"classifier.steps": 3, "classifier.batch_size": 4})
    train, val = VOCDataset(root, "train"), VOCDataset(root, "val")
    model = create_classifier(config.classifier.model, train.num_classes, pretrained=True)
    out = record_training(model, config.classifier, train, val, tmp_path_factory.mktemp("run"), keep=2)
    return read_recording(out), voc_album(model, root, config.attention, count=2), out


def test_a_training_is_played_back(recording):
    found, album, _ = recording
    assert found.steps == [0, 1, 2, 3] and found.curves["mAP"][0] == [0, 1, 2, 3]
    figure = replay_figure(album, found)
    pages = {png(figure.drawn(at=at).page) for at in range(4)}
    assert len(pages) == 4 and all(f"Step {at} of 3" in figure.drawn(at=at).text for at in range(4))
    title, sample = next(iter(album.samples.items()))
    assert f"{float(album.logits(title)[sample.classes[0] - 1]):.1f}" in figure.drawn(at=3).text


def test_a_run_without_weights_has_curves(recording, tmp_path):
    _, _, out = recording
    (tmp_path / "history.json").write_text((out / "history.json").read_text())
    found = read_recording(tmp_path)
    assert not found.weights and found.steps == [0, 1, 2, 3]
    figure = replay_figure(None, found)
    assert list(figure.knobs) == ["at"] and png(figure.drawn(at=1).page) != png(figure.drawn(at=3).page)
    with pytest.raises(InputError, match="has no history.json"):
        read_recording(tmp_path / "nowhere")


@pytest.mark.parametrize("make", [m for m in OF_ALBUM if m not in NEEDS_MASKS], ids=lambda f: f.__name__)
def test_an_uploaded_picture_is_one_more_to_choose(make, album):
    shell = widget(make(album))
    before = shell.picture.value
    send(shell, "mine.jpg", file_of(Image.effect_noise((90, 70), 60).convert("RGB"), "JPEG"))
    assert shell.controls["picture"].value == "mine.jpg" and shell.picture.value != before
    again = shell.picture.value
    send(shell, "mine.jpg", file_of(Image.effect_noise((70, 90), 60).convert("RGB"), "JPEG"))
    assert shell.controls["picture"].value == "mine.jpg" and shell.picture.value != again
    del album.samples["mine.jpg"]


TURNED = Image.Exif()
TURNED[0x0112] = 6


@pytest.mark.parametrize(
    "name, data, size",
    [
        ("large.jpg", file_of(Image.new("RGB", (6000, 4000), "teal"), "JPEG"), (256, 384)),
        ("grey.png", file_of(Image.new("L", (64, 48), 80)), (48, 64)),
        ("opaque.png", file_of(Image.new("RGBA", (64, 48), (9, 9, 9, 255))), (48, 64)),
        ("dot.png", file_of(Image.new("RGB", (1, 1))), (1, 1)),
        ("turned.jpg", file_of(Image.new("RGB", (64, 48)), "JPEG", exif=TURNED), (64, 48)),
        ("../../etc/name.png", file_of(Image.new("RGB", (20, 20))), (20, 20)),
    ],
)
def test_uploads_that_are_read(name, data, size, album):
    assert tuple(read_upload(name, data).shape[1:]) == size
    shell = widget(workbench(album))
    send(shell, name, data)
    assert shell.picture.value and "#b00020" not in shell.words.value
    del album.samples[shell.controls["picture"].value]


@pytest.mark.parametrize(
    "name, data, words",
    [
        ("notes.txt", b"a shopping list", "Image notes.txt cannot be read as a picture"),
        ("empty.png", b"", "Image empty.png is empty"),
        ("clear.png", file_of(Image.new("RGBA", (64, 48), (9, 9, 9, 128))), "Image clear.png has transparent pixels"),
        ("line.png", file_of(Image.new("RGB", (3000, 2))), "Image line.png is 3000x2 pixels"),
        ("half.jpg", file_of(Image.effect_noise((400, 300), 80), "JPEG")[:2000], "Image half.jpg cannot be read"),
    ],
)
def test_uploads_that_are_refused_in_one_sentence(name, data, words, album):
    shell = widget(workbench(album))
    before = shell.picture.value
    said = send(shell, name, data)
    assert words in said and "#b00020" in said and "/tmp" not in said
    assert shell.picture.value == before and name not in album.samples


def test_an_album_of_a_folder(toy_root):
    from wegformer.classifier import create_classifier
    from wegformer.config import preset

    model = create_classifier("vit_toy_patch8_96", 9, pretrained=True)
    album = voc_album(model, toy_root, preset("toy").attention, count=2, saliency="worse")
    assert len(album.samples) == 2 and album.names[0] == "background"
    assert workbench(album).drawn().page.shape[1] == 4 * PANEL + 60


def test_a_picture_without_saliency_and_mask(album):
    image = next(iter(album.samples.values())).image
    album.samples["bare"] = Sample(image, (1, 2))
    for make in OF_ALBUM:
        if make not in NEEDS_MASKS:
            assert make(album).drawn(picture="bare").page.size
    del album.samples["bare"]


def test_an_unknown_knob_is_refused(album):
    figure = LiveFigure("square", lambda size: None, {"size": Slider("size", 1, 0, 2, 1)})
    with pytest.raises(InputError, match="square has no knob 'colour'; expected one of: size"):
        figure.drawn(colour=1)


@pytest.mark.parametrize("value", [0.0, -1.0, 1e-9, 1e9, float("nan")])
def test_charts_take_any_number(value):
    assert bars({"a": value, "b": 1.0}).shape[1] == PANEL
    assert bars({"a": value}).shape[1] == PANEL
    assert plot({"a": ([0, 1], [value, 1.0])}).shape[1] == PANEL


def test_pages_grow_by_their_parts():
    square = panel(np.zeros((3, 5, 3), np.uint8), "a title", 300)
    assert square.shape == (330, 300, 3)
    assert beside(square, text_block("words " * 10, 200)).shape[:2] == (330, 520)
    assert below(square, square).shape[:2] == (680, 300)
