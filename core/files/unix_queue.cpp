#include "core/files/unix_queue.h"

#include <linux/sockios.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <span>

#include "core/base/fd.h"
#include "core/files/socket_options.h"

namespace migrate {
namespace {

/// Longer ones need a send buffer that only SO_SNDBUFFORCE gives.
constexpr size_t kLongest = 1 << 20;
/// 253 descriptors (SCM_MAX_FD in the kernel), credentials, a security context, times, a pidfd of the sender.
constexpr size_t kControlBytes = 4096;
constexpr int kPassPidfd = 76;  // SO_PASSPIDFD (Linux 6.5)

/// An option that is something else for a while.
class Meanwhile {
 public:
  Meanwhile(int fd, int name, const std::string& who)
      : fd_(fd), name_(name), before_(socket_option(fd, SOL_SOCKET, name, who)), now_(before_) {}
  ~Meanwhile() {
    if (!known_ || now_ != before_) ::setsockopt(fd_, SOL_SOCKET, name_, &before_, sizeof before_);
  }
  Meanwhile(const Meanwhile&) = delete;
  Meanwhile& operator=(const Meanwhile&) = delete;
  void set(int value, const std::string& who) {
    if (known_ && value == now_) return;
    set_socket_option(fd_, SOL_SOCKET, name_, value, who);
    now_ = value;
    known_ = true;
  }
  /// It moves on by itself, as SO_PEEK_OFF does with each peek.
  void moves() { known_ = false; }

 private:
  int fd_, name_, before_, now_;
  bool known_ = true;
};

struct Peeked {
  ssize_t size = 0;
  bool message = false;  ///< with SO_PASSCRED: not the end of what a peer that closed has sent
  std::optional<ucred> from{};
  std::string address{};
  std::vector<Fd> descriptors{};
};

/// What came along with a message that was only looked at.
void take_control(msghdr& header, Peeked& out) {
  for (cmsghdr* c = CMSG_FIRSTHDR(&header); c != nullptr; c = CMSG_NXTHDR(&header, c)) {
    if (c->cmsg_level != SOL_SOCKET) continue;
    if (c->cmsg_type == SCM_CREDENTIALS) {
      out.message = true;
      ucred told;
      std::memcpy(&told, CMSG_DATA(c), sizeof told);
      // Without a pid nobody is known.
      if (told.pid != 0) out.from = told;
      continue;
    }
    constexpr int kPidfd = 4;  // SCM_PIDFD (linux/socket.h): of the sender, made for us
    if (c->cmsg_type != SCM_RIGHTS && c->cmsg_type != kPidfd) continue;
    std::vector<Fd> fds;
    for (size_t at = CMSG_LEN(0); at + sizeof(int) <= c->cmsg_len; at += sizeof(int)) {
      int fd;
      std::memcpy(&fd, reinterpret_cast<const char*>(c) + at, sizeof fd);
      if (fd >= 0) fds.emplace_back(fd);  // a pidfd may be an error
    }
    if (c->cmsg_type == SCM_RIGHTS) out.descriptors = std::move(fds);
  }
}

/// A look, as far as `room` goes. `size` is -1 for a failure (errno).
Peeked look(int fd, std::span<std::byte> room, int flags) {
  iovec iov{room.data(), room.size()};
  alignas(cmsghdr) std::array<char, kControlBytes> control;
  sockaddr_un name{};
  msghdr header{};
  header.msg_name = &name;
  header.msg_namelen = sizeof name;
  header.msg_iov = &iov;
  header.msg_iovlen = 1;
  header.msg_control = control.data();
  header.msg_controllen = control.size();
  Peeked peeked;
  peeked.size = ::recvmsg(fd, &header, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC | flags);
  if (peeked.size < 0) return peeked;
  take_control(header, peeked);
  constexpr size_t kSkipped = offsetof(sockaddr_un, sun_path);
  if (header.msg_namelen > kSkipped)
    peeked.address.assign(name.sun_path, std::min<size_t>(header.msg_namelen - kSkipped, sizeof name.sun_path));
  return peeked;
}

class QueueReader {
 public:
  QueueReader(int fd, uint32_t type, size_t descriptors, const std::string& who)
      : fd_(fd),
        type_(type),
        descriptors_(descriptors),
        who_(who),
        offset_(fd, SO_PEEK_OFF, who),
        told_(fd, SO_PASSCRED, who),
        in_line_(fd, SO_OOBINLINE, who) {
    // With it, pieces differ by their senders, too.
    if (!try_socket_option(fd, SOL_SOCKET, kPassPidfd)) return;
    pidfd_told_.emplace(fd, kPassPidfd, who);
    pidfd_told_->set(0, who);
  }

