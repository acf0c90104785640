// TCP and UDP sockets as a kind.
#include <sys/socket.h>

#include "core/files/inet_socket.h"
#include "core/files/kind.h"
#include "core/files/socket_options.h"

namespace migrate {
namespace {

class InetDump : public DumpKind {
 public:
  explicit InetDump(const DumpServices& services) : context_(services.context) {}
  bool matches(const OpenFile& file) const override { return file.domain == AF_INET || file.domain == AF_INET6; }
  void dump(const OpenFile& file) override { dump_inet_socket(file, context_); }
  bool preflight_opens(const OpenFile&) const override { return false; }  // it is
  void preflight(const OpenFile& file, Preflight&) override {
    check_filter(file.ours.get(), file.who());
    check_inet_socket(file, context_.options);
  }

 private:
  DumpContext& context_;
};

class InetRestore : public RestoreKind {
 public:
  explicit InetRestore(const RestoreServices& services)
      : services_(services), inet_(services.options.hold_outside, services.options.tcp_close, services.log) {}
  Fd open(const UsedFile& file) override {
    return inet_.open(file.entry.isk(), services_.owner(file), services_.ours());
  }
  void opened(const UsedFile& file, int fd) override { inet_.remember(file.entry.isk(), fd); }
  void after_gate(std::vector<std::string>& failures) override { inet_.release(failures); }

 private:
  const RestoreServices services_;
  InetRestorer inet_;
};

}  // namespace

extern const Kind kInetSocket{img::fd_types::INETSK, facts_of_part<&img::file_entry::has_isk, &img::file_entry::isk>,
                              make_dump<InetDump>, make_restore<InetRestore>};

}  // namespace migrate
