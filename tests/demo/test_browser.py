"""The staged Space in a real browser: boxes drawn by mouse, finger and keyboard, read, found and searched.

It starts the app in a process of its own and drives Debian's Chromium; about 25 s alone on one core. Pictures of the
page are left in REGIONMED_SCREENSHOTS, if that names a folder.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from dicom_fixtures import write_dicom

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
PATIENCE_MS = 120_000  # of a busy machine; nothing waits longer than it must

if CHROMIUM is None:
    pytest.skip("there is no chromium (apt-get install chromium)", allow_module_level=True)
pytest.importorskip("gradio", reason="gradio is not installed (pip install 'regionmed-clip[demo]')")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")


@pytest.fixture(scope="module")
def address(space, tmp_path_factory):
    """The address of the running demo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = tmp_path_factory.mktemp("home")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("REGIONMED_", "GRADIO_"))}
    environment |= {"GRADIO_SERVER_PORT": str(port), "GRADIO_SERVER_NAME": "127.0.0.1", "HF_HUB_OFFLINE": "1"}
    environment |= {"HF_MODULES_CACHE": str(home / "modules"), "GRADIO_TEMP_DIR": str(home / "files")}
    log = home / "log.txt"
    with log.open("w") as out:
        app = subprocess.Popen([sys.executable, "app.py"], cwd=space, env=environment, stdout=out, stderr=out)
    try:
        yield _when_up(f"http://127.0.0.1:{port}/", app, log)
    finally:
        app.terminate()
        app.wait(timeout=60)


