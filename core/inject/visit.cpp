#include "core/inject/visit.h"

#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <cstring>
#include <string>

#include "core/inject/visit_places.h"

extern "C" const unsigned char parasite_blob_start[], parasite_blob_end[];

namespace migrate {
namespace {

/// The parasite and the slots leave by themselves after this.
constexpr int64_t kStayNsec = 3'000'000'000;
/// So we give up before.
constexpr std::chrono::milliseconds kVisitTimeout{2500};
constexpr size_t kParasiteStackBytes = 8 << 10;
constexpr uint64_t kAllSignals = ~uint64_t{0};

size_t align16(size_t n) { return (n + 15) & ~size_t{15}; }

size_t blob_bytes() { return static_cast<size_t>(parasite_blob_end - parasite_blob_start); }

size_t code_offset(size_t timers) { return align16(sizeof(parasite::Area) + timers * sizeof(parasite::Timer)); }

}  // namespace

SharedMapping::SharedMapping(int fd, size_t bytes)
    : start_(::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)), bytes_(bytes) {
  if (start_ == MAP_FAILED) {
    start_ = nullptr;
    throw Error("map", "the visit's area", errno);
  }
}

SharedMapping::~SharedMapping() {
  if (start_ != nullptr) ::munmap(start_, bytes_);
}

Visit::Visit(StoppedTask& task, const std::vector<int>& timer_ids, const FaultHook& hook, Logger& log)
    : task_(task), timer_ids_(timer_ids), hook_(hook), log_(log) {
  if (task_.threads.empty() || task_.threads.front().tid.get() != task_.pid.get()) {
    throw Refusal("task " + std::to_string(task_.pid.get()) + " has ended its main thread",
                  "such a program cannot be moved");
  }
  if (timer_ids_.size() > 65536)
    throw Refusal("task " + std::to_string(task_.pid.get()) + " has over 65536 POSIX timers", "use fewer");
  refuse_seccomp();
  mem_ = task_.proc.open("mem", O_RDWR);
  choose_places();
}

Visit::~Visit() {
  try {
    cure();
  } catch (const Error& e) {
    log_.error("leaving task {}: {}", task_.pid.get(), e.what());
  }
}

// A filter that refuses our calls is suspended only as long as we live: after our death it would kill the task.
void Visit::refuse_seccomp() const {
  for (const StoppedThread& thread : task_.threads) {
    const bool leader = &thread == &task_.threads.front();
    if (!leader) {
      // The number of instructions of filter 0, or an errno; one call instead of a file of 60 lines.
      const long n = ::ptrace(PTRACE_SECCOMP_GET_FILTER, thread.tid.get(), 0, nullptr);
      if (n < 0 && (errno == ENOENT || errno == EINVAL)) continue;
    }
    const auto status = leader ? task_.proc.status() : task_.proc.thread(thread.tid.get()).status();
    const auto seccomp = status.find("Seccomp");
    if (seccomp != status.end() && seccomp->second != "0") {
      throw Refusal("task " + std::to_string(task_.pid.get()) + " uses seccomp", "start it without a seccomp filter");
    }
  }
}

void Visit::choose_places() {
  const auto maps = parse_maps(task_.proc.read("maps"));
  constexpr size_t need = kSlotHeaderBytes + kLeaderSlotBytes + kThreadSlotBytes;
  const auto place = find_slot_place(mem_.get(), maps, need);
  const size_t bytes = page_ceil(code_offset(timer_ids_.size()) + align16(blob_bytes()) + kParasiteStackBytes);
  const auto area = find_free_area(maps, bytes);
  const std::string who = "task " + std::to_string(task_.pid.get());
  if (!place)
    throw Refusal(who + " has no unused bytes in its [vdso] or its libraries",
                  "it cannot be visited; run it with a vdso");
  if (!area) throw Refusal(who + " has no free address range", "make it map less");
  place_ = {place->start, place->start + need};
  area_ = {*area, *area + bytes};
  for (const StoppedThread& thread : task_.threads) {
    if (place_.contains(RemoteAddr(thread.regs.rip))) {
      throw Error(who + " is still on its way back from an earlier visit; try again in some seconds");
    }
  }
}

void Visit::write(RemoteAddr at, std::span<const std::byte> bytes) {
  pwrite_full(mem_.get(), bytes, at.get(), "the memory of task " + std::to_string(task_.pid.get()));
}

// Registers before the mask: a thread that ran on with all signals blocked would be harmed, one that runs its slot
// unblocked is not (its stack pointer is its own until the slot blocks signals).
void Visit::borrow(StoppedThread& thread, RemoteAddr rip, RemoteAddr rsp) {
  user_regs_struct regs = thread.regs;
  regs.rip = rip.get();
  regs.rsp = rsp.get();
  regs.orig_rax = ~0ull;  // no restart logic for these
  tracee::set_registers(thread.tid, regs);
}

