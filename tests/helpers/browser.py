"""A real browser, if one is installed."""

import importlib.util
import shutil
import time

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage")


def no_browser():
    """Return whether to skip tests that need a browser, and the reason for skipping them."""
    if importlib.util.find_spec("selenium") is None:
        return True, "needs selenium (clbench[test])"
    return not (BROWSER and DRIVER), "needs Chromium and its chromedriver"


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
    return found


def find(browser, selector):
    return browser.find_elements("css selector", selector)
