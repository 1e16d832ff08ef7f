"""The comparison page in a browser, opened from disk: it plays, seeks, pages, and fits a phone."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import pytest
from browser import launched_browser
from comparison_pages import SYSTEMS, request_in

from vta_sam.evaluation.comparison import write_page
from vta_sam.evaluation.pairing import Words

CLIPS = 40
EVIL = "<img src=x onerror='window.hit=1'><script>window.hit=1</script>"
PLAYING = "[...document.querySelectorAll('video, audio')].filter((player) => !player.paused).length"


@pytest.fixture(scope="module")
def browser():
    with launched_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Path:
    """A page of 40 clips, the second of which has words that are markup."""
    request = request_in(tmp_path_factory.mktemp("page"), ids=tuple(f"clip {n}" for n in range(CLIPS)))
    request.clips[1].words = Words(EVIL, EVIL, (EVIL,))
    request.clips[30].words = Words("cat", "a cat purrs")
    return write_page(request)


@contextmanager
def opened(browser, index: Path, width: int = 1000, fragment: str = "", **options):
    """The page in a window of that width; fails if anything was logged or fetched from elsewhere than from disk."""
    context = browser.new_context(viewport={"width": width, "height": 800}, **options)
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(index.as_uri() + fragment)
    page.wait_for_selector(".clip")
    page.asked = asked
    yield page
    context.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def label(page) -> str:
    return page.evaluate("document.activeElement.getAttribute('aria-label')")


def test_every_player_plays_and_one_at_a_time(browser, index):
    with opened(browser, index, width=660) as page:
        cells = page.locator(".cell")
        assert cells.count() == 2 * len(SYSTEMS)
        for n in range(cells.count()):
            cells.nth(n).locator(".play").click()
            page.wait_for_function("(n) => document.querySelectorAll('.cell video')[n].currentTime > 0.05", arg=n)
            assert page.evaluate(PLAYING) <= 1
        assert page.evaluate("[...document.querySelectorAll('video')].every((video) => video.error === null)")
        assert page.locator(".failed").count() == 0
        assert not page.evaluate("window.hit")


def test_a_click_on_the_spectrogram_seeks_and_the_heads_follow(browser, index):
    with opened(browser, index) as page:
        score = page.locator(".score").nth(1)
        box = score.bounding_box()
        score.click(position={"x": 0.75 * box["width"], "y": box["height"] / 2})
        page.wait_for_function("Math.abs(document.querySelectorAll('video')[1].currentTime - 0.75) < 0.02")
        heads = page.eval_on_selector_all(".begun .head", "(all) => all.map((head) => parseFloat(head.style.left))")
        assert len(heads) == 2 and all(abs(place - 75) < 1 for place in heads)  # the sound's, and the timeline's
        lane, picture = page.locator(".lane").first.bounding_box(), page.locator(".picture").nth(1).bounding_box()
        assert (lane["x"], lane["width"]) == (picture["x"], picture["width"])


@pytest.mark.slow
def test_the_next_system_can_start_at_the_same_moment(browser, index):
    with opened(browser, index) as page:
        videos = "document.querySelectorAll('video')"
        for keep, earliest, latest in ((True, 0.5, 1.0), (False, 0.0, 0.5)):
            page.locator("#keep").set_checked(keep)
            page.evaluate(f"{videos}[0].currentTime = 0.5; {videos}[1].currentTime = 0")
            page.locator(".play").nth(0).click()
            page.wait_for_function(f"!{videos}[0].paused && {videos}[0].currentTime >= 0.5")
            page.locator(".play").nth(1).click()
            page.wait_for_function(f"{videos}[1].currentTime > 0.02")
            assert earliest <= page.evaluate(f"{videos}[1].currentTime") <= latest
            page.wait_for_function(f"{PLAYING} === 0")


def test_keys_move_seek_and_play(browser, index):
    with opened(browser, index) as page:
        page.locator(".play").first.focus()
        for key, wanted in (("ArrowDown", "ours, clip clip 0"), ("ArrowRight", "ours, clip clip 1"),
                            ("ArrowUp", "truth, clip clip 1"), ("ArrowLeft", "truth, clip clip 0")):
            page.keyboard.press(key)
            assert label(page) == f"Play {wanted}"
        page.keyboard.press("Space")
        page.wait_for_function(f"{PLAYING} === 1")
        page.wait_for_function("document.activeElement.ariaLabel === 'Pause truth, clip clip 0'")
        page.keyboard.press("Enter")
        page.wait_for_function(f"{PLAYING} === 0")
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        assert label(page) == "Position in truth, clip clip 0"
        page.keyboard.press("End")
        assert page.evaluate("document.activeElement.getAttribute('aria-valuetext')") == "1.0 of 1.0 seconds"
        page.keyboard.press("ArrowLeft")
        page.wait_for_function("Math.abs(document.querySelector('video').currentTime - 0.5) < 0.02")
        page.locator(".play").nth(3 * len(SYSTEMS)).focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_function("document.activeElement.ariaLabel === 'Play truth, clip clip 4'")


def test_clips_are_loaded_when_they_are_shown(browser, index):
    def scripts(page) -> list[str]:
        return [url.rsplit("/", 1)[1] for url in page.asked if "/pages/0" in url]

    with opened(browser, index) as page:
        page.wait_for_load_state()
        assert scripts(page) == ["0001.js"]
        assert not [url for url in page.asked if url.endswith(".mp4")]
        assert page.inner_text("#status") == f"Clips 1 to 4 of {CLIPS}"
        for _ in range(3):
            page.get_by_role("button", name="Next").first.click()
        page.wait_for_selector(".clip[data-id='clip 12']")
        assert scripts(page) == ["0001.js", "0002.js"] and page.locator(".clip").count() == 4
        page.select_option(".pager select", index=9)
        page.wait_for_selector(".clip[data-id='clip 39']")
        assert page.locator("[data-step='1']").first.is_disabled()
        page.fill("#words", "cat purrs")
        page.wait_for_selector(".clip[data-id='clip 30']")
        assert page.inner_text("#status") == f"Clip 1 of 1 found among {CLIPS}"
        page.fill("#words", "Clip 3")  # the very id first, then what has these words
        page.wait_for_selector(".clip[data-id='clip 3']")
        assert page.eval_on_selector_all(".clip", "(all) => all.map((one) => one.dataset.id)") == [
            "clip 3", "clip 13", "clip 23", "clip 30"]
        page.fill("#words", "nobody")
        assert page.inner_text("#status").startswith("No clip has these words")
        assert page.locator(".clip").count() == 0


@pytest.mark.slow
def test_a_link_names_a_clip_or_opens_a_definition(browser, index):
    with opened(browser, index, fragment="#clip=clip%2025") as page:
        page.wait_for_selector(".clip[data-id='clip 25']")
        page.get_by_role("link", name="Fréchet distance").click()
        page.wait_for_selector("#column-2[open]")
        assert page.locator("#column-2 p").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_a_clip_a_card_without_scrolling_aside(browser, index, scheme):
    with opened(browser, index, width=360, color_scheme=scheme, reduced_motion="reduce") as page:
        page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert page.locator(".clip").count() == 1
        tops = [page.locator(".cell").nth(n).bounding_box()["y"] for n in range(len(SYSTEMS))]
        assert tops == sorted(tops) and tops[1] - tops[0] > 200
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
        page.get_by_role("button", name="Colours").click()
        page.get_by_role("button", name="Colours: light").click()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"


@pytest.mark.slow
def test_groups_of_columns_can_be_put_away(browser, index):
    with opened(browser, index) as page:
        heading = page.get_by_role("columnheader", name="Fréchet distance")
        assert not heading.count(), "the table is folded"
        page.get_by_text("All 3 figures").click()
        assert heading.first.is_visible()
        page.get_by_label("Likeness").uncheck()
        assert heading.count() == 0
        assert page.get_by_role("columnheader", name="Onset F1").first.is_visible()
        control = page.get_by_text("control", exact=True).first
        assert not control.is_visible()
        page.get_by_label("controls and ceilings").check()
        assert control.is_visible()
