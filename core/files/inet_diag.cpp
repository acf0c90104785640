#include "core/files/inet_diag.h"

#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cstring>
#include <vector>

#include "core/files/unix_diag.h"

namespace migrate {
namespace {

void ask(int socket, int family, int protocol, std::map<uint32_t, int>& found) {
  struct {
    nlmsghdr header;
    inet_diag_req_v2 request;
  } query{};
  query.header.nlmsg_len = sizeof query;
  query.header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
  query.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
  query.request.sdiag_family = static_cast<uint8_t>(family);
  query.request.sdiag_protocol = static_cast<uint8_t>(protocol);
  query.request.idiag_states = ~0U;
  query.request.idiag_ext = 1 << (INET_DIAG_SHUTDOWN - 1);
  check(::send(socket, &query, sizeof query, 0), "ask for", "the UDP sockets");
  std::vector<std::byte> buffer(64 << 10);
  for (;;) {
    const ssize_t n = check(::recv(socket, buffer.data(), buffer.size(), 0), "read", "the UDP sockets");
    if (n == 0 || parse_inet_shutdowns(std::span(buffer).first(static_cast<size_t>(n)), found)) return;
  }
}

}  // namespace

bool parse_inet_shutdowns(std::span<const std::byte> bytes, std::map<uint32_t, int>& found) {
  auto left = static_cast<ssize_t>(bytes.size());
  for (auto* h = reinterpret_cast<const nlmsghdr*>(bytes.data()); NLMSG_OK(h, left); h = NLMSG_NEXT(h, left)) {
    if (h->nlmsg_type == NLMSG_DONE) return true;
    if (h->nlmsg_type == NLMSG_ERROR) {
      nlmsgerr error{};
      if (h->nlmsg_len >= NLMSG_LENGTH(sizeof error.error)) std::memcpy(&error, h + 1, sizeof error.error);
      // Without the module for that protocol nobody has it loaded either; all others can be asked.
      if (error.error == -ENOENT) return true;
      throw Error("ask for", "the UDP sockets (is the udp_diag module there?)", -error.error);
    }
    if (h->nlmsg_len < NLMSG_LENGTH(sizeof(inet_diag_msg))) continue;
    const auto& m = *reinterpret_cast<const inet_diag_msg*>(h + 1);
    int rest = static_cast<int>(h->nlmsg_len - NLMSG_LENGTH(sizeof m));
    for (auto* a = reinterpret_cast<const rtattr*>(&m + 1); RTA_OK(a, rest); a = RTA_NEXT(a, rest)) {
      const auto* data = reinterpret_cast<const uint8_t*>(a) + RTA_LENGTH(0);
      if (a->rta_type == INET_DIAG_SHUTDOWN && a->rta_len > RTA_LENGTH(0) && *data != 0)
        found[m.idiag_inode] = *data & 3;
    }
  }
  return false;
}

std::map<uint32_t, int> list_udp_shutdowns(const ProcDir* task) {
  std::map<uint32_t, int> found;
  const Fd socket = diag_socket(task);
  for (const int family : {AF_INET, AF_INET6})
    for (const int protocol : {IPPROTO_UDP, IPPROTO_UDPLITE}) ask(socket.get(), family, protocol, found);
  return found;
}

}  // namespace migrate
