#include "lazypages/lazy_host.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <exception>
#include <new>
#include <thread>

#include "core/base/clock.h"
#include "core/base/error.h"
#include "lazypages/holders.h"
#include "lazypages/lazy_record.h"

namespace migrate {

/// In memory that all members share.
struct HostMemory {
  struct Kept {
    std::array<char, 32> name{};
    std::atomic<int32_t> fd{-1};
  };
  struct Blob {
    uint64_t bytes = 0;
    std::array<std::byte, LazyHost::kMostRemembered> data{};
  };

  HolderTable holders;
  RecordRoot record;
  std::array<Kept, 32> kept;
  std::array<Blob, 2> blobs;
  std::atomic<uint32_t> blob{0};  ///< which of them is valid
  uint64_t paced_until = 0;       ///< nanoseconds of CLOCK_MONOTONIC
};

namespace {

HostMemory& make_memory() {
  void* at = ::mmap(nullptr, sizeof(HostMemory), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) throw Error("map", "memory for holders", errno);
  ::mlock(at, sizeof(HostMemory));  // clone3(2) writes to it, also for a process that is being killed
  return *new (at) HostMemory;
}

std::vector<int> to_keep(const HostMemory& memory) {
  std::vector<int> all{0, 1, 2};
  all.insert(all.end(), memory.holders.spares.begin(), memory.holders.spares.end());
  for (const auto& member : memory.holders.members) all.insert(all.end(), {member.pidfd, member.bell});
  for (const auto& kept : memory.kept) all.push_back(kept.fd);
  return all;
}

class Host {
 public:
  Host(HoldOptions options, const std::function<void(LazyHost&)>& serve)
      : options_(std::move(options)), serve_(serve), memory_(make_memory()) {}
  [[noreturn]] void run();

 private:
  void say(const std::string& sentence) const {
    if (options_.say) options_.say(sentence);
  }
  void placed(unsigned place, unsigned seat) const;
  void take_over();
  void pace();
  void refill(Holders& holders) const;
  enum class Served : uint8_t { all, again, failed };
  Served serve();

