"""The pictures and the page under docs/, from a finished demo.

    make demo
    python docs/make_images.py demo

Screenshots need Playwright (in requirements.lock) and Chromium (AVEL_CHROMIUM, or `chromium` on the path).
"""

import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

DOCS = Path(__file__).parent
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


def main(demo: Path) -> None:
    images, page = DOCS / "images", DOCS / "demo"
    shutil.rmtree(page, ignore_errors=True)
    page.mkdir()  # the folder of images holds those of benchmarks too
    for file in demo.glob("index*"):  # the page and the clips beside it
        shutil.copy(file, page)
    clips = sorted((demo / "clips").glob("*.html"))
    shutil.copy(clips[0].with_suffix(".png"), images / "timeline.png")
    shutil.copy(sorted((demo / "long").glob("*.png"))[0], images / "long.png")
    shutil.copy(demo / "runs" / "ccln" / "plots" / "curves.png", images)
    shutil.copy(demo / "runs" / "ccln" / "plots" / "confusion_test.png", images)
    shutil.copy(demo / "classes.png", images)
    with sync_playwright() as playwright:
        path = os.environ.get("AVEL_CHROMIUM") or shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=path, args=QUIET)
        for name, file in {"demo": demo / "index.html", "clip": clips[0]}.items():
            for width in (1280, 390):
                view = browser.new_page(viewport={"width": width, "height": 900})
                view.goto(file.resolve().as_uri())
                view.wait_for_function("[...document.querySelectorAll('video')].every(video => video.readyState >= 2)")
                view.wait_for_timeout(1000)  # the player takes its sign of loading away
                view.screenshot(path=images / f"{name}_{width}.png", full_page=True)
        browser.close()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
