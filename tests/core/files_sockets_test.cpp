// What CRIU's entries say nothing of: options of sockets and who may set them, and the kernel's list of shutdowns.
#include "files_testing.h"

#include <linux/capability.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>

#include "core/files/inet_diag.h"
#include "core/files/option_table.h"

namespace migrate::files_testing {
namespace {

ImageSet one_state(const std::function<void(ext::SocketState&)>& change) {
  ImageSet images;
  ext::SocketState state;
  state.set_id_for(1);
  change(state);
  images.write(kSocketsImage, kSocketsMagic).entry(state);
  return images;
}

void add_option(ext::SocketState& state, int level, int name, const std::string& value) {
  ext::SocketOption& o = *state.add_options();
  o.set_level(static_cast<uint32_t>(level));
  o.set_name(static_cast<uint32_t>(name));
  o.set_value(value);
}

TEST(SocketStates, TakesNoOptionThatIsNotInTheTable) {
  EXPECT_THROW(SocketStates(one_state([](auto& s) { add_option(s, SOL_SOCKET, SO_RCVBUFFORCE, "1234"); })), Corrupt);
  EXPECT_THROW(SocketStates(one_state([](auto& s) { add_option(s, IPPROTO_TCP, 19, "1234"); })),
               Corrupt);  // TCP_REPAIR
  EXPECT_THROW(SocketStates(one_state([](auto& s) { add_option(s, IPPROTO_IP, IP_TOS, "12345"); })), Corrupt);
  EXPECT_NO_THROW(SocketStates(one_state([](auto& s) { add_option(s, IPPROTO_IP, IP_TOS, "1234"); })));
}

TEST(SocketStates, TakesNoPathThatIsNone) {
  for (const std::string path : {"x", "/x/", "/x/..", "/"})
    EXPECT_THROW(SocketStates(one_state([&](auto& s) { s.set_file(path); })), Corrupt) << path;
  EXPECT_THROW(SocketStates(one_state([](auto& s) { s.set_file(std::string("/a\0b", 4)); })), Corrupt);
  EXPECT_NO_THROW(SocketStates(one_state([](auto& s) { s.set_file("/run/x"); })));
}

TEST(SocketStates, OptionsNeedTheRightToSetThem) {
  const std::string on("\1\0\0\0", 4), off(4, '\0'), seven("\7\0\0\0", 4);
  const Holders user = {{kUser, kUser, {}, 0}};
  const Holders raw = {{kUser, kUser, {}, uint64_t{1} << CAP_NET_RAW}};
  struct Case {
    int level, name;
    std::string value;
    bool user, raw;
  };
  for (const Case& c :
       {Case{IPPROTO_IP, 19, on, false, true}, Case{IPPROTO_IP, 19, off, true, true},
        Case{SOL_SOCKET, SO_PRIORITY, on, true, true}, Case{SOL_SOCKET, SO_PRIORITY, seven, false, true},
        Case{SOL_SOCKET, SO_DEBUG, on, false, false}, Case{IPPROTO_IP, IP_TOS, on, true, true}}) {
    const SocketStates states(one_state([&](auto& s) { add_option(s, c.level, c.name, c.value); }));
    const auto allowed = [&](const Holders& holders) {
      try {
        states.check_rights(1, holders, "a socket");
        return true;
      } catch (const Refusal&) {
        return false;
      }
    };
    EXPECT_EQ(allowed(user), c.user) << c.level << "/" << c.name;
    EXPECT_EQ(allowed(raw), c.raw) << c.level << "/" << c.name;
  }
}

TEST(InetDiag, ReadsShutdowns) {
  struct {
    nlmsghdr header;
    inet_diag_msg message;
    rtattr attribute;
    uint32_t value;
  } answer{};
  answer.header.nlmsg_len = sizeof answer;
  answer.header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
  answer.message.idiag_inode = 42;
  answer.attribute.rta_type = INET_DIAG_SHUTDOWN;
  answer.attribute.rta_len = RTA_LENGTH(1);
  answer.value = 2;
  std::map<uint32_t, int> found;
  EXPECT_FALSE(parse_inet_shutdowns(std::as_bytes(std::span(&answer, 1)), found));
  EXPECT_EQ(found, (std::map<uint32_t, int>{{42, 2}}));
  // Cut off anywhere it is nothing.
  for (size_t size = 0; size < sizeof answer; ++size) {
    found.clear();
    parse_inet_shutdowns(std::as_bytes(std::span(&answer, 1)).first(size), found);
    EXPECT_TRUE(found.empty());
  }
}

}  // namespace
}  // namespace migrate::files_testing
