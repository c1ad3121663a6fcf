import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from torch import nn

from browser import chromium, open_page
from photos import make_photos
from vision.prediction.gallery import THUMBNAIL_SIZE, make_thumbnail, write_page
from vision.prediction.predictions import Prediction
from vision.prediction.predictor import ModelSource, Predictor

HOSTILE = "<img src=x onerror=alert(1)>"
CLASSES = ["cat", HOSTILE, "</script><script>alert(2)</script>", "never"]
PREDICTOR = Predictor(
    nn.Identity(), CLASSES, (32, 32), ModelSource("models:/pets/3", "pets", "3"), torch.device("cpu"), torch.float32
)


def rows_in(folder: Path, count: int) -> list[Prediction]:
    """Predictions of images; one has a name that is markup, and one is not there any more."""
    names = [f"{number}.png" for number in range(count)]
    names[1] = f"{HOSTILE.replace('/', '')}.png"
    rows = [
        Prediction(str(folder / name), CLASSES[number % 3], number / count, unknown=False)
        for number, name in enumerate(names)
    ]
    for number, row in enumerate(rows):
        Image.new("RGB", (40, 30), (number % 256, 0, 0)).save(row.image)
    Path(rows[2].image).unlink()
    return rows


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    write_page(folder / "page.html", rows_in(folder, 450), PREDICTOR)
    return folder / "page.html"


def read_data(page: Path) -> dict[str, list[list[object]]]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.S)
    assert found
    return json.loads(found[1])


def test_the_page_has_all_images_and_nothing_from_elsewhere(page: Path) -> None:
    text = page.read_text()
    assert "450 images, classified by <strong>pets version 3</strong>" in " ".join(text.split())
    assert "evenly spaced" not in text
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|@import|https?:", text)
    data = read_data(page)
    assert data["classes"] == [*CLASSES, "unknown"]
    assert len(data["images"]) == 450
    assert data["images"][2][3] == ""
    assert "never" not in re.sub(r"<script.*?</script>", "", text, flags=re.S)


def test_of_many_images_the_page_shows_evenly_spaced_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vision.prediction.gallery.MAX_IMAGES", 5)
    rows = rows_in(tmp_path, 41)
    write_page(tmp_path / "page.html", rows, PREDICTOR)
    assert "The page shows 5 of the images, evenly spaced" in (tmp_path / "page.html").read_text()
    assert [image[0] for image in read_data(tmp_path / "page.html")["images"]] == [
        rows[index].image for index in (0, 10, 20, 30, 40)
    ]


def test_unknown_images_are_a_class_of_their_own(tmp_path: Path) -> None:
    rows = rows_in(tmp_path, 6)
    rows[4] = rows[4]._replace(unknown=True)
    write_page(tmp_path / "page.html", rows, PREDICTOR)
    data = read_data(tmp_path / "page.html")
    assert [data["classes"][image[1]] for image in data["images"]] == [*CLASSES[:3], CLASSES[0], "unknown", CLASSES[2]]  # type: ignore[call-overload]
    assert "unknown<small>1</small>" in (tmp_path / "page.html").read_text()


def test_a_page_without_images(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", [], PREDICTOR)
    assert read_data(tmp_path / "page.html")["images"] == []


def test_thumbnails_are_small_squares_turned_as_the_exif_data_says(tmp_path: Path) -> None:
    for kind, path in make_photos(tmp_path).items():
        image = Image.open(io.BytesIO(base64.b64decode(make_thumbnail(str(path))))).convert("L")
        assert (image.format, image.size) == (None, (40, 40)), kind
        assert image.getpixel((20, 8)) > 150 > 80 > image.getpixel((20, 32)), kind  # type: ignore[operator]
    Image.new("RGB", (3000, 2000), "red").save(tmp_path / "large.jpg")
    content = base64.b64decode(make_thumbnail(str(tmp_path / "large.jpg")))
    assert Image.open(io.BytesIO(content)).size == (THUMBNAIL_SIZE, THUMBNAIL_SIZE)
    assert len(content) < 2000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def window(browser: Browser, page: Path) -> Iterator[Page]:
    window, problems = open_page(browser, page, viewport={"width": 390, "height": 844})
    yield window
    assert problems == []
    window.close()


def captions(window: Page, count: int, part: str) -> list[str]:
    return window.locator(f".tile {part}").all_text_contents()[:count]


def test_names_are_text_and_the_page_fits_a_phone(window: Page) -> None:
    assert window.locator("#shown").text_content() == "450 images"
    assert captions(window, 3, "strong") == [CLASSES[1], CLASSES[0], CLASSES[2]]
    assert captions(window, 3, ".name") == [f"{HOSTILE}.png", "0.png", "2.png"]
    assert window.locator(".chip").all_text_contents()[1:] == [f"{name}150" for name in CLASSES[:3]]
    assert window.evaluate("document.documentElement.scrollWidth") <= 390


def test_images_are_sorted(window: Page) -> None:
    numbers = [str(number) for number in range(450)]
    assert captions(window, 12, ".name")[1:] == ["0.png", *(f"{number}.png" for number in range(2, 12))]
    window.select_option("#sorting", "highest")
    assert captions(window, 3, ".name") == [f"{number}.png" for number in numbers[:-4:-1]]
    assert captions(window, 1, ".percent") == ["99.8%"]
    window.select_option("#sorting", "lowest")
    assert captions(window, 1, ".name") == ["0.png"]
    window.select_option("#sorting", "class")
    assert set(captions(window, 150, "strong")) == {"cat"}
    assert captions(window, 2, ".name") == ["447.png", "444.png"]


def test_a_class_is_selected(window: Page) -> None:
    window.locator(".chip").nth(2).click()
    assert window.locator("#shown").text_content() == "150 images"
    assert set(captions(window, 450, "strong")) == {HOSTILE}
    window.locator(".chip").first.click()
    assert window.locator("#shown").text_content() == "450 images"


def test_tiles_are_added_while_the_reader_scrolls(window: Page) -> None:
    assert window.locator(".tile").count() == 200
    window.evaluate("scrollTo(0, document.body.scrollHeight)")
    expect(window.locator(".tile")).to_have_count(400)
    window.evaluate("scrollTo(0, document.body.scrollHeight)")
    expect(window.locator(".tile")).to_have_count(450)
    assert window.locator("#more").is_hidden()


def test_thumbnails_are_shown(window: Page) -> None:
    window.locator(".tile img").first.evaluate("image => image.decode()")
    assert window.evaluate("document.querySelector('.tile img').naturalWidth") == 30
    assert window.evaluate("getComputedStyle(document.querySelector('.tile img')).imageRendering") == "pixelated"
