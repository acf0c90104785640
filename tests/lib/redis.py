"""A small client for Redis' protocol: enough for loads and proofs."""
import socket


class RedisError(Exception):
    pass


def encode(*parts):
    out = [b"*%d\r\n" % len(parts)]
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        out.append(b"$%d\r\n%s\r\n" % (len(data), data))
    return b"".join(out)


class Client:
    """One connection. Errors of the connection are OSError."""

    def __init__(self, host, port, timeout=5.0):
        self.socket = socket.create_connection((host, port), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def close(self):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def _more(self):
        data = self.socket.recv(1 << 16)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        self.buffer += data

    def _line(self):
        while b"\r\n" not in self.buffer:
            self._more()
        line, self.buffer = self.buffer.split(b"\r\n", 1)
        return line

    def reply(self):
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest
        if kind == b"-":
            return RedisError(rest.decode(errors="replace"))
        if kind == b":":
            return int(rest)
        if kind == b"$":
            n = int(rest)
            if n < 0:
                return None
            while len(self.buffer) < n + 2:
                self._more()
            data, self.buffer = self.buffer[:n], self.buffer[n + 2:]
            return data
        if kind == b"*":
            return [self.reply() for _ in range(int(rest))] if rest != b"-1" else None
        raise RedisError(f"not Redis' protocol: {line[:60]!r}")

    def command(self, *parts):
        self.send(encode(*parts))
        value = self.reply()
        if isinstance(value, RedisError):
            raise value
        return value

    def batch(self, commands):
        """Pipelines; raises on the first error reply."""
        self.send(b"".join(encode(*c) for c in commands))
        replies = [self.reply() for _ in commands]
        for r in replies:
            if isinstance(r, RedisError):
                raise r
        return replies
