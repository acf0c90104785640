#include "core/files/socket_options.h"

#include <linux/filter.h>
#include <netinet/in.h>
#include <sys/time.h>

#include <climits>
#include <cstring>
#include <vector>

#include "core/files/interfaces.h"

#ifndef SO_BUF_LOCK
#define SO_BUF_LOCK 72
#endif

namespace migrate {
namespace {

constexpr size_t kMaxFilter = 4096;                  // BPF_MAXINSNS
constexpr uint32_t kSendLock = 1, kReceiveLock = 2;  // of SO_BUF_LOCK (linux/socket.h)

void describe_timeout(int fd, int name, const std::string& who, uint64_t& sec, uint64_t& usec) {
  timeval t{};
  socklen_t length = sizeof t;
  check(::getsockopt(fd, SOL_SOCKET, name, &t, &length), "read the time-out of socket:", who);
  sec = static_cast<uint64_t>(t.tv_sec);
  usec = static_cast<uint64_t>(t.tv_usec);
}

void apply_timeout(int fd, int name, uint64_t sec, uint64_t usec, const std::string& who) {
  if (sec > LONG_MAX / 2 || usec >= 1'000'000) throw Corrupt("files.img", "a socket has an impossible time-out");
  const timeval t{static_cast<time_t>(sec), static_cast<suseconds_t>(usec)};
  check(::setsockopt(fd, SOL_SOCKET, name, &t, sizeof t), "set the time-out of", who);
}

/// SO_GET_FILTER counts in instructions, not bytes; eBPF programs give EACCES.
socklen_t filter_length(int fd, const std::string& who) {
  socklen_t count = 0;
  if (::getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, nullptr, &count) != 0) {
    if (errno == EACCES) throw Refusal(who + ", a socket with an eBPF filter", "detach the filter first");
    throw Error("read the filter of socket:", who, errno);
  }
  return count;
}

void describe_filter(int fd, const std::string& who, img::sk_opts_entry& out) {
  socklen_t count = filter_length(fd, who);
  if (count == 0) return;
  std::vector<sock_filter> code(count);
  check(::getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, code.data(), &count), "read the filter of socket:", who);
  for (const sock_filter& f : code) {
    uint64_t packed;
    static_assert(sizeof packed == sizeof f);
    std::memcpy(&packed, &f, sizeof packed);
    out.add_so_filter(packed);
  }
}

/// The privileged option first, which goes beyond the system's limits.
void apply_buffer(int fd, int forced, int plain, uint32_t doubled, const std::string& who) {
  const int value = static_cast<int>(std::min<uint32_t>(doubled, INT_MAX) / 2);  // the kernel doubles what is set
  if (::setsockopt(fd, SOL_SOCKET, forced, &value, sizeof value) != 0)
    set_socket_option(fd, SOL_SOCKET, plain, value, who);
}

}  // namespace

void check_filter(int fd, const std::string& who) { (void)filter_length(fd, who); }

int socket_option(int fd, int level, int name, const std::string& who) {
  int value = 0;
  socklen_t length = sizeof value;
  check(::getsockopt(fd, level, name, &value, &length), "read an option of the socket:", who);
  return value;
}

std::optional<int> try_socket_option(int fd, int level, int name) {
  int value = 0;
  socklen_t length = sizeof value;
  if (::getsockopt(fd, level, name, &value, &length) != 0) return std::nullopt;
  return value;
}

bool is_mptcp(int fd) { return try_socket_option(fd, SOL_SOCKET, SO_PROTOCOL) == IPPROTO_MPTCP; }

void set_socket_option(int fd, int level, int name, int value, const std::string& who) {
  check(::setsockopt(fd, level, name, &value, sizeof value), "set option " + std::to_string(name) + " of", who);
}

void describe_socket_options(int fd, const std::string& who, img::sk_opts_entry& out) {
  const auto get = [&](int name) { return static_cast<uint32_t>(socket_option(fd, SOL_SOCKET, name, who)); };
  const auto flag = [&](int name) { return get(name) != 0; };
  out.set_so_sndbuf(get(SO_SNDBUF));
  out.set_so_rcvbuf(get(SO_RCVBUF));
  if (const auto lock = try_socket_option(fd, SOL_SOCKET, SO_BUF_LOCK))
    out.set_so_buf_lock(static_cast<uint32_t>(*lock));
  uint64_t sec, usec;
  describe_timeout(fd, SO_SNDTIMEO, who, sec, usec);
  out.set_so_snd_tmo_sec(sec);
  out.set_so_snd_tmo_usec(usec);
  describe_timeout(fd, SO_RCVTIMEO, who, sec, usec);
  out.set_so_rcv_tmo_sec(sec);
  out.set_so_rcv_tmo_usec(usec);
  out.set_reuseaddr(flag(SO_REUSEADDR));
  out.set_so_reuseport(flag(SO_REUSEPORT));
  out.set_so_priority(get(SO_PRIORITY));
  out.set_so_rcvlowat(get(SO_RCVLOWAT));
  out.set_so_mark(get(SO_MARK));
  if (const auto v = try_socket_option(fd, SOL_SOCKET, SO_PASSCRED)) out.set_so_passcred(*v != 0);
  if (const auto v = try_socket_option(fd, SOL_SOCKET, SO_PASSSEC)) out.set_so_passsec(*v != 0);
  out.set_so_dontroute(flag(SO_DONTROUTE));
  out.set_so_no_check(flag(SO_NO_CHECK));
  out.set_so_broadcast(flag(SO_BROADCAST));
  out.set_so_keepalive(flag(SO_KEEPALIVE));
  out.set_so_oobinline(get(SO_OOBINLINE));
  linger l{};
  socklen_t length = sizeof l;
  if (::getsockopt(fd, SOL_SOCKET, SO_LINGER, &l, &length) == 0 && l.l_onoff != 0)
    out.set_so_linger(static_cast<uint32_t>(l.l_linger));
  if (auto interface = bound_interface(fd, who)) out.set_so_bound_dev(std::move(*interface));
  describe_filter(fd, who, out);
}

