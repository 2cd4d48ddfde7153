"""The page, in a real browser: what is painted and found, what leaves the machine, who sees what.

Needs gradio, playwright and Debian's chromium; skipped where one of them is missing.
"""

import io
import shutil
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffews.images.weak import Box, Scribble
from diffews.tools.session import MARKED, Look, Session, read_paint

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium")
browser = pytest.mark.browser
WAIT = 120_000  # milliseconds, on busy cores


# ---- what needs no browser ----


def layer(size, *rectangle):
    """A layer of RGBA with paint in (x0, y0, x1, y1)."""
    width, height = size
    pixels = np.zeros((height, width, 4), np.uint8)
    x0, y0, x1, y1 = rectangle
    pixels[y0:y1, x0:x1] = 220, 50, 47, 255
    return pixels


def test_paint_is_a_mask_strokes_or_a_frame_at_the_photos_own_size():
    layers, size = [layer((80, 60), 10, 20, 30, 40)], (80, 60)
    mask = read_paint(layers, MARKED[0], size)
    assert mask.shape == (60, 80) and mask.sum() == 20 * 20 and mask[20:40, 10:30].all()
    assert np.array_equal(read_paint(layers, MARKED[1], size).paint, mask > 0)
    assert isinstance(read_paint(layers, MARKED[1], size), Scribble)
    assert read_paint(layers, MARKED[2], size) == Box((10, 20, 30, 40), "the frame")

    # an editor that works at half the size, and an empty one
    assert read_paint(layers, MARKED[0], (160, 120))[40:80, 20:60].all()
    with pytest.raises(ValueError, match="nothing is painted"):
        read_paint([layer(size, 0, 0, 0, 0)], MARKED[0], size)


@pytest.fixture(scope="module")
def pictures(picture, tmp_path_factory):
    """Three supports or queries of their own sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    sizes = {"one": (80, 60), "two": (64, 64), "three": (50, 70)}
    for seed, (name, size) in enumerate(sizes.items()):
        picture(seed, *size).save(folder / f"{name}.png")
    return {name: folder / f"{name}.png" for name in sizes}


def test_a_session_finds_what_the_pipeline_finds_at_every_threshold(pipe, pictures, tmp_path):
    mask = np.zeros((60, 80), np.uint8)
    mask[10:40, 20:60] = 1
    session, queries = Session(tmp_path), [pictures["two"], pictures["three"]]
    session.add(pictures["one"], mask)
    found = list(session.find(pipe, 64, queries))
    bank = pipe.encode_support(Image.open(pictures["one"]), mask)
    for threshold in (0.25, 0.6):
        wanted = pipe([Image.open(file) for file in queries], bank, threshold=threshold).masks
        for result, mine in zip(found, wanted, strict=True):
            assert np.array_equal(session.labels(result, Look(threshold)) > 0, mine)

    # a second class makes label maps, and a result one more support
    session.add(pictures["two"], Box((5, 5, 40, 40)), "owl")
    list(session.find(pipe, 64, queries))
    banks = [bank, pipe.encode_support(Image.open(pictures["two"]), boxes=(5, 5, 40, 40))]
    maps = pipe.label([Image.open(file) for file in queries], banks)
    for result, labels in zip(session.results, maps, strict=True):
        assert np.array_equal(session.labels(result, Look(0.25)), labels)
    names = session.add_result(0, Look(0.25))
    assert len(session.supports) == 2 + len(names.split(", "))

    with zipfile.ZipFile(session.pack(Look(0.25), ["coco", "yolo"])) as archive:
        names = archive.namelist()
        labels = Image.open(io.BytesIO(archive.read("two_labels.png")))
    assert np.array_equal(np.asarray(labels), maps[0])
    assert {"labels.json", "annotations.coco.json", "data.yaml", "three_overlay.jpg"} <= set(names)


def test_without_gradio_one_line_names_the_extra(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "diffews[app]" in refused("app")


@pytest.mark.parametrize("word", ["port=80", "port=70000", "folder=none", "weight=none"])
def test_what_cannot_be_served_is_refused(refused, word):
    assert word in refused("app", word)


# ---- in a browser ----


@pytest.fixture(scope="module")
def server(pictures, tmp_path_factory):
    """The page of the shipped weights in a process of its own -> its address."""
    pytest.importorskip("gradio", reason="the page needs gradio: pip install 'diffews[app]'")
    pytest.importorskip("playwright", reason="the browser is driven by playwright")
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    log = tmp_path_factory.mktemp("server") / "log"
    port = 7800 + time.time_ns() % 150
    words = ["app", f"port={port}", "threads=1", f"folder={pictures['one'].parent}"]
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "diffews", *words], cwd=ROOT, stdout=file, stderr=file
        )
    address = f"http://127.0.0.1:{port}"
    for _ in range(600):
        if address in log.read_text():
            break
        assert process.poll() is None, log.read_text()
        time.sleep(1)
    yield address
    process.terminate()
    assert process.wait(300) == 143
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def chromium():
    sync = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
    with sync.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture
def visit(server, chromium):
    """visit(): a new visitor's page; at the end no request has left the machine."""
    contexts, requests = [], []

    def call():
        context = chromium.new_context(viewport={"width": 1300, "height": 1250})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("request", lambda request: requests.append(request.url))
        page.goto(server)
        page.wait_for_selector("#add")
        return page

    yield call
    for context in contexts:
        context.close()
    local = (server, server.replace("http", "ws"), "data:", "blob:")
    assert requests and [url for url in requests if not url.startswith(local)] == []


