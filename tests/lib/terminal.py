"""A pseudo-terminal that a command writes to, and what a person would see on it."""
import fcntl
import os
import pty
import re
import select
import struct
import termios


class Terminal:
    """`slave` is for the command; read() takes what it wrote."""

    def __init__(self, columns):
        self.master, self.slave = pty.openpty()
        self.resize(columns)
        self.written = ""

    def resize(self, columns):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def release(self):
        """The command has it now: its end is seen as such."""
        if self.slave is not None:
            os.close(self.slave)
            self.slave = None

    def read(self, seconds=0.05):
        """Takes what is there within `seconds`; False at the end."""
        while select.select([self.master], [], [], seconds)[0]:
            try:
                data = os.read(self.master, 65536)
            except OSError:  # EIO: nobody has it open any more
                return False
            if not data:
                return False
            self.written += data.decode(errors="replace")
            seconds = 0
        return True

    def close(self):
        self.release()
        os.close(self.master)


def lines(text):
    """What stays on the screen: each line as it is after carriage returns and erasures."""
    shown = []
    for line in text.replace("\r\n", "\n").split("\n"):
        current = ""
        for part in re.split(r"(\r|\x1b\[K)", line):
            current = "" if part in ("\r", "\x1b[K") else current + part
        shown.append(current)
    return shown


def live_lines(text):
    """What was drawn to be erased again."""
    return re.findall(r"\r\x1b\[K([^\r\n\x1b]+)(?=\r\x1b\[K)", text)
