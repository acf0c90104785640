#include "core/inject/answers.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <string>

#include "core/inject/attributes.h"

namespace migrate {
namespace {

constexpr int64_t kNsPerSecond = 1'000'000'000;
/// Times are 64 bits of nanoseconds in the kernel (KTIME_SEC_MAX).
constexpr int64_t kMostSeconds = INT64_MAX / kNsPerSecond;
/// What a restore can set a clock to.
constexpr int64_t kMostClockSeconds = int64_t{1} << 32;
constexpr int64_t kLongestVisit = 3600 * kNsPerSecond;  // of a machine that stands still meanwhile, too
constexpr int64_t kMaxErrno = 4095;
constexpr int64_t kMostDumpable = 2, kMostMdwe = 3, kMostThp = 3, kLastSignal = 64, kMostPolicy = 0xffff;

std::string name_of(Pid pid) { return "task " + std::to_string(pid.get()); }
std::string name_of(Tid tid) { return "thread " + std::to_string(tid.get()); }

int64_t within(int64_t value, int64_t lowest, int64_t highest, const char* what, const std::string& who) {
  if (value < lowest || value > highest)
    throw Corrupt("the visit of " + who, std::string(what) + " is impossible: " + std::to_string(value));
  return value;
}

itimerval interval_timer(const parasite::Itimer& t, const std::string& who) {
  const auto part = [&](int64_t sec, int64_t usec) -> timeval {
    return {within(sec, 0, kMostSeconds, "the time of a timer", who),
            within(usec, 0, 999'999, "the time of a timer", who)};
  };
  return {part(t.interval_sec, t.interval_usec), part(t.value_sec, t.value_usec)};
}

/// Between two readings of a clock.
int64_t passed_ns(const parasite::Timespec& from, const parasite::Timespec& to, const std::string& who) {
  const timespec a = answered_time(from, who), b = answered_time(to, who);
  return within((b.tv_sec - a.tv_sec) * kNsPerSecond + b.tv_nsec - a.tv_nsec, 0, kLongestVisit, "a clock", who);
}

}  // namespace

int64_t answered_result(int64_t result, std::string_view call, const std::string& who) {
  if (result >= 0) return result;
  if (result < -kMaxErrno) throw Corrupt("the visit of " + who, std::string(call) + " cannot have failed like that");
  throw Error(call, "in " + who, static_cast<int>(-result));
}

timespec answered_time(const parasite::Timespec& time, const std::string& who) {
  return {within(time.sec, 0, kMostClockSeconds, "a clock", who),
          within(time.nsec, 0, kNsPerSecond - 1, "a clock", who)};
}

TaskHarvest answered_task(const parasite::Area& area, Pid pid) {
  const std::string who = name_of(pid);
  answered_result(area.first_error, "collect the state", who);
  TaskHarvest h{.pid = pid};
  for (size_t i = 0; i < h.sigactions.size(); ++i) {
    const parasite::Sigaction& a = area.sigactions[i];
    h.sigactions[i] = {a.handler, a.flags, a.restorer, a.mask};
  }
  for (size_t i = 0; i < h.itimers.size(); ++i) h.itimers[i] = interval_timer(area.itimers[i], who);
  h.dumpable = static_cast<int>(within(answered_result(area.dumpable, "prctl(PR_GET_DUMPABLE)", who), 0, kMostDumpable,
                                       "its dumpable state", who));
  h.child_subreaper = static_cast<int>(within(area.child_subreaper, 0, 1, "its subreaper state", who));
  const int64_t thp = answered_result(area.thp_disabled, "prctl(PR_GET_THP_DISABLE)", who);
  h.thp_disabled = thp != 0 ? 1 : 0;
  h.thp_flags = static_cast<uint32_t>(within(thp, 0, kMostThp, "its use of huge pages", who)) & ~uint32_t{1};
  // Older kernels have neither.
  h.mdwe = static_cast<uint32_t>(within(std::max<int64_t>(area.mdwe, 0), 0, kMostMdwe, "what it denies itself", who));
  h.memory_merge = within(std::max<int64_t>(area.memory_merge, 0), 0, 1, "whether its pages are merged", who) != 0;
  h.lock_future = static_cast<uint32_t>(within(area.lock_future, 0, MCL_FUTURE | MCL_ONFAULT, "what it locks", who));
  h.brk = static_cast<uint64_t>(within(area.brk, 0, int64_t{kUserEnd}, "its break", who));
  h.membarrier_registrations =
      static_cast<int>(within(std::max<int64_t>(area.membarrier, 0), 0, INT32_MAX, "its membarrier state", who));
  // Kernels may lack it. Descriptors are of eight bytes.
  constexpr size_t kBytes = sizeof area.ldt;
  const int64_t ldt = within(std::max<int64_t>(area.ldt_bytes, 0), 0, kBytes, "the size of its LDT", who);
  if (area.ldt_bytes == parasite::kTooManySegments)
    throw Refusal(who + " has many segments of its own (modify_ldt(2))", "such a program cannot be moved");
  h.ldt.assign(area.ldt, area.ldt + static_cast<size_t>(ldt) / sizeof(uint64_t));
  while (!h.ldt.empty() && h.ldt.back() == 0) h.ldt.pop_back();  // the kernel fills up what it is given
  h.monotonic = answered_time(area.monotonic, who);
  h.boottime = answered_time(area.boottime, who);
  h.itimers_read_ns = passed_ns(area.monotonic, area.itimers_read, who);
  return h;
}

namespace {

/// The user's keyrings, which every host makes for itself, and what an init gives a service to know itself by, as it
/// does in the environment (systemd.exec(5), INVOCATION_ID).
bool is_of_host(std::string_view description) {
  const size_t name = description.rfind(';');
  if (name == std::string_view::npos) return false;
  const std::string_view is = description.substr(name + 1);
  if (description.starts_with("user;")) return is == "invocation_id";
  return description.starts_with("keyring;") && (is.starts_with("_uid.") || is.starts_with("_uid_ses."));
}

/// It comes from the program.
std::string printable(std::string_view text) {
  std::string out(text);
  std::ranges::replace_if(
      out, [](char c) { return c < ' ' || c > '~'; }, '?');
  return out;
}

}  // namespace

void refuse_keys(const parasite::Area& area, Pid pid) {
  const parasite::Keys& keys = area.keys;
  const auto refuse = [pid](const char* where, const std::string& which = "") {
    throw Refusal(name_of(pid) + " has keys in the keyring of its " + where + which + " (keyrings(7))",
                  "unlink them first (keyctl(1) unlink, or clear), or start the program in a session of its own "
                  "(keyctl session)");
  };
  if (keys.of_thread > 0) refuse("thread");
  if (keys.of_process > 0) refuse("process");
  const auto many = static_cast<uint64_t>(std::max<int64_t>(keys.of_session, 0)) / sizeof(int32_t);
  if (many > parasite::kMostKeys) refuse("session");
  for (uint64_t i = 0; i < many; ++i) {
    const std::string_view text(keys.descriptions[i], ::strnlen(keys.descriptions[i], parasite::kKeyDescription));
    if (!is_of_host(text)) refuse("session", text.empty() ? "" : ", " + printable(text) + ",");
  }
}

namespace {

[[noreturn]] void refuse_nodes(const std::string& who, const char* call) {
  throw Refusal(who + " has a memory policy for nodes that cannot be read (" + call + ")",
                "start the program without it: by numactl(8), or its own option for NUMA");
}

}  // namespace

std::vector<MappingPolicy> answered_policies(const parasite::Area& area, std::span<const AskedMapping> mappings,
                                             Pid pid) {
  const std::string who = name_of(pid);
  if (area.policy_count > parasite::kMostPolicies)
    throw Refusal(who + " has over " + std::to_string(parasite::kMostPolicies) +
                      " mappings with memory policies of their own (mbind(2))",
                  "start the program without its option for NUMA");
  std::vector<MappingPolicy> policies;
  for (const parasite::Policy& p : std::span(area.policies).first(area.policy_count)) {
    if (p.mode == parasite::kNodesUnknown) refuse_nodes(who, "mbind(2)");
    const auto number = within(p.mapping, 0, static_cast<int64_t>(mappings.size()) - 1, "a mapping", who);
    const AskedMapping& mapping = mappings[static_cast<size_t>(number)];
    if (mapping.object)
      throw Refusal(who + " has a memory policy for shared memory (mbind(2))",
                    "that cannot be moved yet; start the program without its option for NUMA");
    policies.push_back({mapping.range,
                        static_cast<uint32_t>(within(p.mode, 1, kMostPolicy, "the policy of a mapping", who)),
                        p.nodes});
  }
  return policies;
}

namespace {

/// Of an attribute that a kernel does not know nothing is told.
std::map<uint32_t, uint64_t> unusual(const parasite::Thread& thread, const std::string& who) {
  std::map<uint32_t, uint64_t> found;
  const __u64* answer = thread.attributes;
  for (const Attribute& a : thread_attributes()) {
    const uint64_t value = *answer++;
    if (value == parasite::kUnanswered) continue;
    if (value > a.most) throw Corrupt("the visit of " + who, std::string(a.name) + " is impossible");
    if (a.settable != 0 && (value & a.settable) == 0) continue;
    if (value != a.usual) found.emplace(a.id, value);
  }
  constexpr uint64_t kLocal = 4, kModes = 0xff;  // MPOL_LOCAL (linux/mempolicy.h); above stand flags
  if (const auto policy = found.find(kMemoryPolicy);
      policy != found.end() && (policy->second & kModes) != kLocal && !found.contains(kMemoryPolicyNodes))
    refuse_nodes(who, "set_mempolicy(2)");
  return found;
}

}  // namespace

ThreadHarvest answered_thread(const parasite::Thread& thread, Tid tid, int64_t securebits) {
  const std::string who = name_of(tid);
  answered_result(thread.altstack_result, "sigaltstack", who);
  answered_result(thread.tid_address_result, "prctl(PR_GET_TID_ADDRESS)", who);
  answered_result(thread.pdeath_result, "prctl(PR_GET_PDEATHSIG)", who);
  ThreadHarvest h{.tid = tid};
  h.altstack.ss_sp = reinterpret_cast<void*>(thread.altstack.sp);
  h.altstack.ss_flags = thread.altstack.flags;
  h.altstack.ss_size = thread.altstack.size;
  h.clear_child_tid = thread.tid_address;
  h.attributes = unusual(thread, who);
  h.pdeath_signal =
      static_cast<int>(within(thread.pdeath_signal, 0, kLastSignal, "the signal at its parent's death", who));
  h.securebits = static_cast<uint32_t>(
      within(answered_result(securebits, "prctl(PR_GET_SECUREBITS)", who), 0, UINT32_MAX, "its securebits", who));
  return h;
}

ThreadHarvest answered_thread(parasite::Thread thread, Tid tid, const ThreadSlotResults& results) {
  thread.altstack_result = results.altstack;
  thread.tid_address_result = results.tid_address;
  thread.pdeath_result = results.pdeath_signal;
  constexpr uint64_t kMostResult = 127;
  for (size_t i = thread_attributes().size(), shift = 0; i-- > 0; shift += 8) {
    const uint64_t result = results.attributes >> shift & 0xff;
    if (!thread_attributes()[i].by_address || result > kMostResult)
      thread.attributes[i] = result > kMostResult ? uint64_t{parasite::kUnanswered} : result;
  }
  return answered_thread(thread, tid, results.securebits);
}

TimerHarvest answered_timer(const parasite::Area& area, const parasite::Timer& timer, int id, Pid pid) {
  const std::string who = name_of(pid);
  answered_result(timer.error, "timer_gettime", who);
  TimerHarvest h{.id = id, .overrun = static_cast<int>(answered_result(timer.overrun, "timer_getoverrun", who))};
  const auto part = [&](int64_t sec, int64_t nsec) -> timespec {
    return {within(sec, 0, kMostSeconds, "the time of a timer", who),
            within(nsec, 0, kNsPerSecond - 1, "the time of a timer", who)};
  };
  h.value = {part(timer.interval_sec, timer.interval_nsec), part(timer.value_sec, timer.value_nsec)};
  h.read_ns = passed_ns(area.monotonic, timer.after, who);
  h.doubt_ns = passed_ns(timer.before, timer.after, who);
  return h;
}

int answered_userfaultfd(int64_t number, Pid pid) {
  const std::string who = name_of(pid);
  return static_cast<int>(
      within(answered_result(number, "make a userfaultfd", who), 0, INT32_MAX, "the number of a descriptor", who));
}

}  // namespace migrate
