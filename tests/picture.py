"""The picture at the top of README.md: steps 2 to 4 of three scripts on the side-by-side page.

python -m tests.picture             writes docs/side_by_side.png, with the Chromium that the tests use
"""

import base64
import json
import sys
import tempfile
from pathlib import Path

from notebooks.side_by_side import Config, main
from tests.browser import Browser

SCRIPTS = ["0", "1", "2"]  # pretraining, SFT and LoRA
STEPS = ["2. data", "3. model", "4. what learns"]
ONLY = f"""
choose({json.dumps(SCRIPTS)});
document.getElementById("unfold").click();
document.activeElement.blur();
all("body > *:not(main), tbody.fold").forEach((other) => other.style.display = "none");
all("section").filter((section) => !{json.dumps(STEPS)}.includes(section.querySelector("h2").textContent))
  .forEach((other) => other.style.display = "none");
"""


def picture(out: Path, width: int = 1400) -> None:
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "page.html")
        main(Config(out=str(page)))
        with Browser(Path(folder, "profile"), width) as browser:
            browser.open(page.as_uri())
            browser.js(ONLY)
            height = int(browser.js("document.querySelector('main').getBoundingClientRect().height")) + 10
            clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
            taken = browser.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
    out.write_bytes(base64.b64decode(taken["data"]))
    print(f"{out}: {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    picture(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/side_by_side.png"))
