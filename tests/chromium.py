"""Chromium, in which tests open the page of a report: where it is, and how it gets there.

python tests/chromium.py        before all other work of ``make test``, hence without anything that is installed
"""

import os
import platform
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
APT = "apt-get install --yes --no-install-recommends chromium"
#: What installs it, by package manager. Ubuntu's package for apt only calls snap.
COMMANDS = {
    "snap": "snap install chromium",
    "apt-get": APT,
    "dnf": "dnf install chromium",
    "pacman": "pacman -S chromium",
    "zypper": "zypper install chromium",
    "apk": "apk add chromium",
    "brew": "brew install --cask chromium",
}


def path() -> str | None:
    """Return where Chromium is, if it is anywhere."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def main() -> int:
    """Install Chromium on Debian; elsewhere, and where that fails, say the one command that does it. Return the exit
    code."""
    if path() or (debian() and _install() and path()):
        return 0
    print(f"make test opens a page in Chromium, which is not there. Install it first: {_command()}", file=sys.stderr)
    return 1


def debian() -> bool:
    """Return whether this is Debian itself."""
    try:
        return platform.freedesktop_os_release()["ID"] == "debian"
    except (OSError, KeyError):
        return False


def _command() -> str:
    manager = "apt-get" if debian() else next(filter(shutil.which, COMMANDS), None)
    if manager is None:
        return "it has to be a `chromium` on the PATH"
    if manager == "brew" or os.geteuid() == 0:
        return COMMANDS[manager]
    return f"{'sudo ' if shutil.which('sudo') else 'as root, '}{COMMANDS[manager]}"


def _install() -> bool:
    """Return whether apt installed it, with sudo where this is not root; sudo may ask for a password."""
    sudo = [] if os.geteuid() == 0 else ["sudo"]
    if sudo and not shutil.which("sudo"):
        return False
    print("make test opens a page in Chromium, which is not there: apt installs it", flush=True)
    prefix = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive"]
    return all(subprocess.run([*prefix, *command.split()]).returncode == 0 for command in ("apt-get update", APT))


if __name__ == "__main__":
    sys.exit(main())