  UnixQueue read() {
    pollfd p{fd_, POLLIN, 0};
    check(::poll(&p, 1, 0), "poll", who_);
    // The kernel tells an error once only: of a stream behind its data, else first.
    reset_ = (p.revents & POLLERR) != 0;
    if (reset_ && type_ != SOCK_STREAM)
      throw Refusal(who_ + ", a Unix socket whose peer has gone with data unread (ECONNRESET)",
                    "let the program read that first");
    if ((p.revents & POLLIN) != 0) {
      if (type_ == SOCK_STREAM) {
        read_stream();
      } else {
        read_messages();
      }
    }
    size_t found = 0;
    for (const QueuedMessage& message : messages_) found += message.descriptors.size();
    if (found != descriptors_)
      throw Refusal(who_ + ", a Unix socket with " + std::to_string(descriptors_) +
                        " descriptors on their way (SCM_RIGHTS), of which " + std::to_string(found) + " can be had",
                    "let the receiver take them first");
    return {std::move(messages_), reset_};
  }

 private:
  void peek_from(int offset) {
    offset_.set(offset, who_);
    if (offset >= 0) offset_.moves();
  }

  Peeked peek() { return peek(buffer_.size()); }

  /// The next of a stream, of which `at` bytes have been seen: never beyond the data, where the error is taken.
  Peeked peek_stream(size_t at) {
    if (reset_ && at >= buffer_.size()) return {};
    return peek(reset_ ? buffer_.size() - at : buffer_.size());
  }

  Peeked peek(size_t most) {
    Peeked peeked = look(fd_, std::span(buffer_).first(most), type_ == SOCK_STREAM ? 0 : MSG_TRUNC);
    // More was promised than there is.
    if (peeked.size < 0 && errno == ECONNRESET && reset_) peeked.size = 0;
    if (peeked.size < 0 && errno != EAGAIN && errno != ENOTCONN) throw Error("look into the queue of", who_, errno);
    if (type_ != SOCK_DGRAM) peeked.address.clear();
    return peeked;
  }

  QueuedMessage& keep(const Peeked& p, std::span<const std::byte> bytes, uint32_t urgent = 0) {
    return messages_.emplace_back(QueuedMessage{{bytes.begin(), bytes.end()}, p.from, p.address, urgent});
  }

  void keep_whole(Peeked p) {
    const auto length = static_cast<size_t>(p.size);
    if (length > buffer_.size())
      throw Refusal(who_ + ", a Unix socket with a message of " + std::to_string(length) + " bytes in its queue",
                    "let it be read first");
    keep(p, std::span(buffer_).first(length)).descriptors = std::move(p.descriptors);
  }

  void read_messages() {
    buffer_.resize(kLongest);
    told_.set(1, who_);
    // One that is empty and was peeked before is passed over by a peek with an offset (__skb_try_recv_from_queue()).
    peek_from(-1);
    if (Peeked first = peek(); first.size == 0 && first.message) keep_whole(std::move(first));
    peek_from(0);
    for (;;) {
      Peeked p = peek();
      if (p.size < 0 || (p.size == 0 && !p.message)) return;
      keep_whole(std::move(p));
    }
  }

  /// Where reading stops although more is there: at urgent bytes, there or taken (unix(7), MSG_OOB). Behind descriptors
  /// it does so, too: a mark of an urgent byte that was taken right behind some is not seen.
  std::vector<size_t> find_marks() {
    std::vector<size_t> marks;
    told_.set(0, who_);
    in_line_.set(1, who_);
    peek_from(0);
    size_t at = 0;
    bool descriptors = false;
    for (Peeked p = peek_stream(at); p.size > 0; p = peek_stream(at)) {
      if (at != 0 && !descriptors) marks.push_back(at);
      at += static_cast<size_t>(p.size);
      descriptors = !p.descriptors.empty();
    }
    return marks;
  }

