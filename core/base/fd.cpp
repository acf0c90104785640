#include "core/base/fd.h"

#include <sys/random.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstring>

namespace migrate {

void close_all_but(std::vector<int> kept, unsigned from) {
  std::ranges::sort(kept);
  for (const int fd : kept) {
    if (fd < 0) continue;
    const auto number = static_cast<unsigned>(fd);
    if (number > from) ::close_range(from, number - 1, 0);
    from = std::max(from, number + 1);
  }
  ::close_range(from, ~0u, 0);
}

Fd open_at(int dirfd, const std::string& path, int flags, mode_t mode) {
  return Fd(check(::openat(dirfd, path.c_str(), flags | O_CLOEXEC, mode), "open", path));
}

Fd open_path(const std::string& path, int flags, mode_t mode) { return open_at(AT_FDCWD, path, flags, mode); }

namespace {

/// Repeats `step(done)` until `total` bytes are through or it returns 0.
template <class Step>
size_t repeat(size_t total, std::string_view operation, std::string_view what, Step step) {
  size_t done = 0;
  while (done < total) {
    const ssize_t n = step(done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw Error(operation, what, errno);
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  return done;
}

}  // namespace

size_t read_full(int fd, std::span<std::byte> out, std::string_view what) {
  return repeat(out.size(), "read", what,
                [&](size_t done) { return ::read(fd, out.data() + done, out.size() - done); });
}

size_t pread_full(int fd, std::span<std::byte> out, uint64_t offset, std::string_view what) {
  return repeat(out.size(), "read", what, [&](size_t done) {
    return ::pread(fd, out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
  });
}

void write_full(int fd, std::span<const std::byte> data, std::string_view what) {
  const size_t n = repeat(data.size(), "write", what,
                          [&](size_t done) { return ::write(fd, data.data() + done, data.size() - done); });
  if (n != data.size()) throw Error("write", what, ENOSPC);
}

void pwrite_full(int fd, std::span<const std::byte> data, uint64_t offset, std::string_view what) {
  const size_t n = repeat(data.size(), "write", what, [&](size_t done) {
    return ::pwrite(fd, data.data() + done, data.size() - done, static_cast<off_t>(offset + done));
  });
  if (n != data.size()) throw Error("write", what, ENOSPC);
}

std::string read_file_at(int dirfd, const std::string& path, size_t limit) {
  const Fd fd = open_at(dirfd, path, O_RDONLY);
  std::string text;
  std::array<char, 16384> chunk;
  for (;;) {
    const size_t n = read_full(fd.get(), std::as_writable_bytes(std::span(chunk)), path);
    text.append(chunk.data(), n);
    if (text.size() > limit) throw Error("read", path, EFBIG);
    if (n < chunk.size()) return text;
  }
}

std::string read_link_at(int dirfd, const std::string& path) {
  std::string target(256, '\0');
  for (;;) {
    const ssize_t n = ::readlinkat(dirfd, path.c_str(), target.data(), target.size());
    if (n < 0) throw Error("read link", path, errno);
    if (static_cast<size_t>(n) < target.size()) {
      target.resize(static_cast<size_t>(n));
      return target;
    }
    if (target.size() >= 65536) throw Error("read link", path, ENAMETOOLONG);
    target.resize(target.size() * 4);
  }
}

void fill_random(std::span<std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::getrandom(bytes.data(), bytes.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    bytes = bytes.subspan(static_cast<size_t>(check(n, "get", "random bytes")));
  }
}

namespace {

constexpr size_t kMaxFds = 250;

/// sendmsg(2)'s result.
ssize_t send_with_fds(int socket, std::span<const std::byte> bytes, std::span<const int> fds, int flags) {
  if (fds.size() > kMaxFds) throw Error("send descriptors", "over a Unix socket", E2BIG);
  iovec iov{const_cast<std::byte*>(bytes.data()), bytes.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kMaxFds * sizeof(int))> control{};
  msghdr msg{};
  msg.msg_iov = &iov;
  msg.msg_iovlen = 1;
  if (!fds.empty()) {
    msg.msg_control = control.data();
    msg.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* c = CMSG_FIRSTHDR(&msg);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(c), fds.data(), fds.size_bytes());
  }
  ssize_t n;
  do {
    n = ::sendmsg(socket, &msg, MSG_NOSIGNAL | flags);
  } while (n < 0 && errno == EINTR);
  return n;
}

}  // namespace

void send_fds(int socket, std::span<const std::byte> bytes, std::span<const int> fds) {
  const ssize_t n = send_with_fds(socket, bytes, fds, 0);
  if (n < 0 || static_cast<size_t>(n) != bytes.size())
    throw Error("send", "over a Unix socket", n < 0 ? errno : EMSGSIZE);
}

bool try_send_fds(int socket, std::span<const std::byte> bytes, std::span<const int> fds) {
  return send_with_fds(socket, bytes, fds, MSG_DONTWAIT) == static_cast<ssize_t>(bytes.size());
}

bool recv_fds(int socket, std::vector<std::byte>& bytes, std::vector<Fd>& fds, size_t max_bytes) {
  bytes.resize(max_bytes);
  iovec iov{bytes.data(), bytes.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kMaxFds * sizeof(int))> control{};
  msghdr msg{};
  msg.msg_iov = &iov;
  msg.msg_iovlen = 1;
  msg.msg_control = control.data();
  msg.msg_controllen = control.size();
  ssize_t n;
  do {
    n = ::recvmsg(socket, &msg, MSG_CMSG_CLOEXEC);
  } while (n < 0 && errno == EINTR);
  if (n < 0 && errno == ECONNRESET) n = 0;
  if (n < 0) throw Error("receive", "over a Unix socket", errno);
  fds.clear();
  for (cmsghdr* c = CMSG_FIRSTHDR(&msg); c != nullptr; c = CMSG_NXTHDR(&msg, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof fd);
      fds.emplace_back(fd);
    }
  }
  if ((msg.msg_flags & (MSG_CTRUNC | MSG_TRUNC)) != 0) throw Error("receive", "over a Unix socket", EMSGSIZE);
  bytes.resize(static_cast<size_t>(n));
  return n > 0 || !fds.empty();
}

}  // namespace migrate
