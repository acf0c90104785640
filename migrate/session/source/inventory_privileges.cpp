#include "migrate/session/source/inventory_privileges.h"

#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <set>
#include <tuple>

#include "core/base/proc_values.h"
#include "core/task/proc_text.h"
#include "migrate/session/guardian/privileges.h"

namespace migrate {
namespace {

using Kind = Privilege::Kind;

void add(wire::Check& check, int32_t task, uint64_t held, Kind kind, uint64_t value, uint64_t limit = 0,
         uint32_t detail = 0) {
  wire::Check::Privilege* p = check.add_privileges();
  p->set_kind(static_cast<uint32_t>(kind));
  p->set_task(task);
  p->set_detail(detail);
  p->set_value(value);
  p->set_limit(limit);
  p->set_held(held);
}

void add_scheduling(pid_t task, pid_t tid, uint64_t held, const std::array<Rlimit, kRlimits>& limits,
                    wire::Check& check) {
  const int policy = ::sched_getscheduler(tid) & ~SCHED_RESET_ON_FORK;
  if (policy == SCHED_FIFO || policy == SCHED_RR) {
    sched_param param{};
    ::sched_getparam(tid, &param);
    add(check, task, held, Kind::realtime, static_cast<uint64_t>(param.sched_priority), limits[RLIMIT_RTPRIO].max);
  }
  errno = 0;
  const int nice = ::getpriority(PRIO_PROCESS, static_cast<id_t>(tid));
  if (errno == 0 && nice < 0)
    add(check, task, held, Kind::nice, static_cast<uint64_t>(20 - nice), limits[RLIMIT_NICE].max);
  constexpr int kWhoProcess = 1, kClassShift = 13, kRealtimeClass = 1;
  const long ioprio = ::syscall(SYS_ioprio_get, kWhoProcess, tid);
  if (ioprio > 0 && ioprio >> kClassShift == kRealtimeClass)
    add(check, task, held, Kind::io_realtime, static_cast<uint64_t>(ioprio));
}

}  // namespace

uint64_t held_capabilities(const ProcDir& task) {
  const auto status = task.status();
  const auto it = status.find("CapPrm");
  return it == status.end() ? 0 : parse_number(it->second, "/proc/PID/status: CapPrm", 16);
}

void add_privileges(const ProcDir& task, uint64_t held, wire::Check& check) {
  const pid_t pid = task.pid();
  const std::array<Rlimit, kRlimits> limits = parse_limits(task.read("limits"));
  for (const pid_t tid : task.threads()) add_scheduling(pid, tid, held, limits, check);
  // Which of them are raised the destination knows.
  for (uint32_t i = 0; i < limits.size(); ++i) add(check, pid, held, Kind::hard_limit, limits[i].max, 0, i);
  const int oom = parse_number<int32_t>(task.read("oom_score_adj"), "/proc/PID/oom_score_adj");
  if (oom < 0) add(check, pid, held, Kind::oom_score, static_cast<uint64_t>(-oom));
  const auto status = task.status();
  if (const auto locked = status.find("VmLck"); locked != status.end()) {
    const uint64_t bytes = parse_first_number(locked->second, "/proc/PID/status: VmLck") * 1024;
    if (bytes > limits[RLIMIT_MEMLOCK].max)
      add(check, pid, held, Kind::locked_memory, bytes, limits[RLIMIT_MEMLOCK].max);
  }
  const std::vector<int> numbers = task.descriptors();
  if (!numbers.empty())
    check.set_highest_descriptor(std::max(check.highest_descriptor(), static_cast<uint32_t>(numbers.back())));
}

void add_port_privilege(const SocketHolder& holder, uint32_t port, wire::Check& check) {
  add(check, holder.task, holder.held, Kind::port, port);
}

void leave_out_privileges(const wire::Check& known, wire::Check& news) {
  using Key = std::tuple<uint32_t, uint32_t, uint64_t, uint64_t, uint64_t>;
  std::set<Key> told;
  const auto fresh = [&](const wire::Check::Privilege& p) {
    return told.emplace(p.kind(), p.detail(), p.value(), p.limit(), p.held()).second;
  };
  for (const auto& p : known.privileges()) fresh(p);
  auto* now = news.mutable_privileges();
  now->erase(std::remove_if(now->begin(), now->end(), [&](const auto& p) { return !fresh(p); }), now->end());
  const std::set<uint32_t> gids(known.gids().begin(), known.gids().end());
  auto* groups = news.mutable_gids();
  groups->erase(std::remove_if(groups->begin(), groups->end(), [&](uint32_t gid) { return gids.contains(gid); }),
                groups->end());
}

}  // namespace migrate
