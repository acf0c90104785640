// Named places at which a test makes a process of ours fail: MIGRATE_FAULT="point:action[,point:action...]".
// Actions: kill-self (SIGKILL), stop-self (SIGSTOP), exit-error (_exit(70)), fail (an Error), sleep (5 s, then on).
#pragma once

#include <functional>
#include <span>
#include <string_view>

namespace migrate {

/// Does what the environment asks for at `name`, which must be one of fault_points().
void fault_point(std::string_view name);
std::span<const std::string_view> fault_points();
/// For DumpOptions::visit_hook: the points "source-guardian.inject-STAGE". Empty unless the environment names one.
/// `fail` is not for these: between infecting and curing a task nothing may throw past the cure.
std::function<void(const char*)> visit_fault_hook();

}  // namespace migrate