  /// How many of `size` bytes at `at`, which a look has just given with descriptors, stand before those of the message
  /// that brings them: a read that ends before its first byte gets none. Looks, unlike reads, give descriptors of what
  /// is behind them, too; but one whose last byte cannot be written ends before the message that has it
  /// (unix_stream_read_generic() in the kernel). It puts into the buffer what is there already.
  size_t before_descriptors(size_t at, size_t size) {
    peek_from(static_cast<int>(at));
    auto* const nowhere = reinterpret_cast<void*>(uintptr_t{1});
    std::array<iovec, 2> iov{{{buffer_.data(), size - 1}, {nowhere, 1}}};
    msghdr header{};
    header.msg_iov = iov.data();
    header.msg_iovlen = iov.size();
    const ssize_t before = ::recvmsg(fd_, &header, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (before < 0 && errno != EFAULT) throw Error("look into the queue of", who_, errno);
    peek_from(static_cast<int>(at + size));
    return before < 0 ? 0 : static_cast<size_t>(before);
  }

  void read_stream() {
    int queued = 0, at_mark = 0;
    check(::ioctl(fd_, FIONREAD, &queued), "ask for the bytes in the queue of", who_);
    if (reset_ && queued == 0) return;
    // Linux 6.18 goes on counting urgent bytes that a read passed over: it may be too many.
    buffer_.resize(static_cast<size_t>(std::max(queued, 1)));
    in_line_.set(0, who_);
    char byte;
    const bool urgent = ::recv(fd_, &byte, 1, MSG_OOB | MSG_PEEK | MSG_DONTWAIT) == 1;
    std::vector<size_t> marks = find_marks();
    if (::ioctl(fd_, SIOCATMARK, &at_mark) != 0) at_mark = 0;
    if (urgent ? marks.empty() : at_mark != 0) marks.insert(marks.begin(), 0);
    if (descriptors_ != 0 && !marks.empty())
      throw Refusal(who_ + ", a Unix socket with urgent bytes (MSG_OOB) and descriptors on their way (SCM_RIGHTS)",
                    "let the receiver take them first");
    told_.set(1, who_);
    peek_from(0);
    size_t at = 0;
    for (Peeked p = peek_stream(at); p.size > 0; p = peek_stream(at)) {
      std::span<const std::byte> piece = std::span(buffer_).first(static_cast<size_t>(p.size));
      if (std::ranges::find(marks, at) != marks.end()) {
        // All but the last urgent byte are ordinary ones by now, or taken.
        keep(p, piece.first(urgent ? 1 : 0), urgent ? kUrgent : kUrgentTaken);
        if (urgent) piece = piece.subspan(1);
      }
      if (!p.descriptors.empty()) {
        const size_t before = before_descriptors(at, piece.size());
        if (before != 0) keep(p, piece.first(before));
        keep(p, piece.subspan(before)).descriptors = std::move(p.descriptors);
      } else if (!piece.empty()) {
        keep(p, piece);
      }
      at += static_cast<size_t>(p.size);
    }
  }

  int fd_;
  uint32_t type_;
  size_t descriptors_;
  const std::string& who_;
  Meanwhile offset_, told_, in_line_;
  std::optional<Meanwhile> pidfd_told_;
  bool reset_ = false;
  std::vector<std::byte> buffer_;
  std::vector<QueuedMessage> messages_;
};

}  // namespace

std::vector<Fd> first_descriptors(int fd) {
  pollfd p{fd, POLLIN, 0};
  if (try_socket_option(fd, SOL_SOCKET, SO_PEEK_OFF).value_or(0) >= 0 || ::poll(&p, 1, 0) != 1 ||
      (p.revents & POLLERR) != 0)
    return {};
  std::vector<std::byte> bytes(64 << 10);
  return look(fd, bytes, 0).descriptors;
}

UnixQueue read_unix_queue(int fd, uint32_t type, size_t descriptors, const std::string& who) {
  return QueueReader(fd, type, descriptors, who).read();
}

}  // namespace migrate
