#include "core/inject/visit.h"

#include <linux/futex.h>
#include <linux/kcmp.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "core/inject/attributes.h"
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

size_t blob_bytes() { return static_cast<size_t>(parasite_blob_end - parasite_blob_start); }

/// Pages of its own: they may have to be a mapping of their own.
size_t code_offset(size_t timers, size_t mappings) {
  return page_ceil(sizeof(parasite::Area) + timers * sizeof(parasite::Timer) + mappings * sizeof(uint64_t) +
                   kParasiteStackBytes);
}

/// Memory without a path that several mappings may be of: memfd_create(2), shared anonymous, System V.
bool is_object(const MapsLine& map) {
  for (const char* name : {"/memfd:", "/dev/zero (deleted)", "/SYSV", "[anon_shmem"})
    if (map.name.starts_with(name)) return true;
  return false;
}

/// Of a task in its own pid namespace.
pid_t innermost_number(pid_t pid, const ThreadStatus& status) {
  const auto numbers = status.find("NSpid");
  return numbers == status.end() ? pid : innermost(numbers->second);
}

}  // namespace

uint64_t visit_area_bytes(size_t timers, size_t mappings) {
  return code_offset(timers, mappings) + page_ceil(blob_bytes());
}

Visit::Visit(StoppedTask& task, const std::vector<int>& timer_ids, DomainWitnesses& witnesses, const FaultHook& hook,
             Logger& log)
    : task_(task), timer_ids_(timer_ids), witnesses_(witnesses), hook_(hook), log_(log) {
  if (task_.threads.empty() || task_.threads.front().tid.get() != task_.pid.get()) {
    throw Refusal("task " + std::to_string(task_.pid.get()) + " has ended its main thread",
                  "such a program cannot be moved");
  }
  if (timer_ids_.size() > 65536)
    throw Refusal("task " + std::to_string(task_.pid.get()) + " has over 65536 POSIX timers", "use fewer");
  const auto status = task_.proc.status();
  refuse_seccomp(status);
  for (const StoppedThread& thread : task_.threads) refuse_unvisitable(task_.pid, thread);
  witness_ = static_cast<uint64_t>(witnesses_.for_task(task_.proc, status));
  own_number_ = static_cast<uint64_t>(innermost_number(task_.pid.get(), status));
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
void Visit::refuse_seccomp(const ThreadStatus& of_leader) const {
  for (const StoppedThread& thread : task_.threads) {
    const bool leader = &thread == &task_.threads.front();
    if (!leader) {
      // The number of instructions of filter 0, or an errno; one call instead of a file of 60 lines.
      const long n = ::ptrace(PTRACE_SECCOMP_GET_FILTER, thread.tid.get(), 0, nullptr);
      if (n < 0 && (errno == ENOENT || errno == EINVAL)) continue;
    }
    const ThreadStatus status = leader ? of_leader : task_.proc.thread(thread.tid.get()).status();
    const auto seccomp = status.find("Seccomp");
    if (seccomp != status.end() && seccomp->second != "0") {
      throw Refusal("task " + std::to_string(task_.pid.get()) + " uses seccomp", "start it without a seccomp filter");
    }
  }
}

void Visit::choose_places() {
  const auto maps = parse_maps(task_.proc.read("maps"));
  const VisitPlaces places =
      find_visit_places(task_.pid.get(), mem_.get(), maps, visit_area_bytes(timer_ids_.size(), maps.size()));
  place_ = places.slots;
  area_ = places.area;
  code_ = area_.start + code_offset(timer_ids_.size(), maps.size());
  for (const MapsLine& map : maps) {
    const bool object = is_object(map);
    // The policy of a file is the file's, and stays there.
    if (object || !(map.name.starts_with("/") || map.name.starts_with("[v"))) mappings_.push_back({map.range, object});
  }
  const std::string who = "task " + std::to_string(task_.pid.get());
  for (const StoppedThread& thread : task_.threads) {
    if (place_.contains(RemoteAddr(thread.regs.rip))) {
      throw Error(who + " is still on its way back from an earlier visit; try again in some seconds");
    }
  }
}

void Visit::write(RemoteAddr at, std::span<const std::byte> bytes) {
  pwrite_full(mem_.get(), bytes, at.get(), "the memory of task " + std::to_string(task_.pid.get()));
}

// In the visit the thread returns to user mode outside of its critical section, by which the kernel forgets that.
void Visit::leave_critical_section(StoppedThread& thread) {
  const auto [state, first] = rseq_.try_emplace(thread.tid);
  if (!first) return;
  state->second = read_rseq(thread, mem_.get());
  if (state->second.abort_ip) thread.regs.rip = *state->second.abort_ip;
}

// Registers before the mask: a thread that ran on with all signals blocked would be harmed, one that runs its slot
// unblocked is not (its stack pointer is its own until the slot blocks signals).
void Visit::borrow(StoppedThread& thread, RemoteAddr rip) {
  user_regs_struct regs = thread.regs;
  regs.rip = rip.get();
  regs.orig_rax = ~0ull;              // no restart logic for these
  regs.eflags &= ~tracee::kTrapFlag;  // it would trap in the slot
  tracee::set_registers(thread.tid, regs);
}

void Visit::run_leader() {
  enter_leader();
  start_parasite();
}

/// Up to the moment when M is mapped.
void Visit::enter_leader() {
  StoppedThread& leader = task_.threads.front();
  leave_critical_section(leader);
  leader_code_ = leader_slot(place_.start + kSlotHeaderBytes, {leader.regs, leader.sigmask}, area_.start,
                             static_cast<uint32_t>(area_.bytes()));
  slots_written_ = true;
  write(place_.start, as_bytes_of(kSlotMagic));
  write(place_.start + kSlotHeaderBytes, leader_code_.bytes);
  stage("slot written");
  ask_leader();
  map_area();
}

/// Runs the stopped leader to the entry and on to the exit of the call at its instruction pointer.
void Visit::run_leader_call(const char* stage_name) {
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
    if (++stops == 1) stage(stage_name);
  }
}

