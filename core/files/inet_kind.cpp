// TCP and UDP sockets as a kind.
#include <netinet/in.h>
#include <sys/socket.h>

#include "core/files/inet_socket.h"
#include "core/files/kind.h"
#include "core/files/multicast.h"
#include "core/files/reuseport_programs.h"
#include "core/files/socket_options.h"
#include "core/files/tcp_connection.h"
#include "core/files/tcp_restore.h"

namespace migrate {
namespace {

class InetDump : public DumpKind {
 public:
  explicit InetDump(const DumpServices& services)
      : context_(services.context), sockets_(context_), connections_(context_, sockets_) {}
  bool matches(const OpenFile& file) const override { return file.domain == AF_INET || file.domain == AF_INET6; }
  void dump(const OpenFile& file) override {
    if (!connections_.take(file)) sockets_.dump(file);
  }
  void finish(const DescriptorTables&) override { connections_.dump(); }
  void tree_is_dead() noexcept override { connections_.close_silently(); }

  bool preflight_opens(const OpenFile&) const override { return false; }  // it is
  void preflight(const OpenFile& file, Preflight&) override {
    check_filter(file.ours.get(), file.who());
    groups_.check(file.ours.get(), file.proc->pid(), file.fd, file.who());
    if (!connections_.look(file)) check_inet_socket(file, context_.options);
    (void)interfaces_of(file.ours.get(), *file.proc, file.who());
  }
  void preflight_end(Preflight& preflight) override { connections_.demand_inside(preflight.tree); }

 private:
  DumpContext& context_;
  InetDumper sockets_;
  TcpConnections connections_;
  ReuseportCheck groups_;
};

class InetRestore : public RestoreKind {
 public:
  explicit InetRestore(const RestoreServices& services)
      : services_(services),
        inet_(services.socket_states, services.options.hold_outside, services.options.tcp_close, services.log),
        pairs_(services.images) {}

  bool has_checks() const override { return services_.options.owners.has_value(); }
  void check(const UsedFile& file) override {
    services_.socket_states.check_rights(file.id, file.holders, who_is(file.entry.isk()));
  }
  Fd open(const UsedFile& file) override {
    const img::inet_sk_entry& e = file.entry.isk();
    if (e.type() != SOCK_STREAM || !is_connection(static_cast<TcpState>(e.state())))
      return inet_.open(e, services_.owner(file), services_.ours());
    pairs_.add(file.id, e, inet_.make_end(e, services_.owner(file), services_.ours()));
    connected_.push_back(file);
    return {};
  }
  std::map<uint32_t, Fd> connect() override {
    std::map<uint32_t, Fd> dropped;
    for (const UsedFile& file : connected_) {
      if (pairs_.has_peer(file.id)) continue;
      dropped.emplace(file.id, inet_.open(file.entry.isk(), services_.owner(file), services_.ours()));
      (void)pairs_.remove(file.id);
    }
    std::map<uint32_t, Fd> all = pairs_.connect();
    for (const auto& [id, fd] : all) inet_.connected(services_.entries.at(id).isk(), fd.get());
    all.merge(dropped);
    return all;
  }
  void opened(const UsedFile& file, int fd) override { inet_.remember(file.entry.isk(), fd); }
  void after_gate(std::vector<std::string>& failures) override { inet_.release(failures); }

 private:
  const RestoreServices services_;
  InetRestorer inet_;
  TcpPairs pairs_;
  std::vector<UsedFile> connected_;
};

}  // namespace

extern const Kind kInetSocket{img::fd_types::INETSK, facts_of_part<&img::file_entry::has_isk, &img::file_entry::isk>,
                              make_dump<InetDump>, make_restore<InetRestore>};

}  // namespace migrate
