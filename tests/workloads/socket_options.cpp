// Every integer option that the kernel lets be set on TCP, UDP and Unix sockets, in each state of theirs: found by
// asking the kernel, set to something else than it was, and compared.
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "workload.h"

using namespace workload;

namespace {

enum class State { fresh, bound, active };  // active: listening, or connected

struct Kind {
  const char* name;
  int family, type, protocol;
};
constexpr Kind kKinds[] = {
    {"TCP4", AF_INET, SOCK_STREAM, 0},         {"TCP6", AF_INET6, SOCK_STREAM, 0},
    {"UDP4", AF_INET, SOCK_DGRAM, 0},          {"UDP6", AF_INET6, SOCK_DGRAM, 0},
    {"UDPLITE4", AF_INET, SOCK_DGRAM, 136},    {"Unix stream", AF_UNIX, SOCK_STREAM, 0},
    {"Unix datagram", AF_UNIX, SOCK_DGRAM, 0}, {"Unix seqpacket", AF_UNIX, SOCK_SEQPACKET, 0},
};
constexpr std::pair<int, int> kNoInteger[] = {
    // They do something, or stand for something else than a value.
    {SOL_SOCKET, SO_BINDTODEVICE},
    {IPPROTO_TCP, TCP_REPAIR},
    {IPPROTO_TCP, TCP_ULP},
    {IPPROTO_TCP, TCP_TIMESTAMP},
    {SOL_SOCKET, 77},  // SO_PEERPIDFD makes a descriptor
    // Of the path, not of the socket.
    {IPPROTO_IP, IP_MTU},
    {IPPROTO_IPV6, IPV6_MTU},
};
constexpr std::array kLevels = {SOL_SOCKET, +IPPROTO_IP, +IPPROTO_IPV6, +IPPROTO_TCP, +IPPROTO_UDP, 136};
constexpr int kMostNames = 256;

std::string value_of(int fd, int level, int name) {
  std::string value(256, '\0');
  socklen_t n = 256;
  // Asked with an int's size first: what is longer is no integer, but for time stamps and rates.
  if (getsockopt(fd, level, name, value.data(), &n) == -1) return "";
  value.resize(n);
  return n == 4 || n == 8 ? value : "";
}

bool excluded(int level, int name) {
  for (const auto& [l, n] : kNoInteger)
    if (l == level && n == name) return true;
  return false;
}

class Socket {
 public:
  Socket(const Kind& kind, State state)
      : name_(kind.name), kind_(kind), fd_(socket(kind.family, kind.type, kind.protocol)) {
    if (fd_ == -1) return;  // this kernel has no such protocol
    if (state != State::fresh) go_to(state);
    name_ += state == State::fresh ? " fresh" : state == State::bound ? " bound" : " active";
    for (const int level : kLevels)
      for (int n = 0; n < kMostNames; ++n)
        if (!excluded(level, n)) change(level, n);
    // Some change others: what counts is what they are in the end.
    for (const auto& [level, n] : set_) options_.push_back({level, n, value_of(fd_, level, n)});
  }

  void verify() const {
    std::string wrong;
    for (const Option& o : options_)
      if (const std::string now = value_of(fd_, o.level, o.name); now != o.value)
        wrong += " " + name_ + " " + std::to_string(o.level) + "/" + std::to_string(o.name) + " is " + text(now) +
                 ", was " + text(o.value) + ";";
    expect(wrong.empty(), wrong);
  }
  size_t changed() const { return set_.size(); }

 private:
  struct Option {
    int level, name;
    std::string value;
  };

  static std::string text(const std::string& value) {
    int number = 0;
    std::memcpy(&number, value.data(), std::min(value.size(), sizeof number));
    return value.empty() ? "not there" : std::to_string(number);
  }

  void go_to(State state) {
    sockaddr_storage a{};
    a.ss_family = static_cast<sa_family_t>(kind_.family);
    socklen_t n = sizeof a;
    if (kind_.family == AF_INET) reinterpret_cast<sockaddr_in&>(a).sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (kind_.family == AF_INET6) reinterpret_cast<sockaddr_in6&>(a).sin6_addr = in6addr_loopback;
    if (kind_.family == AF_UNIX) n = sizeof(sa_family_t);  // an abstract name that the kernel picks
    must(bind(fd_, reinterpret_cast<sockaddr*>(&a), n), "bind");
    if (state != State::active) return;
    if (kind_.type != SOCK_DGRAM) {
      must(listen(fd_, 7), "listen");
      return;
    }
    n = sizeof a;
    must(getsockname(fd_, reinterpret_cast<sockaddr*>(&a), &n), "getsockname");
    must(connect(fd_, reinterpret_cast<sockaddr*>(&a), n), "connect");
  }

  void change(int level, int name) {
    const std::string before = value_of(fd_, level, name);
    if (before.empty()) return;
    int v = 0;
    std::memcpy(&v, before.data(), sizeof v);
    // Then loopback's number and address, in network byte order.
    for (const int candidate : {v + 1, v ? 0 : 1, 2, 3, 4, 5, 8, 16, 77, 256, 1000, 72000, 0x01000000, 0x0100007f}) {
      if (candidate == v || setsockopt(fd_, level, name, &candidate, sizeof candidate) == -1) continue;
      if (value_of(fd_, level, name) == before) continue;
      set_.emplace_back(level, name);
      return;
    }
  }

  std::string name_;
  Kind kind_;
  int fd_;
  std::vector<std::pair<int, int>> set_;
  std::vector<Option> options_;
};

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        std::vector<Socket> sockets;
        size_t changed = 0;
        for (const Kind& kind : kKinds)
          for (const State state : {State::fresh, State::bound, State::active}) {
            if (kind.family == AF_INET6 && access("/proc/net/if_inet6", F_OK) == -1) continue;
            sockets.emplace_back(kind, state);
            changed += sockets.back().changed();
          }
        expect(changed > 500, "only " + std::to_string(changed) + " options could be changed");
        w.serve([&] {
          for (const Socket& s : sockets) s.verify();
        });
      },
      argv[0]);
}
