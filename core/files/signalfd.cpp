#include <signal.h>
#include <sys/syscall.h>

#include "core/files/anonymous.h"

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

}  // namespace migrate
