"""A headless Chromium, driven through its DevTools protocol over a pipe: nothing to install beside Chromium itself."""

import base64
import json
import os
import shutil
import subprocess
import time

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
in_a_browser = pytest.mark.skipif(
    CHROMIUM is None or os.name == "nt", reason="needs chromium or google-chrome, on Linux or macOS"
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --remote-debugging-pipe"
).split()


class Browser:
    """One page. What it asked the network for is in .requests, what went wrong in it is in .wrong."""

    def __init__(self, profile, width=1280, height=900, dark=False):
        import fcntl  # Windows has none

        (read, self.write), (self.read, write) = os.pipe(), os.pipe()
        read, write = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (read, write))

        def give_ends():  # in the child: it reads from 3 and writes to 4
            os.dup2(read, 3)
            os.dup2(write, 4)

        command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, preexec_fn=give_ends, close_fds=False, **quiet)
        os.close(read)
        os.close(write)
        self.rest, self.n, self.session, self.requests, self.wrong = b"", 0, None, [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")
        mobile = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.session = None
        self.call("Browser.close")
        self.process.wait(timeout=60)
        os.close(self.write)
        os.close(self.read)

    def call(self, method, **parameters):
        self.n += 1
        message = {"id": self.n, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.n:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _next(self):
        while b"\0" not in self.rest:
            more = os.read(self.read, 2**16)
            assert more, "the browser has ended"
            self.rest += more
        first, self.rest = self.rest.split(b"\0", 1)
        message = json.loads(first)
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        if message.get("method") == "Runtime.exceptionThrown":
            self.wrong.append(message["params"]["exceptionDetails"])
        if message.get("method") == "Runtime.consoleAPICalled" and message["params"]["type"] == "error":
            self.wrong.append(message["params"]["args"])
        return message

    def open(self, url):
        self.call("Page.navigate", url=url)
        self.until(f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'")

    def js(self, expression):
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, expression, seconds=60):
        end = time.monotonic() + seconds
        while not self.js(expression):
            assert time.monotonic() < end, f"not within {seconds} s: {expression}"
            time.sleep(0.05)

    def type(self, text):
        self.call("Input.insertText", text=text)

    def press(self, key, code=0, text="", **more):
        for kind in ("keyDown", "keyUp"):
            what = {"type": kind, "key": key, "windowsVirtualKeyCode": code, **more}
            self.call("Input.dispatchKeyEvent", **what, **({"text": text} if text and kind == "keyDown" else {}))

    def point_at(self, element):
        """element: an expression that gives one."""
        x, y = self.js(
            f"(() => {{ const e = {element}; e.scrollIntoView({{block: 'center', behavior: 'instant'}});"
            "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        return x, y

    def click(self, element):
        x, y = self.point_at(element)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def picture(self, path, whole=False):
        found = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))


def contrast(one, other):
    """WCAG 2.1: (L1 + 0.05) / (L2 + 0.05), of relative luminances."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


# Run in the page: everything that a reader could not read, reach or understand, as sentences.
CHECKS = """(() => {
  const shown = (e) => e.getClientRects().length > 0 && getComputedStyle(e).visibility === "visible";
  const said = (e) => `<${e.tagName.toLowerCase()}> ${(e.textContent || e.id || e.name || "").trim().slice(0, 40)}`;
  const wrong = [];
  const colour = (text) => {
    const c = document.createElement("canvas").getContext("2d");
    c.canvas.width = c.canvas.height = 1;
    c.fillStyle = text;
    c.fillRect(0, 0, 1, 1);
    return [...c.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const background = colour(getComputedStyle(e).backgroundColor);
      if (background[3] === 255) return background;
    }
    return [255, 255, 255, 255];
  };
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !shown(e) || e.closest("script, style, .visually-hidden")) continue;
    const style = getComputedStyle(e);
    const ink = colour(e.namespaceURI.endsWith("svg") ? style.fill : style.color);
    const [dark, light] = [luminance(ink.slice(0, 3)), luminance(behind(e).slice(0, 3))].sort((a, b) => a - b);
    const contrast = (light + 0.05) / (dark + 0.05);
    if (contrast < 4.5) wrong.push(`contrast ${contrast.toFixed(2)} of ${said(e)}`);
    if (parseFloat(style.fontSize) < 9) wrong.push(`small: ${said(e)}`);
  }
  for (const e of document.querySelectorAll("input, textarea, select, button, a[href], [tabindex='0']")) {
    if (!shown(e)) continue;
    const name = e.getAttribute("aria-label") || (e.labels && [...e.labels].map((l) => l.textContent).join(" "))
      || document.getElementById(e.getAttribute("aria-labelledby"))?.textContent || e.textContent;
    if (!name?.trim()) wrong.push(`no label: ${e.outerHTML.slice(0, 80)}`);
  }
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  for (const id of new Set(ids)) if (ids.filter((other) => other === id).length > 1) wrong.push(`two ids ${id}`);
  for (const e of document.querySelectorAll("[aria-describedby], [aria-labelledby], [aria-controls]")) {
    for (const name of ["aria-describedby", "aria-labelledby", "aria-controls"]) {
      const to = e.getAttribute(name);
      if (to && !document.getElementById(to)) wrong.push(`${name} leads nowhere: ${to}`);
    }
  }
  if (!document.documentElement.lang || !document.title) wrong.push("no language, or no title");
  for (const one of ["h1", "main"]) if (document.querySelectorAll(one).length !== 1) wrong.push(`not one ${one}`);
  const wide = document.documentElement.scrollWidth - innerWidth;
  if (wide > 0) wrong.push(`wider than the window by ${wide}`);
  return [...new Set(wrong)];
})()"""