/// The result of a call that the leader makes at `at`, a place in its slot. Whoever can write the task's memory can
/// change the slot, but not what the kernel tells at the exit of a call: which it was, its arguments, its result.
int64_t Visit::call_in_leader(RemoteAddr at, long number, const std::array<uint64_t, 6>& args, const char* stage_name) {
  const Tid tid = task_.threads.front().tid;
  user_regs_struct regs = task_.threads.front().regs;
  tracee::set_call(regs, at, number, args);
  regs.eflags &= ~tracee::kTrapFlag;
  const bool first = std::exchange(leader_, Leader::stopped) == Leader::untouched;
  tracee::set_registers(tid, regs);
  if (first) {
    stage("registers borrowed");
    tracee::set_signal_mask(tid, kAllSignals);
    stage("signals blocked");
  }
  run_leader_call(stage_name);
  const user_regs_struct now = tracee::registers(tid);
  if (now.orig_rax != static_cast<uint64_t>(number) || now.rdi != args[0] || now.rsi != args[1] || now.rdx != args[2] ||
      now.r10 != args[3])
    throw Error("task " + std::to_string(task_.pid.get()) +
                " makes another call than it was told to: somebody interferes with it");
  return static_cast<int64_t>(now.rax);
}

void Visit::ask_leader() {
  const Tid leader = task_.threads.front().tid;
  securebits_ = call_in_leader(leader_code_.entry, SYS_prctl, {PR_GET_SECUREBITS}, "at the entry of prctl");
  stage("asked for the securebits");
  if (witness_ == 0) return;
  if (call_in_leader(leader_code_.entry, SYS_kcmp, {own_number_, witness_, KCMP_VM}, "at the entry of kcmp") == -EPERM)
    refuse_landlock(leader);
  stage("looked at the witness");
}

void Visit::refuse_landlock(Tid tid) const {
  throw Refusal("thread " + std::to_string(tid.get()) + " of task " + std::to_string(task_.pid.get()) +
                    " is restricted by landlock (or by another security module), which cannot be read back",
                "run the program without that sandbox");
}

