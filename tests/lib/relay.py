"""A cable that tests hold in their hands: relays TCP connections to a port of this machine, and can be cut, held up and lied into."""
import select
import socket
import threading
import time


class Relay:
    """Connections to `port` (a free one, of `address`) reach `target`, a port of this machine or (address, port). `rate`: bytes a
    second of a connection towards the client, `rate_up`: towards the target, 0: as fast as it goes; both may be changed meanwhile.
    `lie`: called with each piece that goes to the client, gives what goes in its place."""

    def __init__(self, target, rate=0, lie=None, address="127.0.0.1", rate_up=0):
        self.target = target if isinstance(target, tuple) else ("127.0.0.1", target)
        self.rate, self.rate_up, self.lie = rate, rate_up, lie
        self.listener = socket.create_server((address, 0))
        self.port = self.listener.getsockname()[1]
        self.down = self.ended = False
        self.connections = self.to_client = 0
        self.pairs = []
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.accept, daemon=True)]
        self.threads[0].start()

    def accept(self):
        self.listener.settimeout(0.1)
        while not self.ended:
            try:
                client, _ = self.listener.accept()
            except socket.timeout:
                continue
            except OSError:
                return
            if self.down:
                client.close()
                continue
            try:
                server = socket.create_connection(self.target, 5)
            except OSError:
                client.close()
                continue
            self.connections += 1
            with self.lock:
                self.pairs.append((client, server))
            thread = threading.Thread(target=self.carry, args=(client, server), daemon=True)
            self.threads.append(thread)
            thread.start()

    def carry(self, client, server):
        try:
            while not self.ended:
                for ready in select.select([client, server], [], [], 0.1)[0]:
                    data = ready.recv(65536)
                    if not data:
                        return
                    if ready is server:
                        self.to_client += len(data)
                        if self.lie:
                            data = self.lie(data)
                    if rate := self.rate if ready is server else self.rate_up:
                        time.sleep(len(data) / rate)
                    (client if ready is server else server).sendall(data)
        except (OSError, ValueError):
            pass
        finally:
            client.close()
            server.close()

    def cut(self, down=False):
        """All connections end in the middle; `down`: and no new one is made until up()."""
        self.down = down
        with self.lock:
            for pair in self.pairs:
                for end in pair:
                    try:
                        end.shutdown(socket.SHUT_RDWR)
                    except OSError:
                        pass
            self.pairs = []

    def up(self):
        self.down = False

    def close(self):
        self.ended = True
        self.cut(True)
        self.listener.close()
        for thread in self.threads:
            thread.join(timeout=5)
