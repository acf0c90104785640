// The socket between restore and lazy-pages daemon: two of ours, and either with CRIU's at the other end.
#include "migrate/cli/lazy_socket.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <array>
#include <filesystem>
#include <future>
#include <optional>

#include "core/base/error.h"
#include "core/base/procfs.h"
#include "tests/temp_dir.h"

namespace migrate::cli {
namespace {

using State = LazyRestore::State;
constexpr uint32_t kRestoreFinished = 0x52535446;

class LazySocket : public ::testing::Test {
 protected:
  sockaddr_un address() const {
    sockaddr_un a{};
    a.sun_family = AF_UNIX;
    const std::string path = folder_ + "/lazy-pages.socket";
    path.copy(a.sun_path, sizeof a.sun_path - 1);
    return a;
  }
  static Fd stream() { return Fd(check(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), "make", "a socket")); }
  static Fd some_fd() { return Fd(check(::memfd_create("userfaultfd", MFD_CLOEXEC), "make", "a descriptor")); }
  static ino_t inode(const Fd& fd) {
    struct stat st {};
    ::fstat(fd.get(), &st);
    return st.st_ino;
  }
  /// As CRIU's restore does.
  void be_crius_restore() const {
    const Fd socket = stream();
    const sockaddr_un a = address();
    check(::connect(socket.get(), reinterpret_cast<const sockaddr*>(&a), sizeof a), "connect to", "the daemon");
    const Fd fd = some_fd();
    const std::array<int, 1> fds{fd.get()};
    for (const int32_t pid : {7, -9}) {
      send_fds(socket.get(), std::as_bytes(std::span(&pid, 1)), {});
      if (pid > 0) send_fds(socket.get(), std::as_bytes(std::span("\0", 1)), fds);
    }
    send_fds(socket.get(), std::as_bytes(std::span(&kRestoreFinished, 1)), {});
  }
  /// A daemon that reads `most` bytes and hangs up.
  std::future<void> other_daemon(size_t most) {
    const sockaddr_un a = address();
    auto listening = std::make_shared<Fd>(stream());
    check(::bind(listening->get(), reinterpret_cast<const sockaddr*>(&a), sizeof a), "bind", "a socket");
    check(::listen(listening->get(), 1), "listen on", "a socket");
    return std::async(std::launch::async, [listening, most] {
      const Fd peer(::accept(listening->get(), nullptr, nullptr));
      uint32_t last = 0;
      for (size_t got = 0; got < most && last != kRestoreFinished; ++got) {
        char byte = 0;
        if (::recv(peer.get(), &byte, 1, 0) != 1) return;
        last = last >> 8 | static_cast<uint32_t>(static_cast<unsigned char>(byte)) << 24;
      }
    });
  }
  const TempDir dir_;
  const std::string& folder_ = dir_.path();
};

TEST_F(LazySocket, OursWaitForEachOther) {
  LazyListener listener(folder_);
  const Fd one = some_fd(), two = some_fd();
  std::promise<void> may_run;
  auto restore = std::async(std::launch::async, [&] {
    LazyConnection connection(folder_);
    connection.send(7, one.get(), *open_pidfd(::getpid()));
    connection.send(8, two.get(), *open_pidfd(::getpid()));
    connection.finish();
    may_run.get_future().wait();
    connection.tell_runs();
  });
  LazyRestore received = listener.receive();
  const std::vector<LazyTask> tasks = received.take_tasks();
  ASSERT_EQ(tasks.size(), 2u);
  EXPECT_EQ(tasks[0].pid, 7);
  EXPECT_EQ(inode(tasks[0].userfaultfd), inode(one));
  EXPECT_EQ(inode(tasks[1].userfaultfd), inode(two));
  EXPECT_TRUE(tasks[0].process && tasks[1].process);
  // It does not go on before it is told to.
  EXPECT_EQ(restore.wait_for(std::chrono::milliseconds(20)), std::future_status::timeout);
  EXPECT_EQ(received.state(false), State::ready);
  received.go();
  EXPECT_EQ(received.state(false), State::ready);
  may_run.set_value();
  EXPECT_EQ(received.state(true), State::runs);
  restore.get();
  EXPECT_EQ(received.state(true), State::runs);
}

TEST_F(LazySocket, ADaemonThatGivesUpStopsTheRestore) {
  std::optional<LazyListener> listener(std::in_place, folder_);
  auto restore = std::async(std::launch::async, [&] {
    LazyConnection connection(folder_);
    connection.send(7, some_fd().get(), *open_pidfd(::getpid()));
    connection.finish();
  });
  { const LazyRestore received = listener->receive(); }
  EXPECT_THROW(restore.get(), Error);
}

TEST_F(LazySocket, ARestoreThatEndsWithoutAWordIsGone) {
  LazyListener listener(folder_);
  auto restore = std::async(std::launch::async, [&] {
    LazyConnection connection(folder_);
    connection.send(7, some_fd().get(), *open_pidfd(::getpid()));
    connection.finish();
  });
  LazyRestore received = listener.receive();
  received.go();
  restore.get();
  EXPECT_EQ(received.state(true), State::gone);
}

TEST_F(LazySocket, ARestoreMayFailBeforeItHandsOver) {
  LazyListener listener(folder_);
  { const LazyConnection none(folder_); }  // it failed before it had anything to say: the next one is waited for
  auto restore = std::async(std::launch::async, [&] {
    LazyConnection connection(folder_);
    connection.send(7, some_fd().get(), *open_pidfd(::getpid()));
  });
  EXPECT_THROW(listener.receive(), Error);
}

TEST_F(LazySocket, CriusRestoreIsServed) {
  LazyListener listener(folder_);
  auto restore = std::async(std::launch::async, [&] { be_crius_restore(); });
  LazyRestore received = listener.receive();
  const std::vector<LazyTask> tasks = received.take_tasks();
  ASSERT_EQ(tasks.size(), 1u);
  EXPECT_EQ(tasks[0].pid, 7);
  EXPECT_FALSE(tasks[0].process);
  EXPECT_NO_THROW(received.go());
  EXPECT_EQ(received.state(true), State::not_ours);
  restore.get();
}

TEST_F(LazySocket, CriusDaemonIsTold) {
  auto daemon = other_daemon(SIZE_MAX);
  LazyConnection connection(folder_);
  connection.send(7, some_fd().get(), *open_pidfd(::getpid()));
  EXPECT_NO_THROW(connection.finish());
  connection.tell_runs();
  daemon.get();
}

TEST_F(LazySocket, ADaemonThatDiesBeforeTheEndIsNoAnswer) {
  for (const size_t read : {0u, 3u, 5u, 8u}) {
    std::filesystem::remove(folder_ + "/lazy-pages.socket");
    auto daemon = other_daemon(read);
    LazyConnection connection(folder_);
    EXPECT_THROW(
        {
          connection.send(7, some_fd().get(), *open_pidfd(::getpid()));
          connection.finish();
        },
        Error)
        << read;
    daemon.get();
  }
}

}  // namespace
}  // namespace migrate::cli
