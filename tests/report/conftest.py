"""The HTML report in a real browser, headless, which all tests of a process share."""

import pytest
from helpers.browser import BROWSER, DRIVER, QUIET, until

from clbench.report import build
from clbench.report.formats.html import render


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    folder = tmp_path_factory.mktemp("browser")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in (*QUIET, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.add_experimental_option("prefs", {
        "download.default_directory": str(folder / "saved"),
        "profile.default_content_setting_values.automatic_downloads": 1})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.saved = folder / "saved"
    driver.page = folder / "report.html"
    yield driver
    driver.quit()


@pytest.fixture
def show(browser):
    """Return a function that opens the report on records; what the console says meanwhile is an error."""
    def opened(records, width=1400, scheme="light"):
        browser.page.write_text(render(build(records)), encoding="utf-8")
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                                {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia",
                                {"features": [{"name": "prefers-color-scheme", "value": scheme},
                                              {"name": "prefers-reduced-motion", "value": "reduce"}]})
        browser.get(browser.page.as_uri())
        until(lambda: browser.execute_script("return document.querySelectorAll('.stage svg').length"))
        return browser

    yield opened
    assert browser.get_log("browser") == []
