"""A child that does what its arguments say: the faults of FAULTS.md F20-F22 without any model."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time

from lathe.engine import wire


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[1]))
    act = sys.argv[2]
    if act == "echo":
        for message in wire.receive_blocking(channel, object):
            channel.sendall(wire.frame(message))
    elif act == "environment":
        channel.sendall(wire.frame(dict(os.environ)))
        channel.sendall(wire.frame({"session": os.getsid(0), "stdin": os.path.realpath("/proc/self/fd/0")}))
    elif act == "segfault":
        ctypes.string_at(0)
    elif act == "signal":
        os.kill(os.getpid(), int(sys.argv[3]))
    elif act == "exit":
        print(*sys.argv[4:], file=sys.stderr)
        sys.exit(int(sys.argv[3]))
    elif act == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        helper = subprocess.Popen(["sleep", "600"])
        channel.sendall(wire.frame(helper.pid))
        time.sleep(600)
    elif act == "helper":
        helper = subprocess.Popen(["sleep", "600"])
        channel.sendall(wire.frame(helper.pid))
    elif act == "flood":
        line = b"x" * 1023 + b"\n"
        channel.sendall(wire.frame("flooding"))
        for _ in range(int(sys.argv[3])):
            os.write(2, line)
        os.write(2, b"the last line\n")
    elif act == "stuck":
        # No Python code runs any more and the channel is not read: only the kernel can end this.
        channel.sendall(wire.frame(os.getpid()))
        ctypes.PyDLL(None).sleep(600)


main()