void Visit::run_leader() {
  StoppedThread& leader = task_.threads.front();
  leader_code_ = leader_slot(place_.start + kSlotHeaderBytes, {leader.regs, leader.sigmask}, area_.start,
                             static_cast<uint32_t>(area_.bytes()));
  slots_written_ = true;
  write(place_.start, as_bytes_of(kSlotMagic));
  write(place_.start + kSlotHeaderBytes, leader_code_.bytes);
  stage("slot written");
  map_area();
  start_parasite();
}

/// Runs the stopped leader to the entry and on to the exit of the call at its instruction pointer.
void Visit::run_leader_call(std::string_view stage_name) {
  const Tid tid = task_.threads.front().tid;
  const Deadline deadline = Deadline::in(kVisitTimeout);
  int signal = 0;
  for (int stops = 0; stops < 2;) {
    if (!tracee::resume(tid, PTRACE_SYSCALL, signal)) break;
    const auto stop = tracee::wait(tid, deadline);
    if (!stop) throw Error("thread " + std::to_string(tid.get()) + " does not finish a call in time");
    if (stop->ended) break;
    signal = stop->signal_delivery() ? stop->signal() : 0;
    if (!stop->syscall_stop()) continue;
    if (++stops == 1) stage(std::string(stage_name).c_str());
  }
}

void Visit::map_area() {
  StoppedThread& leader = task_.threads.front();
  user_regs_struct regs = leader.regs;
  regs.rip = leader_code_.entry.get();
  regs.orig_rax = ~0ull;
  regs.rax = SYS_mmap;
  regs.rdi = area_.start.get();
  regs.rsi = area_.bytes();
  regs.rdx = PROT_READ | PROT_WRITE | PROT_EXEC;
  regs.r10 = MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
  regs.r8 = ~0ull;
  regs.r9 = 0;
  leader_ = Leader::stopped;
  tracee::set_registers(leader.tid, regs);
  stage("registers borrowed");
  tracee::set_signal_mask(leader.tid, kAllSignals);
  stage("signals blocked");
  run_leader_call("at the entry of mmap");
  stage("mapped");
  const auto result = static_cast<int64_t>(tracee::registers(leader.tid).rax);
  if (result != static_cast<int64_t>(area_.start.get())) {
    throw Error("map the visit's area in", "task " + std::to_string(task_.pid.get()),
                result < 0 && result > -4096 ? static_cast<int>(-result) : 0);
  }
}

void Visit::start_parasite() {
  StoppedThread& leader = task_.threads.front();
  char name[64];
  std::snprintf(name, sizeof name, "map_files/%lx-%lx", area_.start.get(), area_.end.get());
  mapping_ = SharedMapping(task_.proc.open(name, O_RDWR).get(), area_.bytes());
  stage("area opened");
  auto* area = area_view();
  area->leave = leader_code_.leave.get();
  area->stay_nsec = kStayNsec;
  // Should we die, the parasite leaves at once, not only after its time-out.
  area->stay_value = death_notice_.emplace(&area->stay).value();
  area->purpose = purpose_;
  area->uffd_features = uffd_features_;
  area->timer_count = static_cast<uint32_t>(timer_ids_.size());
  for (size_t i = 0; i < timer_ids_.size(); ++i) parasite::timers_of(area)[i].id = timer_ids_[i];
  const size_t code = code_offset(timer_ids_.size());
  std::memcpy(mapping_.data() + code, parasite_blob_start, blob_bytes());

  user_regs_struct regs = leader.regs;
  regs.rip = (area_.start + code).get();
  regs.rsp = area_.end.get();
  regs.rdi = area_.start.get();
  regs.orig_rax = ~0ull;
  // The parasite's own code was compiled for a clear direction flag; alignment checks would fault in it.
  regs.eflags = 0x202;
  tracee::set_registers(leader.tid, regs);
  stage("registers at the parasite");
  if (!tracee::resume(leader.tid, PTRACE_CONT)) throw Error("task " + std::to_string(task_.pid.get()) + " died");
  leader_ = Leader::running;
  uffd_lent_ = purpose_ == parasite::kUserfaultfd;
  stage("parasite running");
  wait_for_done(leader.tid, 1);
  stage("parasite done");
}

void Visit::wait_for_done(Tid tid, uint32_t visits) {
  uint32_t* done = &area_view()->done;
  const Deadline deadline = Deadline::in(kVisitTimeout);
  for (int spins = 0; spins < 2000; ++spins) {
    if (__atomic_load_n(done, __ATOMIC_ACQUIRE) >= visits) return;
    __builtin_ia32_pause();
  }
  for (uint32_t now; (now = __atomic_load_n(done, __ATOMIC_ACQUIRE)) < visits;) {
    const timespec slice{0, 10'000'000};
    ::syscall(SYS_futex, done, FUTEX_WAIT, now, &slice, nullptr, 0);
    if (const auto stop = tracee::poll(tid)) {
      if (stop->ended) throw Error("thread " + std::to_string(tid.get()) + " died");
      tracee::resume(tid, PTRACE_CONT, stop->signal_delivery() ? stop->signal() : 0);
    }
    if (deadline.passed()) throw Error("thread " + std::to_string(tid.get()) + " does not answer in time");
  }
}

