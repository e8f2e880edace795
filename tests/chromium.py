"""A headless Chromium that tests speak to through its debugging pipe: no driver and no network is needed."""

import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = "--headless --no-sandbox --disable-gpu --hide-scrollbars --disable-dev-shm-usage --no-first-run"
QUIET = "--disable-background-networking --disable-component-update --disable-sync --disable-extensions"
# so that what stands in a frame can be looked at from the page that holds it
QUIET += " --disable-features=IsolateSandboxedIframes"


# What reaches beyond the window, unless it is in a box that scrolls or in a picture.
OUTSIDE = """[...document.querySelectorAll("body *")].filter((e) => e.offsetParent
  && !e.closest((innerWidth < 640 ? ".wide:not(.whole)" : ".wide") + ", .image, .plot, svg, canvas")
  && e.getBoundingClientRect().right > innerWidth + 0.5)
  .map((e) => e.id || e.className || e.tagName)"""


def find():
    """The browser's path, None if there is none, or no pipe of the kind that it is spoken to through."""
    return next(filter(None, map(shutil.which, NAMES)), None) if os.name == "posix" else None


class Navigated(RuntimeError):
    """The page that was asked went to another address before it answered."""


class Chromium:
    """One page of one browser process.

    Attributes:
        console: what pages said or threw since `open`.
        requests: the addresses that were asked for since `open`.
    """

    def __init__(self, path):
        import fcntl  # where there is POSIX

        self.profile = tempfile.mkdtemp()
        theirs, self.into = os.pipe()
        self.out, answers = os.pipe()
        # above the numbers 3 and 4, which the browser reads from and writes to
        theirs, answers = (fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (theirs, answers))

        def as_three_and_four():
            os.dup2(theirs, 3)
            os.dup2(answers, 4)

        command = [
            path,
            *OPTIONS.split(),
            *QUIET.split(),
            "--remote-debugging-pipe",
            f"--user-data-dir={self.profile}",
        ]
        self.process = subprocess.Popen(
            [*command, "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=as_three_and_four,
            pass_fds=(3, 4),
        )
        os.close(theirs)
        os.close(answers)
        self.number, self.session, self.rest, self.events = 0, None, b"", []
        self.console, self.requests = [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def close(self):
        self.process.terminate()
        self.process.wait(timeout=20)
        os.close(self.into)
        os.close(self.out)
        shutil.rmtree(self.profile, ignore_errors=True)

    def call(self, method, **params):
        """The result of one command of the DevTools protocol."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self.into, json.dumps(message).encode() + b"\0")
        wanted = self.number
        while True:
            answer = self._next()
            if answer.get("id") == wanted:
                if "error" in answer:
                    moved = "navigated" in answer["error"]["message"]
                    raise (Navigated if moved else RuntimeError)(f"{method}: {answer['error']}")
                return answer["result"]

    def _next(self, seconds=60):
        deadline = time.monotonic() + seconds
        while b"\0" not in self.rest:
            if not select.select([self.out], [], [], max(0, deadline - time.monotonic()))[0]:
                raise TimeoutError("the browser does not answer")
            more = os.read(self.out, 1 << 20)
            if not more:
                raise RuntimeError("the browser has ended")
            self.rest += more
        message, _, self.rest = self.rest.partition(b"\0")
        answer = json.loads(message)
        params = answer.get("params", {})
        kind = answer.get("method", "")
        if kind in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.console.append(params)
        elif kind == "Network.requestWillBeSent" and not params["request"]["url"].startswith("data:"):
            self.requests.append(params["request"]["url"])  # what is asked for and not in the page itself
        self.events.append(kind)
        return answer

    def open(self, path, *, anchor="", width=1280, height=900, scheme="light", scripts=True):
        """Load a file as on a screen of this size, and wait until it is there."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self._go("about:blank")  # else a new address of the same file would not load it again
        self.console, self.requests = [], []
        self._go(f"file://{path}{anchor}")

    def _go(self, address):
        self.events = []
        self.call("Page.navigate", url=address)
        while "Page.loadEventFired" not in self.events:
            self._next()

    def run(self, script):
        """The value of a JavaScript expression in the page; a promise is waited for."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"])
        return result["result"].get("value")

    def wait(self, script, otherwise, seconds=20):
        """Until a JavaScript expression is true, in whatever page is there by then; else fail, saying so."""
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(Navigated):
                if self.run(script) is True:
                    return
            assert time.monotonic() < deadline, otherwise

    def key(self, name):
        """Press a key of this name, such as ArrowLeft."""
        self.call("Input.dispatchKeyEvent", type="keyDown", key=name)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=name)

    def point(self, selector, across=0.5, down=0.5):
        """Move the pointer over the first element that the selector finds, as far across and down it."""
        x, y = self.run(
            f"e = document.querySelector({selector!r}); e.scrollIntoView({{block: 'center'}}); "
            f"r = e.getBoundingClientRect(); [r.x + r.width * {across}, r.y + r.height * {down}]"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        return x, y

    def check(self, path, width, scheme):
        """Open a page and all that is folded in it: it is silent, asks for nothing, fits on the screen."""
        self.open(path, width=width, scheme=scheme)
        assert self.run("matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")
        assert self.run("[innerWidth, document.documentElement.scrollWidth]") == [width, width]
        assert self.run(OUTSIDE) == []
        self.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        assert self.run(OUTSIDE) == []
        assert self.requests == [f"file://{path}"] and self.console == []

    def text(self, name):
        """What stands in the element of this id."""
        return self.run(f"document.getElementById({name!r}).textContent")

    def picture(self):
        """The whole page as a PNG, base64."""
        return self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
