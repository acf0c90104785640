// Which sockets are in a group that a program chooses in, by the kernel's own structures.
#include "core/files/reuseport_programs.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/base/error.h"

namespace migrate {
namespace {

/// Of a group, at a port of its own if `port` is 0.
Fd bound(int type, uint16_t& port) {
  Fd fd(::socket(AF_INET, type | SOCK_CLOEXEC, 0));
  const int on = 1;
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = port;
  socklen_t size = sizeof address;
  check(::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEPORT, &on, sizeof on), "set", "SO_REUSEPORT");
  check(::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), "bind", "a socket");
  if (type == SOCK_STREAM) check(::listen(fd.get(), 1), "listen at", "a socket");
  check(::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &size), "look at", "a socket");
  port = address.sin_port;
  return fd;
}

TEST(ReuseportProgramsTest, AllOfAGroupAreToldAndNoOthers) {
  const auto programs = ReuseportPrograms::open();
  if (!programs) GTEST_SKIP() << "no BPF iterator over files: run it as root, on Linux 6.1 with CONFIG_DEBUG_INFO_BTF";
  for (const int type : {SOCK_DGRAM, SOCK_STREAM}) {
    uint16_t first = 0, second = 0;
    const Fd a = bound(type, first), b = bound(type, first), other = bound(type, second);
    EXPECT_TRUE(programs->of(::getpid()).empty());
    sock_filter code[] = {{BPF_RET | BPF_K, 0, 0, 0}};
    const sock_fprog program{1, code};
    ASSERT_EQ(::setsockopt(a.get(), SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, &program, sizeof program), 0);
    EXPECT_EQ(programs->of(::getpid()), (std::set<int>{a.get(), b.get()}));
    ReuseportCheck look;
    EXPECT_THROW(look.check(b.get(), ::getpid(), b.get(), "task 7 has fd 5"), Refusal);
    EXPECT_NO_THROW(look.check(other.get(), ::getpid(), other.get(), "task 7 has fd 6"));
  }
}

}  // namespace
}  // namespace migrate
