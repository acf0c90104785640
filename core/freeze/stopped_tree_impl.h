// A StoppedTree while it is made: its threads, and the passes that stop them. For .cpp files of this folder.
#pragma once

#include <chrono>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/freeze/exit_reaper.h"
#include "core/freeze/stopped_tree.h"
#include "core/freeze/tracee.h"

namespace migrate {

std::string task_name(pid_t pid);
/// Empty for a task that is gone.
std::vector<pid_t> threads_of(const ProcDir& proc);
/// nullopt for one that is gone.
std::optional<ProcStat> stat_of(const ProcDir& proc);
/// As wait(2) would give it; nullopt: it lives. While a thread executes a program its leader is dead for a moment:
/// looked at before and after the threads were counted.
std::optional<int> exit_of(const ProcDir& proc);

struct StoppedTree::Impl {
  enum class ThreadState { running, stopped, ended };

  std::vector<StoppedTask> tasks;
  std::map<pid_t, ThreadState> threads;  ///< every thread seized
  std::map<pid_t, pid_t> task_of;        ///< thread → its task
  std::map<pid_t, int> stop_signals;     ///< task → group-stop signal
  std::set<pid_t> known;                 ///< tasks, zombies too
  std::optional<ExitReaper> reaper;      ///< while threads are seized
  Options options;
  Logger& log;
  bool detached = false;
  int failed_seizes = 0;

  Impl(const Options& o, Logger& l) : options(o), log(l) {}
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl() { detach(); }

  void stop_all(Pid root);
  bool add_task(pid_t pid, pid_t parent, const Deadline& deadline);
  void wait_out_of_disk_sleep(const StoppedTask& task, const Deadline& deadline);
  bool seize_new_threads(StoppedTask& task, const Deadline& deadline);
  bool has_lost_leader(const StoppedTask& task, const std::vector<pid_t>& tids, const Deadline& deadline);
  [[noreturn]] void explain_seize_failure(const StoppedTask& task, pid_t tid, int err);
  void collect_stops(const Deadline& deadline);
  void collect_stop(pid_t tid, const Deadline& deadline);
  void take_stop(pid_t tid, const tracee::Stop& stop);
  void look_at_leader(pid_t leader);
  void look_at_threads();
  void reap_thread(pid_t tid);
  /// Of the tasks from `first` on; whether there was one to stop.
  bool stop_threads(size_t first, const Deadline& deadline);
  /// Those of the tasks from `first` on, which have stopped; whether there was one that is not known.
  bool add_children(size_t first, const Deadline& deadline);
  bool has_new_leader(const Deadline& deadline);
  void read_threads();
  void drop_ended_tasks();
  void detach();
};

}  // namespace migrate