void apply_socket_options(int fd, const img::sk_opts_entry& o, const std::string& who) {
  const auto set = [&](int name, uint32_t value) {
    set_socket_option(fd, SOL_SOCKET, name, static_cast<int>(value), who);
  };
  // Zero is what most options are already: only differences cost a call.
  const auto differ = [&](int name, uint32_t value) {
    if (try_socket_option(fd, SOL_SOCKET, name).value_or(0) != static_cast<int>(value)) set(name, value);
  };
  // There the lock comes with the size, and cannot be taken away: without one the size is the kernel's choice.
  const bool mptcp = is_mptcp(fd);
  if (!mptcp || (o.so_buf_lock() & kSendLock) != 0) apply_buffer(fd, SO_SNDBUFFORCE, SO_SNDBUF, o.so_sndbuf(), who);
  if (!mptcp || (o.so_buf_lock() & kReceiveLock) != 0) apply_buffer(fd, SO_RCVBUFFORCE, SO_RCVBUF, o.so_rcvbuf(), who);
  if (o.has_so_buf_lock() && !mptcp) set(SO_BUF_LOCK, o.so_buf_lock() & (kSendLock | kReceiveLock));
  if (o.so_snd_tmo_sec() != 0 || o.so_snd_tmo_usec() != 0)
    apply_timeout(fd, SO_SNDTIMEO, o.so_snd_tmo_sec(), o.so_snd_tmo_usec(), who);
  if (o.so_rcv_tmo_sec() != 0 || o.so_rcv_tmo_usec() != 0)
    apply_timeout(fd, SO_RCVTIMEO, o.so_rcv_tmo_sec(), o.so_rcv_tmo_usec(), who);
  if (o.has_reuseaddr()) differ(SO_REUSEADDR, o.reuseaddr());
  if (o.has_so_reuseport()) differ(SO_REUSEPORT, o.so_reuseport());
  if (o.has_so_priority()) differ(SO_PRIORITY, o.so_priority());
  if (o.has_so_rcvlowat()) differ(SO_RCVLOWAT, o.so_rcvlowat());
  if (o.has_so_mark()) differ(SO_MARK, o.so_mark());
  if (o.has_so_passcred()) differ(SO_PASSCRED, o.so_passcred());
  if (o.has_so_passsec()) differ(SO_PASSSEC, o.so_passsec());
  if (o.has_so_dontroute()) differ(SO_DONTROUTE, o.so_dontroute());
  if (o.has_so_no_check()) differ(SO_NO_CHECK, o.so_no_check());
  if (o.has_so_broadcast()) differ(SO_BROADCAST, o.so_broadcast());
  if (o.has_so_keepalive()) differ(SO_KEEPALIVE, o.so_keepalive());
  if (o.has_so_oobinline()) differ(SO_OOBINLINE, o.so_oobinline());
  if (o.has_so_linger()) {
    const linger l{1, static_cast<int>(o.so_linger())};
    check(::setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof l), "set the linger time of", who);
  }
  if (!o.so_bound_dev().empty())
    check(::setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, o.so_bound_dev().data(),
                       static_cast<socklen_t>(o.so_bound_dev().size())),
          "bind to device " + o.so_bound_dev() + " the", who);
}

void attach_deaf_filter(int fd, const std::string& who) {
  sock_filter drop{BPF_RET | BPF_K, 0, 0, 0};
  const sock_fprog program{1, &drop};
  check(::setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program), "attach a filter to", who);
}

void attach_own_filter(int fd, const img::sk_opts_entry& options, const std::string& who) {
  if (options.so_filter_size() == 0) {
    const int unused = 0;
    if (::setsockopt(fd, SOL_SOCKET, SO_DETACH_FILTER, &unused, sizeof unused) != 0 && errno != ENOENT && !is_mptcp(fd))
      throw Error("detach the filter of", who, errno);
    return;
  }
  if (static_cast<size_t>(options.so_filter_size()) > kMaxFilter)
    throw Corrupt("files.img", "a socket filter is too long");
  std::vector<sock_filter> code(static_cast<size_t>(options.so_filter_size()));
  for (size_t i = 0; i < code.size(); ++i) {
    const uint64_t packed = options.so_filter(static_cast<int>(i));
    std::memcpy(&code[i], &packed, sizeof packed);
  }
  const sock_fprog program{static_cast<unsigned short>(code.size()), code.data()};
  check(::setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program), "attach a filter to", who);
}

}  // namespace migrate
