// Pseudo-terminals (pty(7)).
#include "core/base/refusals.h"
#include "core/files/kind.h"
#include "core/files/running_tree.h"
#include "core/files/terminal_dump.h"
#include "core/files/terminal_ends.h"
#include "core/files/terminal_restore.h"

namespace migrate {
namespace {

class TerminalDump : public DumpKind {
 public:
  explicit TerminalDump(const DumpServices& services) : terminals_(services.context), ends_(services.context.options) {}
  bool matches(const OpenFile& file) const override { return terminal_end(file).has_value(); }
  void dump(const OpenFile& file) override { terminals_.dump(file, terminal_end(file).value()); }
  void finish(const DescriptorTables&) override { terminals_.finish(); }
  void preflight(const OpenFile& file, Preflight&) override { ends_.see(file, terminal_end(file).value()); }
  void preflight_end(Preflight& preflight) override { ends_.demand_none_outside(preflight.tree); }

 private:
  TerminalDumper terminals_;
  TerminalEnds ends_;
};

class TerminalRestore : public RestoreKind {
 public:
  explicit TerminalRestore(const RestoreServices& services) : terminals_(services) {}
  Fd open(const UsedFile& file) override { return terminals_.open(file); }
  void seal(const std::map<uint32_t, int>&) override { terminals_.finish(); }

 private:
  TerminalRestorer terminals_;
};

}  // namespace

extern const Kind kTerminal{img::fd_types::TTY, facts_of_part<&img::file_entry::has_tty, &img::file_entry::tty>,
                            make_dump<TerminalDump>, make_restore<TerminalRestore>};

}  // namespace migrate
