"""The kernel's queue of a listening TCP socket: closed to new connections, while those begun are let in.

Closing a listening socket resets whatever is in its queue, so all that is in it is accepted first. But a
connection may come in between the last accept and the close, and its caller, who is connected already, would
be reset. So for a moment before the end a packet filter lets nobody begin a connection: the first packet is
dropped as if it were lost, and when it is sent again, a second later, it is refused.
"""

from __future__ import annotations

import ctypes
import logging
import socket
import struct
import sys
from collections.abc import Iterator

_LOG = logging.getLogger("sidecert.backlog")

HANDSHAKES = 0.1
"""Seconds for connections that have begun to be made: their last packet is a round trip away."""

# Classic BPF on the TCP header, which is what the filter of a TCP socket sees: drop what has SYN and no ACK.
_SO_ATTACH_FILTER = 26
_FLAGS, _SYN, _SYN_ACK, _ALL = 13, 0x02, 0x12, 0xFFFF_FFFF
_PROGRAM = (
    (0x30, 0, 0, _FLAGS),  # load that byte
    (0x54, 0, 0, _SYN_ACK),  # keep these two bits
    (0x15, 0, 1, _SYN),  # if it is a SYN alone, go on, else skip one
    (0x06, 0, 0, 0),  # drop it
    (0x06, 0, 0, _ALL),  # take all of it
)


def close_to_new(sock: socket.socket) -> bool:
    """Let no connection to `sock` begin any more; False where this system cannot do that.

    Accepted connections are not affected, whether they were accepted before or will be.
    """
    if sys.platform != "linux" or sock.family == socket.AF_UNIX:
        return False  # a unix socket's file is removed: nobody finds it any more
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in _PROGRAM))
    try:
        program = struct.pack("HP", len(_PROGRAM), ctypes.addressof(code))
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
    except OSError as exc:
        _LOG.debug("the kernel takes no packet filter: %s", exc.strerror)
        return False
    return True


def accept_queued(sock: socket.socket) -> Iterator[socket.socket]:
    """The connections that wait in the kernel's queue, until there is none left.

    Closing a listening socket resets those that are still in it.
    """
    while True:
        try:
            accepted, _ = sock.accept()
        except OSError:  # BlockingIOError: none left; else no descriptor is free, and no other will be
            return
        accepted.setblocking(False)
        yield accepted
