// A thousand timers of all kinds in some processes (PROCESSES TIMERS: how many, with how many of each of two kinds; if
// these are few, calls are in every tenth only): timerfds and POSIX timers of each clock, relative and absolute, once
// and again and again, ITIMER_REAL, and calls with a time-out. Whenever one comes it is looked whether that was early,
// and then it is armed again for another time. None is ever early, and none is dead. The file "latest" has how many ns
// the latest one was late by since the check before (bench/measure/timers.py).
#include <linux/futex.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <sys/timerfd.h>

#include <climits>
#include <csignal>
#include <fstream>
#include <memory>
#include <thread>
#include <vector>

#include "workload.h"

using namespace workload;

namespace {

constexpr int64_t kMs = 1'000'000, kAllowed = kMs;

struct Process {
  std::atomic<uint64_t> asked, answered;
  std::atomic<int64_t> latest;  ///< ns
  std::atomic<int> ready;
  std::atomic<bool> wrong;
  char text[200];
};

timespec to_timespec(int64_t ns) { return {ns / 1'000'000'000, ns % 1'000'000'000}; }

/// What is waited for: early or not, and how often it came.
class Due {
 public:
  explicit Due(std::string what) : what_(std::move(what)) {}

  /// From now on, by `clock`; with an interval it comes again and again.
  void begin(clockid_t clock, int64_t at, int64_t interval = 0) {
    clock_ = clock;
    at_ = at;
    interval_ = interval;
  }
  void came(uint64_t times, Process& shared) {
    const int64_t due = at_ + (static_cast<int64_t>(times) - 1) * interval_, now = now_ns(clock_);
    for (int64_t known = shared.latest; now - due > known && !shared.latest.compare_exchange_weak(known, now - due);) {
    }
    if (now < due - kAllowed && !shared.wrong) {
      std::snprintf(shared.text, sizeof shared.text, "%s came %lld us early", what_.c_str(),
                    static_cast<long long>((due - now) / 1000));
      shared.wrong = true;
    }
    at_ += static_cast<int64_t>(times) * interval_;
    ++count;
  }
  const std::string& what() const { return what_; }

  std::atomic<uint64_t> count{0};

