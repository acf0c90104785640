// What prctl(2), mlockall(2) and sched_setattr(2) say of a task: each child has one thing, and a thread of its own that
// has another. Asked how they are, they compare all of it with what it was at first.
#include <linux/sched.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <algorithm>
#include <map>
#include <thread>
#include <vector>

#include "workload.h"

using namespace workload;

namespace {

constexpr size_t kPage = 4096;
constexpr int kSetMdwe = 65, kGetMdwe = 66, kSetMerge = 67, kGetMerge = 68,
              kExceptAdvised = 2;  // of newer kernels' headers

/// What mlockall(2) does to a mapping that is made now: 1 locked, 2 locked, and there at once.
long future() {
  void* at = mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  expect(at != MAP_FAILED, "mmap failed");
  unsigned char present = 0;
  must(mincore(at, kPage, &present), "mincore");
  const bool locked = msync(at, kPage, MS_INVALIDATE) == -1;
  munmap(at, kPage);
  return (locked ? 1 : 0) + (present & 1);
}

using Facts = std::map<std::string, long>;

Facts facts() {
  Facts all;
  all["mdwe"] = prctl(kGetMdwe, 0, 0, 0, 0);
  all["memory merge"] = prctl(kGetMerge, 0, 0, 0, 0);
  all["error policy"] = prctl(PR_MCE_KILL_GET, 0, 0, 0, 0);
  all["future mappings"] = future();
  all["policy"] = must(sched_getscheduler(0), "sched_getscheduler");
  sched_param param{};
  must(sched_getparam(0, &param), "sched_getparam");
  all["priority"] = param.sched_priority;
  all["nice"] = getpriority(PRIO_PROCESS, 0);
  all["slack"] = prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0);
  all["keeps capabilities"] = prctl(PR_GET_KEEPCAPS, 0, 0, 0, 0);
  int tsc = 0;
  prctl(PR_GET_TSC, &tsc, 0, 0, 0);
  all["time stamp counter"] = tsc;
  all["CPUID"] = syscall(SYS_arch_prctl, 0x1011);  // ARCH_GET_CPUID
  all["huge pages off"] = prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0);
  int reaper = 0;
  prctl(PR_GET_CHILD_SUBREAPER, &reaper, 0, 0, 0);
  all["subreaper"] = reaper;
  return all;
}

void expect_same(const Facts& was, const std::string& who) {
  for (const auto& [what, is] : facts()) expect_equal(is, was.at(what), who + ": " + what);
}

/// Of the machine. (Where CPUID cannot be taken away that fails.)
void no_counters() {
  must(prctl(PR_SET_TSC, PR_TSC_SIGSEGV, 0, 0, 0), "PR_SET_TSC");
  syscall(SYS_arch_prctl, 0x1012, 0);  // ARCH_SET_CPUID
}

void realtime(int policy, int priority, int nice) {
  must(setpriority(PRIO_PROCESS, 0, nice), "setpriority");
  const sched_param param{priority};
  must(sched_setscheduler(0, policy, &param), "sched_setscheduler");
}

struct One {
  const char* what;
  std::function<void()> of_task, of_thread;
};

const std::vector<One>& kinds() {
  static const std::vector<One> all{
      {"nothing", [] {}, [] {}},
      {"mdwe", [] { prctl(kSetMdwe, 1, 0, 0, 0); }, [] {}},
      {"mdwe, not inherited", [] { prctl(kSetMdwe, 3, 0, 0, 0); }, [] {}},
      {"memory merge", [] { prctl(kSetMerge, 1, 0, 0, 0); }, [] {}},
      {"memory errors early", [] { prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0); },
       [] { prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_LATE, 0, 0); }},
      {"memory errors late", [] { prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_LATE, 0, 0); },
       [] { prctl(PR_MCE_KILL, PR_MCE_KILL_CLEAR, 0, 0, 0); }},
      {"locks what comes", [] { must(mlockall(MCL_FUTURE), "mlockall"); }, [] {}},
      {"locks what comes, on fault", [] { must(mlockall(MCL_FUTURE | MCL_ONFAULT), "mlockall"); }, [] {}},
      {"real-time", [] { realtime(SCHED_FIFO, 3, 5); }, [] { realtime(SCHED_RR | SCHED_RESET_ON_FORK, 2, -3); }},
      {"resets on fork", [] { realtime(SCHED_BATCH | SCHED_RESET_ON_FORK, 0, -4); },
       [] { realtime(SCHED_OTHER, 0, 2); }},
      {"no huge pages", [] { prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0); },
       [] { prctl(PR_SET_TIMERSLACK, 12345, 0, 0, 0); }},
      {"huge pages where advised", [] { prctl(PR_SET_THP_DISABLE, 1, kExceptAdvised, 0, 0); }, [] {}},
      {"no time stamps, no CPUID", [] { no_counters(); }, [] {}},
      {"no time stamps in its thread", [] {}, [] { no_counters(); }},
  };
  return all;
}

struct Child {
  std::atomic<uint64_t> asked, task, thread;
  std::atomic<bool> wrong;
  char text[200];
};

void answer(Child& shared, std::atomic<uint64_t>& answered, const Facts& was, const std::string& who) {
  const uint64_t asked = shared.asked;
  if (answered == asked) return;
  try {
    expect_same(was, who);
  } catch (const std::exception& e) {
    std::snprintf(shared.text, sizeof shared.text, "%s", e.what());
    shared.wrong = true;
  }
  answered = asked;
}

[[noreturn]] void be(const One& one, Child& shared, const Workload& w, std::atomic<int>& ready) {
  one.of_task();
  const std::string name = one.what;
  std::thread([&] {
    one.of_thread();
    const Facts was = facts();
    ++ready;
    for (;; sleep_ms(5)) answer(shared, shared.thread, was, "the thread of '" + name + "'");
  }).detach();
  const Facts was = facts();
  ++ready;
  for (; access(w.dir().c_str(), F_OK) == 0; sleep_ms(5)) answer(shared, shared.task, was, "'" + name + "'");
  std::_Exit(0);
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        Child* children = shared_memory<Child>(kinds().size());
        std::atomic<int>* ready = shared_memory<std::atomic<int>>();
        for (size_t i = 0; i < kinds().size(); ++i)
          if (must(fork(), "fork") == 0) {
            try {
              be(kinds()[i], children[i], w, *ready);
            } catch (const std::exception& e) {
              std::fprintf(stderr, "%s: %s\n", kinds()[i].what, e.what());
              std::_Exit(1);
            }
          }
        await([&] { return *ready == 2 * static_cast<int>(kinds().size()); }, "all children");
        w.serve([&] {
          for (size_t i = 0; i < kinds().size(); ++i) ++children[i].asked;
          for (size_t i = 0; i < kinds().size(); ++i) {
            Child& child = children[i];
            await([&] { return child.task == child.asked && child.thread == child.asked; }, kinds()[i].what);
            const bool wrong = child.wrong.exchange(false);
            expect(!wrong, child.text);
          }
        });
      },
      argv[0]);
}
