"""The entry of a Hugging Face Space: the browser page over the folder `bundle` beside this file.

python app.py            port 7860; PORT=8600 python app.py for another
"""

import os
from pathlib import Path

from lookalike.ui.launch import how

PORT = "7860"  # app_port in README.md
BUNDLE = Path(__file__).resolve().parent / "bundle"


def command() -> tuple[list[str], dict[str, str]]:
    """What serves the page, and its environment."""
    port = int(os.environ.get("PORT", PORT))
    serve, environment = how(port, "0.0.0.0", {"index": BUNDLE / "index", "model": BUNDLE / "model"})  # noqa: S104
    more = []
    if "SPACE_HOST" in environment:  # the last one given holds
        more.append(f"--browser.serverAddress={environment['SPACE_HOST']}")
    if "SPACE_ID" in environment:
        # huggingface.co shows the page in a frame on a page of its own, where a cookie of ours, which every upload must
        # bear, comes back only if it is marked so.
        more.append("--server.xsrfCookieSameSite=none")
    end = serve.index("--")
    return [*serve[:end], *more, *serve[end:]], environment


if __name__ == "__main__":
    become, surroundings = command()
    os.execve(become[0], become, surroundings)  # noqa: S606  # no shell is meant
