// What this kernel can do, found out by doing it once.
#pragma once

#include <string>
#include <vector>

namespace migrate {

struct Feature {
  std::string name;  ///< as `check --feature NAME` takes it; CRIU's name where it has one
  bool required;     ///< without it nothing can be moved
  bool present;
  std::string purpose;  ///< what it is needed for, and what to do when it is missing
};

/// Probes everything; forks a few short-lived children. Takes milliseconds.
std::vector<Feature> probe_features();

/// The capabilities (by name) that moving processes needs and this process lacks. CAP_SYS_RESOURCE is never among them.
std::vector<std::string> missing_capabilities();

}  // namespace migrate