bool Visit::stops_inside(const StoppedThread& thread) const {
  const auto stop = tracee::to_event_stop(thread.tid, true, Deadline::in(kVisitTimeout));
  if (stop.ended) throw Error("thread " + std::to_string(thread.tid.get()) + " died");
  const RemoteAddr rip(tracee::registers(thread.tid).rip);
  return place_.contains(rip) || area_.contains(rip);
}

void Visit::give_back(StoppedThread& thread) {
  // The mask first, as in borrow(). In this stop the kernel applies restart logic to the registers on resumption.
  tracee::set_signal_mask(thread.tid, thread.sigmask);
  stage("mask given back");
  tracee::set_registers(thread.tid, thread.regs);
}

ThreadSlotResults Visit::run_thread(StoppedThread& thread) {
  const auto member = [&](const void* p) {
    return area_.start + static_cast<uint64_t>(static_cast<const std::byte*>(p) - mapping_.data());
  };
  auto* area = area_view();
  ThreadSlotTargets targets{.altstack = member(&area->thread.altstack),
                            .tid_address = member(&area->thread.tid_address),
                            .pdeath_signal = member(&area->thread.pdeath_signal),
                            .done = member(&area->done),
                            .stay = member(&area->stay),
                            .stay_value = area->stay_value};
  const int64_t nsec = area->monotonic.nsec + kStayNsec;
  targets.until_sec = area->monotonic.sec + nsec / 1'000'000'000;
  targets.until_nsec = nsec % 1'000'000'000;
  const uint32_t visits = __atomic_load_n(&area->done, __ATOMIC_ACQUIRE) + 1;

  const RemoteAddr base = place_.start + kSlotHeaderBytes + kLeaderSlotBytes;
  const SlotCode slot = thread_slot(base, {thread.regs, thread.sigmask}, targets);
  write(base, slot.bytes);
  stage("thread slot written");
  borrow(thread, slot.entry, RemoteAddr(thread.regs.rsp));
  bool running = false;
  try {
    stage("thread registers borrowed");
    tracee::set_signal_mask(thread.tid, kAllSignals);
    stage("thread signals blocked");
    if (!tracee::resume(thread.tid, PTRACE_CONT)) throw Error("thread " + std::to_string(thread.tid.get()) + " died");
    running = true;
    stage("thread running");
    wait_for_done(thread.tid, visits);
    stage("thread done");
  } catch (const Error&) {
    if (!running || stops_inside(thread)) {
      give_back(thread);
    } else {
      thread_lost_ = true;
    }
    throw;
  }
  if (!stops_inside(thread)) {
    thread_lost_ = true;
    throw Error("thread " + std::to_string(thread.tid.get()) +
                " had to run on during the visit: the machine is too busy");
  }
  const ThreadSlotResults results(tracee::registers(thread.tid));
  stage("thread stopped");
  give_back(thread);
  stage("thread cured");
  return results;
}

void Visit::run_leader_for_userfaultfd(uint64_t features) {
  purpose_ = parasite::kUserfaultfd;
  uffd_features_ = features;
  run_leader();
}

void Visit::return_userfaultfd() {
  if (!std::exchange(uffd_lent_, false)) return;
  uint32_t* proceed = &area_view()->proceed;
  __atomic_store_n(proceed, 1, __ATOMIC_RELEASE);
  ::syscall(SYS_futex, proceed, FUTEX_WAKE, 1, nullptr, nullptr, 0);
  wait_for_done(task_.threads.front().tid, 2);
  stage("userfaultfd closed");
}

void Visit::cure() {
  try {
    return_userfaultfd();
  } catch (const Error& e) {  // it leaves by itself then, and closes it before
    log_.warn("visiting task {}: {}", task_.pid.get(), e.what());
  }
  if (leader_ == Leader::stopped || leader_ == Leader::running) cure_leader();
  clear_slots();
}

void Visit::cure_leader() {
  StoppedThread& leader = task_.threads.front();
  const Leader before = std::exchange(leader_, Leader::lost);
  if (before == Leader::running) {
    if (!stops_inside(leader)) {
      throw Error("task " + std::to_string(task_.pid.get()) +
                  " had to run on during the visit: the machine is too busy");
    }
    stage("leader stopped");
  }
  borrow(leader, leader_code_.leave, RemoteAddr(leader.regs.rsp));
  stage("leader at its way out");
  run_leader_call("at the entry of munmap");
  stage("unmapped");
  if (tracee::to_event_stop(leader.tid, false, Deadline::in(kVisitTimeout)).ended) {
    throw Error("task " + std::to_string(task_.pid.get()) + " died");
  }
  stage("leader in an event stop");
  give_back(leader);
  leader_ = Leader::cured;
  stage("leader cured");
}

void Visit::clear_slots() {
  if (!slots_written_) return;
  slots_written_ = false;
  // A thread that ran on may be in a signal handler that returns into its slot.
  if (thread_lost_ || leader_ == Leader::lost) return;
  const std::vector<std::byte> zeros(place_.bytes());
  write(place_.start, zeros);
  stage("slots cleared");
}

}  // namespace migrate