int64_t Visit::map_part(RemoteAddr at, RemoteRange range, int protection, const char* stage_name) {
  return call_in_leader(at, SYS_mmap,
                        {range.start.get(), range.bytes(), static_cast<uint64_t>(protection),
                         MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, ~0ull, 0},
                        stage_name);
}

/// One mapping; two where memory must not be writable and executable (PR_SET_MDWE), which takes two more stops.
void Visit::map_area() {
  const auto demand = [this](int64_t result, RemoteAddr start) {
    if (result != static_cast<int64_t>(start.get()))
      explain_failed_mapping(result < 0 && result > -4096 ? static_cast<int>(-result) : 0);
  };
  const RemoteRange data{area_.start, code_}, code{code_, area_.end};
  const int64_t whole = map_part(leader_code_.entry, area_, PROT_READ | PROT_WRITE | PROT_EXEC, "at the entry of mmap");
  if (whole != -EACCES) {
    demand(whole, area_.start);
    stage("mapped");
    mapping_ = map_area_of(task_.proc, area_);
  } else {
    demand(map_part(leader_code_.entry, data, PROT_READ | PROT_WRITE, "at the entry of mmap for data"), data.start);
    stage("mapped for data");
    demand(map_part(leader_code_.second, code, PROT_READ | PROT_EXEC, "at the entry of mmap for code"), code.start);
    stage("mapped");
    mapping_ = map_area_of(task_.proc, data);
    code_mapping_ = map_area_of(task_.proc, code);
  }
  stage("area opened");
}

void Visit::explain_failed_mapping(int error) const {
  const std::string who = "task " + std::to_string(task_.pid.get());
  const std::string what = std::to_string(area_.bytes() / 1024) + " KiB more";
  switch (error) {
    case ENOMEM:
      throw Refusal(who + " cannot map " + what + ": it is at its limit of address space (RLIMIT_AS) or of mappings",
                    "raise that limit, or vm.max_map_count");
    case EAGAIN:
      throw Refusal(who + " cannot map " + what + ": it locks all its memory and is at its limit (RLIMIT_MEMLOCK)",
                    "raise that limit");
    case EACCES:
    case EPERM:
      throw Refusal(who + " may not map memory for code", "allow it that (SELinux calls it execmem)");
    default:
      throw Error("map the visit's area in", who, error);
  }
}

void Visit::write_code() {
  std::byte* const code =
      code_mapping_.data() != nullptr ? code_mapping_.data() : mapping_.data() + (code_ - area_.start);
  std::memcpy(code, parasite_blob_start, blob_bytes());
}

