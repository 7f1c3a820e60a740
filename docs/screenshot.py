"""Take the picture of the graph that the README shows, from a running Dagster webserver, in headless Chromium.

python docs/screenshot.py http://127.0.0.1:3000 docs/images/graph.png
"""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]


def take(url: str, target: Path) -> None:
    """The global lineage view with every group open. Needs Debian's chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=QUIET)
        page = browser.new_page(viewport={"width": 2400, "height": 2500}, device_scale_factor=1)
        page.goto(f"{url}/asset-groups", wait_until="domcontentloaded")
        page.wait_for_timeout(8000)
        if page.get_by_text("Skip", exact=True).count():
            page.get_by_text("Skip", exact=True).first.click()
        page.keyboard.press("Alt+e")  # the UI's own shortcut for opening every group
        page.wait_for_timeout(3000)
        page.reload(wait_until="domcontentloaded")  # the address now names the open groups: it is fitted to the window
        page.wait_for_timeout(8000)
        page.screenshot(path=target, clip={"x": 560, "y": 365, "width": 1830, "height": 1780})
        browser.close()


if __name__ == "__main__":
    take(sys.argv[1], Path(sys.argv[2]))