  HoldOptions options_;
  const std::function<void(LazyHost&)>& serve_;
  HostMemory& memory_;
  std::shared_ptr<LazyRecord> record_;
};

void Host::placed(unsigned place, unsigned seat) const {
  try {
    if (options_.placed) options_.placed(place, seat);
  } catch (const std::exception& e) {
    say(e.what());
  }
}

/// Takes over what is recorded and closes what is not: descriptors that the last daemon had for itself.
void Host::take_over() {
  record_ = std::make_shared<LazyRecord>(memory_.record, options_.step);
  std::vector<int> kept = to_keep(memory_), recorded = record_->descriptors();
  kept.insert(kept.end(), recorded.begin(), recorded.end());
  close_all_but(std::move(kept));
}

/// A daemon that always fails must not keep a processor busy.
void Host::pace() {
  using std::chrono::nanoseconds;
  const uint64_t each = static_cast<uint64_t>(nanoseconds(options_.pace).count());
  const auto now = static_cast<uint64_t>(clock_ns(CLOCK_MONOTONIC));
  memory_.paced_until = std::max(memory_.paced_until, now) + each;
  const uint64_t allowed = now + each * options_.burst;
  if (memory_.paced_until <= allowed) return;
  say("the process that serves missing pages ended " + std::to_string(memory_.holders.generation) +
      " times, lately again and again: the next one waits a moment");
  std::this_thread::sleep_for(nanoseconds(memory_.paced_until - allowed));
}

Host::Served Host::serve() {
  try {
    if (!record_) record_ = std::make_shared<LazyRecord>(memory_.record, options_.step);
    LazyHost host(memory_, record_);
    serve_(host);
    if (!host.adopted() || record_->used().empty()) return Served::all;
    return Served::again;
  } catch (const std::exception& e) {
    say(e.what());
  }
  return Served::failed;
}

/// If that cannot be done now, it is tried again: alone is better than not at all.
void Host::refill(Holders& holders) const {
  try {
    holders.refill();
  } catch (const std::exception& e) {
    say(e.what());
  }
}

/// Each process of the tree that is lazy takes a descriptor.
void raise_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

void Host::run() {
  raise_limit();
  LazyRecord::make(memory_.record);
  size_t n = 0;
  for (auto& [name, fd] : options_.kept) {
    HostMemory::Kept& kept = memory_.kept.at(n++);
    if (name.size() >= kept.name.size()) throw Error("the name of a descriptor is too long: " + name);
    std::ranges::copy(name, kept.name.begin());
    kept.fd = fd.release();
  }
  std::vector<int> kept = to_keep(memory_);
  kept.insert(kept.end(), {memory_.record.pages, memory_.record.logs});
  close_all_but(std::move(kept));

  placed(HolderTable::kDaemon, 0);
  Holders holders(memory_.holders, {.placed = [this](unsigned place, unsigned seat) { placed(place, seat); },
                                    .taken_over = [this] { take_over(); },
                                    .step = options_.step});
  holders.start();
  try {
    for (;;) {
      if (!holders.is_daemon()) {
        holders.hold();
        say("the process that served missing pages is gone: process " + std::to_string(::getpid()) + " goes on");
        pace();
      }
      const Served served = serve();
      if (served == Served::failed) ::_exit(1);
      if (served == Served::all) {
        holders.leave();
        ::_exit(0);
      }
      if (memory_.holders.alone())
        say("both processes that hold the descriptors of lazy memory are gone: they are made again");
      ++memory_.holders.generation;
      refill(holders);
      if (holders.is_daemon()) pace();
    }
  } catch (const std::exception& e) {
    say(e.what());
    pace();
    ::_exit(1);
  }
}

}  // namespace

Fd duplicate(int kept) { return Fd(check(::fcntl(kept, F_DUPFD_CLOEXEC, 0), "duplicate", "a descriptor")); }

bool LazyHost::alone() const {
  reap_members();
  return memory_.holders.alone();
}

bool LazyHost::all_placed() const { return memory_.holders.all_placed(); }

unsigned LazyHost::generation() const { return memory_.holders.generation; }

std::unique_ptr<LazyMemories> LazyHost::adopt(std::vector<LazyMemory> memories, LazyMemories::Wanted wanted) {
  if (adopted()) throw Error("lazy memories were adopted before");
  return std::make_unique<LazyMemories>(std::move(memories), std::move(wanted), record_);
}

std::unique_ptr<LazyMemories> LazyHost::memories(LazyMemories::Wanted wanted) {
  if (!adopted()) throw Error("no lazy memories were adopted");
  return std::make_unique<LazyMemories>(record_, std::move(wanted));
}

void LazyHost::keep(std::string_view name, Fd fd) {
  const std::lock_guard lock(mutex_);
  const auto named = std::ranges::find_if(
      memory_.kept, [&](const auto& k) { return k.fd >= 0 && std::string_view(k.name.data()) == name; });
  if (named != memory_.kept.end()) {
    const Fd old(named->fd.exchange(fd.release()));
    return;
  }
  const auto free = std::ranges::find_if(memory_.kept, [](const auto& k) { return k.fd < 0; });
  if (free == memory_.kept.end() || name.size() >= free->name.size())
    throw Error("keep", "descriptor " + std::string(name), ENOSPC);
  free->name = {};
  std::ranges::copy(name, free->name.begin());
  free->fd.store(fd.release(), std::memory_order_release);
}

int LazyHost::kept(std::string_view name) const {
  const std::lock_guard lock(mutex_);
  for (const auto& kept : memory_.kept)
    if (kept.fd >= 0 && std::string_view(kept.name.data()) == name) return kept.fd;
  return -1;
}

void LazyHost::drop(std::string_view name) {
  const std::lock_guard lock(mutex_);
  for (auto& kept : memory_.kept)
    if (kept.fd >= 0 && std::string_view(kept.name.data()) == name) const Fd old(kept.fd.exchange(-1));
}

void LazyHost::remember(std::span<const std::byte> bytes) {
  const std::lock_guard lock(mutex_);
  HostMemory::Blob& next = memory_.blobs[1 - memory_.blob];
  if (bytes.size() > next.data.size()) throw Error("remember", "what was asked for", ENOSPC);
  std::ranges::copy(bytes, next.data.begin());
  next.bytes = bytes.size();
  memory_.blob.store(1 - memory_.blob, std::memory_order_release);
}

std::vector<std::byte> LazyHost::remembered() const {
  const std::lock_guard lock(mutex_);
  const HostMemory::Blob& blob = memory_.blobs[memory_.blob];
  return {blob.data.begin(), blob.data.begin() + static_cast<ptrdiff_t>(blob.bytes)};
}

void hold_lazily(HoldOptions options, const std::function<void(LazyHost&)>& serve) {
  Host(std::move(options), serve).run();
}

}  // namespace migrate
