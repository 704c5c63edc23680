"""The page in a real browser, served by the real command."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from models import SMALL, tiny_model

from SDMatte import MattePredictor
from SDMatte.images.io import read_alpha, read_image, write_image
from SDMatte.samples.photos import real_photographs

pytest.importorskip("gradio", reason="gradio is not installed: python tools/install_demo.py")
sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: python tools/install_demo.py"
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = [
    pytest.mark.slow,  # together, they take about a minute
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
]
OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
OPTIONS += ["--disable-component-update", "--disable-sync", "--no-first-run"]
# A folder for the screenshots of docs/demo.md, of the small model that is shipped.
SCREENSHOTS = os.environ.get("SDMATTE_SCREENSHOTS")
BOX = (0.2, 0.1, 0.8, 0.9)


class Server:
    """The command in a process; ``folder`` is where Gradio writes."""

    def __init__(self, tmp_path, *arguments):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}/"
        self.temporary = tmp_path / "temporary"
        self.temporary.mkdir()
        self.log = tmp_path / "log"
        command = [sys.executable, "-m", "SDMatte", "demo", "--port", str(port), *arguments]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, "TMPDIR": str(self.temporary)}
            )
        try:
            wait(lambda: "The page is at" in self.log.read_text() or self.process.poll(), 240)
            assert self.process.poll() is None, self.log.read_text()
        except BaseException:
            self.process.kill()
            raise

    def files(self):
        # Unlike Path.rglob, os.walk passes over folders that are removed meanwhile.
        return [
            Path(folder, name) for folder, _, names in os.walk(self.temporary) for name in names
        ]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(120) == 0, self.log.read_text()
        assert not list(self.temporary.iterdir())
        assert "Traceback" not in self.log.read_text()


class Visitor:
    """A visitor with a browser window of their own."""

    def __init__(self, browser, address):
        self.context = browser.new_context(
            viewport={"width": 1280, "height": 860}, accept_downloads=True
        )
        self.context.set_default_timeout(60_000)
        self.page = self.context.new_page()
        self.requests, self.errors = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(error))
        self.page.goto(address)
        self.canvas = self.page.locator("#stage canvas")
        self.canvas.wait_for(state="attached")
        self.page.wait_for_timeout(500)  # for the scripts of the components

    def leave(self):
        self.context.close()

    def open(self, path):
        before = self.canvas.evaluate("canvas => canvas.toDataURL()")
        self.page.set_input_files("#stage input[type=file]", path)
        self.page.wait_for_function(
            "before => document.querySelector('.opened canvas') && "
            "document.querySelector('#stage canvas').toDataURL() !== before",
            arg=before,
        )

    def tool(self, name):
        self.page.click(f"#stage [data-tool={name}]")

    def drag(self, x0, y0, x1, y1):
        """Drag between fractions of the canvas; return the pixels of the image, 600 x 400."""
        area = self.canvas.bounding_box()
        origin, size = (np.array([area[k] for k in keys]) for keys in ("xy", ("width", "height")))
        ends = [np.round(origin + np.array(end) * size) for end in ((x0, y0), (x1, y1))]
        self.page.mouse.move(*ends[0])
        self.page.mouse.down()
        self.page.mouse.move(*ends[1], steps=5)
        self.page.mouse.up()
        return [int(n) for end in ends for n in np.floor((end - origin) / size * (600, 400))]

    def click(self, x, y):
        return self.drag(x, y, x, y)[:2]

    def matte(self):
        """Press the button and wait for the new matte."""
        shown = self.after()
        self.page.click("#matte")
        self.changed(shown)

    def changed(self, before):
        """Wait until the result is another one."""
        self.page.wait_for_function(
            "before => { const all = document.querySelectorAll('#result img');"
            " return all.length > 1 && all[all.length - 1].src !== before; }",
            arg=before,
        )

    def after(self):
        images = self.page.locator("#result img")
        return images.last.get_attribute("src") if images.count() else None

    def undo(self):
        shown = self.after()
        self.page.click("#stage [data-do=undo]")
        self.changed(shown)

    def choose(self, label):
        self.page.click("#downloads input")
        self.page.get_by_role("option", name=label, exact=True).click()

    def download(self, label="Matte, 16 bits"):
        self.choose(label)
        with self.page.expect_download() as download:
            self.page.click("#save")
        return Path(download.value.path()), download.value.suggested_filename

    def alpha(self):
        path, _ = self.download()
        return read_alpha(path)

    def toast(self):
        text = self.page.locator(".toast-body").last
        text.wait_for()
        return text.inner_text()


def wait(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_model(aux_input=None).save_pretrained(folder, inference={"resolution": 64})
    return folder


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "other"
    tiny_model(seed=1, aux_input=None).save_pretrained(folder, inference={"resolution": 128})
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory, model, other_model):
    arguments = ["--model", str(model), "--more-models", str(other_model), "--device", "cpu"]
    arguments += ["--max-upload", "20", "--max-pixels", "13e6"]
    server = Server(tmp_path_factory.mktemp("server"), *arguments)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def visitor(browser, server):
    visitor = Visitor(browser, server.address)
    yield visitor
    visitor.leave()
    wait(lambda: not server.files())
    # Nothing is fetched from elsewhere, and no script fails.
    assert all(url.startswith((server.address, "data:", "blob:")) for url in visitor.requests)
    assert not visitor.errors


@pytest.fixture(scope="module")
def photo():
    """Path and pixels of a photograph, 600 wide and 400 high."""
    path = next(photo.path for photo in real_photographs() if photo.name == "coffee")
    return path, read_image(path)


@pytest.fixture(scope="module")
def expected(model, photo):
    predictor = MattePredictor.from_pretrained(model, device="cpu")
    image = predictor.encode(photo[1])
    return lambda **prompt: predictor.predict(**prompt, image=image).alpha


def close(one, other):
    return one.shape == other.shape and np.abs(one - other).max() < 2e-3


def test_box_points_and_mask_give_the_predictors_mattes(visitor, photo, expected):
    visitor.open(photo[0])
    visitor.tool("box")
    box = visitor.drag(*BOX)
    visitor.matte()
    assert close(visitor.alpha(), expected(box=box))
    visitor.tool("points")
    points = [visitor.click(x, 0.5) for x in (0.4, 0.6)]
    visitor.matte()
    assert close(visitor.alpha(), expected(points=points))
    visitor.page.get_by_label("Transparent object").check()
    visitor.matte()  # the same points again
    assert close(visitor.alpha(), expected(points=points, transparent=True))
    assert not close(expected(points=points, transparent=True), expected(points=points))


def test_a_box_drawn_during_a_computation_stays(visitor, photo, expected):
    visitor.open(photo[0])
    visitor.tool("box")
    visitor.drag(*BOX)
    shown = visitor.after()
    visitor.page.click("#matte")
    box = visitor.drag(0.5, 0.5, 0.9, 0.9)
    visitor.changed(shown)
    visitor.page.wait_for_timeout(500)
    visitor.matte()
    assert close(visitor.alpha(), expected(box=box))


def test_one_image_opened_twice_at_once(browser, visitor, server, photo):
    other = Visitor(browser, server.address)
    try:
        for one in (visitor, other):
            one.page.set_input_files("#stage input[type=file]", photo[0])
        for one in (visitor, other):
            one.page.wait_for_selector(".opened canvas")
    finally:
        other.leave()


def test_another_model_can_be_chosen(visitor, photo, expected, other_model):
    visitor.open(photo[0])
    visitor.tool("box")
    box = visitor.drag(*BOX)
    visitor.matte()
    visitor.page.get_by_label("Model").click()
    visitor.page.get_by_role("option", name="other", exact=True).click()
    visitor.page.wait_for_function(
        "() => [...document.querySelectorAll('input')].some(i => i.value === '128')"
    )
    visitor.matte()
    predictor = MattePredictor.from_pretrained(other_model, device="cpu")
    alpha = predictor.predict(box=box, image=predictor.encode(photo[1])).alpha
    assert close(visitor.alpha(), alpha) and not close(alpha, expected(box=box))


def test_paint_add_remove_and_undo(visitor, photo):
    visitor.open(photo[0])
    assert not visitor.page.is_visible("[data-tool=remove]")
    visitor.tool("paint")
    visitor.drag(0.3, 0.4, 0.7, 0.6)
    visitor.matte()
    painted = visitor.alpha()
    assert visitor.page.inner_text("[data-tool=paint]") == "Add"
    visitor.drag(0.1, 0.9, 0.9, 0.9)
    visitor.matte()
    added = visitor.alpha()
    visitor.tool("remove")
    visitor.drag(0.1, 0.5, 0.9, 0.5)
    visitor.matte()
    removed = visitor.alpha()
    assert not close(added, painted) and not close(removed, added)
    visitor.drag(0.1, 0.2, 0.9, 0.2)
    visitor.undo()  # the stroke
    assert close(visitor.alpha(), removed)
    visitor.undo()  # the mattes
    assert close(visitor.alpha(), added)
    visitor.undo()
    assert close(visitor.alpha(), painted)


def test_views_and_downloads(visitor, photo, server):
    visitor.open(photo[0])
    visitor.drag(*BOX)
    visitor.matte()
    assert visitor.page.locator("#result img").count() == 2  # before and after
    for view in ("Color", "Image", "Matte"):
        shown = visitor.after()
        visitor.page.get_by_label(view, exact=True).last.check()
        visitor.changed(shown)
        assert visitor.page.is_visible("#background") == (view == "Image")
        if view == "Image":
            shown = visitor.after()
            visitor.page.set_input_files("#background input", photo[0])
            visitor.changed(shown)
    for label, kind, bits in (
        ("Cutout (RGBA), 8 bits", "cutout", 8),
        ("Cutout (RGBA), 16 bits", "cutout", 16),
        ("Matte, 8 bits", "matte", 8),
        ("Matte, 16 bits", "matte", 16),
    ):
        path, name = visitor.download(label)
        assert name == f"coffee_{kind}.png"
        header = path.read_bytes()[16:26]
        assert [int.from_bytes(header[i : i + 4], "big") for i in (0, 4)] == [600, 400]
        assert header[8:] == bytes([bits, 6 if kind == "cutout" else 0])
    assert server.files()


def test_wrong_files_are_sentences(visitor, photo, tmp_path):
    text = tmp_path / "notes.png"
    text.write_text("no image")
    visitor.page.set_input_files("#stage input[type=file]", text)
    assert "Cannot read notes.png: it is not an image" in visitor.toast()
    large = write_image(tmp_path / "large.png", np.zeros((4000, 3300), np.uint8))
    visitor.page.set_input_files("#stage input[type=file]", large)
    visitor.page.get_by_text(
        "large.png has 13.2 megapixels; the limit of this page is 13"
    ).wait_for()
    heavy = tmp_path / "heavy.png"
    heavy.write_bytes(bytes(21_000_000))
    visitor.page.set_input_files("#stage input[type=file]", heavy)
    visitor.page.get_by_text("heavy.png was not uploaded; the limit is 20 MB per file").wait_for()
    visitor.page.click("#matte")
    visitor.page.get_by_text("No image is open").wait_for()
    visitor.open(photo[0])  # the page still works
    visitor.tool("points")
    for i in range(11):
        visitor.click(0.1 + 0.05 * i, 0.5)
    visitor.page.click("#matte")
    visitor.page.get_by_text("Points are 1 to 10 pairs of numbers").wait_for()
    assert "Traceback" not in visitor.page.content()


def test_two_visitors_at_once(browser, visitor, server, photo, expected):
    other = Visitor(browser, server.address)
    try:
        for one in (visitor, other):
            one.open(photo[0])
        shown = [one.after() for one in (visitor, other)]
        boxes = [visitor.drag(*BOX), other.drag(0.5, 0.5, 0.9, 0.9)]
        for one in (visitor, other):
            one.page.click("#matte")
        for one, before, box in zip((visitor, other), shown, boxes, strict=True):
            one.changed(before)
            assert close(one.alpha(), expected(box=box))
        folders = {path.parents[1] for path in server.files()}
        assert len(folders) == 2
    finally:
        other.leave()
    wait(lambda: len({path.parents[1] for path in server.files()}) == 1)
    assert close(visitor.alpha(), expected(box=boxes[0]))  # not affected


def test_twelve_megapixels(visitor, photo, tmp_path):
    large = np.asarray(
        np.kron(photo[1][:300, :400], np.ones((10, 10, 1), np.uint8))
    )  # [3000, 4000, 3]
    visitor.open(write_image(tmp_path / "large.jpg", large))
    size = visitor.canvas.evaluate("canvas => [canvas.width, canvas.height]")
    assert size == [1024, 768]
    visitor.drag(*BOX)
    visitor.matte()
    path, _ = visitor.download("Cutout (RGBA), 8 bits")
    assert read_image(path).shape == (3000, 4000, 3)


@pytest.mark.skipif(not SCREENSHOTS, reason="SDMATTE_SCREENSHOTS names no folder")
def test_screenshots(browser, tmp_path):
    server = Server(tmp_path, "--model", str(SMALL))
    visitor = Visitor(browser, server.address)
    visitor.page.click("#stage [title=coffee]")
    visitor.page.wait_for_selector(".opened canvas")
    visitor.drag(0.12, 0.03, 0.81, 0.97)
    visitor.matte()
    visitor.page.wait_for_timeout(1500)  # for the slider to fade in
    visitor.page.screenshot(path=Path(SCREENSHOTS, "demo_box.jpg"), type="jpeg", quality=80)
    visitor.tool("paint")
    visitor.drag(0.3, 0.75, 0.6, 0.85)
    visitor.page.screenshot(path=Path(SCREENSHOTS, "demo_add.jpg"), type="jpeg", quality=80)
    visitor.leave()
    server.stop()