void Visit::start_parasite() {
  StoppedThread& leader = task_.threads.front();
  auto* area = area_view();
  area->leave = leader_code_.leave.get();
  area->stay_nsec = kStayNsec;
  // Should we die, the parasite leaves at once, not only after its time-out.
  area->stay_value = death_notice_.emplace(&area->stay).value();
  area->purpose = purpose_;
  area->uffd_features = uffd_features_;
  area->timer_count = static_cast<uint32_t>(timer_ids_.size());
  for (size_t i = 0; i < timer_ids_.size(); ++i) parasite::timers_of(area)[i].id = timer_ids_[i];
  area->mapping_count = static_cast<uint32_t>(mappings_.size());
  std::ranges::transform(mappings_, parasite::mappings_of(area),
                         [](const AskedMapping& m) { return m.range.start.get(); });
  area->question_count = static_cast<uint32_t>(thread_attributes().size());
  std::ranges::transform(thread_attributes(), std::begin(area->questions), [](const Attribute& a) {
    const auto at = std::ranges::find(a.get_args, kAttributeValue);
    parasite::Question q{.number = static_cast<uint64_t>(a.get), .args = {}, .address_at = -1, .pad = 0};
    std::ranges::copy(a.get_args, std::begin(q.args));
    if (at != a.get_args.end()) q.address_at = static_cast<int32_t>(at - a.get_args.begin());
    return q;
  });
  write_code();

  user_regs_struct regs = leader.regs;
  regs.rip = code_.get();
  regs.rsp = code_.get();
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
  wait_for_done(leader.tid, ++visits_);
  stage("parasite done");
  constexpr int64_t kSecond = 1'000'000'000;
  const timespec now = answered_time(copy_once(area->monotonic), "task " + std::to_string(task_.pid.get()));
  until_sec_ = now.tv_sec + (now.tv_nsec + kStayNsec) / kSecond;
  until_nsec_ = (now.tv_nsec + kStayNsec) % kSecond;
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
  std::ranges::fill(area->thread.attributes, 0);
  leave_critical_section(thread);
  ThreadSlotTargets targets{.altstack = member(&area->thread.altstack),
                            .tid_address = member(&area->thread.tid_address),
                            .pdeath_signal = member(&area->thread.pdeath_signal),
                            .attributes = member(&area->thread.attributes),
                            .done = member(&area->done),
                            .stay = member(&area->stay),
                            .stay_value = death_notice_->value(),
                            .own_number = own_number_,
                            .witness = witness_,
                            .until_sec = until_sec_,
                            .until_nsec = until_nsec_};

  const RemoteAddr base = place_.start + kSlotHeaderBytes + kLeaderSlotBytes;
  const SlotCode slot = thread_slot(base, {thread.regs, thread.sigmask}, targets);
  write(base, slot.bytes);
  stage("thread slot written");
  borrow(thread, slot.entry);
  bool running = false;
  try {
    stage("thread registers borrowed");
    tracee::set_signal_mask(thread.tid, kAllSignals);
    stage("thread signals blocked");
    if (!tracee::resume(thread.tid, PTRACE_CONT)) throw Error("thread " + std::to_string(thread.tid.get()) + " died");
    running = true;
    stage("thread running");
    wait_for_done(thread.tid, ++visits_);
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
  if (results.seen_witness != -EPERM) return results;
  // A witness for other credentials than the thread's says nothing.
  const ProcDir proc = task_.proc.thread(thread.tid.get());
  const auto fitting = static_cast<uint64_t>(witnesses_.for_task(proc, proc.status()));
  if (fitting == witness_) refuse_landlock(thread.tid);
  const uint64_t usual = std::exchange(witness_, fitting);
  const ThreadSlotResults again = run_thread(thread);
  witness_ = usual;
  return again;
}

void Visit::run_leader_for_userfaultfd(uint64_t features) {
  purpose_ = parasite::kUserfaultfd;
  uffd_features_ = features;
  run_leader();
}

std::vector<int64_t> Visit::run_leader_for_locks(std::span<const HeldLock> locks, bool take) {
  enter_leader();
  std::vector<int64_t> results;
  for (const HeldLock& lock : locks) results.push_back(lock_in_leader(lock, take));
  return results;
}

/// At the slot's second call: should we die, M is unmapped after it.
int64_t Visit::lock_in_leader(const HeldLock& lock, bool take) {
  const bool exclusive = lock.lock.type == F_WRLCK;
  const auto fd = static_cast<uint64_t>(lock.fd);
  if (lock.lock.kind == kLockFlock) {
    const int operation = !take ? LOCK_UN : exclusive ? LOCK_EX : LOCK_SH;
    return call_in_leader(leader_code_.second, SYS_flock, {fd, static_cast<uint64_t>(operation | LOCK_NB)},
                          "at the entry of flock");
  }
  struct flock range {};
  range.l_type = static_cast<short>(take ? lock.lock.type : F_UNLCK);
  range.l_whence = SEEK_SET;
  range.l_start = lock.lock.start;
  range.l_len = lock.lock.length;
  std::memcpy(mapping_.data(), &range, sizeof range);
  const uint64_t command = lock.lock.kind == kLockPosix ? F_SETLK : F_OFD_SETLK;
  return call_in_leader(leader_code_.second, SYS_fcntl, {fd, command, area_.start.get()}, "at the entry of fcntl");
}

void Visit::return_userfaultfd() {
  if (!std::exchange(uffd_lent_, false)) return;
  uint32_t* proceed = &area_view()->proceed;
  __atomic_store_n(proceed, 1, __ATOMIC_RELEASE);
  ::syscall(SYS_futex, proceed, FUTEX_WAKE, 1, nullptr, nullptr, 0);
  wait_for_done(task_.threads.front().tid, ++visits_);
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
  borrow(leader, leader_code_.leave);
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
