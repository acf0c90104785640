// Netlink sockets (netlink(7)) that listen to the kernel, or ask it now and then: routes, uevents, lists of sockets,
// the audit log. What they have is a number and groups; at the destination they hear of its network and its devices.
#include <linux/audit.h>
#include <linux/netlink.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <vector>

#include "core/files/kind.h"
#include "core/files/option_table.h"
#include "core/files/socket_options.h"

namespace migrate {
namespace {

constexpr size_t kMostGroupWords = 64;  // of 32 groups each; the kernel's families have some 40 groups

struct Protocol {
  uint32_t number;
  const char* name;
  bool groups;  ///< that any user may join (NL_CFG_F_NONROOT_RECV in net/, without a bind() that asks for more)
};

// Not generic netlink, whose families have other numbers on another host, nor those between programs.
constexpr std::array kProtocols{
    Protocol{NETLINK_ROUTE, "route", true},
    Protocol{NETLINK_SOCK_DIAG, "sock_diag", true},
    Protocol{NETLINK_KOBJECT_UEVENT, "uevent", true},
    Protocol{NETLINK_AUDIT, "audit", false},
};

const Protocol* find_protocol(uint32_t number) {
  const auto it = std::ranges::find(kProtocols, number, &Protocol::number);
  return it == kProtocols.end() ? nullptr : &*it;
}

sockaddr_nl address_of(int fd, int (*ask)(int, sockaddr*, socklen_t*), const std::string& who) {
  sockaddr_nl address{};
  socklen_t length = sizeof address;
  check(ask(fd, reinterpret_cast<sockaddr*>(&address), &length), "read the address of socket:", who);
  return address;
}

/// As words of 32; without those at the end that are empty.
std::vector<uint32_t> groups_of(int fd, const std::string& who) {
  std::vector<uint32_t> words(kMostGroupWords);
  auto length = static_cast<socklen_t>(words.size() * sizeof(uint32_t));
  check(::getsockopt(fd, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, words.data(), &length),
        "read the groups of socket:", who);
  if (length > words.size() * sizeof(uint32_t))
    throw Refusal(who + ", a netlink socket with too many groups", "close it first");
  words.resize(length / sizeof(uint32_t));
  while (!words.empty() && words.back() == 0) words.pop_back();
  return words;
}

/// The audit daemon's own: the kernel's log goes to its number, until it says otherwise.
bool is_audit_daemons(uint32_t number) {
  struct {
    nlmsghdr head;
    audit_status status;
  } answer{};
  const Fd fd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_AUDIT));
  nlmsghdr request{};
  request.nlmsg_len = sizeof request;
  request.nlmsg_type = AUDIT_GET;
  request.nlmsg_flags = NLM_F_REQUEST;
  // The kernel answers before the call returns; one that has no audit, or none for us, does not.
  if (!fd || ::send(fd.get(), &request, sizeof request, 0) < 0) return false;
  const ssize_t n = ::recv(fd.get(), &answer, sizeof answer, 0);
  return n >= static_cast<ssize_t>(offsetof(decltype(answer), status.rate_limit)) &&
         answer.head.nlmsg_type == AUDIT_GET && answer.status.pid != 0 && answer.status.pid == number;
}

class NetlinkDump : public DumpKind {
 public:
  explicit NetlinkDump(const DumpServices& services) : context_(services.context) {}
  bool matches(const OpenFile& file) const override { return file.domain == AF_NETLINK; }
  bool preflight_opens(const OpenFile&) const override { return false; }  // it is
  void preflight(const OpenFile& file, Preflight&) override {
    img::netlink_sk_entry unused;
    check_filter(file.ours.get(), file.who());
    describe(file, unused);
  }
  void dump(const OpenFile& file) override {
    img::file_entry entry = entry_of(img::fd_types::NETLINKSK, file.id);
    img::netlink_sk_entry& e = *entry.mutable_nlsk();
    refuse_unread(file);
    describe(file, e);
    describe_common(file, e);
    describe_socket_options(file.ours.get(), file.who(), *e.mutable_opts());
    ext::SocketState state;
    state.set_id_for(file.id);
    state.set_type(static_cast<uint32_t>(socket_option(file.ours.get(), SOL_SOCKET, SO_TYPE, file.who())));
    describe_options(file.ours.get(), file.who(), state);
    context_.images.write(kSocketsImage, kSocketsMagic).entry(state);
    context_.emit(entry);
    record_owner(context_, file);
  }

 private:
  /// What is this kind's alone.
  static void describe(const OpenFile& file, img::netlink_sk_entry& e) {
    const int fd = file.ours.get();
    const auto number = static_cast<uint32_t>(socket_option(fd, SOL_SOCKET, SO_PROTOCOL, file.who()));
    const Protocol* protocol = find_protocol(number);
    if (protocol == nullptr)
      throw Refusal(file.who() + ", a netlink socket of protocol " + std::to_string(number), "close it first");
    const sockaddr_nl own = address_of(fd, ::getsockname, file.who());
    const sockaddr_nl peer = address_of(fd, ::getpeername, file.who());
    const std::string name = file.who() + ", a netlink socket (" + protocol->name + ")";
    if (peer.nl_pid != 0 || peer.nl_groups != 0)
      throw Refusal(name + " that is connected to another program's", "close it first");
    const std::vector<uint32_t> groups = groups_of(fd, file.who());
    if (!groups.empty() && !protocol->groups) throw Refusal(name + " in a group", "close it first");
    if (try_socket_option(fd, SOL_NETLINK, NETLINK_LISTEN_ALL_NSID).value_or(0) != 0)
      throw Refusal(name + " that hears of all network namespaces", "close it first");
    if (number == NETLINK_AUDIT && own.nl_pid != 0 && is_audit_daemons(own.nl_pid))
      throw Refusal(name + " to which the kernel sends the audit log", "let the audit daemon stay where it is");
    e.set_id(file.id);
    e.set_ino(static_cast<uint32_t>(file.st.stx_ino));
    e.set_protocol(number);
    e.set_state(0);  // NETLINK_UNCONNECTED: a connection to the kernel is none
    e.set_portid(own.nl_pid);
    for (const uint32_t word : groups) e.add_groups(word);
    e.set_dst_portid(0);
    e.set_dst_group(0);
  }

