"""The app as a visitor meets it: in a headless browser, with good files and bad ones, and after it has ended."""

import contextlib
import http.client
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

CHROME = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = [n for n in ("gradio", "playwright") if importlib.util.find_spec(n) is None] + ["a browser"] * (
    not CHROME
)
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")
LABELS = ["a forward dive", "a back dive, in the tuck position", "an <b>inward</b> dive"]


# Twice in one process: what ends the first app does not end the program, and importing torch takes its time
CODE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin without it
from pevl.use.app import launch
launch(samples=[])
from pevl.use.cli import main
raise SystemExit(main(["app", "--max-mb", "1", "--max-seconds", "5"]))
"""


def left(tmp):
    return sorted(str(p.relative_to(tmp)) for p in tmp.rglob("*") if not p.is_dir())


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    "A simulated dive with its joints, a film of nobody, a long one, and files that are no videos"
    from pevl.data.simdive import write_clip
    from pevl.data.text import DIVING48
    from pevl.data.video import write_video

    out = tmp_path_factory.mktemp("clips")
    for d in ("rgb", "pose", "truth"):
        (out / d).mkdir()
    write_clip(out, "my dive", DIVING48[31], seed=5)
    write_video(out / "grey.mp4", np.full((12, 64, 64, 3), 120, np.uint8))
    write_video(out / "long.mp4", np.full((180, 64, 64, 3), 120, np.uint8))
    (out / "notes.mp4").write_text("these are notes")
    (out / "torn.mp4").write_bytes((out / "rgb/my dive.mp4").read_bytes()[:4000])
    (out / "torn.npz").write_bytes((out / "pose/my dive.npz").read_bytes()[:400])
    (out / "large.mp4").write_bytes(os.urandom(2**20 + 5000))
    return out


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    "The address of a running app, after one that was ended with Ctrl-C; in the end nothing of both is left"
    tmp = tmp_path_factory.mktemp("app")
    clean = lambda: not left(tmp) and not list(tmp.glob("pevl-app-*"))  # noqa: E731 - torch leaves an empty folder
    env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")} | {"TMPDIR": str(tmp)}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    process = subprocess.Popen([sys.executable, "-c", CODE], text=True, env=env, **pipes)

    late = threading.Timer(
        300, process.kill
    )  # an app that does not answer fails the tests, and does not stop them
    late.start()

    def line():
        said = process.stdout.readline()
        assert said, process.communicate()[1]
        return said.split()[0]

    try:
        url = urlsplit(line())
        assert url.hostname == "127.0.0.1"
        [folder] = tmp.glob("pevl-app-*")
        with socket.socket() as s:
            assert s.connect_ex(("127.0.0.2", url.port)), "listens on more than 127.0.0.1"
        process.send_signal(signal.SIGINT)
        assert line() == "the" and not folder.exists()  # the app has ended
        second = line()
        late.cancel()
        yield second, tmp
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0 and not err, err
        assert clean(), left(tmp)
    finally:
        late.cancel()
        process.kill()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROME, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(app, browser):
    "Opens the page as a new visitor; nothing may come from elsewhere, and nothing may go wrong in the browser"
    opened, asked, wrong = [], [], []

    def visit(width=1280, height=900, scheme="light"):
        context = browser.new_context(viewport=dict(width=width, height=height), color_scheme=scheme)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda r: asked.append(r.url))
        page.on("websocket", lambda w: asked.append(w.url))
        page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: wrong.append(str(e)))
        page.on("response", lambda r: wrong.append(f"{r.status} {r.url}") if r.status >= 400 else None)
        page.goto(app[0])
        page.get_by_role("button", name="Rank the texts").wait_for()
        opened.append(context)
        return page

    yield visit
    for context in opened:
        context.close()
    assert asked and not [u for u in asked if not u.startswith((app[0], "data:", "blob:"))]
    assert not wrong, wrong


def upload(page, path, joints=None):
    "Put a file into the page, as a click and a choice would"
    with page.expect_response(lambda r: "/upload" in r.url and r.request.method == "POST"):
        page.locator("#video input[type=file]").set_input_files(path)
    page.locator("#video video").wait_for(state="attached")
    if joints:
        page.get_by_role("button", name="Joints from a file").click()
        with page.expect_response(lambda r: "/upload" in r.url and r.request.method == "POST"):
            page.locator("#joints input[type=file]").set_input_files(joints)
        page.locator("#joints").get_by_text(Path(joints).stem).first.wait_for()


def rank(page, labels=None):
    "Press the button; the ranked labels with their percentages, or the text of the refusal"
    if labels is not None:
        page.get_by_label("Texts to choose from").fill("\n".join(labels))
    page.evaluate(
        "document.querySelector('#result .pv')?.setAttribute('data-old', '')"
    )  # a new answer has no mark
    page.get_by_role("button", name="Rank the texts").click()
    page.locator("#result .pv:not([data-old])").filter(has=page.locator(".pv-ranked")).or_(
        page.locator("#result .pv-error:not([data-old])")
    ).first.wait_for()
    if page.locator("#result .pv-error").count():
        return page.get_by_role("alert").filter(has_text=re.compile(".")).first.inner_text()
    return [
        tuple(t.inner_text() for t in row.locator(".pv-text, b").all())
        for row in page.locator(".pv-ranked li").all()
    ]


def test_an_upload_is_ranked_as_by_predict(visit, clips, tmp_path):
    import pevl

    page, video = visit(), clips / "rgb/my dive.mp4"
    upload(page, video, clips / "pose/my dive.npz")
    theirs = pevl.predict(video, LABELS, topk=5)
    assert rank(page, LABELS) == [(label, f"{100 * p:.1f}%") for label, p in theirs]
    with page.expect_download() as saved:
        page.get_by_role("link", name="Save as JSON").click()
    assert saved.value.suggested_filename == "my dive.json"
    assert json.loads(Path(saved.value.path()).read_text()) == theirs.to_dict() | {"video": "my dive.mp4"}
    slider, moment = page.get_by_role("slider", name="Moment"), page.locator(".pv-slide output")
    first, picture = moment.inner_text(), page.locator(".pv-moment:visible img").first.get_attribute("src")
    slider.press("ArrowRight")
    assert moment.inner_text() != first and page.locator(".pv-moment:visible").count() == 1
    assert page.locator(".pv-moment:visible img").first.get_attribute("src") != picture
    phrases = page.get_by_role("list", name="Phrases").get_by_role("listitem").all_inner_texts()
    assert len(phrases) == len(theirs.phrases) > 0
    page.screenshot(path=tmp_path / "upload.png", full_page=True)


@pytest.mark.parametrize("width, height, scheme", [(1280, 900, "light"), (390, 844, "dark")])
def test_a_sample_by_keyboard(visit, tmp_path, width, height, scheme):
    page = visit(width, height, scheme)
    page.get_by_role("radio", name="Simulated dive 1").focus()
    page.keyboard.press("Space")
    page.locator("#video video").wait_for(state="attached")
    focused = lambda: page.evaluate("document.activeElement.textContent").strip()  # noqa: E731
    for _ in range(6):  # the other samples, the texts, the button
        page.keyboard.press("Tab")
        if focused() == "Rank the texts":
            break
    assert focused() == "Rank the texts"
    page.keyboard.press("Enter")
    page.locator(".pv-ranked").wait_for()
    best = page.locator(".pv-ranked li .pv-text").first.inner_text()
    assert page.locator(".pv-truth b").inner_text() == best
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.wait_for_function("document.querySelector('#result').getBoundingClientRect().top < innerHeight")
    page.screenshot(path=tmp_path / f"sample-{width}-{scheme}.png", full_page=True)
    names = page.locator("input:visible, textarea:visible, button:visible").evaluate_all(
        "all => all.filter(e => e.type != 'file' && !(e.ariaLabel || e.textContent.trim() || e.labels?.length || e.title))"
        ".map(e => e.outerHTML.slice(0, 200))"
    )
    assert not names, names


def test_bad_files_are_refused_in_a_sentence(visit, clips):
    page = visit()
    assert "no video yet" in rank(page)
    for name, reason in (
        ("notes", "not a video"),
        ("torn", "truncated: 9 of 73 frames"),
        ("long", "at most 5 s"),
    ):
        upload(page, clips / f"{name}.mp4")
        told = rank(page)
        assert re.search(reason, told) and "\n" not in told and "/" not in told.replace("and/or", ""), told
        page.get_by_role("button", name="Clear").click()
    upload(page, clips / "rgb/my dive.mp4", clips / "torn.npz")
    assert re.search(r"^torn\.npz: ", rank(page))
    assert "is 1 label text" in rank(page, ["one", "one"])
    page.get_by_label("Simulated dive 2").check()  # and the server goes on


def test_nobody_in_the_picture(visit, clips):
    page = visit()
    upload(page, clips / "grey.mp4")
    if importlib.util.find_spec("mediapipe"):
        assert len(rank(page)) == 5
        notes = page.locator(".pv-note").all_inner_texts()
        assert "nobody was found" in notes[0] and "simulated clips only" in notes[1]
    else:
        assert "to install it" in rank(page)


def test_a_large_file_is_refused_by_browser_and_server(visit, app, clips):
    page = visit()
    page.locator("#video input[type=file]").set_input_files(clips / "large.mp4")
    page.get_by_text(re.compile("exceed the maximum", re.I)).first.wait_for()
    kept = left(app[1])
    at = urlsplit(app[0])

    def status(method, path, body=None, **headers):
        with_server = http.client.HTTPConnection(at.hostname, at.port, timeout=60)
        with contextlib.suppress(BrokenPipeError):  # it answers before it has read all
            with_server.request(method, path, body, headers, encode_chunked="Transfer-Encoding" in headers)
        return with_server.getresponse().status

    assert status("POST", "/gradio_api/upload", b"x", **{"Content-Length": str(2**30)}) == 413
    assert status("POST", "/gradio_api/upload", iter([b"x"]), **{"Transfer-Encoding": "chunked"}) == 411
    for path in (
        "/runs",
        "/monitoring",
        "/gradio_api/file=https://example.org/",
        "/gradio_api/proxy=https://example.org/",
    ):
        assert status("GET", path) == 404
    assert status("GET", f"/gradio_api/file={clips / 'grey.mp4'}") in (403, 404)
    assert left(app[1]) == kept


def test_two_visitors(visit, app, clips):
    one, two = visit(), visit()
    for page, k in ((one, 1), (two, 2)):
        page.get_by_label(f"Simulated dive {k}").check()
        page.locator("#video video").wait_for(state="attached")
    for page in (one, two):
        page.get_by_role("button", name="Rank the texts").click(no_wait_after=True)
    found = []
    for page in (one, two):
        page.locator(".pv-ranked").wait_for()
        found.append(page.locator(".pv-ranked li .pv-text").first.inner_text())
        assert page.locator(".pv-truth b").inner_text() == found[-1]
    assert found[0] != found[1]


def test_files_go_with_the_visitor(visit, app, clips):
    page, other = visit(), visit()
    for p in (page, other):
        upload(p, clips / "rgb/my dive.mp4", clips / "pose/my dive.npz")
    there = lambda: {Path(f).name for f in left(app[1])} & {"my dive.mp4", "my dive.npz"}  # noqa: E731
    assert there() == {"my dive.mp4", "my dive.npz"}
    page.close()
    time.sleep(1)
    assert there() == {"my dive.mp4", "my dive.npz"}  # of the other one
    assert len(rank(other)) == 5
    other.close()
    end = time.time() + 60
    while there() and time.time() < end:
        time.sleep(0.2)
    assert not there()


def test_without_gradio(tmp_path, monkeypatch):
    from pevl.use import app

    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with pytest.raises(
        ImportError, match=r'^the app needs gradio; to install it: pip install "pevl\[app\]"$'
    ):
        app.launch(block=False)
    assert not list(tmp_path.iterdir()) and "GRADIO_TEMP_DIR" not in os.environ
