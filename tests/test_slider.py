"""The slider of the book, in a browser: it moves by keyboard, mouse and finger, and is a picture where nothing can be moved."""

import base64
import io
import shutil

import numpy as np
import pytest

from pevl.use.look_inside import show_slider

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
COLOURS = [(200, 30, 30), (30, 160, 60), (40, 60, 200)]


def slider(**kw):
    images = [np.full((60, 120, 3), c, np.uint8) for c in COLOURS]
    return show_slider(images, ["red", "green", "blue"], **(dict(alt="one colour", label="moment") | kw)).html


def page_of(*parts, dark=False):
    css = "body{margin:8px;background:#111;color:#eee}" if dark else "body{margin:8px}"
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
    return f'<!doctype html><html lang="en"><head>{meta}<style>{css}</style></head><body>{"".join(parts)}</body></html>'


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium")
    with sync_api.sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield b
        b.close()


@pytest.fixture
def show(browser, tmp_path):
    "Open a page from a file with no network; gives the page. Every request and every error is noted in `page.noted`"
    open_ = []

    def go(html, **options):
        context = browser.new_context(offline=True, **options)
        open_.append(context)
        page, page_noted = context.new_page(), []
        page.on(
            "request", lambda r: None if r.url.startswith(("file:", "data:")) else page_noted.append(r.url)
        )
        page.on("pageerror", lambda e: page_noted.append(str(e)))
        page.on("console", lambda m: page_noted.append(m.text) if m.type == "error" else None)
        page.noted = page_noted
        file = tmp_path / f"{len(open_)}.html"
        file.write_text(html, encoding="utf-8")
        page.goto(file.as_uri())
        return page

    yield go
    for context in open_:
        context.close()


def colour(page, k=0) -> str:
    "What is on the screen in the middle of picture k: the name of the nearest colour"
    from PIL import Image

    shot = Image.open(io.BytesIO(page.locator("figure img").nth(k).screenshot())).convert("RGB")
    x = np.array(shot.getpixel((shot.width // 2, shot.height // 2)))
    d = np.linalg.norm(np.array(COLOURS) - x, axis=1)
    assert d.min() < 12, x
    return ("red", "green", "blue")[d.argmin()]


def said(page, k=0):
    "The caption, the picture's text, and what a screen reader says for the slider"
    f = page.locator("figure").nth(k)
    return (
        f.locator("figcaption").inner_text(),
        f.locator("img").get_attribute("alt"),
        f.locator("input").get_attribute("aria-valuetext"),
    )


def test_keyboard(show):
    page = show(page_of(slider()))
    control = page.get_by_role("slider", name="moment: one colour")
    assert control.is_visible() and colour(page) == "red"
    page.keyboard.press("Tab")
    assert control.evaluate("e => e === document.activeElement")
    for key, name in (
        ("ArrowRight", "green"),
        ("ArrowUp", "blue"),
        ("ArrowRight", "blue"),
        ("ArrowLeft", "green"),
        ("Home", "red"),
        ("End", "blue"),
    ):
        page.keyboard.press(key)
        assert colour(page) == name
        assert said(page) == (name, f"one colour, {name}", name)
    assert page.noted == []


def test_mouse(show):
    page = show(page_of(slider(start=1)))
    assert colour(page) == "green" and said(page)[0] == "green"
    box = page.locator("input").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 3, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    assert colour(page) == "blue"
    page.mouse.click(box["x"] + 3, box["y"] + box["height"] / 2)
    assert colour(page) == "red"
    page.keyboard.press("ArrowRight")
    assert colour(page) == "green"  # back to the picture that the page began with
    assert page.noted == []


def test_phone(show):
    "A finger moves it; nothing sticks out; there is room for a thumb"
    wide = [np.full((200, 900, 3), c, np.uint8) for c in COLOURS]
    html = page_of(show_slider(wide, alt="wide", label="a long name of what is moved").html)
    page = show(html, viewport=dict(width=360, height=640), has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    box, image = page.locator("input").bounding_box(), page.locator("img").bounding_box()
    assert box["height"] >= 44 and box["width"] >= 100
    assert abs(image["width"] / image["height"] - 4.5) < 0.05
    page.touchscreen.tap(box["x"] + box["width"] - 4, box["y"] + box["height"] / 2)
    assert colour(page) == "blue"
    assert page.noted == []


def test_several_on_one_page(show):
    "Also two that are the same, and one whose script runs twice"
    again = slider(start=2)
    page = show(page_of(slider(), slider(), again))
    assert [colour(page, k) for k in range(3)] == ["red", "red", "blue"]
    page.locator("input").nth(1).press("ArrowRight")
    assert [colour(page, k) for k in range(3)] == ["red", "green", "blue"]
    page.locator("input").nth(2).press("Home")
    assert [colour(page, k) for k in range(3)] == ["red", "green", "red"]
    page.locator("input").nth(0).press("End")
    assert [colour(page, k) for k in range(3)] == ["blue", "green", "red"]
    assert page.noted == []


def test_without_javascript(show):
    page = show(page_of(slider(start=1)), java_script_enabled=False)
    assert colour(page) == "green" and said(page)[:2] == ("green", "one colour, green")
    assert not page.locator("input").is_visible() and not page.locator("label").is_visible()


def test_stripped(show):
    "As sites show it that take out scripts, styles and controls"
    import re

    html = re.sub(r"<script>.*?</script>|<input[^>]*>| style=\"[^\"]*\"", "", slider(), flags=re.S)
    page = show(page_of(html))
    assert page.locator("img").count() == 1 and colour(page) == "red"
    assert page.locator("label").is_hidden()


@pytest.mark.parametrize("dark", [False, True])
def test_themes(show, dark):
    "Text and ground are those of the page"
    page = show(page_of(slider(), dark=dark), color_scheme="dark" if dark else "light")
    style = "e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]"
    ink = "rgb(238, 238, 238)" if dark else "rgb(0, 0, 0)"
    for what in ("figcaption", "label"):
        assert page.locator(what).evaluate(style) == [ink, "rgba(0, 0, 0, 0)"]


def test_hostile_text(show):
    "Captions are text, wherever they come from"
    bad = '</script><img src=x onerror="document.title=1">\u2028\'"`${1}'
    images = [np.full((60, 120, 3), c, np.uint8) for c in COLOURS]
    page = show(page_of(show_slider(images, [bad, "DATA ALT KEY", "c"], alt=bad, label=bad).html))
    assert page.locator("img").count() == 1 and page.title() == ""
    page.locator("input").press("ArrowRight")
    assert page.locator("figcaption").inner_text() == "DATA ALT KEY" and colour(page) == "green"
    assert page.noted == []


def test_pictures_are_what_went_in(show):
    "Sharp where it matters: the colours of a drawing survive"
    from PIL import Image

    html = slider()
    uri = html.split('src="', 1)[1].split('"', 1)[0]
    x = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB"))
    assert x.shape == (60, 120, 3) and np.abs(x.astype(int) - COLOURS[0]).max() <= 4
