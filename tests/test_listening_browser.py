"""The raters' page in a browser: a whole session, with a reload in its midst, up to a file that the analysis reads."""

from __future__ import annotations

import json

import pytest
from browser import launched_browser
from test_listening_make import write_systems

from vta_sam.evaluation.listening.analysis import analyse
from vta_sam.evaluation.listening.answers import read_key, read_sessions
from vta_sam.evaluation.listening.study_files import TestRequest, make_test

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser():
    with launched_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def test_folder(tmp_path_factory, make_video):
    """Two clips with pictures, one system: eight stimuli of 1.1 s, two questions each."""
    folder = tmp_path_factory.mktemp("listening")
    systems = write_systems(folder / "systems", ("gt", "ours"), clips=2, seconds=1.1, make_video=make_video)
    make_test(TestRequest({"ours": systems / "ours"}, systems / "gt", folder / "test", raters=3))
    return folder / "test"


def hear(page) -> None:
    """Play the clip of the screen to its end."""
    page.wait_for_selector("video, audio")
    assert page.locator("input[type=radio]:not(:disabled)").count() == 0, "rated before it was heard"
    page.evaluate("document.querySelector('video, audio').play()")
    page.wait_for_selector("input[type=radio]:not(:disabled)", timeout=20_000)


def answer(page, value: int, by_keyboard: bool) -> None:
    before = page.inner_text("h1")
    if by_keyboard:
        page.keyboard.press(str(value))
        page.keyboard.press("Enter")
    else:
        page.locator(".scale label").nth(value - 1).click()
        page.click("button[type=submit]")
    page.wait_for_function("before => document.querySelector('h1').innerText !== before", arg=before)


def begin(page, folder, rater: int, check: bool = True) -> None:
    page.goto((folder / "raters" / "index.html").as_uri())
    page.fill("#rater", str(rater))
    page.keyboard.press("Enter")
    page.click("text=I agree, begin")
    trials = json.loads((folder / "raters" / "data.js").read_text().removeprefix("window.TEST = ").rstrip(";\n"))
    for trial in trials["headphones"]:
        hear(page)
        answer(page, trial["answer"] + 1, by_keyboard=True)
    hear(page)
    answer(page, 4, by_keyboard=False)


def test_a_whole_session(browser, test_folder, tmp_path):
    key = read_key(test_folder)
    context = browser.new_context(accept_downloads=True)
    page = context.new_page()
    problems, requests = [], []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    begin(page, test_folder, 2)
    given = []
    for number in range(len(key.plans["2"])):
        assert page.inner_text("h1") == f"Clip {number + 1} of {len(key.plans['2'])}"
        if number == 5:  # all that was answered is kept, and the order stays
            page.reload()
            page.fill("#rater", "2")
            page.keyboard.press("Enter")
            page.wait_for_selector("video")
            assert page.inner_text("h1") == "Clip 6 of 16"
        shown = page.get_attribute("video", "src")
        assert shown == f"media/{key.plans['2'][number][0]}.mp4"
        hear(page)
        given.append(1 + number % 5)
        answer(page, given[-1], by_keyboard=bool(number % 2))
    assert page.inner_text("h1") == "Thank you"
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / download.value.suggested_filename)
    (tmp_path / "copied.txt").write_text(page.input_value("#export"))
    context.close()
    assert problems == [] and all(url.startswith(("file:", "blob:")) for url in requests)
    sessions, refused = read_sessions(tmp_path, key)
    assert len(sessions) == 1 and len(refused) == 1, refused  # the same by file and by text
    [session] = sessions
    assert session.complete and session.headphones == 6
    assert [rating.value for rating in session.ratings] == given
    assert all(rating.plays >= 1 and rating.seconds > 1 for rating in session.ratings)
    assert analyse(sessions, key.systems).unscreened["quality"]["ours"].ratings == 2


def test_a_phone_and_a_wrong_number(browser, test_folder):
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme="dark")
    page = context.new_page()
    page.goto((test_folder / "raters" / "index.html").as_uri() + "?rater=99")
    assert "no rater number “99”" in page.inner_text("[role=alert]")
    page.goto((test_folder / "raters" / "index.html").as_uri() + "?rater=1")
    page.click("text=I agree, begin")
    page.wait_for_selector("audio")
    for _ in range(2):
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, "the page scrolls sideways"
        hear(page)
        answer(page, 1, by_keyboard=False)
    # what the rater chooses by is read aloud
    radios = page.get_by_role("radio")
    assert radios.count() == 3 and page.get_by_role("group", name="Which of the three tones is the quietest?").count()
    context.close()
