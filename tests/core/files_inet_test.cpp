// TCP and UDP sockets.
#include "files_testing.h"

#include <arpa/inet.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include "core/image/magic.h"
#include "images/tcp-stream.pb.h"

namespace migrate::files_testing {
namespace {

TEST_F(Files, TcpListensOnlyAfterTheGate) {
  const uint16_t port = free_port(SOCK_STREAM);
  const auto images = dump([&] {
    place_at(::socket(AF_INET, SOCK_STREAM, 0), 3);
    const int one = 1, idle = 99;
    ::setsockopt(3, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
    ::setsockopt(3, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    ::setsockopt(3, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    MUST(bind_to(3, port) == 0 && ::listen(3, 17) == 0);
    place_at(::socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0), 4);
    ::setsockopt(4, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one);
  });
  restore(
      images,
      [&] {
        int value = 0;
        socklen_t length = sizeof value;
        MUST(::getsockopt(3, SOL_SOCKET, SO_REUSEADDR, &value, &length) == 0 && value == 0);
        MUST(::getsockopt(3, IPPROTO_TCP, TCP_KEEPIDLE, &value, &length) == 0 && value == 99);
        MUST(::getsockopt(3, IPPROTO_TCP, TCP_NODELAY, &value, &length) == 0 && value != 0);
        MUST(::getsockopt(4, IPPROTO_IPV6, IPV6_V6ONLY, &value, &length) == 0 && value == 1);
        MUST((::fcntl(4, F_GETFL) & O_NONBLOCK) != 0);
        tcp_info info{};
        length = sizeof info;
        MUST(::getsockopt(3, IPPROTO_TCP, TCP_INFO, &info, &length) == 0 && info.tcpi_state == 10 &&
             info.tcpi_sacked == 17);
        MUST(port_of(3) == port);
        const Fd client(::socket(AF_INET, SOCK_STREAM, 0));
        MUST(connect_to(client.get(), port) == 0);
        MUST(Fd(::accept(3, nullptr, nullptr)).get() >= 0);
      },
      [&] {
        const Fd client(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
        connect_to(client.get(), port);
        pollfd p{client.get(), POLLOUT, 0};
        EXPECT_EQ(::poll(&p, 1, 100), 0) << "connected before the gate";
      });
}

TEST_F(Files, TcpConnectionsOutOfTheTreeAreRefusedOrReset) {
  const Fd listening(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const uint16_t port = free_port(SOCK_STREAM);
  MUST(bind_to(listening.get(), port) == 0 && ::listen(listening.get(), 5) == 0);
  const Work setup = [&] {
    place_at(::socket(AF_INET, SOCK_STREAM, 0), 4);
    MUST(connect_to(4, port) == 0);
  };
  refused(setup, "an established TCP connection to 127.0.0.1:" + std::to_string(port));
  const auto images = dump(setup, {{.tcp_close = true}});
  restore(images, [&] {
    char c;
    MUST(::read(4, &c, 1) == -1 && errno == ECONNRESET);
    MUST(::read(4, &c, 1) == 0);
    MUST(::send(4, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
  });
}

TEST_F(Files, TcpConnectionsOfTheTreeWithItselfStay) {
  const uint16_t port = free_port(SOCK_STREAM);
  const Work setup = [&] {
    place_at(::socket(AF_INET, SOCK_STREAM, 0), 3);
    const int one = 1;
    ::setsockopt(3, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    MUST(bind_to(3, port) == 0 && ::listen(3, 5) == 0);
    place_at(::socket(AF_INET, SOCK_STREAM, 0), 4);
    MUST(connect_to(4, port) == 0);
    place_at(::accept(3, nullptr, nullptr), 5);
    say(4, "waits");
  };
  restore(dump(setup), [&] {
    MUST(read_some(5) == "waits");
    say(5, "back");
    MUST(read_some(4) == "back");
    MUST(port_of(3) == port);
    place_at(::socket(AF_INET, SOCK_STREAM, 0), 6);
    MUST(connect_to(6, port) == 0);
  });
}

/// Sequence numbers, scales and lengths are those that somebody wrote.
TEST_F(Files, HostileTcpStreamsAreThrownOut) {
  const uint16_t port = free_port(SOCK_STREAM);
  const auto images = dump([&] {
    place_at(::socket(AF_INET, SOCK_STREAM, 0), 3);
    MUST(bind_to(3, port) == 0 && ::listen(3, 5) == 0);
    place_at(::socket(AF_INET, SOCK_STREAM, 0), 4);
    MUST(connect_to(4, port) == 0);
    place_at(::accept(3, nullptr, nullptr), 5);
    say(4, "waits");
  });
  const auto with = [&](const std::function<void(img::tcp_stream_entry&)>& change) {
    ImageSet changed;
    for (const auto& [name, bytes] : images.images()) {
      if (!name.starts_with("tcp-stream-")) {
        changed.adopt(name, bytes);
        continue;
      }
      auto reader = images.read(name, magic::kTcpStream);
      img::tcp_stream_entry entry;
      MUST(reader->next(entry));
      const std::vector<std::byte> data(reader->rest().begin(), reader->rest().end());
      change(entry);
      ImageWriter writer = changed.write(name, magic::kTcpStream);
      writer.entry(entry);
      writer.raw(data);
    }
    return changed;
  };
  EXPECT_THROW(FileRestorer(with([](auto& e) { e.set_inq_len(1 << 30); }), {}, *log).open_all(), Corrupt);
  EXPECT_THROW(FileRestorer(with([](auto& e) { e.set_outq_len(UINT32_MAX); }), {}, *log).open_all(), Corrupt);
  EXPECT_THROW(FileRestorer(with([](auto& e) { e.set_snd_wscale(15); }), {}, *log).open_all(), Corrupt);
  EXPECT_THROW(FileRestorer(with([](auto& e) { e.set_mss_clamp(0); }), {}, *log).open_all(), Corrupt);
  EXPECT_NO_THROW(FileRestorer(with([](auto& e) { e.set_outq_seq(e.outq_seq() + 77); }), {}, *log).open_all());
}

TEST_F(Files, UdpIsDeafUntilTheGate) {
  const uint16_t port = free_port(SOCK_DGRAM);
  const auto images = dump([&] {
    place_at(::socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0), 3);
    MUST(bind_to(3, port) == 0);
    sock_filter pass[] = {{BPF_LD | BPF_W | BPF_LEN, 0, 0, 0}, {BPF_RET | BPF_A, 0, 0, 0}};
    sock_fprog program{2, pass};
    MUST(::setsockopt(3, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0);
    place_at(::socket(AF_INET, SOCK_DGRAM, 0), 4);
    MUST(connect_to(4, port) == 0);
  });
  const Fd outside(::socket(AF_INET, SOCK_DGRAM, 0));
  restore(
      images,
      [&] {
        say(4, "after");
        pollfd p{3, POLLIN, 0};
        MUST(::poll(&p, 1, 5000) == 1);
        MUST(read_some(3) == "after");
        sock_filter code[16];
        socklen_t count = 16;
        MUST(::getsockopt(3, SOL_SOCKET, SO_GET_FILTER, code, &count) == 0 && count == 2);
      },
      [&] {
        connect_to(outside.get(), port);
        EXPECT_EQ(::send(outside.get(), "early", 5, 0), 5);
      });
}

/// What the kernel does not take is found before the gate, where a restore can still fail, and not behind it.
TEST_F(Files, SocketFiltersAreTriedBeforeTheGate) {
  const auto images = dump([&] {
    place_at(::socket(AF_INET, SOCK_DGRAM, 0), 3);
    MUST(bind_to(3, free_port(SOCK_DGRAM)) == 0);
    sock_filter pass[] = {{BPF_LD | BPF_W | BPF_LEN, 0, 0, 0}, {BPF_RET | BPF_A, 0, 0, 0}};
    sock_fprog program{2, pass};
    MUST(::setsockopt(3, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0);
    place_at(unix_at(at("server"), SOCK_DGRAM, false), 4);
    MUST(::setsockopt(4, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0);
  });
  {
    FileRestorer good(images, {}, *log);
    good.open_all();
    EXPECT_EQ(good.after_gate(), std::vector<std::string>());
  }
  for (const auto type : {img::fd_types::INETSK, img::fd_types::UNIXSK}) {
    ImageSet bad;
    for (const auto& [name, bytes] : images.images())
      if (name != "files.img") bad.adopt(name, bytes);
    for (auto [id, entry] : read_file_entries(images)) {
      img::sk_opts_entry* options =
          type == img::fd_types::INETSK && entry.has_isk()   ? entry.mutable_isk()->mutable_opts()
          : type == img::fd_types::UNIXSK && entry.has_usk() ? entry.mutable_usk()->mutable_opts()
                                                             : nullptr;
      if (options != nullptr) options->set_so_filter(0, ~uint64_t{0});
      bad.write("files.img", magic::kFiles).entry(entry);
    }
    FileRestorer restorer(bad, {}, *log);
    EXPECT_THROW(restorer.open_all(), Error);
  }
}

}  // namespace
}  // namespace migrate::files_testing
