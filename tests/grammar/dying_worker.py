"""A compiling process that crashes at its first task."""

from __future__ import annotations

import os
import signal
import socket
import sys

from stemma.backend.grammar.worker import Ready, receive, send

if __name__ == "__main__":
    sock = socket.socket(fileno=int(sys.argv[1]))
    send(sock, Ready())
    receive(sock)
    os.kill(os.getpid(), signal.SIGSEGV)
