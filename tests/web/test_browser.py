"""Does the page do in a browser what it is for: show at once what happens, and let everybody get at everything?"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from overlayfs_demo.store.store import Store
from tests.conftest import wait_until
from tests.images.builders import WHITEOUT
from tests.places import Place, run
from tests.web.conftest import MakeImage
from tests.web.serving import Server, serving

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
WHITEOUT_IN_UPPER = '#upper .mark-deleted button[data-key="/motd"]'
DELETED_IN_TREE = '#tree .gone[data-key="/motd"]'


class Browser:
    """A Chromium without a window."""

    def __init__(self) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,720"):
            options.add_argument(word)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))

    def emulate(self, width: int = 1280, height: int = 720, **features: str) -> None:
        """A screen of this size, and what its user prefers: prefers_color_scheme="dark"."""
        rows = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": rows})
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def open(self, address: str) -> None:
        self.driver.get(address)
        self.sees('#tree [role="treeitem"]')

    def complaints(self) -> list[dict[str, Any]]:
        """What its console says since it was last asked."""
        get_log: Callable[[str], list[dict[str, Any]]] = self.driver.get_log  # selenium has no types for it.
        return get_log("browser")

    def leave(self) -> None:
        """Close the page, of which there was nothing to complain."""
        complaints = self.complaints()
        self.driver.get("about:blank")
        assert complaints == []

    def find(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def sees(self, selector: str, text: str = "") -> WebElement:
        """Wait for an element with this text in it."""

        def there() -> bool:
            try:
                return any(text in (one.text or "") for one in self.find(selector))
            except StaleElementReferenceException:
                return False

        wait_until(there, f"{selector} with {text!r}")
        return next(one for one in self.find(selector) if text in one.text)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def focused(self, attribute: str = "data-key") -> str | None:
        return self.driver.switch_to.active_element.get_attribute(attribute)

    def colour(self, selector: str, name: str) -> tuple[float, ...]:
        """A computed colour's red, green and blue, from 0 to 255."""
        value = self.driver.execute_script(
            "const c = document.createElement('canvas').getContext('2d', {willReadFrequently: true});"
            "c.fillStyle = getComputedStyle(document.querySelector(arguments[0]))[arguments[1]];"
            "c.fillRect(0, 0, 1, 1); return [...c.getImageData(0, 0, 1, 1).data].slice(0, 3)",
            selector,
            name,
        )
        return tuple(value)

    def names(self) -> list[tuple[str, str]]:
        """The role and name of everything in the accessibility tree that can be used."""
        nodes = self.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        roles = {"button", "link", "treeitem", "tree", "searchbox", "textbox", "log"}
        return [
            (one["role"]["value"], one.get("name", {}).get("value", ""))
            for one in nodes
            if not one["ignored"] and one["role"]["value"] in roles
        ]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if not CHROMIUM or not DRIVER:
        pytest.skip("needs chromium and chromedriver, of the packages chromium and chromium-driver")
    browser = Browser()
    yield browser
    browser.driver.quit()


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """The browser, which has nothing to complain of in the end."""
    chromium.emulate()
    yield chromium
    chromium.leave()


