// Multicast groups that UDP sockets have joined, with their sources, and the interface they send by.
#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <string>
#include <vector>

#include "workload.h"

using namespace workload;

namespace {

sockaddr_storage address(const char* text) {
  sockaddr_storage a{};
  if (inet_pton(AF_INET, text, &reinterpret_cast<sockaddr_in&>(a).sin_addr) == 1) {
    a.ss_family = AF_INET;
  } else {
    a.ss_family = AF_INET6;
    expect(inet_pton(AF_INET6, text, &reinterpret_cast<sockaddr_in6&>(a).sin6_addr) == 1, text);
  }
  return a;
}

int level_of(const sockaddr_storage& a) { return a.ss_family == AF_INET ? +IPPROTO_IP : +IPPROTO_IPV6; }

struct Group {
  const char* group;
  std::vector<const char*> sources;
  bool exclude;
};

int bound(int family) {
  const int fd = must(socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0), "socket");
  sockaddr_storage any{};
  any.ss_family = static_cast<sa_family_t>(family);
  must(bind(fd, reinterpret_cast<sockaddr*>(&any), family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6)),
       "bind");
  return fd;
}

void join(int fd, const Group& g) {
  const sockaddr_storage group = address(g.group);
  group_req request{};
  request.gr_interface = if_nametoindex("lo");
  request.gr_group = group;
  if (g.exclude) must(setsockopt(fd, level_of(group), MCAST_JOIN_GROUP, &request, sizeof request), "join");
  for (const char* source : g.sources) {
    group_source_req r{};
    r.gsr_interface = request.gr_interface;
    r.gsr_group = group;
    r.gsr_source = address(source);
    must(setsockopt(fd, level_of(group), g.exclude ? MCAST_BLOCK_SOURCE : MCAST_JOIN_SOURCE_GROUP, &r, sizeof r),
         "source");
  }
}

void verify(int fd, const Group& g) {
  std::vector<char> memory(GROUP_FILTER_SIZE(16));
  auto& filter = *reinterpret_cast<group_filter*>(memory.data());
  const sockaddr_storage group = address(g.group);
  filter.gf_interface = if_nametoindex("lo");
  std::memcpy(&filter.gf_group, &group, sizeof group);
  filter.gf_numsrc = 16;
  auto n = static_cast<socklen_t>(memory.size());
  must(getsockopt(fd, level_of(group), MCAST_MSFILTER, memory.data(), &n), g.group);
  expect_equal(filter.gf_fmode == MCAST_EXCLUDE, g.exclude, std::string("the mode of ") + g.group);
  expect_equal(filter.gf_numsrc, g.sources.size(), std::string("the number of sources of ") + g.group);
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        const std::vector<Group> groups = {{"239.7.7.1", {}, true},
                                           {"239.7.7.2", {"127.0.0.5", "127.0.0.6"}, true},
                                           {"239.7.7.3", {"127.0.0.1"}, false}};
        const std::vector<Group> groups6 = {
            {"ff01::7:1", {}, true}, {"ff01::7:2", {"::5"}, true}, {"ff01::7:3", {"::1"}, false}};
        const int fd = bound(AF_INET);
        for (const Group& g : groups) join(fd, g);
        ip_mreqn by{};
        by.imr_ifindex = static_cast<int>(if_nametoindex("lo"));
        must(setsockopt(fd, IPPROTO_IP, IP_MULTICAST_IF, &by, sizeof by), "IP_MULTICAST_IF");
        int fd6 = -1;
        if (access("/proc/net/if_inet6", F_OK) == 0) {
          fd6 = bound(AF_INET6);
          for (const Group& g : groups6) join(fd6, g);
        }
        w.serve([&] {
          for (const Group& g : groups) verify(fd, g);
          if (fd6 != -1)
            for (const Group& g : groups6) verify(fd6, g);
          // To itself, which it does by that interface only.
          sockaddr_storage to = address("239.7.7.1");
          sockaddr_in name{};
          socklen_t n = sizeof name;
          must(getsockname(fd, reinterpret_cast<sockaddr*>(&name), &n), "getsockname");
          reinterpret_cast<sockaddr_in&>(to).sin_port = name.sin_port;
          must(sendto(fd, "hello", 5, 0, reinterpret_cast<sockaddr*>(&to), sizeof(sockaddr_in)), "sendto");
          char text[16];
          await([&] { return recv(fd, text, sizeof text, MSG_DONTWAIT) == 5; }, "a datagram of the group", 5000);
        });
      },
      argv[0]);
}