 private:
  std::string what_;
  clockid_t clock_ = CLOCK_MONOTONIC;
  int64_t at_ = 0, interval_ = 0;
};

constexpr clockid_t kClocks[] = {CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_BOOTTIME};

/// How timer `i` of a process is armed in its `turn`: different for each.
struct Setting {
  clockid_t clock;
  bool absolute, periodic;
  int64_t first, interval;
  Setting(int i, uint64_t turn)
      : clock(kClocks[i % 3]),
        absolute(i / 3 % 2 == 1),
        periodic(i / 6 % 2 == 1),
        first((40 + static_cast<int64_t>((static_cast<uint64_t>(i) * 37 + turn * 131) % 900)) * kMs),
        interval(periodic ? (60 + i) * kMs : 0) {}
  /// Arms it by `set`, and `due` with it. Relative ones of CLOCK_REALTIME count as CLOCK_MONOTONIC does.
  template <class Set>
  void arm(Due& due, const Set& set) const {
    const clockid_t judge = !absolute && clock == CLOCK_REALTIME ? CLOCK_MONOTONIC : clock;
    const int64_t at = now_ns(judge) + first;
    due.begin(judge, at, interval);
    set(absolute, itimerspec{to_timespec(interval), to_timespec(absolute ? at : first)});
  }
  std::string name(const char* kind, int i) const {
    return std::string(kind) + " " + std::to_string(i) + " (clock " + std::to_string(clock) +
           (absolute ? ", absolute" : ", relative") + (periodic ? ", periodic)" : ")");
  }
};

struct Timerfd {
  Timerfd(int number) : i(number), fd(timerfd_create(Setting(i, 0).clock, TFD_NONBLOCK | TFD_CLOEXEC)) {
    must(fd, "timerfd_create");
    arm();
  }
  void arm() {
    const Setting setting(i, turn++);
    setting.arm(due, [&](bool absolute, const itimerspec& t) {
      must(timerfd_settime(fd, absolute ? TFD_TIMER_ABSTIME : 0, &t, nullptr), "timerfd_settime");
    });
  }
  void look(Process& shared) {
    uint64_t times = 0;
    if (read(fd, &times, sizeof times) != sizeof times) return;
    due.came(times, shared);
    if (!Setting(i, 0).periodic || turn++ % 16 == 0) arm();
  }
  int i, fd;
  uint64_t turn = 0;
  Due due{Setting(i, 0).name("timerfd", i)};
};

struct PosixTimer {
  PosixTimer(int number) : i(number) {
    sigevent e{};
    e.sigev_notify = SIGEV_SIGNAL;
    e.sigev_signo = SIGRTMIN + 1 + i % 8;
    e.sigev_value.sival_int = i;
    must(timer_create(Setting(i, 0).clock, &e, &id), "timer_create");
    arm();
  }
  void arm() {
    const Setting setting(i, turn++);
    setting.arm(due, [&](bool absolute, const itimerspec& t) {
      must(timer_settime(id, absolute ? TIMER_ABSTIME : 0, &t, nullptr), "timer_settime");
    });
  }
  void came(const siginfo_t& info, Process& shared) {
    due.came(1 + static_cast<uint64_t>(info.si_overrun), shared);
    if (!Setting(i, 0).periodic) arm();
  }
  int i;
  timer_t id{};
  uint64_t turn = 0;
  Due due{Setting(i, 0).name("POSIX timer", i)};
};

struct Sleep {
  const char* what;
  std::function<void(int64_t ns)> call;
};

void futex_wait(int operation, const timespec& t) {
  static uint32_t never = 0;
  syscall(SYS_futex, &never, operation, 0, &t, nullptr, FUTEX_BITSET_MATCH_ANY);
}

const std::vector<Sleep>& sleeps() {
  static const std::vector<Sleep> all{
      {"nanosleep",
       [](int64_t ns) {
         const timespec t = to_timespec(ns);
         nanosleep(&t, nullptr);
       }},
      {"clock_nanosleep to a point in time",
       [](int64_t ns) {
         const timespec t = to_timespec(now_ns(CLOCK_BOOTTIME) + ns);
         clock_nanosleep(CLOCK_BOOTTIME, TIMER_ABSTIME, &t, nullptr);
       }},
      {"poll", [](int64_t ns) { poll(nullptr, 0, static_cast<int>(ns / kMs)); }},
      {"ppoll",
       [](int64_t ns) {
         const timespec t = to_timespec(ns);
         ppoll(nullptr, 0, &t, nullptr);
       }},
      {"epoll_wait",
       [](int64_t ns) {
         epoll_event e{};
         static thread_local const int fd = epoll_create1(EPOLL_CLOEXEC);
         epoll_wait(fd, &e, 1, static_cast<int>(ns / kMs));
       }},
      {"futex", [](int64_t ns) { futex_wait(FUTEX_WAIT, to_timespec(ns)); }},
      {"futex to a point in time", [](int64_t ns) { futex_wait(FUTEX_WAIT_BITSET, to_timespec(now_ns() + ns)); }},
  };
  return all;
}

struct One {
  std::vector<std::unique_ptr<Timerfd>> files;
  std::vector<std::unique_ptr<PosixTimer>> timers;
  std::vector<std::unique_ptr<Due>> sleeping;
  Due alarm{"ITIMER_REAL"};
};

void take_signals(One& one, Process& shared, const sigset_t& all) {
  siginfo_t info{};
  const timespec none{};
  while (sigtimedwait(&all, &info, &none) > 0) {
    if (info.si_signo != SIGALRM) {
      one.timers.at(static_cast<size_t>(info.si_value.sival_int - one.timers.front()->i))->came(info, shared);
      continue;
    }
    one.alarm.came(1, shared);
    const itimerval next{{}, {0, 333'000}};
    one.alarm.begin(CLOCK_MONOTONIC, now_ns() + 333 * kMs);
    must(setitimer(ITIMER_REAL, &next, nullptr), "setitimer");
  }
}

std::vector<Due*> all_of(One& one) {
  std::vector<Due*> all{&one.alarm};
  for (const auto& f : one.files) all.push_back(&f->due);
  for (const auto& t : one.timers) all.push_back(&t->due);
  for (const auto& s : one.sleeping) all.push_back(s.get());
  return all;
}

/// Answers when each has come since it was asked, or says which has not.
void answer(One& one, Process& shared, std::vector<uint64_t>& counts, int64_t& since) {
  const std::vector<Due*> all = all_of(one);
  if (shared.asked == shared.answered) return counts.clear();
  if (counts.empty()) {
    since = now_ns();
    for (const Due* due : all) counts.push_back(due->count);
  }
  const Due* dead = nullptr;
  for (size_t i = 0; i < all.size(); ++i)
    if (all[i]->count == counts[i]) dead = all[i];
  if (dead != nullptr && now_ns() - since < 15'000 * kMs) return;
  if (dead != nullptr && !shared.wrong) {
    std::snprintf(shared.text, sizeof shared.text, "%s is dead", dead->what().c_str());
    shared.wrong = true;
  }
  shared.answered = shared.asked.load();
}

/// With `timers` of each of two kinds, from the one with the number `from` on.
[[noreturn]] void be(Process& shared, const Workload& w, int from, int timers, bool sleeper) {
  sigset_t all;
  sigemptyset(&all);
  sigaddset(&all, SIGALRM);
  for (int i = 1; i <= 8; ++i) sigaddset(&all, SIGRTMIN + i);
  must(sigprocmask(SIG_BLOCK, &all, nullptr), "sigprocmask");
  One one;
  for (int i = from; i < from + timers; ++i) {
    one.files.push_back(std::make_unique<Timerfd>(i));
    one.timers.push_back(std::make_unique<PosixTimer>(i));
  }
  for (const Sleep& sleep : sleeps()) {
    if (!sleeper) break;
    Due& due = *one.sleeping.emplace_back(std::make_unique<Due>(sleep.what));
    std::thread([&] {
      for (uint64_t turn = 0;; ++turn) {
        const auto ns = static_cast<int64_t>(100 + turn * 173 % 700) * kMs;
        due.begin(CLOCK_MONOTONIC, now_ns() + ns);
        sleep.call(ns);
        due.came(1, shared);
      }
    }).detach();
  }
  const itimerval first{{}, {0, 200'000}};
  one.alarm.begin(CLOCK_MONOTONIC, now_ns() + 200 * kMs);
  must(setitimer(ITIMER_REAL, &first, nullptr), "setitimer");
  shared.ready = 1;
  std::vector<uint64_t> counts;
  int64_t since = 0;
  for (; access(w.dir().c_str(), F_OK) == 0; sleep_ms(10)) {
    for (const auto& file : one.files) file->look(shared);
    take_signals(one, shared, all);
    answer(one, shared, counts, since);
  }
  std::_Exit(0);
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        const auto processes = static_cast<size_t>(w.number(0, 8));
        const int timers = static_cast<int>(w.number(1, 60));
        Process* shared = shared_memory<Process>(processes);
        for (size_t i = 0; i < processes; ++i)
          if (must(fork(), "fork") == 0) {
            try {
              be(shared[i], w, static_cast<int>(i) * timers % 60, timers, timers > 9 || i % 10 == 0);
            } catch (const std::exception& e) {
              std::fprintf(stderr, "%s\n", e.what());
              std::_Exit(1);
            }
          }
        for (size_t i = 0; i < processes; ++i) await([&] { return shared[i].ready == 1; }, "a process");
        w.serve([&] {
          for (size_t i = 0; i < processes; ++i) ++shared[i].asked;
          for (size_t i = 0; i < processes; ++i) {
            await([&] { return shared[i].answered == shared[i].asked; }, "process " + std::to_string(i));
            expect(!shared[i].wrong, shared[i].text);
          }
          int64_t latest = 0;
          for (size_t i = 0; i < processes; ++i) latest = std::max(latest, shared[i].latest.exchange(0));
          std::ofstream(w.dir() + "/latest") << latest;
        });
      },
      argv[0]);
}
