// Netlink sockets: their numbers, groups, options and filters; they ask and hear the kernel. The group is one in which
// nothing happens by itself, since what is unread keeps a program from being moved.
#include <linux/filter.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include "small.h"

namespace {

constexpr uint32_t kQuiet = RTNLGRP_MPLS_ROUTE, kOfSecondWord = 33;

int netlink(int protocol, int type = SOCK_RAW) {
  const int fd = socket(AF_NETLINK, type | SOCK_CLOEXEC, protocol);
  if (fd == -1 && errno == EPROTONOSUPPORT)
    throw NotHere("the kernel lacks netlink protocol " + std::to_string(protocol));
  return static_cast<int>(must(fd, "socket"));
}

void bind_to(int fd, uint32_t number) {
  sockaddr_nl a{};
  a.nl_family = AF_NETLINK;
  a.nl_pid = number;
  must(bind(fd, reinterpret_cast<const sockaddr*>(&a), sizeof a), "bind");
}

uint32_t number_of(int fd) {
  sockaddr_nl a{};
  socklen_t length = sizeof a;
  must(getsockname(fd, reinterpret_cast<sockaddr*>(&a), &length), "getsockname");
  return a.nl_pid;
}

void join(int fd, uint32_t group) {
  must(setsockopt(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group), "NETLINK_ADD_MEMBERSHIP");
}

bool is_member(int fd, uint32_t group) {
  uint32_t words[64] = {};
  socklen_t length = sizeof words;
  must(getsockopt(fd, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, words, &length), "NETLINK_LIST_MEMBERSHIPS");
  return (words[(group - 1) / 32] >> (group - 1) % 32 & 1) != 0;
}

/// A message without meaning, from a stranger.
void say_to_group(uint32_t group, uint32_t mark) {
  const int fd = netlink(NETLINK_ROUTE);
  nlmsghdr message{};
  message.nlmsg_len = sizeof message;
  message.nlmsg_type = NLMSG_NOOP;
  message.nlmsg_seq = htonl(mark);
  sockaddr_nl to{};
  to.nl_family = AF_NETLINK;
  to.nl_groups = 1u << (group - 1);
  const ssize_t n = sendto(fd, &message, sizeof message, 0, reinterpret_cast<const sockaddr*>(&to), sizeof to);
  close(fd);
  allowed(n, "sendto a group");
}

void attach(int fd, sock_filter* code, size_t count) {
  const sock_fprog program{static_cast<unsigned short>(count), code};
  must(setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program), "SO_ATTACH_FILTER");
}

/// Others of these may run in the same network namespace.
void hear_only(int fd, uint32_t mark) {
  sock_filter code[] = {{BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(nlmsghdr, nlmsg_seq)},
                        {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, mark},
                        {BPF_RET | BPF_K, 0, 0, ~0u},
                        {BPF_RET | BPF_K, 0, 0, 0}};
  attach(fd, code, std::size(code));
}

void hear_nothing(int fd) {
  sock_filter drop{BPF_RET | BPF_K, 0, 0, 0};
  attach(fd, &drop, 1);
}

bool hears(int fd) {
  pollfd p{fd, POLLIN, 0};
  if (poll(&p, 1, 200) != 1) return false;
  nlmsghdr message{};
  return recv(fd, &message, sizeof message, 0) == sizeof message && message.nlmsg_type == NLMSG_NOOP;
}

/// The loopback device.
void ask_for_link(int fd) {
  struct {
    nlmsghdr head;
    ifinfomsg info;
  } request{};
  request.head.nlmsg_len = sizeof request;
  request.head.nlmsg_type = RTM_GETLINK;
  request.head.nlmsg_flags = NLM_F_REQUEST;
  request.info.ifi_index = static_cast<int>(if_nametoindex("lo"));
  must(send(fd, &request, sizeof request, 0), "send");
  alignas(nlmsghdr) char answer[16384];
  must(recv(fd, answer, sizeof answer, 0), "recv");
  const auto* head = reinterpret_cast<const nlmsghdr*>(answer);
  expect_equal(head->nlmsg_type, uint16_t{RTM_NEWLINK}, "the answer's type");
  expect_equal(head->nlmsg_pid, number_of(fd), "whom the answer is for");
}