def _when_up(address: str, app: subprocess.Popen, log: Path) -> str:
    """The address, once something answers there."""
    until = time.monotonic() + 540
    while time.monotonic() < until and app.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=60):
                return address
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.5)
    raise AssertionError(f"the demo did not start:\n{log.read_text()}")


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, address):
    """A context manager that opens the demo; what the page asks of other machines, or throws, is an error."""

    @contextmanager
    def opened(width: int, height: int, **options):
        wrong: list[str] = []
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        is_own = re.compile(r"(http://127\.0\.0\.1|data:|blob:)")
        page.on("request", lambda request: is_own.match(request.url) or wrong.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(address)
        page.wait_for_selector(".rc-box")
        yield page
        _keep(page, f"{width}-{options.get('color_scheme', 'light')}")
        context.close()
        assert not wrong

    return opened


def _keep(page, name: str) -> None:
    """None; a picture of the page where REGIONMED_SCREENSHOTS asks for it."""
    if os.environ.get("REGIONMED_SCREENSHOTS"):
        page.screenshot(path=Path(os.environ["REGIONMED_SCREENSHOTS"]) / f"demo-{name}.png", full_page=True)


def _spot(page, x: float, y: float) -> tuple[float, float]:
    """Where a place of the picture, in its own pixels, lies on the screen."""
    page.locator(".rc-layer").scroll_into_view_if_needed()
    at = page.locator(".rc-layer").bounding_box()
    width, height = page.locator(".rc-image").evaluate("image => [image.naturalWidth, image.naturalHeight]")
    return at["x"] + x / width * at["width"], at["y"] + y / height * at["height"]


def _sides(page) -> list[float]:
    """What the four fields of the chosen box say."""
    return [float(page.locator(".rc-fields input").nth(i).input_value()) for i in range(4)]


def _wait_for_labels(page, count: int) -> None:
    """None, once all `count` boxes are there and carry the share of a text."""
    page.wait_for_function(
        "count => { const tags = [...document.querySelectorAll('.rc-tag')].map(tag => tag.textContent);"
        "return tags.length === count && tags.every(tag => /^\\d+ .+ \\d+ %$/.test(tag)); }",
        arg=count,
    )


def test_a_drawn_box_gets_its_label_a_text_its_heat_map_and_the_box_its_cases(open_page):
    with open_page(1280, 900) as page:
        num_drawn = page.locator(".rc-box").count()
        assert num_drawn >= 2  # the first example, already read when the page opens
        assert page.locator(".card-region").count() == num_drawn
        page.locator("#texts textarea").fill("first text\nsecond text")
        page.wait_for_function(
            "() => [...document.querySelectorAll('.rc-tag')].every(tag => tag.textContent.includes(' text '))"
        )
        page.mouse.move(*_spot(page, 80, 100))
        page.mouse.down()
        page.mouse.move(*_spot(page, 90, 110))
        page.mouse.move(*_spot(page, 118, 130))
        page.mouse.up()
        _wait_for_labels(page, num_drawn + 1)
        assert _sides(page) == pytest.approx([80, 100, 118, 130], abs=1)
        assert page.locator(".card-region.is-selected .number").inner_text() == str(num_drawn + 1)
        assert page.locator(".warning").inner_text().startswith("Research demo, not a medical device.")
        page.get_by_role("tab", name="Find text").click()
        page.locator("#text textarea").fill("nodule in the left lung")
        page.get_by_role("button", name="Show where").click()
        page.wait_for_selector(".heat img[alt='Heat map of: nodule in the left lung']")
        page.get_by_role("tab", name="Similar").click()
        page.locator("#search-box").click()
        page.wait_for_selector(f".cases-head:has-text('box {num_drawn + 1}')")
        assert page.locator(".case").count() == 8


def test_a_finger_draws_on_a_phone_in_the_dark_and_nothing_sticks_out(open_page):
    with open_page(390, 844, color_scheme="dark", has_touch=True) as page:
        num_drawn = page.locator(".rc-box").count()
        touch = page.context.new_cdp_session(page)
        for kind, x, y in (("Start", 90, 20), ("Move", 100, 30), ("Move", 120, 45)):
            left, top = _spot(page, x, y)
            touch.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": [{"x": left, "y": top}]})
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        _wait_for_labels(page, num_drawn + 1)
        assert _sides(page) == pytest.approx([90, 20, 120, 45], abs=1)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert sum(int(level) for level in re.findall(r"\d+", background)[:3]) < 200


def test_the_keyboard_alone_places_moves_sizes_and_deletes_a_box(open_page):
    with open_page(1280, 900) as page:
        num_drawn = page.locator(".rc-box").count()
        page.locator(".rc-add").focus()
        page.keyboard.press("Enter")  # a box in the middle; the first field has the focus
        for side in ("10", "20", "50", "60"):
            page.keyboard.press("Control+A")
            page.keyboard.type(side)
            page.keyboard.press("Tab")
        _wait_for_labels(page, num_drawn + 1)
        assert _sides(page) == [10, 20, 50, 60]
        page.locator(".rc-box").nth(num_drawn).focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Shift+ArrowDown")
        _wait_for_labels(page, num_drawn + 1)
        x0, y0, x1, y1 = _sides(page)
        assert (x0 > 10, y0, x1 - x0, y1 > 60) == (True, 20, 40, True)
        page.keyboard.press("Delete")
        _wait_for_labels(page, num_drawn)


def test_a_dicom_file_opens_and_a_broken_one_is_a_line_that_changes_nothing(open_page, tmp_path):
    study = write_dicom(tmp_path / "study.dcm", np.arange(600, dtype=np.uint16).reshape(20, 30), PatientName="DOE^JANE")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with open_page(1280, 900) as page:
        for path, role, said in (
            (study, "status", "study.dcm: 30 x 20"),
            (tmp_path / "broken.png", "alert", "cannot be"),
        ):
            with page.expect_file_chooser() as chooser:
                page.locator("#upload").click()
            chooser.value.set_files(path)
            page.wait_for_selector(f"#note [role={role}]:has-text('{said}')")
            assert page.locator(".rc-image").evaluate("image => [image.naturalWidth, image.naturalHeight]") == [30, 20]
        assert "DOE" not in page.content()
        page.locator(".rc-thumb").nth(1).click()
        page.wait_for_selector(".rc-thumb:nth-child(2)[aria-pressed=true]")
        _wait_for_labels(page, page.locator(".card-region").count())


def test_a_slice_of_a_ct_volume_is_chosen_and_windowed_under_options(open_page, tmp_path):
    nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed (pip install 'regionmed-clip[dicom]')")
    volume = np.full((40, 30, 3), -1000, dtype=np.int16)  # air, and in slice 2 a square of soft tissue
    volume[10:20, 10:20, 2] = 50
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "chest.nii.gz")
    with open_page(1280, 900) as page:
        with page.expect_file_chooser() as chooser:
            page.locator("#upload").click()
        chooser.value.set_files(tmp_path / "chest.nii.gz")
        page.wait_for_selector("#note [role=alert]:has-text('3 axial slices'):has-text('0 to 2')")
        page.locator("#options button").first.click()
        page.get_by_label("Frame or slice").fill("2")
        page.get_by_label("Frame or slice").press("Enter")
        page.wait_for_selector("#note [role=status]:has-text('chest.nii.gz: 40 x 30 pixels')")
        unwindowed = page.locator(".rc-image").get_attribute("src")
        page.get_by_label("CT window").click()
        page.get_by_role("option", name="lung", exact=True).click()
        page.wait_for_function("old => document.querySelector('.rc-image').src !== old", arg=unwindowed)
        page.mouse.move(*_spot(page, 5, 5))
        page.mouse.down()
        page.mouse.move(*_spot(page, 30, 25), steps=4)
        page.mouse.up()
        _wait_for_labels(page, 1)
        assert page.locator(".rc-image").evaluate("image => [image.naturalWidth, image.naturalHeight]") == [40, 30]
        assert page.locator(".card-region").count() == 1
        assert _sides(page) == [5, 5, 30, 25]
