// Unix sockets.
#include "files_testing.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "images/sk-packet.pb.h"

namespace migrate::files_testing {
namespace {

TEST_F(Files, UnixPairsKeepQueuesAndShutdown) {
  const std::string big(150'000, 'u');
  const auto images = dump([&] {
    int p[2];
    MUST(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, p) == 0);  // 0, 1
    say(1, big);
    MUST(::shutdown(1, SHUT_WR) == 0);
    MUST(::socketpair(AF_UNIX, SOCK_DGRAM, 0, p) == 0);  // 2, 3
    say(2, "one");
    say(2, "two");
    MUST(::socketpair(AF_UNIX, SOCK_SEQPACKET, 0, p) == 0);  // 4, 5
    say(5, "packet");
    MUST(::socketpair(AF_UNIX, SOCK_STREAM, 0, p) == 0);  // 6, 7
    say(7, "last words");
    ::close(7);
  });
  restore(images, [&] {
    std::string got;
    for (std::string part; !(part = read_some(0)).empty();) got += part;
    MUST(got == big);
    say(0, "back");
    MUST(read_some(1) == "back");
    MUST(::send(1, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
    MUST(read_some(3) == "one");
    MUST(read_some(3) == "two");
    MUST(read_some(4) == "packet");
    MUST(read_some(6) == "last words");
    char c;
    MUST(::read(6, &c, 1) == 0);
  });
}

TEST_F(Files, UnixServersListenAndKeepConnections) {
  const std::string path = at("server");
  const std::string abstract = std::string(1, '\0') + "files-test-" + std::to_string(::getpid());
  const Work setup = [&] {
    place_at(unix_at(path, SOCK_STREAM, false), 3);
    MUST(::listen(3, 7) == 0 && ::chmod(path.c_str(), 0640) == 0);
    place_at(unix_at(path, SOCK_STREAM, true), 4);
    place_at(::accept(3, nullptr, nullptr), 5);
    say(4, "to server");
    say(5, "to client");
    place_at(unix_at(abstract, SOCK_STREAM, false), 6);
    MUST(::listen(6, 3) == 0);
    place_at(unix_at(abstract, SOCK_STREAM, true), 7);
    place_at(::accept(6, nullptr, nullptr), 8);
    place_at(unix_at(at("log"), SOCK_DGRAM, false), 10);
    place_at(unix_at(at("log"), SOCK_DGRAM, true), 11);
    say(11, "line");
  };
  const auto images = dump(setup);
  restore(
      images,
      [&] {
        MUST(read_some(5) == "to server" && read_some(4) == "to client");
        MUST(name_of(3) == path && name_of(5) == path && name_of(4).empty());
        MUST(name_of(6) == abstract && name_of(8) == abstract);
        say(7, "abstract");
        MUST(read_some(8) == "abstract");
        const Fd client(unix_at(path, SOCK_STREAM, true));
        MUST(client.get() >= 0);
        MUST(Fd(::accept(3, nullptr, nullptr)).get() >= 0);
        struct stat st {};
        MUST(::stat(path.c_str(), &st) == 0 && (st.st_mode & 07777) == 0640);
        MUST(read_some(10) == "line");
        say(11, "next");
        MUST(read_some(10) == "next");
        const Fd other(unix_at(at("log"), SOCK_DGRAM, true));
        say(other.get(), "third");
        MUST(read_some(10) == "third");
      },
      [&] { EXPECT_EQ(Fd(unix_at(path, SOCK_STREAM, true)).get(), -1) << "published before the gate"; });
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir), {}), 2);
}

TEST_F(Files, UnixSocketsInImpossibleStatesAreThrownOut) {
  const auto images = dump([&] {
    int p[2];
    MUST(::socketpair(AF_UNIX, SOCK_STREAM, 0, p) == 0);
  });
  for (const uint32_t state : {1u, 2u, 10u, 77u}) {
    ImageSet changed;
    for (const auto& [name, bytes] : images.images())
      if (name != "files.img") changed.adopt(name, bytes);
    for (auto [id, entry] : read_file_entries(images)) {
      if (entry.has_usk()) entry.mutable_usk()->set_state(state);
      changed.write("files.img", magic::kFiles).entry(entry);
    }
    FileRestorer restorer(changed, {}, *log);
    if (state == 1) {
      EXPECT_NO_THROW(restorer.open_all());
    } else {
      EXPECT_THROW(restorer.open_all(), Corrupt) << state;  // a pair cannot listen, and there are no other states
    }
  }
}

/// Through a pair of sockets, whose other end does not take it; it is closed here.
void send_descriptor(int type, size_t bytes, int fd) {
  int p[2];
  MUST(::socketpair(AF_UNIX, type, 0, p) == 0);
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  char byte = 'x';
  iovec iov{&byte, bytes};
  msghdr m{};
  m.msg_iov = &iov;
  m.msg_iovlen = 1;
  m.msg_control = control;
  m.msg_controllen = sizeof control;
  cmsghdr* c = CMSG_FIRSTHDR(&m);
  c->cmsg_level = SOL_SOCKET;
  c->cmsg_type = SCM_RIGHTS;
  c->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(c), &fd, sizeof(int));
  MUST(::sendmsg(p[0], &m, 0) == static_cast<ssize_t>(bytes));
  ::close(fd);
}

