// Unix sockets as a kind.
#include <sys/socket.h>

#include "core/base/refusals.h"
#include "core/files/kind.h"
#include "core/files/lasting_state.h"
#include "core/files/running_tree.h"
#include "core/files/socket_options.h"
#include "core/files/unix_diag.h"
#include "core/files/unix_file.h"
#include "core/files/unix_restore.h"
#include "core/files/unix_socket.h"

namespace migrate {
namespace {

/// Those of a running tree, of which the peer may be outside.
class UnixPeers {
 public:
  explicit UnixPeers(const FileDumpOptions& options) : options_(options) {}

  void see(const OpenFile& file, LastingStates& lasting) {
    const uint64_t netns = netns_of(*file.proc);
    const auto inode = static_cast<uint32_t>(file.st.stx_ino);
    auto& all = unix_[netns];
    // Not in the list: made after that was read, or of another namespace.
    if (!all.contains(inode)) all.merge(list_unix_sockets(file.proc));
    const auto it = all.find(inode);
    if (it == all.end()) throw of_another_namespace(file);
    if (has_unix_file(it->second)) find_unix_file(file, it->second);
    if (sockets_.try_emplace(it->first, Socket{it->second, file.who(), netns}).second)
      lasting.see_socket(file, it->second, netns);
  }

  void demand_none_outside(const RunningTree& tree) const {
    Refusals refusals;
    for (const auto& [inode, socket] : sockets_)
      if (socket.info.peer != 0 && !sockets_.contains(socket.info.peer))
        refusals.ask([&, &socket = socket] { check_peer(socket, tree); });
    refusals.demand_none();
  }

 private:
  struct Socket {
    UnixSocketInfo info;
    std::string who;
    uint64_t netns;
  };

  uint64_t netns_of(const ProcDir& task) {
    const auto [it, fresh] = netns_.try_emplace(task.pid(), 0);
    if (fresh) it->second = stat_cached(task.fd(), "ns/net", 0, "a network namespace").stx_ino;
    return it->second;
  }

  void check_peer(const Socket& socket, const RunningTree& tree) const {
    const auto& all = unix_.at(socket.netns);
    const auto peer = all.find(socket.info.peer);
    // Made after the list was read, or both ends belong to a task that just came.
    if (peer == all.end()) return;
    const bool named = socket.info.type == SOCK_DGRAM && !peer->second.name.empty();
    if (named && (options_.ext_unix_sk || leads_to_log(peer->second.name))) return;
    const std::string link = "socket:[" + std::to_string(socket.info.peer) + "]";
    if (const auto holder = tree.outside_holder(link))
      throw Refusal(socket.who + ", a Unix socket connected to " + *holder + " outside of the tree",
                    named && options_.advice != Advice::none
                        ? "close it first, or use --ext-unix-sk to connect it again by name"
                        : "close it first");
  }

  const FileDumpOptions& options_;
  std::map<pid_t, uint64_t> netns_;                              ///< network namespaces of tasks
  std::map<uint32_t, Socket> sockets_;                           ///< by inode
  std::map<uint64_t, std::map<uint32_t, UnixSocketInfo>> unix_;  ///< by network namespace
};

class UnixDump : public DumpKind {
 public:
  explicit UnixDump(const DumpServices& services) : sockets_(services.context), peers_(services.context.options) {}
  bool matches(const OpenFile& file) const override { return file.domain == AF_UNIX; }
  void dump(const OpenFile& file) override { sockets_.dump(file); }
  void dump_queues() override { sockets_.dump_queues(); }
  void finish(const DescriptorTables&) override { sockets_.finish(); }
  bool preflight_opens(const OpenFile&) const override { return false; }  // it is
  void preflight(const OpenFile& file, Preflight& preflight) override {
    check_filter(file.ours.get(), file.who());
    peers_.see(file, preflight.lasting);
  }
  void preflight_end(Preflight& preflight) override { peers_.demand_none_outside(preflight.tree); }

 private:
  UnixDumper sockets_;
  UnixPeers peers_;
};

class UnixRestore : public RestoreKind {
 public:
  explicit UnixRestore(const RestoreServices& services)
      : services_(services),
        sockets_(services.images, services.owners, services.socket_states, services.options.make_sockets,
                 services.paths, services.options.hold_outside, services.options.mark, services.log) {}

  bool has_checks() const override { return services_.options.owners.has_value(); }
  void check(const UsedFile& file) override {
    services_.owners.check_peer(file.id, who_is(file.entry.usk()));
    services_.socket_states.check_rights(file.id, file.holders, who_is(file.entry.usk()));
  }
  Fd open(const UsedFile& file) override {
    added_.insert(file.id);
    sockets_.add(file.entry.usk(), file.holders);
    return {};
  }
  std::map<uint32_t, Fd> connect() override {
    static const Holders kNobody;
    for (const auto& [id, entry] : services_.entries)
      if (entry.type() == img::fd_types::UNIXSK && (entry.usk().uflags() & kUnixExternal) != 0 && !added_.contains(id))
        sockets_.add(entry.usk(), kNobody);
    return sockets_.open_all();
  }
  void seal(const std::map<uint32_t, int>& opened) override { sockets_.fill(opened); }
  void after_gate(std::vector<std::string>& failures) override { sockets_.publish(failures); }

 private:
  const RestoreServices services_;
  UnixRestorer sockets_;
  std::set<uint32_t> added_;  ///< file ids
};

}  // namespace

extern const Kind kUnixSocket{img::fd_types::UNIXSK, facts_of_part<&img::file_entry::has_usk, &img::file_entry::usk>,
                              make_dump<UnixDump>, make_restore<UnixRestore>};

}  // namespace migrate
