"""Start the browser page: Streamlit's server, shut to everything but what the page needs."""

import os
import socket
import sys
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path

from lookalike.base.errors import LookalikeError

MAX_MEGABYTES = 16  # of a picture
SETTINGS = {
    "browser.gatherUsageStats": "false",  # nobody is told anything
    "client.showErrorDetails": "none",  # a visitor need not see where our files lie; the terminal does
    "client.showErrorLinks": "false",
    "client.toolbarMode": "minimal",
    "server.enableXsrfProtection": "true",
    "server.fileWatcherType": "none",
    "server.headless": "true",  # asks for no e-mail and opens no window
    "server.maxUploadSize": str(MAX_MEGABYTES),
    "theme.light.primaryColor": "#1f5fa8",
    "theme.dark.primaryColor": "#6aa9e9",
}


def run(port: int, host: str, options: dict[str, Path | None]) -> None:
    """Become the server, which runs until it is stopped.

    options  of app.py, by name; None for one that was not given.

    Raises LookalikeError where Streamlit is not installed.
    """
    command, environment = how(port, host, options)
    sys.stdout.flush()
    os.execve(command[0], command, environment)  # noqa: S606  # no shell is meant


def how(port: int, host: str, options: dict[str, Path | None]) -> tuple[list[str], dict[str, str]]:
    """The command that serves the page, and its environment."""
    if find_spec("streamlit") is None:
        raise LookalikeError("Streamlit is not installed: pip install -r requirements/serve.txt")
    settings = [f"--{name}={value}" for name, value in SETTINGS.items()]
    settings += [f"--server.port={port}", f"--server.address={host}"]
    if _is_loopback(host):  # no other name leads here, whatever a page elsewhere makes a browser believe
        settings += [f"--server.allowedHosts={name}" for name in ("localhost", "127.0.0.1", "[::1]")]
    elif host in ("0.0.0.0", "::"):  # noqa: S104  # named, this machine's address is not looked up on the internet
        settings.append(f"--browser.serverAddress={socket.gethostname()}")
    given = [f"--{name}={path}" for name, path in options.items() if path is not None]
    app, here = Path(__file__).with_name("app.py"), Path(__file__).parents[2]
    command = [sys.executable, "-m", "streamlit", "run", str(app), *settings, "--", *given]
    paths = os.pathsep.join(filter(None, [str(here), os.environ.get("PYTHONPATH")]))
    return command, {**os.environ, "PYTHONPATH": paths}


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
