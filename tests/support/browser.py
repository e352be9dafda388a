"""A page in headless Chromium: what its DOM is once its scripts have run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no chromium: run tests/browser-setup.sh"
)
LIMIT = 90  # seconds
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)

# Listens before anything else of the page is there.
LISTENER = """<script>
const seen = [];
addEventListener("error", (event) => {
  seen.push("error: " + (event.message || event.target.src || event.target.href));
}, true);
addEventListener("securitypolicyviolation", (event) => seen.push("refused: " + event.blockedURI));
</script>"""
REPORTER = """<script>
addEventListener("load", () => {
  const said = document.createElement("pre");
  said.id = "measured";
  const requests = performance.getEntriesByType("resource").map((entry) => entry.name);
  said.textContent = JSON.stringify({ ...measure(), seen, requests });
  document.body.append(said);
});
</script>"""


def dump_dom(page: Path, profile: Path, *flags: str) -> str:
    """Open a file in a browser of its own, and give what has become of its markup."""
    assert BROWSER is not None
    command = [BROWSER, *FLAGS, *flags, f"--user-data-dir={profile}", "--window-size=1280,900"]
    process = subprocess.Popen(
        [*command, "--dump-dom", page.as_uri()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, said = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its helpers are of its group
        process.communicate()
        raise
    assert process.returncode == 0, said
    return out


class _Measured(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.text, self._is_in = "", False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._is_in = self._is_in or ("id", "measured") in attrs

    def handle_endtag(self, tag: str) -> None:
        self._is_in = self._is_in and tag != "pre"

    def handle_data(self, data: str) -> None:
        self.text += data if self._is_in else ""


def measure(html: str, script: str, folder: Path, *flags: str) -> dict[str, Any]:
    """Measure in a copy of a page.

    ``script`` defines ``measure()``, which runs once all is loaded and returns an object; what
    went wrong until then is in ``seen``, and what was asked for in ``requests``.
    ``flags`` are more of the browser's.
    """
    assert html.count("<head>") == html.count("</body>") == 1
    copy = folder / "copy.html"
    probed = html.replace("<head>", "<head>" + LISTENER)
    probed = probed.replace("</body>", f"<script>{script}</script>{REPORTER}</body>")
    copy.write_text(probed, encoding="utf-8")
    parser = _Measured()
    parser.feed(dump_dom(copy, folder / "profile", *flags))
    found: dict[str, Any] = json.loads(parser.text)
    return found
