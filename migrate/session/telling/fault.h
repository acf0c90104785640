// Named places at which a test makes a process of ours fail: MIGRATE_FAULT="point:action[,point:action...]".
// Actions: kill-self (SIGKILL), stop-self (SIGSTOP), fail (an Error), sleep (5 s, then on); at
// the points of journals sync-fails, which is what no test can make a disk do. MIGRATE_FAULT_REACHED names a file to
// which the names of points at which something was done are appended.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>

namespace migrate {

/// Does what the environment asks for at `name`, which must be one of fault_points().
void fault_point(std::string_view name);
/// Whether the environment asks for `action` at `name`, where the caller itself does it.
bool fault_asked(std::string_view name, std::string_view action);
std::span<const std::string_view> fault_points();
/// The points "WHO.inject-STAGE": "source-guardian" for DumpOptions::visit_hook, "source-agent" for
/// DirtyTracker::Options::visit_hook. Empty unless the environment names one.
/// `fail` is not for these: between infecting and curing a task nothing may throw past the cure.
std::function<void(const char*)> visit_fault_hook(const std::string& who);

}  // namespace migrate
