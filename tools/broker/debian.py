"""Debian's RabbitMQ, unpacked into our cache folder."""

import tempfile
from pathlib import Path

from tools.broker.base import FOLDER, check_path
from tools.common import run

DEBIAN = FOLDER / "debian"


def unpack() -> None:
    """Download Debian's rabbitmq-server and what it needs, and unpack it into DEBIAN.

    We don't install the packages, for three reasons. Installing requires root. An
    interruption leaves packages half-configured. And the package adds a service, which
    starts at every boot and listens on all interfaces. Deleting the folder undoes this.

    Raises ToolError.
    """
    check_path(DEBIAN)
    FOLDER.mkdir(parents=True, exist_ok=True)
    print(f"Downloading Debian's RabbitMQ into {FOLDER}, once.", flush=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as name:
        new = Path(name)
        for folder in ("lists/partial", "archives/partial"):
            (new / folder).mkdir(parents=True)
        apt = ["apt-get", "-q", "-y"]
        for option in (
            f"Dir::State::Lists={new}/lists",
            f"Dir::Cache={new}",
            "APT::Sandbox::User=root",  # the user _apt can't write to our folder
            "Debug::NoLocking=true",  # we don't change what the lock protects
        ):
            apt += ["-o", option]
        run(*apt, "update")
        install = ["install", "--download-only", "--no-install-recommends"]
        run(*apt, *install, "rabbitmq-server")
        for package in new.glob("archives/*.deb"):
            run("dpkg-deb", "-x", str(package), f"{new}/root")
        erl, home = new / "root/usr/lib/erlang/bin/erl", "/usr/lib/erlang"
        erl.write_text(erl.read_text().replace(home, f"{DEBIAN}{home}"))
        (new / "root").rename(DEBIAN)