@pytest.fixture
def written(store: Store, image: MakeImage, tmp_path: Path) -> str:
    """The address of a report on an image of three layers."""
    image({"etc/motd": "old\n", "cache": "x" * 5000, "etc/<b>": "1"}, {"etc/motd": "new\n"}, {"cache": WHITEOUT})
    done = run("overlayfs-demo", "report", "--store", store.root, "test:1", "-o", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    return (tmp_path / "page.html").as_uri()


@contextmanager
def looking_at(browser: Browser, place: Place) -> Iterator[Server]:
    """The live page of a view; it is left before its server ends."""
    with serving(place.view) as server:
        browser.open(server.address)
        browser.sees("#state.live", "live")
        yield server
        browser.leave()


# --- a mounted view --------------------------------------------------------------------------------


def test_the_whiteout_of_rm_is_seen_without_reloading(browser: Browser, mounted: Place) -> None:
    with looking_at(browser, mounted):
        assert not browser.find(WHITEOUT_IN_UPPER) and not browser.find(DELETED_IN_TREE)
        subprocess.run(["rm", mounted.view / "motd"], check=True)
        wait_until(lambda: browser.find(WHITEOUT_IN_UPPER) and browser.find(DELETED_IN_TREE), "the whiteout")
        browser.sees("#log li.whiteout", "created whiteout for /motd, hiding the one in layer 2 (top)")
        assert {one.get_attribute("id") for one in browser.find(".box.lit")} == {"box-upper", "box-2"}
        assert browser.sees("#box-upper dl div:last-child").text.split() == ["whiteouts", "1"]


def test_the_open_story_follows_an_edit(browser: Browser, mounted: Place) -> None:
    with looking_at(browser, mounted):
        browser.sees('#tree [data-key="/motd"] .name').click()
        browser.sees("#detail .why", "Comes from layer 2 (top)")
        with (mounted.view / "motd").open("a") as file:
            file.write("by hand\n")
        browser.sees("#detail .why", "Comes from upper")
        browser.sees("#detail .diff .added", "+by hand")


def test_an_open_directory_shows_what_comes_and_keeps_the_focus(browser: Browser, mounted: Place) -> None:
    with looking_at(browser, mounted):
        browser.sees('#tree [data-key="/d"] .name').click()
        browser.sees('#tree [data-key="/d/deep"] .name').click()
        (mounted.view / "d" / "made").write_text("1")
        browser.sees('#tree [data-key="/d"] [data-key="/d/made"]', "made")
        assert browser.focused() == "/d/deep"
        assert len(browser.find('#tree [tabindex="0"]')) == 1


def test_the_token_goes_from_the_address_into_a_cookie_that_no_script_can_read(
    browser: Browser, mounted: Place
) -> None:
    with looking_at(browser, mounted) as server:
        assert browser.driver.current_url == f"http://127.0.0.1:{server.port}/"
        assert browser.driver.execute_script("return document.cookie + document.referrer") == ""
        browser.driver.refresh()
        browser.sees("#state.live", "live")
        browser.driver.delete_all_cookies()
        browser.driver.refresh()
        browser.sees("body", "the full address that 'overlayfs-demo serve' printed")
        assert any("403" in one["message"] for one in browser.complaints())
        browser.open(server.address)
        browser.sees("#state.live", "live")


def test_the_page_says_that_the_view_has_ended(browser: Browser, mounted: Place) -> None:
    with looking_at(browser, mounted):
        assert mounted.umount().returncode == 0
        browser.sees("#state.ended", "ended: the view was unmounted")


def test_the_layer_just_touched_is_scrolled_into_view_and_the_page_stays(browser: Browser, mounted: Place) -> None:
    browser.emulate(1280, 400)
    inside = (
        "const [box, stack] = ['#box-1', '.stack'].map((one) => document.querySelector(one).getBoundingClientRect());"
        "return box.top >= stack.top - 1 && box.top < stack.bottom - 20"
    )
    with looking_at(browser, mounted):
        assert not browser.driver.execute_script(inside)
        with (mounted.view / "d" / "deep").open("a") as file:
            file.write("more\n")
        wait_until(lambda: browser.driver.execute_script(inside), "the layer in view")
        assert browser.driver.execute_script("return scrollY") == 0


# --- a report --------------------------------------------------------------------------------------


def test_a_bar_is_as_long_as_its_layers_share_of_the_bytes(browser: Browser, written: str) -> None:
    browser.open(written)
    length = "return document.querySelector(arguments[0]).getBoundingClientRect().width"
    whole = browser.driver.execute_script(length, "#box-1 .bar")
    # Layer 1 ships 5005 bytes of 5009, of which only one is seen.
    assert browser.driver.execute_script(length, "#box-1 .bar-wasted") == pytest.approx(whole * 5005 / 5009, rel=0.01)
    assert browser.driver.execute_script(length, "#box-2 .bar-wasted") < whole / 100
    assert "visible" in browser.sees(".stack .legend").text


def test_the_treemap_shows_live_bytes_beside_the_waste(browser: Browser, written: str) -> None:
    browser.open(written)
    assert browser.find(".treemap .tile.live") and browser.find(".treemap .tile.wasted")
    assert browser.sees(".waste .dive", "dive agrees")


def test_a_report_shows_a_files_history_from_a_file_of_its_own(browser: Browser, written: str) -> None:
    browser.open(written)
    browser.sees('#tree [data-key="/etc"] .name').click()
    browser.sees('#tree [data-key="/etc/motd"] .name').click()
    browser.sees("#detail h3", "/etc/motd")
    browser.sees("#detail .diff .added", "+new")
    browser.sees("#detail .diff .deleted", "-old")
    assert browser.sees('#tree [data-key="/etc/%3Cb%3E"] .name').text == "<b>"


def test_a_tile_and_a_row_of_the_waste_lead_to_the_file(browser: Browser, written: str) -> None:
    browser.open(written)
    for selector in (".treemap .tile rect", ".waste button.link"):
        browser.driver.refresh()
        browser.sees('#tree [role="treeitem"]')
        browser.driver.execute_script("arguments[0].scrollIntoView()", browser.find(selector)[0])
        browser.find(selector)[0].click()
        browser.sees("#detail h3", "/cache")


def test_search_finds_and_an_empty_search_shows_the_tree_again(browser: Browser, written: str) -> None:
    browser.open(written)
    browser.find("#search")[0].send_keys("MOTD")
    browser.sees("#tree-note", "1 found")
    assert [one.text for one in browser.find("#tree .name")] == ["/etc/motd"]
    browser.press(*[Keys.BACKSPACE] * 4)
    browser.sees('#tree [data-key="/etc"]')


# --- everybody -------------------------------------------------------------------------------------


def test_the_keyboard_alone_reaches_a_file(browser: Browser, written: str) -> None:
    browser.open(written)
    browser.driver.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    assert browser.driver.switch_to.active_element.text == "Skip to the files"
    for _ in range(10):
        browser.press(Keys.TAB)
        if browser.focused("role") == "treeitem":
            break
    assert browser.focused() == "/etc"
    browser.press(Keys.ARROW_RIGHT)
    browser.sees('#tree [data-key="/etc/motd"]')
    browser.press(Keys.ARROW_DOWN, Keys.END, Keys.HOME, Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert browser.focused() == "/etc/motd"
    browser.press(Keys.ENTER)
    browser.sees("#detail h3", "/etc/motd")
    browser.press(Keys.ARROW_LEFT)
    assert browser.focused() == "/etc"
    browser.press(Keys.ARROW_LEFT)
    assert not browser.find('#tree [data-key="/etc/motd"]')
    browser.press(Keys.TAB)
    assert browser.focused("role") != "treeitem"


def test_everything_that_can_be_used_has_a_name(browser: Browser, mounted: Place, written: str) -> None:
    browser.open(written)
    found = browser.names()
    (mounted.view / "motd").unlink()
    with looking_at(browser, mounted):
        found += browser.names()
    assert {"button", "tree", "treeitem", "log", "searchbox"} <= {role for role, _ in found}
    assert not [one for one in found if not one[1]]
    assert ("treeitem", "motd, file, 6B, not visible, hidden by the upper") in found


def test_light_and_dark_are_the_users_and_can_be_changed(browser: Browser, written: str) -> None:
    for scheme, other in (("dark", "light"), ("light", "dark")):
        browser.emulate(prefers_color_scheme=scheme)
        browser.open(written)
        assert (sum(browser.colour("html", "backgroundColor")) < 382) == (scheme == "dark")
        browser.find("#scheme")[0].click()
        assert (sum(browser.colour("html", "backgroundColor")) < 382) == (other == "dark")


def luminance(colour: tuple[float, ...]) -> float:
    """WCAG 2.2, "relative luminance"."""
    parts = [one / 255 / 12.92 if one / 255 <= 0.04045 else ((one / 255 + 0.055) / 1.055) ** 2.4 for one in colour]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable(browser: Browser, written: str, scheme: str) -> None:
    browser.emulate(prefers_color_scheme=scheme)
    browser.open(written)
    browser.sees('#tree [data-key="/etc"] .name').click()
    browser.sees('#tree [data-key="/etc/motd"] .name').click()
    browser.sees("#detail .diff .added")
    pairs = [(selector, selector) for selector in (".badge", ".diff .added", ".diff .deleted")]
    pairs += [
        (".box h3", ".box"),
        (".note", "main > section"),
        ("dt", "main > section"),
        (".gone .name", ".files"),
        (".link", ".waste"),
        (".says-seen td", ".detail"),
        (".says-hidden td", ".detail"),
        (".size", ".files"),
    ]
    for text, ground in pairs:
        dark, bright = sorted(
            (luminance(browser.colour(text, "color")), luminance(browser.colour(ground, "backgroundColor")))
        )
        assert (bright + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_cut_off_at_the_side(browser: Browser, written: str, width: int) -> None:
    browser.emulate(width)
    browser.open(written)
    browser.sees('#tree [data-key="/etc"] .name').click()
    assert browser.driver.execute_script("return document.documentElement.scrollWidth") <= width


def test_nothing_moves_for_who_wants_that(browser: Browser, written: str) -> None:
    browser.emulate(prefers_reduced_motion="reduce")
    browser.open(written)
    duration = "return getComputedStyle(document.querySelector('.box')).transitionDuration"
    assert set(browser.driver.execute_script(duration).split(", ")) == {"0s"}
