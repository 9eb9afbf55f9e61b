"""Chromium without a window, driven over a pipe: the DevTools protocol is JSON, and each message ends with a zero byte."""
import contextlib
import json
import shutil
import subprocess
import time

FOUND = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# A script sees `all(selector)`: the elements of the page, those in shadow trees too.
ALL = """const all = (selector, root = document) => [...root.querySelectorAll(selector),
    ...[...root.querySelectorAll('*')].filter(e => e.shadowRoot).flatMap(e => all(selector, e.shadowRoot))];\n"""


class Page:
    """A page of a browser."""

    def __init__(self, requests, answers):
        self.requests, self.answers, self.count, self.session = requests, answers, 0, {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}

    def call(self, method, **params):
        """The result of a method of the protocol."""
        self.count += 1
        self.requests.write(json.dumps({"id": self.count, "method": method, "params": params, **self.session}).encode() + b"\0")
        self.requests.flush()
        while True:     # events come in between
            message = b""
            while not message.endswith(b"\0"):
                part = self.answers.read(1)
                assert part, "expected an answer, got the end of Chromium"
                message += part
            if (answer := json.loads(message[:-1])).get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, url):
        self.call("Page.navigate", url=url)

    def wait_for(self, script, seconds=60):
        """The value of an expression of JavaScript, once it is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = self.call("Runtime.evaluate", expression=f"{{{ALL}{script}}}", returnByValue=True)["result"].get("value")
            if found:
                return found
            time.sleep(0.2)
        raise AssertionError(f"expected {script}, got nothing for {seconds} s")


@contextlib.contextmanager
def page(folder):
    """A page of a new browser, whose profile is in a folder."""
    # A sandbox needs rights that root in a container may not have; what is opened here is our own.
    command = [FOUND, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
               "--window-size=1400,1000", "--remote-debugging-pipe", f"--user-data-dir={folder}"]
    with subprocess.Popen(["sh", "-c", 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null', "sh", *command], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as browser:
        try:
            yield Page(browser.stdin, browser.stdout)
        finally:
            browser.kill()