int option(int fd, int name) {
  int value = 0;
  socklen_t length = sizeof value;
  must(getsockopt(fd, SOL_NETLINK, name, &value, &length), "getsockopt");
  return value;
}

}  // namespace

WORKLOAD(netlink, asks) {
  const int fd = netlink(NETLINK_ROUTE);
  ask_for_link(fd);
  const uint32_t number = number_of(fd);
  return [=] {
    expect_equal(number_of(fd), number, "its number");
    ask_for_link(fd);
  };
}

WORKLOAD(netlink, fresh) {
  const int fd = netlink(NETLINK_ROUTE);
  return [=] { expect_equal(number_of(fd), uint32_t{0}, "its number"); };
}

WORKLOAD(netlink, own_number) {
  const int fd = netlink(NETLINK_SOCK_DIAG, SOCK_DGRAM);
  const uint32_t number = 0x70000000u + static_cast<uint32_t>(getpid());
  bind_to(fd, number);
  return [=] {
    expect_equal(number_of(fd), number, "its number");
    int type = 0;
    socklen_t length = sizeof type;
    must(getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length), "SO_TYPE");
    expect_equal(type, int{SOCK_DGRAM}, "its type");
  };
}

WORKLOAD(netlink, groups) {
  const int fd = netlink(NETLINK_ROUTE);
  bind_to(fd, 0);  // one without a number hears nothing
  const auto mark = static_cast<uint32_t>(now_ns(CLOCK_REALTIME));
  hear_only(fd, mark);
  join(fd, kQuiet);
  join(fd, kOfSecondWord);
  say_to_group(kQuiet, mark);
  expect(hears(fd), "its group is not heard");
  return [=] {
    expect(is_member(fd, kQuiet) && is_member(fd, kOfSecondWord), "it has left its groups");
    expect(!is_member(fd, kQuiet + 1) && !is_member(fd, RTNLGRP_LINK), "it has joined other groups");
    say_to_group(kQuiet, mark + 1);
    expect(!hears(fd), "its filter lets others through");
    say_to_group(kQuiet, mark);
    expect(hears(fd), "its group is not heard");
  };
}

WORKLOAD(netlink, uevents) {
  const int fd = netlink(NETLINK_KOBJECT_UEVENT, SOCK_DGRAM);
  // Nothing of it is read: programs that do not wait for these, but could.
  hear_nothing(fd);
  join(fd, 1);
  return [=] { expect(is_member(fd, 1), "it does not hear of devices any more"); };
}

WORKLOAD(netlink, options) {
  const int fd = netlink(NETLINK_ROUTE);
  const int on = 1;
  for (const int name : {NETLINK_PKTINFO, NETLINK_NO_ENOBUFS, NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK})
    must(setsockopt(fd, SOL_NETLINK, name, &on, sizeof on), "setsockopt");
  return [=] {
    for (const int name :
         {NETLINK_PKTINFO, NETLINK_NO_ENOBUFS, NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK})
      expect_equal(option(fd, name), 1, "option " + std::to_string(name));
    expect_equal(option(fd, NETLINK_BROADCAST_ERROR), 0, "NETLINK_BROADCAST_ERROR");
  };
}

WORKLOAD(netlink, filter) {
  const int fd = netlink(NETLINK_ROUTE);
  hear_nothing(fd);
  bind_to(fd, 0);
  join(fd, kQuiet);
  return [=] {
    say_to_group(kQuiet, 0);
    expect(!hears(fd), "its filter lets messages through");
  };
}

WORKLOAD(netlink, audit) {
  const int fd = netlink(NETLINK_AUDIT);
  bind_to(fd, 0);
  const uint32_t number = number_of(fd);
  return [=] { expect_equal(number_of(fd), number, "its number"); };
}
