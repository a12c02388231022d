"""A real SSH server for one user of this machine: `python ssh_server.py HOME` trusts everyone and writes how to reach it.

The first connection is lost as it opens, as on a host that is busy.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import asyncssh


class Trusting(asyncssh.SSHServer):
    connections = 0

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        Trusting.connections += 1
        if Trusting.connections == 1:
            conn.abort()

    def begin_auth(self, username: str) -> bool:
        return False


async def serve(home: Path) -> None:
    async def run(process: asyncssh.SSHServerProcess[bytes]) -> None:
        pipe = subprocess.PIPE
        options = {"cwd": home, "stdin": pipe, "stdout": pipe, "stderr": pipe, "start_new_session": True}
        child = await asyncio.create_subprocess_shell(process.command, **options)
        try:
            await process.redirect(stdin=child.stdin, stdout=child.stdout, stderr=child.stderr)
            process.exit(await child.wait())
        finally:
            if child.returncode is None:
                os.killpg(child.pid, signal.SIGKILL)

    key = asyncssh.generate_private_key("ssh-ed25519")
    server = await asyncssh.listen(
        "127.0.0.1", 0, server_host_keys=[key], server_factory=Trusting, process_factory=run, encoding=None
    )
    folder = home / ".ssh"
    folder.mkdir()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{server.get_port()} {key.export_public_key().decode()}")
    config = folder / "config"  # whoever sees it finds it complete
    config.with_suffix(".new").write_text(
        f"Host 127.0.0.1\n  Port {server.get_port()}\n  UserKnownHostsFile {folder}/known_hosts\n"
    )
    config.with_suffix(".new").rename(config)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
