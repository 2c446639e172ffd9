"""Where a node is reached: the address that it takes, and the key that others need there."""

import socket
from pathlib import Path

from node.api.callers import Proxies
from node.api.connections import Bounds
from node.api.server import is_loopback
from node.config import Config
from node.home import Home, HomeError


class CannotListen(HomeError):
    """The address is taken, or not this machine's."""

    def __init__(self, host: str, port: int, why: str) -> None:
        super().__init__(f"cannot listen on {host}:{port}: {why}: choose another --port or --host")


class NeedsApiKey(HomeError):
    """A node that others can reach must ask its clients for a key."""

    def __init__(self, host: str, folder: Path) -> None:
        super().__init__(
            f"listening on {host} lets others in: make an API key first, with `idlemesh key api --home {folder}`"
        )


def api_key(home: Home, config: Config) -> str | None:
    """The key that `/v1` asks for, where others can reach it. Raises NeedsApiKey."""
    if is_loopback(config.node.host):
        return None
    key = home.api_key()
    if key is None:
        raise NeedsApiKey(config.node.host, home.folder)
    return key


def bounds(config: Config) -> Bounds:
    """What connections may hold: this machine's own programs, and proxies that come for many, may have any number."""
    proxies = Proxies(config.node.trusted_proxies)
    return Bounds(trusted=lambda address: is_loopback(address) or address in proxies)


def listen(host: str, port: int) -> socket.socket:
    """Take an address before anything slow begins. Raises CannotListen."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(128)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise CannotListen(host, port, error.strerror or str(error)) from None
    return listener


def url_of(host: str, listener: socket.socket) -> str:
    """How what listens there is reached by a host's name."""
    port = listener.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"
