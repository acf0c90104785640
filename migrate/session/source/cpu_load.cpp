#include "migrate/session/source/cpu_load.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <sstream>

#include "core/base/fd.h"
#include "core/base/procfs.h"
#include "core/memory/track_tree.h"

namespace migrate {
namespace {

constexpr double kShortest = 0.1;  ///< seconds, of each processor
constexpr size_t kLongestStat = 1 << 20;

/// proc(5): user, nice, system, idle, iowait, irq, softirq, steal; what guests use is within user and nice.
bool read_machine(double& idle, double& all) {
  std::istringstream stat(read_file_at(AT_FDCWD, "/proc/stat", kLongestStat));
  std::string name;
  std::array<double, 8> ticks{};
  stat >> name;
  for (double& each : ticks) stat >> each;
  if (!stat || name != "cpu") return false;
  const auto a_second = static_cast<double>(::sysconf(_SC_CLK_TCK));
  idle = (ticks[3] + ticks[4]) / a_second;
  all = 0;
  for (const double each : ticks) all += each / a_second;
  return true;
}

}  // namespace

CpuLoad::CpuLoad(Pid root) : root_(root), last_(read()) {}

CpuLoad::Reading CpuLoad::read() const {
  Reading now;
  try {
    if (!read_machine(now.idle, now.all)) return {};
    for (const LivingTask& task : list_living(root_)) {
      const ProcDir proc(task.pid);
      for (const pid_t thread : proc.threads()) {
        // Documentation/scheduler/sched-stats.rst: nanoseconds that it ran come first.
        now.threads[{task.pid, thread}] =
            std::strtod(proc.read("task/" + std::to_string(thread) + "/schedstat").c_str(), nullptr) / 1e9;
      }
    }
  } catch (const std::exception&) {  // a task has ended: the others count
  }
  return now;
}

CpuUse CpuLoad::since_last() {
  Reading now = read();
  const double all = now.all - last_.all;
  if (all < kShortest * static_cast<double>(std::max(1L, ::sysconf(_SC_NPROCESSORS_ONLN)))) return use_;
  use_ = {.tree = 0, .idle = std::clamp(now.idle - last_.idle, 0.0, all), .all = all};
  for (const auto& [thread, ran] : now.threads) {
    const auto before = last_.threads.find(thread);
    use_.tree += std::max(0.0, ran - (before == last_.threads.end() ? 0 : before->second));
  }
  use_.tree = std::min(use_.tree, all - use_.idle);
  last_ = std::move(now);
  return use_;
}

}  // namespace migrate