def give(page, place, *files):
    page.set_input_files(f"#{place} input[type=file]", list(map(str, files)))


def wait_for(page, place, text):
    page.wait_for_function(f"document.querySelector('#{place}').innerText.includes('{text}')")


def paint(page, file, name, dx=0):
    """Gives a photo, paints a stroke in its middle with the mouse, and adds it."""
    give(page, "photo", file)
    page.wait_for_selector(f"#photo >> text={file.stem}")
    page.wait_for_timeout(3000)  # the editor lays the photo out
    box = page.query_selector("#editor canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2 + dx, box["y"] + box["height"] / 2
    page.mouse.move(x - 40, y)
    page.mouse.down()
    for step in range(20):
        page.mouse.move(x - 40 + 4 * step, y + 10 * (step % 3))
    page.mouse.up()
    page.wait_for_timeout(1000)
    page.fill("#name textarea, #name input", name)
    page.click("#add")
    wait_for(page, "supports", f"1 of {name}")


def download(page, tmp_path):
    """Makes the zip -> its files."""
    page.click("#pack")
    href = page.wait_for_selector("#zip a[href]").get_attribute("href")
    with urllib.request.urlopen(href) as answer, zipfile.ZipFile(io.BytesIO(answer.read())) as z:
        z.extractall(tmp_path)
        return set(z.namelist())


@browser
def test_what_the_page_finds_is_what_segment_finds(visit, run, pictures, tmp_path):
    page = visit()
    page.click("#folder input")  # the uploads alone
    mask = np.zeros((60, 80), np.uint8)
    mask[10:40, 20:60] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    give(page, "photo", pictures["one"])
    page.wait_for_selector("#photo >> text=one")
    give(page, "mask", tmp_path / "mask.png")
    page.wait_for_selector("#mask >> text=mask.png")
    page.click("#add")
    wait_for(page, "supports", "1 of object")

    give(page, "queries", pictures["two"], pictures["three"])
    page.wait_for_selector("#queries >> text=three")
    page.click("#find")
    wait_for(page, "status", "2 of 2")
    names = download(page, tmp_path / "page")
    assert {"two_mask.png", "three_mask.png", "two_overlay.jpg"} <= names

    words = f"segment support={pictures['one']} mask={tmp_path / 'mask.png'} threads=1"
    query = f"query={pictures['two']},{pictures['three']}"
    assert run(*words.split(), query, f"out={tmp_path / 'out'}").code == 0
    for name in ("two_mask.png", "three_mask.png"):
        ours, theirs = (
            np.asarray(Image.open(tmp_path / place / name)) for place in ("page", "out")
        )
        assert ours.tobytes() == theirs.tobytes() and ours.shape == theirs.shape


@browser
def test_two_classes_are_painted_and_the_slider_moves(visit, pictures, tmp_path):
    page = visit()
    paint(page, pictures["one"], "owl")
    paint(page, pictures["two"], "newt", dx=20)
    page.click("#find")  # the server's folder
    wait_for(page, "status", "3 of 3")
    assert page.locator("#results img").count() == 3
    before = [image.get_attribute("src") for image in page.locator("#results img").all()]
    names = download(page, tmp_path / "before")
    assert {"one_labels.png", "two_labels.png", "three_labels.png", "labels.json"} <= names

    slider = page.locator("#threshold input[type=range]")
    slider.focus()
    for _ in range(30):
        page.keyboard.press("ArrowRight")
    slider.dispatch_event("pointerup")
    page.wait_for_function(
        "old => document.querySelector('#results img').getAttribute('src') !== old", arg=before[0]
    )
    page.click("#results img >> nth=0")
    page.wait_for_selector("text=one more support")


@browser
def test_two_visitors_do_not_see_each_others_pictures(visit, pictures):
    first, second = visit(), visit()
    paint(first, pictures["one"], "owl")
    assert "no support yet" in second.inner_text("#supports")
    second.click("#find")
    second.wait_for_selector("text=paint the object")
    assert second.locator("#results img").count() == 0


def huge_png(side):
    """A PNG of side x side black pixels, in few bytes."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    squeeze = zlib.compressobj(9)
    row = bytes(1 + side)
    data = b"".join(squeeze.compress(row) for _ in range(side)) + squeeze.flush()
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", data), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@browser
def test_what_is_no_picture_or_too_large_is_a_message_and_the_page_lives(visit, pictures, tmp_path):
    page = visit()
    (tmp_path / "words.png").write_text("these are words")
    give(page, "photo", tmp_path / "words.png")
    page.wait_for_selector("text=no picture that can be read")

    (tmp_path / "huge.png").write_bytes(huge_png(20_000))
    page = visit()
    give(page, "photo", tmp_path / "huge.png")
    page.wait_for_selector("text=cannot be decoded")

    (tmp_path / "long.png").write_bytes(bytes(60 * 2**20))
    page = visit()
    give(page, "photo", tmp_path / "long.png")
    page.wait_for_selector("text=exceed")
    page = visit()
    paint(page, pictures["one"], "owl")


@browser
def test_nothing_but_uploads_is_served(server):
    for path in ("/etc/passwd", str(ROOT / "README.md"), "../../etc/passwd"):
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(f"{server}/gradio_api/file={path}")
        assert refusal.value.code in (403, 404)
