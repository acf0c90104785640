#include "core/files/unix_diag.h"

#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cstring>
#include <exception>
#include <thread>

namespace migrate {
namespace {

constexpr uint8_t kListening = 10;

void parse_attribute(const rtattr& a, UnixSocketInfo& out) {
  const char* data = reinterpret_cast<const char*>(&a) + RTA_LENGTH(0);
  const size_t length = a.rta_len - RTA_LENGTH(0);
  const auto word = [&](size_t index) {
    uint32_t value = 0;
    if (length >= (index + 1) * sizeof value) std::memcpy(&value, data + index * sizeof value, sizeof value);
    return value;
  };
  switch (a.rta_type) {
    case UNIX_DIAG_NAME:
      out.name.assign(data, length);
      break;
    case UNIX_DIAG_VFS:
      out.file_ino = word(0);
      out.file_device = word(1);
      break;
    case UNIX_DIAG_PEER:
      out.peer = word(0);
      break;
    case UNIX_DIAG_ICONS:
      for (size_t i = 0; i < length / sizeof(uint32_t); ++i) out.waiting.push_back(word(i));
      break;
    case UNIX_DIAG_RQLEN:
      if (out.state == kListening) out.backlog = word(1);
      if (out.state != kListening) {
        out.queued = word(0);
        out.unread = word(1);
      }
      break;
    case UNIX_DIAG_SHUTDOWN:
      if (length >= 1) out.shutdown = static_cast<uint8_t>(*data);
      break;
    default:
      break;
  }
}

UnixSocketInfo parse_message(const nlmsghdr& header) {
  const auto& m = *reinterpret_cast<const unix_diag_msg*>(&header + 1);
  UnixSocketInfo info;
  info.ino = m.udiag_ino;
  info.type = m.udiag_type;
  info.state = m.udiag_state;
  int left = static_cast<int>(header.nlmsg_len - NLMSG_LENGTH(sizeof m));
  for (auto* a = reinterpret_cast<const rtattr*>(&m + 1); RTA_OK(a, left); a = RTA_NEXT(a, left))
    parse_attribute(*a, info);
  return info;
}

}  // namespace

bool parse_unix_sockets(std::span<const std::byte> bytes, std::map<uint32_t, UnixSocketInfo>& found) {
  auto left = static_cast<ssize_t>(bytes.size());
  for (auto* h = reinterpret_cast<const nlmsghdr*>(bytes.data()); NLMSG_OK(h, left); h = NLMSG_NEXT(h, left)) {
    if (h->nlmsg_type == NLMSG_DONE) return true;
    if (h->nlmsg_type == NLMSG_ERROR) {
      nlmsgerr error{};
      if (h->nlmsg_len >= NLMSG_LENGTH(sizeof error.error)) std::memcpy(&error, h + 1, sizeof error.error);
      throw Error("ask for", "the Unix sockets (is the unix_diag module there?)", -error.error);
    }
    if (h->nlmsg_len < NLMSG_LENGTH(sizeof(unix_diag_msg))) continue;
    UnixSocketInfo info = parse_message(*h);
    found.insert_or_assign(info.ino, std::move(info));
  }
  return false;
}

/// Made by a thread that goes there: ours stays where it is.
Fd diag_socket(const ProcDir* task) {
  const auto make = [] {
    return Fd(check(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG), "open", "a diag socket"));
  };
  if (task == nullptr) return make();
  struct stat theirs {
  }, ours{};
  check(::fstatat(task->fd(), "ns/net", &theirs, 0), "stat", "a network namespace");
  check(::stat("/proc/self/ns/net", &ours), "stat", "a network namespace");
  if (theirs.st_ino == ours.st_ino) return make();
  const Fd ns = task->open("ns/net", O_RDONLY);
  Fd result;
  std::exception_ptr failure;
  std::thread([&] {
    try {
      check(::setns(ns.get(), CLONE_NEWNET), "enter", "a network namespace");
      result = make();
    } catch (...) {
      failure = std::current_exception();
    }
  }).join();
  if (failure) std::rethrow_exception(failure);
  return result;
}

std::map<uint32_t, UnixSocketInfo> list_unix_sockets(const ProcDir* task) {
  const Fd socket = diag_socket(task);
  struct {
    nlmsghdr header;
    unix_diag_req request;
  } query{};
  query.header.nlmsg_len = sizeof query;
  query.header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
  query.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
  query.request.sdiag_family = AF_UNIX;
  query.request.udiag_states = ~0U;
  query.request.udiag_show = UDIAG_SHOW_NAME | UDIAG_SHOW_VFS | UDIAG_SHOW_PEER | UDIAG_SHOW_ICONS | UDIAG_SHOW_RQLEN;
  check(::send(socket.get(), &query, sizeof query, 0), "ask for", "the Unix sockets");
  std::map<uint32_t, UnixSocketInfo> found;
  std::vector<std::byte> buffer(256 << 10);
  for (;;) {
    const ssize_t n = check(::recv(socket.get(), buffer.data(), buffer.size(), 0), "read", "the Unix sockets");
    if (n == 0 || parse_unix_sockets(std::span(buffer).first(static_cast<size_t>(n)), found)) return found;
  }
}

}  // namespace migrate
