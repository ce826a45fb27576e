"""The page, in a real browser that a driver of the W3C WebDriver protocol runs (Debian: chromium-driver)."""

import json
import shutil
import subprocess
import urllib.request

import pytest

from tests.serving import golden_pair, serving, wait_until

DRIVER = shutil.which("chromedriver")
CHROMIUM = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(DRIVER is None, reason="there is no chromedriver")]


class Browser:
    """A session of the driver."""

    def __init__(self, port: int):
        self._address = f"http://127.0.0.1:{port}/session"
        options = {
            "capabilities": {"alwaysMatch": {"goog:chromeOptions": {"args": CHROMIUM}, "goog:loggingPrefs": {"browser": "ALL"}}}
        }
        self._address += "/" + self._post("", options)["sessionId"]

    def _post(self, path: str, body: dict | None, method: str = "POST"):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._address + path, data, {"content-type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as found:
            return json.load(found)["value"]

    def open(self, url: str) -> None:
        self._post("/url", {"url": url})

    def run(self, script: str):
        return self._post("/execute/sync", {"script": script, "args": []})

    def close(self) -> None:
        self._post("", None, "DELETE")

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self._post("/se/log", {"type": "browser"}) if entry["level"] == "SEVERE"]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(golden_pair(tmp_path_factory.mktemp("pair"))) as found:
        yield found


@pytest.fixture
def browser(served):
    driver = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        line = next(line for line in driver.stdout if "started successfully on port" in line)
        found = Browser(int(line.rstrip(".\n").rpartition(" ")[2]))
        found.open(served.url)
        yield found
        found.close()
    finally:
        driver.terminate()
        driver.wait(30)


def ask(browser: Browser, text: str, **fields: str) -> None:
    for name, value in fields.items():
        browser.run(f"document.getElementById({name!r}).value = {value!r}")
    browser.run(f"document.getElementById('prompt').value = {text!r}; document.getElementById('send').click()")


def figures(browser: Browser) -> str:
    return browser.run("return [...document.querySelectorAll('.figures')].at(-1)?.textContent ?? ''")


def test_a_chat_shows_the_reply_its_drafts_and_its_figures(served, browser):
    wait_until(lambda: browser.run("return document.getElementById('model').textContent") == "golden")
    ask(browser, "hello", seed="3", temperature="0", tokens="40")
    wait_until(lambda: "tokens per step" in figures(browser))
    said = browser.run("return document.querySelector('[data-who=model] span').textContent")
    message = {"role": "user", "content": "hello"}
    whole = served.client().chat.completions.create(
        model="golden", messages=[message], temperature=0, max_tokens=40, extra_body={"return_metrics": True, "return_drafts": True}
    )
    assert said == whole.choices[0].message.content
    drafts = [text for text, drafted in whole.choices[0].drafts if drafted and text]
    tinted = browser.run("return [...document.querySelectorAll('#log .draft')].map(part => part.textContent).filter(Boolean)")
    assert tinted == drafts and drafts
    tint = browser.run("return getComputedStyle(document.querySelector('#log .draft')).backgroundColor")
    assert tint not in ("rgba(0, 0, 0, 0)", "transparent")
    assert f"{whole.metrics['tokens_per_step']:.2f} tokens per step" in figures(browser) and "tokens/s" in figures(browser)
    ask(browser, "a", tokens="5")
    wait_until(lambda: "has room for prompts" in figures(browser))  # the conversation has outgrown the room for prompts
    browser.run("document.getElementById('clear').click()")
    ask(browser, "a", tokens="5")
    wait_until(lambda: figures(browser).startswith("5 tokens") and "seed 3" in figures(browser))
    assert [said for said in browser.complaints() if "400" not in said] == []


def test_what_goes_wrong_is_shown_and_a_reply_can_be_stopped(served, browser):
    ask(browser, "a", tokens="1000")
    wait_until(lambda: "max_tokens should be at most" in figures(browser))
    browser.run("document.getElementById('mode').value = 'text'")
    ask(browser, "<b>a</b>", tokens="90", temperature="1")
    browser.run("document.getElementById('stop').click()")
    wait_until(lambda: figures(browser))
    assert browser.run("return document.querySelectorAll('#log b').length") == 0
    served.wait_until_idle()
