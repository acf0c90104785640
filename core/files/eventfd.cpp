#include <sys/eventfd.h>

#include <climits>

#include "core/files/anonymous.h"
#include "core/files/kind.h"

namespace migrate {
namespace {
// The image has no field for it. The access mode of an eventfd is always O_RDWR (2), so bit 0 of its flags is free.
constexpr uint32_t kSemaphoreBit = 1;
}  // namespace

void dump_eventfd(const OpenFile& file, DumpContext& context) {
  img::file_entry entry = entry_of(img::fd_types::EVENTFD, file.id);
  img::eventfd_file_entry& e = *entry.mutable_efd();
  describe_common(file, e);
  e.set_counter(fdinfo_number(file.info, "eventfd-count:", 16));
  // Shown since Linux 6.5.
  if (fdinfo_field(file.info, "eventfd-semaphore:") && fdinfo_number(file.info, "eventfd-semaphore:", 10) != 0)
    e.set_flags(e.flags() | kSemaphoreBit);
  context.emit(entry);
}

Fd restore_eventfd(const img::eventfd_file_entry& entry) {
  Fd fd(check(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | ((entry.flags() & kSemaphoreBit) != 0 ? EFD_SEMAPHORE : 0)),
              "make", "an eventfd"));
  if (entry.counter() == ULLONG_MAX) throw Corrupt("files.img", "an eventfd counts beyond its limit");
  const uint64_t counter = entry.counter();
  if (counter != 0) write_full(fd.get(), std::as_bytes(std::span(&counter, 1)), "an eventfd");
  return fd;
}

namespace {

class EventfdDump : public DumpKind {
 public:
  explicit EventfdDump(const DumpServices& services) : context_(services.context) {}
  bool matches(const OpenFile& file) const override { return file.link == "anon_inode:[eventfd]"; }
  void dump(const OpenFile& file) override { dump_eventfd(file, context_); }
  bool preflight_opens(const OpenFile&) const override { return false; }
  void preflight(const OpenFile&, Preflight&) override {}

 private:
  DumpContext& context_;
};

class EventfdRestore : public RestoreKind {
 public:
  explicit EventfdRestore(const RestoreServices&) {}
  Fd open(const UsedFile& file) override { return restore_eventfd(file.entry.efd()); }
};

}  // namespace

extern const Kind kEventfd{img::fd_types::EVENTFD, facts_of_part<&img::file_entry::has_efd, &img::file_entry::efd>,
                           make_dump<EventfdDump>, make_restore<EventfdRestore>};

}  // namespace migrate
