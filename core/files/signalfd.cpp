#include <signal.h>
#include <sys/syscall.h>

#include "core/files/anonymous.h"
#include "core/files/kind.h"

namespace migrate {

void dump_signalfd(const OpenFile& file, DumpContext& context) {
  img::file_entry entry = entry_of(img::fd_types::SIGNALFD, file.id);
  describe_common(file, *entry.mutable_sgfd());
  entry.mutable_sgfd()->set_sigmask(fdinfo_number(file.info, "sigmask:", 16));
  context.emit(entry);
}

Fd restore_signalfd(const img::signalfd_entry& entry) {
  const uint64_t mask = entry.sigmask();
  return Fd(static_cast<int>(check(::syscall(SYS_signalfd4, -1, &mask, sizeof mask, O_CLOEXEC), "make", "a signalfd")));
}

namespace {

class SignalfdDump : public DumpKind {
 public:
  explicit SignalfdDump(const DumpServices& services) : context_(services.context) {}
  bool matches(const OpenFile& file) const override { return file.link == "anon_inode:[signalfd]"; }
  void dump(const OpenFile& file) override { dump_signalfd(file, context_); }
  bool preflight_opens(const OpenFile&) const override { return false; }
  void preflight(const OpenFile&, Preflight&) override {}

 private:
  DumpContext& context_;
};

class SignalfdRestore : public RestoreKind {
 public:
  explicit SignalfdRestore(const RestoreServices&) {}
  Fd open(const UsedFile& file) override { return restore_signalfd(file.entry.sgfd()); }
};

}  // namespace

extern const Kind kSignalfd{img::fd_types::SIGNALFD, facts_of_part<&img::file_entry::has_sgfd, &img::file_entry::sgfd>,
                            make_dump<SignalfdDump>, make_restore<SignalfdRestore>};

}  // namespace migrate