TEST_F(Files, OnlyWhatHasNoNumberMayWaitInAQueue) {
  for (const auto& [type, bytes] : {std::pair{SOCK_STREAM, 1}, {SOCK_DGRAM, 0}, {SOCK_SEQPACKET, 0}})
    for (const bool epoll : {true, false}) {
      const auto send = [&, type = type, bytes = bytes] {
        send_descriptor(type, static_cast<size_t>(bytes), epoll ? ::epoll_create1(0) : ::eventfd(0, 0));
      };
      Child child(send);
      ASSERT_TRUE(child.stopped());
      std::vector<ProcDir> tasks;
      tasks.emplace_back(child.pid());
      if (epoll) {
        refused(send, "on its way there (SCM_RIGHTS), an epoll");
        EXPECT_THROW(FileDumper::preflight(tasks, {}, *log), Refusal) << type;
      } else {
        EXPECT_NO_THROW(dump(send));
        EXPECT_NO_THROW(FileDumper::preflight(tasks, {}, *log)) << type;
      }
    }
}

TEST_F(Files, ImpossibleDescriptorsInQueuesAreThrownOut) {
  const auto images = dump([&] { send_descriptor(SOCK_STREAM, 1, ::eventfd(0, 0)); });
  const auto restored = [&](const std::function<void(img::sk_packet_entry&)>& change) {
    ImageSet changed;
    for (const auto& [name, bytes] : images.images())
      if (name != "sk-queues.img") changed.adopt(name, bytes);
    auto reader = images.read("sk-queues.img", magic::kSkQueues);
    img::sk_packet_entry packet;
    MUST(reader && reader->next(packet) && packet.scm_size() == 1 && packet.scm(0).rights_size() == 1);
    const auto bytes = reader->raw(packet.length());
    change(packet);
    ImageWriter out = changed.write("sk-queues.img", magic::kSkQueues);
    out.entry(packet);
    out.raw(bytes.first(packet.length()));
    FileRestorer(changed, {}, *log).open_all();
  };
  EXPECT_NO_THROW(restored([](auto&) {}));
  EXPECT_THROW(restored([](auto& p) { p.mutable_scm(0)->set_rights(0, 999); }), Corrupt) << "no such file";
  EXPECT_THROW(restored([](auto& p) { p.mutable_scm(0)->set_type(2); }), Corrupt);
  EXPECT_THROW(restored([](auto& p) { *p.add_scm() = p.scm(0); }), Corrupt);
  EXPECT_THROW(restored([](auto& p) { p.set_length(0); }), Corrupt) << "a stream without bytes";
  EXPECT_THROW(restored([](auto& p) {
                 for (int i = 0; i < 253; ++i) p.mutable_scm(0)->add_rights(p.scm(0).rights(0));
               }),
               Corrupt);
}

TEST_F(Files, UnixNamesRelativeAndUnlinked) {
  const auto images = dump([&] {
    MUST(::chdir(dir.c_str()) == 0);
    place_at(unix_at("relative", SOCK_STREAM, false), 3);
    MUST(::listen(3, 1) == 0);
    place_at(unix_at(at("unlinked"), SOCK_STREAM, false), 4);
    MUST(::listen(4, 1) == 0);
    ::unlink(at("unlinked").c_str());
  });
  std::filesystem::remove(at("relative"));
  restore(images, [&] {
    MUST(name_of(3) == "relative" && name_of(4) == at("unlinked"));
    const Fd client(unix_at(at("relative"), SOCK_STREAM, true));
    MUST(client.get() >= 0);
    MUST(Fd(::accept(3, nullptr, nullptr)).get() >= 0);
  });
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir), {}), 1);
}

TEST_F(Files, UnixNamesInUseAreNotTaken) {
  const auto images = dump([&] {
    place_at(unix_at(at("busy"), SOCK_STREAM, false), 3);
    MUST(::listen(3, 1) == 0);
  });
  std::filesystem::remove(at("busy"));
  const Fd other(unix_at(at("busy"), SOCK_STREAM, false));
  ASSERT_EQ(::listen(other.get(), 1), 0);
  FileRestorer restorer(images, {}, *log);
  try {
    restorer.open_all();
    FAIL() << "bound over a living socket";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), EADDRINUSE) << e.what();
  }
  EXPECT_GE(Fd(unix_at(at("busy"), SOCK_STREAM, true)).get(), 0);
}

TEST_F(Files, UnixConnectionsOutOfTheTreeAreRefused) {
  const Fd server(unix_at(at("out"), SOCK_STREAM, false));
  ASSERT_EQ(::listen(server.get(), 5), 0);
  refused([&] { place_at(unix_at(at("out"), SOCK_STREAM, true), 3); }, "not accepted yet");
  int pair[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
  const Fd ours(pair[0]), theirs(pair[1]);
  const pid_t us = ::getpid();
  refused(
      [&] {
        const Fd pidfd = std::move(*open_pidfd(us));
        place_at(get_remote_fd(pidfd.get(), theirs.get()).release(), 30);
      },
      "has fd 30, a Unix socket connected to a process outside of the tree");
  const Fd log_server(unix_at(at("devlog"), SOCK_DGRAM, false));
  const Work setup = [&] { place_at(unix_at(at("devlog"), SOCK_DGRAM, true), 3); };
  refused(setup, "--ext-unix-sk");
  restore(dump(setup, {{.ext_unix_sk = true}}), [] { say(3, "hi"); });
  EXPECT_EQ(read_some(log_server.get()), "hi");
}

}  // namespace
}  // namespace migrate::files_testing
