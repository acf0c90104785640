// Named places at which a test makes a process of ours fail: MIGRATE_FAULT="point:action[,point:action...]".
// Actions: kill-self (SIGKILL), stop-self (SIGSTOP), exit-error (_exit(70)), fail (an Error), sleep (5 s, then on).
#pragma once

#include <span>
#include <string_view>

namespace migrate {

/// Does what the environment asks for at `name`, which must be one of fault_points().
void fault_point(std::string_view name);
std::span<const std::string_view> fault_points();

}  // namespace migrate
