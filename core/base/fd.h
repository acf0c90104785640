// Owning file descriptors and whole reads and writes.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/base/error.h"

namespace migrate {

/// Owns a descriptor; closes it when it goes. Move-only.
class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(other.release()) {}
  Fd& operator=(Fd&& other) noexcept {
    if (this != &other) reset(other.release());
    return *this;
  }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  ~Fd() { reset(); }

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  int release() { return std::exchange(fd_, -1); }
  void reset(int fd = -1) {
    if (fd_ >= 0) ::close(fd_);
    fd_ = fd;
  }
  /// A close-on-exec duplicate.
  Fd dup() const { return Fd(check(::fcntl(fd_, F_DUPFD_CLOEXEC, 0), "duplicate", "descriptor")); }

 private:
  int fd_ = -1;
};

/// Closes all descriptors from number `from` on, but those in `kept` (negative ones are skipped): an inherited socket
/// or pipe whose hanging up means something must not be held open. close_range(2).
void close_all_but(std::vector<int> kept, unsigned from = 0);

/// openat(2), always close-on-exec; throws Error naming `path`.
Fd open_at(int dirfd, const std::string& path, int flags, mode_t mode = 0);
Fd open_path(const std::string& path, int flags, mode_t mode = 0);

/// Reads until `out` is full or the end comes; returns the bytes read. Retries EINTR. `what` names it in errors.
size_t read_full(int fd, std::span<std::byte> out, std::string_view what);
size_t pread_full(int fd, std::span<std::byte> out, uint64_t offset, std::string_view what);
/// Writes all of `data` or throws.
void write_full(int fd, std::span<const std::byte> data, std::string_view what);
void pwrite_full(int fd, std::span<const std::byte> data, uint64_t offset, std::string_view what);

/// A whole small file (procfs, journals); throws Error above `limit` bytes.
std::string read_file_at(int dirfd, const std::string& path, size_t limit = 16 << 20);
/// The target of a symbolic link, of any length up to 64 KiB.
std::string read_link_at(int dirfd, const std::string& path);

/// The link to a descriptor of ours: opened, it is the same file; read, the file's path.
inline std::string fd_link(int fd) { return "/proc/self/fd/" + std::to_string(fd); }
/// Random bytes from the kernel.
void fill_random(std::span<std::byte> bytes);

/// Sends `bytes` with descriptors attached over a Unix socket in one message; receives likewise. `recv_fds` returns
/// false at end of file. At most 250 descriptors (the kernel's limit is 253); received ones are close-on-exec.
void send_fds(int socket, std::span<const std::byte> bytes, std::span<const int> fds);
/// Does not wait; false if it could not be sent.
bool try_send_fds(int socket, std::span<const std::byte> bytes, std::span<const int> fds);
bool recv_fds(int socket, std::vector<std::byte>& bytes, std::vector<Fd>& fds, size_t max_bytes);

inline std::span<const std::byte> as_bytes_of(std::string_view s) {
  return std::as_bytes(std::span(s.data(), s.size()));
}

}  // namespace migrate