  /// Nobody but the kernel could say it again.
  static void refuse_unread(const OpenFile& file) {
    char byte;
    const ssize_t n = ::recv(file.ours.get(), &byte, 1, MSG_PEEK | MSG_DONTWAIT | MSG_TRUNC);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
    throw Refusal(file.who() + ", a netlink socket with " +
                      (n < 0 ? std::string("an error that the program has not been told of")
                             : "messages that have not been read"),
                  "try again");
  }

  DumpContext& context_;
};

std::string name_of(const img::netlink_sk_entry& e) {
  const Protocol* protocol = find_protocol(e.protocol());
  if (protocol == nullptr || (e.groups_size() != 0 && !protocol->groups))
    throw Refusal("the images hold a netlink socket of protocol " + std::to_string(e.protocol()) +
                      (e.groups_size() != 0 ? " with groups" : ""),
                  "it cannot be restored");
  return std::string("netlink socket (") + protocol->name + ") number " + std::to_string(e.portid());
}

class NetlinkRestore : public RestoreKind {
 public:
  explicit NetlinkRestore(const RestoreServices& services) : services_(services) {}

  bool has_checks() const override { return services_.options.owners.has_value(); }
  void check(const UsedFile& file) override {
    services_.socket_states.check_rights(file.id, file.holders, name_of(file.entry.nlsk()));
  }
  Fd open(const UsedFile& file) override {
    const img::netlink_sk_entry& e = file.entry.nlsk();
    const std::string who = name_of(e);
    if (e.dst_portid() != 0 || e.dst_group() != 0)
      throw Refusal("the images hold a " + who + " that is connected to another program's", "it cannot be restored");
    const ext::SocketState* state = services_.socket_states.find(file.id);
    const int type = state != nullptr && state->type() == SOCK_DGRAM ? SOCK_DGRAM : SOCK_RAW;
    Fd fd(migrate::check(::socket(AF_NETLINK, type | SOCK_CLOEXEC, static_cast<int>(e.protocol())), "make", who));
    give_file(fd.get(), services_.owner(file), services_.ours(), who);
    apply_socket_options(fd.get(), e.opts(), who);
    services_.socket_states.apply(file.id, fd.get(), SocketOption::When::fresh, who);
    const bool hold = services_.options.hold_outside;
    if (!hold || e.opts().so_filter_size() != 0) attach_own_filter(fd.get(), e.opts(), who);
    if (hold) attach_deaf_filter(fd.get(), who);
    bind(fd.get(), e, who);
    services_.socket_states.apply(file.id, fd.get(), SocketOption::When::bound, who);
    if (!hold) services_.socket_states.apply(file.id, fd.get(), SocketOption::When::sealed, who);
    return fd;
  }
  void opened(const UsedFile& file, int fd) override {
    if (services_.options.hold_outside) held_.push_back({&file.entry.nlsk(), fd});
  }
  void after_gate(std::vector<std::string>& failures) override {
    for (const Held& held : held_) try {
        attach_own_filter(held.fd, held.entry->opts(), name_of(*held.entry));
        services_.socket_states.apply(held.entry->id(), held.fd, SocketOption::When::sealed, name_of(*held.entry));
      } catch (const Error& e) {
        services_.log.error("{}", e.what());
        failures.emplace_back(e.what());
      }
    held_.clear();
  }

 private:
  struct Held {
    const img::netlink_sk_entry* entry;
    int fd;
  };

  static void bind(int fd, const img::netlink_sk_entry& e, const std::string& who) {
    if (static_cast<size_t>(e.groups_size()) > kMostGroupWords)
      throw Corrupt("files.img", "a netlink socket has too many groups");
    if (e.portid() != 0) {
      sockaddr_nl own{};
      own.nl_family = AF_NETLINK;
      own.nl_pid = e.portid();
      if (::bind(fd, reinterpret_cast<const sockaddr*>(&own), sizeof own) != 0) {
        if (errno != EADDRINUSE) throw Error("bind", who, errno);
        throw Refusal("the " + who + " cannot be made: another program has that number here", "end that program");
      }
    }
    for (int word = 0; word < e.groups_size(); ++word)
      for (int bit = 0; bit < 32; ++bit)
        if ((e.groups(word) >> bit & 1) != 0)
          set_socket_option(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, word * 32 + bit + 1, who);
  }

  const RestoreServices services_;
  std::vector<Held> held_;
};

}  // namespace

extern const Kind kNetlinkSocket{img::fd_types::NETLINKSK,
                                 facts_of_part<&img::file_entry::has_nlsk, &img::file_entry::nlsk>,
                                 make_dump<NetlinkDump>, make_restore<NetlinkRestore>};

}  // namespace migrate
